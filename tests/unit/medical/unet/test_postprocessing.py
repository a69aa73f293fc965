"""Steps after the network: each against a plain definition, none touches what it was not told to, and the table of regions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.unet.postprocessing import (
    Step,
    closed,
    opened,
    postprocessed,
    region_table,
    steps_from,
)
from secure_media_processor.medical.volume import Grid

ONE = (1.0, 1.0, 1.0)
STEPS = [
    {"step": "largest-component", "labels": [1]},
    {"step": "remove-small", "labels": [1], "ml": 0.004},
    {"step": "fill-holes", "labels": [1]},
    {"step": "open", "labels": [1], "mm": 1.0},
    {"step": "close", "labels": [1], "mm": 1.0},
    {"step": "smooth", "labels": [1], "mm": 0.7},
]
label_maps = arrays.arrays(np.uint8, (6, 5, 4), elements=st.integers(0, 2))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["step"])
@given(labels=label_maps)
def test_a_step_moves_its_labels_and_no_other(step, labels) -> None:
    before = labels.copy()
    after = postprocessed(labels, (1.0, 2.0, 1.5), [step])
    assert (labels == before).all()
    assert (after.dtype, after.shape) == (labels.dtype, labels.shape)
    assert ((after == 2) == (before == 2)).all()
    again = postprocessed(after, (1.0, 2.0, 1.5), [step])
    if step["step"] not in {"smooth", "close", "open"}:
        assert (again == after).all(), "twice is once"
    mirrored = postprocessed(before[::-1], (1.0, 2.0, 1.5), [step])
    if step["step"] not in {"largest-component", "smooth"}:  # of equal pieces, or equal shares, the first is kept
        assert (mirrored[::-1] == after).all()
    if step["step"] in {"largest-component", "remove-small", "open"}:
        assert not ((after == 1) & (before != 1)).any()
    if step["step"] in {"fill-holes", "close"}:
        assert not ((after != 1) & (before == 1)).any()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["step"])
def test_nothing_and_everything_and_a_single_voxel(step) -> None:
    for labels in (np.zeros((4, 4, 4), int), np.ones((9, 9, 9), int), np.zeros((1, 1, 1), int), np.ones((1, 1, 1), int)):
        assert (postprocessed(labels, ONE, [step]) == labels).all()


def test_components() -> None:
    labels = np.zeros((8, 8, 8), np.int16)
    labels[:3, :3, :3] = 1
    labels[3, 3, 3] = 1  # at the corner: of one piece
    labels[6:, 6:, 6:] = 1
    labels[5, 0, 0] = 2
    kept = postprocessed(labels, ONE, [STEPS[0]])
    assert (kept == 1).sum() == 28
    assert kept[5, 0, 0] == 2
    assert (postprocessed(labels, ONE, [{"step": "remove-small", "labels": [1], "ml": 0.009}]) == kept).all()
    assert (postprocessed(labels, ONE, [{"step": "remove-small", "labels": [1], "ml": 0.008}]) == labels).all()
    assert (postprocessed(labels, (2, 2, 2), [{"step": "remove-small", "labels": [1], "ml": 0.009}]) == labels).all()


def test_holes() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:8, 1:8, 1:8] = 1
    labels[3, 3, 3] = 0
    labels[5, 5, 5] = 2
    labels[4, 4, 0:4] = 0  # open to the outside
    filled = postprocessed(labels, ONE, [STEPS[2]])
    assert filled[3, 3, 3] == 1
    assert filled[5, 5, 5] == 2
    assert (filled[4, 4, 0:4] == 0).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_a_flat_image(axis) -> None:
    ring = np.zeros((9, 9), np.uint8)
    ring[2:7, 2:7] = 1
    ring[4, 4] = 0
    spacing = np.insert([1.0, 1.0], axis, 8.0)
    filled = postprocessed(np.expand_dims(ring, axis), spacing, [STEPS[2]])
    assert filled.squeeze(axis)[4, 4] == 1
    opened_ring = postprocessed(np.expand_dims(ring, axis), spacing, [{"step": "open", "labels": [1], "mm": 1}])
    assert 0 < (opened_ring == 1).sum() < 24


def ball(spacing: tuple[float, ...], radius: float) -> np.ndarray:
    reach = [int(radius / size) for size in spacing]
    grid = np.meshgrid(*(np.arange(-most, most + 1) * size for most, size in zip(reach, spacing, strict=True)), indexing="ij")
    return sum(axis**2 for axis in grid) <= radius**2 + 1e-9


@given(arrays.arrays(bool, (7, 6, 5)), st.sampled_from([1.0, 2.0, 2.5]))
def test_morphology_is_that_of_a_ball_in_mm(mask, radius) -> None:
    spacing = (1.0, 2.0, 1.25)
    element = ball(spacing, radius)
    padded = np.pad(mask, 6)
    inner = (slice(6, -6),) * 3
    assert (closed(mask, spacing, radius) == ndimage.binary_closing(padded, element)[inner]).all()
    assert (opened(padded, spacing, radius) == ndimage.binary_opening(padded, element)).all()


def test_an_object_that_leaves_the_image_is_not_worn_at_the_border() -> None:
    mask = np.zeros((10, 10, 10), bool)
    mask[:4] = True
    assert (opened(mask, ONE, 2.0) == mask).all()
    assert (closed(mask, ONE, 2.0) == mask).all()


def test_smoothing_takes_the_noise_and_leaves_the_size() -> None:
    grid = np.indices((40, 40, 40)) - 19.5
    ball_of_15 = np.sqrt((grid**2).sum(axis=0)) < 15
    truth = np.where(ball_of_15, np.where(grid[0] < 0, 1, 3), 0).astype(np.uint8)
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random(truth.shape) < 0.1, 0, truth)
    noisy[0, 0, 0] = 9
    smooth = postprocessed(noisy, ONE, [{"step": "smooth", "labels": [1, 3], "mm": 1.5}])
    assert smooth[0, 0, 0] == 9
    smooth[0, 0, 0] = 0
    inner = ball_of_15 & (np.sqrt((grid**2).sum(axis=0)) < 12) & (abs(grid[0]) > 1)
    assert (noisy != truth)[inner].mean() > 0.09
    assert (smooth == truth)[inner].all()
    assert (smooth == 3).sum() == pytest.approx((truth == 3).sum(), rel=0.1)  # the boundary moves in: noise made it lighter


def test_steps_follow_each_other() -> None:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[2:8, 2:8, 2:8] = 1
    labels[4:6, 4:6, 4:6] = 0
    labels[10, 10, 10] = 1
    result = postprocessed(labels, ONE, [STEPS[0], STEPS[2]])
    assert (result == 1).sum() == 216
    assert result[10, 10, 10] == 0
    assert (postprocessed(labels, ONE, []) == labels).all()


def test_steps_are_data() -> None:
    steps = steps_from(json.loads(json.dumps(STEPS)))
    assert [step.to_json() for step in steps] == STEPS
    with pytest.raises(UsageError, match="at most"):
        steps_from([STEPS[0]] * 17)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"step": "erase", "labels": [1]},
        {"step": ["open"], "labels": [1], "mm": 1},
        {"step": "open", "labels": [1]},
        {"step": "open", "labels": [1], "ml": 1},
        {"step": "open", "labels": [1], "mm": 0},
        {"step": "open", "labels": [1], "mm": float("nan")},
        {"step": "open", "labels": [1], "mm": 1e9},
        {"step": "open", "labels": [1], "mm": "1"},
        {"step": "fill-holes", "labels": [1], "mm": 1},
        {"step": "fill-holes", "labels": []},
        {"step": "fill-holes", "labels": [0]},
        {"step": "fill-holes", "labels": [1, 1]},
        {"step": "fill-holes", "labels": [True]},
        {"step": "fill-holes", "labels": [1.0]},
        {"step": "fill-holes", "labels": "1"},
        {"step": "fill-holes", "labels": [1], "run": "rm"},
    ],
    ids=str,
)
def test_steps_that_make_no_sense_are_refused(bad) -> None:
    with pytest.raises(UsageError):
        steps_from([bad])
    with pytest.raises(UsageError):
        postprocessed(np.zeros((2, 2, 2), int), ONE, [bad])


def test_a_step_and_a_spacing_are_checked() -> None:
    with pytest.raises(UsageError):
        Step("fill-holes", (1,), 2.0)
    for spacing in [(1, 1), (1, 1, 0), (1, 1, float("nan"))]:
        with pytest.raises(UsageError, match="spacing"):
            postprocessed(np.zeros((2, 2, 2), int), spacing, [])


def test_regions() -> None:
    labels = np.zeros((10, 12, 14), np.uint8)
    labels[2:4, 3:6, 5:9] = 1
    labels[8, 8, 8] = 1
    labels[0, 0, 0] = 4
    affine = np.array([[-2.0, 0, 0, 100], [0, 3, 0, -50], [0, 0, 1, 7], [0, 0, 0, 1]])  # the first axis runs to the left
    image = np.arange(labels.size, dtype=np.float32).reshape(labels.shape)
    one, four = region_table(labels, Grid(labels.shape, affine), image)
    assert (one.label, one.voxels, one.components) == (1, 25, 2)
    assert one.ml == pytest.approx(25 * 6 / 1000)
    assert (one.first, one.last) == ((2, 3, 5), (8, 8, 8))
    assert one.low == pytest.approx((100 - 2 * 8.5, -50 + 3 * 2.5, 7 + 4.5))
    assert one.high == pytest.approx((100 - 2 * 1.5, -50 + 3 * 8.5, 7 + 8.5))
    centre = np.argwhere(labels == 1).mean(axis=0)
    assert one.centroid == pytest.approx((affine[:3, :3] @ centre + affine[:3, 3]).tolist())
    assert one.mean == pytest.approx(image[labels == 1].mean())
    assert one.deviation == pytest.approx(image[labels == 1].std(), rel=1e-5)
    assert (four.label, four.voxels, four.centroid) == (4, 1, (100, -50, 7))
    assert region_table(labels, Grid(labels.shape, affine))[0].mean is None
    assert region_table(labels * 0, Grid(labels.shape, affine)) == []
    with pytest.raises(UsageError, match="shape"):
        region_table(labels[1:], Grid(labels.shape, affine))
    with pytest.raises(ImageError, match="-1"):
        region_table(labels.astype(int) - 1, Grid(labels.shape, affine))
