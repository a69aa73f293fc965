"""Where the patient is in a volume, and where air: a heuristic, good enough to take statistics from, not a segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from secure_media_processor.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BINS = 256
_TOP = 99.0  # percentile; a few bright vessels must not stretch the histogram
_CLOSING = 2  # voxels
_SAMPLE = 1 << 21


def foreground_mask(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which voxels are of the head or body and not of the air around it. A heuristic: look at it before relying on it.

    Otsu's threshold (IEEE Trans. Syst. Man Cybern. 9(1), 1979) on intensities up to their 99th percentile, closed by two
    voxels, largest connected part, holes filled plane by plane. It needs air in the picture: in a volume that was cropped to
    the brain it parts bright from dark tissue.

    Args:
        array: (i, j, k), any real type, finite.

    Returns:
        Same shape.

    Raises:
        ImageError: all values are the same.
    """
    mask = array > otsu_threshold(array)
    mask = _closed(mask)
    labels, count = ndimage.label(mask, output=np.int32)
    if count > 1:
        sizes = np.zeros(count + 1, np.int64)
        for k in range(labels.shape[-1]):  # at once they would be counted as 64-bit numbers, twice the volume
            sizes += np.bincount(labels[..., k].ravel(), minlength=count + 1)
        sizes[0] = 0
        mask = labels == sizes.argmax()
    del labels
    _fill_holes(mask)
    return mask


def otsu_threshold(array: NDArray[Any]) -> float:
    """Return the value that parts the histogram into two with the least variance within both. Raises as foreground_mask."""
    sample = array.reshape(-1, order="A")
    sample = sample[:: max(1, sample.size // _SAMPLE)]
    low, high = float(sample.min()), float(np.percentile(sample, _TOP))
    if not high > low:
        high = float(sample.max())
    if not (np.isfinite([low, high]).all() and high > low):
        raise ImageError("there is no foreground: all values are the same, or not finite")
    counts, edges = np.histogram(np.clip(sample, low, high), _BINS, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(edges[1 + int(np.nanargmax(between))])


def _closed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    # One pass with a larger element: several passes keep lists of places, which take more memory than the volume.
    element = ndimage.iterate_structure(ndimage.generate_binary_structure(3, 1), _CLOSING)
    grown = ndimage.binary_dilation(mask, element)
    closed: NDArray[np.bool_] = ndimage.binary_erosion(grown, element, border_value=1)
    return closed


def _fill_holes(mask: NDArray[np.bool_]) -> None:
    """Fill, in place, what is enclosed in any plane: a head that is cut off at the neck has no closed surface."""
    for axis in range(mask.ndim):
        planes = np.moveaxis(mask, axis, 0)
        if min(planes.shape[1:]) > 1:
            for plane in planes:
                plane[...] = ndimage.binary_fill_holes(plane)
