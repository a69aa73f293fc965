"""What is to be done with each attribute: the Basic Profile of PS3.15 Annex E and the options that a user may add to it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_has_tag, dictionary_VM, dictionary_VR, repeater_has_tag, tag_for_keyword

from secure_media_processor.errors import UsageError
from secure_media_processor.medical.deid.table import Action, read_table

if TYPE_CHECKING:
    from collections.abc import Iterable

BASIC_PROFILE = ("113100", "Basic Application Confidentiality Profile")
"""Code and meaning of the profile itself (PS3.16 CID 7050, scheme DCM)."""


class Option(Enum):
    """An option of PS3.15 section E.3. Its value is its name on the command line."""

    RETAIN_UIDS = "retain-uids"
    RETAIN_DEVICE = "retain-device"
    RETAIN_INSTITUTION = "retain-institution"
    RETAIN_PATIENT_CHARACTERISTICS = "retain-patient-characteristics"
    RETAIN_DATES = "retain-dates"
    SHIFT_DATES = "shift-dates"
    RETAIN_SAFE_PRIVATE = "retain-safe-private"
    CLEAN_DESCRIPTORS = "clean-descriptors"
    CLEAN_STRUCTURED_CONTENT = "clean-structured-content"
    CLEAN_GRAPHICS = "clean-graphics"
    CLEAN_PIXELS = "clean-pixels"
    DEFACE = "deface"

    @property
    def code(self) -> tuple[str, str]:
        """Code and meaning for DeidentificationMethodCodeSequence (PS3.16 CID 7050, scheme DCM)."""
        return _CODES[self]

    @property
    def column(self) -> str | None:
        """The column of the table; None for what is not done by the table."""
        return _COLUMNS.get(self)


_CODES = {
    Option.CLEAN_PIXELS: ("113101", "Clean Pixel Data Option"),
    Option.DEFACE: ("113102", "Clean Recognizable Visual Features Option"),
    Option.CLEAN_GRAPHICS: ("113103", "Clean Graphics Option"),
    Option.CLEAN_STRUCTURED_CONTENT: ("113104", "Clean Structured Content Option"),
    Option.CLEAN_DESCRIPTORS: ("113105", "Clean Descriptors Option"),
    Option.RETAIN_DATES: ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    Option.SHIFT_DATES: ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    Option.RETAIN_PATIENT_CHARACTERISTICS: ("113108", "Retain Patient Characteristics Option"),
    Option.RETAIN_DEVICE: ("113109", "Retain Device Identity Option"),
    Option.RETAIN_UIDS: ("113110", "Retain UIDs Option"),
    Option.RETAIN_SAFE_PRIVATE: ("113111", "Retain Safe Private Option"),
    Option.RETAIN_INSTITUTION: ("113112", "Retain Institution Identity Option"),
}
METHODS = dict([BASIC_PROFILE, *_CODES.values()])
"""Code → meaning."""
RETAINING = {code for option, (code, _) in _CODES.items() if option.value.startswith(("retain-", "shift-"))}
"""Codes of the options that keep something."""
_COLUMNS = {
    Option.RETAIN_UIDS: "uids",
    Option.RETAIN_DEVICE: "device",
    Option.RETAIN_INSTITUTION: "institution",
    Option.RETAIN_PATIENT_CHARACTERISTICS: "patient",
    Option.RETAIN_DATES: "full_dates",
    Option.SHIFT_DATES: "modified_dates",
    Option.RETAIN_SAFE_PRIVATE: "safe_private",
    Option.CLEAN_DESCRIPTORS: "descriptors",
    Option.CLEAN_STRUCTURED_CONTENT: "structured",
    Option.CLEAN_GRAPHICS: "graphics",
}

PRESETS: dict[str, frozenset[Option]] = {
    "basic": frozenset(),
    # 45 CFR 164.514(b)(2): dates, devices, institutions and free text go; sex, weight and ages up to 89 may stay.
    "hipaa-safe-harbor": frozenset({Option.CLEAN_PIXELS, Option.RETAIN_PATIENT_CHARACTERISTICS}),
    # What The Cancer Imaging Archive does with submissions.
    "tcia": frozenset(
        {
            Option.CLEAN_PIXELS,
            Option.CLEAN_DESCRIPTORS,
            Option.SHIFT_DATES,
            Option.RETAIN_PATIENT_CHARACTERISTICS,
            Option.RETAIN_DEVICE,
            Option.RETAIN_SAFE_PRIVATE,
        }
    ),
    # As much as research usually needs, with nothing that names an institution or a device.
    "research": frozenset(
        {
            Option.CLEAN_DESCRIPTORS,
            Option.CLEAN_STRUCTURED_CONTENT,
            Option.CLEAN_GRAPHICS,
            Option.SHIFT_DATES,
            Option.RETAIN_PATIENT_CHARACTERISTICS,
            Option.RETAIN_SAFE_PRIVATE,
        }
    ),
}
"""Name → options."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The Basic Profile with options."""

    options: frozenset[Option] = frozenset()

    def __post_init__(self) -> None:
        if {Option.RETAIN_DATES, Option.SHIFT_DATES} <= self.options:
            raise UsageError("dates can be kept or shifted, not both", hint="leave out --retain-dates or --shift-dates")

    @classmethod
    def named(cls, name: str, options: Iterable[Option] = ()) -> Profile:
        """Return the preset `name` with further `options`. Raises UsageError if there is none, or options contradict."""
        if name not in PRESETS:
            raise UsageError(f"there is no profile {name}", hint=f"there are {', '.join(PRESETS)}")
        return cls(PRESETS[name] | frozenset(options))

    @property
    def codes(self) -> list[tuple[str, str]]:
        """Code and meaning of the profile and of each option, in order of the codes."""
        return [BASIC_PROFILE, *sorted(option.code for option in self.options)]


