"""Finding the heads in a folder: in each series by itself, since patients move and frames of reference are not always true.

All images of one frame of reference (0020,0052) share their coordinates. So where its series agree on the head, it is found in
those, too, that show too little of it: in localizers of three slices, and in maps without a nose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from secure_media_processor.errors import ImageError
from secure_media_processor.medical.convert.decoding import decoded_frames, foreign_data, pixel_form
from secure_media_processor.medical.convert.grayscale import grayscale_of
from secure_media_processor.medical.deid.defacing.registration import VOXEL, find_head, shrunken, shrunken_affine
from secure_media_processor.medical.deid.defacing.risk import VOLUMES, Risk, face_risk, is_far_from_head
from secure_media_processor.medical.deid.defacing.template import read_template
from secure_media_processor.medical.dicom.elements import text
from secure_media_processor.medical.dicom.reader import Instance, Unreadable, read_dataset, read_instance
from secure_media_processor.medical.dicom.series import group_into_series
from secure_media_processor.medical.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pydicom import Dataset

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.dicom.geometry import Affine
    from secure_media_processor.medical.dicom.series import Stack

_LEAST_EXTENT = 80.0  # mm along each axis: less shows too little of a head
_FEWEST_SLICES = 8
_VOXEL_SIZES = (0.05, 30.0)  # mm; others are no scanner's
_FARTHEST = 1e5  # mm: numbers beyond are no place in a scanner
_MOST_SLICES_VOXELS = 1 << 25  # of the small volume: a body of 2 m in a wide scanner has half as many
_GRIDS = 4  # of one series: more are not looked at one by one
_SAME_POSE = 5.0
"""mm: heads of two series that lie no further apart, at the face, are one head that kept still."""


@dataclass(frozen=True, slots=True)
class Space:
    """Images whose positions can be compared: those of one frame of reference, or, without one, of one series."""

    patient: str = field(repr=False)
    study: str
    frame_of_reference: str

    @classmethod
    def of(cls, dataset: Dataset) -> Space:
        """Return the space of an object."""
        uids = [text(dataset, keyword) for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID")]
        return cls(text(dataset, "PatientID") or text(dataset, "PatientName"), uids[0], uids[1] or uids[2])


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """Where heads are. Each place is (4, 4): mm, LPS → voxel of the template."""

    instances: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """SOPInstanceUID (0008,0018) → where the head is by its own series."""
    spaces: dict[Space, NDArray[np.float64]] = field(default_factory=dict)
    """Space → where the head is by all series that show enough of it, if they agree."""

    def place(self, dataset: Dataset) -> NDArray[np.float64] | None:
        """Return where the head is in an object: by its own series, else by the others of its space; None if nobody knows."""
        own = self.instances.get(text(dataset, "SOPInstanceUID"))
        return self.spaces.get(Space.of(dataset)) if own is None else own


def find_heads(paths: Iterable[Path], *, identities: Sequence[Identity] = ()) -> Heads:
    """Look for a head in each series of the files that shows enough of one.

    Files that cannot be read, and those that show no face, count for nothing. It reads the headers of all files, and the pixels
    of one stack of each grid of each series; that takes about 2 s a series on one core where there is a head, and up to 25 s
    where there is none. In memory is one stack at about 3 mm.

    Raises:
        MissingExtraError, IntegrityError: the template is not there, see read_template.
    """
    read_template()  # without it nothing is to be begun
    spaces: dict[Space, list[Instance]] = {}
    for path in paths:
        found = read_instance(path, identities=identities)
        if isinstance(found, Instance) and found.sop_class_uid in VOLUMES and found.rows is not None:
            uid = found.frame_of_reference_uid or found.series_instance_uid
            spaces.setdefault(Space(found.patient, found.study_instance_uid, uid), []).append(found)
    heads = Heads()
    for space, instances in spaces.items():
        places = []
        for series in group_into_series(instances):
            for stacks in _by_grid(series.stacks):
                place = _find_in(stacks[0], identities)
                if place is None:
                    continue
                places.append(place)
                heads.instances.update((one.sop_instance_uid, place) for stack in stacks for one in stack.instances)
        if places and all(_same_pose(places[0], place) for place in places):
            heads.spaces[space] = places[0]
    return heads


def _by_grid(stacks: Iterable[Stack]) -> list[list[Stack]]:
    """Return the stacks that may show a head, those on one grid together; derived ones come last."""
    grids: list[list[Stack]] = []
    for stack in sorted(stacks, key=lambda stack: "DERIVED" in stack.slices[0].frame.image_type):
        if not _shows_enough(stack):
            continue
        same = next((grid for grid in grids if grid[0].same_grid(stack)), None)
        if same is not None:
            same.append(stack)
        elif len(grids) < _GRIDS:
            grids.append([stack])
    return grids


def _same_pose(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Return whether two places put the face at one place: corners of its region lie no further apart than _SAME_POSE."""
    voxels = np.argwhere(read_template().face)
    low, high = voxels.min(axis=0), voxels.max(axis=0)
    corners = np.array([[*np.where(choice, high, low), 1] for choice in np.ndindex(2, 2, 2)]).T
    apart = (np.linalg.inv(one) @ corners - np.linalg.inv(other) @ corners)[:3]
    return bool(np.linalg.norm(apart, axis=0).max() <= _SAME_POSE)


