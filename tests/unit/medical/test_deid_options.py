"""The options of PS3.15 section E.3: what each keeps, and what it still does not let through."""

from __future__ import annotations

import csv
import os
from datetime import date, timedelta
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import DataElement, Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR
from pydicom.sequence import Sequence

from secure_media_processor.cli.medical.anonymize import OPTIONS, PROFILES
from secure_media_processor.core.keys import SymmetricKey
from secure_media_processor.errors import ConfigError, IntegrityError, UsageError
from secure_media_processor.medical.deid import engine
from secure_media_processor.medical.deid.dates import DateShift, capped_age
from secure_media_processor.medical.deid.engine import Deidentifier
from secure_media_processor.medical.deid.mapping import Mapping
from secure_media_processor.medical.deid.private import creator_tag, is_creator, is_safe
from secure_media_processor.medical.deid.profile import PRESETS, Option, Profile, Rules
from secure_media_processor.medical.deid.table import Action, read_table
from secure_media_processor.medical.deid.text import clean_text, words_of
from secure_media_processor.medical.deid.values import DUMMIES

KEY = bytes(range(32))
NAME = "Halvorsen-Quist^Rowena"
OF_OPTION = {
    Option.RETAIN_UIDS: "uids",
    Option.RETAIN_DEVICE: "device",
    Option.RETAIN_INSTITUTION: "institution",
    Option.RETAIN_PATIENT_CHARACTERISTICS: "patient",
    Option.RETAIN_DATES: "full_dates",
}


def ct() -> Dataset:
    dataset = dcmread(get_testdata_file("CT_small.dcm"))
    assert isinstance(dataset, Dataset)
    dataset.PatientName, dataset.PatientID = NAME, "MRN-7719-RHQ"
    return dataset


def clean(dataset: Dataset, *options: Option) -> Dataset:
    Deidentifier(KEY, Profile(frozenset(options))).deidentify(dataset)
    return dataset


