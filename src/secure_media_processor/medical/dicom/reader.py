"""Reading files that claim to be DICOM: from any folder, of any name, under limits, and never skipped in silence."""

from __future__ import annotations

import math
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pydicom
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from secure_media_processor.core.files import os_errors, smp_error_from
from secure_media_processor.errors import FileAccessError, SmpError
from secure_media_processor.medical.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A deflated file that becomes larger than this is a bomb: the standard deflates headers and small images, and pydicom needs
# several times the size in memory.
_MAX_INFLATED = 512 * 1024**2
# File meta information has a few hundred bytes; private information in it is rare, and never large.
_MAX_META = 1024**2
_META_START = 128 + 4  # preamble and DICM
_UNDEFINED_LENGTH = 0xFFFFFFFF
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}

_INSTANCE_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "InstanceNumber",
    "ImagePositionPatient", "ImageOrientationPatient",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that could not be read as DICOM."""

    path: Path
    reason: str
    """One line, without any value from the file."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One DICOM object in a file: what is needed to put it into its series."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    """DICOM Modality (0008,0060), such as "CT"; empty if absent."""
    instance_number: int | None
    position: tuple[float, float, float] | None
    """ImagePositionPatient (0020,0032): x, y, z of the first pixel in mm, LPS."""
    orientation: tuple[float, ...] | None
    """ImageOrientationPatient (0020,0037): six direction cosines, row then column."""


@dataclass(frozen=True, slots=True)
class FolderContents:
    """All files below a folder: each is in exactly one of the two."""

    instances: tuple[Instance, ...]
    unreadable: tuple[Unreadable, ...]


def read_folder(folder: Path | str) -> FolderContents:
    """Read the headers of all files below `folder`, in order of path. Links to folders are not followed, and reported.

    Raises:
        MissingError, FileAccessError: `folder` itself cannot be read.
    """
    instances: list[Instance] = []
    unreadable: list[Unreadable] = []
    for path, problem in _walk(Path(folder)):
        found = Unreadable(path, problem) if problem else read_instance(path)
        if isinstance(found, Instance):
            instances.append(found)
        else:
            unreadable.append(found)
    return FolderContents(tuple(instances), tuple(unreadable))


def read_instance(path: Path) -> Instance | Unreadable:
    """Read the header of one file."""
    dataset = read_dataset(path, tags=_INSTANCE_TAGS)
    if isinstance(dataset, Unreadable):
        return dataset
    try:
        with silent_pydicom():
            return Instance(
                path,
                sop_class_uid=_uid(dataset, "SOPClassUID"),
                sop_instance_uid=_uid(dataset, "SOPInstanceUID"),
                study_instance_uid=_uid(dataset, "StudyInstanceUID"),
                series_instance_uid=_uid(dataset, "SeriesInstanceUID"),
                modality=str(dataset.get("Modality") or ""),
                instance_number=_number(dataset, "InstanceNumber"),
                position=_vector(dataset, "ImagePositionPatient", 3),  # type: ignore[arg-type]  # length 3 is checked
                orientation=_vector(dataset, "ImageOrientationPatient", 6),
            )
    except _MissingAttributeError as error:
        return Unreadable(path, f"it has no {error}")
    except Exception as error:  # noqa: BLE001 - see read_dataset
        return Unreadable(path, _describe(error))


def read_dataset(path: Path, *, tags: Sequence[str] | None = None) -> Dataset | Unreadable:
    """Read a DICOM file.

    Args:
        path: A regular file with preamble and DICM mark (PS3.10 section 7.1); others are not guessed at.
        tags: Keywords to read, without pixel data; everything if None.
    """
    try:
        with silent_pydicom() as said:
            _refuse_bomb(path)
            if tags is None:
                dataset = pydicom.dcmread(path)
            else:
                dataset = pydicom.dcmread(path, specific_tags=list(tags), stop_before_pixels=True)
            if said or _is_cut(
                dataset
            ):  # pydicom goes on with what it has where a file ends too early or holds what it cannot parse
                return Unreadable(path, "it ends too early, or holds what cannot be parsed")
            if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                return Unreadable(path, "it is a DICOMDIR, an index of files, not an image")
            if tags is None and not dataset:
                return Unreadable(path, "it has the mark of a DICOM file and nothing in it")
    except SmpError as error:
        return Unreadable(path, str(error))
    except OSError as error:
        return Unreadable(path, str(smp_error_from(error, "read it")))
    # A parser of foreign bytes fails in as many ways as there are files. All of them mean the same here, and none is hidden:
    # the file is reported.
    except Exception as error:  # noqa: BLE001
        return Unreadable(path, _describe(error))
    return dataset


