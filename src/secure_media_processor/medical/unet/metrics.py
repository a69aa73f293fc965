"""How good a segmentation is, in the words of Maier-Hein and Reinke, "Metrics reloaded" (Nature Methods 2024).

Masks and label maps are arrays of one shape, (i, j, k) or (i, j); `spacing` gives the mm between centres of voxels along each
axis. Axes of length 1 are left out wherever neighbours or surfaces count: a single slice is a flat image.

Two surfaces are known, and each figure that rests on one of them names it:

- voxel: the voxels of the mask of which a neighbour across a face is outside of it; each counts once. What is outside of the
  image is outside of the mask. The surface of MONAI and medpy.
- area: the surface that marching cubes draws halfway between voxels (Lorensen 1987); each element counts by its area, in mm².
  Distances are taken between the corners of voxels in which elements lie. The surface of Nikolov 2021 (arXiv:1809.04430),
  whose figures for distances are lower than those of voxels; in a flat image elements are lines, in mm.

What is said of things that are not there, in short: where both masks are empty, overlaps are 1 and distances are nan; where
one is, overlaps are 0 and distances inf; a figure that would be 0 / 0 is nan. nan means "undefined", and is left out of means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.unet.surface_area import element_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Mask: TypeAlias = "NDArray[np.bool_]"
LabelMap: TypeAlias = "NDArray[np.integer[Any]]"
Surface: TypeAlias = Literal["voxel", "area"]

NAN: Final = float("nan")
INFINITE: Final = float("inf")
HIGHEST_LABEL: Final = 65535

_MM3_PER_ML = 1000.0
_NEAR_ALL = 95
_NEAR = 2.5  # voxels within which neighbours are looked at: more steps than that cost more than the tree
_RESAMPLES_AT_ONCE = 1 << 22


# ------------------------------------------------------------------------------------------------------------- overlap


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many voxels are in both masks (tp), in the prediction alone (fp), in the truth alone (fn), in neither (tn)."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def dice(self) -> float:
        """2 tp / (2 tp + fp + fn); 1 if both masks are empty. Of voxels, the F1 score is the same number."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn, empty=1.0)

    @property
    def iou(self) -> float:
        """Tp / (tp + fp + fn), the Jaccard index; 1 if both masks are empty."""
        return _ratio(self.tp, self.tp + self.fp + self.fn, empty=1.0)

    @property
    def precision(self) -> float:
        """Tp / (tp + fp); if nothing is predicted, 1 if nothing is there, else nan."""
        return _ratio(self.tp, self.tp + self.fp, empty=NAN if self.fn else 1.0)

    @property
    def recall(self) -> float:
        """Tp / (tp + fn), the sensitivity; if nothing is there, 1 if nothing is predicted, else nan."""
        return _ratio(self.tp, self.tp + self.fn, empty=NAN if self.fp else 1.0)

    @property
    def specificity(self) -> float:
        """Tn / (tn + fp); nan if the truth fills the image. It grows with the empty space around: of little use for masks."""
        return _ratio(self.tn, self.tn + self.fp, empty=NAN)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall: the same as `dice`."""
        return self.dice

    @property
    def relative_volume_difference(self) -> float:
        """(predicted - true) / true volume; 0 if both are empty, inf if only the truth is."""
        return _ratio(self.fp - self.fn, self.tp + self.fn, empty=INFINITE if self.fp else 0.0)

    def volume_difference(self, spacing: Sequence[float]) -> float:
        """Return the predicted minus the true volume, in ml."""
        return (self.fp - self.fn) * float(np.prod(spacing)) / _MM3_PER_ML


def confusion(prediction: Mask, truth: Mask) -> Confusion:
    """Count voxels. Raises UsageError if the shapes differ."""
    _check_shapes(prediction, truth)
    predicted, true, both = (int(np.count_nonzero(mask)) for mask in (prediction, truth, prediction & truth))
    return Confusion(both, predicted - both, true - both, truth.size - predicted - true + both)


def dice(prediction: Mask, truth: Mask) -> float:
    """Return 2 |A and B| / (|A| + |B|); 1 if both are empty."""
    return confusion(prediction, truth).dice


def _ratio(part: float, whole: float, *, empty: float) -> float:
    return part / whole if whole else empty


def _check_shapes(prediction: NDArray[Any], truth: NDArray[Any]) -> None:
    if prediction.shape != truth.shape:
        raise UsageError(f"a mask of {prediction.shape} cannot be compared with one of {truth.shape}")


# ------------------------------------------------------------------------------------------------------------ surfaces


@dataclass(frozen=True, slots=True, eq=False)
class Directed:
    """From each element of one surface to the nearest element of the other."""

    distances: NDArray[np.float64]
    """mm."""
    sizes: NDArray[np.float64]
    """What each element counts: 1 for a voxel, else mm²."""

    def percentile(self, percent: float, definition: Surface) -> float:
        """Return the distance that so many percent of the surface do not exceed."""
        if definition == "voxel":  # linear between the two nearest ones, as numpy and torch have it
            return float(np.percentile(self.distances, percent))
        order = np.argsort(self.distances)
        share = np.cumsum(self.sizes[order])
        return float(self.distances[order[min(np.searchsorted(share, percent / 100 * share[-1]), len(order) - 1)]])


@dataclass(frozen=True)
class SurfaceDistances:
    """The distances between two surfaces, both ways. If both masks are empty, distances are nan; if one is, inf."""

    definition: Surface
    from_prediction: Directed
    from_truth: Directed

    @cached_property
    def _empty(self) -> float | None:
        """What every distance is if a surface is missing."""
        missing = [not len(directed.distances) for directed in (self.from_prediction, self.from_truth)]
        return NAN if all(missing) else INFINITE if any(missing) else None

    def _farthest(self, percent: float) -> float:
        if self._empty is not None:
            return self._empty
        return max(directed.percentile(percent, self.definition) for directed in (self.from_prediction, self.from_truth))

    @cached_property
    def hausdorff(self) -> float:
        """The largest distance from any place on one surface to the other, mm."""
        return self._farthest(100)

    @cached_property
    def hd95(self) -> float:
        """The larger of the two 95th percentiles, mm."""
        return self._farthest(_NEAR_ALL)

    @cached_property
    def assd(self) -> float:
        """The mean distance of both surfaces together, mm."""
        if self._empty is not None:
            return self._empty
        both = (self.from_prediction, self.from_truth)
        return float(sum(one.distances @ one.sizes for one in both) / sum(one.sizes.sum() for one in both))

    def surface_dice(self, tolerance: float) -> float:
        """Return the share of both surfaces that is within `tolerance` mm of the other; 1 if both are empty, 0 if one is."""
        if self._empty is not None:
            return 1.0 if np.isnan(self._empty) else 0.0
        both = (self.from_prediction, self.from_truth)
        return float(sum(one.sizes[one.distances <= tolerance].sum() for one in both) / sum(one.sizes.sum() for one in both))


def surface_distances(
    prediction: Mask, truth: Mask, spacing: Sequence[float], *, definition: Surface = "voxel"
) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks, Euclidean, in mm.

    Raises:
        UsageError: the shapes differ, or there is not a spacing for each axis.
    """
    _check_shapes(prediction, truth)
    sizes = _checked_spacing(spacing, truth.ndim)
    keep = _lasting_axes(truth.shape)
    box = bounding_box(prediction | truth)
    masks = [mask[(slice(0),) * mask.ndim if box is None else box] for mask in (prediction, truth)]
    return _between(masks[0], masks[1], sizes, keep, definition)


