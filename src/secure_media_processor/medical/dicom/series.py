"""Putting instances together into series, and the slices of a series into stacks: what can be one volume.

A series (one SeriesInstanceUID) often holds more than one volume: the three directions of a localizer, an image in which
somebody has drawn among the slices of a CT, two echoes, magnitude and phase, a hundred points in time. Slices are one stack if
they are of one kind and parallel, and no two lie at one place unless nothing tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from secure_media_processor.medical.dicom.geometry import (
    SAME_PLACE,
    Affine,
    Orientation,
    Problem,
    ProblemKind,
    Spacing,
    Vector,
    affine_lps,
    angle_between,
    dot,
    measure,
    plane_of,
    same_direction,
    slice_normal,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from secure_media_processor.medical.dicom.frames import Frame
    from secure_media_processor.medical.dicom.reader import Instance

_T = TypeVar("_T")
_V = TypeVar("_V", bound=tuple[float, ...])

# A localizer has an image in each of three directions. More of them, with no two parallel, are one series that turns.
_LOCALIZER = 3
# No series has slices in so many directions, each more than once; it limits the work that a hostile one makes.
_MAX_DIRECTIONS = 500
# Spacings are written with few digits; in mm.
_SAME_SPACING = 1e-4


@dataclass(frozen=True, slots=True)
class Slice:
    """One image in space."""

    instance: Instance
    frame: Frame
    """Of that instance."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Slices that belong together: the shape of their array is (slices, rows, columns)."""

    slices: tuple[Slice, ...]
    """In order of their positions along the normal (never of SliceLocation, which may be relative to anything); in order of
    InstanceNumber where they have no geometry, and of the frames in an instance."""
    rows: int | None
    """Rows (0028,0010); None if these are no images."""
    columns: int | None
    """Columns (0028,0011)."""
    orientation: Orientation | None
    """ImageOrientationPatient (0020,0037); None if there is none, or not one for all."""
    pixel_spacing: Spacing | None
    """PixelSpacing (0028,0030), mm: between rows, then between columns."""
    spacing: float | None
    """mm between neighbouring slices along the normal, measured; None for a single slice, or where it is not even."""
    step: Vector | None
    """mm from a slice to the next, LPS; not along the normal if there is a tilt. With missing slices, that of the full grid."""
    problems: tuple[Problem, ...]
    """Why it is not a regular grid; empty if it is."""
    set_apart_by: tuple[tuple[str, str], ...] = ()
    """Keywords of what makes it a stack of its own within the series, and the values; empty for a time of day."""

    @property
    def regular(self) -> bool:
        """Whether the slices are a regular, rectangular grid (a single slice is)."""
        return not self.problems

    @property
    def kinds(self) -> frozenset[ProblemKind]:
        """The kinds of its problems."""
        return frozenset(problem.kind for problem in self.problems)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The instances in which the slices are, each once, in the order of the slices."""
        return tuple({id(one.instance): one.instance for one in self.slices}.values())

    @property
    def positions(self) -> tuple[Vector | None, ...]:
        """ImagePositionPatient of each slice, mm."""
        return tuple(one.frame.position for one in self.slices)

    @property
    def affine(self) -> Affine | None:
        """The matrix from voxel (column, row, slice) to the patient: 4 by 4, mm, LPS. geometry.lps_to_ras turns it for NIfTI.

        It is there if the slices are evenly spaced, tilted or not; None for all others. The step of a single slice is along its
        normal, by SpacingBetweenSlices, else SliceThickness, else 1 mm.
        """
        first = self.slices[0].frame
        if self.kinds - {ProblemKind.TILT} or first.position is None or self.orientation is None or self.pixel_spacing is None:
            return None
        step = self.step
        if step is None:
            normal = slice_normal(self.orientation)
            if normal is None:
                return None
            given = (abs(size) for size in (first.spacing_between_slices, first.slice_thickness) if size)
            size = next(given, 1.0)
            step = (normal[0] * size, normal[1] * size, normal[2] * size)
        return affine_lps(first.position, self.orientation, self.pixel_spacing, step)

    def same_grid(self, other: Stack) -> bool:
        """Return whether voxel for voxel both lie at one place: then they can be one volume over time, echoes or gradients."""
        if (self.rows, self.columns, len(self.slices)) != (other.rows, other.columns, len(other.slices)):
            return False
        if self.orientation is None or other.orientation is None or self.pixel_spacing is None or other.pixel_spacing is None:
            return False
        same = same_direction(self.orientation, other.orientation) and _same_spacing(self.pixel_spacing, other.pixel_spacing)
        return same and all(
            a is not None and b is not None and all(abs(p - q) <= SAME_PLACE for p, q in zip(a, b, strict=True))
            for a, b in zip(self.positions, other.positions, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Series:
    """The instances that share a SeriesInstanceUID (0020,000E)."""

    series_instance_uid: str
    study_instance_uid: str
    modality: str
    instances: tuple[Instance, ...]
    """In order of InstanceNumber, then path."""
    stacks: tuple[Stack, ...]
    """Each image of each instance is in exactly one. In order of the first InstanceNumber."""

    @property
    def number(self) -> int | None:
        """SeriesNumber (0020,0011)."""
        return self.instances[0].series_number

    @property
    def description(self) -> str:
        """SeriesDescription (0008,103E): free text, in which a name may stand."""
        return self.instances[0].series_description


def group_into_series(instances: Iterable[Instance]) -> tuple[Series, ...]:
    """Return the series in `instances`, in order of their UIDs."""
    groups = _grouped(instances, lambda instance: instance.series_instance_uid)
    return tuple(_series(groups[uid]) for uid in sorted(groups, key=str))


def _series(members: list[Instance]) -> Series:
    ordered = tuple(sorted(members, key=_by_number))
    first = ordered[0]
    return Series(first.series_instance_uid, first.study_instance_uid, first.modality, ordered, split_into_stacks(ordered))


def _by_number(instance: Instance) -> tuple[object, ...]:
    return (instance.instance_number is None, instance.instance_number or 0, instance.path)


def split_into_stacks(instances: Sequence[Instance]) -> tuple[Stack, ...]:
    """Return the stacks of one series, given its instances in the order in which their stacks are to come."""
    slices = [Slice(instance, frame) for instance in instances for frame in instance.frames]
    places = {id(one): place for place, one in enumerate(slices)}
    stacks = [
        stack for kind in _grouped(slices, _kind).values() for same in _cluster_spacing(kind) for stack in _stacks_of_kind(same)
    ]
    stacks.sort(key=lambda stack: min(places[id(one)] for one in stack.slices))
    return _told_apart(stacks)


# ------------------------------------------------------------------------------------ what makes slices a stack of their own

# Slices of one stack have all of these in common.
_KIND: dict[str, Callable[[Slice], Hashable]] = {
    "SOPClassUID": lambda s: s.instance.sop_class_uid,
    "FrameOfReferenceUID": lambda s: s.instance.frame_of_reference_uid,
    "Rows": lambda s: s.instance.rows,
    "Columns": lambda s: s.instance.columns,
    "ImageType": lambda s: s.frame.image_type,
    "EchoNumbers": lambda s: s.frame.echo_number,
    "EchoTime": lambda s: None if s.frame.echo_time is None else round(s.frame.echo_time, 3),
    "DiffusionBValue": lambda s: s.frame.b_value,
    "StackID": lambda s: s.frame.stack_id,
}
# What may tell apart slices that lie at one place. Else it means nothing: a scanner may count each slice as an acquisition.
_REPEATS: dict[str, Callable[[Slice], Hashable]] = {
    "TemporalPositionIdentifier": lambda s: s.frame.temporal_position,
    "DiffusionGradientOrientation": lambda s: s.frame.gradient,
    "TriggerTime": lambda s: s.frame.trigger_time,
    "FrameReferenceTime": lambda s: s.frame.reference_time,
    "AcquisitionNumber": lambda s: s.frame.acquisition_number,
    "AcquisitionTime": lambda s: s.frame.acquisition_time,
    "SOPInstanceUID": lambda s: s.instance.sop_instance_uid,  # of multi-frame objects; the others are one slice each
}
# What else a stack has for itself, as it is told to people.
_GEOMETRY: dict[str, Callable[[Slice], Hashable]] = {
    "PixelSpacing": lambda s: s.frame.pixel_spacing,
    "ImageOrientationPatient": lambda s: s.frame.orientation and plane_of(s.frame.orientation),
}
# Values that are not shown: when a patient was where, and numbers that say nothing.
_UNSHOWN = {"AcquisitionTime", "FrameOfReferenceUID", "SOPClassUID"}


def _kind(one: Slice) -> Hashable:
    return tuple(key(one) for key in _KIND.values())


def _cluster_spacing(slices: Sequence[Slice]) -> list[list[Slice]]:
    return _clustered(slices, lambda one: one.frame.pixel_spacing, _same_spacing)


def _stacks_of_kind(slices: list[Slice]) -> list[Stack]:
    """Return the stacks in slices that have the same kind and the same pixel spacing."""
    if "MOSAIC" in slices[0].frame.image_type:
        text = "each image is a mosaic of many slices"
        return [_without_grid(slices, Problem(ProblemKind.MOSAIC, text))]
    placed = [one for one in slices if one.frame.position is not None and _normal(one) is not None]
    parallel = _clustered(placed, lambda one: one.frame.orientation, same_direction)
    lonely = [group for group in parallel if len(group) == 1]
    stacks = []
    if len(lonely) > _LOCALIZER:
        parallel = [group for group in parallel if len(group) > 1]
        stacks.append(_turning([one for group in lonely for one in group]))
    for group in parallel:
        if all(same_direction(group[0].frame.orientation or (), one.frame.orientation or ()) for one in group):
            stacks += [_parallel(part) for part in _separate(group, list(_REPEATS.values()))]
        else:  # there are too many directions to look at
            stacks.append(_turning(group))
    ids = {id(one) for one in placed}
    rest = [one for one in slices if id(one) not in ids]
    return stacks + ([_unplaced(rest)] if rest else [])


def _separate(slices: list[Slice], keys: Sequence[Callable[[Slice], Hashable]]) -> list[list[Slice]]:
    """Split parallel slices of which several lie at one place by what tells them apart, if anything does."""
    places = _places(slices)
    if len(places) == len(slices):
        return [slices]
    most = max(map(len, places))
    for n, key in enumerate(keys):
        groups = list(_grouped(slices, key).values())
        # There are as many stacks as there are slices at one place. What makes more of them, as a time that each slice has for
        # itself, would take stacks to pieces.
        if 1 < len(groups) <= most and sum(len(g) - len(_places(g)) for g in groups) < len(slices) - len(places):
            return [part for group in groups for part in _separate(group, keys[n + 1 :])]
    return _by_rank(places) or [slices]


def _by_rank(places: Sequence[Sequence[Slice]]) -> list[list[Slice]]:
    """Return as many stacks as slices lie at each place, in the order in which these are counted; none if that is not so clear.

    Some scanners mark points in time by nothing else than by going on to count.
    """
    count = len(places[0])
    every = [one for place in places for one in place]
    numbered = len({(one.instance.instance_number, one.frame.index) for one in every}) == len(every)
    if any(len(place) != count for place in places) or not numbered or any(s.instance.instance_number is None for s in every):
        return []
    ranked = [sorted(place, key=lambda one: (one.instance.instance_number or 0, one.frame.index)) for place in places]
    return [[place[rank] for place in ranked] for rank in range(count)]


def _places(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Return parallel slices in order along the normal, those at one place together."""
    ordered = _along_normal(slices)
    groups = [[ordered[0][1]]]
    for (before, _), (here, one) in pairwise(ordered):
        if here - before <= SAME_PLACE:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _along_normal(slices: Sequence[Slice]) -> list[tuple[float, Slice]]:
    """Return parallel slices in order of their distance, mm, along the normal of the first."""
    normal = _normal(slices[0])
    if normal is None:
        raise ValueError("slices without an orientation have no order along it")
    found = [(dot(normal, one.frame.position or normal), one) for one in slices]
    return sorted(found, key=lambda pair: (pair[0], *_by_number(pair[1].instance), pair[1].frame.index))


