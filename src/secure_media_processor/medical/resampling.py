"""Values on another grid. Where voxels lie decides, not how a file keeps its axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from nibabel.orientations import apply_orientation
from scipy import ndimage

from secure_media_processor.medical.grid import corners, slabs_of, turn_to, turned_grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from secure_media_processor.medical.grid import Affine, Array, Grid

Interpolation: TypeAlias = Literal["nearest", "linear", "cubic"]

_ORDERS = {"nearest": 0, "linear": 1, "cubic": 3}
_SNAP = 9  # digits kept of what leads from one grid to another: ties between voxels fall the same way on every machine
_HALF = 0.5 + 1e-6


def resampled_array(array: Array, grid: Grid, target: Grid, interpolation: Interpolation, fill: float) -> Array:
    """Return the array, which lies on `grid`, on the grid `target`; see volume.resampled, which is this for volumes."""
    # Both are looked at with axes that run alike, without copying anything: a tie between two voxels then falls the same way
    # however they are stored.
    turn, back = turn_to(grid, "RAS"), turn_to(target, "RAS")
    source = array if turn is None else apply_orientation(array, turn)
    from_grid = grid if turn is None else turned_grid(grid, turn)
    to_grid = target if back is None else turned_grid(target, back)
    dtype = source.dtype if interpolation == "nearest" else np.dtype(np.float32)
    result = np.empty(target.shape, dtype, order="F")
    seen = result if back is None else apply_orientation(result, back)
    matrix = np.round(np.linalg.inv(from_grid.affine) @ to_grid.affine, _SNAP)
    _fill_in(seen, _prepared(source, matrix, interpolation), matrix, _ORDERS[interpolation], fill)
    return result


def _prepared(source: Array, matrix: Affine, interpolation: Interpolation) -> Array:
    """Return the array that is interpolated: smoothed against aliasing, and as coefficients of splines, where wanted."""
    if interpolation == "nearest":
        return source.view(np.uint8) if source.dtype == np.bool_ else source
    ratios = np.sqrt((matrix[:3, :3] ** 2).sum(axis=1))  # voxels of the source that a new one spans along each axis
    sigmas = [
        float(np.sqrt(max(ratio**2 - 1, 0) / (8 * np.log(2)))) if size > 1 else 0.0
        for ratio, size in zip(ratios, source.shape, strict=True)
    ]
    found = source
    if max(sigmas) > 1e-3:  # noqa: PLR2004 - voxels; less is rounding
        found = ndimage.gaussian_filter(found, sigmas, output=np.float32, mode="reflect")
    if interpolation == "cubic":
        found = ndimage.spline_filter(found, 3, output=np.float32, mode="reflect")
    return found


def _fill_in(result: Array, source: Array, matrix: Affine, order: int, fill: float) -> None:
    """Write into `result` what `source` holds where `matrix` leads, slab by slab."""
    inside = _all_inside(matrix, result.shape, source.shape)
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    straight = bool((linear == np.diag(np.diag(linear))).all())
    plain = result.view(np.uint8) if result.dtype == np.bool_ else result
    for first, last in slabs_of(result.shape):
        slab = plain[:, :, first:last]
        start = offset + linear[:, 2] * first
        found = ndimage.affine_transform(
            source,
            np.diag(linear) if straight else linear,
            start,
            output_shape=slab.shape,
            output=plain.dtype,
            order=order,
            mode="reflect",
            prefilter=False,
        )
        if not inside:
            found[_outside(linear, start, slab.shape, source.shape)] = fill
        slab[...] = found


def _all_inside(matrix: Affine, shape: tuple[int, ...], source: tuple[int, ...]) -> bool:
    """Return whether no voxel of the new grid has its centre outside of the field of view."""
    places = matrix[:3] @ np.array([[*corner, 1.0] for corner in corners(shape)]).T
    return bool(((places >= -_HALF) & (places <= np.array(source)[:, None] - 1 + _HALF)).all())


def _outside(linear: Affine, start: NDArray[np.float64], shape: tuple[int, ...], source: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which voxels of a slab have their centres outside of the field of view of the source."""
    axes = np.ogrid[: shape[0], : shape[1], : shape[2]]
    outside = np.zeros(shape, np.bool_)
    for row, begin, size in zip(linear, start, source, strict=True):
        place = row[0] * axes[0] + row[1] * axes[1] + row[2] * axes[2] + begin
        outside |= (place < -_HALF) | (place > size - 1 + _HALF)
    return outside
