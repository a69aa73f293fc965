"""DICOM files with a value that occurs nowhere else in every place where an identity may hide, made from a fixed seed.

A test de-identifies them and looks for the values. None of them is of a real person.
"""

from __future__ import annotations

import csv
import random
import re
import string
import zlib
from dataclasses import dataclass, field
from datetime import date, timedelta
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from pydicom import DataElement, Dataset, FileMetaDataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.sequence import Sequence
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    UltrasoundImageStorage,
)

SEED = 20261122
SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big-endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
TEXT_VRS = {"AE", "CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT"}
# Sequences that the table does not name, one in the other; and one that is to be replaced, with its items.
UNLISTED = ("ReferencedSeriesSequence", "PurposeOfReferenceCodeSequence", "AnatomicRegionModifierSequence")
REPLACED = "ContentSequence"
DIMENSION = 16  # pixels
WORD = 10  # letters
OVERLAYS, CURVES = (0x6000, 0x6002, 0x601E, 0x60FE), (0x5000, 0x50FE)


@dataclass(frozen=True)
class Canary:
    """A value, and where it was put."""

    token: bytes
    file: str
    place: str


@dataclass
class Canaries:
    """All values, and the folders they are in."""

    images: Path
    """Files that can be de-identified."""
    suspicious: Path
    """Files that may show an identity in pixels or documents, which a header cannot tell."""
    planted: list[Canary] = field(default_factory=list)

    def left_in(self, folder: Path) -> list[Canary]:
        """Return what of it stands in the bytes of the files below `folder`, or in their names."""
        everything = b"\n".join(
            str(path.relative_to(folder)).encode() + b"\n" + all_bytes(path) for path in folder.rglob("*") if path.is_file()
        )
        return self.left_in_bytes(everything)

    def left_in_bytes(self, data: bytes) -> list[Canary]:
        """Return what of it stands in `data`: words anywhere, numbers where they are not part of a longer one."""
        words = {
            run[i : i + WORD] for run in re.findall(rb"[A-Z]{%d,}" % WORD, data.upper()) for i in range(len(run) - WORD + 1)
        }
        runs = {run.strip(b".") for pattern in (rb"[0-9.]+", rb"[0-9]+") for run in re.findall(pattern, data)}
        # The tag of the next element may begin with a byte that is a digit.
        numbers = runs | {run[:-1] for run in runs} | {run[1:] for run in runs}
        usual = re.compile(rb"[A-Z]{%d}|[0-9.]+" % WORD)
        return [
            canary
            for canary in self.planted
            if canary.token in words or canary.token in numbers or (not usual.fullmatch(canary.token) and canary.token in data)
        ]


def all_bytes(path: Path) -> bytes:
    """Return a file as it is and, if it is deflated, its data set inflated as well."""
    raw = path.read_bytes()
    if raw[128:132] != b"DICM" or DeflatedExplicitVRLittleEndian.encode() not in raw[:1024]:
        return raw
    # Group 0002 begins with its own length.
    start = 144 + int.from_bytes(raw[140:144], "little")
    return raw + zlib.decompress(raw[start:], -zlib.MAX_WBITS)


def table_tags() -> list[int]:
    """Return the tags that Table E.1-1 names, in a data set."""
    text = files("secure_media_processor.medical.deid").joinpath("basic_profile.csv").read_text()
    tags = [row["tag"] for row in csv.DictReader(text.splitlines())]
    numbers = [int(tag, 16) for tag in tags if re.fullmatch("[0-9A-F]{8}", tag)]
    return [tag for tag in numbers if tag >> 16 > 0x0004 and tag != 0xFFFCFFFC]


def vr_of(tag: int) -> str:
    """Return the VR of a tag; LO for those that no dictionary knows yet."""
    return dictionary_VR(tag).split(" ")[0] if dictionary_has_tag(tag) else "LO"


