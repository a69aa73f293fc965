"""Laying the average head over a head in an image of any contrast, and telling whether it fits.

Affine, by Mattes' mutual information (Mattes et al. 2001), on voxels of about 3 mm, from several starts. What decides is not
how well the outlines meet, which they do for any round thing, but how much the inside of one head tells of that of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name under which everybody knows it
from scipy import ndimage

from secure_media_processor.medical.deid.defacing.template import read_template

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

VOXEL = 3.0
"""mm: finer voxels did not place the face better, and cost more."""
ENOUGH = 0.07
"""Normalised mutual information within the head from which on the fit is believed. Of a real head in 15 poses, contrasts and
fields of view, good fits gave 0.085 to 0.17; of heads that were turned round, cut to the brain, or none, at most 0.04."""
_SURE = 0.10  # no other start is tried then
_BINS = 24
_LEAST_INSIDE = 3e5  # mm³ of the inside of the head that must be in the image: less proves nothing
_SCALES = (0.6, 1.6)  # of a head against the template's along any axis: from small children to large men
_ERODED, _CLOSED = 12.0, 9.0  # mm
_SAMPLED, _SEED, _STEPS = 0.3, 1, 200


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    """Voxels with their place in the patient."""

    array: NDArray[np.float32]
    """Shape (i, j, k)."""
    affine: NDArray[np.float64]
    """(4, 4): voxel → mm, LPS; its columns need not be perpendicular."""

    @property
    def image(self) -> sitk.Image:
        """The voxels for SimpleITK, which knows perpendicular axes only: any shear is taken out, see `straight`."""
        image = sitk.GetImageFromArray(np.ascontiguousarray(self.array.T))
        straight = self.straight
        spacing = np.linalg.norm(straight[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((straight[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(straight[:3, 3].tolist())
        return image

    @property
    def straight(self) -> NDArray[np.float64]:
        """(4, 4): the nearest matrix to `affine` whose axes are perpendicular."""
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        left, _, right = np.linalg.svd(self.affine[:3, :3] / spacing)
        straight = self.affine.copy()
        straight[:3, :3] = (left @ right) * spacing
        return straight

    def like(self, array: NDArray[np.generic]) -> _Placed:
        """Return other values at the same places."""
        return _Placed(array.astype(np.float32), self.affine)


@dataclass(frozen=True, slots=True, eq=False)
class _SmallTemplate:
    head: _Placed
    outline: _Placed
    """1 within the head."""
    inside: _Placed
    """1 deep within the head, where mostly brain is."""


def find_head(array: NDArray[np.float32], affine: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return where the template's head is in an image, or None if there is no head, or none that is surely found.

    Args:
        array: Values, shape (i, j, k), finite, voxels of about VOXEL mm; any contrast, air without much signal.
        affine: (4, 4): voxel → mm, LPS.

    Returns:
        (4, 4): mm in the patient, LPS → voxel (i, j, k) of the template. The same input gives the same matrix, bit for bit.
    """
    fixed = _Placed(array, affine)
    outline = _outline(fixed)
    if outline is None:
        return None
    fixed = _cropped(fixed, outline)
    outline = _cropped(outline, outline)
    best, most = None, ENOUGH
    for start in _starts(outline):
        placed = _register(fixed, start)
        if placed is None:
            continue
        fit = _fit(fixed, placed)
        if fit >= most:
            best, most = placed, fit
        if most >= _SURE:
            break
    if best is None:
        return None
    # SimpleITK saw the image without its shear: out of the patient into voxels, and from there into the straightened image.
    straightened = fixed.straight @ np.linalg.inv(fixed.affine)
    return np.linalg.inv(read_template().affine) @ _matrix(best) @ straightened


@cache
def _small_template() -> _SmallTemplate:
    template = read_template()
    factors = [max(1, round(VOXEL / size)) for size in np.linalg.norm(template.affine[:3, :3], axis=0)]
    placed = _Placed(shrunken(template.head, factors), shrunken_affine(template.affine, factors))
    outline = _outline(placed)
    if outline is None:
        raise AssertionError("the template shows a head")
    deep = ndimage.binary_erosion(outline.array > 0, iterations=round(_ERODED / VOXEL))
    return _SmallTemplate(placed, outline, placed.like(deep))


def shrunken(array: NDArray[np.float32], factors: Sequence[int]) -> NDArray[np.float32]:
    """Return means of blocks of voxels. What is over at the far ends is left out.

    Args:
        array: Any number of axes.
        factors: Voxels of a block along each axis: at least 1, and no more than there are.
    """
    counts = [size // factor for size, factor in zip(array.shape, factors, strict=True)]
    kept = array[tuple(slice(count * factor) for count, factor in zip(counts, factors, strict=True))]
    blocks = kept.reshape([n for pair in zip(counts, factors, strict=True) for n in pair])
    means: NDArray[np.float32] = blocks.mean(axis=tuple(range(1, 2 * array.ndim, 2)), dtype=np.float32)
    return means


def shrunken_affine(affine: NDArray[np.float64], factors: Sequence[int]) -> NDArray[np.float64]:
    """Return where blocks of voxels lie.

    Args:
        affine: (4, 4): voxel → mm.
        factors: Voxels of a block along each of the three axes.
    """
    moved = affine.copy()
    moved[:3, :3] *= factors
    moved[:3, 3] = (affine @ np.array([*((factor - 1) / 2 for factor in factors), 1.0]))[:3]
    return moved


def _outline(placed: _Placed) -> _Placed | None:
    """Return the largest thing in the image, filled; None if nothing stands out."""
    low, high = float(placed.array.min()), float(placed.array.max())
    if not low < high:
        return None
    # A copy, here and below: a view of an image that is gone is memory of somebody else.
    mask = sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(placed.array), 0, 1)) > 0
    labels, count = ndimage.label(mask)
    if not count:
        return None
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    steps = [max(1, round(_CLOSED / size)) for size in np.linalg.norm(placed.affine[:3, :3], axis=0)]
    wide = np.pad(largest, max(steps))
    closed = ndimage.binary_closing(wide, iterations=min(steps))
    inner = closed[(slice(max(steps), -max(steps)),) * 3] | largest
    return placed.like(ndimage.binary_fill_holes(inner))


