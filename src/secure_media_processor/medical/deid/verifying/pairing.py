"""Finding the original of each output. Names and UIDs are new, so files are known by what survives.

Two digests are made of each file: of its pixel data, and of its attributes that the table does not name. Files pair if both
are equal; then if one of them is, and no other file has it. Files that are alike in both are told apart by files of their
series that are not, and then taken in order.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secure_media_processor.medical.deid.verifying import rules as tags
from secure_media_processor.medical.deid.verifying.comparing import patient_of
from secure_media_processor.medical.deid.verifying.links import digest
from secure_media_processor.medical.deid.verifying.values import is_sound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from secure_media_processor.medical.deid.verifying.elements import DicomFile

_SOP_CLASS, _INSTANCE, _SERIES = 0x00080016, 0x00080018, 0x0020000E
_PLACE_TAGS = (0x00080016, 0x00080060, 0x00200013, 0x00200032, 0x00280008, 0x00280010, 0x00280011)
_STABLE_VRS = frozenset({"CS", "DS", "FD", "FL", "IS", "SL", "SS", "UL", "US"})


@dataclass(frozen=True, slots=True)
class Mark:
    """By what a file is known."""

    path: Path
    pixels: bytes
    """Digest; empty if there are none."""
    attributes: bytes
    """Digest of what the table does not name."""
    position: bytes
    """Digest of kind, number and position of the image."""
    shape: bytes
    """Digest of the tags that the table does not name."""
    patient: bytes
    series: bytes
    instance: bytes
    """Digests of identities."""


def mark_of(path: Path, file: DicomFile) -> Mark:
    """Return by what a file is known."""
    stable: list[str | bytes] = []
    names: list[str] = []
    for tag in sorted(file.dataset):
        element = file.dataset[tag]
        if tag in tags.PIXEL_DESCRIPTION_TAGS | tags.FREE_TO_CHANGE_TAGS or tag >> 16 & 1 or tag >> 24 in {0x50, 0x60}:
            continue
        if tags.table().row(tag) is not None or not tags.is_known(tag) or not tag & 0xFFFF:
            continue
        names.append(tags.tag_name(tag))
        if element.items is None and element.vr in _STABLE_VRS and is_sound(element):
            stable += [tags.tag_name(tag), *element.raw_values]
    pixels = [file.dataset[tag].value for tag in sorted(tags.PIXEL_TAGS & file.dataset.keys())]
    place: list[str | bytes] = []
    for tag in _PLACE_TAGS:
        if tag in file.dataset:
            place += [tags.tag_name(tag), *file.dataset[tag].raw_values]
    identities = [digest(*file.dataset[tag].texts) if tag in file.dataset else b"" for tag in (_SERIES, _INSTANCE)]
    return Mark(
        path,
        digest(*pixels) if pixels else b"",
        digest(*stable),
        digest(*place),
        digest(*names),
        patient_of(file.dataset),
        identities[0],
        identities[1],
    )


# What pairs files, surest first. Of the likely ones no other file may have the same.
_SURE_KEYS: tuple[Callable[[Mark], object], ...] = (
    lambda mark: (mark.pixels, mark.attributes, mark.position, mark.shape),
    lambda mark: (mark.pixels, mark.attributes, mark.position),
)
_LIKELY_KEYS: tuple[Callable[[Mark], object], ...] = (
    lambda mark: mark.pixels and (mark.pixels, mark.position),
    lambda mark: mark.pixels,
    lambda mark: (mark.attributes, mark.position),
    lambda mark: mark.attributes,
    lambda mark: (mark.position, mark.shape),
    lambda mark: mark.position,
    lambda mark: mark.shape,
)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which output comes from which original."""

    pairs: tuple[tuple[Path, Path], ...]
    """(original, output), in the order of the originals."""
    missing: tuple[Path, ...]
    """Originals without an output."""
    unpaired: tuple[Path, ...]
    """Outputs without an original."""


def pair(originals: Iterable[Mark], outputs: Iterable[Mark], known: Mapping[bytes, bytes] | None = None) -> Pairs:
    """Return which output comes from which original.

    Args:
        originals: In order of path.
        outputs: In order of path.
        known: Digest of an original SOPInstanceUID (0008,0018) → that of the new one, where a mapping was given.
    """
    # By path, so that what is found leaves at once, however many there are.
    left, right = {mark.path: mark for mark in originals}, {mark.path: mark for mark in outputs}
    found: list[tuple[Mark, Mark]] = []

    def match(key_left: Callable[[Mark], object], key_right: Callable[[Mark], object], *, alone: bool) -> None:
        by_left, by_right = _grouped(left.values(), key_left), _grouped(right.values(), key_right)
        for key, ones in by_left.items():
            others = by_right.get(key, [])
            if not others or (alone and (len(ones), len(others)) != (1, 1)):
                continue
            for one, other in _in_order(ones, others, found):
                found.append((one, other))
                del left[one.path], right[other.path]

    if known:
        match(lambda m: known.get(m.instance), lambda m: m.instance or None, alone=True)
    match(lambda m: m.instance or None, lambda m: m.instance or None, alone=True)  # UIDs were retained
    for key in _SURE_KEYS:
        match(key, key, alone=True)
        match(key, key, alone=False)
    for key in _LIKELY_KEYS:
        match(key, key, alone=True)
    order = sorted(found, key=lambda both: both[0].path)
    return Pairs(
        tuple((one.path, other.path) for one, other in order),
        tuple(left),
        tuple(right),
    )


def _grouped(marks: Iterable[Mark], key: Callable[[Mark], object]) -> dict[object, list[Mark]]:
    groups: dict[object, list[Mark]] = defaultdict(list)
    for mark in marks:
        value = key(mark)
        if value:
            groups[value].append(mark)
    return groups


def _in_order(ones: list[Mark], others: list[Mark], found: list[tuple[Mark, Mark]]) -> list[tuple[Mark, Mark]]:
    """Pair files that are alike: within series that belong together, and those left over in order."""
    if len(ones) == len(others) == 1:
        return [(ones[0], others[0])]
    series = {one.series: other.series for one, other in found}
    patients = {one.patient: other.patient for one, other in found}
    pairs = []
    waiting = list(others)
    for by_series in (True, False):
        for one in list(ones):
            wanted = series.get(one.series) if by_series else patients.get(one.patient)
            fit = next((o for o in waiting if wanted and wanted == (o.series if by_series else o.patient)), None)
            if fit is not None:
                pairs.append((one, fit))
                ones.remove(one)
                waiting.remove(fit)
    # What is left has no relative: each series of the one side is given a series of the other, of the same size.
    return pairs + list(zip(sorted(ones, key=_by_series), sorted(waiting, key=_by_series), strict=False))


def _by_series(mark: Mark) -> tuple[bytes, str]:
    return mark.series, str(mark.path)
