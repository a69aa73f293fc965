"""Finding a few elements in the header of a file quickly.

pydicom reads everything that can be written, and takes its time. Nearly all files are little endian and not deflated, and of
these an index of elements takes a few lines. What is anything else is left to pydicom.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO, Protocol

from pydicom import Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from secure_media_processor.medical.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    from collections.abc import Collection

META_START = 128 + 4
"""Where file meta information begins: after the preamble and DICM."""
LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Kinds of values whose length has four bytes (PS3.5 section 7.1.2)."""

_SHORT_VRS = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"}
_SHORT_VRS |= {b"ST", b"TM", b"UI", b"UL", b"US"}
_LEAD = struct.Struct("<HH2sH")
"""Group, element, kind of value and, for a short one, length of an element that names its kind."""
_UNDEFINED = 0xFFFFFFFF
_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_CHARACTER_SET = 0x00080005
# Most headers are smaller; of the others as much again is read until it is enough.
_FIRST_READ = 16 * 1024
_MAX_HEADER = 64 * 1024**2
_MAX_DEPTH = 64


class UnscannableError(Exception):
    """The file needs a parser that knows more."""


class CutError(Exception):
    """The file ends before what it announces."""


def scan_meta(file: BinaryIO) -> tuple[int, str, str]:
    """Return where the file meta information of `file` ends, its TransferSyntaxUID and its MediaStorageSOPClassUID.

    Elements are followed one by one: the group length may lie. Empty texts stand for what is absent. Raises CutError.
    """
    return _Scan(file).meta()


def scan_header(file: BinaryIO, tags: Collection[int], sequences: Collection[int]) -> tuple[Dataset, str]:
    """Return those of `tags` that `file` has, as raw elements, and its MediaStorageSOPClassUID.

    Args:
        file: At its begin.
        tags: Numbers of elements on the top level, none of them in group 2 and none a sequence.
        sequences: Where one of these is, pydicom is needed.

    Raises:
        UnscannableError: use pydicom.
        CutError: it ends inside an element of the header, or before the end of its pixel data.
    """
    scan = _Scan(file)
    position, syntax, storage = scan.meta()
    if not scan.marked or syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian) or not syntax:
        raise UnscannableError
    found = scan.elements(position, tags, sequences, implicit=syntax == ImplicitVRLittleEndian)
    dataset = Dataset({**found})
    encodings: list[str] = [default_encoding]
    if _CHARACTER_SET in found:
        names = (found[BaseTag(_CHARACTER_SET)].value or b"").decode("ascii", "replace").rstrip("\0 ").split("\\")
        if names not in (["ISO_IR 100"], [""]):
            with silent_pydicom():
                encodings = convert_encodings(names)
    dataset.set_original_encoding(syntax == ImplicitVRLittleEndian, True, encodings)  # noqa: FBT003 - pydicom's signature
    return dataset, storage


class Elements(Protocol):
    """What sequences are followed in."""

    def item(self, position: int) -> tuple[int, int]:
        """Return tag and length of the item, or of the end of items, at `position`."""

    def lead(self, position: int, *, implicit: bool) -> tuple[str | None, int, int]:
        """Return kind, begin of the value and its length of the element at `position`."""


def end_of_sequence(elements: Elements, position: int, *, implicit: bool, depth: int = 0) -> int:
    """Return where the sequence of undefined length ends whose items begin at `position`.

    Raises UnscannableError if it is none or nested absurdly, and what `elements` raises, where they end too early among others.
    """
    if depth > _MAX_DEPTH:
        raise UnscannableError
    while True:
        tag, size = elements.item(position)
        position += 8
        if tag == _SEQUENCE_END:
            return position
        if tag != _ITEM:
            raise UnscannableError
        if size != _UNDEFINED:
            position += size
            continue
        while elements.item(position)[0] != _ITEM_END:
            vr, position, length = elements.lead(position, implicit=implicit)
            if length != _UNDEFINED:
                position += length
            else:  # what is in a sequence of unknown kind does not name kinds either (PS3.5 section 6.2.2)
                position = end_of_sequence(elements, position, implicit=implicit or vr == "UN", depth=depth + 1)
        position += 8


