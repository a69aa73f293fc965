"""Reading files that claim to be DICOM: from any folder, of any name, under limits, and never skipped in silence."""

from __future__ import annotations

import os
import stat
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pydicom
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from secure_media_processor.core.container import MAGIC
from secure_media_processor.core.files import os_errors, smp_error_from
from secure_media_processor.core.seekable import EncryptedFile, open_encrypted
from secure_media_processor.errors import FileAccessError, KeyMissingError, SmpError
from secure_media_processor.medical.dicom.elements import text, whole_number
from secure_media_processor.medical.dicom.frames import FRAME_KEYWORDS, FRAME_SEQUENCES, FRAME_TAGS, Frame, frames_of
from secure_media_processor.medical.dicom.scan import CutError, UnscannableError, scan_header, scan_meta
from secure_media_processor.medical.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import BufferedReader

    from pydicom.tag import BaseTag

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.dicom.geometry import Orientation, Vector

# A deflated file that becomes larger than this is a bomb: the standard deflates headers and small images, and pydicom needs
# several times the size in memory.
_MAX_INFLATED = 512 * 1024**2
_UNDEFINED_LENGTH = 0xFFFFFFFF

# More pixels than any image has; the largest, of whole slides, have some ten thousand million. Whoever decodes wants a limit
# that fits its memory.
_MAX_PIXELS = 1 << 36
_DIRECTORY = "it is a DICOMDIR, an index of files, not an image"
_NOT_DICOM = "it is not a DICOM file"
# What lies beside the images on discs and in folders: the program that shows them, and what file managers leave.
_SIDE_SUFFIXES = frozenset([
    ".bat", ".css", ".dll", ".exe", ".htm", ".html", ".ico", ".inf", ".ini", ".jar", ".js", ".md", ".txt", ".xml", ".xsl",
])  # fmt: skip
_SIDE_NAMES = frozenset(["readme", ".ds_store", "thumbs.db"])

