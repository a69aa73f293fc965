"""What is done to a label map after a network has made it: steps that are data, and a table of what was found.

A step works on the labels that it names, one after the other in that order; voxels that it takes from a label become
background, and what it adds to a label was background. The other labels stay as they are. Lengths are mm, volumes ml, so the
result does not depend on how fine the grid is. Voxels that touch at a face, an edge or a corner are connected. Axes of length 1
(a single slice) are left out.

Steps, as they stand in a model's card:

    {"step": "largest-component", "labels": [1]}         keeps the largest connected piece (of equal ones the first)
    {"step": "remove-small", "labels": [1], "ml": 0.1}   removes pieces below that volume
    {"step": "fill-holes", "labels": [1]}                fills background that a label encloses on all sides
    {"step": "open", "labels": [1], "mm": 2}             takes away what a ball of that radius does not fit into
    {"step": "close", "labels": [1], "mm": 2}            fills gaps into which such a ball does not fit
    {"step": "smooth", "labels": [1, 2], "mm": 1}        smooths the boundaries between these labels and the background
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, cast, get_args

import numpy as np
from scipy import ndimage

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.unet.metrics import HIGHEST_LABEL, bounding_box

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from secure_media_processor.medical.unet.metrics import LabelMap, Mask
    from secure_media_processor.medical.volume import Grid

Name: TypeAlias = Literal["largest-component", "remove-small", "fill-holes", "open", "close", "smooth"]
Box: TypeAlias = tuple[slice, ...]
Triple: TypeAlias = tuple[float, float, float]

NAMES: Final[tuple[str, ...]] = get_args(Name)
MOST_STEPS: Final = 16
MOST_ML: Final = 10_000.0
MOST_MM: Final = 50.0

# The measure that a step needs besides its labels, and the most it may be.
_AMOUNTS: Final = {
    "remove-small": ("ml", MOST_ML),
    "open": ("mm", MOST_MM),
    "close": ("mm", MOST_MM),
    "smooth": ("mm", MOST_MM),
}
_MM3_PER_ML = 1000.0
_SIGMAS = 4.0  # how far a Gaussian is taken to reach
_ROUNDING = 1e-9  # of mm: a ball of 2 mm holds a voxel that is 2 mm away


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Raises:
        UsageError: its values make no sense.
    """

    step: Name
    labels: tuple[int, ...]
    """Which, in this order; not 0."""
    amount: float | None = None
    """ml of "remove-small", mm of "open", "close" (radius) and "smooth" (standard deviation); None for the others."""

    def __post_init__(self) -> None:
        if self.step not in NAMES:
            raise UsageError(f"there is no postprocessing step {self.step!r}", hint=f"choose one of {', '.join(NAMES)}")
        numbers = [type(label) is int and 1 <= label <= HIGHEST_LABEL for label in self.labels]
        if not numbers or not all(numbers) or len(set(self.labels)) != len(numbers):
            raise UsageError(f"the labels of {self.step} are different numbers from 1 to {HIGHEST_LABEL}, at least one")
        unit, most = _AMOUNTS.get(self.step, (None, 0.0))
        if unit is None and self.amount is not None:
            raise UsageError(f"{self.step} has labels and nothing else")
        if unit is not None and (not isinstance(self.amount, int | float) or not 0 < self.amount <= most):
            raise UsageError(f"{self.step} needs {unit}: a number above 0, at most {most:g}")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the step that plain values describe. Raises UsageError if they make no sense."""
        name = values.get("step")
        unit, _ = _AMOUNTS.get(name, (None, 0.0)) if isinstance(name, str) else (None, 0.0)
        known = {"step", "labels"} | ({unit} if unit else set())
        if name not in NAMES or not set(values) <= known or not isinstance(values.get("labels"), list | tuple):
            raise UsageError(f"a postprocessing step has {', '.join(sorted(known))}, and step is one of {', '.join(NAMES)}")
        return cls(cast("Name", name), tuple(values["labels"]), values.get(unit) if unit else None)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, which `from_json` takes."""
        amount = {} if self.amount is None else {_AMOUNTS[self.step][0]: self.amount}
        return {"step": self.step, "labels": list(self.labels), **amount}