def _cropped(placed: _Placed, outline: _Placed) -> _Placed:
    """Return what of an image lies around the head: air far from it only costs time, and makes every fit look worse."""
    where = np.argwhere(outline.array > 0)
    low = np.maximum(where.min(axis=0) - 4, 0)
    high = where.max(axis=0) + 5
    moved = placed.affine.copy()
    moved[:3, 3] = (placed.affine @ np.array([*low, 1.0]))[:3]
    return _Placed(placed.array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], moved)


def _starts(outline: _Placed) -> Iterator[sitk.AffineTransform]:
    """Yield places from which to begin: centres of mass, middles of the images, and tops of the heads upon each other."""
    template = _small_template().outline
    kinds = sitk.CenteredTransformInitializerFilter
    for kind in (kinds.MOMENTS, kinds.GEOMETRY):
        started = sitk.CenteredTransformInitializer(outline.image, template.image, sitk.AffineTransform(3), kind)
        yield sitk.AffineTransform(started)
    here, there = _top(outline), _top(template)
    start = sitk.AffineTransform(3)
    start.SetCenter(here.tolist())
    start.SetTranslation((there - here).tolist())
    yield start


def _top(outline: _Placed) -> NDArray[np.float64]:
    """Return the point above the middle of the uppermost 100 mm of a head, at its top; mm, LPS."""
    places = np.argwhere(outline.array > 0) @ outline.straight[:3, :3].T + outline.straight[:3, 3]
    top = np.percentile(places[:, 2], 99.9)
    x, y, _ = places[places[:, 2] > top - 100].mean(axis=0)
    return np.array([x, y, top])


def _register(fixed: _Placed, start: sitk.AffineTransform) -> sitk.AffineTransform | None:
    """Return the transform from the image to the template that fits best near `start`; None if none was found."""
    method = sitk.ImageRegistrationMethod()
    # Sums of several threads come in no fixed order, and another order makes another last digit.
    method.SetNumberOfThreads(1)
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(_SAMPLED, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, _STEPS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(start, inPlace=True)
    try:
        method.Execute(fixed.image, _small_template().head.image)
    except RuntimeError:  # the images came apart, or are flat: nothing is found from here
        return None
    scales = np.linalg.svd(_matrix(start)[:3, :3], compute_uv=False)
    plausible = _SCALES[0] <= 1 / scales.max() and 1 / scales.min() <= _SCALES[1]
    return start if plausible and np.linalg.det(_matrix(start)[:3, :3]) > 0 else None


def _matrix(transform: sitk.AffineTransform) -> NDArray[np.float64]:
    """Return a transform as (4, 4)."""
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    centre, moved = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre + moved - linear @ centre
    return matrix


def _fit(fixed: _Placed, placed: sitk.AffineTransform) -> float:
    """Return the normalised mutual information, 0 to 1, of image and template deep within the head; 0 if little is in view."""
    template, image = _small_template(), fixed.image

    def laid_over(what: _Placed) -> NDArray[np.float32]:
        resampled = sitk.Resample(what.image, image, placed, sitk.sitkLinear, 0.0)
        values: NDArray[np.float32] = sitk.GetArrayFromImage(resampled).T
        return values

    inside = laid_over(template.inside) > 0.5  # noqa: PLR2004 - half of a voxel
    voxel = abs(np.linalg.det(fixed.affine[:3, :3]))
    if np.count_nonzero(inside) * voxel < _LEAST_INSIDE:
        return 0.0
    return _mutual_information(laid_over(template.head)[inside], fixed.array[inside])


def _mutual_information(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return I(X; Y) / sqrt(H(X) H(Y)), of values in up to _BINS bins that hold equally many; 0 if either says nothing."""
    ends = [np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1))) for values in (one, other)]
    if min(map(len, ends)) < 3:  # noqa: PLR2004 - fewer than two bins
        return 0.0
    counts, _, _ = np.histogram2d(one, other, bins=ends)
    joint = counts / counts.sum()
    x, y = joint.sum(axis=1), joint.sum(axis=0)
    seen = joint > 0
    information = (joint[seen] * np.log(joint[seen] / np.outer(x, y)[seen])).sum()
    entropies = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in (x, y)]
    return float(information / np.sqrt(entropies[0] * entropies[1]))
