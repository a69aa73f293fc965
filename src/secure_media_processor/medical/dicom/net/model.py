"""What is asked of an archive, what it has, and what may be expected of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from secure_media_processor.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from secure_media_processor.errors import SmpError
    from secure_media_processor.medical.dicom.net.incoming import Incoming
    from secure_media_processor.medical.dicom.net.outgoing import OutgoingFile

# PS3.5 section 9.1, but for leading zeros, which it forbids and some devices write. No such text is more than one step of a
# path.
_UID = re.compile(r"\d+(\.\d+)+", re.ASCII)
_MAX_UID = 64
_DATES = re.compile(r"(\d{8})?(-)?(\d{8})?", re.ASCII)
_MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}", re.ASCII)
_MAX_TEXT = 64


def checked_uid(text: str) -> str:
    """Return a UID that a server names. Raises IntegrityError, without it, if it is none (PS3.5 section 9.1)."""
    if len(text) > _MAX_UID or not _UID.fullmatch(text):
        raise IntegrityError("the server names a UID that is none", hint="ask its administrator; nothing was written for it")
    return text


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is taken from a server, and how long it is waited for."""

    max_object: int = 1 << 30
    """Bytes of one object. By DIMSE it is held in memory while it comes."""
    max_matches: int = 100_000
    """Answers to one question."""
    connect: float = 10.0
    """Seconds for a connection."""
    idle: float = 60.0
    """Seconds without a byte in the middle of a message."""
    response: float = 300.0
    """Seconds for an answer; an archive may have to fetch a series from tape."""
    attempts: int = 3
    """How often a thing is tried without any progress when the line breaks."""
    pause: float = 1.0
    """Seconds before the second attempt; twice as long before each further one."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which studies are wanted: those for which everything holds that is given (PS3.4 section C.2.2.2)."""

    study_uid: str = ""
    """StudyInstanceUID (0020,000D)."""
    patient_id: str = field(default="", repr=False)
    """PatientID (0010,0020); * and ? are wildcards."""
    accession: str = field(default="", repr=False)
    """AccessionNumber (0008,0050); * and ? are wildcards."""
    dates: str = ""
    """StudyDate (0008,0020): YYYYMMDD, or a range YYYYMMDD-YYYYMMDD of which one end may be missing."""
    modality: str = ""
    """Modality (0008,0060): series of others are left out."""

    def __post_init__(self) -> None:
        """Raise UsageError if this cannot be asked, or would mean everything."""
        if self.study_uid and (len(self.study_uid) > _MAX_UID or not _UID.fullmatch(self.study_uid)):
            raise UsageError("this is no StudyInstanceUID", hint="digits and dots, up to 64")
        for text in (self.patient_id, self.accession):
            if len(text) > _MAX_TEXT or "\\" in text or not text.isprintable():
                raise UsageError("a PatientID and an AccessionNumber have up to 64 characters, and no backslash")
        if self.dates and not _is_range(self.dates):
            raise UsageError("this is no date or range of dates", hint="such as 20240131, 20240101-20240131 or 20240101-")
        if self.modality and not _MODALITY.fullmatch(self.modality):
            raise UsageError("this is no modality", hint="such as CT or MR")
        if not (self.study_uid or self.patient_id.strip("*? ") or self.accession.strip("*? ") or self.dates):
            raise UsageError("this would be every study", hint="give --study, --patient-id, --accession or --date")

    def admits(self, study: RemoteStudy) -> bool:
        """Return whether an answer fits. A server ignores keys that it does not support (PS3.4 section C.2.2.1.3)."""
        return (
            self.study_uid in ("", study.uid)
            and _matches(self.patient_id, study.patient_id)
            and _matches(self.accession, study.accession)
            and _is_within(self.dates, study.date)
        )


@dataclass(frozen=True, slots=True)
class RemoteInstance:
    """An object that the server says it has. All UIDs are checked."""

    study_uid: str
    series_uid: str
    uid: str
    """SOPInstanceUID (0008,0018)."""
    sop_class_uid: str = ""
    """SOPClassUID (0008,0016); empty if the server does not say."""

    @property
    def path(self) -> Path:
        """Where it is put, below the folder that the user named."""
        return Path(self.study_uid, self.series_uid, f"{self.uid}.dcm")


@dataclass(frozen=True, slots=True)
class RemoteStudy:
    """A study that the server says it has. Everything but its UID may identify the patient."""

    uid: str
    patient_id: str = field(default="", repr=False)
    patient_name: str = field(default="", repr=False)
    accession: str = field(default="", repr=False)
    date: str = field(default="", repr=False)
    """StudyDate (0008,0020) as the server writes it."""
    modalities: tuple[str, ...] = ()
    """Of its series that are wanted."""
    instances: tuple[RemoteInstance, ...] = ()
    """Of the series that are wanted."""

    @property
    def series(self) -> tuple[str, ...]:
        """The SeriesInstanceUIDs of its instances, each once."""
        return tuple({instance.series_uid: None for instance in self.instances})


class PacsServer(Protocol):
    """An archive."""

    def echo(self) -> None:
        """Ask whether it is there and lets us in. Raises as `find`."""

    def find(self, query: Query) -> list[RemoteStudy]:
        """Return the studies that fit, with all their instances of the modality.

        Raises:
            CredentialsError: we are not let in, or the server is not the one that it says it is.
            TransientError: it cannot be reached, or does not answer.
            IntegrityError: its answer makes no sense.
            UsageError: there are more matches than we take.
            SmpError: it refuses the question.
        """

    def fetch(self, incoming: Incoming) -> None:
        """Hand over all instances that `incoming` waits for. Of each that does not come `incoming` is told why.

        Raises as find, and what Incoming.raise_fatal raises. After a TransientError it goes on where it was if called again.
        """

    def send(self, files: Sequence[OutgoingFile], done: Callable[[OutgoingFile, SmpError | None], None]) -> None:
        """Store files at the server, telling `done` of each whether that went well. Raises as find."""


def _is_range(dates: str) -> bool:
    found = _DATES.fullmatch(dates)
    if found is None or not (found[1] or found[3]) or bool(found[2]) != (len(dates) > len("YYYYMMDD")):
        return False
    try:
        days = [datetime.strptime(day, "%Y%m%d") for day in (found[1], found[3]) if day]  # noqa: DTZ007 - a day has no zone
    except ValueError:
        return False
    return days == sorted(days)


def _is_within(dates: str, date: str) -> bool:
    if not dates:
        return True
    first, dash, last = dates.partition("-")
    day = date.replace(".", "")  # as ACR-NEMA wrote it (PS3.5 section 6.2)
    return bool(day) and first <= day <= (last or "99999999" if dash else first)


def _matches(pattern: str, value: str) -> bool:
    """Return whether a wildcard matches (PS3.4 section C.2.2.2.4).

    Spaces at the ends mean nothing, nor does case: many servers do not mind it.
    """
    if not pattern:
        return True
    wild = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern.strip())
    return re.fullmatch(wild, value.strip(), re.IGNORECASE | re.DOTALL) is not None