def rows() -> list[dict[str, str]]:
    text = files("secure_media_processor.medical.deid").joinpath("basic_profile.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def test_the_command_line_has_every_preset_and_option() -> None:
    assert set(PROFILES) == set(PRESETS)
    assert set(OPTIONS) <= {option.value for option in Option}


def test_presets_and_contradictions() -> None:
    assert Profile.named("tcia", [Option.RETAIN_UIDS]).options == PRESETS["tcia"] | {Option.RETAIN_UIDS}
    with pytest.raises(UsageError):
        Profile.named("none")
    with pytest.raises(UsageError):
        Profile.named("tcia", [Option.RETAIN_DATES])


@pytest.mark.parametrize("option", OF_OPTION)
def test_what_an_option_keeps_is_kept(option: Option) -> None:
    """Every K of its column, with a value of the VR, and nothing that has no K and was not kept before."""
    column = OF_OPTION[option]
    rules, basic = Rules(Profile(frozenset({option}))), Rules(Profile())
    for row in rows():
        if "x" in row["tag"] or row["tag"] == "private" or row["tag"][:4] in {"0000", "0002"}:
            continue
        tag = int(row["tag"], 16)
        rule = rules.rule(tag)
        assert (rule.action is Action.KEEP) == (row[column] == "K"), row["tag"]
        if not row[column]:
            assert rule.action is basic.rule(tag).action


@pytest.mark.parametrize("option", OF_OPTION)
def test_kept_values_are_the_same_values(option: Option) -> None:
    column, original, dataset = OF_OPTION[option], {}, ct()
    for row in rows():
        if row[column] != "K" or int(row["tag"], 16) >> 16 in (0x0000, 0x0002, 0x0004):
            continue
        tag = int(row["tag"], 16)
        try:
            vr = dictionary_VR(tag).split(" ")[0]
        except KeyError:
            continue
        if vr == "SQ" or tag in dataset:
            continue
        value = "1.2.3.4" if vr == "UI" else DUMMIES[vr]
        dataset[tag] = DataElement(tag, vr, value)
        original[tag] = dataset[tag].value
    assert len(original) > 5
    clean(dataset, option)
    assert {tag: dataset[tag].value for tag in original if tag in dataset} == original


def test_kept_uids_stay_and_are_still_in_the_meta_information(tmp_path: Path) -> None:
    dataset = ct()
    study, instance = dataset.StudyInstanceUID, dataset.SOPInstanceUID
    dataset = clean(dataset, Option.RETAIN_UIDS)
    assert (dataset.StudyInstanceUID, dataset.SOPInstanceUID) == (study, instance)
    assert dataset.file_meta.MediaStorageSOPInstanceUID == instance


@pytest.mark.parametrize("uid", ["../../etc", "1.2/3", "..", "", "1.2.", "1\\2"])
def test_a_kept_uid_that_is_none_is_refused(uid: str) -> None:
    dataset = ct()
    dataset[0x00080018] = DataElement(0x00080018, "UI", uid, already_converted=True)
    with pytest.raises(ValueError, match="UID"):
        clean(dataset, Option.RETAIN_UIDS)


def test_dates_move_together_and_keep_their_intervals() -> None:
    dataset, other = ct(), ct()
    dataset.StudyDate, dataset.AcquisitionDateTime = "20040119", "20040121073015.123+0100"
    other.StudyDate, other.StudyTime = "20050119", "072730"
    dataset, other = clean(dataset, Option.SHIFT_DATES), clean(other, Option.SHIFT_DATES)
    first, second = (date.fromisoformat(one.StudyDate) for one in (dataset, other))
    assert second - first == timedelta(days=366)
    assert first < date(2004, 1, 19) - timedelta(days=30)
    assert date.fromisoformat(dataset.AcquisitionDateTime[:8]) - first == timedelta(days=2)
    assert dataset.AcquisitionDateTime[8:] == "073015.123"
    assert other.StudyTime == "072730"
    assert dataset.LongitudinalTemporalInformationModified == "MODIFIED"
    assert "113107" in {code.CodeValue for code in dataset.DeidentificationMethodCodeSequence}
    assert "PatientBirthDate" not in dataset or not dataset.PatientBirthDate


def test_a_time_of_which_the_number_of_the_patient_is_made_goes() -> None:
    dataset = ct()
    dataset.PatientID, dataset.StudyTime, dataset.SeriesTime = "11-05-25-142825", "142825.000", "142900"
    dataset = clean(dataset, Option.SHIFT_DATES)
    assert not dataset.StudyTime
    assert dataset.SeriesTime == "142900"


def test_patients_have_shifts_of_their_own() -> None:
    shifts = {DateShift.of(KEY, f"SMP-{number}").days for number in range(200)}
    assert len(shifts) > 150
    assert all(-3652 <= days <= -31 for days in shifts)
    assert DateShift.of(KEY, "SMP-1") == DateShift.of(KEY, "SMP-1")
    assert {DateShift.of(bytes(32), "SMP-1"), DateShift.of(KEY, "SMP-1")} != {DateShift.of(KEY, "SMP-1")}


@given(st.dates(date(1911, 1, 1), date(2100, 1, 1)), st.integers(-3652, -31))
def test_a_moved_date_is_so_many_days_away(day: date, days: int) -> None:
    moved = DateShift(days).date(f"{day:%Y%m%d}")
    assert moved is not None
    assert date.fromisoformat(moved) - day == timedelta(days=days)


@pytest.mark.parametrize("text", ["2004", "200401", "20041399", "nonsense", "20040119 ROWENA", "00010101", "2004011907x"])
def test_what_is_no_date_is_not_moved(text: str) -> None:
    assert DateShift(-400).datetime(text) is None


def test_a_date_that_cannot_be_moved_is_treated_as_the_basic_profile_has_it() -> None:
    dataset = ct()
    dataset[0x00080022] = DataElement(0x00080022, "DA", "ROWENA", already_converted=True)
    dataset[0x00080020] = DataElement(0x00080020, "DA", "ROWENA", already_converted=True)
    dataset = clean(dataset, Option.SHIFT_DATES)
    assert "ROWENA" not in str(dataset)


@pytest.mark.parametrize(("age", "shown"), [("089Y", "089Y"), ("090Y", "090Y"), ("101Y", "090Y"), ("003M", "003M"), ("", "")])
def test_ages_over_89(age: str, shown: str) -> None:
    assert capped_age(age) == shown
    dataset = ct()
    dataset.PatientAge = age
    assert clean(dataset, Option.RETAIN_PATIENT_CHARACTERISTICS).PatientAge == shown


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("CT Abdomen with contrast, 5mm / 3.0", "CT Abdomen with contrast, 5mm 3.0"),
        ("AX T2w FLAIR b1000 3D for Rowena HQ", "AX FLAIR b1000 3D for"),
        ("Follow-up of Rowena HQ 12/05/1971", "Follow-up of"),
        ("seen 12 May 71, MRN 7719", ""),
        ("T1_MPRAGE_SAG_iso", "T1_MPRAGE_SAG_iso"),
        ("rowena@example.org 555-123-4567", ""),
        ("Dr. Smith", ""),
        ("by Dr Stone at Head", "at Head"),
        ("phone 01 23 45 67 89", ""),
        ("95y female, TR1234", ""),
        ("b1000 b1234c567", "b1000"),
        ("knee\u24c8", "knee"),
        ("Hüfte", ""),
        ("", ""),
    ],
)
def test_text_is_cleaned_by_what_is_allowed(text: str, cleaned: str) -> None:
    assert clean_text(text, frozenset()) == cleaned