def _normal(one: Slice) -> Vector | None:
    return None if one.frame.orientation is None else slice_normal(one.frame.orientation)


# --------------------------------------------------------------------------------------------------------- kinds of stacks


def _parallel(slices: Sequence[Slice]) -> Stack:
    ordered = [one for _, one in _along_normal(slices)]
    first = ordered[0]
    orientation = first.frame.orientation
    if orientation is None:
        raise ValueError("slices without an orientation are not parallel")
    grid = measure([one.frame.position for one in ordered if one.frame.position is not None], orientation)
    problems = grid.problems
    if first.frame.pixel_spacing is None:
        problems = (Problem(ProblemKind.NO_GEOMETRY, "there is no PixelSpacing"), *problems)
    return _stack(ordered, problems, orientation, grid.spacing, grid.step)


def _turning(slices: Sequence[Slice]) -> Stack:
    first = slices[0].frame.orientation
    angle = max(angle_between(first, one.frame.orientation) for one in slices if first and one.frame.orientation)
    text = f"slices are not parallel: up to {angle:.1f} degrees"
    return _stack(slices, (Problem(ProblemKind.MIXED_ORIENTATION, text, angle),))


def _unplaced(slices: Sequence[Slice]) -> Stack:
    if slices[0].instance.rows is None:
        text = "it holds no images"
    elif all(one.frame.position is None for one in slices):
        text = "there is no ImagePositionPatient"
    else:
        text = "there is no ImageOrientationPatient, or it is none"
    return _without_grid(slices, Problem(ProblemKind.NO_GEOMETRY, text))


