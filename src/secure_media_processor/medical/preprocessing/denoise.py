"""Taking noise out of MR magnitudes: non-local means, which is the best of them, anisotropic diffusion and the median.

All of them take any real array and return float32 of the same shape, without a change of the input. They work on part of the
volume at a time: beside the input and the result they need some ten megabytes for each thread, and less than the volume itself.
The estimate of noise needs less than the volume too, before there is a result.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ive

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.preprocessing.mask import otsu_threshold

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Volume32: TypeAlias = NDArray[np.float32]
"""(i, j, k), float32."""
Three: TypeAlias = tuple[int, int, int]

STRENGTH = 0.8
"""h of the weights in multiples of sigma: more of it makes images smoother."""

# Planes of a block, and voxels of a plane of a block with its margin: some twelve buffers of a plane stay in the second-level
# cache of a core, and little is done twice. Measured with 2 MiB of cache; planes of half the size take a fifth longer.
_BLOCK_PLANES = 16
_BLOCK_VOXELS = 24_000
# Buffers of the size of a block that a thread has, and how much of the volume all threads together may take for them.
_BUFFERS = 8
_MOST_BUFFERS = 0.9
# Median absolute deviation of a normal distribution, in standard deviations.
_MAD = 0.6744897501960817
_ROUNDS = 100
_SETTLED = 1e-6


# ---------------------------------------------------------------------------------------------------------- non-local means


@dataclass(frozen=True, slots=True)
class _Pairs:
    """What is the same for all blocks of a volume."""

    sigma: float
    strength: float
    rician: bool
    search: Three
    patch: Three

    @property
    def margin(self) -> Three:
        """How far beyond a block values are looked at."""
        i, j, k = (s + p for s, p in zip(self.search, self.patch, strict=True))
        return i, j, k

    @property
    def offsets(self) -> list[Three]:
        """The half of the search window in which each pair of voxels comes once."""
        i, j, k = self.search
        every = product(range(i + 1), range(-j, j + 1), range(-k, k + 1))
        return [offset for offset in every if offset > (0, 0, 0)]

    @property
    def scale(self) -> np.float32:
        """Factor of values after which the sum of squared differences of a patch is its mean in units of (h sigma)²."""
        voxels = np.prod([2 * p + 1 for p in self.patch])
        return np.float32(1 / (self.strength * self.sigma * np.sqrt(voxels)))


def non_local_means(
    array: NDArray[Any],
    *,
    sigma: float | None = None,
    strength: float = STRENGTH,
    search: int = 2,
    patch: int = 1,
    noise: Literal["rician", "gaussian"] = "rician",
    threads: int | None = None,
) -> Volume32:
    """Replace each voxel by a weighted mean of those near it that have a similar neighbourhood.

    The weight of voxel m for voxel n is exp(-max(d² - 2 sigma², 0) / (h sigma)²), where d² is the mean squared difference of
    the cubes of side 2 patch + 1 around both (Buades, Coll and Morel 2005); 2 sigma² is what noise alone makes of it. For
    Rician noise squared values are averaged and their bias, 2 sigma², is taken off before the root (Wiest-Daesslé et al. 2008).
    Beyond its faces the volume is continued by reflection. As w(m, n) = w(n, m), each pair of voxels is looked at once.

    The result is the same to the last bit for any number of threads and any size of the parts that they work on.

    Args:
        array: (i, j, k), any real type, finite. Magnitudes, none below 0, if the noise is Rician. Axes of length 1 are left
            out of windows and patches, so an image of two dimensions is (i, j, 1).
        sigma: Standard deviation of the noise in the real and the imaginary part, in units of `array`; estimated if None
            (see noise_sigma). 0 gives a copy.
        strength: h.
        search: Radius of the search window in voxels: 2 for 5 voxels a side.
        patch: Radius of the patches in voxels: 1 for 3 voxels a side.
        noise: "gaussian" for anything but magnitudes of MR.
        threads: How many work at once; as many as this process may use of the cores if None.

    Raises:
        ImageError: a value is not finite, or negative and the noise Rician.
        UsageError: a setting makes no sense.
    """
    _check_volume(array)
    if strength <= 0 or search < 1 or patch < 0 or (sigma is not None and not 0 <= sigma < np.inf):
        raise UsageError("strength and search are more than 0, patch and sigma not less")
    if noise == "rician" and array.size and array.min() < 0:
        hint = "take noise out before values are normalised; for images that are no magnitudes, the noise is gaussian"
        raise ImageError("it has values below 0, which Rician noise cannot have", hint=hint)
    found = noise_sigma(array, noise=noise) if sigma is None else float(sigma)
    result = np.empty_like(array, np.float32)
    if found == 0 or array.size == 0:
        result[...] = array
        return result
    pairs = _Pairs(found, strength, noise == "rician", _within(search, array.shape), _within(patch, array.shape))

    def work(block: tuple[slice, slice]) -> None:
        result[block] = _mean_of_block(_padded(array, block, pairs.margin), pairs)

    blocks = _blocks(array.shape, pairs.margin)
    with ThreadPoolExecutor(threads or _threads(array.size, blocks[0], array.shape[2]), "denoise") as pool:
        for _ in pool.map(work, blocks):
            pass
    return result


def _threads(voxels: int, block: tuple[slice, slice], width: int) -> int:
    """Return how many threads work at once: those that there are cores for, and whose buffers stay below the volume's size."""
    own = _BUFFERS * block[0].stop * block[1].stop * width
    return max(1, min(len(os.sched_getaffinity(0)), int(_MOST_BUFFERS * voxels / own)))


