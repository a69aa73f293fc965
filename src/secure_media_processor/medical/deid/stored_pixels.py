"""The stored pixel values of an image, to be looked at, painted over and put back without touching the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, convert_color_space
from pydicom.pixels.utils import compress
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from secure_media_processor.errors import ImageError
from secure_media_processor.medical.convert.decoding import check_codestreams, foreign_data
from secure_media_processor.medical.convert.grayscale import grayscale_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from secure_media_processor.medical.convert.decoding import PixelForm

MAX_BYTES = 1024**3
"""Largest object that is decoded to be cleaned: it is in memory three times while it is."""

# There is no encoder for JPEG: what was JPEG becomes JPEG-LS, which the same viewers mostly know.
_ENCODED_AS = {
    JPEGBaseline8Bit: JPEGLSLossless, JPEGExtended12Bit: JPEGLSLossless, JPEGLossless: JPEGLSLossless,
    JPEGLosslessSV1: JPEGLSLossless, JPEGLSLossless: JPEGLSLossless, JPEGLSNearLossless: JPEGLSLossless,
    JPEG2000Lossless: JPEG2000Lossless, JPEG2000: JPEG2000Lossless, HTJ2KLossless: JPEG2000Lossless,
    HTJ2KLosslessRPCL: JPEG2000Lossless, HTJ2K: JPEG2000Lossless, RLELossless: RLELossless,
}  # fmt: skip
# Syntaxes whose pixels have, or may have, lost something → LossyImageCompressionMethod (PS3.3 C.7.6.1.1.5).
_LOSSY = {
    JPEGBaseline8Bit: "ISO_10918_1", JPEGExtended12Bit: "ISO_10918_1", JPEGLSNearLossless: "ISO_14495_1",
    JPEG2000: "ISO_15444_1", HTJ2K: "ISO_15444_15",
}  # fmt: skip
# What compress() looks at.
_MODULE = (
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PhotometricInterpretation", "PlanarConfiguration",
)  # fmt: skip
_PIXEL_DATA = ("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")
_CHANGED = ("PhotometricInterpretation", "BitsAllocated", "PlanarConfiguration", *_PIXEL_DATA)
_YBR = {"YBR_FULL", "YBR_FULL_422"}
_COLOURS = {"RGB", *_YBR}
_PAIR = 4  # bytes of two pixels that share their chrominance: Y1, Y2, Cb, Cr (PS3.3 C.7.6.3.1.2)
_EIGHT, _SIXTEEN = 8, 16


@dataclass(slots=True)
class StoredPixels:
    """All frames of one object as they are stored, in memory."""

    form: PixelForm
    photometric: str
    """PhotometricInterpretation of `values`: that of the data set, or what its decoder makes of it."""
    values: NDArray[np.generic]
    """Shape (frames, rows, columns), or (frames, rows, columns, 3) for colours; of uncompressed YBR_FULL_422
    (frames, rows, columns / 2, 4). A view of `buffer` where the pixels are not compressed."""
    buffer: bytearray | None
    """PixelData as it will be written; None if they are compressed."""

    @property
    def in_pairs(self) -> bool:
        """Whether the last axis of `values` holds pairs of pixels."""
        return self.values.ndim == 4 and self.values.shape[3] == _PAIR  # noqa: PLR2004 - four axes

    def pictures(self, dataset: Dataset, index: int) -> tuple[NDArray[np.uint8], NDArray[np.generic]]:
        """Return frame `index` as a viewer shows it, gray or RGB with 8 bits, and as values to look for contrast in."""
        frame = self.values[index]
        if self.in_pairs:
            frame = _unpaired(frame)
        if self.photometric in _YBR:
            frame = convert_color_space(frame, "YBR_FULL", "RGB")
        if frame.ndim == 3:  # noqa: PLR2004 - colours
            shown = _narrowed(frame, self.form.bits_stored)
            return shown, shown
        if self.photometric == "PALETTE COLOR":
            shown = _narrowed(apply_color_lut(frame, dataset), int(dataset.RedPaletteColorLookupTableDescriptor[2]))
            return shown, shown
        gray = grayscale_of(dataset, self.form, index)
        view = gray.views[0] if gray.views else gray.extent(frame) or (0.0, 0.0)
        return gray.shown(frame, view), frame

    def black(self, dataset: Dataset, index: int) -> NDArray[np.generic]:
        """Return the stored value, or values of a pixel, that is shown as black, or that means "no picture here"."""
        kind = self.values.dtype
        if self.photometric in _YBR:
            middle = 1 << (self.form.bits_stored - 1)
            return np.array([0, 0, middle, middle] if self.in_pairs else [0, middle, middle], kind)
        if self.photometric == "RGB":
            return np.zeros(3, kind)
        if self.photometric == "PALETTE COLOR":
            first = int(dataset.RedPaletteColorLookupTableDescriptor[1])
            entries = int(dataset.RedPaletteColorLookupTableDescriptor[0]) or 1 << _SIXTEEN
            numbers = np.arange(first, min(first + entries, 1 << self.form.bits_stored)).astype(kind)
            colours = apply_color_lut(numbers[np.newaxis], dataset)[0].astype(np.uint32).sum(axis=1)
            return np.array(numbers[int(colours.argmin())])
        gray = grayscale_of(dataset, self.form, index)
        if gray.padding is not None and self._holds(gray.padding[0]):
            return np.array(gray.padding[0]).astype(kind)
        low, high = self.form.stored_range
        if self.form.signed:  # the ends of a signed range are far from any value, and would spoil every automatic window
            low, high = (int(end) for end in (self.values[index].min(), self.values[index].max()))
        return np.array(high if gray.inverted else low).astype(kind)

    def _holds(self, value: float) -> bool:
        low, high = self.form.stored_range
        return value.is_integer() and low <= value <= high

    def paint(self, index: int, mask: NDArray[np.bool_], value: NDArray[np.generic]) -> bool:
        """Paint the pixels of frame `index` that `mask`, shape (rows, columns), names; return whether any changed."""
        if self.in_pairs:
            mask = mask[:, 0::2] | mask[:, 1::2]
        frame = self.values[index]
        changed = bool((frame[mask] != value).any())
        frame[mask] = value
        return changed

    def write(self, dataset: Dataset) -> None:
        """Put the pixels into `dataset`: compressed without loss if they were compressed, and with all that describes them."""
        if self.buffer is not None:
            dataset["PixelData"].value = bytes(self.buffer)
            return
        source = UID(self.form.syntax)
        encoded = self._encoded(dataset, _ENCODED_AS.get(source))
        if source in _LOSSY and dataset.get("LossyImageCompression") not in {"00", "01"}:
            dataset.LossyImageCompression = "01"
            dataset.LossyImageCompressionRatio = round(self.values.nbytes / len(dataset.PixelData), 2)
            dataset.LossyImageCompressionMethod = _LOSSY[source]
        for keyword in _CHANGED:
            if keyword in encoded:
                dataset[keyword] = encoded[keyword]
            elif keyword in dataset:
                del dataset[keyword]
        dataset.file_meta.TransferSyntaxUID = encoded.file_meta.TransferSyntaxUID

    def _encoded(self, dataset: Dataset, syntax: UID | None) -> Dataset:
        """Return a data set with the pixels, compressed with `syntax` if that loses nothing, and what describes them."""
        encoded = Dataset()
        encoded.file_meta = FileMetaDataset()
        for keyword in _MODULE:
            if keyword in dataset:
                encoded[keyword] = dataset[keyword]
        encoded.PhotometricInterpretation = "YBR_FULL" if self.photometric in _YBR else self.photometric
        encoded.BitsAllocated = self.values.dtype.itemsize * 8
        if self.values.ndim == 4:  # noqa: PLR2004 - colours
            encoded.PlanarConfiguration = 0
        if not _compressed(encoded, self.values, syntax):
            plain = self.values.astype(self.values.dtype.newbyteorder("<"), copy=False).tobytes()
            encoded.PixelData = plain + bytes(len(plain) % 2)
            encoded["PixelData"].VR = "OB" if encoded.BitsAllocated <= _EIGHT else "OW"
            encoded.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        return encoded


def stored_pixels(dataset: Dataset, form: PixelForm) -> StoredPixels:
    """Read or decode all frames, under the limit MAX_BYTES.

    Args:
        dataset: An image with PixelData in it.
        form: What decoding.pixel_form says of it.

    Raises:
        ImageError: it is too large, damaged, or of a kind that is not painted: floating-point, one bit or more than sixteen.
    """
    samples = 3 if form.samples > 1 else 1
    if form.frames * form.rows * form.columns * samples * form.bits_allocated // 8 > MAX_BYTES:
        raise ImageError("its pixels are larger than what is cleaned")
    if form.floating or form.bits_allocated not in (_EIGHT, _SIXTEEN):
        raise ImageError("its pixels have neither 8 nor 16 bits")
    if int(dataset.get("HighBit", form.bits_stored - 1)) != form.bits_stored - 1:
        raise ImageError("its pixels do not begin at their lowest bit")
    with foreign_data("its pixel data cannot be decoded"):
        pixels = _native(dataset, form) if not UID(form.syntax).is_encapsulated else _decoded(dataset, form)
    known = form.monochrome or pixels.photometric == "PALETTE COLOR" if samples == 1 else pixels.photometric in _COLOURS
    if not known or (pixels.photometric in _YBR and form.bits_allocated != _EIGHT):
        raise ImageError("its PhotometricInterpretation is not supported")
    return pixels


def _native(dataset: Dataset, form: PixelForm) -> StoredPixels:
    big = form.syntax == ExplicitVRBigEndian
    if big and form.bits_allocated == _EIGHT and dataset["PixelData"].VR == "OW":
        raise ImageError("its bytes are swapped")
    buffer = bytearray(dataset.PixelData)
    kind = np.dtype(f"{'>' if big else '<'}{'i' if form.signed else 'u'}{form.bits_allocated // 8}")
    shape: tuple[int, ...] = (form.frames, form.rows, form.columns)
    planar = form.samples > 1 and int(dataset.get("PlanarConfiguration") or 0) == 1
    if form.photometric == "YBR_FULL_422":
        if form.columns % 2 or form.samples == 1 or planar:
            raise ImageError("its chrominance is not shared by pairs of pixels")
        shape = (form.frames, form.rows, form.columns // 2, _PAIR)
    elif planar:
        shape = (form.frames, form.samples, form.rows, form.columns)
    elif form.samples > 1:
        shape = (*shape, form.samples)
    values = np.frombuffer(buffer, kind, count=int(np.prod(shape))).reshape(shape)
    return StoredPixels(form, form.photometric, np.moveaxis(values, 1, 3) if planar else values, buffer)


def _decoded(dataset: Dataset, form: PixelForm) -> StoredPixels:
    check_codestreams(dataset, form)
    frames, photometric = [], form.photometric
    for array, properties in get_decoder(form.syntax).iter_array(dataset, raw=True):
        photometric = str(properties["photometric_interpretation"])
        frames.append(array)
    if len(frames) != form.frames:
        raise ImageError(f"its pixel data is truncated: it has {len(frames)} of {form.frames} frames")
    return StoredPixels(form, photometric, np.stack(frames), None)


def _compressed(scratch: Dataset, values: NDArray[np.generic], syntax: UID | None) -> bool:
    """Compress `values` into `scratch`; return whether that was possible, and decoding gives back every value."""
    if syntax is None:
        return False
    try:
        compress(scratch, syntax, values.squeeze(axis=0) if len(values) == 1 else values, generate_instance_uid=False)
        back = get_decoder(syntax).iter_array(scratch, raw=True)
        same = [np.array_equal(array, frame) for (array, _), frame in zip(back, values, strict=True)]
    # Encoders refuse what they cannot hold, each in its own way; pixels can always be written as they are.
    except Exception:  # noqa: BLE001
        same = [False]
    if not all(same):
        for keyword in _PIXEL_DATA:
            if keyword in scratch:
                del scratch[keyword]
    return all(same)


def _unpaired(frame: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return YBR_FULL, shape (rows, columns, 3), from pairs of pixels, shape (rows, columns / 2, 4)."""
    luminance = frame[:, :, :2].reshape(frame.shape[0], -1)
    chrominance = np.repeat(frame[:, :, 2:], 2, axis=1)
    return np.concatenate([luminance[:, :, np.newaxis], chrominance], axis=2)


def _narrowed(colours: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """Return colours of `bits` a sample with 8."""
    if bits <= _EIGHT:
        return colours.astype(np.uint8)
    return (colours.astype(np.uint32) >> (bits - _EIGHT)).clip(0, 255).astype(np.uint8)
