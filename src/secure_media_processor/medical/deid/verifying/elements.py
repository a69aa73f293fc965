"""Reading DICOM byte by byte (PS3.5 section 7), for the verifier alone.

The engine reads with pydicom. The verifier does not, so that a mistake of that reader cannot hide itself: each byte of a file
is part of the preamble, of an element, or of what follows the data set. From pydicom come the dictionary and the character
sets.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_has_tag, dictionary_VR, repeater_has_tag

from secure_media_processor.core.container import MAGIC
from secure_media_processor.core.files import smp_error_from
from secure_media_processor.core.seekable import open_encrypted
from secure_media_processor.errors import SmpError
from secure_media_processor.medical.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity

IMPLICIT_LE = "1.2.840.10008.1.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_EXPLICIT_BE = "1.2.840.10008.1.2.2"
_PREAMBLE_SIZE = 128
_MAX_INFLATED = 512 * 1024**2
# Far deeper than any object of the standard nests.
_MAX_DEPTH = 64
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_TAGS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_LONG_VRS = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
_NUMBER_SIZES = {"AT": 2, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "SV": 8, "UL": 4, "US": 2, "UV": 8}
TEXT_VRS = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
# The backslash parts values, but in these it is text.
_WHOLE_VRS = {"LT", "ST", "UT", "UR"}
# Only these obey SpecificCharacterSet (0008,0005).
_CHARSET_VRS = {"LO", "LT", "PN", "SH", "ST", "UC", "UT"}
_CHARSET_TAG = 0x00080005
GRAPHIC_GROUPS = (0x5000, 0x6000)
"""Curves and overlays: each has up to 128 groups (PS3.5 section 7.6)."""
_SYNTAX_TAG = 0x00020010


class DamagedError(Exception):
    """A file cannot be read. The text says why, and holds nothing of the file."""


@dataclass(slots=True)
class Element:
    """One data element."""

    tag: int
    """Group << 16 | element."""
    vr: str
    """As written; from the dictionary in implicit VR, and for UN where the dictionary knows better."""
    value: bytes
    """Without what it nests. Numbers are little endian."""
    items: tuple[DataSet, ...] | None = None
    """Of a sequence."""
    charset: tuple[str, ...] = ()
    """Values of SpecificCharacterSet (0008,0005) that hold here."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The values as text, without padding; empty ones too."""
        return tuple(decoded(one, self.charset if self.vr in _CHARSET_VRS else ()) for one in self.raw_values)

    @property
    def raw_values(self) -> tuple[bytes, ...]:
        """The values as bytes, without padding."""
        if self.vr not in TEXT_VRS:
            return (self.value,)
        # In multi-byte sets a byte of a character may be a backslash: these values are parted after decoding, if at all.
        parted = [self.value] if self.vr in _WHOLE_VRS else self.value.split(b"\\")
        return tuple(one.strip(b" \0") for one in parted)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in it."""
        return (
            not self.items
            if self.items is not None
            else not self.value.strip(b" \0\\")
            if self.vr in TEXT_VRS
            else not self.value
        )


DataSet = dict[int, Element]


@dataclass(slots=True)
class DicomFile:
    """A file, taken apart."""

    preamble: bytes
    meta: DataSet
    dataset: DataSet
    trailing: bytes
    """What follows the data set."""
    syntax: str
    """TransferSyntaxUID (0002,0010)."""
    raw: bytes = field(repr=False)
    """The whole file."""
    inflated: bytes = field(repr=False, default=b"")
    """The data set of a deflated file."""


@lru_cache(maxsize=64)
def _encodings(charset: tuple[str, ...]) -> tuple[str, ...]:
    with silent_pydicom():
        try:
            return tuple(convert_encodings(list(charset)))
        except LookupError:  # a name that no one knows: bytes are then taken as they are
            return ("iso8859",)


def decoded(value: bytes, charset: tuple[str, ...]) -> str:
    """Return text in the character sets named; bytes that do not fit become the replacement character."""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    with silent_pydicom():
        try:
            return decode_bytes(value, _encodings(charset or ("",)), set())
        except (LookupError, UnicodeError):
            return value.decode("latin-1")


def read_file(path: Path, identities: Sequence[Identity] = ()) -> DicomFile:
    """Read the file at `path`, which may be encrypted (SMP1) for one of `identities`; it is decrypted in memory only.

    Raises:
        DamagedError: it is no DICOM file, or damaged, or encrypted for somebody else.
    """
    try:
        raw = path.read_bytes()
        if raw.startswith(MAGIC):
            if not identities:
                raise DamagedError("it is encrypted, and there is no key to read it with")
            with open_encrypted(path, identities) as file:
                raw = file.read()
    except OSError as error:
        raise DamagedError(str(smp_error_from(error, "read it"))) from error
    except SmpError as error:
        raise DamagedError(str(error).removeprefix(f"{path}: ")) from error
    return parse_file(raw)


def parse_file(raw: bytes) -> DicomFile:
    """Take a file apart.

    Raises:
        DamagedError: it is no DICOM file, or damaged.
    """
    start = _PREAMBLE_SIZE + 4
    if raw[_PREAMBLE_SIZE:start] != b"DICM":
        raise DamagedError("it is not a DICOM file")
    reader = _Reader(raw, implicit=False, big=False)
    meta, position = reader.meta(start)
    syntax = meta[_SYNTAX_TAG].texts[0] if _SYNTAX_TAG in meta else IMPLICIT_LE
    body, inflated, surplus = raw, b"", b""
    if syntax == _DEFLATED:
        inflated, surplus = _inflate(raw[position:])
        body = inflated
        position = 0
    reader = _Reader(body, implicit=syntax == IMPLICIT_LE, big=syntax == _EXPLICIT_BE)
    dataset, end = reader.dataset(position, len(body), charset=(), depth=0)
    if not dataset:
        raise DamagedError("it has the mark of a DICOM file and nothing in it")
    trailing = bytes(body[end:]) + surplus
    return DicomFile(raw[:_PREAMBLE_SIZE], meta, dataset, trailing, syntax, raw, inflated)


def _inflate(data: bytes) -> tuple[bytes, bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data, _MAX_INFLATED)
    except zlib.error as error:
        raise DamagedError("its deflated data set is damaged") from error
    if not inflater.eof:
        raise DamagedError("its deflated data set ends too early, or is larger than any image")
    return inflated, inflater.unused_data


def in_dictionary(tag: int) -> bool:
    """Return whether the dictionary has a tag: as it is, or as one of curves (50xx) or overlays (60xx)."""
    repeats = (tag >> 16 & 0xFF00) in GRAPHIC_GROUPS and repeater_has_tag(tag)
    return repeats or bool(dictionary_has_tag(tag))


def _known_vr(tag: int) -> str:
    """Return the VR of a tag in the dictionary; UN if it is not there."""
    if tag >> 16 & 1:
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"  # noqa: PLR2004 - private creators (PS3.5 section 7.8.1)
    if tag & 0xFFFF == 0:
        return "UL"
    if not in_dictionary(tag):
        return "UN"
    known = dictionary_VR(tag)
    return "OW" if "OW" in known else known.split(" ")[0]


class _Reader:
    """Reads elements from bytes, in one transfer syntax."""

    def __init__(self, data: bytes, *, implicit: bool, big: bool) -> None:
        self._data, self._implicit, self._big = data, implicit, big
        self._tag = struct.Struct(">HH" if big else "<HH")
        self._long = struct.Struct(">L" if big else "<L")
        self._short = struct.Struct(">H" if big else "<H")

    def meta(self, position: int) -> tuple[DataSet, int]:
        """Read group 0002, which is always explicit VR little endian. Element by element: its length may lie."""
        found: DataSet = {}
        while self._data[position : position + 2] == b"\x02\x00":
            element, position = self._element(position, len(self._data), (), 0)
            found[element.tag] = element
        return found, position

    def dataset(self, position: int, end: int, *, charset: tuple[str, ...], depth: int) -> tuple[DataSet, int]:
        """Read elements up to `end` or a delimiter. Returns where it stopped, after the delimiter of an item."""
        if depth > _MAX_DEPTH:
            raise DamagedError("its sequences are nested too deeply")
        found: DataSet = {}
        while end - position >= 8:  # noqa: PLR2004 - the shortest element
            tag = self._tag_at(position)
            if tag == _ITEM_END and depth:
                return found, position + 8
            # Nothing sorts after itself: zeros are padding, and a delimiter on the top level ends what can be understood.
            if tag >> 16 == 0xFFFE or (not tag and not any(self._data[position:end])):  # noqa: PLR2004 - the group of delimiters
                return found, position
            try:
                element, position = self._element(position, end, charset, depth)
            except DamagedError:
                if depth or tag > max(found, default=-1):
                    raise
                return found, position  # tags ascend (PS3.5 section 7.1): this is no element of the data set any more
            found[element.tag] = element
            if element.tag == _CHARSET_TAG:
                charset = tuple(text.strip() for text in element.texts)
        if depth and position != end:
            raise DamagedError("an item of a sequence does not end where it says")
        return found, position

    def _tag_at(self, position: int) -> int:
        group, element = self._tag.unpack_from(self._data, position)
        return int(group) << 16 | int(element)

    def _element(self, position: int, end: int, charset: tuple[str, ...], depth: int) -> tuple[Element, int]:
        if end - position < 8:  # noqa: PLR2004 - as above
            raise DamagedError("it ends too early")
        tag = self._tag_at(position)
        vr, length, start = self._head(position, tag, end)
        if length == _UNDEFINED:
            return self._undefined(tag, vr, start, end, charset=charset, depth=depth)
        stop = start + length
        if stop > end:
            raise DamagedError("it ends too early")
        if vr == "SQ":
            items, _ = self._items(start, stop, charset, depth)
            return Element(tag, vr, b"", items, charset), stop
        value = bytes(self._data[start:stop])
        if vr == "UN":
            return self._unknown(tag, value, charset, depth), stop
        if self._big and vr in _NUMBER_SIZES:
            value = _swapped(value, _NUMBER_SIZES[vr])
        return Element(tag, vr, value, None, charset), stop

    def _head(self, position: int, tag: int, end: int) -> tuple[str, int, int]:
        """Return VR, length, and where the value begins."""
        vr = bytes(self._data[position + 4 : position + 6])
        if self._implicit or not (vr.isalpha() and vr.isupper()):  # some writers leave one element without its VR
            return _known_vr(tag), int(self._long.unpack_from(self._data, position + 4)[0]), position + 8
        name = vr.decode("ascii")
        if name in _LONG_VRS:
            if end - position < 12:  # noqa: PLR2004 - the head of a long element
                raise DamagedError("it ends too early")
            return name, int(self._long.unpack_from(self._data, position + 8)[0]), position + 12
        return name, int(self._short.unpack_from(self._data, position + 6)[0]), position + 8

    def _undefined(
        self, tag: int, vr: str, start: int, end: int, *, charset: tuple[str, ...], depth: int
    ) -> tuple[Element, int]:
        """Read an element that ends with a delimiter."""
        if tag in _PIXEL_TAGS or vr in {"OB", "OW"}:
            stop = self._fragments(start, end)
            return Element(tag, vr, bytes(self._data[start : stop - 8]), None, charset), stop
        # UN of undefined length is a sequence in implicit VR little endian, whatever the file is (PS3.5 section 6.2.2).
        reader = _Reader(self._data, implicit=True, big=False) if vr == "UN" else self
        items, stop = reader._items(start, end, charset, depth)  # noqa: SLF001 - of this class
        return Element(tag, "SQ", b"", items, charset), stop

    def _unknown(self, tag: int, value: bytes, charset: tuple[str, ...], depth: int) -> Element:
        """Return an element written as UN: by its VR in the dictionary, in little endian."""
        known = _known_vr(tag)
        if known == "SQ":
            try:
                items, _ = _Reader(value, implicit=True, big=False)._items(0, len(value), charset, depth)  # noqa: SLF001 - as above
            except DamagedError:  # it is not the sequence that it should be: its bytes are looked at as bytes
                return Element(tag, "UN", value, None, charset)
            return Element(tag, "SQ", b"", items, charset)
        return Element(tag, known, value, None, charset)

    def _items(self, position: int, end: int, charset: tuple[str, ...], depth: int) -> tuple[tuple[DataSet, ...], int]:
        found: list[DataSet] = []
        while end - position >= 8:  # noqa: PLR2004 - the head of an item
            tag, length = self._tag_at(position), int(self._long.unpack_from(self._data, position + 4)[0])
            position += 8
            if tag == _SEQUENCE_END:
                return tuple(found), position
            stop = end if length == _UNDEFINED else position + length
            if tag != _ITEM or stop > end:
                raise DamagedError("a sequence in it is damaged")
            item, position = self.dataset(position, stop, charset=charset, depth=depth + 1)
            found.append(item)
        if position != end:
            raise DamagedError("a sequence in it is damaged")
        return tuple(found), position

    def _fragments(self, position: int, end: int) -> int:
        """Return where encapsulated pixel data (PS3.5 section A.4) end, after their delimiter."""
        while end - position >= 8:  # noqa: PLR2004 - as above
            tag, length = self._tag_at(position), int(self._long.unpack_from(self._data, position + 4)[0])
            position += 8
            if tag == _SEQUENCE_END:
                return position
            if tag != _ITEM or position + length > end:
                break
            position += length
        raise DamagedError("its encapsulated pixel data are damaged")


def _swapped(value: bytes, size: int) -> bytes:
    whole = len(value) - len(value) % size
    return b"".join(value[i : i + size][::-1] for i in range(0, whole, size)) + value[whole:]


def leaves(dataset: DataSet) -> Iterator[Element]:
    """Yield every element that is no sequence, at every depth."""
    for element in dataset.values():
        if element.items is None:
            yield element
        else:
            for item in element.items:
                yield from leaves(item)