# What names a person, a place on the web, or an instance, wherever it stands: the table cannot list every such attribute.
_ALWAYS = {"PN": Action.DUMMY, "UR": Action.DUMMY, "UI": Action.REPLACE_UID}
# UIDs that name a kind of thing. Private ones among them are not in any dictionary, and must stay.
_KIND_UID_KEYWORDS = (
    "SOPClassUID", "ReferencedSOPClassUID", "RelatedGeneralSOPClassUID", "ReferencedRelatedGeneralSOPClassUIDInFile",
    "OriginalSpecializedSOPClassUID", "CodingSchemeUID", "ContextUID", "MappingResourceUID", "TransferSyntaxUID",
    "AvailableTransferSyntaxUID", "EncryptedContentTransferSyntaxUID", "MACCalculationTransferSyntaxUID", "SOPClassesInStudy",
    "SOPClassesSupported",
)  # fmt: skip
_KIND_UID_TAGS = {tag_for_keyword(keyword) for keyword in _KIND_UID_KEYWORDS}
# Identities that edition 2026c of the table does not name: text of reports outside their tree, and encrypted originals.
# And those that it names in newer attributes only: order numbers, addresses, dates in other calendars, numbers of devices.
_BEYOND_TABLE = {
    0x0040A160: Action.DUMMY, 0x04000500: Action.REMOVE, 0x04000520: Action.REMOVE, 0x00100033: Action.EMPTY,
    0x00100034: Action.EMPTY, 0x00401006: Action.EMPTY, 0x00401007: Action.EMPTY, 0x00402006: Action.EMPTY,
    0x00402007: Action.EMPTY, 0x0074100C: Action.DUMMY, 0x00700081: Action.EMPTY, 0x00181003: Action.REMOVE,
    0x00181803: Action.REMOVE, 0x21000160: Action.REMOVE, 0x0018991A: Action.EMPTY,
}  # fmt: skip
# Free text that is about patients, procedures, documents and assessments.
_FREE_TEXT, _FREE_TEXT_GROUPS = {"ST", "LT", "UT"}, {0x0010, 0x0040, 0x0042, 0x0074, 0x0082}
_TEMPORAL = {"DA", "DT", "TM"}
# Group 0002 is rebuilt, 0000 belongs to the network, and FFFE to delimiters, which are no elements.
_FOREIGN_GROUPS = {0x0000, 0x0002, 0xFFFE}
# Curves and overlays go as whole groups: without their data, which the table removes, the rest describes nothing, and their
# labels are free text.
_CURVES, _OVERLAYS, _GRAPHIC_MASK = 0x5000, 0x6000, 0xFF00


