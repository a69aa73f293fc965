"""The bias field of MR images: brightness that comes from the coils and not from the tissue, found by N4 and divided out.

Source: Tustison et al. 2010, "N4ITK: improved N3 bias correction", IEEE Transactions on Medical Imaging 29(6), in the
implementation of ITK. It is found on a coarse grid, as it is smooth: a finer one costs many times as much and finds the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import SimpleITK as sitk  # noqa: N813 - everybody calls it so
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.preprocessing.mask import otsu_threshold

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Volume32: TypeAlias = NDArray[np.float32]
"""(i, j, k), float32."""
Spacing: TypeAlias = tuple[float, float, float]
"""mm between voxels along i, j, k."""

ITERATIONS = (50, 50, 50, 50)
"""The most of them on each level; each level has a spline of half the distance between knots."""
THRESHOLD = 1e-3
"""A level ends when the field changes by less: coefficient of variation of the ratio of two steps, as ITK measures it."""
# An axis is not shrunk below this many voxels: thick slices are few.
_FEWEST = 32
# In the mask, on the coarse grid: with fewer voxels a histogram of 200 bins says nothing.
_FEWEST_VOXELS = 100
_PLANES = 16


@dataclass(frozen=True, slots=True)
class BiasField:
    """A smooth field of natural logarithms, kept on a coarse grid."""

    shape: tuple[int, int, int]
    """Of the volume that it belongs to."""
    coarse: Volume32
    """(I, J, K): the field at some voxels."""
    places: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
    """Which ones: indices along each axis of the volume."""
    level: float = 0.0
    """Mean of the field in the mask: it is taken off, as the brightness of the whole cannot be known."""

    def slabs(self, planes: int = _PLANES) -> Iterator[tuple[slice, Volume32]]:
        """Yield the field for `planes` planes of the first axis at a time: their indices and (planes, J, K) float32.

        Between the voxels of the coarse grid it is a cubic spline.
        """
        ways = [_spline(at, n) for at, n in zip(self.places, self.shape, strict=True)]
        flat = np.einsum("ijk,bj,ck->ibc", self.coarse, ways[1], ways[2], optimize=True)
        rows = flat.reshape(len(flat), -1)
        for start in range(0, self.shape[0], planes):
            part = slice(start, min(start + planes, self.shape[0]))
            values = (ways[0][part] @ rows).reshape(-1, *self.shape[1:])
            values -= np.float32(self.level)
            yield part, values


def n4(
    array: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    spacing: Spacing,
    *,
    shrink: int = 4,
    iterations: Sequence[int] = ITERATIONS,
) -> tuple[Volume32, Volume32]:
    """Divide the bias field out of an MR volume.

    The same call gives the same result; with another number of cores the last digits may differ, as sums are formed in
    another order. Beside input and results it needs about a third of the volume.

    Args:
        array: (i, j, k), magnitudes of any real type. What is not above 0 tells nothing and is left out of the search. An image
            of two dimensions is (i, j, 1).
        mask: Where the field is sought, of the shape of `array`; what is brighter than Otsu's threshold if None. The field is
            continued beyond it, and there it is a guess. A mask of the brain alone gives a better field than one of the head.
        spacing: mm along i, j, k.
        shrink: Every how many voxels along an axis are looked at; less where an axis would be left with fewer than 32.
        iterations: The most on each level.

    Returns:
        The corrected volume, and the natural logarithm of the field, of mean 0 in the mask: corrected = array / exp(field).

    Raises:
        ImageError: a value is not finite; there is nothing above 0 in the mask.
        UsageError: shapes do not fit, or a setting makes no sense.
    """
    field = bias_field(array, mask, spacing, shrink=shrink, iterations=iterations)
    logarithm = np.empty_like(array, np.float32)
    return divided(array, field, logarithm=logarithm), logarithm


def divided(
    array: NDArray[Any], field: BiasField, *, out: Volume32 | None = None, logarithm: Volume32 | None = None
) -> Volume32:
    """Divide a volume by a field, float32; `out` may be the volume itself, which then needs no more memory.

    Where there is a `logarithm`, the natural logarithm of the field is written into it.
    """
    corrected = np.empty_like(array, np.float32) if out is None else out
    for part, values in field.slabs():
        if logarithm is not None:
            logarithm[part] = values
        np.divide(array[part], np.exp(values), out=corrected[part], casting="same_kind")
    return corrected


def bias_field(
    array: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    spacing: Spacing,
    *,
    shrink: int = 4,
    iterations: Sequence[int] = ITERATIONS,
) -> BiasField:
    """Find the field alone, on its coarse grid; arguments and errors as for n4."""
    _check(array, mask, spacing, shrink, iterations)
    places = tuple(_places(n, shrink) for n in array.shape)
    grid = np.ix_(*places)
    values = array[grid].astype(np.float32)
    threshold = max(0.0, otsu_threshold(values)) if mask is None else 0.0
    inside = values > threshold if mask is None else mask[grid] & (values > 0)
    if np.count_nonzero(inside) < _FEWEST_VOXELS:
        hint = "check the mask: the field is sought in it" if mask is not None else "give a mask with --mask"
        raise ImageError("too little in it is above 0 to find a bias field", hint=hint)
    values[values <= 0] = 1  # outside of the mask: it only needs to have a logarithm
    steps = [float(at[1] - at[0]) * size if len(at) > 1 else size for at, size in zip(places, spacing, strict=True)]
    coarse = _found(values, inside, steps, iterations)
    field = BiasField(
        (array.shape[0], array.shape[1], array.shape[2]),
        coarse,
        (places[0].astype(np.float64), places[1].astype(np.float64), places[2].astype(np.float64)),
    )
    return BiasField(field.shape, field.coarse, field.places, _level(field, array, mask, threshold))


def _check(
    array: NDArray[Any], mask: NDArray[np.bool_] | None, spacing: Spacing, shrink: int, iterations: Sequence[int]
) -> None:
    if array.ndim != 3 or 0 in array.shape:  # noqa: PLR2004 - a volume
        raise ImageError(f"it has the shape {array.shape}, which is not that of a volume")
    if sum(n > 1 for n in array.shape) < 2:  # noqa: PLR2004 - a line has no field
        raise ImageError("it is a single row of voxels")
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ImageError("it has values that are no finite numbers")
    if mask is not None and (mask.shape != array.shape or mask.dtype != np.bool_):
        raise UsageError(f"the mask has the shape {mask.shape} and is {mask.dtype}; {array.shape} and bool are needed")
    if min(spacing) <= 0 or shrink < 1 or not iterations or min(iterations) < 1:
        raise UsageError("spacing is more than 0, shrink and iterations are numbers from 1")


def _places(count: int, shrink: int) -> NDArray[np.int64]:
    """Return which of `count` voxels are looked at: every so many, with as much left over before as after."""
    factor = max(1, min(shrink, count // _FEWEST))
    first = (count - 1) % factor // 2
    return np.arange(first, count, factor)


def _image(values: NDArray[Any], steps: Sequence[float]) -> sitk.Image:
    """Return an image of ITK, which has the axes the other way round; axes of length 1 are left out."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.squeeze().T))
    image.SetSpacing([step for step, n in zip(steps, values.shape, strict=True) if n > 1])
    return image