def _within(radius: int, shape: Sequence[int]) -> Three:
    i, j, k = (min(radius, n - 1) for n in shape)
    return i, j, k


def _blocks(shape: Sequence[int], margin: Three) -> list[tuple[slice, slice]]:
    """Return parts of the first two axes; the last axis is never cut, so that rows stay long."""
    rows = max(16, _BLOCK_VOXELS // (shape[2] + 2 * margin[2]) - 2 * margin[1])
    return [
        (slice(i, min(i + _BLOCK_PLANES, shape[0])), slice(j, min(j + rows, shape[1])))
        for i in range(0, shape[0], _BLOCK_PLANES)
        for j in range(0, shape[1], rows)
    ]


def _padded(array: NDArray[Any], block: tuple[slice, slice], margin: Three) -> Volume32:
    """Return a block with its margin as float32."""
    parts = (*block, slice(0, array.shape[2]))
    places = [
        _reflected(np.arange(part.start - m, part.stop + m), n) for part, m, n in zip(parts, margin, array.shape, strict=True)
    ]
    return array[np.ix_(*places)].astype(np.float32)


def _reflected(places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return indices from 0 to count - 1 for any place; beyond the ends it goes back: 2 1 0 1 2."""
    if count == 1:
        return np.zeros_like(places)
    around = places % (2 * count - 2)
    return np.minimum(around, 2 * count - 2 - around)


def _mean_of_block(padded: Volume32, pairs: _Pairs) -> Volume32:
    """Return the means for a block, without its margin.

    Everything is kept as one row of numbers, in which a neighbour is a fixed number of places away: that makes long loops of
    every operation. What then lies beyond a row or a plane is wrong in the margin only, and the margin is thrown away.
    """
    planes, rows, width = padded.shape
    plane = rows * width
    reach = (pairs.search[0] + 1) * plane + (pairs.search[1] + pairs.patch[1] + 1) * width + sum(pairs.margin)
    signal, value, total, weight = (np.zeros(padded.size + 2 * reach, np.float32) for _ in range(4))
    inner = slice(reach, reach + padded.size)
    np.multiply(padded.reshape(-1), pairs.scale, out=signal[inner])
    value[inner] = padded.reshape(-1)
    if pairs.rician:
        value *= value
    total[...] = value
    weight[...] = 1
    kept = _Flat(signal, value, total, weight, reach, planes, rows, width)
    for offset in pairs.offsets:
        _add_pairs(kept, offset, pairs)
    mean = np.divide(total[inner], weight[inner])
    if pairs.rician:
        mean -= np.float32(2 * pairs.sigma**2)
        np.maximum(mean, 0, out=mean)
        np.sqrt(mean, out=mean)
    cut = tuple(slice(m, n - m) for m, n in zip(pairs.margin, padded.shape, strict=True))
    return mean.reshape(padded.shape)[cut]


@dataclass(frozen=True, slots=True)
class _Flat:
    """A block as rows of numbers, each with `start` places before and after it."""

    signal: Volume32
    value: Volume32
    total: Volume32
    """Sum of weight times value so far."""
    weight: Volume32
    start: int
    planes: int
    rows: int
    width: int


def _add_pairs(block: _Flat, offset: Three, pairs: _Pairs) -> None:
    """Add all pairs of voxels that lie `offset` apart to the sums of both."""
    search, patch = pairs.search, pairs.patch
    plane = block.rows * block.width
    away = (offset[0] * block.rows + offset[1]) * block.width + offset[2]
    first = patch[1] * block.width  # rows in which no pair has a voxel of the block are left out
    count = plane - 2 * first
    least = np.float32(2 / pairs.strength**2)
    around = patch[1] * block.width + patch[2]
    scratch = np.empty((2, count + 2 * around), np.float32)
    ring = np.empty((2 * patch[0] + 1, count), np.float32)  # sums over patches within a plane, of the last planes
    low = pairs.margin[0] - offset[0] - patch[0]
    for number in range(low, block.planes - search[0]):
        at = block.start + number * plane + first
        _patch_sums(block, (at, away), patch, scratch, ring[number % len(ring)])
        if number - low < 2 * patch[0]:
            continue
        at -= patch[0] * plane
        weights, product = scratch[0, :count], scratch[1, :count]
        _add_all([ring[(number - n) % len(ring)] for n in range(len(ring))], weights)
        np.subtract(least, weights, out=weights)
        np.minimum(weights, 0, out=weights)
        np.exp(weights, out=weights)
        here, there = slice(at, at + count), slice(at + away, at + away + count)
        for to, of in ((here, there), (there, here)):
            block.weight[to] += weights
            np.multiply(weights, block.value[of], out=product)
            block.total[to] += product


def _patch_sums(block: _Flat, pair: tuple[int, int], patch: Three, scratch: Volume32, out: Volume32) -> None:
    """Sum squared differences of voxels and their partners over the part of a patch that lies in one plane.

    Args:
        block: The block.
        pair: Where the first voxel is, and how many places away its partner.
        patch: Radius of patches.
        scratch: Two rows that are overwritten.
        out: Gets the sums.
    """
    at, away = pair
    around = patch[1] * block.width + patch[2]
    here = slice(at - around, at + len(out) + around)
    squares, sums = scratch
    np.subtract(block.signal[here], block.signal[here.start + away : here.stop + away], out=squares)
    np.multiply(squares, squares, out=squares)
    row = len(squares) - 2 * patch[2]
    _add_all([squares[n : n + row] for n in range(2 * patch[2] + 1)], sums[:row])
    _add_all([sums[n * block.width : n * block.width + len(out)] for n in range(2 * patch[1] + 1)], out)


def _add_all(parts: Sequence[Volume32], out: Volume32) -> None:
    if len(parts) == 1:
        out[...] = parts[0]
        return
    np.add(parts[0], parts[1], out=out)
    for part in parts[2:]:
        np.add(out, part, out=out)


# ------------------------------------------------------------------------------------------------------- how much noise it is


def noise_sigma(array: NDArray[Any], *, noise: Literal["rician", "gaussian"] = "rician") -> float:
    """Estimate the standard deviation of the noise in the real and the imaginary part of an MR image, from its object.

    The method of Coupé et al. 2010 (Medical Image Analysis 14): the median absolute value of the finest diagonal wavelet
    coefficients (Haar) in the object, without the half of it with the steepest gradients, divided by 0.6745; for Rician noise
    corrected by the signal-to-noise ratio (Koay and Basser 2006). The object is what is brighter than Otsu's threshold. Images
    that were interpolated to a finer grid, as scanners often do, have less noise in these coefficients than overall: the
    estimate is then too low.

    Returns:
        0 for a constant image, and for one without a pair of voxels along any axis.

    Raises:
        ImageError: a value is not finite.
    """
    _check_volume(array)
    if max(array.shape) == 1 or array.size == 0:
        return 0.0
    mean, detail = _haar(array)
    if mean.min() == mean.max():
        return 0.0
    inside = mean > otsu_threshold(mean) if noise == "rician" else np.ones_like(mean, bool)
    steep = np.zeros_like(mean)
    for axis, n in enumerate(mean.shape):
        if n > 1:
            steep += np.gradient(mean, axis=axis) ** 2
    if not inside.any():
        return 0.0
    flat = inside & (steep <= np.median(steep[inside]))
    sigma = float(np.median(np.abs(detail[flat]))) / _MAD
    return sigma if noise == "gaussian" or sigma == 0 else _corrected(sigma, float(mean[inside].mean(dtype=np.float64)))


def _haar(array: NDArray[Any]) -> tuple[Volume32, Volume32]:
    """Return the mean of each cube of 2 voxels a side, and its diagonal detail: for white noise of the same deviation."""
    axes = [(0, 1) if n > 1 else (0,) for n in array.shape]
    stops = [n - n % 2 if n > 1 else 1 for n in array.shape]
    shape = [stop // len(places) for stop, places in zip(stops, axes, strict=True)]
    mean, detail = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for corner in product(*axes):
        part = array[tuple(slice(c, s, len(p)) for c, s, p in zip(corner, stops, axes, strict=True))]
        part = part.astype(np.float32)
        mean += part
        if sum(corner) % 2:
            detail -= part
        else:
            detail += part
    corners = np.prod([len(places) for places in axes])
    mean /= np.float32(corners)
    detail /= np.float32(np.sqrt(corners))
    return mean, detail


def _corrected(deviation: float, mean: float) -> float:
    """Return sigma of Rician noise from the deviation and the mean of magnitudes (Koay and Basser 2006, equation 18)."""
    factor = 1.0
    for _ in range(_ROUNDS):
        square = max(factor * (1 + (mean / deviation) ** 2) - 2, 0.0)  # of the ratio of signal to noise
        bessel = (2 + square) * ive(0, square / 4) + square * ive(1, square / 4)
        found = float(2 + square - np.pi / 8 * bessel**2)
        if abs(found - factor) <= _SETTLED:
            break
        factor = found
    return float(deviation / np.sqrt(factor))


# -------------------------------------------------------------------------------------------------------- the quicker methods


def anisotropic_diffusion(
    array: NDArray[Any],
    spacing: tuple[float, float, float],
    *,
    iterations: int = 5,
    conductance: float = 1.0,
    step: float | None = None,
) -> Volume32:
    """Smooth where values differ little and keep edges (Perona and Malik 1990, IEEE PAMI 12(7), equations 7 and 8).

    Between two neighbours flows their gradient g times exp(-g² / (2 c² m)), where m is the mean over the volume of the squared
    length of the gradient, as in ITK's filter, and c the conductance. ITK's filter needs three volumes of memory beside
    the input and ten times as long; this one needs the result and some planes.

    Args:
        array: (i, j, k), any real type, finite.
        spacing: mm along i, j, k; gradients are per mm.
        iterations: How many steps in time.
        conductance: c: what is much steeper than c times the usual gradient is kept as an edge.
        step: Of time, mm². At most 1 / (2 / a² + 2 / b² + 2 / c²) for a spacing of a, b, c: then no value becomes larger or
            smaller than all of those around it. Half of that if None.

    Raises:
        ImageError: a value is not finite.
        UsageError: a setting makes no sense, or the step is too long.
    """
    _check_volume(array)
    if min(spacing) <= 0 or iterations < 1 or conductance <= 0:
        raise UsageError("spacing, iterations and conductance are more than 0")
    longest = 1 / sum(2 / size**2 for size, n in zip(spacing, array.shape, strict=True) if n > 1 or array.size <= 1)
    if step is not None and not 0 < step <= longest:
        raise UsageError(f"a step of {step:g} mm² is not stable: it is more than 0 and at most {longest:g} with this spacing")
    result = array.astype(np.float32)
    for _ in range(iterations if array.size else 0):
        mean = sum(_squared_gradients(part, spacing) for _, part in _with_neighbours(result)) / array.size
        if mean == 0:
            break
        for planes, part in _with_neighbours(result):
            result[planes] += np.float32(step or longest / 2) * _inflow(part, spacing, 2 * conductance**2 * mean)
    return result


def _with_neighbours(volume: Volume32) -> Iterator[tuple[slice, Volume32]]:
    """Yield planes of the first axis and a copy of them with a plane more on both sides: the outermost ones are repeated.

    Planes may be changed between one part and the next, which still gets its neighbour as it was.
    """
    before = volume[:1].copy()
    for start in range(0, len(volume), _BLOCK_PLANES):
        planes = slice(start, min(start + _BLOCK_PLANES, len(volume)))
        after = volume[planes.stop : planes.stop + 1] if planes.stop < len(volume) else volume[-1:]
        part = np.concatenate([before, volume[planes], after])
        before = part[-2:-1]
        yield planes, part


def _squared_gradients(part: Volume32, spacing: Sequence[float]) -> float:
    """Return the sum of squared differences per mm between the voxels of a part and the next ones along each axis."""
    total = 0.0
    for axis, size in enumerate(spacing):
        rise = np.diff(part[1:] if axis == 0 else part[1:-1], axis=axis)
        total += float(np.vdot(rise, rise)) / size**2
    return total


def _inflow(part: Volume32, spacing: Sequence[float], scale: float) -> Volume32:
    """Return what flows into each voxel of a part, without its first and last plane, in a unit of time."""
    inflow = np.zeros_like(part[1:-1])
    for axis, size in enumerate(spacing):
        flow = np.diff(part if axis == 0 else part[1:-1], axis=axis)
        factor = flow * flow
        factor *= np.float32(-1 / (scale * size**2))
        np.exp(factor, out=factor)
        factor *= np.float32(1 / size**2)
        flow *= factor
        if axis == 0:
            inflow += flow[1:]
            inflow -= flow[:-1]
        else:
            ahead, behind = (tuple(cut if n == axis else slice(None) for n in range(3)) for cut in (slice(-1), slice(1, None)))
            inflow[ahead] += flow
            inflow[behind] -= flow
    return inflow


def median(array: NDArray[Any], *, radius: int = 1) -> Volume32:
    """Replace each voxel by the median of the cube of side 2 radius + 1 around it; beyond its faces the volume is reflected.

    Raises:
        ImageError: a value is not finite.
        UsageError: the radius is less than 1.
    """
    _check_volume(array)
    if radius < 1:
        raise UsageError("a radius is a number of voxels from 1")
    result = np.empty_like(array, np.float32)
    sizes = [2 * min(radius, n - 1) + 1 for n in array.shape]
    for start in range(0, array.shape[0], _BLOCK_PLANES):
        stop = min(start + _BLOCK_PLANES, array.shape[0])
        low, high = max(0, start - radius), min(array.shape[0], stop + radius)
        part = ndimage.median_filter(array[low:high].astype(np.float32), sizes)
        result[start:stop] = part[start - low : stop - low]
    return result


def _check_volume(array: NDArray[Any]) -> None:
    if array.ndim != 3:  # noqa: PLR2004 - a volume
        raise ImageError(f"it has the shape {array.shape}, which is not that of a volume")
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ImageError("it has values that are no finite numbers")
