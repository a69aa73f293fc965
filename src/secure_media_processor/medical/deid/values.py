"""Does a value have the form that its VR demands? What has not may be anything: words in a number, a neighbour swallowed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.multival import MultiValue

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement, RawDataElement

# The repertoire and length of one value (PS3.5 section 6.2), with the padding that files have.
_FORMS = {
    "AE": re.compile(rb"[ -\[\]-~]{0,16}"),
    "AS": re.compile(rb"([0-9]{3}[DWMY])?"),
    "CS": re.compile(rb"[ -\[\]-~]{0,16}"),
    "DA": re.compile(rb"[0-9.\-]{0,17}"),
    "DS": re.compile(rb"[0-9+\-Ee. ]{0,24}"),
    "DT": re.compile(rb"[0-9+\-.]{0,54}"),
    "IS": re.compile(rb"[0-9+\- ]{0,16}"),
    "TM": re.compile(rb"[0-9.:\-]{0,28}"),
    "UI": re.compile(rb"[0-9.]{0,64}"),
}
# Bytes of one value.
_BINARY = {"AT": 4, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "SV": 8, "UL": 4, "US": 2, "UV": 8}
_BULK = {"OB", "OD", "OF", "OL", "OV", "OW", "UN"}
_TEXT = {"LO", "LT", "SH", "ST", "UC", "UT"}
_UNLIMITED = 2**31


def has_sound_value(element: RawDataElement | DataElement) -> bool:
    """Return whether the value of `element`, whose tag is in the dictionary, can be what the dictionary says it is.

    Text is believed: it can say anything, and it does so in its own place. So are bytes that are meant to be bytes.
    """
    known = set(dictionary_VR(element.tag).split(" or "))
    written = element.VR
    if written not in (None, "UN") and written not in known and not _interchangeable(written, known):
        return False
    values = _written_values(element.value)
    vrs = {written} if written in known else known
    return any(_fits(values, vr, _most_values(element.tag)) for vr in vrs)


def _written_values(value: object) -> bytes | list[bytes]:
    """Return a value as bytes if it is not decoded yet (it may be several), and each as bytes if it is."""
    if isinstance(value, bytes):
        return value
    several = list(value) if isinstance(value, MultiValue | list | tuple) else [] if value is None else [value]
    return [one if isinstance(one, bytes) else str(one).encode("utf-8", "replace") for one in several]


def _interchangeable(written: str, known: set[str]) -> bool:
    """Return whether `written` is often found where one of `known` belongs, and says no more."""
    families = ({"IS", "DS"}, _TEXT, _BULK - {"UN"}, {"US", "SS", "UL", "SL"})
    return any(written in family and known & family for family in families)


def _fits(values: bytes | list[bytes], vr: str, most: int) -> bool:
    if vr in _BINARY:
        if isinstance(values, list):
            return len(values) <= most
        return len(values) % _BINARY[vr] == 0 and len(values) // _BINARY[vr] <= most
    if vr in _FORMS:
        single = values.split(b"\\") if isinstance(values, bytes) else values
        return all(_FORMS[vr].fullmatch(one.rstrip(b" \0").lstrip(b" ")) for one in single)
    return True


def _most_values(tag: int) -> int:
    """Return how many values an attribute may have; "1-n" and the like have no limit."""
    most = dictionary_VM(tag).rpartition("-")[2]
    return int(most) if most.isdigit() else _UNLIMITED