def _without_grid(slices: Sequence[Slice], problem: Problem) -> Stack:
    return _stack(slices, (problem,))


def _stack(
    slices: Sequence[Slice],
    problems: tuple[Problem, ...],
    orientation: Orientation | None = None,
    spacing: float | None = None,
    step: Vector | None = None,
) -> Stack:
    first = slices[0]
    return Stack(
        tuple(slices),
        first.instance.rows,
        first.instance.columns,
        orientation,
        first.frame.pixel_spacing,
        spacing,
        step,
        problems,
    )


def _told_apart(stacks: Sequence[Stack]) -> tuple[Stack, ...]:
    """Return the stacks with what is different in them."""
    found: list[list[tuple[str, str]]] = [[] for _ in stacks]
    for name, key in (_KIND | _REPEATS | _GEOMETRY).items():
        values = [{key(one) for one in stack.slices} for stack in stacks]
        # Only what is the same in all of a stack can be what sets it apart.
        if name != "SOPInstanceUID" and all(len(value) == 1 for value in values) and len(set().union(*values)) > 1:
            for stack, value in zip(found, values, strict=True):
                (only,) = value
                stack.append((name, "" if name in _UNSHOWN else _shown(only)))
    return tuple(replace(stack, set_apart_by=tuple(told)) for stack, told in zip(stacks, found, strict=True))