class Planter:
    """Hands out values that occur nowhere else, and notes where they go."""

    def __init__(self, canaries: Canaries, file: str, number: int) -> None:
        self.random = random.Random(f"{SEED} {file}")
        self._canaries, self._file = canaries, file
        self._next = number * 100_000

    def note(self, token: bytes, place: str) -> None:
        """Note that `token` is at `place`."""
        self._canaries.planted.append(Canary(token, self._file, place))

    def word(self, place: str) -> str:
        """Return letters that mean nothing."""
        self._next += 1
        word = "".join(self.random.choices(string.ascii_uppercase, k=WORD))
        self.note(word.encode(), place)
        return word

    def uid(self, place: str) -> str:
        """Return a UID of our own making."""
        self._next += 1
        uid = f"1.2.999.{self._next}.{self.random.randrange(10**15)}"
        self.note(uid.encode(), place)
        return uid

    def raw(self, place: str, size: int = 16) -> bytes:
        """Return bytes that hold a word."""
        return self.word(place).encode().ljust(size)

    def value(self, vr: str, place: str) -> object:
        """Return a value of a VR."""
        self._next += 1
        number = self._next
        if vr == "UI":
            return self.uid(place)
        if vr == "PN":
            return f"{self.word(place)}^{self.word(place)}"
        if vr in TEXT_VRS:
            word = self.word(place)
            return f"http://{word}.example" if vr == "UR" else f"It says {word}." if vr in {"LT", "ST", "UT"} else word
        day = f"{date(1931, 1, 1) + timedelta(days=len(self._canaries.planted)):%Y%m%d}"
        time = f"{number % 23 + 1:02}{number % 59 + 1:02}{number % 57 + 1:02}.{number % 10**6:06}"
        texts = {"DA": day, "TM": time, "DT": f"{day}{time}", "DS": f"8.{number}27", "IS": str(10**9 + number)}
        if vr in texts:
            self.note(texts[vr].encode(), place)
            return texts[vr]
        if vr in {"FD", "FL", "UL", "US", "SL", "SS", "AT"}:
            # Too short to be told from chance in the bytes; the comparison of elements sees to them.
            return {"FD": number / 7, "FL": 7.5, "AT": 0x00100010}.get(vr, 77)
        if vr == "AS":
            return f"{number % 60 + 20:03}Y"
        return self.raw(place)


def write_canaries(folder: Path) -> Canaries:
    """Write the files into `folder` and return what is in them."""
    canaries = Canaries(folder / "images", folder / "suspicious")
    for path in (canaries.images, canaries.suspicious):
        path.mkdir(parents=True)
    for number, (name, syntax) in enumerate(SYNTAXES.items()):
        planter = Planter(canaries, name, number)
        (canaries.images / f"{name}.dcm").write_bytes(_encoded(_image(planter, top=True), syntax, planter))
        planter = Planter(canaries, f"nested-{name}", number + 10)
        (canaries.images / f"nested-{name}.dcm").write_bytes(_encoded(_image(planter, top=False), syntax, planter))
    for number, (name, make) in enumerate({"report": _report, "charsets": _names}.items()):
        planter = Planter(canaries, name, number + 20)
        (canaries.images / f"{name}.dcm").write_bytes(_encoded(make(planter), ExplicitVRLittleEndian, planter))
    suspicious = {"pdf": _document, "overlay-in-pixels": _overlay_in_pixels, "burned-in": _burned_in}
    for number, (name, make) in enumerate(suspicious.items()):
        planter = Planter(canaries, name, number + 30)
        (canaries.suspicious / f"{name}.dcm").write_bytes(_encoded(make(planter), ExplicitVRLittleEndian, planter))
    return canaries


# --- parts of data sets ----------------------------------------------------------------------------------------------------


