"""The phases of a dynamic series (DCE): in which order they were taken, and reading them from a folder of DICOM.

The order comes from what the scanner wrote, never from names of files. Times are those of a patient's examination: they are
used as differences in seconds, and never shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from secure_media_processor.errors import ImageError, MissingError
from secure_media_processor.medical.convert.outcome import SliceError
from secure_media_processor.medical.convert.volume import measured_slices
from secure_media_processor.medical.dicom.elements import number, text, whole_number
from secure_media_processor.medical.dicom.geometry import lps_to_ras
from secure_media_processor.medical.dicom.reader import Unreadable, read_dataset, read_folder
from secure_media_processor.medical.dicom.series import group_into_series
from secure_media_processor.medical.volume import Grid, Volume

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.dicom.series import Stack

_TIME = re.compile(r"(\d\d):?(\d\d)?:?(\d\d(?:\.\d{1,6})?)?")  # TM of PS3.5 table 6.2-1, and its colons of old
_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)")
_DAY = 24 * 3600.0
_TAGS = (
    "AcquisitionDate", "AcquisitionTime", "ContentDate", "ContentTime", "TemporalPositionIdentifier", "TriggerTime",
    "ContrastBolusStartTime",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PhaseStamp:
    """What an image says of when it was taken."""

    acquired: float | None = None
    """AcquisitionTime (0008,0032), seconds from midnight, with the days of AcquisitionDate (0008,0022) where it is there."""
    position: int | None = None
    """TemporalPositionIdentifier (0020,0100); they count from 1."""
    content: float | None = None
    """ContentTime (0008,0033) as `acquired`: when the image was made, which may be long after."""
    trigger: float | None = None
    """TriggerTime (0018,1060), seconds."""
    bolus: float | None = None
    """ContrastBolusStartTime (0018,1042), seconds from midnight."""


@dataclass(frozen=True, slots=True)
class PhaseOrder:
    """In which order phases were taken."""

    order: tuple[int, ...]
    """Indices of the stamps, the first phase first."""
    times: tuple[float, ...] | None
    """Seconds from the first phase, in that order; None if only the order is known."""
    by: str
    """The element that gave it."""


@dataclass(frozen=True, slots=True, eq=False)
class Phases:
    """Volumes of one grid over time."""

    volumes: tuple[Volume, ...]
    """The first is the one before the contrast medium."""
    times: tuple[float, ...] | None
    """Seconds from the first; None if only the order is known."""
    by: str
    """What the order comes from."""


def phase_order(stamps: Sequence[PhaseStamp]) -> PhaseOrder:
    """Return the order of phases.

    It comes from the first of these that all phases have, and no two the same: AcquisitionTime, TemporalPositionIdentifier,
    ContentTime, TriggerTime. Seconds come from AcquisitionTime, TriggerTime or ContentTime, in that order.

    Raises:
        ImageError: there is only one phase; nothing puts them into an order; AcquisitionTime, TemporalPositionIdentifier and
            TriggerTime contradict each other; the one before the contrast medium is missing: positions do not begin with 1, or
            the first was taken after the injection.
    """
    if len(stamps) < 2:  # noqa: PLR2004 - before and after
        raise ImageError("there is one phase only: one before the contrast medium and one after it are needed")
    known = {
        "AcquisitionTime": _same_day([stamp.acquired for stamp in stamps]),
        "TemporalPositionIdentifier": _distinct([stamp.position for stamp in stamps]),
        "ContentTime": _same_day([stamp.content for stamp in stamps]),
        "TriggerTime": _distinct([stamp.trigger for stamp in stamps]),
    }
    orders = {name: tuple(int(n) for n in np.argsort(values)) for name, values in known.items() if values}
    if not orders:
        hint = "give the phases as NIfTI files, in order and with their times"
        raise ImageError("nothing tells the phases apart in time: their times are missing or equal", hint=hint)
    by, order = next(iter(orders.items()))
    trusted = {found for name, found in orders.items() if name != "ContentTime"}
    if len(trusted) > 1:
        names = ", ".join(name for name in orders if name != "ContentTime")
        raise ImageError(f"the order of the phases is not clear: {names} contradict each other")
    _check_first(stamps, order[0])
    clock = next((known[name] for name in ("AcquisitionTime", "TriggerTime", "ContentTime") if known[name]), None)
    times = None if clock is None else tuple(round(clock[n] - clock[order[0]], 3) for n in order)
    # ContentTime may run against the order in which images were taken: then it is no clock.
    if times is not None and any(later <= earlier for earlier, later in pairwise(times)):
        times = None
    return PhaseOrder(order, times, by)


def _check_first(stamps: Sequence[PhaseStamp], first: int) -> None:
    positions = [stamp.position for stamp in stamps if stamp.position is not None]
    if len(positions) == len(stamps) and len(set(positions)) > 1 and min(positions) != 1:
        raise ImageError("the phase before the contrast medium is missing: TemporalPositionIdentifier does not begin with 1")
    acquired, bolus = stamps[first].acquired, stamps[first].bolus
    if acquired is not None and bolus is not None and (acquired - bolus) % _DAY < _DAY / 2:
        raise ImageError(
            "the phase before the contrast medium is missing: the first one was taken after ContrastBolusStartTime"
        )


def _distinct(values: Sequence[float | None]) -> list[float]:
    """Return the values if all are there and no two the same, else none."""
    found = [value for value in values if value is not None]
    return found if len(set(found)) == len(values) else []


def _same_day(values: Sequence[float | None]) -> list[float]:
    """Return times, distinct or none as _distinct; where they have no date and lie half a day apart, midnight was between."""
    found = _distinct(values)
    if found and max(found) < _DAY and max(found) - min(found) > _DAY / 2:
        return [value + _DAY if value < _DAY / 2 else value for value in found]
    return found


def read_phases(folder: Path, *, identities: Sequence[Identity] = ()) -> Phases:
    """Read the phases in a folder of DICOM, of one series or of several, under any names of files.

    Phases are regular stacks on one grid, of one kind (ImageType, echo) and frame of reference. Other stacks in the folder,
    each alone on its grid or of its kind, are left out. All phases are in memory at once, float32.

    Raises:
        ImageError: there are not at least two phases, or two dynamic series; a file cannot be read; see phase_order.
        MissingError: there are no DICOM images.
    """
    contents = read_folder(folder, identities=identities)
    for one in contents.unreadable:
        raise ImageError(f"{one.path}: {one.reason}", hint="phases are put together only if all files can be read")
    stacks = [stack for series in group_into_series(contents.instances) for stack in series.stacks if stack.rows is not None]
    if not stacks:
        raise MissingError(f"{folder} holds no DICOM images")
    groups: list[list[Stack]] = []
    for stack in stacks:
        same = next((group for group in groups if _kind(group[0]) == _kind(stack) and group[0].same_grid(stack)), None)
        groups.append([stack]) if same is None else same.append(stack)
    dynamic = [group for group in groups if len(group) > 1]
    if len(dynamic) > 1:
        raise ImageError(f"{folder} holds {len(dynamic)} dynamic series, and one is wanted", hint="name the folder of one")
    if not dynamic:
        raise ImageError(f"{folder}: there is one phase only: one before the contrast medium and one after it are needed")
    found = phase_order([_stamp(stack, identities) for stack in dynamic[0]])
    return Phases(tuple(_volume(dynamic[0][n], identities) for n in found.order), found.times, found.by)


def _kind(stack: Stack) -> tuple[object, ...]:
    one = stack.slices[0]
    frame = one.frame
    return (one.instance.frame_of_reference_uid, frame.image_type, frame.echo_number, frame.echo_time, frame.b_value)


def _stamp(stack: Stack, identities: Sequence[Identity]) -> PhaseStamp:
    """Return the stamp of a stack: of the slice that was taken first."""
    stamps = []
    for instance in stack.instances:
        header = read_dataset(instance.path, tags=_TAGS, identities=identities)
        if isinstance(header, Unreadable):
            raise ImageError(f"{instance.path}: {header.reason}")
        trigger = number(header, "TriggerTime")
        stamps.append(
            PhaseStamp(
                acquired=_seconds(text(header, "AcquisitionTime"), text(header, "AcquisitionDate")),
                position=whole_number(header, "TemporalPositionIdentifier"),
                content=_seconds(text(header, "ContentTime"), text(header, "ContentDate")),
                trigger=None if trigger is None else trigger / 1000,
                bolus=_seconds(text(header, "ContrastBolusStartTime"), ""),
            )
        )
    frames = [one.frame for one in stack.slices]

    def least(values: list[float | None]) -> float | None:
        found = [value for value in values if value is not None]
        return min(found) if len(found) == len(values) else None

    position = least([stamp.position for stamp in stamps]) or least([frame.temporal_position for frame in frames])
    trigger = least([stamp.trigger for stamp in stamps])
    if trigger is None:
        milliseconds = least([frame.trigger_time for frame in frames])
        trigger = None if milliseconds is None else milliseconds / 1000
    return PhaseStamp(
        acquired=least([stamp.acquired for stamp in stamps]),
        position=None if position is None else int(position),
        content=least([stamp.content for stamp in stamps]),
        trigger=trigger,
        bolus=least([stamp.bolus for stamp in stamps]),
    )


def _seconds(time: str, day: str) -> float | None:
    """Return seconds from midnight of a DICOM time (TM), or from year 1 if there is a date (DA) with it."""
    found, dated = _TIME.fullmatch(time), _DATE.fullmatch(day)
    if found is None:
        return None
    try:
        days = date(*map(int, dated.groups())).toordinal() if dated else 0
    except ValueError:  # no such day
        return None
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return days * _DAY + hours * 3600 + minutes * 60 + seconds


def _volume(stack: Stack, identities: Sequence[Identity]) -> Volume:
    first = stack.slices[0].instance
    if stack.problems or stack.affine is None:
        reasons = "; ".join(problem.text for problem in stack.problems) or "its geometry is not known"
        raise ImageError(f"a phase is no regular volume: {reasons}")
    grid = Grid((stack.columns or 0, stack.rows or 0, len(stack.slices)), np.array(lps_to_ras(stack.affine)))
    array = np.empty(grid.shape, np.float32, order="F")
    try:
        for k, pixels in enumerate(measured_slices(stack, np.float32, identities=identities)):
            array[:, :, k] = pixels.T
    except SliceError as error:
        raise ImageError(f"{error.path}: {error}", hint=error.hint) from error
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ImageError(f"{first.path}: a phase has values that are no finite numbers")
    return Volume(array, grid, first.frame_of_reference_uid or None, first.modality or None)
