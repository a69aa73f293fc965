"""The end of a DICOM file, from its pixel data on, as a range of bytes: it can be copied without being read or understood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from secure_media_processor.medical.dicom.reader import Unreadable, open_dicom, read_dataset
from secure_media_processor.medical.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydicom import Dataset

    from secure_media_processor.core.recipients import Identity

PIXEL_TAGS = {0x7FE00010, 0x7FE00008, 0x7FE00009}
"""PixelData, FloatPixelData and DoubleFloatPixelData (PS3.6)."""
_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
# Values of these follow two reserved bytes and a length of four (PS3.5 section 7.1.2).
_LONG_VRS = {b"OB", b"OW", b"OF", b"OD", b"UN"}


@dataclass(frozen=True, slots=True)
class PixelTail:
    """Where the element with the pixel data begins and ends in its file, of an encrypted one in its original.

    Nothing follows it.
    """

    offset: int
    size: int
    """Bytes, with the element's tag and length."""
    value_size: int
    """Bytes of its value; of an encapsulated one with the delimiters."""


def read_header(path: Path, identities: Sequence[Identity] = ()) -> tuple[Dataset, PixelTail | None] | Unreadable:
    """Read a DICOM file without its pixel data, if these are the last of it; else, as read_dataset, all of it.

    Args:
        path: The file, which may be encrypted.
        identities: Keys that open it then.

    Returns:
        The data set, and where its pixel data lie; None if they are in the data set, or there are none.
    """
    try:
        with open_dicom(path, identities) as file, silent_pydicom() as said:
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            if said or not dataset:
                return _whole(path, identities)
            tail = find_tail(file, dataset.file_meta.get("TransferSyntaxUID"))
    # What is wrong with the file, and in which words to tell, is the business of the one reader there is.
    except Exception:  # noqa: BLE001
        return _whole(path, identities)
    return (dataset, tail) if tail is not None else _whole(path, identities)


def _whole(path: Path, identities: Sequence[Identity]) -> tuple[Dataset, None] | Unreadable:
    dataset = read_dataset(path, identities=identities)
    return dataset if isinstance(dataset, Unreadable) else (dataset, None)


def find_tail(file: BinaryIO, syntax: str | None) -> PixelTail | None:
    """Return the element at which `file` stands, if it is pixel data and the last of the file."""
    if syntax in (None, DeflatedExplicitVRLittleEndian):
        return None
    order: Literal["big", "little"] = "big" if syntax == ExplicitVRBigEndian else "little"
    offset, end = file.tell(), file.seek(0, 2)
    file.seek(offset)
    lead = file.read(12)
    if int.from_bytes(lead[:2], order) << 16 | int.from_bytes(lead[2:4], order) not in PIXEL_TAGS:
        return None
    if syntax == ImplicitVRLittleEndian:
        start, length = offset + 8, int.from_bytes(lead[4:8], order)
    elif lead[4:6] in _LONG_VRS:
        start, length = offset + 12, int.from_bytes(lead[8:12], order)
    else:
        return None
    complete = start + length == end if length != _UNDEFINED_LENGTH else _ends_with_fragments(file, start, end)
    return PixelTail(offset, end - offset, end - start) if complete else None


def _ends_with_fragments(file: BinaryIO, position: int, end: int) -> bool:
    """Return whether encapsulated pixel data (PS3.5 annex A.4) go from `position` to the very end."""
    while True:
        file.seek(position)
        lead = file.read(8)
        if lead[:4] != _ITEM:
            return lead == _DELIMITER + bytes(4) and position + 8 == end
        position += 8 + int.from_bytes(lead[4:], "little")
        if position > end:
            return False
