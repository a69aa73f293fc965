"""Putting instances together into series, in the order in which they lie in space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from secure_media_processor.medical.dicom.reader import Instance

# Direction cosines are written with few digits; slices of one stack agree to this.
_SAME_DIRECTION = 1e-3


@dataclass(frozen=True, slots=True)
class Series:
    """The instances that share a SeriesInstanceUID (0020,000E)."""

    series_instance_uid: str
    study_instance_uid: str
    modality: str
    instances: tuple[Instance, ...]
    """Sorted along the slice normal where all have a position and one orientation; else by InstanceNumber, then path."""
    spatially_sorted: bool


def group_into_series(instances: Iterable[Instance]) -> tuple[Series, ...]:
    """Return the series in `instances`, in order of their UIDs."""
    groups: dict[str, list[Instance]] = {}
    for instance in instances:
        groups.setdefault(instance.series_instance_uid, []).append(instance)
    return tuple(_series(groups[uid]) for uid in sorted(groups))


def _series(members: list[Instance]) -> Series:
    normal = _common_normal(members)
    if normal is None:
        ordered = sorted(members, key=lambda i: (i.instance_number is None, i.instance_number or 0, i.path))
    else:
        # SliceLocation may be relative to anything; the position along the normal is what it should be (PS3.3 C.7.6.2.1.1).
        ordered = sorted(members, key=lambda i: (_dot(normal, i.position or normal), i.instance_number or 0, i.path))
    first = ordered[0]
    return Series(first.series_instance_uid, first.study_instance_uid, first.modality, tuple(ordered), normal is not None)


def _common_normal(members: list[Instance]) -> tuple[float, float, float] | None:
    """Return the direction across the slices, if all of them have a position and share an orientation."""
    reference = members[0].orientation
    if reference is None or any(m.position is None or m.orientation is None for m in members):
        return None
    if any(abs(a - b) > _SAME_DIRECTION for m in members for a, b in zip(reference, m.orientation or (), strict=True)):
        return None
    (a, b, c), (d, e, f) = reference[:3], reference[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    # Row and column are perpendicular unit vectors; what is not has no direction across.
    return normal if abs(_dot(normal, normal) - 1) < _SAME_DIRECTION * 10 else None


def _dot(left: tuple[float, ...], right: tuple[float, ...]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
