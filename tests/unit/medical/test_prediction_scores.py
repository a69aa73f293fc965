"""Scores of probabilities against plain definitions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical import prediction_scores
from secure_media_processor.medical.prediction_scores import read_predictions, scored

cases = st.lists(st.tuples(st.integers(0, 10).map(lambda n: n / 10), st.booleans()), min_size=1, max_size=30)


@given(cases, st.integers(0, 10).map(lambda n: n / 10))
def test_scores_are_what_they_are_called(given_cases, threshold) -> None:
    probabilities, labels = np.array([one for one, _ in given_cases]), np.array([float(one) for _, one in given_cases])
    found = scored(probabilities, labels, threshold=threshold)
    ones, zeros = probabilities[labels == 1], probabilities[labels == 0]
    pairs = [(one > zero) + 0.5 * (one == zero) for one in ones for zero in zeros]
    assert found.auc.value == pytest.approx(np.mean(pairs) if pairs else math.nan, nan_ok=True)
    assert found.sensitivity.value == pytest.approx(np.mean(ones >= threshold) if len(ones) else math.nan, nan_ok=True)
    assert found.specificity.value == pytest.approx(np.mean(zeros < threshold) if len(zeros) else math.nan, nan_ok=True)
    assert found.brier == pytest.approx(np.mean((probabilities - labels) ** 2))
    assert sum(one.n for one in found.reliability) == len(labels)
    ece = 0.0
    for one in found.reliability:
        last = one.high == 1
        here = (probabilities >= one.low) & ((probabilities <= one.high) if last else (probabilities < one.high))
        assert one.n == here.sum()
        ece += abs((probabilities[here] - labels[here]).sum()) / len(labels)
    assert found.ece == pytest.approx(ece)
    for estimate in (found.auc, found.sensitivity, found.specificity):
        if not math.isnan(estimate.low):
            assert 0 <= estimate.low <= estimate.value + 1e-12
            assert estimate.value - 1e-12 <= estimate.high <= 1


def delong(ones: np.ndarray, zeros: np.ndarray) -> float:
    """The variance as the paper has it, pair by pair."""
    kernel = (ones[:, None] > zeros) + 0.5 * (ones[:, None] == zeros)
    return kernel.mean(axis=1).var(ddof=1) / len(ones) + kernel.mean(axis=0).var(ddof=1) / len(zeros)


def test_intervals() -> None:
    rng = np.random.default_rng(3)
    labels = rng.random(80) < 0.4
    given_numbers = np.clip(np.round(rng.normal(0.45 + 0.15 * labels, 0.2), 2), 0, 1)
    found = scored(given_numbers, labels)
    half = 1.959964 * math.sqrt(delong(given_numbers[labels], given_numbers[~labels]))
    assert found.auc.high - found.auc.value == pytest.approx(half, rel=1e-6)
    # Wilson: the ends p solve |p - share| = z sqrt(p (1 - p) / n).
    share, n = found.sensitivity.value, labels.sum()
    for end in (found.sensitivity.low, found.sensitivity.high):
        assert abs(end - share) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-6)


def test_the_ends() -> None:
    apart = scored([0.1, 0.2, 0.8, 1.0], [0, 0, 1, 1])
    assert (apart.auc.value, apart.auc.low, apart.auc.high) == (1, 1, 1)
    assert apart.sensitivity.low < 0.5 < apart.sensitivity.high == 1
    alone = scored([0.5], [1])
    assert math.isnan(alone.auc.value)
    assert math.isnan(alone.specificity.value)
    assert alone.sensitivity.value == 1
    assert math.isnan(scored([0.2, 0.5, 0.7], [1, 0, 0]).auc.low)
    for probabilities, labels in [([], []), ([0.5], [1, 0]), ([1.5], [1]), ([math.nan], [1]), ([0.5], [2])]:
        with pytest.raises(UsageError):
            scored(probabilities, labels)


def test_tables_have_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.csv"
    path.write_text('other,id,probability\n1,"a, b",0.25\n\n2,c,1\n')
    table = read_predictions(path)
    assert (table.values, table.lines) == ({"a, b": 0.25, "c": 1.0}, {"a, b": 2, "c": 4})
    monkeypatch.setattr(prediction_scores, "MAX_ROWS", 2)
    with pytest.raises(ImageError, match="more than 2 lines"):
        read_predictions(path)
    monkeypatch.setattr(prediction_scores, "MAX_BYTES", 10)
    with pytest.raises(ImageError, match="larger than"):
        read_predictions(path)