def _lasting_axes(shape: Sequence[int]) -> list[bool]:
    """Return which axes an image really has: not those with one voxel, unless that is all of it."""
    return [size > 1 or max(shape) <= 1 for size in shape]


def _between(
    prediction: Mask, truth: Mask, spacing: NDArray[np.float64], keep: Sequence[bool], definition: Surface
) -> SurfaceDistances:
    """Measure the distances of two masks, of which only what is within their common box is needed."""
    flat = tuple(axis for axis, kept in enumerate(keep) if not kept)
    masks = [mask.squeeze(flat) if mask.size else mask for mask in (prediction, truth)]
    if not masks[0].size:
        nothing = Directed(np.empty(0), np.empty(0))
        return SurfaceDistances(definition, nothing, nothing)
    spacing = spacing[list(keep)]
    if definition == "voxel":
        one, other = (_face_voxels(mask) for mask in masks)
        weights = [np.ones(np.count_nonzero(surface)) for surface in (one, other)]
    else:
        elements = [element_sizes(mask, spacing) for mask in masks]
        one, other = (found > 0 for found in elements)
        weights = [found[found > 0] for found in elements]
    return SurfaceDistances(
        definition,
        Directed(_nearest(one, other, spacing), weights[0]),
        Directed(_nearest(other, one, spacing), weights[1]),
    )


