"""First-order features of a region, and how it takes up a contrast medium.

Names and definitions are those of the Image Biomarker Standardisation Initiative (IBSI reference manual, arXiv:1612.07003v11,
sections 3.3 and 3.4; Zwanenburg et al. 2020, Radiology 295).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from secure_media_processor.errors import ImageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

EARLY = 120.0
"""Seconds: the early peak is looked for up to here, or in the first phase after the contrast medium if that comes later."""
CURVE = 10.0
"""Percent of change after the early peak up to which a curve is a plateau (BI-RADS, as commonly applied)."""


@dataclass(frozen=True, slots=True)
class FirstOrder:
    """Statistics of the intensities in a region, in their unit where no other is named. Each with its code in IBSI."""

    voxels: int
    mean: float
    """Q4LE"""
    standard_deviation: float
    """Square root of the variance (ECT3), which is that of the population: divided by the number of voxels."""
    skewness: float
    """KE2A; 0 if all values are the same."""
    excess_kurtosis: float
    """IPH6; 0 for a normal distribution, and if all values are the same."""
    median: float
    """Y12H"""
    minimum: float
    """1GSF"""
    percentile_10: float
    """QG58"""
    percentile_90: float
    """8DWT"""
    maximum: float
    """84IY"""
    interquartile_range: float
    """SALO"""
    entropy: float
    """Discretised intensity entropy (TLU2), bits, of a fixed number of bins (FBN) between minimum and maximum."""
    bins: int
    """How many."""


@dataclass(frozen=True, slots=True)
class Kinetics:
    """How the mean signal of a region changes, in percent of what it is before the contrast medium."""

    signal: tuple[float, ...]
    """Mean of each phase, in the unit of the image."""
    enhancement: tuple[float, ...]
    """Percent, of each phase; the first is 0."""
    early_phase: int
    """Index of the phase with the early peak."""
    wash_in: float | None
    """Percent per minute from the first phase to the early peak; None without times."""
    wash_out: float | None
    """Percent per minute from the early peak to the last phase, negative if signal is lost; None without times, or if the early
    peak is in the last phase."""
    curve: Literal["persistent", "plateau", "washout"] | None
    """By the change from the early peak to the last phase in percent of the early peak: more than 10, between, less than -10.
    None if the early peak is in the last phase."""


def first_order(array: NDArray[Any], mask: NDArray[np.bool_], *, bins: int = 32) -> FirstOrder:
    """Return the statistics of `array` where `mask`, of the same shape, is true.

    Raises:
        ImageError: the mask is empty, or a value in it is not finite.
        UsageError: shapes do not fit, or there is no bin.
    """
    if mask.shape != array.shape or bins < 1:
        raise UsageError("the mask has the shape of the volume, and there is at least one bin")
    values = array[mask].astype(np.float64)
    if values.size == 0:
        raise ImageError("the region is empty")
    if not np.isfinite(values).all():
        raise ImageError("the region has values that are no finite numbers")
    mean = float(values.mean())
    low, p10, p25, median, p75, p90, high = (float(x) for x in np.percentile(values, [0, 10, 25, 50, 75, 90, 100]))
    away = values - mean
    variance = float(np.mean(away**2)) if high > low else 0.0
    counts = np.histogram(values, bins, (low, high))[0] if high > low else np.array([values.size])
    part = counts[counts > 0] / values.size
    return FirstOrder(
        voxels=int(values.size),
        mean=mean,
        standard_deviation=variance**0.5,
        skewness=float(np.mean(away**3)) / variance**1.5 if variance else 0.0,
        excess_kurtosis=float(np.mean(away**4)) / variance**2 - 3 if variance else 0.0,
        median=median,
        minimum=low,
        percentile_10=p10,
        percentile_90=p90,
        maximum=high,
        interquartile_range=p75 - p25,
        entropy=abs(float(-(part * np.log2(part)).sum())),
        bins=bins,
    )


def kinetics(signal: Sequence[float], times: Sequence[float] | None) -> Kinetics:
    """Describe the curve of a region.

    Args:
        signal: Mean of each phase; the first is before the contrast medium, and above 0.
        times: Seconds from the first phase, ascending; without them phases count, and there are no slopes.

    Raises:
        ImageError: there is no signal before the contrast medium.
        UsageError: numbers do not fit.
    """
    if len(signal) < 2 or (times is not None and len(times) != len(signal)):  # noqa: PLR2004 - before and after
        raise UsageError("there are at least two phases, and a time for each")
    before = float(signal[0])
    if not before > 0:
        raise ImageError("the region has no signal before the contrast medium, so enhancement cannot be measured")
    percent = tuple(100 * (float(value) / before - 1) for value in signal)
    early = [n for n in range(1, len(signal)) if times is not None and times[n] <= times[0] + EARLY] or [1]
    peak = max(early, key=lambda n: (percent[n], -n))
    last = len(signal) - 1
    wash_in = wash_out = None
    if times is not None:
        wash_in = percent[peak] / ((times[peak] - times[0]) / 60)
        wash_out = (percent[last] - percent[peak]) / ((times[last] - times[peak]) / 60) if last > peak else None
    change = 100 * (float(signal[last]) / float(signal[peak]) - 1) if signal[peak] > 0 else 0.0
    curve: Literal["persistent", "plateau", "washout"] | None = None
    if last > peak:
        curve = "persistent" if change > CURVE else "washout" if change < -CURVE else "plateau"
    return Kinetics(tuple(map(float, signal)), percent, peak, wash_in, wash_out, curve)
