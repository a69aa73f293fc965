"""Dynamic MRI of the breast made ready: phases in order, subtractions, the breasts, projections, and figures for each side.

For research. The breast mask is a heuristic and finds no tumours; whether a figure means anything for a patient, it cannot say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import ndimage

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.preprocessing.features import FirstOrder, Kinetics, first_order, kinetics
from secure_media_processor.medical.preprocessing.mask import foreground_mask
from secure_media_processor.medical.preprocessing.phases import read_phases
from secure_media_processor.medical.preprocessing.registration import RigidMotion, moved, rigid_motion
from secure_media_processor.medical.volume import Volume, reoriented, same_grid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.preprocessing.registration import Metric

Side = Literal["left", "right"]
"""Of the patient."""

MASK_NOTE = (
    "the breast mask is a heuristic: tissue against air by a threshold, in front of the surface of the chest between the "
    "breasts; look at it before you rely on it"
)
# The part of the body's width around its middle in which the surface between the breasts is looked for.
_BETWEEN = 0.05
_SMOOTHED = 5  # slices
_WEAK = 5.0  # percent
_FEW = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Figures for one part of the breasts."""

    name: str
    """"left", "right", or the name of a mask that was given."""
    millilitres: float
    intensities: FirstOrder
    """Of the subtraction, in the unit of the images."""
    kinetics: Kinetics


@dataclass(frozen=True, slots=True, eq=False)
class BreastStudy:
    """What BreastMRIPreprocessor makes. All volumes are on the grid of the phase before the contrast medium, turned to RAS."""

    phases: tuple[Volume, ...]
    """float32, in order; those after the first are registered to it if that was asked for."""
    times: tuple[float, ...] | None
    """Seconds from the first phase, if they are known."""
    subtraction: Volume
    """The chosen phase minus the first, float32, in the unit of the images; negative where signal was lost."""
    breasts: Volume
    """uint8: 0 no breast, 1 the left one, 2 the right one. A heuristic: see MASK_NOTE."""
    projections: Mapping[Side, NDArray[np.float32]]
    """For each side the largest value of the subtraction along the axis from foot to head, (i, j); 0 outside of the breast."""
    regions: tuple[Region, ...]
    motions: tuple[RigidMotion, ...]
    """Of each phase after the first, if they were registered."""
    notes: tuple[str, ...]
    """What whoever uses the results should be told."""

    def subtracted(self, phase: int) -> Volume:
        """Return another phase minus the first; phases count from 0."""
        return _subtraction(self.phases, phase)


class BreastMRIPreprocessor:
    """Makes dynamic contrast-enhanced (DCE) MRI of the breasts ready for people and models.

    The first phase is the one before the contrast medium. Volumes are turned to RAS; they are not resampled unless they are
    registered.
    """

    def __init__(
        self, *, subtract: int = 1, register: bool = False, metric: Metric = "mutual-information", bins: int = 32
    ) -> None:
        """Choose what is done.

        Args:
            subtract: The phase of which the first is subtracted, from 1.
            register: Whether each later phase is turned and shifted onto the first (see rigid_motion). Breasts are soft: that
                is right for small movements of the whole patient only.
            metric: How likeness is measured then.
            bins: Of the histogram for the entropy.

        Raises:
            UsageError: a number makes no sense.
        """
        if subtract < 1 or bins < 1:
            raise UsageError("the phase to subtract from and the number of bins are at least 1")
        self._subtract = subtract
        self._register = register
        self._metric: Metric = metric
        self._bins = bins

    def run_folder(
        self, folder: Path, *, identities: Sequence[Identity] = (), masks: Mapping[str, Volume] | None = None
    ) -> BreastStudy:
        """Read the phases in a folder of DICOM (see read_phases) and make them ready."""
        found = read_phases(folder, identities=identities)
        return self.run(found.volumes, found.times, masks=masks)

    def run(
        self,
        phases: Sequence[Volume],
        times: Sequence[float] | None = None,
        *,
        masks: Mapping[str, Volume] | None = None,
    ) -> BreastStudy:
        """Make phases ready that are given in the order in which they were taken.

        Args:
            phases: At least two, on one grid unless they are to be registered; the first before the contrast medium.
            times: Of each, seconds from any moment, ascending. Without them there are no slopes.
            masks: Regions that get figures too, by name; on the grid of the first phase, not 0 inside.

        Raises:
            ImageError: there is one phase only; grids differ; no breast is found; a mask is empty.
            UsageError: times are not ascending, or not as many as phases; there is no phase to subtract from.
        """
        moments = self._checked(phases, times)
        turned = [_turned(phase) for phase in phases]
        first, motions = turned[0], []
        for n in range(1, len(turned)):
            if self._register:
                motions.append(rigid_motion(first, turned[n], metric=self._metric))
                turned[n] = moved(turned[n], motions[-1], first)
            elif not same_grid(turned[n].grid, first.grid):
                hint = "register them, or resample them to one grid first"
                raise ImageError(f"phase {n + 1} does not lie on the grid of the first", hint=hint)
        subtraction = _subtraction(turned, self._subtract)
        sides = breast_sides(first)
        halves: dict[Side, NDArray[np.bool_]] = {"left": sides == 1, "right": sides == 2}  # noqa: PLR2004 - the labels
        missing = [side for side, inside in halves.items() if not inside.any()]
        named: dict[str, NDArray[np.bool_]] = {side: inside for side, inside in halves.items() if side not in missing}
        named |= {name: _on_grid(name, mask, first) for name, mask in (masks or {}).items()}
        regions = tuple(self._region(name, inside, turned, subtraction, moments) for name, inside in named.items())
        notes = [MASK_NOTE, *(f"no breast is found on the {side} side" for side in missing)]
        if all(region.kinetics.enhancement[self._subtract] < _WEAK for region in regions):
            notes.append("hardly anything takes up contrast medium: check that the first phase is the one before it")
        projections = {side: projection(subtraction.array, inside) for side, inside in halves.items()}
        breasts = replace(first, array=sides)
        return BreastStudy(tuple(turned), moments, subtraction, breasts, projections, regions, tuple(motions), tuple(notes))

    def _checked(self, phases: Sequence[Volume], times: Sequence[float] | None) -> tuple[float, ...] | None:
        if len(phases) < 2:  # noqa: PLR2004 - before and after
            raise ImageError("there is one phase only: one before the contrast medium and one after it are needed")
        if self._subtract >= len(phases):
            raise UsageError(f"there is no phase {self._subtract} after the first: there are {len(phases) - 1}")
        if times is None:
            return None
        if len(times) != len(phases) or not np.isfinite(times).all() or not (np.diff(times) > 0).all():
            raise UsageError("there is one time for each phase, in seconds, each later than the one before")
        return tuple(float(time - times[0]) for time in times)

    def _region(
        self,
        name: str,
        inside: NDArray[np.bool_],
        phases: Sequence[Volume],
        subtraction: Volume,
        times: Sequence[float] | None,
    ) -> Region:
        found = first_order(subtraction.array, inside, bins=self._bins)
        signal = [float(phase.array.mean(where=inside, dtype=np.float64)) for phase in phases]
        affine = subtraction.grid.affine
        cubic = float(abs(np.linalg.det(affine[:3, :3])))
        return Region(name, found.voxels * cubic / 1000, found, kinetics(signal, times))