def _encoded(dataset: Dataset, syntax: str, planter: Planter) -> bytes:
    """Return a file, with values in preamble, file meta information and trailing padding."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    for keyword in ("SourceApplicationEntityTitle", "SendingApplicationEntityTitle", "ReceivingApplicationEntityTitle"):
        setattr(meta, keyword, planter.word(f"file meta {keyword}"))
    for keyword in ("SourcePresentationAddress", "SendingPresentationAddress", "ReceivingPresentationAddress"):
        setattr(meta, keyword, f"http://{planter.word(f'file meta {keyword}')}.example")
    meta.PrivateInformationCreatorUID = planter.uid("file meta PrivateInformationCreatorUID")
    meta.PrivateInformation = planter.raw("file meta PrivateInformation")
    dataset.file_meta = meta
    dataset.preamble = planter.raw("preamble", 128)
    dataset.add_new(0xFFFCFFFC, "OB", planter.raw("trailing padding"))
    output = BytesIO()
    dataset.save_as(output, enforce_file_format=True)
    return output.getvalue()


def _plant_table(dataset: Dataset, planter: Planter, where: str) -> None:
    """Put a value into every attribute of the table."""
    for tag in table_tags():
        vr = vr_of(tag)
        place = f"{where}({tag >> 16:04X},{tag & 0xFFFF:04X})"
        if vr == "SQ":
            inner = Dataset()
            inner.PatientComments = planter.value("LT", f"{place} > PatientComments")
            inner.PersonName = planter.value("PN", f"{place} > PersonName")
            dataset[tag] = DataElement(tag, "SQ", Sequence([inner]))
        else:
            dataset[tag] = DataElement(tag, vr, planter.value(vr, place))


def _plant_hidden(dataset: Dataset, planter: Planter, where: str) -> None:
    """Put values where the table names no attribute: private, unknown, curves and overlays, and what tools overlook."""
    block = dataset.private_block(0x0009, "SMP CANARY", create=True)
    block.add_new(0x01, "LO", planter.value("LO", f"{where}private with creator"))
    inner = Dataset()
    inner.PatientName = planter.value("PN", f"{where}private sequence > PatientName")
    inner.add_new(0x00110010, "LO", planter.value("LO", f"{where}private sequence > creator"))
    block.add_new(0x02, "SQ", Sequence([inner]))
    block.add_new(0x03, "UI", planter.value("UI", f"{where}private UID"))
    dataset.add_new(0x00131199, "UN", planter.raw(f"{where}private without creator"))
    dataset.add_new(0x00100099, "UN", planter.raw(f"{where}unknown element of an even group"))
    for group in OVERLAYS:
        dataset.add_new((group, 0x0010), "US", DIMENSION)
        dataset.add_new((group, 0x0011), "US", DIMENSION)
        dataset.add_new((group, 0x0022), "LO", planter.value("LO", f"{where}overlay description {group:04X}"))
        dataset.add_new((group, 0x1500), "LO", planter.value("LO", f"{where}overlay label {group:04X}"))
        dataset.add_new((group, 0x3000), "OW", planter.raw(f"{where}overlay data {group:04X}", DIMENSION**2 // 8))
        dataset.add_new((group, 0x4000), "LT", planter.value("LT", f"{where}overlay comments {group:04X}"))
    for group in CURVES:
        dataset.add_new((group, 0x0030), "SH", planter.value("SH", f"{where}curve axis units {group:04X}"))
        dataset.add_new((group, 0x2500), "LO", planter.value("LO", f"{where}curve label {group:04X}"))
        dataset.add_new((group, 0x3000), "OW", planter.raw(f"{where}curve data {group:04X}"))
    # A person, a page and an instance in attributes that the table does not name.
    dataset.TextValue = planter.value("UT", f"{where}TextValue")
    dataset.RetrieveURL = planter.value("UR", f"{where}RetrieveURL")
    dataset.ReferencedFileID = None


def _geometry(dataset: Dataset, planter: Planter) -> None:
    """Put a picture into `dataset`, and what must survive."""
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality = "CT"
    dataset.BurnedInAnnotation = "NO"
    dataset.InstanceNumber = 1
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [1.5, 2.5, 3.5], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.5], 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = DIMENSION
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    dataset.PixelData = bytes(
        planter.random.randrange(15) if i % 2 else planter.random.randrange(256) for i in range(2 * DIMENSION**2)
    )
    dataset["PixelData"].VR = "OW"


def _image(planter: Planter, *, top: bool) -> Dataset:
    """Return a CT image with values on the top level, or three sequences deep in listed and unlisted ones."""
    dataset = Dataset()
    if top:
        _plant_table(dataset, planter, "")
        _plant_hidden(dataset, planter, "")
    else:
        for keyword, where in ((UNLISTED, "unlisted"), ((REPLACED,) * 3, "replaced")):
            deep = Dataset()
            _plant_table(deep, planter, f"three deep, {where}: ")
            _plant_hidden(deep, planter, f"three deep, {where}: ")
            for name in reversed(keyword):
                outer = Dataset()
                setattr(outer, name, [deep])
                deep = outer
            dataset.update(deep)
        _identify(dataset, planter)
    _geometry(dataset, planter)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


def _identify(dataset: Dataset, planter: Planter, *, names: bool = True) -> None:
    for keyword, vr in (
        ("PatientName", "PN"), ("PatientID", "LO"), ("PatientBirthDate", "DA"), ("StudyInstanceUID", "UI"),
        ("SeriesInstanceUID", "UI"), ("SOPInstanceUID", "UI"), ("FrameOfReferenceUID", "UI"), ("StudyDate", "DA"),
        ("StudyTime", "TM"), ("AccessionNumber", "SH"), ("ReferringPhysicianName", "PN"), ("StudyID", "SH"),
    ):  # fmt: skip
        if vr != "PN" or names:
            setattr(dataset, keyword, planter.value(vr, keyword))
    dataset.PatientSex = ""


def _code(value: str, scheme: str, meaning: str) -> Sequence:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return Sequence([code])


def _report(planter: Planter) -> Dataset:
    """Return a structured report with an item of each kind."""

    def item(kind: str, **values: object) -> Dataset:
        node = Dataset()
        node.RelationshipType, node.ValueType = "CONTAINS", kind
        node.ConceptNameCodeSequence = _code("121071", "DCM", "Finding")
        for keyword, value in values.items():
            setattr(node, keyword, value)
        return node

    def plant(vr: str, kind: str) -> object:
        return planter.value(vr, f"report {kind}")

    measured = Dataset()
    measured.NumericValue = "12.5"
    measured.MeasurementUnitsCodeSequence = _code("mm", "UCUM", "mm")
    reference = Dataset()
    reference.ReferencedSOPClassUID = CTImageStorage
    reference.ReferencedSOPInstanceUID = plant("UI", "IMAGE")
    local = _code(planter.word("report CODE value"), "99LOCAL", planter.word("report CODE meaning"))
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality = BasicTextSRStorage, "SR"
    _identify(dataset, planter)
    dataset.InstanceNumber = 1
    dataset.ValueType = "CONTAINER"
    dataset.ContinuityOfContent = "SEPARATE"
    dataset.ConceptNameCodeSequence = _code("121070", "DCM", "Findings")
    dataset.CompletionFlag, dataset.VerificationFlag = "COMPLETE", "UNVERIFIED"
    dataset.ContentSequence = [
        item("PNAME", PersonName=plant("PN", "PNAME")),
        item("TEXT", TextValue=plant("UT", "TEXT")),
        item("UIDREF", UID=plant("UI", "UIDREF")),
        item("DATE", Date=plant("DA", "DATE")),
        item("TIME", Time=plant("TM", "TIME")),
        item("DATETIME", DateTime=plant("DT", "DATETIME")),
        item("NUM", MeasuredValueSequence=[measured]),
        item("CODE", ConceptCodeSequence=_code("T-D3000", "SRT", "Chest")),
        item("CODE", ConceptCodeSequence=local),
        item("IMAGE", ReferencedSOPSequence=[reference]),
        item(
            "CONTAINER",
            ContinuityOfContent="SEPARATE",
            ContentSequence=[item("TEXT", TextValue=plant("UT", "nested TEXT"))],
        ),
    ]
    return dataset


def _names(planter: Planter) -> Dataset:
    """Return an image with names in other scripts."""
    dataset = Dataset()
    _identify(dataset, planter, names=False)
    _geometry(dataset, planter)
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.PatientName = "Yamada^Tarou=山田^太郎"
    for token in (b"Yamada", b"Tarou", "山田".encode("iso2022_jp")[3:-3], "太郎".encode("iso2022_jp")[3:-3]):
        planter.note(token, "PatientName")
    dataset.ReferringPhysicianName = "Suzuki^Hanako=鈴木^花子"
    for token in (b"Suzuki", b"Hanako", "鈴木".encode("iso2022_jp")[3:-3]):
        planter.note(token, "ReferringPhysicianName")
    return dataset


def _document(planter: Planter) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality = EncapsulatedPDFStorage, "DOC"
    _identify(dataset, planter)
    dataset.DocumentTitle = planter.value("ST", "DocumentTitle")
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocument = b"%PDF-1.4 " + planter.raw("EncapsulatedDocument", 31)
    return dataset


def _overlay_in_pixels(planter: Planter) -> Dataset:
    dataset = Dataset()
    _identify(dataset, planter)
    _geometry(dataset, planter)
    dataset.add_new(0x60000010, "US", DIMENSION)
    dataset.add_new(0x60000011, "US", DIMENSION)
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", 15)
    return dataset


def _burned_in(planter: Planter) -> Dataset:
    dataset = Dataset()
    _identify(dataset, planter)
    _geometry(dataset, planter)
    dataset.SOPClassUID, dataset.Modality = UltrasoundImageStorage, "US"
    dataset.BurnedInAnnotation = "YES"
    return dataset
