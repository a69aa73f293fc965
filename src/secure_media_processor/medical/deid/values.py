"""What values of a VR look like, and ones that say nothing.

What has not the form of its VR may be anything: words in a number, a neighbour swallowed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydicom.multival import MultiValue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydicom.dataelem import DataElement, RawDataElement

    from secure_media_processor.medical.deid.profile import Rule

_TEXT = "ANONYMIZED"
DUMMIES: dict[str, object] = {
    "AE": _TEXT, "AS": "000Y", "AT": 0, "CS": _TEXT, "DA": "19000101", "DS": "0", "DT": "19000101000000", "FD": 0.0, "FL": 0.0,
    "IS": "0", "LO": _TEXT, "LT": _TEXT, "OB": b"\0\0", "OD": bytes(8), "OF": bytes(4), "OL": bytes(4), "OV": bytes(8),
    "OW": b"\0\0", "PN": _TEXT, "SH": _TEXT, "SL": 0, "SS": 0, "ST": _TEXT, "SV": 0, "TM": "000000", "UC": _TEXT, "UL": 0,
    "UN": b"\0\0", "UR": "http://anonymized.invalid", "US": 0, "UT": _TEXT, "UV": 0,
}  # fmt: skip
"""VR → a value that is valid (PS3.5 section 6.2) and says nothing."""

# The repertoire and length of one value (PS3.5 section 6.2), with the padding that files have.
_FORMS = {
    "AE": rb"[ -\[\]-~]{0,16}",
    "AS": rb"([0-9]{3}[DWMY])?",
    "CS": rb"[ -\[\]-~]{0,16}",
    "DA": rb"[0-9.\-]{0,17}",
    "DS": rb"[0-9+\-Ee. ]{0,24}",
    "DT": rb"[0-9+\-.]{0,54}",
    "IS": rb"[0-9+\- ]{0,16}",
    "TM": rb"[0-9.:\-]{0,28}",
    "UI": rb"[0-9.]{0,64}",
}
# One match for all values, which a backslash separates.
_SEVERAL = {vr: re.compile(rb" *" + form + rb"[ \0]*(?:\\ *" + form + rb"[ \0]*)*") for vr, form in _FORMS.items()}
# Bytes of one value.
_BINARY = {"AT": 4, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "SV": 8, "UL": 4, "US": 2, "UV": 8}
_BULK = {"OB", "OD", "OF", "OL", "OV", "OW", "UN"}
_WORDS = {"LO", "LT", "SH", "ST", "UC", "UT"}
# VRs of which one is often found where another belongs, and says no more.
_FAMILIES = ({"IS", "DS"}, _WORDS, _BULK - {"UN"}, {"US", "SS", "UL", "SL"})


def has_sound_value(element: RawDataElement | DataElement, rule: Rule) -> bool:
    """Return whether the value of `element`, whose tag is in the dictionary, can be what the dictionary says it is.

    Text is believed: it can say anything, and it does so in its own place. So are bytes that are meant to be bytes.
    """
    return is_sound(element.VR, element.value, rule)


def is_sound(written: str | None, value: object, rule: Rule) -> bool:
    """As has_sound_value, for a value of the VR `written`, None if the file does not say."""
    if written in rule.vrs:
        return _fits(value, written, rule.most)
    if written not in (None, "UN") and not _interchangeable(written, rule.vrs):
        return False
    return any(_fits(value, vr, rule.most) for vr in rule.vrs)


def _interchangeable(written: str, known: Iterable[str]) -> bool:
    return any(written in family and not family.isdisjoint(known) for family in _FAMILIES)


def _fits(value: object, vr: str, most: int) -> bool:
    if vr in _BINARY:
        if isinstance(value, bytes):
            return len(value) % _BINARY[vr] == 0 and len(value) // _BINARY[vr] <= most
        return len(_several(value)) <= most
    if vr in _SEVERAL:
        written = value if isinstance(value, bytes) else b"\\".join(_several(value))
        return _SEVERAL[vr].fullmatch(written) is not None
    return True


def _several(value: object) -> list[bytes]:
    """Return each of the values that an element has after it was decoded."""
    several = list(value) if isinstance(value, MultiValue | list | tuple) else [] if value is None else [value]
    return [one if isinstance(one, bytes) else str(one).encode("utf-8", "replace") for one in several]