def breast_sides(volume: Volume) -> NDArray[np.uint8]:
    """Return which voxels are of the left breast (1) and of the right one (2). A heuristic: see MASK_NOTE.

    Body is what foreground_mask finds. Its middle is halfway between its left-most and right-most voxels, the median over the
    slices. A breast is what of the body lies in front of its surface at the middle, slice by slice (smoothed over 5). So the
    whole width of the body must be in the picture, and the patient lie straight in it. A side with less than a twentieth of
    what is found counts as without a breast.

    Args:
        volume: (i, j, k) in RAS, both breasts, before the contrast medium.

    Raises:
        ImageError: nothing of a breast is found on either side.
        UsageError: the volume is not in RAS.
    """
    if volume.grid.orientation != "RAS":
        raise UsageError(f"the volume is {volume.grid.orientation}, and RAS is needed")
    body = foreground_mask(volume.array)
    middle, width = _middle(body)
    near = max(1, round(width * _BETWEEN))
    low, high = max(0, int(middle) - near), min(body.shape[0], int(middle) + near + 1)
    surface = _surface(body[low:high])
    ahead = np.arange(body.shape[1])[None, :, None] > surface[None, None, :]
    breast = body & ahead
    sides = np.zeros(body.shape, np.uint8)
    right = np.arange(body.shape[0]) > middle  # i grows to the right side of the patient
    sides[~right] = breast[~right]
    sides[right] = breast[right] * np.uint8(2)
    left, both = np.count_nonzero(sides == 1), np.count_nonzero(sides)
    if not both:
        raise ImageError("no breast is found in front of the chest", hint="axes may be named wrongly; look at the volume")
    if left < _FEW * both:
        sides[sides == 1] = 0
    elif both - left < _FEW * both:
        sides[sides == 2] = 0  # noqa: PLR2004 - the label
    return sides


def projection(array: NDArray[Any], mask: NDArray[np.bool_], *, axis: int = 2) -> NDArray[np.float32]:
    """Return the largest value inside the mask along an axis (MIP), float32; 0 where the mask is empty, and never less."""
    return np.asarray(np.max(array, axis=axis, where=mask, initial=0.0), np.float32)


def _middle(body: NDArray[np.bool_]) -> tuple[float, int]:
    """Return the index along i of the middle of the body, and its width in voxels."""
    across: NDArray[np.bool_] = np.any(body, axis=1)  # (i, k)
    slices: NDArray[np.bool_] = np.any(across, axis=0)
    first = across.argmax(axis=0)[slices]
    last = len(across) - 1 - across[::-1].argmax(axis=0)[slices]
    return float(np.median((first + last) / 2)), int(np.median(last - first + 1))


def _surface(between: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the index along j of the foremost voxel of the body for each slice; where there is none, from its neighbours."""
    front = between.shape[1] - 1 - between[:, ::-1, :].argmax(axis=1).astype(np.float64)  # (i, k)
    there: NDArray[np.bool_] = np.any(between, axis=1)
    slices = np.flatnonzero(there.any(axis=0))
    if not len(slices):
        raise ImageError("there is no chest between the breasts, so they cannot be told from it")
    found = np.array([np.median(front[there[:, k], k]) for k in slices])
    every = np.interp(np.arange(between.shape[2]), slices, found)
    smooth: NDArray[np.float64] = ndimage.median_filter(every, min(_SMOOTHED, len(every)), mode="nearest")
    return smooth


def _turned(phase: Volume) -> Volume:
    turned = reoriented(phase, "RAS")
    return replace(turned, array=np.asarray(turned.array, np.float32))


def _subtraction(phases: Sequence[Volume], phase: int) -> Volume:
    return replace(phases[0], array=phases[phase].array - phases[0].array)


def _on_grid(name: str, mask: Volume, first: Volume) -> NDArray[np.bool_]:
    turned = reoriented(mask, "RAS")
    if not same_grid(turned.grid, first.grid):
        raise ImageError(f"the mask {name} does not lie on the grid of the first phase")
    inside: NDArray[np.bool_] = turned.array != 0
    if not inside.any():
        raise ImageError(f"the mask {name} is empty")
    return inside
