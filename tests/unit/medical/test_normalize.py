"""Intensities inside a mask, landmarks, the mask itself, and local contrast."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_media_processor.errors import ImageError, MissingError, UsageError
from secure_media_processor.medical.preprocessing.contrast import clahe
from secure_media_processor.medical.preprocessing.mask import foreground_mask, otsu_threshold
from secure_media_processor.medical.preprocessing.normalize import (
    NYUL_PERCENTILES,
    Landmarks,
    landmarks_fields,
    learn_landmarks,
    normalized,
    read_landmarks,
    write_landmarks,
)
from unit.medical.phantoms import head

RNG = np.random.default_rng(0)
ARRAY = RNG.gamma(3, 100, (12, 13, 14))
MASK = RNG.random(ARRAY.shape) < 0.5
LINE = Landmarks((1.0, 50.0, 99.0), (0.0, 50.0, 100.0))


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
def test_what_the_values_inside_become(mask: np.ndarray | None) -> None:
    inside = np.ones(ARRAY.shape, bool) if mask is None else mask
    found = normalized(ARRAY, "zscore", mask)
    assert found.dtype == np.float32
    assert abs(found[inside].mean(dtype=float)) < 1e-5
    assert abs(found[inside].std(dtype=float) - 1) < 1e-5
    found = normalized(ARRAY, "minmax", mask)
    assert (found.min(), found.max()) == (0, 1)
    assert (found[inside].argmin(), found[inside].argmax()) == (ARRAY[inside].argmin(), ARRAY[inside].argmax())
    found = normalized(ARRAY, "percentile", mask, low=10, high=90)
    assert np.isclose((found[inside] == 0).mean(), 0.1, atol=0.01)
    assert np.isclose((found[inside] == 1).mean(), 0.1, atol=0.01)
    low, high = np.percentile(ARRAY[inside], (10, 90))
    assert np.allclose(found, np.clip((ARRAY - low) / (high - low), 0, 1), atol=1e-6)


def test_values_far_from_zero_keep_their_digits() -> None:
    shifted = ARRAY + 1e7
    assert np.allclose(normalized(shifted, "zscore"), normalized(ARRAY, "zscore"), atol=1e-5)


@settings(max_examples=30)
@given(
    scale=st.floats(0.01, 100),
    shift=st.floats(-1000, 1000),
    method=st.sampled_from(["zscore", "minmax", "percentile", "nyul"]),
)
def test_gain_and_offset_of_the_scanner_do_not_matter(scale: float, shift: float, method: str) -> None:
    landmarks = LINE if method == "nyul" else None
    first = normalized(ARRAY, method, MASK, landmarks=landmarks)
    second = normalized(ARRAY * scale + shift, method, MASK, landmarks=landmarks)
    assert np.abs(first - second).max() <= 1e-3 * max(1, np.abs(first).max())


def test_memory_order_and_type_of_the_input_do_not_matter() -> None:
    whole = ARRAY.astype(np.int16)
    expected = normalized(whole.astype(np.float64), "zscore", MASK)
    for array in (whole, np.asfortranarray(whole), whole[::-1][::-1], whole.astype(np.float32)):
        assert np.allclose(normalized(array, "zscore", MASK), expected, atol=1e-6)


def test_landmarks_make_histograms_alike(work: Path) -> None:
    """Volumes of one kind with different gain and contrast: after Nyúl their deciles agree."""
    volumes = [(ARRAY**power * gain, MASK) for power, gain in ((1, 1), (0.8, 40), (1.3, 0.1))]
    learned = learn_landmarks(volumes)
    assert learned.volumes == 3
    assert (learned.standard[0], learned.standard[-1]) == (0, 100)
    for array, mask in volumes:
        found = normalized(array, "nyul", mask, landmarks=learned)
        assert np.allclose(np.percentile(found[mask], NYUL_PERCENTILES), learned.standard, atol=0.3)
        assert found.min() < 0  # the ends go on
        assert found.max() > 100
    write_landmarks(learned, Path("l.json"))
    assert read_landmarks(Path("l.json")) == learned
    one = learn_landmarks(volumes[:1])
    standard = np.percentile(normalized(ARRAY, "nyul", MASK, landmarks=one)[MASK], NYUL_PERCENTILES)
    assert np.allclose(standard, one.standard, atol=1e-3)


def test_landmarks_of_few_intensities() -> None:
    """Percentiles that fall together are one landmark."""
    steps = np.repeat([0.0, 1.0, 2.0], 400).reshape(12, 10, 10)
    found = normalized(steps, "nyul", landmarks=learn_landmarks([(ARRAY, None)]))
    assert np.unique(found).size == 3
    assert (np.diff(np.unique(found)) > 0).all()


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "[]",
        "{}",
        '{"schema": "smp.landmarks/1"}',
        json.dumps({"schema": "smp.landmarks/1", **landmarks_fields(LINE), "more": 1}),
        json.dumps({"schema": "smp.landmarks/1", **landmarks_fields(LINE), "standard": [0, 50]}),
        json.dumps({"schema": "smp.landmarks/1", **landmarks_fields(LINE), "standard": [0, 50, 50]}),
        json.dumps({"schema": "smp.landmarks/1", **landmarks_fields(LINE), "standard": [0, 50, "x"]}),
        json.dumps({"schema": "smp.landmarks/1", **landmarks_fields(LINE), "percentiles": [0, 50, 101]}),
        json.dumps({"schema": "smp.landmarks/1", **landmarks_fields(LINE), "percentiles": [0, float("nan"), 100]}),
        json.dumps({"schema": "smp.landmarks/1", **landmarks_fields(LINE), "volumes": True}),
        "[" * 30_000,
    ],
)
def test_what_are_no_landmarks(work: Path, text: str) -> None:
    Path("l.json").write_text(text)
    with pytest.raises(UsageError):
        read_landmarks(Path("l.json"))
    with pytest.raises(MissingError):
        read_landmarks(Path("gone.json"))


@pytest.mark.parametrize("method", ["zscore", "minmax", "percentile", "nyul"])
def test_what_cannot_be_normalized(method: str) -> None:
    landmarks = LINE if method == "nyul" else None
    for array, mask, reason in (
        (np.ones((3, 3, 3)), None, "all of them are the same"),
        (ARRAY, np.zeros(ARRAY.shape, bool), "mask is empty"),
        (ARRAY, np.ones((2, 2, 2), bool), "does not fit"),
        (np.full((3, 3, 3), np.nan), None, "not finite"),
    ):
        with pytest.raises(ImageError, match=reason):
            normalized(array, method, mask, landmarks=landmarks)
    with pytest.raises(UsageError):
        normalized(ARRAY, "nyul")
    with pytest.raises(UsageError):
        normalized(ARRAY, "percentile", low=90, high=10)
    with pytest.raises(UsageError, match="there are none"):
        learn_landmarks([])


# ------------------------------------------------------------------------------------------------------------------ mask


def test_the_foreground_of_a_noisy_head() -> None:
    phantom = head()
    noise = np.random.default_rng(1).normal(size=(2, *phantom.image.shape)) * 0.05
    noisy = np.hypot(phantom.image + noise[0], noise[1])
    truth = phantom.tissue > 0
    for array in (noisy, np.asfortranarray(noisy * 3000).astype(np.int16), noisy[:, :, ::-1] * 7 - 1000):
        found = foreground_mask(array)
        expected = truth[:, :, ::-1] if array.strides[2] < 0 else truth
        assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.97
    cut = foreground_mask(noisy[:, :, 12:])  # the head goes on beyond the first slice
    assert 2 * (cut & truth[:, :, 12:]).sum() / (cut.sum() + truth[:, :, 12:].sum()) > 0.97
    flat = foreground_mask(noisy[:, :, 20:21])
    assert 2 * (flat & truth[:, :, 20:21]).sum() / (flat.sum() + truth[:, :, 20:21].sum()) > 0.95


def test_otsu_parts_two_heaps() -> None:
    values = np.concatenate([RNG.normal(10, 1, 9000), RNG.normal(100, 5, 1000)])
    assert 13 < otsu_threshold(values) < 90
    with pytest.raises(ImageError, match="no foreground"):
        foreground_mask(np.zeros((4, 4, 4)))
    single = np.zeros((8, 8, 8))
    single[4, 4, 4] = 1
    assert foreground_mask(single)[4, 4, 4]


# -------------------------------------------------------------------------------------------------------------- contrast


def test_clahe_as_opencv_does() -> None:
    """OpenCV works on whole gray levels; ours has none, so they agree to a few of them."""
    rng = np.random.default_rng(5)
    levels = np.clip(cv2.GaussianBlur(rng.normal(size=(512, 384)), (0, 0), 12) * 900 + 120, 0, 255).astype(np.uint8)
    levels[0, 0], levels[-1, -1] = 0, 255
    theirs = cv2.createCLAHE(2.0, (8, 8)).apply(levels).astype(float)
    ours = clahe(levels[:, :, None].astype(np.float32), (1, 1, 3))[:, :, 0]
    assert np.abs(ours - theirs).mean() < 3
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.995


def test_clahe_raises_contrast_where_there_is_little() -> None:
    ramp = np.indices((64, 64, 3))[0] / 640 + np.random.default_rng(2).normal(size=(64, 64, 3)) * 0.01
    ramp[-1, -1] = 1
    found = clahe(ramp, (1, 1, 4))
    assert found.dtype == np.float32
    assert found.min() >= ramp.min() - 1e-6
    assert found.max() <= ramp.max() + 1e-6
    assert found[8:24, 8:24].std() > 2 * ramp[8:24, 8:24].std()
    scaled = clahe(ramp * 500 - 1000, (1, 1, 4))
    assert np.abs((scaled + 1000) / 500 - found).max() < 1e-3
    # The plane of the slices goes with the spacing.
    turned = clahe(np.moveaxis(ramp, 2, 0), (4, 1, 1))
    assert np.abs(np.moveaxis(turned, 0, 2) - found).max() < 1e-6
    with pytest.raises(ImageError, match="no contrast"):
        clahe(np.ones((8, 8, 8)), (1, 1, 1))
    with pytest.raises(UsageError):
        clahe(ramp, (1, 1, 1), clip_limit=0.5)
    assert clahe(ramp[:3, :2], (1, 1, 1)).shape == (3, 2, 3)
