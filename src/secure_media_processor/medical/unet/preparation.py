"""What is done to images before a network sees them, for training and inference alike: turned, resampled, scaled.

In this order: the axes are turned into the model's orientation (exact), the images are resampled to its spacing (linear,
smoothed against aliasing where the model is coarser), the foreground is found, and intensities are scaled by statistics of the
resampled image. Scaling is a straight line, so only its few numbers are kept, and windows are scaled one by one: no scaled copy
of a large volume is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from secure_media_processor.errors import ImageError, ModelError
from secure_media_processor.medical.preprocessing.mask import foreground_mask
from secure_media_processor.medical.volume import reoriented, resampled, same_grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from secure_media_processor.medical.inference.card import Inputs, Normalization
    from secure_media_processor.medical.volume import Grid, Volume

Box: TypeAlias = tuple[slice, slice, slice]
_SAME_SPACING = 1e-3  # relative; less is rounding in the file
_PART = 1 << 20
_MARGIN = 8  # voxels left around the foreground


@dataclass(frozen=True, slots=True)
class Scaling:
    """(x - shift) / scale, and between 0 and 1 if it is clipped: what `normalized` does, with its numbers found beforehand."""

    shift: float = 0.0
    scale: float = 1.0
    clips: bool = False

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scaled values, float32, in an array of their own. Reckoned in float64, as in training."""
        out = values.astype(np.float64)
        out -= self.shift
        out /= self.scale
        if self.clips:
            np.clip(out, 0, 1, out=out)
        return out.astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Images as the network sees them, except that they are not scaled yet."""

    arrays: tuple[NDArray[np.float32], ...]
    """(i, j, k) each, in the model's orientation and spacing."""
    scalings: tuple[Scaling, ...]
    grid: Grid
    """Of the arrays."""
    turned: Grid
    """Of the input in the model's orientation, with its own spacing."""
    box: Box
    """Where the network looks."""

    def scaled(self) -> NDArray[np.float32]:
        """Return all of it, (C, i, j, k), scaled and contiguous."""
        pairs = zip(self.scalings, self.arrays, strict=True)
        return np.stack([np.ascontiguousarray(scaling(array)) for scaling, array in pairs])


def prepared(volumes: Sequence[Volume], inputs: Inputs) -> Prepared:
    """Turn, resample and measure images.

    Args:
        volumes: One for each channel, all on one grid.
        inputs: What the model wants.

    Raises:
        ModelError: there are not as many images as the model has channels.
        ImageError: the images do not lie on one grid.
    """
    if len(volumes) != len(inputs.channels):
        wanted = ", ".join(inputs.channels)
        raise ModelError(f"the model takes {len(inputs.channels)} images ({wanted}), not {len(volumes)}")
    if not all(same_grid(volume.grid, volumes[0].grid) for volume in volumes):
        raise ImageError("the images do not lie on one grid", hint="resample them onto the grid of the first")
    turned = [reoriented(volume, inputs.orientation) for volume in volumes]
    grid = model_grid(turned[0].grid, inputs)
    seen = turned if grid is turned[0].grid else [resampled(volume, grid, interpolation="linear") for volume in turned]
    arrays = tuple(volume.array.astype(np.float32, copy=False) for volume in seen)
    masks: list[NDArray[np.bool_] | None] = [None] * len(arrays)
    if inputs.normalization.mask == "foreground":
        masks = [foreground_mask(array) for array in arrays]
    scalings = tuple(scaling_of(array, inputs.normalization, mask) for array, mask in zip(arrays, masks, strict=True))
    box: Box = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2]))
    if inputs.crop == "foreground":
        box = _box(masks[0] if masks[0] is not None else foreground_mask(arrays[0]))
    return Prepared(arrays, scalings, grid, turned[0].grid, box)


def model_grid(grid: Grid, inputs: Inputs) -> Grid:
    """Return the grid on which the network works: the same object if that has the model's spacing already."""
    if inputs.spacing is None:
        return grid
    wanted = list(inputs.spacing)
    if len(inputs.roi) == 2:  # noqa: PLR2004 - a 2D network
        wanted[2] = grid.spacing[2]
    if np.allclose(wanted, grid.spacing, rtol=_SAME_SPACING, atol=0):
        return grid
    return grid.with_spacing((wanted[0], wanted[1], wanted[2]))


def scaling_of(array: NDArray[np.float32], settings: Normalization, mask: NDArray[np.bool_] | None) -> Scaling:
    """Return the numbers with which `normalized` of medical/preprocessing/normalize.py scales this image.

    Raises:
        ImageError: all values are the same, or the mask is empty.
    """
    if settings.method == "none":
        return Scaling()
    values = array.ravel(order="K") if mask is None else array[mask]
    if not values.size:
        raise ImageError("no foreground was found in the image")
    if settings.method == "zscore":
        mean = float(values.mean(dtype=np.float64))
        parts = (values[start : start + _PART].astype(np.float64) for start in range(0, values.size, _PART))
        found = Scaling(mean, float(np.sqrt(sum(float(np.square(part - mean).sum()) for part in parts) / values.size)))
    elif settings.method == "minmax":
        found = Scaling(float(values.min()), float(values.max()) - float(values.min()), clips=True)
    else:
        low, high = (float(value) for value in np.percentile(values, (settings.low, settings.high)).astype(np.float64))
        found = Scaling(low, high - low, clips=True)
    if not found.scale > 0:
        raise ImageError("its intensities cannot be scaled: all of them are the same")
    return found


def _box(mask: NDArray[np.bool_]) -> Box:
    """Return the box around a mask with a margin; all of it if the mask is empty."""
    found = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        if not inside.size:
            return (slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2]))
        found.append(slice(max(int(inside[0]) - _MARGIN, 0), min(int(inside[-1]) + 1 + _MARGIN, mask.shape[axis])))
    return (found[0], found[1], found[2])