def _found(values: Volume32, inside: NDArray[np.bool_], steps: Sequence[float], iterations: Sequence[int]) -> Volume32:
    """Run N4 and return its field at the same voxels."""
    image = _image(values, steps)
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([int(n) for n in iterations])
    corrector.SetConvergenceThreshold(THRESHOLD)
    corrector.SetMaskLabel(1)
    corrector.SetNumberOfThreads(len(os.sched_getaffinity(0)))
    try:
        corrector.Execute(image, _image(inside.astype(np.uint8), steps))
    except RuntimeError as error:
        raise ImageError("N4 cannot work on it: the volume or the mask is too small, or all values are the same") from error
    field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    return field.astype(np.float32).T.reshape(values.shape)


def _level(field: BiasField, array: NDArray[Any], mask: NDArray[np.bool_] | None, threshold: float) -> float:
    """Return the mean of the field in the mask."""
    total, count = 0.0, 0
    for part, values in field.slabs():
        inside = array[part] > threshold if mask is None else mask[part]
        total += float(values.sum(where=inside, dtype=np.float64))
        count += int(np.count_nonzero(inside))
    return total / count


def _spline(places: NDArray[np.float64], count: int) -> NDArray[np.float32]:
    """Return the matrix (count, len(places)) from values at `places` to those at 0 … count - 1: a cubic spline through them."""
    if len(places) == 1:
        return np.ones((count, 1), np.float32)
    spline = make_interp_spline(places, np.eye(len(places)), k=min(3, len(places) - 1))
    return np.asarray(spline(np.arange(count)), np.float32)
