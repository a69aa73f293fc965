"""What may be left of each attribute: Table E.1-1 of DICOM PS3.15, read by the verifier's own code.

A rule is a set of permitted outcomes, by the letters of the table: X absent, Z empty or another value, D another value,
U another UID, C cleaned, K kept. Where the table offers a choice (X/Z/D) each is permitted. An option adds K or C.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from pydicom.datadict import tag_for_keyword

from secure_media_processor.medical.deid.verifying.elements import in_dictionary

# Option, as the command line names it → its column, and its code in DeidentificationMethodCodeSequence (0012,0064), CID 7050.
OPTION_CODES = MappingProxyType({
    "clean-pixels": ("", "113101"),
    "deface": ("", "113102"),
    "clean-graphics": ("graphics", "113103"),
    "clean-structured-content": ("structured", "113104"),
    "clean-descriptors": ("descriptors", "113105"),
    "retain-dates": ("full_dates", "113106"),
    "shift-dates": ("modified_dates", "113107"),
    "retain-patient-characteristics": ("patient", "113108"),
    "retain-device": ("device", "113109"),
    "retain-uids": ("uids", "113110"),
    "retain-safe-private": ("safe_private", "113111"),
    "retain-institution": ("institution", "113112"),
})  # fmt: skip
BASIC_CODE = "113100"
OPTION_OF_CODE = MappingProxyType({code: option for option, (_, code) in OPTION_CODES.items()})
_COLUMNS = tuple(column for column, _ in OPTION_CODES.values() if column)


def _tags(*keywords: str) -> frozenset[int]:
    found = [tag_for_keyword(keyword) for keyword in keywords]
    return frozenset(tag for tag in found if tag is not None)


# What says that, and how, the file was de-identified.
STATEMENT_TAGS = _tags(
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified", "BurnedInAnnotation", "RecognizableVisualFeatures",
)  # fmt: skip
PIXEL_TAGS = _tags("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# What describes the pixels, and changes with them where they are cleaned, or where the file is written anew.
PIXEL_DESCRIPTION_TAGS = PIXEL_TAGS | _tags(
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PhotometricInterpretation", "PlanarConfiguration",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "SmallestImagePixelValue",
    "LargestImagePixelValue", "PixelDataProviderURL", "ImageType",
)  # fmt: skip
SHAPE_TAGS = _tags("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")
# UIDs that name a kind of thing, not a thing. They stay.
KIND_UID_TAGS = _tags(
    "SOPClassUID", "ReferencedSOPClassUID", "RelatedGeneralSOPClassUID", "ReferencedRelatedGeneralSOPClassUIDInFile",
    "OriginalSpecializedSOPClassUID", "CodingSchemeUID", "ContextUID", "MappingResourceUID", "TransferSyntaxUID",
    "AvailableTransferSyntaxUID", "EncryptedContentTransferSyntaxUID", "MACCalculationTransferSyntaxUID", "SOPClassesInStudy",
    "SOPClassesSupported", "ReferencedSOPClassUIDInFile", "ReferencedTransferSyntaxUIDInFile", "MediaStorageSOPClassUID",
)  # fmt: skip
IDENTITY_UID_TAGS = _tags("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
CODE_TAGS = _tags("CodeValue", "LongCodeValue", "URNCodeValue", "CodeMeaning")
CODE_FRAME_TAGS = _tags(
    "CodingSchemeDesignator", "CodingSchemeVersion", "MappingResource", "ContextIdentifier", "TemplateIdentifier"
)
# Text of reports, which the table reaches only through ContentSequence (0040,A730), stands elsewhere too.
TEXT_VALUE_TAGS = _tags("TextValue")
# An encrypted copy of the originals is allowed by PS3.15 section E.1.1, and so is leaving it out.
FREE_TO_CHANGE_TAGS = STATEMENT_TAGS | _tags("EncryptedAttributesSequence", "EncryptedContent", "SpecificCharacterSet")
# File meta information (PS3.10 section 7.1) that names no machine and holds nothing private.
META_TAGS = frozenset({0x00020000, 0x00020001, 0x00020002, 0x00020003, 0x00020010, 0x00020012, 0x00020013})
# Attributes beyond the table that identify as those in it do: order numbers, addresses, dates of other calendars, devices.
LIKE_LISTED_TAGS = frozenset(
    {
        0x00100033, 0x00100034, 0x00401006, 0x00401007, 0x00402006, 0x00402007, 0x0074100C, 0x00700081, 0x00181003, 0x00181803,
        0x21000160, 0x0018991A,
    }
)  # fmt: skip
# Dates, and free text about patients, procedures, documents and assessments, may go wherever they are.
MAY_GO_VRS = frozenset({"DA", "DT", "TM"})
FREE_TEXT_VRS, FREE_TEXT_GROUPS = frozenset({"ST", "LT", "UT"}), frozenset({0x0010, 0x0040, 0x0042, 0x0074, 0x0082})
ADDRESS_TAGS = _tags(
    "PatientAddress", "PatientTelephoneNumbers", "InstitutionAddress", "ReferringPhysicianAddress",
    "ReferringPhysicianTelephoneNumbers", "CountryOfResidence", "RegionOfResidence", "PersonAddress", "PersonTelephoneNumbers",
    "OrderCallbackPhoneNumber", "PatientReligiousPreference", "MilitaryRank", "BranchOfService",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    basic: frozenset[str]
    """Letters of the Basic Profile."""
    options: tuple[tuple[str, str], ...]
    """(column, "K" or "C")."""


@dataclass(frozen=True, slots=True)
class Table:
    """Table E.1-1."""

    rows: dict[int, Row]
    patterns: tuple[tuple[int, int, Row], ...]
    """(mask, value, row) for curves and overlays."""
    private: Row

    def row(self, tag: int) -> Row | None:
        """Return the row of a tag; None if the table does not name it."""
        if tag >> 16 & 1:
            return self.private
        found = self.rows.get(tag)
        return found or next((row for mask, value, row in self.patterns if tag & mask == value), None)


@cache
def table() -> Table:
    """Read the table."""
    rows: dict[int, Row] = {}
    patterns: list[tuple[int, int, Row]] = []
    private = Row(frozenset("X"), ())
    text = files("secure_media_processor.medical.deid").joinpath("basic_profile.csv").read_text("ascii")
    for line in csv.DictReader(text.splitlines()):
        tag = line["tag"]
        row = Row(frozenset(line["basic"].split("/")), tuple((name, line[name]) for name in _COLUMNS if line[name]))
        if tag == "private":
            private = row
        elif "x" in tag:
            patterns.append((int("".join("0" if d == "x" else "F" for d in tag), 16), int(tag.replace("x", "0"), 16), row))
        else:
            rows[int(tag, 16)] = row
    return Table(rows, tuple(patterns), private)


@dataclass(frozen=True, slots=True)
class Rules:
    """The table under a choice of options."""

    options: frozenset[str]
    """As the command line names them."""

    def permitted(self, tag: int) -> frozenset[str] | None:
        """Return what may become of an attribute, in letters of the table; None if the table does not name it."""
        return _permitted(tag, self.options)

    def has(self, *options: str) -> bool:
        """Return whether one of `options` holds."""
        return not self.options.isdisjoint(options)


@cache
def _permitted(tag: int, options: frozenset[str]) -> frozenset[str] | None:
    row = table().row(tag)
    if row is None:
        return None
    columns = {OPTION_CODES[option][0] for option in options}
    added = frozenset(letter for column, letter in row.options if column in columns)
    # Keeping alone is an order; cleaning is a way out, beside those of the Basic Profile and beside keeping.
    return added if added == {"K"} else row.basic | added


def is_known(tag: int) -> bool:
    """Return whether a dictionary or the table knows the tag."""
    return in_dictionary(tag) or table().row(tag) is not None or tag & 0xFFFF == 0


def tag_name(tag: int) -> str:
    """Return a tag as the standard writes it: (0010,0010)."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
