"""Pixel data as arrays, under limits: a file of a few hundred bytes may claim to hold more than any memory does."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, convert_color_space

from secure_media_processor.errors import ImageError, SmpError
from secure_media_processor.medical.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    import numpy as np
    from numpy.typing import NDArray
    from pydicom import Dataset

    Pixels = NDArray[np.generic]

# The largest images that are made, mammograms and whole radiographs, have about 60 MB; a gigabyte is still decoded in memory.
MAX_FRAME_BYTES = 1024**3
# A whole-body CT of 4,000 slices in one object has 2 GiB, a tiled microscopy image of one resolution several. What claims more
# than this fills disks.
MAX_OBJECT_BYTES = 16 * 1024**3
MAX_FRAMES = 1_000_000

_JPEG_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, and SOF55 of JPEG-LS
_JPEG_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_JPEG_MARK = 0xFF
_JPEG_SCAN = 0xDA
_CODESTREAM_2000 = b"\xff\x4f\xff\x51"  # SOC and SIZ, with which every JPEG 2000 codestream begins
_FRAME_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_FLOAT_BITS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
_YBR_CONVERTED = {"YBR_FULL", "YBR_FULL_422"}


@dataclass(frozen=True, slots=True)
class PixelForm:
    """What the Image Pixel module (PS3.3 C.7.6.3) says of the pixel data, checked against the limits and the data itself."""

    rows: int
    """Rows (0028,0010)."""
    columns: int
    """Columns (0028,0011)."""
    frames: int
    """NumberOfFrames (0028,0008), 1 if absent."""
    samples: int
    """SamplesPerPixel (0028,0002): 1 or 3."""
    bits_allocated: int
    """BitsAllocated (0028,0100)."""
    bits_stored: int
    """BitsStored (0028,0101)."""
    signed: bool
    """PixelRepresentation (0028,0103) is 1; true for floating-point pixel data."""
    floating: bool
    """Whether values are floating-point numbers: Float or Double Float Pixel Data."""
    photometric: str
    """PhotometricInterpretation (0028,0004), such as "MONOCHROME2"."""
    syntax: str
    """Transfer syntax UID."""

    @property
    def monochrome(self) -> bool:
        """Whether there is one gray value a pixel."""
        return self.photometric.startswith("MONOCHROME")

    @property
    def stored_range(self) -> tuple[int, int]:
        """The least and the greatest stored value that BitsStored allows."""
        if self.signed:
            return -(1 << (self.bits_stored - 1)), (1 << (self.bits_stored - 1)) - 1
        return 0, (1 << self.bits_stored) - 1


@contextmanager
def foreign_data(what: str) -> Iterator[None]:
    """Turn whatever a parser or decoder raises over data from outside into one line that holds nothing of the data."""
    try:
        with silent_pydicom():
            yield
    except SmpError:
        raise
    # Code that reads foreign bytes fails in as many ways as there are files. All of them mean the same here, none is hidden.
    except Exception as error:
        raise ImageError(f"{what} ({type(error).__name__})") from error


def pixel_form(dataset: Dataset) -> PixelForm:
    """Return what `dataset` says of its pixel data.

    Raises:
        ImageError: there are no pixels, the description contradicts itself or the data, is beyond the limits, or the transfer
            syntax cannot be decoded here.
    """
    with foreign_data("the description of its pixels cannot be parsed"):
        present = [keyword for keyword in _FRAME_KEYWORDS if keyword in dataset]
        if len(present) != 1:
            raise ImageError("it has no pixel data" if not present else "it has several kinds of pixel data")
        keyword = present[0]
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if not syntax:
            raise ImageError("it does not say its transfer syntax")
        bits = _FLOAT_BITS.get(keyword) or _integer(dataset, "BitsAllocated")
        form = PixelForm(
            rows=_integer(dataset, "Rows"),
            columns=_integer(dataset, "Columns"),
            frames=_integer(dataset, "NumberOfFrames", 1),
            samples=_integer(dataset, "SamplesPerPixel", 1),
            bits_allocated=bits,
            bits_stored=bits if keyword in _FLOAT_BITS else _integer(dataset, "BitsStored", bits),
            signed=keyword in _FLOAT_BITS or _integer(dataset, "PixelRepresentation", 0) == 1,
            floating=keyword in _FLOAT_BITS,
            photometric=str(dataset.get("PhotometricInterpretation") or ""),
            syntax=str(syntax),
        )
        _refuse_absurd(form)
        try:
            get_decoder(syntax)
        except NotImplementedError:
            name = syntax.name if syntax.name != syntax else "unknown"
            raise ImageError(f"its transfer syntax cannot be decoded: {name}") from None
        value = dataset[keyword].value
        if value is None or not len(value):
            raise ImageError("its pixel data is empty")
        if not syntax.is_encapsulated and len(value) < _native_length(form):
            raise ImageError(f"its pixel data is truncated: {len(value)} of {_native_length(form)} bytes")
    return form


def _integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None or value == "":
        if default is None:
            raise ImageError(f"it has no {keyword}")
        return default
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise ImageError(f"its {keyword} is not a number") from None


def _refuse_absurd(form: PixelForm) -> None:
    if min(form.rows, form.columns, form.frames) < 1 or form.samples not in (1, 3):
        raise ImageError("its dimensions make no image")
    if form.bits_allocated not in (1, 8, 16, 32, 64) or not 1 <= form.bits_stored <= form.bits_allocated:
        raise ImageError("its BitsAllocated and BitsStored make no image")
    frame = form.rows * form.columns * form.samples * max(form.bits_allocated, 8) // 8
    if frame > MAX_FRAME_BYTES or frame * form.frames > MAX_OBJECT_BYTES or form.frames > MAX_FRAMES:
        size = f"{form.frames} frames of {form.rows} by {form.columns} pixels"
        raise ImageError(f"it claims {size}, which is larger than what is decoded")


def _native_length(form: PixelForm) -> int:
    """Return how many bytes pixel data without compression must have (PS3.5 section 8)."""
    samples = 2 if form.photometric == "YBR_FULL_422" else form.samples  # two pixels share their chrominance
    return (form.rows * form.columns * samples * form.frames * form.bits_allocated + 7) // 8


def decoded_frames(dataset: Dataset, form: PixelForm, *, only: int | None = None) -> Iterator[Pixels]:
    """Yield the frames of `dataset`, one in memory at a time.

    Args:
        dataset: As from read_dataset, with pixel data.
        form: What pixel_form says of it.
        only: Index, from 0, of the one frame that is wanted.

    Yields:
        Arrays of stored values, shape (rows, columns), or colours as RGB, shape (rows, columns, 3). Palette and YBR colours are
        converted.

    Raises:
        ImageError: a frame is damaged, missing, or not what the description says.
    """
    decoder = get_decoder(form.syntax)
    if not decoder.is_native:
        with foreign_data("its compressed pixel data is damaged"):
            check_codestreams(dataset, form)
    given = {} if only is None else {"indices": [only]}
    arrays = decoder.iter_array(dataset, **given)  # type: ignore[arg-type]  # one value, and the type is that of another option
    with closing(cast("Generator[tuple[Pixels, dict[str, str | int]]]", arrays)):
        for number in range(form.frames) if only is None else [only]:
            with foreign_data(f"frame {number + 1} of its pixel data cannot be decoded"):
                try:
                    array, properties = next(arrays)
                except StopIteration:
                    raise ImageError(f"its pixel data is truncated: it has {number} of {form.frames} frames") from None
                pixels = _in_rgb(dataset, array, str(properties["photometric_interpretation"]))
            yield pixels


def _in_rgb(dataset: Dataset, array: Pixels, photometric: str) -> Pixels:
    """Return colours as RGB, and gray values as they are."""
    if photometric == "PALETTE COLOR":
        return apply_color_lut(array, dataset)
    if photometric in _YBR_CONVERTED:  # iter_array converts these; what it left is more than 8 bits deep
        return convert_color_space(array, photometric, "RGB")
    if photometric == "RGB" or photometric.startswith("MONOCHROME"):
        return array
    raise ImageError("its PhotometricInterpretation is not supported")


def check_codestreams(dataset: Dataset, form: PixelForm) -> None:
    """Refuse frames whose own header gives another size than the description: decoders allocate what that header says."""
    offsets: Any = None
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    count = 0
    for encoded in generate_frames(dataset.PixelData, number_of_frames=form.frames, extended_offsets=offsets):
        count += 1
        found = _size_in_codestream(encoded)
        if found is not None and found != (form.rows, form.columns, form.samples):
            raise ImageError(f"frame {count} of its pixel data has another size than its description says")
    if count < form.frames:
        raise ImageError(f"its pixel data is truncated: it has {count} of {form.frames} frames")


def _size_in_codestream(data: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and components from the header of a JPEG, JPEG-LS or JPEG 2000 image; None for RLE."""
    if data[:2] == b"\xff\xd8":
        return _size_in_jpeg(data)
    start = data.find(_CODESTREAM_2000, 0, 4096)  # at 0, or after the boxes of a JP2 file, which do not belong here
    if start < 0:
        return None
    # ISO 15444-1 A.5.1: Lsiz, Rsiz, Xsiz, Ysiz, XOsiz, YOsiz, four of the tiles, Csiz
    right, bottom, left, top = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
    return bottom - top, right - left, int.from_bytes(data[start + 40 : start + 42], "big")


def _size_in_jpeg(data: bytes) -> tuple[int, int, int]:
    """Follow the markers (ISO 10918-1 annex B) to the frame header."""
    at = 2
    while at + 10 <= len(data) and data[at] == _JPEG_MARK:
        marker = data[at + 1]
        if marker == _JPEG_MARK:  # a fill byte
            at += 1
        elif marker in _JPEG_STANDALONE:
            at += 2
        elif marker in _JPEG_FRAME_HEADERS:
            rows, columns = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            return rows, columns, data[at + 9]
        elif marker == _JPEG_SCAN:
            break
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ImageError("its compressed pixel data has no header")
