"""Files that are to be sent, and the look at them before anything leaves the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from secure_media_processor.core.files import smp_error_from
from secure_media_processor.medical.dicom.elements import text
from secure_media_processor.medical.dicom.reader import Unreadable, open_dicom, read_dataset, walk_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from io import BufferedReader
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity

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
    identities: Sequence[Identity] = field(default=(), repr=False, compare=False)
    """Keys that open it if it is encrypted."""

    def open(self) -> BufferedReader:
        """Open it for reading; if it is encrypted, so that it reads as the original, in memory only. Raises as open_dicom."""
        return open_dicom(self.path, self.identities)


def read_outgoing(path: Path, identities: Sequence[Identity] = ()) -> OutgoingFile | Unreadable:
    """Read what has to be known of a file before it is sent; it may be encrypted (SMP1) for one of `identities`.

    It counts as identified unless PatientIdentityRemoved (0012,0062) is YES, and if BurnedInAnnotation (0028,0301) is YES: this
    is what the file claims of itself, a net against mistakes and no proof.
    """
    dataset = read_dataset(path, tags=_TAGS, identities=identities)
    if isinstance(dataset, Unreadable):
        return dataset
    meta = dataset.file_meta
    found = OutgoingFile(
        path,
        text(dataset, "SOPClassUID"),
        text(dataset, "SOPInstanceUID"),
        str(meta.get("TransferSyntaxUID", "")),
        _identified(text(dataset, "PatientIdentityRemoved"), text(dataset, "BurnedInAnnotation")),
        identities,
    )
    named = (str(meta.get("MediaStorageSOPClassUID", "")), str(meta.get("MediaStorageSOPInstanceUID", "")))
    if not (found.uid and found.sop_class_uid and found.transfer_syntax_uid):
        return Unreadable(path, "it has no SOPClassUID, SOPInstanceUID or TransferSyntaxUID")
    if named != (found.sop_class_uid, found.uid):
        return Unreadable(path, "its file meta information names another object than it is")
    return found


def read_all(paths: Iterable[Path], identities: Sequence[Identity] = ()) -> Iterator[OutgoingFile | Unreadable]:
    """Read files, and all files below folders, in order; each path as it is met. They may be encrypted for `identities`."""
    for path in paths:
        try:
            folder = path.is_dir()
        except OSError as error:
            yield Unreadable(path, str(smp_error_from(error, "read it")))
            continue
        for found, problem in walk_files(path) if folder else [(path, "")]:
            yield Unreadable(found, problem) if problem else read_outgoing(found, identities)


def _identified(removed: str, burned_in: str) -> str:
    if removed != "YES":
        return "PatientIdentityRemoved is not YES"
    return "BurnedInAnnotation is YES: its pixels may show a name" if burned_in == "YES" else ""
