"""A picture of a volume before and after, to be looked at: three planes through the middle, and no text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

from secure_media_processor.medical.convert.png import png_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from secure_media_processor.medical.volume import Volume

_WHITE = 255
_WINDOW = (1.0, 99.5)  # percentiles that become black and white
_GAP = 4  # pixels
_LONGEST = 512  # pixels of a side of a plane


@dataclass(frozen=True, slots=True)
class MidPlanes:
    """The axial, coronal and sagittal plane through the middle of a volume."""

    planes: tuple[NDArray[np.float32], ...]
    """Rows from top to bottom, columns from left to right, as radiologists look at it: front or head up, and the patient's
    right side at the left of axial and coronal planes; in the sagittal one the front is at the left."""
    spacings: tuple[tuple[float, float], ...]
    """mm between rows, then columns."""


def mid_planes(volume: Volume) -> MidPlanes:
    """Return copies of the three planes, so that the volume itself can be let go."""
    turn = ornt_transform(io_orientation(volume.grid.affine), axcodes2ornt(("L", "P", "S")))
    array = apply_orientation(volume.array, turn)  # i to the left, j to the back, k to the head
    sides = [0.0, 0.0, 0.0]
    for axis, (new, _) in enumerate(turn):
        sides[int(new)] = volume.grid.spacing[axis]
    i, j, k = (size // 2 for size in array.shape)
    axial, coronal, sagittal = array[:, :, k].T, array[:, j, ::-1].T, array[i, :, ::-1].T
    return MidPlanes(
        tuple(np.array(plane, dtype=np.float32) for plane in (axial, coronal, sagittal)),
        ((sides[1], sides[0]), (sides[2], sides[0]), (sides[2], sides[1])),
    )


def picture(*columns: MidPlanes) -> bytes:
    """Return a PNG, gray, 8 bits: a column for each argument, such as before and after; pixels are square in mm.

    Gray goes from the 1st to the 99.5th percentile of the planes of a column. Nothing that names anybody is in the picture or
    the file but the anatomy itself: a face can be seen in a head.
    """
    tiles = [[_tile(plane, spacing, _window(column)) for plane, spacing in _pairs(column)] for column in columns]
    widths = [max(tile.shape[1] for tile in column) for column in tiles]
    heights = [max(column[row].shape[0] for column in tiles) for row in range(3)]
    canvas = np.zeros((sum(heights) + 2 * _GAP, sum(widths) + _GAP * (len(tiles) - 1)), np.uint8)
    left = 0
    for column, width in zip(tiles, widths, strict=True):
        top = 0
        for tile, height in zip(column, heights, strict=True):
            y, x = top + (height - tile.shape[0]) // 2, left + (width - tile.shape[1]) // 2
            canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
            top += height + _GAP
        left += width + _GAP
    return png_bytes(canvas)


def _pairs(column: MidPlanes) -> list[tuple[NDArray[np.float32], tuple[float, float]]]:
    return list(zip(column.planes, column.spacings, strict=True))


def _window(column: MidPlanes) -> tuple[float, float]:
    values = np.concatenate([plane.ravel() for plane in column.planes])
    low, high = np.percentile(values, _WINDOW)
    return float(low), float(high)


def _tile(plane: NDArray[np.float32], spacing: tuple[float, float], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Return a plane as gray levels, with square pixels as large as its finer side, or larger if it would not fit."""
    low, high = window
    extent = [size * side for size, side in zip(plane.shape, spacing, strict=True)]
    pixel = max(min(spacing), max(extent) / _LONGEST)
    sizes = [max(1, min(_LONGEST, round(length / pixel))) for length in extent]
    # Pixel centres: sample the middle of each new pixel.
    places = [(np.arange(size) + 0.5) * (old / size) - 0.5 for size, old in zip(sizes, plane.shape, strict=True)]
    found = ndimage.map_coordinates(plane, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")
    gray = np.clip((found - low) / ((high - low) or 1.0), 0, 1)
    levels: NDArray[np.uint8] = np.rint(gray * _WHITE).astype(np.uint8)
    return levels
