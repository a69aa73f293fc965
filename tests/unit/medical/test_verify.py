"""The verifier: it finds whatever is planted, wherever it is, says nothing of values, and is silent on clean files."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from copy import deepcopy
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import DataElement, Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from conftest import Ran
from dicom_canaries import Canaries, Planter, table_tags, vr_of, write_canaries
from secure_media_processor.cli.medical.verify_anonymized import OPTIONS as CLI_OPTIONS
from secure_media_processor.errors import MissingError, UsageError
from secure_media_processor.medical.deid.verify import OPTIONS, Kind, VerifyReport, read_mapping, verify_deidentified
from secure_media_processor.medical.deid.verifying.elements import DamagedError, leaves, parse_file, read_file
from secure_media_processor.medical.deid.verifying.residue import marks_of
from secure_media_processor.medical.deid.verifying.rules import Rules, tag_name

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

ORIGINAL_UIDS = {"StudyInstanceUID": "1.2.999.11", "SeriesInstanceUID": "1.2.999.12", "SOPInstanceUID": "1.2.999.13"}
NEW_UIDS = {"StudyInstanceUID": "2.25.11111111", "SeriesInstanceUID": "2.25.11111112", "SOPInstanceUID": "2.25.11111113"}
CT = "1.2.840.10008.5.1.4.1.1.2"
# Attributes that say how a file was de-identified have values of their own.
STATEMENTS = {0x00120062, 0x00120063, 0x00120064, 0x00280303}


def image(number: int = 1) -> Dataset:
    """Return an original, without any attribute that holds more than it must."""
    dataset = Dataset()
    dataset.file_meta = deepcopy(
        dcmread(str(get_testdata_file("CT_small.dcm", download=False)), stop_before_pixels=True).file_meta
    )
    for keyword in ("SourceApplicationEntityTitle", "ImplementationVersionName"):
        dataset.file_meta.pop(keyword, None)
    dataset.SOPClassUID, dataset.Modality = CT, "CT"
    for keyword, uid in ORIGINAL_UIDS.items():
        setattr(dataset, keyword, uid)
    dataset.SOPInstanceUID = f"1.2.999.13{number}"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Halvorsen^Rowena", "QX-48151623", "19480229"
    dataset.StudyDate, dataset.StudyTime, dataset.ContentDate = "20110305", "101112", "20110306"
    dataset.InstanceNumber = number
    dataset.Rows, dataset.Columns = 2, 2
    dataset.SliceThickness = "2.5"
    dataset.PixelData = bytes([number, 2, 3, 4, 5, 6, 7, 8])
    dataset["PixelData"].VR = "OW"
    return dataset


def cleaned(number: int = 1) -> Dataset:
    """Return what a faultless engine makes of it."""
    dataset = image(number)
    for keyword, uid in NEW_UIDS.items():
        setattr(dataset, keyword, uid)
    dataset.SOPInstanceUID = f"2.25.11111113{number}"
    dataset.PatientName = dataset.PatientID = "SMP-1"
    dataset.PatientBirthDate = dataset.StudyDate = dataset.StudyTime = ""
    dataset.ContentDate = "19000101"
    dataset.PatientIdentityRemoved, dataset.DeidentificationMethod = "YES", "by hand"
    dataset.LongitudinalTemporalInformationModified = "REMOVED"
    state(dataset, "113100")
    return dataset


def state(dataset: Dataset, *codes: str) -> None:
    items = []
    for code in codes:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "DCM", "a method"
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = Sequence(items)


def encoded(dataset: Dataset, *, preamble: bytes = bytes(128)) -> bytes:
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.preamble = preamble
    output = BytesIO()
    dataset.save_as(output, enforce_file_format=True)
    return output.getvalue()


def compared(before: Dataset | bytes, after: Dataset | bytes, **options: object) -> VerifyReport:
    for name, data in (("before.dcm", before), ("after.dcm", after)):
        Path(name).write_bytes(data if isinstance(data, bytes) else encoded(data))
    return verify_deidentified("before.dcm", "after.dcm", **options)


def kinds(report: VerifyReport) -> set[Kind]:
    return set(report.violations)


def test_a_clean_file_is_clean(work: Path) -> None:
    report = compared(image(), cleaned())
    assert report.files == ()
    assert report.is_clean
    assert (report.originals, report.outputs, report.pairs, report.missing, report.unreadable) == (1, 1, 1, (), ())
    assert report.elements > 20


# --- every row of the table --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_every_attribute_of_the_table_is_missed_when_it_stays(work: Path, depth: int) -> None:
    """One at a time, each row of Table E.1-1 is planted into a clean output as it was in the original."""
    overlooked = []
    for number, tag in enumerate(table_tags()):
        if tag in STATEMENTS:
            continue
        planter = Planter(Canaries(work, work), "sweep", number)
        vr = vr_of(tag)
        inner = Dataset()
        inner.PatientComments = "QWERTYUIOPAS"
        value = Sequence([inner]) if vr == "SQ" else planter.value(vr, "")
        planted = Dataset()
        planted[tag] = DataElement(tag, vr, value)
        for keyword in ("ReferencedSeriesSequence", "PurposeOfReferenceCodeSequence", "AnatomicRegionModifierSequence")[:depth]:
            outer = Dataset()
            setattr(outer, keyword, [planted])
            planted = outer
        before, after = image(), cleaned()
        for dataset in (before, after):
            dataset.update(deepcopy(planted))
        report = compared(before, after)
        if not any(tag_name(tag) in one.place for file in report.files for one in file.violations):
            overlooked.append(tag_name(tag))
    assert overlooked == []


# --- every other kind --------------------------------------------------------------------------------------------------------


def add_private(dataset: Dataset) -> None:
    dataset.private_block(0x0009, "SMP TEST", create=True).add_new(0x01, "DS", "1")


def add_orphan(dataset: Dataset) -> None:
    dataset.add_new(0x00131199, "UN", b"12")


def add_private_in_item(dataset: Dataset) -> None:
    item = Dataset()
    add_private(item)
    dataset.ReferencedSeriesSequence = [item]


def add_unknown(dataset: Dataset) -> None:
    dataset.add_new(0x00100099, "UN", b"12")


def add_meta(dataset: Dataset) -> None:
    dataset.file_meta.SourceApplicationEntityTitle = "X"


def add_overlay(dataset: Dataset) -> None:
    dataset.add_new(0x60FE3000, "OW", b"12")


def add_curve(dataset: Dataset) -> None:
    dataset.add_new(0x50021234, "LO", "x")


def change_pixels(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:-1] + b"\0"


def drop_pixels(dataset: Dataset) -> None:
    del dataset.PixelData


def old_instance(dataset: Dataset) -> None:
    dataset.SOPInstanceUID = "1.2.999.131"


def old_uid_elsewhere(dataset: Dataset) -> None:
    dataset.FrameOfReferenceUID = "1.2.999.12"


def forget_statement(dataset: Dataset) -> None:
    del dataset.PatientIdentityRemoved


def forget_codes(dataset: Dataset) -> None:
    del dataset.DeidentificationMethodCodeSequence


def claim_dates(dataset: Dataset) -> None:
    dataset.LongitudinalTemporalInformationModified = "UNMODIFIED"


def tell_age(dataset: Dataset) -> None:
    dataset.PatientAge = "097Y"


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (add_private, Kind.PRIVATE), (add_orphan, Kind.PRIVATE), (add_private_in_item, Kind.PRIVATE),
        (add_unknown, Kind.UNKNOWN),
        (add_meta, Kind.FILE_META), (add_overlay, Kind.PRESENT), (add_curve, Kind.PRESENT), (change_pixels, Kind.PIXELS),
        (drop_pixels, Kind.PIXELS), (old_instance, Kind.UID), (old_uid_elsewhere, Kind.UID), (forget_statement, Kind.STATEMENT),
        (forget_codes, Kind.STATEMENT), (claim_dates, Kind.STATEMENT), (tell_age, Kind.AGE),
    ],
)  # fmt: skip
def test_each_kind_is_found(work: Path, plant: Callable[[Dataset], None], kind: Kind) -> None:
    after = cleaned()
    plant(after)
    assert kind in kinds(compared(image(), after))


def test_what_lies_around_the_data_set(work: Path) -> None:
    preamble = b"II*\0 somebody was here ".ljust(128, b"\0")
    assert kinds(compared(encoded(image(), preamble=preamble), encoded(cleaned(), preamble=preamble))) == {
        Kind.PREAMBLE, Kind.RESIDUE,
    }  # fmt: skip
    assert kinds(compared(image(), encoded(cleaned()) + bytes(8) + b"Halvorsen")) >= {Kind.TRAILING, Kind.RESIDUE}
    after = encoded(cleaned())
    wrong = after.replace(b"2.25.111111131", b"2.25.111111139", 1)  # the first is in file meta information
    assert Kind.UID_MAP in kinds(compared(image(), wrong))


@pytest.mark.parametrize(
    ("tag", "vr", "value"),
    [
        (0x0040A160, "UT", "seen by nobody we know"), (0x00081190, "UR", "http://hospital.example/x"),
        (0x60000022, "LO", "a label"),
        (0x60FE1500, "LO", "a label"), (0x00720066, "PN", "Somebody^Else"), (0x00200052, "UI", "1.2.999.77"),
    ],
)  # fmt: skip
def test_what_the_table_cannot_name(work: Path, tag: int, vr: str, value: str) -> None:
    before, after = image(), cleaned()
    for dataset in (before, after):
        dataset.add_new(tag, vr, value)
    assert kinds(compared(before, after)) & {Kind.KEPT, Kind.UID}


# --- the bytes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hidden",
    [
        b"seen by ROWENA.", b"halvorsen", "Rowena".encode("utf-16-le"), "Rowena".encode("utf-16-be"),
        b"x48151623x", b"1948-02-29",
        base64.b64encode(b"Patient: Rowena Halvorsen, born long ago"),
        b"ab" + base64.encodebytes(b"it was Rowena who came and went again"),
        b"id=QX-48151623;", b"1.2.999.12",
    ],
)  # fmt: skip
def test_values_are_found_anywhere_in_the_bytes(work: Path, hidden: bytes) -> None:
    after = cleaned()
    after.add_new(0x00281201, "OW", b"\0\1" + hidden + b"\0" * (2 + len(hidden) % 2))
    before = image()
    before.add_new(0x00281201, "OW", bytes(4))
    assert Kind.RESIDUE in kinds(compared(before, after))
    after.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert Kind.RESIDUE in kinds(compared(before, after))


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=8, max_size=20), st.integers(0, 3), st.binary(max_size=20))
def test_any_name_is_found_behind_any_bytes(name: str, case: int, before: bytes) -> None:
    original = image()
    original.PatientName = name
    form = (name, name.lower(), name.title(), name.swapcase())[case]
    after = cleaned()
    after.add_new(0x00281201, "OW", before + b"\0" + form.encode() + b"\0" * (2 - (len(before) + 1 + len(form)) % 2))
    marks = marks_of(parse_file(encoded(original)), Rules(frozenset()))
    if any(mark.text == name.lower() and not mark.whole for mark in marks):
        from secure_media_processor.medical.deid.verifying.residue import places_left  # noqa: PLC0415

        assert "(0010,0010)" in places_left(marks, parse_file(encoded(after)))[0]


def test_common_words_raise_no_alarm(work: Path) -> None:
    before, after = image(), cleaned()
    before.StudyDescription, before.ProtocolName, before.StationName = "CHEST", "HEAD", "CT"
    before.PatientName = "Patient^Test"
    for dataset in (before, after):
        dataset.BodyPartExamined, dataset.ScanOptions = "CHEST", "HEAD TEST"
    assert compared(before, after).is_clean


def test_other_scripts_are_found(work: Path) -> None:
    before, after = image(), cleaned()
    before.SpecificCharacterSet = after.SpecificCharacterSet = "ISO_IR 192"
    before.PatientName = "Yamada=山田^太郎"
    before.PositionReferenceIndicator = ""
    after.PositionReferenceIndicator = "by 太郎 today"
    assert kinds(compared(before, after)) == {Kind.RESIDUE}
    after.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    assert kinds(compared(before, after)) == {Kind.RESIDUE}


def test_names_of_files_are_read_too(work: Path) -> None:
    (work / "out").mkdir()
    (work / "in.dcm").write_bytes(encoded(image()))
    (work / "out" / "Halvorsen-1.dcm").write_bytes(encoded(cleaned()))
    assert kinds(verify_deidentified("in.dcm", "out")) == {Kind.FILE_NAME}


# --- options -----------------------------------------------------------------------------------------------------------------


def test_what_an_option_keeps_must_be_kept(work: Path) -> None:
    before, after = image(), cleaned()
    before.Manufacturer, before.StationName, before.PatientWeight = "ACME", "STATION-12345", "61.25"
    for keyword in ("Manufacturer", "StationName", "PatientWeight"):
        after[keyword] = before[keyword]
    assert kinds(compared(before, after)) >= {Kind.PRESENT, Kind.RESIDUE}
    state(after, "113100", "113109", "113108")
    assert compared(before, after).is_clean
    assert not compared(before, after, options=()).is_clean
    del after.PatientWeight
    report = compared(before, after)
    assert report.is_clean
    assert dict(report.lost) == {"(0010,1030)": 1}


def test_shifted_dates_keep_their_intervals(work: Path) -> None:
    def shifted(days: tuple[str, str]) -> Dataset:
        after = cleaned()
        after.StudyDate, after.ContentDate = days
        after.LongitudinalTemporalInformationModified = "MODIFIED"
        state(after, "113100", "113107")
        return after

    # The new StudyDate is the old ContentDate: that is no residue.
    assert compared(image(), shifted(("20110306", "20110307"))).is_clean
    assert kinds(compared(image(), shifted(("20110306", "20110308")))) == {Kind.DATES}
    assert Kind.KEPT in kinds(compared(image(), shifted(("20110305", "20110306"))))


def test_the_caller_can_demand_statements(work: Path) -> None:
    assert compared(image(), cleaned(), at_least=["basic"]).is_clean
    assert kinds(compared(image(), cleaned(), at_least=["clean-pixels"])) == {Kind.STATEMENT}
    with pytest.raises(UsageError, match="no option"):
        compared(image(), cleaned(), at_least=["nonsense"])


def test_pixels_may_change_where_this_is_stated(work: Path) -> None:
    after = cleaned()
    change_pixels(after)
    state(after, "113100", "113101")
    assert compared(image(), after).is_clean
    after.Rows = 1
    assert kinds(compared(image(), after)) == {Kind.PIXELS}


def test_attributes_that_should_have_survived(work: Path) -> None:
    after = cleaned()
    del after.SliceThickness
    report = compared(image(), after)
    assert report.is_clean
    assert dict(report.lost) == {"(0018,0050)": 1}


# --- many files --------------------------------------------------------------------------------------------------------------


def write(folder: str, **datasets: Dataset) -> None:
    Path(folder).mkdir(exist_ok=True)
    for name, dataset in datasets.items():
        (Path(folder) / f"{name}.dcm").write_bytes(encoded(dataset))


def test_files_are_paired_by_what_is_in_them(work: Path) -> None:
    write("in", a=image(1), b=image(2), c=image(3))
    write("out", z=cleaned(1), y=cleaned(2))
    report = verify_deidentified("in", "out")
    assert report.is_clean
    assert (report.pairs, [path.name for path in report.missing]) == (2, ["c.dcm"])
    stranger = cleaned(9)
    stranger.SOPClassUID, stranger.Modality, stranger.KVP = "1.2.840.10008.5.1.4.1.1.4", "MR", "1"
    write("out", x=cleaned(3), stranger=stranger)
    report = verify_deidentified("in", "out")
    assert kinds(report) == {Kind.UNPAIRED}
    assert [file.output.name for file in report.files] == ["stranger.dcm"]


def test_uids_and_patients_must_map_one_to_one(work: Path) -> None:
    first, second = cleaned(1), cleaned(2)
    second.SeriesInstanceUID = "2.25.999999"
    write("in", a=image(1), b=image(2))
    write("out", a=first, b=second)
    assert kinds(verify_deidentified("in", "out")) == {Kind.UID_MAP}
    second = cleaned(2)
    second.PatientID = second.PatientName = "SMP-2"
    write("out", b=second)
    assert kinds(verify_deidentified("in", "out")) == {Kind.PATIENT_MAP}


def test_a_uid_of_another_file_is_found(work: Path) -> None:
    second = cleaned(2)
    second.FrameOfReferenceUID = "1.2.999.131"  # the SOPInstanceUID of the first
    write("in", a=image(1), b=image(2))
    write("out", a=cleaned(1), b=second)
    assert kinds(verify_deidentified("in", "out")) == {Kind.UID}


def test_images_that_are_alike_are_told_apart_by_their_series(work: Path) -> None:
    def alike(number: int, make: Callable[[int], Dataset], series: str, sop: str) -> Dataset:
        dataset = make(number)
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID, dataset.PixelData = series, sop, bytes(8)
        return dataset

    write("in", a=alike(1, image, "1.2.999.500", "1.2.999.501"), b=alike(1, image, "1.2.999.600", "1.2.999.601"))
    write("in", c=alike(2, image, "1.2.999.600", "1.2.999.602"))
    write("out", p=alike(1, cleaned, "2.25.600000", "2.25.600001"), q=alike(1, cleaned, "2.25.500000", "2.25.500001"))
    write("out", r=alike(2, cleaned, "2.25.600000", "2.25.600002"))
    assert verify_deidentified("in", "out").is_clean


def test_a_mapping_pairs_files(work: Path) -> None:
    write("in", a=image(1), b=image(1))
    write("out", p=cleaned(1))
    Path("map.csv").write_text("old,new\n1.2.999.131,2.25.111111131\n")
    assert verify_deidentified("in", "out", mapping=read_mapping(Path("map.csv"))).pairs == 1
    Path("map.csv").write_text("a,b\n")
    with pytest.raises(UsageError, match="table of UIDs"):
        read_mapping(Path("map.csv"))


def test_what_cannot_be_read_is_reported(work: Path) -> None:
    write("in", a=image())
    write("out", a=cleaned())
    (work / "in" / "notes.txt").write_text("Halvorsen")
    (work / "out" / "cut.dcm").write_bytes(encoded(cleaned())[:-3])
    (work / "out" / "gone.dcm").symlink_to("nowhere")
    report = verify_deidentified("in", "out")
    assert report.is_clean
    assert {bad.path.name for bad in report.unreadable} == {"notes.txt", "cut.dcm", "gone.dcm"}
    with pytest.raises(MissingError):
        verify_deidentified("in", "absent")


@given(st.integers(132, 1500), st.binary(min_size=1, max_size=6))
def test_damage_is_an_error_of_ours_or_nothing(position: int, damage: bytes) -> None:
    raw = bytearray(encoded(image()))
    raw[position : position + len(damage)] = damage
    try:
        found = parse_file(bytes(raw))
    except DamagedError:
        return
    assert list(leaves(found.dataset))


def test_the_own_reader_reads_what_pydicom_reads() -> None:
    root = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
    for name in (
        "CT_small.dcm",
        "MR_small_bigendian.dcm",
        "image_dfl.dcm",
        "rtplan.dcm",
        "reportsi.dcm",
        "MR_small_implicit.dcm",
    ):
        own = read_file(root / name)
        foreign = dcmread(root / name)
        assert sorted(own.dataset) == sorted(map(int, foreign.keys()))
        assert own.dataset[0x00080018].texts == (foreign.SOPInstanceUID,)


# --- the command -------------------------------------------------------------------------------------------------------------


def test_the_command_names_all_options() -> None:
    assert set(CLI_OPTIONS) == set(OPTIONS)


def test_exit_codes_and_what_is_printed(smp: Callable[..., Ran], work: Path) -> None:
    write("in", a=image(1), b=image(2))
    write("out", a=cleaned(1))
    ran = smp("medical", "verify-anonymized", "in", "out")
    assert (ran.code, ran.text) == (0, "")
    assert "1 original without an output" in ran.err
    (work / "out" / "notes.txt").write_text("x")
    assert smp("medical", "verify-anonymized", "in", "out").code == 3
    second = cleaned(2)
    second.StudyDate = "20110305"
    write("out", b=second)
    ran = smp("medical", "verify-anonymized", "in", "out")
    assert ran.code == 6
    assert "(0008,0020)" in ran.text
    assert "SMP-IDENTITY-LEFT" in ran.err
    found = json.loads(smp("medical", "verify-anonymized", "in", "out", "--json").text)
    assert found["schema"] == "smp.medical.verify-anonymized/1"
    assert found["violations"] == {"kept": 1, "residue": 1}
    assert found["files"][0]["violations"][0] == {"kind": "kept", "place": "(0008,0020)"}


def test_nothing_that_is_printed_holds_a_value(smp: Callable[..., Ran], work: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The worst output is the original itself: everything is found, and no value is told."""
    caplog.set_level(logging.DEBUG)
    canaries = write_canaries(work / "in")
    cut = work / "in" / "images" / "cut.dcm"
    cut.write_bytes((work / "in" / "images" / "explicit.dcm").read_bytes()[:-100])
    for options in ((), ("--json",), ("-vv",), ("--basic",)):
        ran = smp("medical", "verify-anonymized", "in", "in", *options)
        assert ran.code == 6
        assert canaries.left_in_bytes(ran.out + ran.err.encode() + caplog.text.encode()) == []
