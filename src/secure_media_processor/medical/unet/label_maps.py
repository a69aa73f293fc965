"""Labels on another grid, one at a time, so that 25 of them need no more memory than one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from secure_media_processor.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from secure_media_processor.medical.volume import Grid

Labels: TypeAlias = "NDArray[np.uint8]"

_SLAB_VOXELS = 1 << 22
_PARALLEL = 1e-4


@dataclass(frozen=True, slots=True)
class _Steps:
    """For each voxel along an axis of the new grid, between which two of the old one it lies, and how near to the second."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    share: NDArray[np.float32]

    def of(self, part: slice) -> _Steps:
        return _Steps(self.low[part], self.high[part], self.share[part])

    def reached_from(self, first: int, last: int) -> slice:
        """Return which voxels of the new grid get something from the old ones `first` to `last`."""
        inside = np.flatnonzero((self.high >= first) & (self.low <= last))
        return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)

    def mix(self, values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
        shape = [1, 1, 1]
        shape[axis] = -1
        low = np.take(values, self.low, axis)
        return low + (np.take(values, self.high, axis) - low) * self.share.reshape(shape)


def resampled_labels(labels: Labels, grid: Grid, target: Grid) -> Labels:
    """Return labels on another grid whose axes run alike.

    At each voxel the label wins that has the greatest share there by linear interpolation, the lower one if two are equal: the
    maximum over interpolated indicator functions, taken label by label. Beyond the outermost centres of voxels they go on.

    Args:
        labels: (i, j, k) on `grid`.
        grid: Where they are.
        target: Where they are wanted; turned or sheared against `grid` it may not be.

    Returns:
        An array, i fastest.

    Raises:
        ImageError: the axes do not run alike.
    """
    matrix = np.linalg.inv(grid.affine) @ target.affine
    scale = np.diag(matrix)[:3]
    if np.abs(matrix[:3, :3] - np.diag(scale)).max() * max(target.shape) > _PARALLEL * max(grid.shape) or scale.min() <= 0:
        raise ImageError("labels are resampled only between grids whose axes run alike")
    steps = [_steps(scale[axis], matrix[axis, 3], grid.shape[axis], target.shape[axis]) for axis in range(3)]
    result = np.zeros(target.shape, np.uint8, order="F")
    thick = max(1, _SLAB_VOXELS // (target.shape[0] * target.shape[1]))
    for first in range(0, target.shape[2], thick):
        part = slice(first, min(first + thick, target.shape[2]))
        _fill_slab(result[:, :, part], labels, [steps[0], steps[1], steps[2].of(part)])
    return result


def _fill_slab(result: Labels, labels: Labels, steps: list[_Steps]) -> None:
    bottom, top = int(steps[2].low.min()), int(steps[2].high.max())
    source = labels[:, :, bottom : top + 1]
    along_k = _Steps(steps[2].low - bottom, steps[2].high - bottom, steps[2].share)
    present = np.flatnonzero(np.bincount(source.ravel(order="K"), minlength=1))
    if len(present) == 1:
        result[...] = present[0]
        return
    best = np.zeros(result.shape, np.float32, order="F")
    for label in present:
        mask = source == label
        box = _bounds(mask)
        reached = [step.reached_from(*bounds) for step, bounds in zip((steps[0], steps[1], along_k), box, strict=True)]
        if any(part.start == part.stop for part in reached):
            continue
        # The old voxels next to the box count with nothing, and have to be there.
        inner = [
            slice(int(step.low[part].min()), int(step.high[part].max()) + 1)
            for step, part in zip((steps[0], steps[1], along_k), reached, strict=True)
        ]
        share = mask[tuple(inner)].astype(np.float32)
        for axis in (2, 1, 0):
            step = (steps[0], steps[1], along_k)[axis].of(reached[axis])
            start = inner[axis].start
            share = _Steps(step.low - start, step.high - start, step.share).mix(share, axis)
        place = tuple(reached)
        more = share > best[place]
        np.copyto(result[place], np.uint8(label), where=more)
        np.copyto(best[place], share, where=more)


def _bounds(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the first and last index with something in it along each axis."""
    found = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        found.append((int(inside[0]), int(inside[-1])))
    return found


def _steps(scale: float, offset: float, old: int, new: int) -> _Steps:
    place = np.clip(np.round(scale * np.arange(new) + offset, 9), 0, old - 1)
    low = np.floor(place).astype(np.intp)
    return _Steps(low, np.minimum(low + 1, old - 1), (place - low).astype(np.float32))