def test_a_word_that_names_somebody_goes_even_if_it_is_a_usual_one() -> None:
    assert clean_text("Chest of Mr. Long", frozenset(words_of("Long^Chest"))) == "of Mr."


@given(st.text(max_size=80))
def test_cleaning_is_settled_after_one_time(text: str) -> None:
    once = clean_text(text, frozenset())
    assert all(word in text.lower() for word in once.lower().split())
    assert clean_text(once, frozenset()) == once


def test_descriptions_keep_their_words_and_lose_the_patient() -> None:
    dataset = ct()
    dataset.StudyDescription = "CT chest of Rowena Halvorsen-Quist, follow-up"
    dataset.SeriesDescription = "Rowena"
    dataset.ProtocolName = "Abdomen 5mm"
    dataset = clean(dataset, Option.CLEAN_DESCRIPTORS)
    assert dataset.StudyDescription == "CT chest of follow-up"
    assert "SeriesDescription" not in dataset
    assert dataset.ProtocolName == "Abdomen 5mm"


def test_descriptions_are_cleaned_of_what_is_named_anywhere_in_the_file() -> None:
    dataset, item = ct(), Dataset()
    item.PersonName = "Lung^Aorta"
    dataset.ReferringPhysicianIdentificationSequence = Sequence([])
    dataset.SourceImageSequence = Sequence([item])
    dataset.StudyDescription = "Aorta and lung, heart"
    assert clean(dataset, Option.CLEAN_DESCRIPTORS).StudyDescription == "and heart"


def test_reports_keep_their_tree_and_harmless_words() -> None:
    dataset, text, name, when = ct(), Dataset(), Dataset(), Dataset()
    text.ValueType, text.TextValue = "TEXT", "No fracture. Seen by Rowena on 12.05.2004"
    name.ValueType, name.PersonName = "PNAME", "Okonkwo^Ansel"
    when.ValueType, when.Date = "DATE", "20040119"
    text.ContentSequence = Sequence([name, when])
    dataset.ContentSequence = Sequence([text])
    dataset.StudyDate = "20040119"
    dataset = clean(dataset, Option.CLEAN_STRUCTURED_CONTENT, Option.SHIFT_DATES)
    [item] = dataset.ContentSequence
    assert item.TextValue == "No fracture."
    assert item.ContentSequence[0].PersonName == DUMMIES["PN"]
    assert item.ContentSequence[1].Date == dataset.StudyDate != "20040119"


