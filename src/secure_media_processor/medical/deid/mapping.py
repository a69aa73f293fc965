"""Which pseudonym stands for whom. Kept encrypted: who has it can undo the de-identification of patients, UIDs and dates."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

from secure_media_processor.core.encryption import decrypt_stream, encrypt_stream
from secure_media_processor.core.files import atomic_write, open_source
from secure_media_processor.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity, Recipient

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Patient:
    """A patient, and what stands for them."""

    patient_id: str = field(repr=False)
    """PatientID (0010,0020)."""
    issuer: str = field(repr=False)
    """IssuerOfPatientID (0010,0021)."""
    name: str = field(repr=False)
    """PatientName (0010,0010), as in the first file."""
    pseudonym: str
    """PatientID and PatientName of the de-identified files."""
    days: int | None
    """By which dates were moved, negative into the past; None if they were not."""


@dataclass(slots=True)
class Mapping:
    """Old and new of everything that was replaced by something of its own."""

    patients: dict[str, Patient] = field(default_factory=dict, repr=False)
    """By pseudonym."""
    uids: dict[str, str] = field(default_factory=dict, repr=False)
    """Old → new."""

    def add(self, patient: Patient, uids: dict[str, str]) -> None:
        """Add what one file had."""
        self.patients.setdefault(patient.pseudonym, patient)
        self.uids.update(uids)

    def merge(self, other: Mapping) -> None:
        """Add what `other` has and this has not.

        Raises:
            ConfigError: they were made with different keys, or one with shifted dates and one without.
        """
        for pseudonym, patient in other.patients.items():
            mine = self.patients.setdefault(pseudonym, patient)
            if mine.days != patient.days:
                raise made_otherwise()
        for old, new in other.uids.items():
            if self.uids.setdefault(old, new) != new:
                raise made_otherwise()

    def original_of(self) -> dict[str, str]:
        """Return new → old, of UIDs and of pseudonyms of patients."""
        patients = {pseudonym: patient.patient_id for pseudonym, patient in self.patients.items()}
        return {new: old for old, new in self.uids.items()} | patients

    def write(self, path: Path, recipients: Sequence[Recipient]) -> None:
        """Write the mapping, encrypted for `recipients`, in place of the file `path`. Raises as atomic_write."""
        book = {
            "format": _FORMAT,
            "patients": [asdict(self.patients[pseudonym]) for pseudonym in sorted(self.patients)],
            "uids": dict(sorted(self.uids.items())),
        }
        with atomic_write(path, overwrite=True) as file:
            encrypt_stream(BytesIO(json.dumps(book).encode()), file, recipients)

    @classmethod
    def read(cls, path: Path, identities: Sequence[Identity]) -> Mapping:
        """Read and decrypt the mapping in the file `path`.

        Raises:
            IntegrityError: it is damaged, not for these identities, or no mapping.
            MissingError, FileAccessError: it cannot be read.
        """
        plain = BytesIO()
        with open_source(path) as file:
            decrypt_stream(file, plain, identities)
        try:
            book: Any = json.loads(plain.getvalue())
            if book["format"] != _FORMAT:
                raise IntegrityError(f"{path} is a mapping of a newer version", hint="use the program that wrote it")
            patients = [Patient(**fields) for fields in book["patients"]]
            uids = {str(old): str(new) for old, new in book["uids"].items()}
        except (ValueError, LookupError, TypeError, AttributeError):
            raise IntegrityError(f"{path} is encrypted, and holds no mapping", hint="name the file of --mapping") from None
        return cls({patient.pseudonym: patient for patient in patients}, uids)


def made_otherwise() -> ConfigError:
    """Return the error for two mappings that do not fit together."""
    return ConfigError(
        "the mapping that is there was made with another key, project or profile", hint="name another file for --mapping"
    )