def _face_voxels(mask: Mask) -> Mask:
    """Return the voxels of a mask of which a neighbour across a face is not in it."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    middle = [slice(1, -1)] * mask.ndim
    for axis in range(mask.ndim):
        for side in (slice(None, -2), slice(2, None)):
            inner &= padded[(*middle[:axis], side, *middle[axis + 1 :])]
    return mask & ~inner


def _nearest(surface: Mask, other: Mask, spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance of each place on a surface to the nearest place on the other one, in the order of the array.

    Most are near: the places around are looked at one after the other, the nearest first, and a tree finds the rest.
    """
    distances = np.full(np.count_nonzero(surface), INFINITE)
    if not other.any():
        return distances
    offsets, lengths = _around(spacing)
    reach = [(int(most), int(most)) for most in abs(offsets).max(axis=0)]
    padded = np.pad(other, reach)
    strides = np.array(padded.strides)  # of bytes, which voxels of a mask are
    flat = padded.ravel()
    at = np.flatnonzero(np.pad(surface, reach))
    open_ = np.arange(len(at))
    for step, length in zip((offsets @ strides).tolist(), lengths.tolist(), strict=True):
        hit = flat[at + step]
        distances[open_[hit]] = length
        at, open_ = at[~hit], open_[~hit]
        if not len(open_):
            return distances
    tree = cKDTree(np.argwhere(other) * spacing, balanced_tree=False, compact_nodes=False)
    places = np.argwhere(surface)[open_] * spacing
    distances[open_] = tree.query(places)[0]
    return distances


