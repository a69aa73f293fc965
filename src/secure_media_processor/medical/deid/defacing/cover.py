"""Painting over the face in the slices of one object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from secure_media_processor.errors import ImageError
from secure_media_processor.medical.convert.decoding import pixel_form
from secure_media_processor.medical.deid.defacing.risk import is_far_from_head
from secure_media_processor.medical.deid.defacing.template import read_template
from secure_media_processor.medical.deid.stored_pixels import stored_pixels
from secure_media_processor.medical.dicom.frames import frames_of
from secure_media_processor.medical.dicom.geometry import slice_normal
from secure_media_processor.medical.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom import Dataset

    from secure_media_processor.medical.deid.defacing.heads import Heads
    from secure_media_processor.medical.dicom.frames import Frame


_ROWS = 256  # of a slice at a time: places of all pixels of a large one would fill the memory
_BELOW = 50.0  # voxels of about 1 mm under the template, in which there may still be a chin
_FARTHEST = 1e5  # mm: numbers beyond are no place in a scanner
_OVERLAYS = 0x6000
# Coefficients of pixels (JPIP and the like), and spectra.
_OTHER_PIXELS = {0x7FE00020, 0x7FE00030, 0x7FE00040, 0x56000020}


class FaceLeftError(Exception):
    """An object in which a face may be seen, and was not painted over. The text of the error holds nothing of the object."""


def cover_face(dataset: Dataset, heads: Heads) -> int:
    """Paint over what is face in the slices of `dataset`, in place, with what is black there. No other pixel changes.

    What was compressed is compressed again without loss, by the same family of methods, or stored uncompressed if there is no
    encoder. Other pictures in the object, as overlays and coefficients, go. Parts of the body far from the head, by
    BodyPartExamined (0018,0015), are left alone unless a head was found in their frame of reference.

    Args:
        dataset: With pixel data, and with its own UIDs: before its header is cleaned.
        heads: From find_heads.

    Returns:
        In how many frames a pixel changed.

    Raises:
        FaceLeftError: no head was found in its frame of reference, it does not say where its slices lie, or its pixels cannot
            be decoded. Nothing was changed, and the object must not be written.
    """
    place = heads.place(dataset)
    if place is None and is_far_from_head(dataset):
        return 0
    if place is None:
        raise FaceLeftError("a face may be seen in it, and no head was surely found where it lies")
    try:
        with silent_pydicom():
            return _cover(dataset, place)
    except ImageError as error:
        raise FaceLeftError(f"a face may be seen in it, and cannot be painted over: {error}") from error
    # Decoders and headers fail in many ways. Each of them means that a face may be left.
    except Exception as error:
        raise FaceLeftError(f"a face may be seen in it, and cannot be painted over ({type(error).__name__})") from error


def _cover(dataset: Dataset, place: NDArray[np.float64]) -> int:
    form = pixel_form(dataset)
    frames = frames_of(dataset)
    if len(frames) != form.frames:
        raise ImageError("it does not say where its frames lie")
    pixels = stored_pixels(dataset, form)  # it refuses what is too large before masks of that size are made
    changed = 0
    for index, frame in enumerate(frames):
        mask = _face_in(frame, form.rows, form.columns, place)
        if mask.any():
            changed += pixels.paint(index, mask, pixels.black(dataset, index))
    if changed:
        pixels.write(dataset)
    for tag in [tag for tag in dataset.keys() if tag.group & 0xFF00 == _OVERLAYS or int(tag) in _OTHER_PIXELS]:  # noqa: SIM118
        del dataset[tag]
    return changed


def _face_in(frame: Frame, rows: int, columns: int, place: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which pixels of a slice are face, shape (rows, columns).

    Beyond the template it is as at the template's edge, so that a long nose is face, too, and a chin; not the trunk.
    """
    if (
        frame.position is None
        or frame.orientation is None
        or frame.pixel_spacing is None
        or not slice_normal(frame.orientation)
    ):
        raise ImageError("it does not say where its slices lie")
    between_rows, between_columns = frame.pixel_spacing
    if not np.abs([*frame.position, *frame.pixel_spacing]).max() <= _FARTHEST:
        raise ImageError("it does not say where its slices lie")
    along_row, along_column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    start = place[:3, :3] @ np.array(frame.position) + place[:3, 3]
    right, down = (place[:3, :3] @ step for step in (along_row * between_columns, along_column * between_rows))
    mask = np.empty((rows, columns), bool)
    for first in range(0, rows, _ROWS):
        row = np.arange(first, min(first + _ROWS, rows))[:, np.newaxis]
        mask[first : first + _ROWS] = _is_face(start, right, down, row, np.arange(columns))
    return mask


def _is_face(
    start: NDArray[np.float64],
    right: NDArray[np.float64],
    down: NDArray[np.float64],
    row: NDArray[np.intp],
    column: NDArray[np.intp],
) -> NDArray[np.bool_]:
    face = read_template().face
    exact = [start[axis] + right[axis] * column + down[axis] * row for axis in range(3)]
    nearest = tuple(
        np.clip(np.rint(values), 0, size - 1).astype(np.intp) for values, size in zip(exact, face.shape, strict=True)
    )
    found: NDArray[np.bool_] = face[nearest] & (exact[2] > -_BELOW)
    return found
