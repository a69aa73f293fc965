"""What must hold over all files of a set: one new UID for each old one, one patient for each, one shift of dates for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b


def digest(*parts: str | bytes) -> bytes:
    """Return 12 bytes that stand for a value: maps over large sets hold these, which are small and hold nobody's name."""
    hashed = blake2b(digest_size=12)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.digest()


@dataclass(slots=True)
class OneToOne:
    """A map that must be one-to-one."""

    forward: dict[bytes, bytes] = field(default_factory=dict)
    backward: dict[bytes, bytes] = field(default_factory=dict)

    def add(self, old: str, new: str) -> bool:
        """Note that `old` became `new`. Returns whether this fits all that was noted before."""
        one, other = digest(old), digest(new)
        return self.forward.setdefault(one, other) == other and self.backward.setdefault(other, one) == one


@dataclass(slots=True)
class Links:
    """What is known of all files so far."""

    uids: OneToOne = field(default_factory=OneToOne)
    patients: OneToOne = field(default_factory=OneToOne)
    shifts: dict[bytes, int] = field(default_factory=dict)
    """Digest of a patient → days by which the first of its dates was moved."""
    originals: set[bytes] = field(default_factory=set)
    """Digests of the UIDs of the originals that must not stand in any output."""
    outputs: dict[bytes, int] = field(default_factory=dict)
    """Digest of a UID in an output → number of the first file that it stands in."""

    def shift(self, patient: bytes, days: int) -> bool:
        """Note that a date of a patient was moved by `days`. Returns whether this fits what was noted before."""
        return self.shifts.setdefault(patient, days) == days
