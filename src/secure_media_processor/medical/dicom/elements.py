"""Values of elements as plain numbers and texts, whatever a foreign file has in their place.

What was read from a file stays bytes in pydicom until it is asked for. For the simple kinds the bytes are turned into a number
or a text here, at a fraction of the time, and without the messages that quote values.
"""

from __future__ import annotations

import math
import struct
from functools import cache
from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from secure_media_processor.medical.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydicom import Dataset

_NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
# Texts of which a backslash separates the values, and in which spaces at the ends mean nothing.
_TEXTS = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM", "UI"}
_ESCAPE = b"\x1b"


def number(dataset: Dataset, key: str | int) -> float | None:
    """Return the first value of an element as a finite number; None if there is none, or what stands there is none."""
    found = numbers(dataset, key)
    return found[0] if found else None


def numbers(dataset: Dataset, key: str | int) -> tuple[float, ...] | None:
    """Return the values of an element as finite numbers; None if there are none, or one of them is something else."""
    try:
        found = tuple(float(value) for value in _values(dataset, key))
    except (TypeError, ValueError, OverflowError, struct.error):
        return None
    return found if found and all(map(math.isfinite, found)) else None


def whole_number(dataset: Dataset, key: str | int) -> int | None:
    """Return the first value of an element as an integer; None if there is none, or what stands there is none."""
    found = number(dataset, key)
    return int(found) if found is not None and found.is_integer() else None


def texts(dataset: Dataset, key: str | int) -> tuple[str, ...]:
    """Return the values of an element as texts; none if it is absent or empty."""
    return tuple(map(str, _values(dataset, key)))


def text(dataset: Dataset, key: str | int) -> str:
    """Return the values of an element as one text, as DICOM writes it; empty if it is absent or empty."""
    return "\\".join(texts(dataset, key)).strip()


def items(dataset: Dataset, key: str | int) -> list[Dataset]:
    """Return the items of a sequence; none if it is absent, or something else stands in its place."""
    tag = _tag(key)
    if tag not in dataset:
        return []
    with silent_pydicom():
        found: object = dataset[tag].value
    return list(found) if isinstance(found, Sequence) else []


def _values(dataset: Dataset, key: str | int) -> Iterable[str | float]:
    tag = _tag(key)
    element: object = dataset.get_item(tag)
    if element is None:
        return ()
    if isinstance(element, RawDataElement) and element.is_little_endian and element.value is not None:
        plain = _plain(element)
        if plain is not None:
            return plain
    with silent_pydicom():
        value = dataset[tag].value
    if value is None or value == "":
        return ()
    if isinstance(value, bytes):  # an element of a private block that pydicom does not know
        return value.decode("ascii", "replace").rstrip("\0 ").split("\\")
    return tuple(value) if isinstance(value, MultiValue | list | tuple) else (value,)


def _plain(element: RawDataElement) -> Iterable[str | float] | None:
    """Return the values in an element that is still bytes; None if they are of a kind, or in letters, for pydicom to know."""
    raw = element.value or b""
    vr = element.VR or _vr(element.tag)
    if vr in _NUMBERS:
        code = _NUMBERS[vr]
        return struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw)
    if vr not in _TEXTS or not raw.isascii() or _ESCAPE in raw:
        return None
    return [part.strip() for part in raw.decode("ascii").rstrip("\0 ").split("\\")] if raw.strip(b"\0 ") else ()


@cache
def _tag(key: str | int) -> BaseTag:
    if isinstance(key, int):
        return Tag(key)
    tag = tag_for_keyword(key)
    if tag is None:
        raise ValueError(f"{key} is no keyword")
    return Tag(tag)


@cache
def _vr(tag: BaseTag) -> str:
    """Return the kind of value of an element of a file that does not say; of a private one nobody knows."""
    return "" if tag.is_private else dictionary_VR(tag)
