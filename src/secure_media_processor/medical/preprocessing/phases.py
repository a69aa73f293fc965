"""The phases of a dynamic series (DCE): in which order they were taken, and reading them from a folder of DICOM.

The order comes from what the scanner wrote, never from names of files. Times are those of a patient's examination: they are
used as differences in seconds, and never shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset

from secure_media_processor.errors import ImageError, MissingError
from secure_media_processor.medical.dicom.elements import items, number, text, whole_number
from secure_media_processor.medical.dicom.reader import Unreadable, read_dataset
from secure_media_processor.medical.dicom.series import group_into_series
from secure_media_processor.medical.volume import read_slices, read_stack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.dicom.frames import Frame
    from secure_media_processor.medical.dicom.series import Stack
    from secure_media_processor.medical.volume import Volume

_TIME = re.compile(r"(\d\d):?(\d\d)?:?(\d\d(?:\.\d{1,6})?)?")  # TM of PS3.5 table 6.2-1, and its colons of old
_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)")
_OFFSET = re.compile(r"[+-]\d{4}$")  # from UTC
_DAY = 24 * 3600.0
_TAGS = (
    "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "ContentDate", "ContentTime", "TemporalPositionIdentifier",
    "TriggerTime", "ContrastBolusStartTime", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PhaseStamp:
    """What an image says of when it was taken."""

    acquired: float | None = None
    """AcquisitionTime (0008,0032), seconds from midnight, with the days of AcquisitionDate (0008,0022) where it is there; of an
    enhanced object FrameAcquisitionDateTime (0018,9074), else AcquisitionDateTime (0008,002A), seconds from year 1."""
    position: int | None = None
    """TemporalPositionIdentifier (0020,0100), or TemporalPositionIndex (0020,9128); they count from 1."""
    content: float | None = None
    """ContentTime (0008,0033) as `acquired`: when the image was made, which may be long after."""
    trigger: float | None = None
    """TriggerTime (0018,1060), or NominalCardiacTriggerDelayTime (0020,9153), seconds."""
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
    each alone on its grid or of its kind, are left out. All phases are in memory at once, float32. They may be frames of one
    enhanced object or of several.

    Raises:
        ImageError: there are not at least two phases, or two dynamic series; see phase_order and read_slices.
        KeyMissingError, IntegrityError: a file is encrypted, and cannot be opened.
        MissingError: there are no DICOM images.
    """
    slices = read_slices(folder, identities=identities)
    stacks = [stack for series in group_into_series(slices) for stack in series.stacks if stack.rows is not None]
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
    found = phase_order(_stamps(dynamic[0], identities))
    volumes = (read_stack(folder, dynamic[0][n], identities=identities) for n in found.order)
    return Phases(tuple(volumes), found.times, found.by)


def _kind(stack: Stack) -> tuple[object, ...]:
    one = stack.slices[0]
    frame = one.frame
    return (one.instance.frame_of_reference_uid, frame.image_type, frame.echo_number, frame.echo_time, frame.b_value)


def _stamps(stacks: Sequence[Stack], identities: Sequence[Identity]) -> list[PhaseStamp]:
    """Return the stamp of each stack: of the slice that was taken first."""
    headers: dict[Path, _Header] = {}
    found = []
    for stack in stacks:
        for instance in stack.instances:
            if instance.path not in headers:
                headers[instance.path] = _Header.read(instance.path, identities)
        found.append(_earliest([headers[one.instance.path].stamp(one.frame) for one in stack.slices]))
    return found


@dataclass(frozen=True, slots=True)
class _Header:
    """What an object says of its times."""

    whole: PhaseStamp
    """Of all its frames."""
    moments: tuple[float | None, ...]
    """FrameAcquisitionDateTime (0018,9074) of each frame of an enhanced object, seconds from year 1; no others have it."""

    @classmethod
    def read(cls, path: Path, identities: Sequence[Identity]) -> _Header:
        header = read_dataset(path, tags=_TAGS, identities=identities)
        if isinstance(header, Unreadable):
            raise ImageError(f"{path}: {header.reason}")
        trigger = number(header, "TriggerTime")
        acquired = _seconds(text(header, "AcquisitionTime"), text(header, "AcquisitionDate"))
        whole = PhaseStamp(
            acquired=_instant(text(header, "AcquisitionDateTime")) if acquired is None else acquired,
            position=whole_number(header, "TemporalPositionIdentifier"),
            content=_seconds(text(header, "ContentTime"), text(header, "ContentDate")),
            trigger=None if trigger is None else trigger / 1000,
            bolus=_seconds(text(header, "ContrastBolusStartTime"), ""),
        )
        groups = items(header, "PerFrameFunctionalGroupsSequence")
        contents = (next(iter(items(group, "FrameContentSequence")), Dataset()) for group in groups)
        return cls(whole, tuple(_instant(text(content, "FrameAcquisitionDateTime")) for content in contents))

    def stamp(self, frame: Frame) -> PhaseStamp:
        """Return the stamp of one frame: what it says of itself comes before what stands for all of them."""
        own = self.moments[frame.index] if frame.index < len(self.moments) else None
        position, trigger = frame.temporal_position, frame.trigger_time
        return replace(
            self.whole,
            acquired=self.whole.acquired if own is None else own,
            position=self.whole.position if position is None else position,
            trigger=self.whole.trigger if trigger is None else trigger / 1000,
        )


def _earliest(stamps: Sequence[PhaseStamp]) -> PhaseStamp:
    def least(values: list[float | None]) -> float | None:
        found = [value for value in values if value is not None]
        return min(found) if len(found) == len(values) else None

    position = least([stamp.position for stamp in stamps])
    return PhaseStamp(
        acquired=least([stamp.acquired for stamp in stamps]),
        position=None if position is None else int(position),
        content=least([stamp.content for stamp in stamps]),
        trigger=least([stamp.trigger for stamp in stamps]),
        bolus=least([stamp.bolus for stamp in stamps]),
    )


def _instant(moment: str) -> float | None:
    """Return seconds from the beginning of year 1 of a DICOM date and time (DT); its offset from UTC is left out."""
    local = _OFFSET.sub("", moment)
    return _seconds(local[8:], local[:8])


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