@dataclass(frozen=True, slots=True)
class Rule:
    """What is to be done with one attribute, and what its value must look like."""

    action: Action | None
    """None: it stays."""
    fallback: Action
    """For what cannot be cleaned: what the Basic Profile does."""
    vr: str
    """By which it is judged: that of the dictionary, since a written one may be wrong; empty if no dictionary knows it."""
    vrs: frozenset[str]
    """All that the dictionary allows."""
    most: int
    """How many values it may have."""


_UNLIMITED = 2**31


class Rules:
    """The rules of a profile for every tag; each is worked out once."""

    def __init__(self, profile: Profile) -> None:
        """Read the table for `profile`."""
        self.profile = profile
        self._columns = {option: option.column for option in profile.options if option.column}
        self._known: dict[int, Rule] = {}

    def rule(self, tag: int) -> Rule:
        """Return the rule for `tag` (group << 16 | element)."""
        rule = self._known.get(tag)
        if rule is None:
            rule = self._known[tag] = self._make(tag)
        return rule

    def _make(self, tag: int) -> Rule:
        vrs, most = _dictionary(tag)
        vr = dictionary_VR(tag).split(" ")[0] if vrs else ""  # "US or SS" and the like: either serves for a replacement
        action, fallback = self._action(tag, vr)
        return Rule(action, fallback, vr, vrs, most)

    def _action(self, tag: int, vr: str) -> tuple[Action | None, Action]:
        group = tag >> 16
        if group in _FOREIGN_GROUPS or group & _GRAPHIC_MASK == _CURVES:
            return Action.REMOVE, Action.REMOVE
        if group & _GRAPHIC_MASK == _OVERLAYS:
            return (Action.CLEAN if Option.CLEAN_GRAPHICS in self.profile.options else Action.REMOVE), Action.REMOVE
        row = read_table().row(tag)
        basic = row.basic if row else _BEYOND_TABLE.get(tag)
        if basic is None:
            return self._beyond_table(tag, vr)
        given = {column: row.options[column] for column in self._columns.values() if column in row.options} if row else {}
        if "modified_dates" in given and vr in _TEMPORAL:
            return (
                Action.CLEAN,
                basic,
            )  # even where a device's dates may be kept: beside a shifted date a true one betrays the shift
        if "K" in given.values():
            return Action.KEEP, basic
        return (Action.CLEAN if given else basic), basic

    def _beyond_table(self, tag: int, vr: str) -> tuple[Action | None, Action]:
        if not vr:
            return Action.REMOVE, Action.REMOVE  # an element that no dictionary knows: nobody can say what is in it
        if vr == "UI" and (tag in _KIND_UID_TAGS or Option.RETAIN_UIDS in self.profile.options):
            return None, Action.REPLACE_UID
        if vr in _TEMPORAL and Option.RETAIN_DATES not in self.profile.options:
            return (Action.CLEAN if Option.SHIFT_DATES in self.profile.options else Action.EMPTY), Action.EMPTY
        if vr in _FREE_TEXT and tag >> 16 in _FREE_TEXT_GROUPS:
            return (Action.CLEAN if Option.CLEAN_DESCRIPTORS in self.profile.options else Action.DUMMY), Action.DUMMY
        return _ALWAYS.get(vr), _ALWAYS.get(vr, Action.EMPTY)


@cache
def _dictionary(tag: int) -> tuple[frozenset[str], int]:
    """Return the VRs and the number of values that the dictionary allows; no VR if it does not know the tag."""
    overlay = tag >> 16 & _GRAPHIC_MASK == _OVERLAYS
    if not (dictionary_has_tag(tag) or (overlay and repeater_has_tag(tag))):
        return frozenset(), _UNLIMITED
    most = dictionary_VM(tag).rpartition("-")[2]
    return frozenset(dictionary_VR(tag).split(" or ")), int(most) if most.isdigit() else _UNLIMITED
