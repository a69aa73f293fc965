"""Metrics against MONAI's, the cases in which something is not there, and lesions one by one."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.unet.metrics import (
    METRICS,
    Confusion,
    Detection,
    Options,
    absent,
    bootstrap_interval,
    bounding_box,
    confusion,
    detection,
    dice,
    report,
    surface_distances,
)
from secure_media_processor.medical.unet.surface_area import element_sizes

SPACINGS = [(1.0, 1.0, 1.0), (1.0, 0.9, 1.2), (0.5, 2.0, 4.0)]


def blobs(seed: int, shape: tuple[int, ...] = (14, 12, 9)) -> tuple[np.ndarray, np.ndarray]:
    """Return two masks that look alike; one or both are empty now and then, or fill the image."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    other = field + 0.5 * ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    masks = [mask > rng.uniform(-0.1, 0.2) for mask in (field, other)]
    if seed % 10 == 7:
        masks[0][:] = False
    if seed % 10 == 8:
        masks[1][:] = False
    if seed % 10 == 9:
        masks = [np.zeros(shape, bool)] * 2
    if seed % 10 == 6:
        masks[1][:] = True
    return masks[0], masks[1]


def monais(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], tolerance: float, *, area: bool
) -> list[float]:
    torch = pytest.importorskip("torch")
    from monai import metrics as monai  # noqa: PLC0415 - seconds that only this test waits for

    one, other = (torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (prediction, truth))
    every = {"include_background": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        surface = (
            {}
            if area
            else {
                "hausdorff": monai.compute_hausdorff_distance(one, other, spacing=spacing, **every),
                "hd95": monai.compute_hausdorff_distance(one, other, spacing=spacing, percentile=95, **every),
                "assd": monai.compute_average_surface_distance(one, other, spacing=spacing, symmetric=True, **every),
            }
        )
        surface["surface_dice"] = monai.compute_surface_dice(
            one, other, [tolerance], spacing=spacing, use_subvoxels=area, **every
        )
        overlap = {
            "dice": monai.compute_dice(one, other, ignore_empty=False, **every),
            "iou": monai.compute_iou(one, other, ignore_empty=False, **every),
        }
    return {name: float(value) for name, value in (surface | overlap).items()}


@pytest.mark.parametrize("seed", range(50))
def test_equals_monai(seed) -> None:
    prediction, truth = blobs(seed)
    spacing, tolerance = SPACINGS[seed % 3], (0.0, 1.0, 2.5)[seed % 3]
    (ours,) = report(prediction * 1, truth * 1, spacing, [1], Options("voxel", tolerance))
    theirs = monais(prediction, truth, spacing, tolerance, area=False)
    if not prediction.any() and not truth.any():
        assert ours.values["surface_dice"] == 1
        assert math.isnan(theirs.pop("surface_dice"))
    elif not prediction.any() or not truth.any():
        assert ours.values["hd95"] == math.inf
        assert math.isnan(theirs.pop("hd95")), "a quantile between infinities"
    for name, value in theirs.items():
        assert ours.values[name] == pytest.approx(value, abs=1e-4, nan_ok=True), name


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("axes", [2, 3])
def test_the_surface_by_area_equals_monais(seed, axes) -> None:
    prediction, truth = blobs(seed if seed % 10 != 9 else 5, (14, 12, 9)[:axes])
    spacing = SPACINGS[seed % 3][:axes]
    (ours,) = report(prediction * 1, truth * 1, spacing, [1], Options("area", 1.1))
    theirs = monais(prediction, truth, spacing, 1.1, area=True)["surface_dice"]
    assert ours.values["surface_dice"] == pytest.approx(theirs, abs=1e-5)


def test_areas_of_known_things() -> None:
    box = np.ones((10, 20, 30), bool)
    spacing = np.array([2.0, 1.0, 0.5])
    faces = 2 * (20 * 20 + 20 * 15 + 20 * 15)  # with bevelled edges: somewhat less
    assert 0.9 * faces < element_sizes(box, spacing).sum() < faces
    grid = np.indices((41, 41, 41)) - 20.0
    ball = np.sqrt((grid**2).sum(axis=0)) <= 15
    assert element_sizes(ball, np.ones(3)).sum() == pytest.approx(4 * np.pi * 15**2, rel=0.1)
    assert element_sizes(np.ones((4, 4), bool), np.ones(2)).sum() == pytest.approx(12 + 4 * math.sqrt(0.5))
    assert element_sizes(np.ones(5, bool), np.ones(1)).tolist() == [1, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("definition", ["voxel", "area"])
def test_distances_of_known_things(definition) -> None:
    one = np.zeros((20, 20, 20), bool)
    one[5:10, 5:10, 5:10] = True
    other = np.roll(one, 3, axis=2)
    found = surface_distances(one, other, (1, 1, 2), definition=definition)
    assert found.definition == definition
    assert found.hausdorff == pytest.approx(6)
    assert 0 < found.assd < found.hd95 <= found.hausdorff
    assert found.surface_dice(6) == 1
    assert 0 < found.surface_dice(1) < 1
    same = surface_distances(one, one, (1, 1, 2), definition=definition)
    assert (same.hausdorff, same.hd95, same.assd, same.surface_dice(0)) == (0, 0, 0, 1)


@pytest.mark.parametrize("definition", ["voxel", "area"])
def test_a_single_slice_is_a_flat_image_wherever_its_axis_is(definition) -> None:
    one, other = blobs(3, (15, 12))
    flat = surface_distances(one, other, (0.5, 2), definition=definition)
    for axis, spacing in ((0, (9, 0.5, 2)), (1, (0.5, 9, 2)), (2, (0.5, 2, 9))):
        masks = [np.expand_dims(mask, axis) for mask in (one, other)]
        deep = surface_distances(*masks, spacing, definition=definition)
        (reported,) = report(masks[0] * 1, masks[1] * 1, spacing, options=Options(definition))
        assert deep.hd95 == flat.hd95 == reported.values["hd95"]
        assert deep.assd == flat.assd == reported.values["assd"]


@given(arrays.arrays(bool, (4, 5, 3)))
def test_the_bounding_box_is_scipys(mask) -> None:
    found = ndimage.find_objects(mask.astype(np.uint8))
    assert bounding_box(mask) == (found[0] if found else None)
    if found:
        wider = bounding_box(mask, (1, 0, 9))
        low, high = max(0, found[0][0].start - 1), min(4, found[0][0].stop + 1)
        assert wider == (slice(low, high), found[0][1], slice(0, 3))


@given(arrays.arrays(bool, (4, 5, 3)), arrays.arrays(bool, (4, 5, 3)), st.sampled_from(["voxel", "area"]))
def test_properties_of_any_two_masks(one, other, definition) -> None:
    spacing = (1.0, 2.0, 0.5)
    there, back = (surface_distances(*pair, spacing, definition=definition) for pair in ((one, other), (other, one)))
    mirrored = surface_distances(one[::-1], other[::-1], spacing, definition=definition)
    for name in ("hausdorff", "hd95", "assd"):
        value = getattr(there, name)
        assert getattr(back, name) == pytest.approx(value, nan_ok=True), "symmetric"
        assert getattr(mirrored, name) == pytest.approx(value, nan_ok=True), "mirrored"
    if one.any() and other.any():
        assert there.assd <= there.hausdorff + 1e-12
        assert there.hd95 <= there.hausdorff
    assert confusion(one, other).dice == dice(other, one)
    counts = confusion(one, other)
    assert counts.tp + counts.fp + counts.fn + counts.tn == one.size
    assert counts.iou == pytest.approx(counts.dice / (2 - counts.dice))
    if counts.tp:
        assert counts.f1 == pytest.approx(2 / (1 / counts.precision + 1 / counts.recall))


def test_what_is_not_there() -> None:
    """The table of the documentation."""
    nothing, something, everything = Confusion(0, 0, 0, 8), Confusion(0, 2, 0, 6), Confusion(8, 0, 0, 0)
    missed = Confusion(0, 0, 2, 6)
    same = pytest.approx
    for name, values in {
        "dice": (1, 0, 0),
        "iou": (1, 0, 0),
        "precision": (1, 0, math.nan),
        "recall": (1, math.nan, 0),
        "specificity": (1, 0.75, 1),
        "relative_volume_difference": (0, math.inf, -1),
    }.items():
        assert [getattr(counts, name) for counts in (nothing, something, missed)] == same(list(values), nan_ok=True), name
    assert math.isnan(everything.specificity)
    assert something.volume_difference((10, 10, 5)) == 1  # two voxels of half a millilitre
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    both, one = surface_distances(empty, empty, (1, 1, 1)), surface_distances(full, empty, (1, 1, 1))
    assert [both.hausdorff, both.hd95, both.assd, both.surface_dice(1)] == same([math.nan] * 3 + [1], nan_ok=True)
    assert [one.hausdorff, one.hd95, one.assd, one.surface_dice(1)] == [math.inf] * 3 + [0]


def test_a_report_is_of_each_label_by_itself() -> None:
    rng = np.random.default_rng(1)
    truth = np.kron(rng.integers(0, 4, (4, 4, 4)), np.ones((4, 4, 4), int))
    truth[truth == 2] = 7
    prediction = np.roll(truth, 1, axis=0)
    options = Options("voxel", 1.0, lesions=True)
    reports = report(prediction, truth, (1, 2, 3), options=options)
    assert [one.label for one in reports] == [1, 3, 7]
    assert all(list(one.values) == list(METRICS) for one in reports)
    for one in reports:
        masks = prediction == one.label, truth == one.label
        assert one.confusion == confusion(*masks)
        assert one.values["hd95"] == surface_distances(*masks, (1, 2, 3)).hd95
        assert one.values["lesion_f1"] == detection(*masks).f1
    assert report(prediction, truth, (1, 2, 3), [5], options)[0].values == pytest.approx(
        absent(5, truth.shape, (1, 2, 3), options).values, nan_ok=True
    )
    assert absent(5, (2, 2, 2), (1, 1, 1)).confusion == Confusion(0, 0, 0, 8)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int16, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_type_of_labels(dtype, order) -> None:
    prediction, truth = (np.asarray(mask, dtype=dtype, order=order) for mask in blobs(1))
    expected = report(prediction * 1, truth * 1, (1, 1, 2), options=Options("voxel"))
    assert report(prediction, truth, (1, 1, 2), options=Options("voxel")) == expected


def test_what_makes_no_sense_is_refused() -> None:
    flat, deep = np.zeros((3, 3), int), np.zeros((3, 3, 3), int)
    with pytest.raises(UsageError, match="compared"):
        report(flat, deep, (1, 1))
    with pytest.raises(UsageError, match="spacing"):
        report(deep, deep, (1, 1))
    with pytest.raises(UsageError, match="spacing"):
        surface_distances(deep > 0, deep > 0, (1, 1, 0))
    with pytest.raises(ImageError, match="-1"):
        report(deep - 1, deep, (1, 1, 1))
    with pytest.raises(ImageError, match="65536"):
        report(deep + 65536, deep, (1, 1, 1))
    with pytest.raises(UsageError, match="IoU"):
        detection(flat > 0, flat > 0, least_iou=1.5)


LESIONS = np.array(
    [
        [1, 1, 0, 0, 0, 0, 0, 1],
        [1, 1, 0, 0, 0, 0, 1, 0],  # these two touch at a corner: one lesion
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
    ],
    dtype=bool,
)
FOUND = np.array(
    [
        [1, 1, 0, 0, 1, 0, 0, 0],  # the single one is false
        [1, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0],  # one lesion, found in two pieces
    ],
    dtype=bool,
)


def test_lesions() -> None:
    assert detection(FOUND, LESIONS) == Detection(found=2, missed=1, false=1)
    assert detection(FOUND, LESIONS, least_iou=0.3) == Detection(found=2, missed=1, false=2)  # one piece of the two belongs
    assert detection(FOUND, LESIONS, least_iou=0.5) == Detection(found=1, missed=2, false=3)
    assert detection(LESIONS, LESIONS, least_iou=1.0) == Detection(3, 0, 0)
    assert detection(FOUND, LESIONS).f1 == pytest.approx(4 / 6)
    empty = np.zeros_like(LESIONS)
    assert detection(empty, LESIONS) == Detection(0, 3, 0)
    assert detection(LESIONS, empty, least_iou=0.1) == Detection(0, 0, 3)
    assert detection(empty, empty).f1 == 1
    assert math.isnan(detection(empty, empty).recall)
    assert math.isnan(detection(empty, empty).precision)


@given(arrays.arrays(bool, (4, 5, 3)), arrays.arrays(bool, (4, 5, 3)), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_lesions_are_counted_once(one, other, least) -> None:
    there = detection(one, other, least_iou=least)
    count = [ndimage.label(mask, np.ones((3, 3, 3)))[1] for mask in (one, other)]
    assert there.found + there.missed == count[1]
    assert 0 <= there.false <= count[0]
    if least:
        assert there.found + there.false == count[0]


def test_the_interval_of_a_mean() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(0.8, 0.1, 200)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(200), rel=0.15)
    assert (low, high) == bootstrap_interval(values)
    assert (low, high) != bootstrap_interval(values, seed=1)
    wide = bootstrap_interval(values, level=0.99)
    assert wide[0] < low
    assert wide[1] > high
    assert all(math.isnan(end) for end in bootstrap_interval([0.5]))
    assert bootstrap_interval([0.5, 0.5]) == (0.5, 0.5)
    low, high = bootstrap_interval([1.0, 2.0, math.inf])
    assert low >= 1
    assert high == math.inf


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.normal(size=30), resamples=300, seed=seed)
        hits += low <= 0 <= high
    assert 0.87 <= hits / 200 <= 0.99
