"""Local contrast: contrast limited adaptive histogram equalisation, slice by slice, of values of any range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from secure_media_processor.errors import ImageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_BINS = 256


def clahe(array: NDArray[Any], spacing: Sequence[float], *, clip_limit: float = 2.0, tiles: int = 8) -> NDArray[np.float32]:
    """Return the array with its local contrast raised, float32, in the range that it had.

    Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV (1994), on numpy: a slice is divided into
    tiles, each has a histogram of 256 bins over the range of the whole volume, of which no bin may have more than `clip_limit`
    times the mean (what is cut off is spread over all bins), and a voxel gets the weighted mean of what the four nearest tiles
    make of it. Inside a bin the function is a straight line, so that no steps come in. The slices are those along the axis with
    the largest spacing, the last of them if several have it: the plane in which the volume was most likely acquired.

    It changes what intensities mean: for people to look at, seldom for a model.

    Args:
        array: (i, j, k), finite.
        spacing: mm along the axes.
        clip_limit: From 1 (no change but for the range of values) up.
        tiles: Along each side of a slice.

    Raises:
        ImageError: all values are the same.
        UsageError: the numbers make no sense.
    """
    if not clip_limit >= 1 or not 1 <= tiles <= 64:  # noqa: PLR2004 - more tiles than that have no histogram
        raise UsageError("the clip limit is a number from 1, tiles are 1 to 64")
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite([low, high]).all() and high > low):
        raise ImageError("it has no contrast to raise: all values are the same, or not finite")
    result = np.empty_like(array, dtype=np.float32)
    axis = max(range(3), key=lambda n: (spacing[n], n))
    sources, targets = np.moveaxis(array, axis, 0), np.moveaxis(result, axis, 0)
    for source, target in zip(sources, targets, strict=True):
        level = (source.astype(np.float64) - low) * (_BINS / (high - low))
        target[...] = low + _equalized(level, clip_limit, tiles) * (high - low)
    return result


def _equalized(level: NDArray[np.float64], clip_limit: float, tiles: int) -> NDArray[np.float64]:
    """Return the parts, 0 to 1, that a slice of levels from 0 to _BINS becomes."""
    bins = np.minimum(level.astype(np.intp), _BINS - 1)
    axes = [_Tiling(size, min(tiles, size)) for size in level.shape]
    counts = (axes[0].count, axes[1].count)
    tile = axes[0].own[:, None] * counts[1] + axes[1].own[None, :]
    histogram = np.bincount((tile * _BINS + bins).ravel(), minlength=counts[0] * counts[1] * _BINS).reshape(-1, _BINS)
    parts = _clipped(histogram / histogram.sum(axis=1, keepdims=True), clip_limit)
    below = np.cumsum(parts, axis=1) - parts
    rest = level - bins
    found = np.zeros(level.shape)
    for row, row_weight in ((axes[0].before, 1 - axes[0].weight), (axes[0].after, axes[0].weight)):
        for column, column_weight in ((axes[1].before, 1 - axes[1].weight), (axes[1].after, axes[1].weight)):
            where = (row[:, None] * counts[1] + column[None, :]) * _BINS + bins
            value = below.ravel()[where] + parts.ravel()[where] * rest
            found += row_weight[:, None] * column_weight[None, :] * value
    return found


def _clipped(parts: NDArray[np.float64], clip_limit: float) -> NDArray[np.float64]:
    """Return histograms, each with the sum 1, of which no bin is above `clip_limit` times the mean by more than its share."""
    top = clip_limit / _BINS
    clipped: NDArray[np.float64] = np.minimum(parts, top)
    clipped += (1 - clipped.sum(axis=1, keepdims=True)) / _BINS
    return clipped


class _Tiling:
    """How a side of a slice is divided into tiles."""

    def __init__(self, size: int, count: int) -> None:
        place = (np.arange(size) + 0.5) * (count / size)
        self.count = count
        self.own = np.minimum(place.astype(np.intp), count - 1)
        """The tile in which each pixel lies."""
        middle = place - 0.5
        self.before = np.clip(np.floor(middle).astype(np.intp), 0, count - 1)
        """The tile whose centre lies before the pixel."""
        self.after = np.clip(self.before + 1, 0, count - 1)
        self.weight = np.clip(middle - self.before, 0, 1)
        """Of the tile after."""
