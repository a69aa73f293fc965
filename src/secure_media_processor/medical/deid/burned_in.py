"""Taking text out of pictures: what names a patient there is painted over, and whether it worked is read again."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from importlib.util import find_spec
from typing import TYPE_CHECKING

from secure_media_processor.errors import ImageError, MissingExtraError
from secure_media_processor.medical.deid.harmless import is_harmless
from secure_media_processor.medical.deid.pixels import hidden_in_pixels
from secure_media_processor.medical.dicom.elements import items, whole_number
from secure_media_processor.medical.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from pydicom import Dataset

    from secure_media_processor.medical.deid.stored_pixels import StoredPixels
    from secure_media_processor.medical.deid.text_finder import TextBox

    Mask = NDArray[np.bool_]

# What RegionSpatialFormat (0018,6012) may say of a region that shows data: 2D, M mode, spectral, waveform. The others are
# graphics, or nothing.
_DATA_REGIONS = {1, 2, 3, 4}
_CORNERS = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")
# Masking changes the contrast of what stands close by, so that another round may find one more place; a real image took six.
_ROUNDS = 10


class PixelsNotCleanError(Exception):
    """An image from which the text was not, or not surely, removed. The text of the error holds nothing of the image."""


@dataclass(frozen=True, slots=True)
class PixelOutcome:
    """What was painted over in one object."""

    frames_masked: int
    """Frames in which any pixel changed."""
    boxes: int
    """Places with text that were masked, those outside the regions of an ultrasound image not counted."""


@dataclass(slots=True)
class _Progress:
    """What is known of an object while its frames are read one after the other."""

    pixels: StoredPixels
    masks: list[Mask]
    """What is masked, frame by frame; shape (rows, columns) each."""
    changed: set[int] = field(default_factory=set)
    boxes: int = 0


def clean_pixels(dataset: Dataset) -> PixelOutcome:
    """Paint over all text in the pixels of `dataset`, in place, except scales and units (see is_harmless).

    Call it for images that may have text burned in (see pixels.burned_in_suspicion), before the header is cleaned. Everything
    outside the regions of ultrasound data (0018,6011), if they are given, goes; inside, all text that is found. The frames are
    then read again until no text is found. A place where words were read is masked in all frames. Pixels elsewhere keep their
    values: what was compressed is compressed again without loss, by the same family of methods, or stored uncompressed if
    there is no encoder; without text, PixelData stays as it is. BurnedInAnnotation becomes NO.

    It costs about a second on two cores for each reading of 800 by 600 pixels. A frame is read twice, in two views, and as
    often again where text was masked; one equal to an earlier one costs nothing. It takes up to 1 GB for the text recognition,
    and three times the decoded size of the object.

    Raises:
        PixelsNotCleanError: text is left, something is hidden in the pixel data, the pixels cannot be decoded, or the extras
            `medical` and `ocr` are not installed. Nothing in `dataset` was changed. The file must not be written.
    """
    if find_spec("numpy") is None:
        raise PixelsNotCleanError(_install("numpy is not installed"))
    try:
        with silent_pydicom():
            return _clean(dataset)
    except MissingExtraError as error:
        raise PixelsNotCleanError(_install(str(error))) from error
    except (ImageError, PixelsNotCleanError) as error:
        raise PixelsNotCleanError(f"its text cannot be removed: {error}") from error
    # Decoders and networks fail over foreign data in many ways. Each of them means that nobody looked at the picture.
    except Exception as error:
        raise PixelsNotCleanError(f"its text cannot be removed ({type(error).__name__})") from error


def _install(problem: str) -> str:
    return f"its text cannot be looked for: {problem}: pip install 'secure-media-processor[medical,ocr]'"


def _clean(dataset: Dataset) -> PixelOutcome:
    from secure_media_processor.medical.convert.decoding import pixel_form  # noqa: PLC0415 - heavy, and from an extra
    from secure_media_processor.medical.deid.stored_pixels import stored_pixels  # noqa: PLC0415

    form = pixel_form(dataset)
    hidden = hidden_in_pixels(dataset)
    if hidden:
        raise PixelsNotCleanError(hidden)
    progress = _Progress(stored_pixels(dataset, form), [])
    outside = _outside_regions(dataset, form.rows, form.columns)
    wordy: list[TextBox] = []
    known: dict[bytes, int] = {}
    for index in range(form.frames):
        progress.masks.append(outside.copy())
        _paint(dataset, progress, index)
        digest = sha256(progress.pixels.values[index].tobytes()).digest()
        if digest in known:
            progress.masks[index] |= progress.masks[known[digest]]
            _paint(dataset, progress, index)
            continue
        known[digest] = index
        _mask(progress.masks[index], wordy)
        _paint(dataset, progress, index)
        wordy += _read_and_mask(dataset, progress, index)
    for index, mask in enumerate(progress.masks):
        _mask(mask, wordy)
        _paint(dataset, progress, index)
    if progress.changed:
        progress.pixels.write(dataset)
    dataset.BurnedInAnnotation = "NO"
    return PixelOutcome(len(progress.changed), progress.boxes)


def _read_and_mask(dataset: Dataset, progress: _Progress, index: int) -> list[TextBox]:
    """Mask the text in a frame until none is found; return the boxes in which words were read."""
    wordy: list[TextBox] = []
    mask = progress.masks[index]
    for _ in range(_ROUNDS):
        # A box on what is masked is made of its edges.
        found = [box for box in _harmful(dataset, progress.pixels, index) if not mask[_area(box)].all()]
        if not found:
            return wordy
        progress.boxes += len(found)
        wordy += [box for box in found if box.has_words]
        _mask(mask, found)
        _paint(dataset, progress, index)
    raise PixelsNotCleanError("after masking there is still text")


def _harmful(dataset: Dataset, pixels: StoredPixels, index: int) -> list[TextBox]:
    """Return the boxes with text in a frame, in either of two views, that does not prove to be harmless."""
    from secure_media_processor.medical.deid.text_finder import find_text, local_contrast  # noqa: PLC0415 - heavy

    shown, values = pixels.pictures(dataset, index)
    boxes = find_text(shown) + find_text(local_contrast(values))
    harmless = [box for box in boxes if box.is_sure and is_harmless(box.text)]
    # Where one view reads a scale, the other may read part of it, or nothing.
    return [box for box in boxes if not any(box.within(other) for other in harmless)]


def _outside_regions(dataset: Dataset, rows: int, columns: int) -> Mask:
    """Return the pixels outside all regions with ultrasound data; none if there are no regions, or none that can be."""
    import numpy as np  # noqa: PLC0415 - from an extra

    outside = np.ones((rows, columns), np.bool_)
    for region in items(dataset, "SequenceOfUltrasoundRegions"):
        corners = [whole_number(region, keyword) for keyword in _CORNERS]
        left, top, right, bottom = (-1 if corner is None else corner for corner in corners)
        if whole_number(region, "RegionSpatialFormat") in _DATA_REGIONS and 0 <= left <= right and 0 <= top <= bottom:
            outside[top : bottom + 1, left : right + 1] = False
    return outside if not outside.all() else np.zeros_like(outside)


def _area(box: TextBox) -> tuple[slice, slice]:
    return slice(box.top, box.bottom), slice(box.left, box.right)


def _mask(mask: Mask, boxes: Sequence[TextBox]) -> None:
    for box in boxes:
        mask[_area(box)] = True


def _paint(dataset: Dataset, progress: _Progress, index: int) -> None:
    mask = progress.masks[index]
    if mask.any() and progress.pixels.paint(index, mask, progress.pixels.black(dataset, index)):
        progress.changed.add(index)
