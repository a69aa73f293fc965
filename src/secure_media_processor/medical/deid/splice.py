"""Reading of a header only what has to be looked at, and putting it back among the bytes of all that stays as it is.

Most elements of a header are neither in the table nor odd: they are found by their tags, checked as they are, and copied as
bytes. Of the others a data set is made, which is cleaned and written by the same code as that of any file. pydicom would take
several times as long to read and write them all. A file that is not little endian, is deflated, encrypted, or is anything but
plain is left to it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_sequence
from pydicom.filewriter import write_data_element, write_file_meta_info
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from secure_media_processor.core.container import MAGIC
from secure_media_processor.core.files import open_source
from secure_media_processor.medical.deid.constant_elements import encoded, is_constant
from secure_media_processor.medical.deid.profile import Option
from secure_media_processor.medical.deid.values import is_sound
from secure_media_processor.medical.dicom.pixel_tail import PIXEL_TAGS, PixelTail, find_tail
from secure_media_processor.medical.dicom.scan import LONG_VRS, UnscannableError, end_of_sequence, scan_meta

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from secure_media_processor.medical.deid.profile import Rules

# A header that is larger holds icons, tables or thousands of items, for which the time to read them hardly matters.
_MAX_HEADER = 4 * 1024**2
_FIRST_READ = 64 * 1024
_UNDEFINED = 0xFFFFFFFF
_PRIVATE = 0x10000  # this bit is set in the tags of odd groups
_LEAD = struct.Struct("<HH2sH")
_IMPLICIT_LEAD = struct.Struct("<HHI")
_CHARACTER_SET = 0x00080005
# What the engine reads of a data set besides what it changes.
_CONTEXT_KEYWORDS = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "Modality", "ConversionType", "BurnedInAnnotation", "NumberOfFrames",
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated",
)  # fmt: skip
# What it writes anew, whatever stands there.
_STATEMENT_KEYWORDS = (
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified",
)  # fmt: skip
_META_KEYWORDS = ("MediaStorageSOPClassUID", "TransferSyntaxUID", "ImplementationClassUID", "ImplementationVersionName")
_CONTEXT = {tag_for_keyword(keyword) for keyword in _CONTEXT_KEYWORDS}
_STATEMENT = {tag_for_keyword(keyword) for keyword in _STATEMENT_KEYWORDS}


class NotPlainError(UnscannableError):
    """The file needs pydicom as a whole."""


@dataclass(slots=True)
class Spliced:
    """A header in parts."""

    dataset: Dataset
    """The elements that have to be looked at, with file_meta that has TransferSyntaxUID."""
    kept: list[tuple[int, bytes]]
    """(tag, bytes) of elements that stay as they are, in order."""
    copied: set[int]
    """Tags of those of them that are in `dataset`, too, to be looked at."""
    removed: int
    """How many elements were left out."""
    tail: PixelTail | None
    """The pixel data, if there are any."""

    def write(self) -> bytes:
        """Return the new header, from the preamble to the pixel data.

        Raises:
            NotPlainError: the character set is another one than before.
        """
        if self.dataset.original_character_set != self.dataset._character_set:  # noqa: SLF001 - as pydicom's writer does
            raise NotPlainError
        file = DicomBytesIO()
        file.write(bytes(128) + b"DICM")
        file.write(_meta(self.dataset.file_meta))
        implicit = bool(self.dataset.original_encoding[0])
        file.is_little_endian, file.is_implicit_VR = True, implicit
        encodings = self.dataset.get("SpecificCharacterSet", default_encoding)
        kept, at = self.kept, 0
        for tag in sorted(self.dataset.keys(), key=int):
            number = int(tag)
            if number in self.copied:
                continue
            while at < len(kept) and kept[at][0] < number:
                file.write(kept[at][1])
                at += 1
            element = self.dataset.get_item(tag)
            if is_constant(element):
                file.write(encoded(id(element), implicit=implicit))
            elif element.VR == "UI" and type(element) is DataElement:
                file.write(_uid_element(number, element.value, implicit=implicit))
            else:
                write_data_element(file, element, encodings)
        for _, rest in kept[at:]:
            file.write(rest)
        return bytes(file.getvalue())


def _uid_element(tag: int, value: str | Iterable[str] | None, *, implicit: bool) -> bytes:
    """Return an element of UIDs as it is written. Those that were replaced are most of what a series has to have written."""
    data = "\\".join([value] if isinstance(value, str) else value or ()).encode("ascii")
    data += bytes(len(data) % 2)
    if implicit:
        return _IMPLICIT_LEAD.pack(tag >> 16, tag & 0xFFFF, len(data)) + data
    return _LEAD.pack(tag >> 16, tag & 0xFFFF, b"UI", len(data)) + data


def _meta(meta: FileMetaDataset) -> bytes:
    """Return file meta information as it is written. Most of it is the same in all files of a series."""
    instance = str(meta.MediaStorageSOPInstanceUID)
    constant_part = [str(meta[keyword].value) for keyword in _META_KEYWORDS]
    stand_in = "9" * len(instance)
    return _meta_template(stand_in, *constant_part).replace(stand_in.encode(), instance.encode(), 1)


@lru_cache(64)
def _meta_template(instance: str, *values: str) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPInstanceUID = UID(instance)
    for keyword, value in zip(_META_KEYWORDS, values, strict=True):
        setattr(meta, keyword, value)
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    write_file_meta_info(file, meta)
    return bytes(file.getvalue())


def read_spliced(path: Path, rules: Rules) -> Spliced:
    """Read the header of the file `path`, apart for `rules`.

    Raises:
        UnscannableError: use pydicom; NotPlainError is one.
        MissingError, FileAccessError: the file cannot be read.
    """
    with BufferedReader(open_source(path), _FIRST_READ) as file:
        data = file.read(_FIRST_READ)
        if data[128:132] != b"DICM" or data.startswith(MAGIC):
            raise NotPlainError
        start, syntax, _ = scan_meta(BytesIO(data))
        implicit = syntax == ImplicitVRLittleEndian
        if not implicit and not (syntax == ExplicitVRLittleEndian or _is_encapsulated(syntax)):
            raise NotPlainError
        scan = _Scan(rules, data, implicit=implicit)
        while True:
            try:
                end = scan.run(start)
                break
            except (IndexError, struct.error):  # it goes on behind what was read
                more = file.read(len(data))
                if not more or len(data) + len(more) > _MAX_HEADER:
                    raise NotPlainError from None
                data += more
                scan = _Scan(rules, data, implicit=implicit)
        size = file.seek(0, 2)
        tail = None
        if end < size:
            file.seek(end)
            tail = find_tail(file, syntax)
            if tail is None:
                raise NotPlainError
    dataset = scan.dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    return Spliced(dataset, scan.kept, scan.copied, scan.removed, tail)


def _is_encapsulated(syntax: str) -> bool:
    uid = UID(syntax)
    return bool(uid.type == "Transfer Syntax" and uid.is_compressed and not uid.is_deflated)


class _Scan:
    """One pass over the top level of a header, of which all must be in `data`."""

    def __init__(self, rules: Rules, data: bytes, *, implicit: bool) -> None:
        self._rules, self._data, self._implicit = rules, data, implicit
        self._keeps_private = Option.RETAIN_SAFE_PRIVATE in rules.profile.options
        self._elements: dict[BaseTag, DataElement | RawDataElement] = {}
        self._sequences: list[tuple[int, int, int]] = []
        self.kept: list[tuple[int, bytes]] = []
        self.copied: set[int] = set()
        self.removed = 0

    def run(self, position: int) -> int:
        """Sort out the elements from `position` on. Returns where the pixel data or the file end.

        Raises:
            IndexError, struct.error: `data` end too early.
            UnscannableError: see read_spliced.
        """
        data, end, previous, keeps_private = self._data, len(self._data), -1, self._keeps_private
        implicit = self._implicit
        while position != end:
            group, element, kind, size = _LEAD.unpack_from(data, position)
            tag, start = group << 16 | element, position + 8
            vr = None if implicit else _SHORT_VRS.get(kind)
            if vr is None:  # most elements are not such
                tag, vr, start, size = self._lead(position)
            if tag <= previous:
                raise NotPlainError
            if tag in PIXEL_TAGS:
                break
            previous = tag
            if size == _UNDEFINED and vr == "UN":
                raise NotPlainError
            after = start + size if size != _UNDEFINED else end_of_sequence(self, start, implicit=implicit)
            if after > end:
                raise IndexError
            if (tag & _PRIVATE and not keeps_private) or not tag & 0xFFFF:  # the latter is a retired group length
                self.removed += 1
            elif self._sort_out(tag, vr, start, size, after):
                self.kept.append((tag, data[position:after]))
            position = after
        if position == end and len(data) == _FIRST_READ:
            raise IndexError  # the file may go on just here
        return position

    def dataset(self) -> Dataset:
        """Return the elements that have to be looked at."""
        dataset = Dataset({**self._elements})
        encodings: str | list[str] = default_encoding
        names = self._elements.get(BaseTag(_CHARACTER_SET))
        if names is not None and isinstance(names.value, bytes):
            encodings = convert_encodings(names.value.decode("ascii", "replace").rstrip("\0 ").split("\\"))
        dataset.set_original_encoding(self._implicit, True, encodings)  # noqa: FBT003 - pydicom's signature
        for tag, start, end in self._sequences:
            source = BytesIO(self._data[start:end])
            value = read_sequence(source, self._implicit, True, _UNDEFINED, encodings)  # noqa: FBT003
            dataset[tag] = DataElement(tag, "SQ", value, start, is_undefined_length=True)
        return dataset

    def _sort_out(self, tag: int, vr: str | None, start: int, size: int, after: int) -> bool:
        """Return whether an element stays as it is; take it into the data set if it must be looked at."""
        rule, value = self._rules.rule(tag), self._data[start:after]
        if vr == "UN" and rule.vr:
            raise NotPlainError  # pydicom may find out what it is when it looks at it
        is_sequence = rule.vr == "SQ" or vr == "SQ"
        may_stay = rule.action is None and not is_sequence and size != _UNDEFINED and tag not in _STATEMENT
        stays = may_stay and is_sound(vr, value, rule)
        if stays and tag not in _CONTEXT:
            return True
        if size != _UNDEFINED:
            number = BaseTag(tag)
            self._elements[number] = RawDataElement(number, vr, size, value, start, self._implicit, True)  # noqa: FBT003
        elif vr == "SQ" or (vr is None and is_sequence):
            self._sequences.append((tag, start, after))
        else:
            raise NotPlainError  # bytes of undefined length, or a sequence that nobody expects
        if stays:
            self.copied.add(tag)
        return stays

    def _lead(self, position: int) -> tuple[int, str | None, int, int]:
        """Return tag, VR, begin of the value and its length of the element at `position`."""
        if self._implicit:
            group, element, size = _IMPLICIT_LEAD.unpack_from(self._data, position)
            return group << 16 | element, None, position + 8, size
        group, element, vr, size = _LEAD.unpack_from(self._data, position)
        if vr in LONG_VRS:
            return group << 16 | element, vr.decode(), position + 12, _SIZE.unpack_from(self._data, position + 8)[0]
        if vr not in _SHORT_VRS:
            raise NotPlainError
        return group << 16 | element, _SHORT_VRS[vr], position + 8, size

    def lead(self, position: int, *, implicit: bool) -> tuple[str | None, int, int]:  # noqa: ARG002 - it is the same throughout
        """See scan.Elements. Sequences of unknown kind, in which it may change, are left to pydicom."""
        _, vr, start, size = self._lead(position)
        if vr == "UN" and size == _UNDEFINED:
            raise NotPlainError
        return vr, start, size

    def item(self, position: int) -> tuple[int, int]:
        """See scan.Elements."""
        group, element, size = _IMPLICIT_LEAD.unpack_from(self._data, position)
        return group << 16 | element, size


_SIZE = struct.Struct("<I")
_SHORT_VRS = {
    vr.encode(): vr
    for vr in (
        "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI",
        "UL", "US",
    )
}  # fmt: skip