def _shown(value: Hashable) -> str:
    if isinstance(value, tuple):
        return "\\".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


# ---------------------------------------------------------------------------------------------------------------- grouping


def _grouped(things: Iterable[_T], key: Callable[[_T], Hashable]) -> dict[Hashable, list[_T]]:
    groups: dict[Hashable, list[_T]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups


def _clustered(
    slices: Sequence[Slice], value_of: Callable[[Slice], _V | None], same: Callable[[_V, _V], bool]
) -> list[list[Slice]]:
    """Group slices whose values are the same but for rounding. Beyond _MAX_DIRECTIONS groups all others are in the last one."""
    clusters: list[tuple[_V | None, list[Slice]]] = []
    known: dict[_V | None, list[Slice]] = {}  # most slices have their value to the last digit from one before
    for one in slices:
        value = value_of(one)
        if value not in known:
            near = (group for v, group in clusters if v is value or (v is not None and value is not None and same(v, value)))
            found = next(near, None)
            if found is None and len(clusters) < _MAX_DIRECTIONS:
                found = []
                clusters.append((value, found))
            known[value] = clusters[-1][1] if found is None else found
        known[value].append(one)
    return [group for _, group in clusters]


def _same_spacing(left: Spacing, right: Spacing) -> bool:
    return all(abs(a - b) <= _SAME_SPACING for a, b in zip(left, right, strict=True))
