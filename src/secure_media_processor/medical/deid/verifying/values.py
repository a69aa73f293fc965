"""Judging values for the verifier: which say nothing, which have no sound form, and which are the same."""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_VM, dictionary_VR

from secure_media_processor.medical.deid.verifying.elements import TEXT_VRS, in_dictionary

if TYPE_CHECKING:
    from secure_media_processor.medical.deid.verifying.elements import Element

# A value that says nothing cannot give anybody away, so it may be where it was: blanks, zeros, and the words that writers put
# where they must say something.
_VOID = re.compile(
    r"[\W_0]*|(19000101|00010101)[\W_0]*|000[DWMY]"
    r"|[\W_]*(ANONYM(OUS|IZED|ISED)?|REMOVED|DE-?IDENTIFIED|NONE|UNKNOWN|UNSPECIFIED|N/?A)[\W_]*"
    r"|HTTPS?://ANONYMI[ZS]ED\.INVALID",
    re.IGNORECASE,
)
# Forms of one value (PS3.5 section 6.2), with the padding that files have.
_FORMS = {
    "AE": r"[ -\[\]-~]{0,16}", "AS": r"([0-9]{3}[DWMY])?", "CS": r"[A-Z0-9_ ]{0,16}",
    "DA": r"([0-9]{8}|[0-9]{4}\.[0-9]{2}\.[0-9]{2})?",
    "DS": r" *[0-9+\-Ee.]{0,16} *", "DT": r"[0-9+\-.]{0,26}", "IS": r" *[0-9+\-]{0,12} *", "TM": r"[0-9.:]{0,16}",
    "UI": r"[0-9.]{0,64}", "SH": r"[^\\]{0,16}", "LO": r"[^\\]{0,64}",
}  # fmt: skip
_SIZES = {"AT": 4, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "SV": 8, "UL": 4, "US": 2, "UV": 8}
_DATE_DIGITS = re.compile(r"([0-9]{4})\.?([0-9]{2})\.?([0-9]{2})")


def is_void(element: Element) -> bool:
    """Return whether the value of an element says nothing."""
    if element.items is not None:
        return not element.items
    if element.vr in TEXT_VRS:
        return all(is_void_text(text) for text in element.texts)
    return not any(element.value)


def is_void_text(text: str) -> bool:
    """Return whether a text says nothing."""
    return _VOID.fullmatch(text.strip()) is not None


def is_sound(element: Element) -> bool:
    """Return whether a value has the form of its attribute. What has not may be anything, and may be taken away."""
    known = set(dictionary_VR(element.tag).split(" or ")) if in_dictionary(element.tag) else {element.vr}
    if element.vr not in known and not {element.vr, *known} <= {"US", "SS", "OW", "OB"}:
        return False
    most = dictionary_VM(element.tag).rpartition("-")[2] if in_dictionary(element.tag) else "n"
    limit = int(most) if most.isdigit() else None
    if element.vr in _SIZES:
        count, rest = divmod(len(element.value), _SIZES[element.vr])
        return not rest and (limit is None or count <= limit)
    if element.vr not in _FORMS:
        return True
    texts = element.texts
    return (limit is None or len(texts) <= limit) and all(re.fullmatch(_FORMS[element.vr], text) for text in texts)


def same(one: Element, other: Element) -> bool:
    """Return whether two elements, which are no sequences, have the same value."""
    if one.vr in TEXT_VRS and other.vr in TEXT_VRS:
        return _stripped(one.texts) == _stripped(other.texts)
    return one.value.rstrip(b"\0") == other.value.rstrip(b"\0")


def shared(one: Element, other: Element) -> bool:
    """Return whether two elements have the same value, or text has one of several values in common, which says something."""
    if same(one, other):
        return True
    if one.vr not in TEXT_VRS or one.vr in {"DS", "IS", "CS"}:
        return False
    return any(not is_void_text(text) for text in set(_stripped(one.texts)) & set(_stripped(other.texts)))


def _stripped(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text.strip(" \0") for text in texts)


def date_in(text: str) -> date | None:
    """Return the date at the beginning of a DA or DT value; None if there is none, or it is no day of the calendar."""
    found = _DATE_DIGITS.match(text)
    try:
        return date(*map(int, found.groups())) if found else None
    except ValueError:
        return None