class _Scan:
    """The begin of a file, of which more is read when it is needed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._data = file.read(_FIRST_READ)
        self._complete = len(self._data) < _FIRST_READ

    def _has(self, end: int) -> bool:
        """Make sure of the bytes up to `end`; return whether the file has as many."""
        while len(self._data) < end and not self._complete:
            size = max(len(self._data), end - len(self._data))
            if len(self._data) + size > _MAX_HEADER:
                raise UnscannableError
            more = self._file.read(size)
            self._complete = len(more) < size
            self._data += more
        return len(self._data) >= end

    def meta(self) -> tuple[int, str, str]:
        """Return where file meta information ends, and the transfer syntax and the class of the object that it names."""
        position, found = META_START, {0x0010: "", 0x0002: ""}
        while self._has(position + 12) and self._data[position : position + 2] == b"\x02\x00":
            data = self._data
            element = int.from_bytes(data[position + 2 : position + 4], "little")
            start, size = _explicit(data, position)
            if size == _UNDEFINED or not self._has(start + size):
                raise CutError
            if element in found:
                found[element] = self._data[start : start + size].rstrip(b"\0 ").decode("ascii", "replace")
            position = start + size
        return position, found[0x0010], found[0x0002]

    @property
    def marked(self) -> bool:
        """Whether DICM stands where it must."""
        return self._data[META_START - 4 : META_START] == b"DICM"

    def elements(
        self, position: int, tags: Collection[int], sequences: Collection[int], *, implicit: bool
    ) -> dict[BaseTag, RawDataElement]:
        """Return the elements with `tags` from `position` on, up to the pixel data."""
        found: dict[BaseTag, RawDataElement] = {}
        previous, data, complete = -1, self._data, len(self._data) - 8
        while position <= complete or self._has(position + 8):
            if position > complete:
                data, complete = self._data, len(self._data) - 8
            group, element, kind, length = _LEAD.unpack_from(data, position)
            tag = group << 16 | element
            if tag > previous and kind in _SHORT_VRS and tag not in tags and not implicit:
                previous, position = tag, position + 8 + length  # most elements are such; what follows is for the others
                continue
            if tag in _PIXELS:
                self._check_pixels(position, implicit=implicit)
                return found
            if tag <= previous:  # neither in order nor, then, what it says it is
                raise UnscannableError
            previous = tag
            vr, start, size = self.lead(position, implicit=implicit)
            if tag in sequences or (tag in tags and (size == _UNDEFINED or vr == "SQ")):
                raise UnscannableError
            if tag in tags:
                if not self._has(start + size):
                    raise CutError
                value = self._data[start : start + size]
                found[BaseTag(tag)] = RawDataElement(BaseTag(tag), vr, size, value, start, implicit, True)  # noqa: FBT003
            position = start + size if size != _UNDEFINED else end_of_sequence(self, start, implicit=implicit or vr == "UN")
        if len(self._data) != position:
            raise CutError
        return found

    def lead(self, position: int, *, implicit: bool) -> tuple[str | None, int, int]:
        """See Elements."""
        if not self._has(position + 12) and not self._has(position + 8):
            raise CutError
        data = self._data
        if implicit:
            return None, position + 8, int.from_bytes(data[position + 4 : position + 8], "little")
        vr = data[position + 4 : position + 6]
        if not vr.isalpha() or not vr.isupper():
            raise UnscannableError
        start, size = _explicit(data, position)
        return vr.decode("ascii"), start, size

    def item(self, position: int) -> tuple[int, int]:
        """See Elements."""
        if not self._has(position + 8):
            raise CutError
        data = self._data
        tag = (data[position] | data[position + 1] << 8) << 16 | data[position + 2] | data[position + 3] << 8
        return tag, int.from_bytes(data[position + 4 : position + 8], "little")

    def _check_pixels(self, position: int, *, implicit: bool) -> None:
        """Raise CutError if the file ends before its pixel data do. Of compressed ones that is known only to who reads them."""
        _, start, size = self.lead(position, implicit=implicit)
        if size != _UNDEFINED and not self._complete and self._file.seek(0, 2) < start + size:
            raise CutError
        if size != _UNDEFINED and self._complete and len(self._data) < start + size:
            raise CutError


def _explicit(data: bytes, position: int) -> tuple[int, int]:
    """Return the begin of the value and its length of the element at `position`, which names its kind."""
    if data[position + 4 : position + 6] in LONG_VRS:
        return position + 12, int.from_bytes(data[position + 8 : position + 12], "little")
    return position + 8, data[position + 6] | data[position + 7] << 8
