"""DICOM images as PNG files that hold the picture and nothing else: no text, no time, no profile, no name in them."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from secure_media_processor.core.files import write_file
from secure_media_processor.errors import ImageError, SmpError, UsageError
from secure_media_processor.medical.convert.decoding import decoded_frames, pixel_form
from secure_media_processor.medical.convert.grayscale import WHITE, Grayscale, Lut, Window, grayscale_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from pydicom import Dataset

    from secure_media_processor.medical.convert.decoding import PixelForm, Pixels

# zlib's level. It makes files a tenth larger than the usual 6, in three quarters of the time.
_COMPRESSION = 3
# What is added in 16-bit pictures of images that can have negative values.
OFFSET_16 = 32768
_TOP_16 = 65535


@dataclass(frozen=True, slots=True)
class PngOptions:
    """How a picture is made of an image."""

    bits: int = 8
    """8: what a viewer shows. 16: the rescaled values as they are, plus the offset of `Picture`, without VOI or inversion."""
    view: int = 1
    """Number of the VOI LUT or window, from 1; 0 for none: from the least to the greatest value of the object."""
    frame: int | None = None
    """The one frame that is wanted, from 1; None for all."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame as a PNG file."""

    frame: int
    """From 1."""
    data: bytes
    """The file."""
    offset: int
    """With 16 bits: what was added to the rescaled values; 32768 if the image can have negative ones, else 0."""


def png_files(dataset: Dataset, options: PngOptions) -> Iterator[Picture]:
    """Yield the frames of an image as PNG files, one in memory at a time.

    Values go through the modality transformation, the chosen VOI LUT or window, and the presentation LUT shape (PS3.4 annex N).
    Black and white are the ends of the range that the VOI transformation can give, not of the values that occur. Overlays are
    not drawn. Pixels that are not square stay as they are.

    Raises:
        ImageError: the image cannot be decoded, or not be shown in this way.
    """
    form = pixel_form(dataset)
    if options.frame is not None and not 1 <= options.frame <= form.frames:
        raise ImageError(f"it has no frame {options.frame}: the last one is {form.frames}")
    only = None if options.frame is None else options.frame - 1
    frames = enumerate(decoded_frames(dataset, form, only=only), start=only or 0)
    if not form.monochrome:
        if options.bits != 8:  # noqa: PLR2004 - the depth of a colour
            raise ImageError("it is a colour image, which has 8 bits", hint="leave out --bits 16")
        for index, pixels in frames:
            yield Picture(index + 1, png_bytes(_eight_bits(pixels, dataset, form)), 0)
        return
    paint = _raw_painter(dataset, form) if options.bits == 16 else _painter(dataset, form, options.view)  # noqa: PLR2004
    for index, pixels in frames:
        painted, offset = paint(index, pixels)
        yield Picture(index + 1, png_bytes(painted), offset)


def write_png_files(
    dataset: Dataset, options: PngOptions, target_of: Callable[[int, int], Path], *, overwrite: bool
) -> list[Path]:
    """Write the frames of an image as PNG files, all or none.

    Args:
        dataset: The image.
        options: How.
        target_of: Gets the number of a frame, from 1, and how many frames there are; returns where its picture goes.
        overwrite: Whether files that exist are replaced.
    """
    count = pixel_form(dataset).frames
    written: list[Path] = []
    try:
        for picture in png_files(dataset, options):
            target = target_of(picture.frame, count)
            write_file(target, picture.data, overwrite=overwrite)
            written.append(target)
    except (SmpError, KeyboardInterrupt):
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return written


def _painter(dataset: Dataset, form: PixelForm, view: int) -> Callable[[int, Pixels], tuple[NDArray[np.generic], int]]:
    """Return a function that makes gray levels of the pixels of a frame."""
    extent: tuple[float, float] | None = None

    def chosen(gray: Grayscale) -> Lut | Window | None:
        if view > 1 and view > len(gray.views):
            raise ImageError(f"it has no view {view}: the last one is {len(gray.views)}")
        if not view or not gray.views:
            return None
        found = gray.views[view - 1]
        if isinstance(found, Window) and not found.usable:
            raise ImageError("its WindowWidth makes no window", hint="`--view 0` shows it from its least to its greatest value")
        return found

    def paint(index: int, pixels: Pixels) -> tuple[NDArray[np.generic], int]:
        nonlocal extent
        gray = grayscale_of(dataset, form, index)
        found = chosen(gray)
        if found is None and extent is None:
            extent = _extent(dataset, form)
        return gray.shown(pixels, found or extent or (0.0, 0.0)), 0

    return paint


def _extent(dataset: Dataset, form: PixelForm) -> tuple[float, float]:
    """Return the least and the greatest value of all frames, so that brightness means the same in each of them."""
    extents = [grayscale_of(dataset, form, index).extent(pixels) for index, pixels in enumerate(decoded_frames(dataset, form))]
    known = [extent for extent in extents if extent is not None]
    if not known:  # not one finite number
        return 0.0, 0.0
    return min(low for low, _ in known), max(high for _, high in known)


def _raw_painter(dataset: Dataset, form: PixelForm) -> Callable[[int, Pixels], tuple[NDArray[np.generic], int]]:
    """Return a function that gives rescaled values as they are, in 16 bits."""
    grays = [grayscale_of(dataset, form, index) for index in range(form.frames)]
    offset = OFFSET_16 if min(gray.rescaled_range(form)[0] for gray in grays) < 0 else 0

    def paint(index: int, pixels: Pixels) -> tuple[NDArray[np.generic], int]:
        values = grays[index].rescaled(pixels)
        hint = "`--format nifti` keeps all values"
        if not (np.rint(values) == values).all():
            raise ImageError("its rescaled values have fractions, which a PNG cannot hold", hint=hint)
        values += offset
        if values.min() < 0 or values.max() > _TOP_16:
            raise ImageError("its rescaled values do not fit into 16 bits", hint=hint)
        return values.astype(np.uint16), offset

    return paint


def _eight_bits(pixels: Pixels, dataset: Dataset, form: PixelForm) -> NDArray[np.uint8]:
    """Return colours in 8 bits a sample."""
    if pixels.dtype == np.uint8:
        return pixels.view(np.uint8)
    depth = form.bits_stored
    if form.photometric == "PALETTE COLOR":
        depth = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    if depth <= 8 or pixels.dtype.kind != "u":  # noqa: PLR2004 - as above
        raise ImageError("its colours are of a depth that is not supported")
    return np.rint(pixels.astype(np.float64) * (WHITE / ((1 << depth) - 1))).clip(0, WHITE).astype(np.uint8)


def png_bytes(pixels: NDArray[np.generic]) -> bytes:
    """Return pixels, (rows, columns) or (rows, columns, 3), uint8 or uint16, as a PNG file with nothing else in it."""
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=_COMPRESSION)
    return file.getvalue()


def check_options(options: PngOptions) -> None:
    """Raise UsageError if the options make no sense."""
    if options.bits not in (8, 16) or options.view < 0 or (options.frame is not None and options.frame < 1):
        raise UsageError("bits are 8 or 16, a view is a number from 0, a frame one from 1")