_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "PatientID",
    "PatientName", "SeriesNumber", "SeriesDescription", "InstanceNumber", "Rows", "Columns", *FRAME_KEYWORDS,
)  # fmt: skip
_TAGS = frozenset([*map(Tag, ("SpecificCharacterSet", *_KEYWORDS)), *map(Tag, FRAME_TAGS)])
_SEQUENCES = frozenset(map(Tag, FRAME_SEQUENCES))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that could not be read as DICOM."""

    path: Path
    reason: str
    """One line, without any value from the file."""
    beside: bool = False
    """Whether it is plainly no image, but lies beside some: a DICOMDIR, or what has no mark of DICOM and the name of a text, a
    web page, a program or a list of icons."""


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
    instance_number: int | None = None
    series_number: int | None = None
    series_description: str = ""
    """SeriesDescription (0008,103E): free text, in which a name may stand."""
    frame_of_reference_uid: str = ""
    """FrameOfReferenceUID (0020,0052): positions can be compared where it is the same; empty if absent."""
    patient: str = field(default="", repr=False)
    """PatientID (0010,0020), or PatientName where that is empty: to tell patients apart, never to be shown."""
    rows: int | None = None
    """Rows (0028,0010); None if the object is no image."""
    columns: int | None = None
    """Columns (0028,0011)."""
    number_of_frames: int = 1
    """NumberOfFrames (0028,0008)."""
    frames: tuple[Frame, ...] = (Frame(),)
    """As many as there are, or one for all where the object does not tell where each of them lies."""
    encrypted: bool = False
    """Whether the file is encrypted (SMP1): only what is given the key can read it, and no other program."""

    @property
    def position(self) -> Vector | None:
        """ImagePositionPatient (0020,0032) of the first frame: x, y, z of its first pixel in mm, LPS."""
        return self.frames[0].position

    @property
    def orientation(self) -> Orientation | None:
        """ImageOrientationPatient (0020,0037) of the first frame: six direction cosines, row then column."""
        return self.frames[0].orientation


@dataclass(frozen=True, slots=True)
class FolderContents:
    """All files below a folder: each is in exactly one of the two."""

    instances: tuple[Instance, ...]
    unreadable: tuple[Unreadable, ...]

    @property
    def patients(self) -> int:
        """How many patients there are, by PatientID or name; those without either count as one."""
        return len({instance.patient for instance in self.instances})


def read_folder(folder: Path | str, *, identities: Sequence[Identity] = ()) -> FolderContents:
    """Read the headers of all files below `folder`, in order of path. Links to folders are not followed, and reported.

    Args:
        folder: Files in it may have any name, and may be encrypted (SMP1).
        identities: Keys that open encrypted files; these are decrypted in memory only, and only as far as their header goes.

    Raises:
        MissingError, FileAccessError: `folder` itself cannot be read.
    """
    instances: list[Instance] = []
    unreadable: list[Unreadable] = []
    for path, problem in walk_files(Path(folder)):
        found = Unreadable(path, problem) if problem else read_instance(path, identities=identities)
        if isinstance(found, Instance):
            instances.append(found)
        else:
            unreadable.append(found)
    return FolderContents(tuple(instances), tuple(unreadable))


def read_instance(path: Path, *, identities: Sequence[Identity] = ()) -> Instance | Unreadable:
    """Read the header of one file, which may be encrypted for one of `identities`."""
    try:
        with open_dicom(path, identities) as file:
            return _instance(path, _header(file), encrypted=isinstance(file.raw, EncryptedFile))
    except _MissingAttributeError as error:
        return Unreadable(path, f"it has no {error}")
    except Exception as error:  # noqa: BLE001 - see _unreadable
        return _unreadable(path, error)


def open_dicom(path: Path, identities: Sequence[Identity] = ()) -> BufferedReader:
    """Open a file for reading; if it is encrypted, so that it reads as the original (see open_encrypted).

    Raises:
        OSError: it cannot be read.
        KeyMissingError: it is encrypted, and there are no `identities`.
        IntegrityError: it is encrypted and damaged, or for other keys.
    """
    file = path.open("rb")
    try:
        encrypted = file.read(len(MAGIC)) == MAGIC
        file.seek(0)
    except BaseException:
        file.close()
        raise
    if not encrypted:
        return file
    file.close()
    if not identities:
        raise KeyMissingError(f"{path}: it is encrypted, and there is no key to read it with")
    return open_encrypted(path, identities)


def read_dataset(
    path: Path, *, tags: Sequence[int] | Sequence[str] | None = None, identities: Sequence[Identity] = ()
) -> Dataset | Unreadable:
    """Read a DICOM file.

    Args:
        path: A regular file with preamble and DICM mark (PS3.10 section 7.1); others are not guessed at. It may be encrypted.
        tags: Keywords or numbers of the elements to read, without pixel data; everything if None.
        identities: Keys that open it if it is encrypted.
    """
    try:
        with open_dicom(path, identities) as file:
            dataset = _parse(file, None if tags is None else [*map(Tag, tags)])
        if tags is None and not dataset:
            return Unreadable(path, "it has the mark of a DICOM file and nothing in it")
    except Exception as error:  # noqa: BLE001 - see _unreadable
        return _unreadable(path, error)
    return dataset


def _header(file: BinaryIO) -> Dataset:
    """Return what an Instance is made of."""
    try:
        dataset, storage = scan_header(file, _TAGS, _SEQUENCES)
    except UnscannableError:
        file.seek(0)
        return _parse(file, [*_TAGS, *_SEQUENCES])
    if storage == MediaStorageDirectoryStorage:
        raise _RefusedError(_DIRECTORY)
    return dataset


def _parse(file: BinaryIO, tags: list[BaseTag] | None) -> Dataset:
    """Read `file` with pydicom."""
    _refuse_bomb(file)
    with silent_pydicom() as said:
        dataset = pydicom.dcmread(file, specific_tags=tags, stop_before_pixels=tags is not None)
        # pydicom goes on with what it has where a file ends too early or holds what it cannot parse.
        if said or _is_cut(dataset):
            raise CutError
    if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise _RefusedError(_DIRECTORY)
    return dataset


def _instance(path: Path, dataset: Dataset, *, encrypted: bool) -> Instance:
    rows, columns = whole_number(dataset, "Rows"), whole_number(dataset, "Columns")
    count = whole_number(dataset, "NumberOfFrames") or 1
    if count < 1 or (rows or 1) * (columns or 1) * count > _MAX_PIXELS:
        raise _RefusedError("it claims a number of pixels that no image has")
    return Instance(
        path,
        sop_class_uid=_uid(dataset, "SOPClassUID"),
        sop_instance_uid=_uid(dataset, "SOPInstanceUID"),
        study_instance_uid=_uid(dataset, "StudyInstanceUID"),
        series_instance_uid=_uid(dataset, "SeriesInstanceUID"),
        modality=text(dataset, "Modality"),
        instance_number=whole_number(dataset, "InstanceNumber"),
        series_number=whole_number(dataset, "SeriesNumber"),
        series_description=text(dataset, "SeriesDescription"),
        frame_of_reference_uid=text(dataset, "FrameOfReferenceUID"),
        patient=text(dataset, "PatientID") or text(dataset, "PatientName"),
        rows=rows,
        columns=columns,
        number_of_frames=count,
        frames=frames_of(dataset),
        encrypted=encrypted,
    )


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


class _RefusedError(Exception):
    """A file that is not taken; the reason is for people, and holds nothing of a patient's."""


def _uid(dataset: Dataset, keyword: str) -> str:
    value = text(dataset, keyword)
    if not value:
        raise _MissingAttributeError(keyword)
    return value


def _unreadable(path: Path, error: Exception) -> Unreadable:
    """Say what is wrong with a file in words that hold nothing of it (pydicom's messages quote values).

    A parser of foreign bytes fails in as many ways as there are files. All of them mean the same here, and none is hidden: the
    file is reported.
    """
    match error:
        case SmpError():
            reason = str(error).removeprefix(f"{path}: ")
        case OSError():
            reason = str(smp_error_from(error, "read it"))
        case _RefusedError():
            reason = str(error)
        case InvalidDicomError():
            reason = _NOT_DICOM
        case CutError():
            reason = "it ends too early, or holds what cannot be parsed"
        case _:
            reason = f"it cannot be parsed ({type(error).__name__})"
    return Unreadable(path, reason, reason == _DIRECTORY or (reason == _NOT_DICOM and _named_as_side_file(path)))


def _named_as_side_file(path: Path) -> bool:
    return path.suffix.lower() in _SIDE_SUFFIXES or path.name.lower() in _SIDE_NAMES


def _refuse_bomb(file: BinaryIO) -> None:
    """Refuse `file` if it is deflated and would become absurdly large. pydicom inflates without a limit."""
    end, syntax, _ = scan_meta(file)
    if syntax == DeflatedExplicitVRLittleEndian:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = 0
        file.seek(end)
        while not inflater.eof:
            data = inflater.unconsumed_tail or file.read(1 << 16)
            if not data:
                break
            inflated += len(inflater.decompress(data, 1 << 20))
            if inflated > _MAX_INFLATED:
                raise _RefusedError("it is deflated and would become larger than any image")
    file.seek(0)


def walk_files(folder: Path) -> Iterator[tuple[Path, str]]:
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
