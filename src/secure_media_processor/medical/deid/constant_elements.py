"""Elements that are the same in every file that is de-identified, made once and encoded once.

They stand in data sets that are written and thrown away, never in one that is handed out: pydicom changes elements in place.
"""

from __future__ import annotations

from functools import cache

from pydicom import DataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.sequence import Sequence

from secure_media_processor.medical.deid.table import Action
from secure_media_processor.medical.deid.values import DUMMIES

_CONSTANT: dict[int, DataElement] = {}
"""id() → element; what stands here lives as long as the process, so that no other gets its id."""


def constant(element: DataElement) -> DataElement:
    """Declare that nobody changes `element` from now on, and that its text is ASCII. Returns it."""
    _CONSTANT[id(element)] = element
    return element


def is_constant(element: object) -> bool:
    """Return whether `element` was declared to be constant."""
    return id(element) in _CONSTANT


@cache
def encoded(identity: int, *, implicit: bool) -> bytes:
    """Return the constant element with that id() as it is written, little endian."""
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, implicit
    write_data_element(file, _CONSTANT[identity])
    return bytes(file.getvalue())


@cache
def blank(tag: int, vr: str, action: Action) -> DataElement:
    """Return the constant element that stands for any value that is emptied, or else replaced."""
    return constant(new_blank(tag, vr, action))


def new_blank(tag: int, vr: str, action: Action) -> DataElement:
    """As blank; an element that whoever gets it may change."""
    if action is Action.EMPTY:
        return DataElement(tag, vr, Sequence() if vr == "SQ" else None)
    return DataElement(tag, vr, DUMMIES.get(vr, b"\0\0"))