def _around(spacing: NDArray[np.float64]) -> tuple[NDArray[np.int_], NDArray[np.float64]]:
    """Return the steps to all places within a few voxels (n, axes), the nearest first, and how long they are (mm)."""
    radius = _NEAR * float(np.prod(spacing)) ** (1 / len(spacing))
    ranges = [np.arange(-most, most + 1) for most in (radius // spacing).astype(int)]
    steps = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(spacing))
    lengths = np.sqrt(((steps * spacing) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= radius]
    return steps[order], lengths[order]


def bounding_box(mask: Mask, margin: Sequence[int] | None = None) -> tuple[slice, ...] | None:
    """Return the bounding box of a mask, and so many voxels more along each axis, within the image; None if it is empty."""
    slices = []
    for axis, more in enumerate(margin or (0,) * mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(found):
            return None
        slices.append(slice(max(0, int(found[0]) - more), min(mask.shape[axis], int(found[-1]) + 1 + more)))
    return tuple(slices)


def _checked_spacing(spacing: Sequence[float], axes: int) -> NDArray[np.float64]:
    sizes = np.asarray(spacing, dtype=np.float64)
    if sizes.shape != (axes,) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise UsageError(f"the spacing of an image with {axes} axes is {axes} numbers above 0, in mm")
    return sizes


# ------------------------------------------------------------------------------------------------------------- lesions


@dataclass(frozen=True, slots=True)
class Detection:
    """Which connected things were found. Voxels that touch at a face, an edge or a corner are connected."""

    found: int
    """True lesions that were found (tp)."""
    missed: int
    """True lesions that were not (fn)."""
    false: int
    """Predicted lesions that are none (fp)."""

    @property
    def f1(self) -> float:
        """2 found / (2 found + false + missed); 1 if there are no lesions at all."""
        return _ratio(2 * self.found, 2 * self.found + self.false + self.missed, empty=1.0)

    @property
    def recall(self) -> float:
        """Found / (found + missed); nan if there are none to find."""
        return _ratio(self.found, self.found + self.missed, empty=NAN)

    @property
    def precision(self) -> float:
        """Found / (found + false); nan if nothing is predicted."""
        return _ratio(self.found, self.found + self.false, empty=NAN)


def detection(prediction: Mask, truth: Mask, *, least_iou: float = 0.0) -> Detection:
    """Compare two masks lesion by lesion.

    With `least_iou` 0, a lesion is found if any voxel of it is predicted, and a predicted one is false if it touches none:
    several of one side may belong to one of the other. With more, lesions are paired one to one such that as many pairs as
    possible have at least that IoU.

    Raises:
        UsageError: the shapes differ, or the IoU is not from 0 to 1.
    """
    _check_shapes(prediction, truth)
    if not 0 <= least_iou <= 1:
        raise UsageError("an IoU is a number from 0 to 1")
    connected = np.ones((3,) * truth.ndim, dtype=bool)
    predicted, predictions = ndimage.label(prediction, connected)
    true, lesions = ndimage.label(truth, connected)
    both = prediction & truth
    shared = coo_array(
        (np.ones(np.count_nonzero(both), np.int64), (true[both] - 1, predicted[both] - 1)), (lesions, predictions)
    )
    shared.sum_duplicates()
    rows, columns = shared.coords
    if least_iou == 0:
        found = len(np.unique(rows))
        return Detection(found, lesions - found, predictions - len(np.unique(columns)))
    sizes, predicted_sizes = np.bincount(true[truth], minlength=1), np.bincount(predicted[prediction], minlength=1)
    union = sizes[rows + 1] + predicted_sizes[columns + 1] - shared.data
    enough = shared.data >= least_iou * union
    pairs = coo_array((np.ones(np.count_nonzero(enough)), (rows[enough], columns[enough])), (lesions, predictions)).tocsr()
    found = int((maximum_bipartite_matching(pairs) >= 0).sum()) if pairs.nnz else 0
    return Detection(found, lesions - found, predictions - found)


# -------------------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True, slots=True)
class Metric:
    """How a figure is to be read."""

    title: str
    unit: str
    best: float
    """The value of a perfect segmentation: the further from it, the worse."""


METRICS: Final[dict[str, Metric]] = {
    "dice": Metric("Dice", "", 1.0),
    "iou": Metric("IoU", "", 1.0),
    "precision": Metric("precision", "", 1.0),
    "recall": Metric("recall", "", 1.0),
    "specificity": Metric("specificity", "", 1.0),
    "f1": Metric("F1", "", 1.0),
    "volume_difference": Metric("volume difference", "ml", 0.0),
    "relative_volume_difference": Metric("relative volume difference", "", 0.0),
    "hausdorff": Metric("HD", "mm", 0.0),
    "hd95": Metric("HD95", "mm", 0.0),
    "assd": Metric("ASSD", "mm", 0.0),
    "surface_dice": Metric("surface Dice", "", 1.0),
    "lesion_f1": Metric("lesion F1", "", 1.0),
    "lesion_recall": Metric("lesion recall", "", 1.0),
    "lesion_precision": Metric("lesion precision", "", 1.0),
}
"""Name → how it is read. The order is that of tables."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured besides overlap."""

    surface: Surface | None = None
    """Which surface; None for no distances."""
    tolerance: float = 1.0
    """mm, of the surface Dice."""
    lesions: bool = False
    """Whether connected things are counted."""
    least_iou: float = 0.0
    """As for `detection`."""


@dataclass(frozen=True, slots=True)
class LabelReport:
    """All figures of one label in one case."""

    label: int
    confusion: Confusion
    values: dict[str, float]
    """Name in METRICS → value; those that were asked for. nan: undefined."""


def report(
    prediction: LabelMap,
    truth: LabelMap,
    spacing: Sequence[float],
    labels: Sequence[int] | None = None,
    options: Options | None = None,
) -> list[LabelReport]:
    """Measure label by label how a prediction differs from the truth.

    Args:
        prediction: Label of each voxel, 0 for the background.
        truth: The same of the reference.
        spacing: mm along each axis.
        labels: Which; those that occur in either, ascending, if None.
        options: What else is measured.

    Raises:
        UsageError: the shapes differ, or there is not a spacing for each axis.
        ImageError: there are labels below 0 or above HIGHEST_LABEL.
    """
    _check_shapes(prediction, truth)
    sizes, chosen = _checked_spacing(spacing, truth.ndim), options or Options()
    boxes = [_boxes(labels_of) for labels_of in (prediction, truth)]
    reports = []
    for label in sorted({*boxes[0], *boxes[1]}) if labels is None else labels:
        box = _union([found[label] for found in boxes if label in found], truth.ndim)
        reports.append(_report(label, (prediction[box] == label, truth[box] == label), truth.shape, sizes, chosen))
    return reports


def _boxes(labels: LabelMap) -> dict[int, tuple[slice, ...]]:
    """Return the bounding box of each label but 0."""
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high > HIGHEST_LABEL:
        raise ImageError(f"labels are numbers from 0 to {HIGHEST_LABEL}, not {low} to {high}")
    found = ndimage.find_objects(labels, max(high, 1))
    return {label: box for label, box in enumerate(found, start=1) if box is not None}


def _union(boxes: Sequence[tuple[slice, ...]], axes: int) -> tuple[slice, ...]:
    """Return the smallest box that holds all of them; an empty one if there are none."""
    if not boxes:
        return (slice(0),) * axes
    return tuple(slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in range(axes))


def absent(label: int, shape: Sequence[int], spacing: Sequence[float], options: Options | None = None) -> LabelReport:
    """Return what `report` says of a label that is in neither of two label maps of that shape."""
    empty = np.zeros((0,) * len(shape), dtype=bool)
    return _report(label, (empty, empty), tuple(shape), _checked_spacing(spacing, len(shape)), options or Options())


def _report(
    label: int, masks: tuple[Mask, Mask], shape: tuple[int, ...], spacing: NDArray[np.float64], options: Options
) -> LabelReport:
    """Measure one label in an image of that shape; the masks are what is within a box that holds the label."""
    prediction, truth = masks
    inside = confusion(prediction, truth)
    counts = replace(inside, tn=math.prod(shape) - inside.tp - inside.fp - inside.fn)
    values = {
        "dice": counts.dice,
        "iou": counts.iou,
        "precision": counts.precision,
        "recall": counts.recall,
        "specificity": counts.specificity,
        "f1": counts.f1,
        "volume_difference": counts.volume_difference([float(size) for size in spacing]),
        "relative_volume_difference": counts.relative_volume_difference,
    }
    if options.surface is not None:
        between = _between(prediction, truth, spacing, _lasting_axes(shape), options.surface)
        values |= {
            "hausdorff": between.hausdorff,
            "hd95": between.hd95,
            "assd": between.assd,
            "surface_dice": between.surface_dice(options.tolerance),
        }
    if options.lesions:
        lesions = detection(prediction, truth, least_iou=options.least_iou)
        values |= {"lesion_f1": lesions.f1, "lesion_recall": lesions.recall, "lesion_precision": lesions.precision}
    return LabelReport(label, counts, values)


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return a confidence interval of the mean over cases: the percentile bootstrap (Efron 1979).

    It says how sure the mean is if the cases were drawn from those that one means; with fewer than some ten cases it is too
    narrow.

    Args:
        values: One a case, without nan; inf is taken as it is.
        resamples: How many times as many cases are drawn with replacement.
        level: The part of the means that lies within.
        seed: Of the draw: the same values give the same interval.

    Returns:
        Low and high end; nan for fewer than two values.
    """
    cases = np.asarray(values, dtype=np.float64)
    if len(cases) < 2:  # noqa: PLR2004 - one case says nothing of others
        return NAN, NAN
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _RESAMPLES_AT_ONCE // len(cases))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        means[start : start + count] = cases[random.integers(0, len(cases), (count, len(cases)))].mean(axis=1)
    outside = (1 - level) / 2
    low = np.quantile(means, outside, method="lower")  # between two values there may be infinity, so nothing is interpolated
    return float(low), float(np.quantile(means, 1 - outside, method="higher"))
