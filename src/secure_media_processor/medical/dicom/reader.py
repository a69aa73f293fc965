"""Reading files that claim to be DICOM: from any folder, of any name, under limits, and never skipped in silence."""

from __future__ import annotations

import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from secure_media_processor.core.files import smp_error_from
from secure_media_processor.errors import FileAccessError, MissingError, MissingExtraError, SmpError

try:
    import pydicom
    from pydicom import Dataset
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

    from secure_media_processor.medical.dicom.silence import silent_pydicom
except ImportError as error:
    raise MissingExtraError("pydicom is not installed", hint="pip install 'secure-media-processor[dicom]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A header with more than this, once inflated, is a bomb, not an image: the largest CT volume in one object has about 1 GiB.
_MAX_INFLATED = 2 * 1024**3
# Preamble, DICM, and the 12 bytes of the group length, after which its value counts.
_META_START = 128 + 4 + 12

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
        with silent_pydicom():
            _refuse_bomb(path)
            if tags is None:
                dataset = pydicom.dcmread(path)
            else:
                dataset = pydicom.dcmread(path, specific_tags=list(tags), stop_before_pixels=True)
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


class _MissingAttributeError(Exception):
    pass


def _uid(dataset: Dataset, keyword: str) -> str:
    value = str(dataset.get(keyword) or "")
    if not value:
        raise _MissingAttributeError(keyword)
    return value


def _number(dataset: Dataset, keyword: str) -> int | None:
    value = dataset.get(keyword)
    return None if value is None else int(value)


def _vector(dataset: Dataset, keyword: str, length: int) -> tuple[float, ...] | None:
    value = dataset.get(keyword)
    if not value or len(value) != length:
        return None
    return tuple(float(number) for number in value)


def _describe(error: Exception) -> str:
    """Say what is wrong with a file in words that hold nothing of it (pydicom's messages quote values)."""
    if isinstance(error, InvalidDicomError):
        return "it is not a DICOM file"
    return f"it cannot be parsed ({type(error).__name__})"


def _refuse_bomb(path: Path) -> None:
    """Raise FileAccessError if `path` is deflated and would become absurdly large. pydicom inflates without a limit."""
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    length = meta.get("FileMetaInformationGroupLength")
    if not isinstance(length, int):
        raise FileAccessError("it is deflated and does not say where its header ends")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = 0
    with path.open("rb") as file:
        file.seek(_META_START + length)
        while not inflater.eof:
            data = inflater.unconsumed_tail or file.read(1 << 16)
            if not data:
                break
            inflated += len(inflater.decompress(data, 1 << 20))
            if inflated > _MAX_INFLATED:
                raise FileAccessError("it is deflated and would become larger than any image")


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file below `folder`, and what is wrong with it if it should not even be opened."""
    if not folder.is_dir():
        kind = FileAccessError if folder.exists() else MissingError
        raise kind(f"there is no folder {folder}", hint="check the path")
    problems: list[tuple[Path, str]] = []

    def note(error: OSError) -> None:
        problems.append((Path(error.filename), str(smp_error_from(error, "read it"))))

    for parent, folders, names in os.walk(folder, onerror=note):
        folders.sort()
        here = Path(parent)
        yield from ((here / name, "it is a link to a folder") for name in folders if (here / name).is_symlink())
        for name in sorted(names):
            yield here / name, _problem(here / name)
    yield from problems


def _problem(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return str(smp_error_from(error, "read it"))
    return "" if stat.S_ISREG(mode) else "it is not a file"