def test_overlays_that_mark_a_region_stay_and_those_that_draw_do_not() -> None:
    dataset = ct()
    for group, kind in ((0x6000, "R"), (0x6002, "G")):
        for element, vr, value in (
            (0x0010, "US", 8), (0x0011, "US", 8), (0x0022, "LO", "liver of Rowena"), (0x0040, "CS", kind), (0x0100, "US", 1),
            (0x0102, "US", 0), (0x1500, "LO", "Rowena"), (0x3000, "OW", bytes(8)),
        ):  # fmt: skip
            dataset.add_new(group << 16 | element, vr, value)
    dataset = clean(dataset, Option.CLEAN_GRAPHICS)
    left = {int(tag) for tag in dataset.keys() if int(tag) >> 16 in (0x6000, 0x6002)}  # noqa: SIM118
    assert left == {0x60000010, 0x60000011, 0x60000022, 0x60000040, 0x60000100, 0x60000102, 0x60003000}
    assert dataset[0x60000022].value == "liver of"


def test_the_list_of_safe_private_attributes() -> None:
    assert is_creator(0x00190010)
    assert not is_creator(0x00191001)
    assert not is_creator(0x00180010)
    assert creator_tag(0x00191023) == 0x00190010
    assert is_safe(0x00191002, "GEMS_ACQU_01")
    assert not is_safe(0x00191002, "ROWENA")


def test_safe_private_attributes_stay_with_their_creators_and_no_others() -> None:
    dataset = ct()
    before = {int(tag): dataset[tag].value for tag in dataset.keys() if int(tag) >> 16 & 1}  # noqa: SIM118
    dataset[0x00191002].value = 912
    dataset.add_new(0x00231001, "LO", "without a creator")
    dataset = clean(dataset, Option.RETAIN_SAFE_PRIVATE)
    left = {int(tag) for tag in dataset.keys() if int(tag) >> 16 & 1}  # noqa: SIM118
    kept = {tag for tag in left if not is_creator(tag)}
    assert 0x00191002 in kept
    assert {creator_tag(tag) for tag in kept} == left - kept
    assert all(is_safe(tag, str(dataset[creator_tag(tag)].value)) for tag in kept)
    assert all(dataset[tag].value == before[tag] for tag in kept - {0x00191002})
    assert 0x00231001 not in left


SAFE = (0x00431027, "GEMS_PARM_01")  # a scan pitch ratio


def with_private(value: bytes | str, vr: str, name: str, charset: str = "ISO_IR 100") -> Dataset:
    dataset = ct()
    for tag in [tag for tag in dataset.keys() if int(tag) >> 16 == 0x0043]:  # noqa: SIM118 - no dict
        del dataset[tag]
    dataset.SpecificCharacterSet = charset
    dataset.PatientName = name
    dataset.PatientBirthDate = "19700517"
    dataset.add_new(0x00430010, "LO", SAFE[1])
    dataset[SAFE[0]] = DataElement(SAFE[0], vr, value, already_converted=True)
    return dataset


@pytest.mark.parametrize(
    ("value", "vr", "name", "charset"),
    [
        ("scan of rowena", "LO", "Quist^Rowena", "ISO_IR 100"),
        ("LEE ANN", "LO", "Lee^Ann", "ISO_IR 100"),
        ("\u738b\u5c0f\u660e", "LO", "\u738b^\u5c0f\u660e", "ISO_IR 192"),
        ("m\u00fcller", "LO", "M\u00fcller^A", "ISO_IR 100"),
        ("\u0418\u0432\u0430\u043d\u043e\u0432", "LO", "\u0418\u0432\u0430\u043d\u043e\u0432^A", "ISO_IR 144"),
        (b"xxSm\0i\0t\0h\0xx".replace(b"S", b"S\0", 1), "OB", "Smith^A", "ISO_IR 100"),
        (b"xxM\xfcllerxx", "OB", "M\u00fcller^A", "ISO_IR 100"),
        ("born 19700517", "LO", "A^B", "ISO_IR 100"),
        (b"x1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322x", "OB", "A^B", "ISO_IR 100"),
        ("Zachary^Bob", "PN", "A^B", "ISO_IR 100"),
        ("20040119", "DA", "A^B", "ISO_IR 100"),
        ("1.2.3", "UI", "A^B", "ISO_IR 100"),
    ],
)
def test_a_safe_private_attribute_that_names_the_patient_goes(value: bytes | str, vr: str, name: str, charset: str) -> None:
    assert is_safe(*SAFE)
    assert SAFE[0] not in clean(with_private(value, vr, name, charset), Option.RETAIN_SAFE_PRIVATE)
    assert SAFE[0] in clean(with_private("efgre3d", "LO", name, charset), Option.RETAIN_SAFE_PRIVATE)


