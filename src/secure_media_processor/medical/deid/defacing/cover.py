"""Painting over the face in the slices of one object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from secure_media_processor.errors import ImageError
from secure_media_processor.medical.convert.decoding import pixel_form
from secure_media_processor.medical.deid.defacing.heads import Space
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


class FaceLeftError(Exception):
    """An object in which a face may be seen, and was not painted over. The text of the error holds nothing of the object."""


def cover_face(dataset: Dataset, heads: Heads) -> int:
    """Paint over what is face in the slices of `dataset`, in place, with what is black there. No other pixel changes.

    What was compressed is compressed again without loss, by the same family of methods, or stored uncompressed if there is no
    encoder. RecognizableVisualFeatures (0028,0302) becomes NO (PS3.15 section E.3.2).

    Args:
        dataset: With pixel data, and with its own UIDs: before its header is cleaned.
        heads: From find_heads.

    Returns:
        In how many frames a pixel changed.

    Raises:
        FaceLeftError: no head was found in its frame of reference, it does not say where its slices lie, or its pixels cannot
            be decoded. Nothing was changed, and the object must not be written.
    """
    place = heads.places.get(Space.of(dataset))
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
    masks = [_face_in(frame, form.rows, form.columns, place) for frame in frames]
    changed = 0
    if any(mask.any() for mask in masks):
        pixels = stored_pixels(dataset, form)
        for index, mask in enumerate(masks):
            if mask.any():
                changed += pixels.paint(index, mask, pixels.black(dataset, index))
        if changed:
            pixels.write(dataset)
    dataset.RecognizableVisualFeatures = "NO"
    return changed


def _face_in(frame: Frame, rows: int, columns: int, place: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which pixels of a slice are face, shape (rows, columns).

    Beyond the template it is as at the template's edge, so that a long nose is face, too, and all below a chin.
    """
    if (
        frame.position is None
        or frame.orientation is None
        or frame.pixel_spacing is None
        or not slice_normal(frame.orientation)
    ):
        raise ImageError("it does not say where its slices lie")
    between_rows, between_columns = frame.pixel_spacing
    along_row, along_column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    face = read_template().face
    start = place[:3, :3] @ np.array(frame.position) + place[:3, 3]
    right, down = (place[:3, :3] @ step for step in (along_row * between_columns, along_column * between_rows))
    column, row = np.arange(columns), np.arange(rows)[:, np.newaxis]
    index = tuple(
        np.clip(np.rint(start[axis] + right[axis] * column + down[axis] * row), 0, face.shape[axis] - 1).astype(np.intp)
        for axis in range(3)
    )
    mask: NDArray[np.bool_] = face[index]
    return mask
