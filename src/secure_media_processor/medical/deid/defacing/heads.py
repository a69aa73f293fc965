"""Finding the heads in a folder: one for each frame of reference, in whichever series shows it best.

All images of one frame of reference (0020,0052) share their coordinates. So a head that is found in one series is found in the
others, too: in localizers of three slices and in maps without a nose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from secure_media_processor.errors import ImageError
from secure_media_processor.medical.convert.decoding import decoded_frames, foreign_data, pixel_form
from secure_media_processor.medical.convert.grayscale import grayscale_of
from secure_media_processor.medical.deid.defacing.registration import VOXEL, find_head, shrunken, shrunken_affine
from secure_media_processor.medical.deid.defacing.risk import VOLUMES, Risk, face_risk
from secure_media_processor.medical.deid.defacing.template import read_template
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

_TRIED = 3  # series of a frame of reference in which the head is looked for
_LEAST_EXTENT = 80.0  # mm along each axis: less shows too little of a head
_FEWEST_SLICES = 8


@dataclass(frozen=True, slots=True)
class Space:
    """Images whose positions can be compared: those of one frame of reference, or, without one, of one series."""

    study: str
    frame_of_reference: str

    @classmethod
    def of(cls, dataset: Dataset) -> Space:
        """Return the space of an object."""
        uids = [str(dataset.get(keyword) or "") for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID")]
        return cls(uids[0], uids[1] or uids[2])


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """Where heads are."""

    places: dict[Space, NDArray[np.float64]] = field(default_factory=dict)
    """Space → (4, 4): mm, LPS → voxel of the template."""


def find_heads(paths: Iterable[Path], *, identities: Sequence[Identity] = ()) -> Heads:
    """Look for a head in each space of the files.

    Files that cannot be read, and those that show no face, count for nothing. It reads the headers of all files, and the pixels
    of one to three series of each space, about 3 s each on one core; in memory is one series at about 3 mm.

    Raises:
        MissingExtraError, IntegrityError: the template is not there, see read_template.
    """
    read_template()  # without it nothing is to be begun
    spaces: dict[Space, list[Instance]] = {}
    for path in paths:
        found = read_instance(path, identities=identities)
        if isinstance(found, Instance) and found.modality in VOLUMES and found.rows is not None:
            uid = found.frame_of_reference_uid or found.series_instance_uid
            spaces.setdefault(Space(found.study_instance_uid, uid), []).append(found)
    heads = Heads()
    for space, instances in spaces.items():
        for stack, affine in _best_stacks(instances):
            place = _find_in(stack, affine, identities)
            if place is not None:
                heads.places[space] = place
                break
    return heads


def _best_stacks(instances: Sequence[Instance]) -> list[tuple[Stack, Affine]]:
    """Return the stacks that may show a head, with their matrices: the finest first, and derived ones last."""
    stacks = [stack for series in group_into_series(instances) for stack in series.stacks]
    usable = [(stack, affine) for stack in stacks if (affine := stack.affine) is not None and _shows_enough(stack, affine)]
    usable.sort(key=lambda pair: ("DERIVED" in pair[0].slices[0].frame.image_type, max(_spacing(pair[1]))))
    return usable[:_TRIED]


def _spacing(affine: Affine) -> list[float]:
    return [float(size) for size in np.linalg.norm(np.array(affine)[:3, :3], axis=0)]


def _shows_enough(stack: Stack, affine: Affine) -> bool:
    shape = (stack.columns or 0, stack.rows or 0, len(stack.slices))
    extents = [count * size for count, size in zip(shape, _spacing(affine), strict=True)]
    return len(stack.slices) >= _FEWEST_SLICES and min(extents) >= _LEAST_EXTENT


def _find_in(stack: Stack, affine: Affine, identities: Sequence[Identity]) -> NDArray[np.float64] | None:
    """Return where the head is by one stack; None if it cannot be read, too."""
    shape = (stack.columns or 1, stack.rows or 1, len(stack.slices))
    factors = [max(1, min(count, round(VOXEL / size))) for count, size in zip(shape, _spacing(affine), strict=True)]
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
        if face_risk(opened[1]) is not Risk.SLICES:
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
