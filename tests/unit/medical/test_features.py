"""First-order features against the reference values of IBSI, and curves of a contrast medium."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.preprocessing.features import first_order, kinetics

# The digital phantom of IBSI (reference manual, section 5.1): 74 voxels in the region, by gray level.
LEVELS = {1: 50, 3: 1, 4: 16, 6: 7}


def test_digital_phantom_of_ibsi():
    values = np.repeat(list(LEVELS), list(LEVELS.values())).reshape(1, 1, -1)
    found = first_order(values, np.ones(values.shape, bool), bins=6)
    # Values of the reference manual, with its digits.
    assert found.voxels == 74
    assert found.mean == pytest.approx(2.15, abs=0.005)
    assert found.standard_deviation**2 == pytest.approx(3.05, abs=0.005)
    assert found.skewness == pytest.approx(1.08, abs=0.005)
    assert found.excess_kurtosis == pytest.approx(-0.355, abs=0.0005)
    assert (found.median, found.minimum, found.percentile_10, found.percentile_90, found.maximum) == (1, 1, 1, 4, 6)
    assert found.interquartile_range == 3
    assert found.entropy == pytest.approx(1.27, abs=0.005)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=40))
def test_they_are_scipys(values):
    x = np.array(values, np.float64).reshape(1, 1, -1)
    found = first_order(x, np.ones(x.shape, bool))
    assert found.median == pytest.approx(np.median(x), abs=1e-6)
    if x.std() > 1e-3:
        assert found.skewness == pytest.approx(stats.skew(x.ravel()), abs=1e-6)
        assert found.excess_kurtosis == pytest.approx(stats.kurtosis(x.ravel()), abs=1e-6)
    assert 0 <= found.entropy <= 5


def test_same_values_have_no_shape():
    x = np.full((2, 2, 2), 5.0)
    found = first_order(x, np.ones(x.shape, bool))
    assert (found.standard_deviation, found.skewness, found.excess_kurtosis, found.entropy) == (0, 0, 0, 0)


def test_only_the_mask_counts():
    x = np.arange(8.0).reshape(2, 2, 2)
    x[0, 0, 0] = np.nan
    assert first_order(x, x >= 6).mean == 6.5
    with pytest.raises(ImageError, match="finite"):
        first_order(x, np.ones(x.shape, bool))
    with pytest.raises(ImageError, match="empty"):
        first_order(x, np.zeros(x.shape, bool))
    with pytest.raises(UsageError):
        first_order(x, np.ones((2, 2), bool))


def test_curves():
    washout = kinetics([100, 200, 150], [0, 60, 180])
    assert washout.enhancement == (0, 100, 50)
    assert (washout.wash_in, washout.wash_out, washout.curve, washout.early_phase) == (100, -25, "washout", 1)
    assert kinetics([100, 200, 205], [0, 60, 180]).curve == "plateau"
    assert kinetics([100, 150, 200], [0, 60, 180]).curve == "persistent"


def test_early_peak_is_early():
    found = kinetics([100, 150, 160, 300], [0, 60, 120, 600])
    assert found.early_phase == 2
    assert found.wash_in == pytest.approx(30)
    late = kinetics([100, 150, 160], [0, 300, 600])
    assert late.early_phase == 1


def test_curves_without_times_have_no_slopes():
    found = kinetics([100, 180, 120], None)
    assert (found.wash_in, found.wash_out, found.curve) == (None, None, "washout")
    two = kinetics([100, 180], [0, 90])
    assert (two.wash_out, two.curve) == (None, None)
    assert two.wash_in == pytest.approx(80 / 1.5)


def test_curves_that_cannot_be():
    with pytest.raises(ImageError, match="no signal"):
        kinetics([0, 5], None)
    for signal, times in (([1], None), ([1, 2], [0])):
        with pytest.raises(UsageError):
            kinetics(signal, times)