def steps_from(values: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """Return the steps that plain values describe.

    Raises:
        UsageError: they make no sense, or there are more than MOST_STEPS.
    """
    if len(values) > MOST_STEPS:
        raise UsageError(f"there are {len(values)} postprocessing steps: at most {MOST_STEPS} are possible")
    return tuple(Step.from_json(one) for one in values)


def postprocessed(labels: LabelMap, spacing: Sequence[float], steps: Sequence[Step | Mapping[str, Any]]) -> LabelMap:
    """Return a label map after all steps.

    Args:
        labels: (i, j, k) or (i, j), any type of integers. It is not changed.
        spacing: mm along each axis.
        steps: What is done, in this order.

    Returns:
        An array of the same shape and type.

    Raises:
        UsageError: a step makes no sense, or there is not a spacing for each axis.
    """
    sizes = np.asarray(spacing, dtype=np.float64)
    if sizes.shape != (labels.ndim,) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise UsageError(f"the spacing of an image with {labels.ndim} axes is {labels.ndim} numbers above 0, in mm")
    result = labels.copy()
    flat = tuple(axis for axis, size in enumerate(labels.shape) if size == 1)
    seen = result.squeeze(flat)  # a view: what is written to it is written to the result
    if not seen.ndim:
        return result
    volume = float(np.prod(sizes)) / _MM3_PER_ML
    kept = np.delete(sizes, flat)
    for one in steps:
        step = one if isinstance(one, Step) else Step.from_json(one)
        if step.step == "smooth":
            _smooth(seen, kept, step.labels, step.amount or 0.0)
        else:
            _each(seen, step, kept, volume)
    return result


def _each(labels: LabelMap, step: Step, spacing: NDArray[np.float64], volume: float) -> None:
    """Take a step for one label after the other, within a box that holds all it can reach."""
    amount = step.amount or 0.0
    reach = amount if step.step in {"open", "close"} else 0.0
    change: Callable[[Mask], Mask] = {
        "largest-component": largest_component,
        "remove-small": lambda mask: remove_small(mask, amount / volume),
        "fill-holes": fill_holes,
        "open": lambda mask: opened(mask, spacing, amount),
        "close": lambda mask: closed(mask, spacing, amount),
    }[step.step]
    for label in step.labels:
        box = bounding_box(labels == label, _voxels(reach, spacing))
        if box is None:
            continue
        part = labels[box]
        before = part == label
        after = change(before)
        part[before & ~after] = 0
        part[after & (part == 0)] = label


def largest_component(mask: Mask) -> Mask:
    """Return the largest connected piece of a mask; of equal ones, the first in the order of the array."""
    pieces, count = _pieces(mask)
    if count < 2:  # noqa: PLR2004 - nothing to choose from
        return mask.copy()
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return cast("Mask", pieces == sizes.argmax())


def remove_small(mask: Mask, least: float) -> Mask:
    """Return a mask without its connected pieces of fewer than `least` voxels."""
    pieces, _ = _pieces(mask)
    keep = np.bincount(pieces.ravel()) >= least
    keep[0] = False
    return keep[pieces]


def fill_holes(mask: Mask) -> Mask:
    """Return a mask with what it encloses; a hole that is open at an edge or a corner of voxels only is enclosed."""
    return cast("Mask", ndimage.binary_fill_holes(mask))


def opened(mask: Mask, spacing: Sequence[float] | NDArray[np.float64], radius: float) -> Mask:
    """Return where a ball of that radius (mm) fits into a mask. Beyond the image, the mask goes on as at its border."""
    return _grown(_shrunk(mask, spacing, radius), spacing, radius)


def closed(mask: Mask, spacing: Sequence[float] | NDArray[np.float64], radius: float) -> Mask:
    """Return a mask and the gaps into which no ball of that radius (mm) fits. Nothing is closed towards the image's border."""
    reach = _voxels(radius, spacing)
    inner = tuple(slice(more, -more) for more in reach)
    padded = np.pad(mask, [(more, more) for more in reach])
    return _shrunk(_grown(padded, spacing, radius), spacing, radius)[inner]


def _grown(mask: Mask, spacing: Sequence[float] | NDArray[np.float64], radius: float) -> Mask:
    if not mask.any():
        return mask.copy()
    return cast("Mask", ndimage.distance_transform_edt(~mask, sampling=spacing) <= radius + _ROUNDING)


def _shrunk(mask: Mask, spacing: Sequence[float] | NDArray[np.float64], radius: float) -> Mask:
    if mask.all():
        return mask.copy()
    return cast("Mask", ndimage.distance_transform_edt(mask, sampling=spacing) > radius + _ROUNDING)


def _smooth(labels: LabelMap, spacing: NDArray[np.float64], chosen: Sequence[int], sigma: float) -> None:
    """Give each voxel of the chosen labels and the background to that of them whose smoothed indicator is the greatest there.

    The Gaussian has the standard deviation `sigma` (mm); of equal values the one named first holds, the background last.
    """
    moving = np.isin(labels, chosen)
    box = bounding_box(moving, _voxels(_SIGMAS * sigma, spacing))
    if box is None:
        return
    part = labels[box]
    free = moving[box] | (part == 0)
    best = np.full(part.shape, -1.0, dtype=np.float32)
    winner = np.zeros_like(part)
    for label in (*chosen, 0):
        share = ndimage.gaussian_filter((part == label).astype(np.float32), sigma / spacing, mode="nearest", truncate=_SIGMAS)
        better = share > best
        best[better] = share[better]
        winner[better] = label
    part[free] = winner[free]


def _voxels(reach: float, spacing: Sequence[float] | NDArray[np.float64]) -> list[int]:
    """Return along each axis a number of voxels that is more than `reach` mm."""
    return [math.ceil(reach / size) + 1 for size in spacing]


def _pieces(mask: Mask) -> tuple[NDArray[np.int32], int]:
    pieces, count = ndimage.label(mask, np.ones((3,) * mask.ndim, dtype=bool))
    return pieces, int(count)


# ------------------------------------------------------------------------------------------------------------- regions


@dataclass(frozen=True, slots=True)
class Region:
    """One label in a label map. Coordinates are mm, RAS."""

    label: int
    voxels: int
    ml: float
    components: int
    """Connected pieces."""
    first: tuple[int, int, int]
    """Voxel (i, j, k) of the bounding box with the lowest indices."""
    last: tuple[int, int, int]
    """The one with the highest indices, within the box."""
    low: Triple
    """Lowest x, y, z of the box in space that holds the bounding box, to the outer faces of its voxels."""
    high: Triple
    """Highest x, y, z of it."""
    centroid: Triple
    """Mean of the centres of its voxels."""
    mean: float | None = None
    """Of the image's values; None if there is no image."""
    deviation: float | None = None
    """Standard deviation of them."""


def region_table(labels: LabelMap, grid: Grid, image: NDArray[Any] | None = None) -> list[Region]:
    """Measure each label that occurs, ascending, without the background.

    Args:
        labels: (i, j, k), from 0 to HIGHEST_LABEL.
        grid: Where they lie.
        image: Values on the same grid.

    Raises:
        UsageError: the shapes differ.
        ImageError: there are labels out of range.
    """
    if labels.shape != grid.shape or (image is not None and image.shape != grid.shape):
        raise UsageError("labels, image and grid must be of one shape")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > HIGHEST_LABEL:
        raise ImageError(f"labels are numbers from 0 to {HIGHEST_LABEL}, not {low} to {high}")
    boxes = ndimage.find_objects(labels, max(high, 1))
    return [_region(labels, label, box, grid, image) for label, box in enumerate(boxes, start=1) if box is not None]


def _region(labels: LabelMap, label: int, box: Box, grid: Grid, image: NDArray[Any] | None) -> Region:
    mask = labels[box] == label
    start, stop = np.array([one.start for one in box]), np.array([one.stop for one in box])
    voxels = int(np.count_nonzero(mask))
    # Along each axis, how many voxels there are at each index: their mean index, without a list of all of them.
    counts = [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    middle = [first + float(np.arange(len(count)) @ count) / voxels for first, count in zip(start, counts, strict=True)]
    corners = np.array(np.meshgrid(*zip(start - 0.5, stop - 0.5, strict=True))).reshape(3, -1)
    places = _placed(grid, corners)
    values = None if image is None else image[box][mask].astype(np.float64)
    return Region(
        label,
        voxels,
        voxels * grid.voxel_volume / _MM3_PER_ML,
        _pieces(mask)[1],
        cast("tuple[int, int, int]", tuple(int(index) for index in start)),
        cast("tuple[int, int, int]", tuple(int(index) - 1 for index in stop)),
        _triple(places.min(axis=1)),
        _triple(places.max(axis=1)),
        _triple(_placed(grid, np.array(middle)[:, None])[:, 0]),
        None if values is None else float(values.mean()),
        None if values is None else float(values.std()),
    )


def _placed(grid: Grid, voxels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where voxel indices (3, n) lie, in mm."""
    return grid.affine[:3, :3] @ voxels + grid.affine[:3, 3:]


def _triple(values: NDArray[np.float64]) -> Triple:
    x, y, z = (float(value) for value in values)
    return (x, y, z)
