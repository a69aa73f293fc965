"""Windows: they cover, they overlap as asked, and what is blended of them is what was there."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_media_processor.errors import UsageError
from secure_media_processor.medical.unet.windows import Axis, Plan, blend, cut, fit, fitted_axis, in_slices, weights_of

MULTIPLES = st.sampled_from([1, 4, 8, 16])


@given(
    length=st.integers(1, 300),
    trained=st.integers(1, 100),
    multiple=MULTIPLES,
    overlap=st.floats(0, 0.75),
    fixed=st.booleans(),
)
def test_windows_cover_and_overlap(*, length: int, trained: int, multiple: int, overlap: float, fixed: bool) -> None:
    choices = fitted_axis(length, trained, multiple=multiple, overlap=overlap, fixed=fixed)
    least = -(-trained // multiple) * multiple
    assert choices[-1].size == least
    assert len(choices) == 1 or not fixed
    for axis in choices:
        assert axis.size % multiple == 0
        assert least <= axis.size <= 2 * least
        covered = np.zeros(axis.padded, int)
        for start in axis.starts:
            covered[start : start + axis.size] += 1
        assert covered.min() >= 1
        assert axis.before + length <= axis.padded
        steps = np.diff(axis.starts)
        assert not len(steps) or steps.max() - steps.min() <= 1
        assert (steps <= (1 - overlap) * axis.size + 1).all()
        room = axis.padded - axis.size
        mirrored = sorted(room - start for start in axis.starts)
        assert np.abs(np.array(mirrored) - axis.starts).max() <= 1
        assert np.allclose(sum_of_weights(axis), 1, atol=1e-6)
    works = [axis.work for axis in choices]
    for one in choices:
        assert not [other for other in choices if other is not one and other.size <= one.size and other.work < min(works)]


def sum_of_weights(axis: Axis) -> np.ndarray:
    total = np.zeros(axis.padded)
    for start, weights in zip(axis.starts, axis.weights(), strict=True):
        total[start : start + axis.size] += weights
    return total


def test_the_work_on_a_usual_volume() -> None:
    """256 x 256 x 160 with a window of 96: what others do is 32 windows and 2.70 times the voxels, or 75 and 6.33 times."""
    shape, voxels = (256, 256, 160), 256 * 256 * 160
    plan = fit(shape, (96,) * 3, multiple=16, overlap=0.25)
    assert plan.work / voxels < 1.75
    small = fit(shape, (96,) * 3, multiple=16, overlap=0.25, most=1_300_000)
    assert prod(small.size) <= 1_300_000
    assert small.work / voxels < 2.1
    fixed = fit(shape, (96,) * 3, multiple=16, overlap=0.5, tile=96)
    assert fixed.size == (96, 96, 96)
    assert fixed.count == 75
    none = fit(shape, (96,) * 3, multiple=16, overlap=0.25, most=1)
    assert none.size == (96, 96, 96)


@pytest.mark.parametrize(("overlap", "tile"), [(0.8, None), (-0.1, None), (0.25, 8), (0.25, 5000)])
def test_what_makes_no_sense(overlap: float, tile: int | None) -> None:
    with pytest.raises(UsageError):
        fit((64,) * 3, (32,) * 3, multiple=16, overlap=overlap, tile=tile)


@settings(max_examples=40)
@given(
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    trained=st.tuples(*[st.integers(2, 9)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    multiple=st.sampled_from([1, 4]),
    channels=st.integers(1, 2),
    data=st.data(),
)
def test_what_is_cut_and_blended_is_what_was_there(
    *, shape: tuple[int, ...], trained: tuple[int, ...], overlap: float, multiple: int, channels: int, data: st.DataObject
) -> None:
    plan = fit(shape, trained, multiple=multiple, overlap=overlap)
    if data.draw(st.booleans()):
        plan = in_slices(shape, plan.axes[1:], data.draw(st.integers(1, 4)))
    rng = np.random.default_rng(0)
    array = rng.normal(size=(channels, *shape)).astype(np.float32)
    result, times = np.zeros_like(array), np.zeros(shape, int)

    def done(block: np.ndarray, place: tuple[slice, slice, slice]) -> None:
        result[(slice(None), *place)] = block
        times[place] += 1

    windows = (cut(array, plan, window).copy() for window in plan.windows())
    blend(plan, windows, done, empty=lambda shape: np.full(shape, np.nan, np.float32))
    assert (times == 1).all()
    assert np.allclose(result, array, atol=1e-5)


def test_nothing_but_the_overlap_is_carried() -> None:
    plan = fit((40, 40, 40), (16,) * 3, multiple=8, overlap=0.25, tile=16)
    kept: list[int] = []

    def empty(shape: tuple[int, ...]) -> np.ndarray:
        kept.append(prod(shape))
        return np.empty(shape, np.float32)

    blend(plan, (np.ones((3, *plan.size), np.float32) for _ in plan.windows()), lambda _block, _place: None, empty=empty)
    assert sum(kept) == 3 * plan.carried
    assert plan.carried < 0.5 * 40**3


def test_one_window_has_no_weights() -> None:
    plan = Plan((Axis(8, 8, (0,)),) * 3)
    assert [weights.tolist() for weights in weights_of(plan)] == [[[1.0] * 8]] * 3