def _spacing(affine: Affine) -> list[float]:
    return [float(size) for size in np.linalg.norm(np.array(affine)[:3, :3], axis=0)]


def _factors(stack: Stack, affine: Affine) -> list[int]:
    shape = (stack.columns or 1, stack.rows or 1, len(stack.slices))
    return [max(1, min(count, round(VOXEL / size))) for count, size in zip(shape, _spacing(affine), strict=True)]


def _shows_enough(stack: Stack) -> bool:
    affine = stack.affine
    if affine is None or not np.abs(affine).max() <= _FARTHEST:
        return False
    sizes = _spacing(affine)
    if not all(_VOXEL_SIZES[0] <= size <= _VOXEL_SIZES[1] for size in sizes):
        return False
    shape = (stack.columns or 0, stack.rows or 0, len(stack.slices))
    if min(count * size for count, size in zip(shape, sizes, strict=True)) < _LEAST_EXTENT:
        return False
    small = np.prod([count // factor for count, factor in zip(shape, _factors(stack, affine), strict=True)], dtype=float)
    return len(stack.slices) >= _FEWEST_SLICES and bool(small <= _MOST_SLICES_VOXELS)


def _find_in(stack: Stack, identities: Sequence[Identity]) -> NDArray[np.float64] | None:
    """Return where the head is by one stack; None if it cannot be read, too."""
    affine = stack.affine
    if affine is None:
        return None
    factors = _factors(stack, affine)
    try:
        with silent_pydicom():
            slices = np.stack(list(_small_slices(stack, factors[:2], identities)), axis=2)
    except ImageError:  # whoever writes the files will say what is wrong with them
        return None
    return find_head(shrunken(slices, (1, 1, factors[2])), shrunken_affine(np.array(affine), factors))


def _small_slices(stack: Stack, factors: Sequence[int], identities: Sequence[Identity]) -> Iterator[NDArray[np.float32]]:
    """Yield the slices of a stack in blocks of pixels, shape (i, j)."""
    opened: tuple[Path, Dataset] | None = None
    for one in stack.slices:
        path = one.instance.path
        if opened is None or opened[0] != path:
            dataset = read_dataset(path, identities=identities)
            if isinstance(dataset, Unreadable):
                raise ImageError(dataset.reason)
            opened = (path, dataset)
        if face_risk(opened[1]) is not Risk.SLICES or is_far_from_head(opened[1]):
            raise ImageError("it shows no head")
        yield shrunken(_values(opened[1], one.frame.index).T, factors)


def _values(dataset: Dataset, index: int) -> NDArray[np.float32]:
    """Return measured values, shape (rows, columns)."""
    with foreign_data("its pixels are not usable"):
        form = pixel_form(dataset)
        pixels = next(iter(decoded_frames(dataset, form, only=index)))
        if pixels.ndim != 2:  # noqa: PLR2004 - colours
            raise ImageError("it is in colour")
        values = np.asarray(grayscale_of(dataset, form, index).rescaled(pixels), dtype=np.float32)
    if not np.isfinite(values).all():
        raise ImageError("it has values that are no numbers")
    return values
