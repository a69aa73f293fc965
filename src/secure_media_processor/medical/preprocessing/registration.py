"""Bringing one volume onto another of the same patient by turning and shifting it, with SimpleITK."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import SimpleITK as sitk  # noqa: N813 - everybody calls it so

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.grid import corners

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from secure_media_processor.medical.volume import Grid, Volume

Metric = Literal["mutual-information", "mean-squares"]

_BINS = 32
_SAMPLED = 0.2  # of the voxels, drawn anew for each level
_SEED = 1
_ITERATIONS = 200
_FIRST_STEP, _LAST_STEP = 2.0, 1e-3  # mm that a voxel at the edge moves, about
_RELAXED = 0.8  # what a step becomes when the direction turns back
_FEWEST = 16  # voxels along the shortest axis on a coarse level
_THREADS = Lock()
_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True, eq=False)
class RigidMotion:
    """How a volume has to be moved."""

    matrix: NDArray[np.float64]
    """(4, 4), RAS, mm: from a place in the fixed volume to the same place of the patient in the moving one."""
    metric: float
    """What was minimised, at the end: the negative mutual information, or the mean squared difference."""
    iterations: int
    """On the finest level."""

    @property
    def degrees(self) -> float:
        """The angle of the rotation."""
        return float(np.degrees(np.arccos(np.clip((np.trace(self.matrix[:3, :3]) - 1) / 2, -1, 1))))

    def largest_shift(self, grid: Grid) -> float:
        """Return how far the corner of a grid moves that moves most, mm."""
        places = grid.affine @ np.array([[*corner, 1] for corner in corners(grid.shape)]).T
        return float(np.linalg.norm(((self.matrix - np.eye(4)) @ places)[:3], axis=0).max())


def rigid_motion(fixed: Volume, moving: Volume, *, metric: Metric = "mutual-information") -> RigidMotion:
    """Find how `moving` has to be turned and shifted to lie on `fixed`.

    It starts from where both are, so it is for movements of a patient between two scans of one examination. Regular-step
    gradient descent on one to three levels; the metric is sampled at a fifth of the voxels, always the same ones. The same call
    gives the same result on any number of cores: it uses one.

    Args:
        fixed: What stays.
        moving: What is moved; both overlap.
        metric: "mutual-information" (Mattes et al. 2003, 32 bins) where contrast changes as with a contrast medium,
            "mean-squares" for equal contrast.

    Raises:
        ImageError: they do not overlap, or have too few voxels.
        UsageError: there is no such metric.
    """
    if metric not in ("mutual-information", "mean-squares"):
        raise UsageError("the metric is mutual-information or mean-squares")
    method = sitk.ImageRegistrationMethod()
    if metric == "mutual-information":
        method.SetMetricAsMattesMutualInformation(_BINS)
    else:
        method.SetMetricAsMeanSquares()
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(_SAMPLED, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(_FIRST_STEP, _LAST_STEP, _ITERATIONS, _RELAXED, 1e-8)
    method.SetOptimizerScalesFromPhysicalShift()
    shrinks = [n for n in (4, 2, 1) if min(fixed.grid.shape) // n >= _FEWEST] or [1]
    # Each level comes twice: starting again with long steps finds what the shortened ones stopped before.
    method.SetShrinkFactorsPerLevel([n for n in shrinks for _ in range(2)])
    method.SetSmoothingSigmasPerLevel([n / part for n in shrinks for part in (1, 2)])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    start = sitk.Euler3DTransform()
    middle = fixed.grid.affine @ [*((n - 1) / 2 for n in fixed.grid.shape), 1]
    start.SetCenter([float(x) for x in _LPS @ middle[:3]])
    method.SetInitialTransform(start, inPlace=True)
    try:
        with _one_thread():
            method.Execute(_image(fixed), _image(moving))
    except RuntimeError as error:
        hint = "check that both are of one patient, in one position"
        raise ImageError(
            "the volumes cannot be registered: they do not overlap, or are too small or empty", hint=hint
        ) from error
    found = float(method.GetMetricValue())
    return RigidMotion(_matrix(start), found, int(method.GetOptimizerIteration()))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let ITK use one thread: more of them add up in the order in which they finish, and end at another motion each time.

    The metric takes no other setting than that of the whole process, so it is put back afterwards.
    """
    with _THREADS:
        before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        try:
            yield
        finally:
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def moved(volume: Volume, motion: RigidMotion, onto: Volume) -> Volume:
    """Return `volume`, float32, moved and sampled on the grid of `onto`; cubic, and beyond its faces the nearest voxel."""
    transform = sitk.AffineTransform(3)
    linear = _LPS @ motion.matrix[:3, :3] @ _LPS
    transform.SetMatrix([float(x) for x in linear.reshape(-1)])
    transform.SetTranslation([float(x) for x in _LPS @ motion.matrix[:3, 3]])
    resample = sitk.ResampleImageFilter()
    resample.SetSize([int(n) for n in onto.grid.shape])
    origin, spacing, direction = _placed(onto.grid)
    resample.SetOutputOrigin(origin)
    resample.SetOutputSpacing(spacing)
    resample.SetOutputDirection(direction)
    resample.SetTransform(transform)
    resample.SetInterpolator(sitk.sitkBSpline)
    resample.UseNearestNeighborExtrapolatorOn()
    resample.SetNumberOfThreads(len(os.sched_getaffinity(0)))
    array = sitk.GetArrayFromImage(resample.Execute(_image(volume))).T
    return replace(volume, array=array, grid=onto.grid, frame_of_reference_uid=onto.frame_of_reference_uid)


def _image(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(np.asarray(volume.array, np.float32).T)
    origin, spacing, direction = _placed(volume.grid)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image


def _placed(grid: Grid) -> tuple[list[float], list[float], list[float]]:
    """Return origin, spacing and direction as ITK wants them: LPS."""
    direction = _LPS @ (grid.affine[:3, :3] / np.array(grid.spacing))
    return [float(x) for x in _LPS @ grid.affine[:3, 3]], list(grid.spacing), [float(x) for x in direction.reshape(-1)]


def _matrix(transform: Any) -> NDArray[np.float64]:
    """Return an Euler3DTransform as a matrix of RAS."""
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    centre, shift = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    matrix = np.eye(4)
    matrix[:3, :3] = _LPS @ linear @ _LPS
    matrix[:3, 3] = _LPS @ (centre + shift - linear @ centre)
    return matrix