BEYOND = (
    0x00100033,
    0x00100034,
    0x00401006,
    0x00402006,
    0x0074100C,
    0x00420010,
    0x00181003,
    0x0040E001,
    0x0040A992,
    0x00080404,
)


@pytest.mark.parametrize("tag", BEYOND, ids=hex)
def test_what_the_table_forgot(tag: int) -> None:
    dataset, vr = ct(), dictionary_VR(tag)
    dataset[tag] = DataElement(tag, vr, "19700517" if vr in {"DA", "DT"} else "Rowena", already_converted=True)
    before = str(dataset[tag].value)
    dataset = clean(dataset)
    assert tag not in dataset or str(dataset[tag].value) != before


def test_a_data_set_that_is_changed_later_changes_no_other() -> None:
    first, deidentifier = ct(), Deidentifier(KEY)
    deidentifier.deidentify(first)
    first.PatientBirthDate, first.PatientIdentityRemoved = "19991231", "NO"
    first.DeidentificationMethodCodeSequence[0].CodeValue = "0"
    second = ct()
    deidentifier.deidentify(second)
    assert not second.PatientBirthDate
    assert second.PatientIdentityRemoved == "YES"
    assert [code.CodeValue for code in second.DeidentificationMethodCodeSequence] == ["113100"]


@pytest.mark.parametrize("age", ["95", "Y095", "JohnSm", "John Q Smith"])
def test_what_is_no_age_is_not_kept(age: str) -> None:
    dataset = ct()
    dataset[0x00101010] = DataElement(0x00101010, "AS", age, already_converted=True)
    assert not clean(dataset, Option.RETAIN_PATIENT_CHARACTERISTICS).get("PatientAge")


def test_a_time_that_is_a_date_goes() -> None:
    dataset = ct()
    dataset[0x00080030] = DataElement(0x00080030, "TM", "1980.05.17", already_converted=True)
    assert "1980" not in str(clean(dataset, Option.SHIFT_DATES).StudyTime or "")


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("value", ["", None])
def test_without_uids_patients_cannot_be_told_apart(keyword: str, value: str | None) -> None:
    dataset = ct()
    setattr(dataset, keyword, value)
    with pytest.raises(ValueError, match="UID"):
        clean(dataset)


def test_codes_without_a_scheme_are_not_public() -> None:
    dataset, item = ct(), Dataset()
    item.CodeValue, item.LongCodeValue = "SMITHANNA", "Smith Anna"
    dataset.ContentSequence = Sequence([item])
    assert "mith" not in str(clean(dataset).ContentSequence[0]).lower()


def test_a_mapping_of_shifted_dates_is_not_mixed_with_one_without() -> None:
    shifted = Deidentifier(KEY, Profile(frozenset({Option.SHIFT_DATES})))
    book = Mapping()
    done = shifted.deidentify(ct())
    assert done.patient is not None
    book.add(done.patient, done.uids)
    shifted.refuse_foreign(book)
    for other in (Deidentifier(KEY), Deidentifier(bytes(32), Profile(frozenset({Option.SHIFT_DATES})))):
        with pytest.raises(ConfigError):
            other.refuse_foreign(book)


