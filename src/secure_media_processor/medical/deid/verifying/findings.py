"""What the verifier finds. A finding names a place and never a value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is wrong with an output."""

    KEPT = "kept"
    """An attribute that must change has its original value, or one of its original values."""
    PRESENT = "present"
    """An attribute that must be absent is there."""
    PRIVATE = "private"
    """A private element is there."""
    UNKNOWN = "unknown"
    """An element of an even group that no dictionary knows is there."""
    RESIDUE = "residue"
    """The original value of an attribute stands somewhere in the bytes of the output."""
    UID = "uid"
    """A UID of the original stands in the output."""
    UID_MAP = "uid-map"
    """One original UID has two new ones, or two have the same, or file meta information names another instance."""
    PATIENT_MAP = "patient-map"
    """One original patient has two new PatientIDs, or two patients have the same."""
    FILE_META = "file-meta"
    """File meta information holds what names a machine or is private."""
    PREAMBLE = "preamble"
    """The preamble is that of the original."""
    TRAILING = "trailing"
    """Bytes follow the data set."""
    PIXELS = "pixels"
    """Pixel data were changed, cut or lost, and no option allows it."""
    STATEMENT = "statement"
    """The file does not say, or says wrongly, how it was de-identified."""
    DATES = "dates"
    """Dates of one patient were not all moved by the same number of days."""
    AGE = "age"
    """An age over 89 years can be read."""
    FILE_NAME = "file-name"
    """The name of the file or its folder holds an original value."""
    UNPAIRED = "unpaired"
    """The file comes from no file of the original."""


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """One thing that is wrong."""

    kind: Kind
    place: str
    """Tags from the outermost sequence inwards: (0040,A730) > (0040,A160). For residue, of the original attribute."""
