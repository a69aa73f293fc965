"""Files that are to be sent, and the look at them before anything leaves the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from secure_media_processor.core.files import smp_error_from
from secure_media_processor.medical.dicom.elements import text
from secure_media_processor.medical.dicom.reader import Unreadable, read_dataset, walk_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_TAGS = ("SOPClassUID", "SOPInstanceUID", "PatientIdentityRemoved", "BurnedInAnnotation")


@dataclass(frozen=True, slots=True)
class OutgoingFile:
    """A DICOM file that can be sent."""

    path: Path
    sop_class_uid: str
    uid: str
    """SOPInstanceUID (0008,0018)."""
    transfer_syntax_uid: str
    identified: str
    """Why the file must be taken to show who the patient is; empty if it says that it does not."""


def read_outgoing(path: Path) -> OutgoingFile | Unreadable:
    """Read what has to be known of a file before it is sent.

    It counts as identified unless PatientIdentityRemoved (0012,0062) is YES, and if BurnedInAnnotation (0028,0301) is YES: this
    is what the file claims of itself, a net against mistakes and no proof.
    """
    dataset = read_dataset(path, tags=_TAGS)
    if isinstance(dataset, Unreadable):
        return dataset
    meta = dataset.file_meta
    found = OutgoingFile(
        path,
        text(dataset, "SOPClassUID"),
        text(dataset, "SOPInstanceUID"),
        str(meta.get("TransferSyntaxUID", "")),
        _identified(text(dataset, "PatientIdentityRemoved"), text(dataset, "BurnedInAnnotation")),
    )
    named = (str(meta.get("MediaStorageSOPClassUID", "")), str(meta.get("MediaStorageSOPInstanceUID", "")))
    if not (found.uid and found.sop_class_uid and found.transfer_syntax_uid):
        return Unreadable(path, "it has no SOPClassUID, SOPInstanceUID or TransferSyntaxUID")
    if named != (found.sop_class_uid, found.uid):
        return Unreadable(path, "its file meta information names another object than it is")
    return found


def read_all(paths: Iterable[Path]) -> Iterator[OutgoingFile | Unreadable]:
    """Read files, and all files below folders, in order; each path as it is met."""
    for path in paths:
        try:
            folder = path.is_dir()
        except OSError as error:
            yield Unreadable(path, str(smp_error_from(error, "read it")))
            continue
        for found, problem in walk_files(path) if folder else [(path, "")]:
            yield Unreadable(found, problem) if problem else read_outgoing(found)


def _identified(removed: str, burned_in: str) -> str:
    if removed != "YES":
        return "PatientIdentityRemoved is not YES"
    return "BurnedInAnnotation is YES: its pixels may show a name" if burned_in == "YES" else ""