def _is_cut(dataset: Dataset) -> bool:
    """Return whether the last element has fewer bytes than it says."""
    if not dataset:
        return False
    last: object = dataset.get_item(max(dataset.keys()))
    if isinstance(last, RawDataElement) and last.length != _UNDEFINED_LENGTH:
        return len(last.value or b"") < last.length
    return False


class _MissingAttributeError(Exception):
    pass


def _uid(dataset: Dataset, keyword: str) -> str:
    value = str(dataset.get(keyword) or "")
    if not value:
        raise _MissingAttributeError(keyword)
    return value


def _number(dataset: Dataset, keyword: str) -> int | None:
    """Return an integer; None if there is none, or what stands there is none."""
    try:
        return int(dataset.get(keyword))
    except (TypeError, ValueError, OverflowError):
        return None


def _vector(dataset: Dataset, keyword: str, length: int) -> tuple[float, ...] | None:
    """Return so many finite numbers; None if there are none, or what stands there is something else."""
    try:
        numbers = tuple(float(number) for number in dataset.get(keyword))
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if len(numbers) == length and all(map(math.isfinite, numbers)) else None


def _describe(error: Exception) -> str:
    """Say what is wrong with a file in words that hold nothing of it (pydicom's messages quote values)."""
    if isinstance(error, InvalidDicomError):
        return "it is not a DICOM file"
    return f"it cannot be parsed ({type(error).__name__})"


def _refuse_bomb(path: Path) -> None:
    """Raise FileAccessError if `path` is deflated and would become absurdly large. pydicom inflates without a limit."""
    with path.open("rb") as file:
        lead = file.read(_META_START + _MAX_META)
        end, deflated = _scan_meta(lead)
        if not deflated:
            return
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = 0
        file.seek(end)
        while not inflater.eof:
            data = inflater.unconsumed_tail or file.read(1 << 16)
            if not data:
                break
            inflated += len(inflater.decompress(data, 1 << 20))
            if inflated > _MAX_INFLATED:
                raise FileAccessError("it is deflated and would become larger than any image")


def _scan_meta(lead: bytes) -> tuple[int, bool]:
    """Return where the file meta information (PS3.10 section 7.1) ends, and whether it says that the rest is deflated.

    Elements are followed one by one, as pydicom does: the group length may lie.
    """
    position, deflated = _META_START, False
    while lead[position : position + 2] == b"\x02\x00" and position + 12 <= len(lead):
        element, vr = lead[position + 2 : position + 4], lead[position + 4 : position + 6]
        start = position + (12 if vr in _LONG_VRS else 8)
        size = int.from_bytes(lead[position + 8 : start] if vr in _LONG_VRS else lead[position + 6 : start], "little")
        if start + size > len(lead):
            raise FileAccessError("its file meta information is damaged")
        if element == b"\x10\x00":
            deflated = lead[start : start + size].rstrip(b"\0 ").decode("ascii", "replace") == DeflatedExplicitVRLittleEndian
        position = start + size
    return position, deflated


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file below `folder`, in order, and what is wrong with it if it should not even be opened."""
    with os_errors(f"read {folder}"):
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise FileAccessError(f"{folder} is not a folder", hint="check the path")
    pending = [folder]
    while pending:
        here = pending.pop()
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            yield here, str(smp_error_from(error, "read it"))
            continue
        folders = []
        for entry in entries:
            path = here / entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            else:
                yield path, _problem(path)
        pending += reversed(folders)


def _problem(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return str(smp_error_from(error, "read it"))
    if stat.S_ISDIR(mode):
        return "it is a link to a folder"
    return "" if stat.S_ISREG(mode) else "it is not a file"