def test_codes_of_the_method_are_appended_to_those_of_earlier_ones() -> None:
    dataset = clean(ct(), Option.CLEAN_DESCRIPTORS, Option.RETAIN_UIDS)
    dataset = clean(dataset, Option.RETAIN_DEVICE)
    codes = [code.CodeValue for code in dataset.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113105", "113109"]  # UIDs were retained, and are not any more


@pytest.mark.parametrize("name", [name for name in PRESETS if Option.CLEAN_PIXELS not in PRESETS[name]])
def test_no_preset_lets_the_patient_through(name: str, tmp_path: Path) -> None:
    dataset = ct()
    dataset.StudyDescription = dataset.InstitutionName = "Rowena"
    dataset.add_new(0x00190010, "LO", "GEMS_ACQU_01")
    dataset.add_new(0x0019109C, "LO", "Rowena")
    dataset.PatientComments = dataset.OtherPatientNames = NAME
    Deidentifier(KEY, Profile.named(name)).deidentify(dataset)
    dataset.save_as(tmp_path / "out.dcm")
    data = (tmp_path / "out.dcm").read_bytes().lower()
    assert b"rowena" not in data
    assert b"7719" not in data


def test_a_mapping_comes_back_and_grows(tmp_path: Path) -> None:
    key, source, path = SymmetricKey.generate(), tmp_path / "in", tmp_path / "mapping.smp"
    source.mkdir()
    ct().save_as(source / "a")
    report = Deidentifier(KEY, Profile(frozenset({Option.SHIFT_DATES}))).deidentify_folder(source, tmp_path / "out")
    report.mapping.write(path, [key])
    data = path.read_bytes()
    assert b"Rowena" not in data
    assert b"7719" not in data
    assert path.stat().st_mode & 0o777 == 0o600
    found = Mapping.read(path, [key])
    assert found == report.mapping
    [patient] = found.patients.values()
    [written] = report.written
    out = dcmread(written.target)
    assert found.original_of()[out.PatientID] == "MRN-7719-RHQ"
    assert found.original_of()[out.SOPInstanceUID] == ct().SOPInstanceUID
    moved = date.fromisoformat(out.StudyDate) - timedelta(days=patient.days or 0)
    assert f"{moved:%Y%m%d}" == ct().StudyDate
    found.merge(report.mapping)
    assert found == report.mapping
    other = Deidentifier(bytes(32)).deidentify_folder(source, tmp_path / "other")
    with pytest.raises(ConfigError):
        found.merge(other.mapping)
    assert "Rowena" not in repr(report.mapping)


def test_what_is_no_mapping(tmp_path: Path) -> None:
    key = SymmetricKey.generate()
    (tmp_path / "plain").write_bytes(b"nothing")
    with pytest.raises(IntegrityError):
        Mapping.read(tmp_path / "plain", [key])


def test_several_processes_do_what_one_does(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(20):
        dataset = ct()
        dataset.SOPInstanceUID = f"1.2.3.{number}"
        dataset.save_as(source / f"{number}")
    (source / "text").write_text("not DICOM")
    alone = Deidentifier(KEY).deidentify_folder(source, tmp_path / "one")
    seen: list[tuple[int, int]] = []
    together = Deidentifier(KEY).deidentify_folder(
        source, tmp_path / "two", processes=2, progress=lambda done, total: seen.append((done, total))
    )
    assert len(together.written) == 20
    assert together.actions == alone.actions
    assert together.mapping == alone.mapping
    assert [bad.path for bad in together.unreadable] == [source / "text"]
    assert seen[-1] == (21, 21)
    for one in alone.written:
        assert (tmp_path / "two" / one.target.relative_to(tmp_path / "one")).read_bytes() == one.target.read_bytes()


def test_every_row_of_the_table_has_an_action() -> None:
    rules = Rules(Profile())
    for tag, row in read_table().by_tag.items():
        assert rules.rule(tag).action in {row.basic, Action.REMOVE}


def test_a_process_that_dies_takes_no_report_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(40):
        dataset = ct()
        dataset.SOPInstanceUID = f"1.2.3.{number}"
        dataset.save_as(source / f"{number:02}")
    usual = Deidentifier._file

    def dying(self: Deidentifier, path: Path, *rest: object) -> engine.FileResult:
        if path.name == "35":
            os._exit(9)
        return usual(self, path, *rest)

    monkeypatch.setattr(Deidentifier, "_file", dying)
    monkeypatch.setattr(engine.threading, "active_count", lambda: 1)  # so that the processes have this function
    report = Deidentifier(KEY).deidentify_folder(source, tmp_path / "out", processes=2)
    assert len(report.written) + len(report.unwritten) == 40
    assert source / "35" in {bad.path for bad in report.unwritten}
    assert len(report.mapping.patients) <= 1
