"""New names for old ones: the same for the same key, impossible to turn back without it."""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass, field
from hashlib import sha256

from pydicom.uid import UID

KEY_SIZE = 32
_UUID_SIZE = 16
_PSEUDONYM_DIGITS = 16  # of 5 bits each


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """A keyed one-way map of UIDs and patients. The same key maps equal to equal over files, runs and machines."""

    key: bytes = field(repr=False)
    """32 random bytes. Who has them can test a guess of the original; keep them as safe as the data."""

    def __post_init__(self) -> None:
        if len(self.key) != KEY_SIZE:
            raise ValueError(f"the key of the pseudonyms has {KEY_SIZE} bytes, not {len(self.key)}")

    def uid(self, original: str) -> str:
        """Return the UID that stands for `original`: 2.25 and a number of 128 bits (PS3.5 section B.2).

        UIDs that DICOM itself defines (PS3.6 annex A) stay as they are; others under its root are nobody's, and are replaced.
        Two originals get one UID with a chance of about 2⁻¹²⁸ each pair.
        """
        original = original.strip(" \x00")
        if not original or UID(original).type:
            return original
        return self.instance_uid(original)

    def instance_uid(self, original: str) -> str:
        """Return the UID that stands for that of a study, a series or an instance: never `original` itself."""
        return f"2.25.{int.from_bytes(self._keyed(b'uid', original)[:_UUID_SIZE], 'big')}"

    def patient(self, patient_id: str, issuer: str) -> str:
        """Return the pseudonym of a patient, 20 characters, fit for PatientID and PatientName."""
        digest = self._keyed(b"patient", f"{len(patient_id)}:{patient_id}{issuer}")
        return "SMP-" + base64.b32encode(digest)[:_PSEUDONYM_DIGITS].decode()

    def _keyed(self, kind: bytes, text: str) -> bytes:
        return hmac.digest(self.key, kind + b"\x00" + text.encode("utf-8", "surrogateescape"), sha256)
