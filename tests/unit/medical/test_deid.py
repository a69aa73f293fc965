"""De-identification: no planted value survives, nothing else is lost, and the files stay as conformant as they were."""

from __future__ import annotations

import csv
import re
import resource
import shutil
import subprocess
import warnings
import zlib
from collections import Counter
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import DataElement, Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from conftest import left_in
from secure_media_processor import Deidentifier, read_folder
from secure_media_processor.errors import UsageError
from secure_media_processor.medical.deid.engine import Quarantined, Written
from secure_media_processor.medical.deid.pixels import burned_in_suspicion
from secure_media_processor.medical.deid.table import Action, read_table
from secure_media_processor.medical.deid.uids import Pseudonyms
from secure_media_processor.medical.dicom.reader import Unreadable

# The tests write odd values with pydicom, which warns. That ours never does is a test of its own.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

KEY = bytes(range(32))
SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


def sample(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def table_rows() -> list[dict[str, str]]:
    text = files("secure_media_processor.medical.deid").joinpath("basic_profile.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


# --- the table ---------------------------------------------------------------------------------------------------------


def basic_action(tag: int) -> Action | None:
    row = read_table().row(tag)
    return row.basic if row else None


def test_the_table_has_every_row_and_option() -> None:
    rows = table_rows()
    assert Counter(row["edition"] for row in rows) == {"2024e": 621, "2026c": 35}
    old = [row for row in rows if row["edition"] == "2024e"]
    assert Counter(row["basic"] for row in old) == {
        "X": 384, "D": 92, "U": 54, "Z": 42, "X/D": 22, "X/Z": 11, "X/Z/D": 8, "Z/D": 6, "X/Z/U": 2,
    }  # fmt: skip
    options = {name: Counter(row[name] for row in old if row[name]) for name in list(rows[0])[3:]}
    assert options == {
        "safe_private": {"C": 1}, "uids": {"K": 59}, "device": {"K": 46, "C": 11}, "institution": {"K": 10},
        "patient": {"K": 9, "C": 4}, "full_dates": {"K": 165}, "modified_dates": {"C": 165}, "descriptors": {"C": 125},
        "structured": {"C": 3}, "graphics": {"C": 4},
    }  # fmt: skip
    assert len({row["tag"] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("tag", "action"),
    [
        (0x00100010, Action.EMPTY), (0x00100020, Action.DUMMY), (0x0020000D, Action.REPLACE_UID), (0x00104000, Action.REMOVE),
        (0x50FE1234, Action.REMOVE), (0x60023000, Action.REMOVE), (0x60FE4000, Action.REMOVE), (0x60020010, None),
        (0x00091001, Action.REMOVE), (0x00280010, None), (0x7FE00010, None), (0x00080016, None),
    ],
)  # fmt: skip
def test_actions(tag: int, action: Action | None) -> None:
    assert basic_action(tag) is action


# --- tokens in every attribute -------------------------------------------------------------------------------------------

TEXT_VRS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}


class Tokens:
    """Hands out values that occur nowhere else."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.uids: list[str] = []

    def value(self, vr: str) -> object:
        number = len(self.text) + len(self.uids)
        if vr == "UI":
            self.uids.append(f"1.2.999.{8_000_000 + number}")
            return self.uids[-1]
        fixed = {
            "DA": "20150607", "DT": "20150607080910", "TM": "080910", "DS": "8.25", "IS": "77", "AS": "043Y", "US": 77,
            "UL": 77, "SS": 77, "FD": 7.5, "FL": 7.5,
        }  # fmt: skip
        if vr in fixed:
            return fixed[vr]
        if vr not in TEXT_VRS:
            return self.bytes_token()
        self.text.append(f"TKN{number:05}X")
        return self.text[-1]

    def bytes_token(self) -> bytes:
        self.text.append(f"TKN{len(self.text) + len(self.uids):05}B")
        return self.text[-1].encode() + b" "  # even length


def planted(tokens: Tokens) -> Dataset:
    """Return a data set with a token in every attribute of the table that can be written."""
    dataset = Dataset()
    for row in table_rows():
        if not re.fullmatch("[0-9A-F]{8}", row["tag"]):
            continue
        tag = int(row["tag"], 16)
        if tag >> 16 in (0x0000, 0x0002) or tag == 0xFFFCFFFC:
            continue
        vr = dictionary_VR(tag).split(" ")[0] if dictionary_has_tag(tag) else "LO"
        if vr == "SQ":
            inner = Dataset()
            inner.PatientComments, inner.CodeMeaning = tokens.value("LT"), "a code"
            dataset[tag] = DataElement(tag, "SQ", Sequence([inner]))
        else:
            dataset[tag] = DataElement(tag, vr, tokens.value(vr))
    for offset, group in enumerate((0x5000, 0x6000, 0x60FE)):
        dataset.add_new((group, 0x0010), "US", 4)
        dataset.add_new((group, 0x0022 if offset else 0x0030), "LO", tokens.value("LO"))
        dataset.add_new((group, 0x3000), "OW", tokens.bytes_token())
        dataset.add_new((group, 0x4000), "LT", tokens.value("LT"))
    dataset.private_block(0x0009, "SMP TEST", create=True).add_new(0x01, "LO", tokens.value("LO"))
    dataset.add_new(0x00091199, "UN", tokens.bytes_token())  # no creator
    dataset.add_new(0x00100099, "UN", tokens.bytes_token())  # an even group, in no dictionary
    return dataset


def canary(tokens: Tokens, syntax: str) -> bytes:
    """Return a CT file with tokens at the top, three sequences deep, in preamble, file meta and padding."""
    dataset = dcmread(sample("MR_small_bigendian.dcm" if syntax == ExplicitVRBigEndian else "CT_small.dcm"))
    top = planted(tokens)
    # ReferencedSeriesSequence, PurposeOfReferenceCodeSequence, AnatomicRegionModifierSequence: not in the table, and walked.
    deep = planted(tokens)
    for keyword in ("AnatomicRegionModifierSequence", "PurposeOfReferenceCodeSequence", "ReferencedSeriesSequence"):
        outer = Dataset()
        setattr(outer, keyword, [deep])
        deep = outer
    dataset.update(top)
    dataset.update(deep)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.SourceApplicationEntityTitle = tokens.value("AE")
    dataset.file_meta.SendingApplicationEntityTitle = tokens.value("AE")
    dataset.file_meta.PrivateInformationCreatorUID = tokens.value("UI")
    dataset.file_meta.PrivateInformation = tokens.bytes_token()
    dataset.preamble = str(tokens.value("LO")).encode().ljust(128)
    dataset.add_new(0xFFFCFFFC, "OB", tokens.bytes_token())
    output = BytesIO()
    dataset.save_as(output, enforce_file_format=True)
    return output.getvalue()


def all_bytes(path: Path) -> bytes:
    """Return a file as it is and, if it is deflated, its data set inflated as well."""
    raw = path.read_bytes()
    meta = dcmread(path, stop_before_pixels=True).file_meta
    if meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
        return raw
    return raw + zlib.decompress(raw[144 + meta.FileMetaInformationGroupLength :], -zlib.MAX_WBITS)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_no_token_survives(work: Path, syntax: str) -> None:
    tokens = Tokens()
    raw = canary(tokens, syntax)
    assert len(tokens.text) > 700
    assert len(tokens.uids) > 100
    Path("in.dcm").write_bytes(raw)
    before = all_bytes(Path("in.dcm"))
    assert [t for t in tokens.text + tokens.uids if t.encode() not in before] == []
    outcome = Deidentifier(KEY).deidentify_file(Path("in.dcm"), work / "out")
    assert isinstance(outcome, Written)
    after = all_bytes(outcome.target)
    assert [t for t in tokens.text + tokens.uids if t.encode() in after] == []
    for date in (b"20150607", b"080910"):
        assert date in before
        assert date not in after
    result = dcmread(outcome.target)
    assert result.preamble == bytes(128)
    assert {e.keyword for e in result.file_meta} == {
        "FileMetaInformationGroupLength", "FileMetaInformationVersion", "MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID",
        "TransferSyntaxUID", "ImplementationClassUID", "ImplementationVersionName",
    }  # fmt: skip
    assert result.file_meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID
    assert result.file_meta.TransferSyntaxUID == syntax


def test_the_table_is_kept_to_at_every_depth(work: Path) -> None:
    Path("in.dcm").write_bytes(canary(Tokens(), ExplicitVRLittleEndian))
    outcome = Deidentifier(KEY).deidentify_file(Path("in.dcm"), work / "out")
    assert isinstance(outcome, Written)
    seen = Counter()

    def walk(dataset: Dataset) -> None:
        for element in dataset:
            tag = int(element.tag)
            assert not element.tag.is_private
            assert (element.tag.group & 0xFF00) not in (0x5000, 0x6000)
            action = basic_action(tag)
            seen[action] += 1
            assert action is not Action.REMOVE, element.tag
            ours = tag in (0x00100010, 0x00100020, 0x00120063, 0x00120064, 0x00280303)
            if action is Action.EMPTY and not ours:
                assert not element.value, element.tag
            if element.VR == "SQ":
                for item in element.value:
                    walk(item)

    walk(dcmread(outcome.target))
    assert seen[Action.DUMMY] > 200
    assert seen[Action.EMPTY] > 100


# --- what must not be lost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "rtdose.dcm"])
def test_pixels_and_everything_else_stay(work: Path, name: str) -> None:
    before = dcmread(sample(name))
    outcome = Deidentifier(KEY).deidentify_file(sample(name), work / "out")
    assert isinstance(outcome, Written)
    after = dcmread(outcome.target)
    assert after.PixelData == before.PixelData
    for element in before:
        tag = int(element.tag)
        if basic_action(tag) is None and dictionary_has_tag(tag) and element.VR != "SQ" and tag >> 24 != 0x60:
            assert after[tag].value == element.value, element.tag


def test_what_says_that_it_was_done(work: Path) -> None:
    outcome = Deidentifier(KEY).deidentify_file(sample("CT_small.dcm"), work)
    assert isinstance(outcome, Written)
    result = dcmread(outcome.target)
    assert result.PatientIdentityRemoved == "YES"
    assert "PS3.15" in result.DeidentificationMethod
    assert [item.CodeValue for item in result.DeidentificationMethodCodeSequence] == ["113100"]
    assert result.PatientID == result.PatientName
    assert re.fullmatch("SMP-[A-Z2-7]{16}", result.PatientID)
    assert outcome.target.parts[-3:] == (result.StudyInstanceUID, result.SeriesInstanceUID, f"{result.SOPInstanceUID}.dcm")
    assert outcome.target.stat().st_mode & 0o777 == 0o600


def test_structured_reports_keep_their_shape_and_lose_their_words(work: Path) -> None:
    for name in ("reportsi.dcm", "test-SR.dcm"):
        before = dcmread(sample(name))
        outcome = Deidentifier(KEY).deidentify_file(sample(name), work / name)
        assert isinstance(outcome, Written)
        after = dcmread(outcome.target)

        def shape(items: Sequence) -> list[object]:
            return [
                (item.get("RelationshipType"), item.get("ValueType"), shape(item.get("ContentSequence", Sequence())))
                for item in items
            ]

        def words(items: Sequence) -> list[str]:
            found = []
            for item in items:
                found += [str(item[k].value) for k in ("TextValue", "PersonName", "Date", "Time", "UID") if item.get(k)]
                found += words(item.get("ContentSequence", Sequence()))
            return found

        assert shape(after.ContentSequence) == shape(before.ContentSequence)
        remaining = set(words(before.ContentSequence)) & set(words(after.ContentSequence))
        assert remaining == set()
        assert len(words(after.ContentSequence)) == len(words(before.ContentSequence)) > 0


# --- names ---------------------------------------------------------------------------------------------------------------


def test_uids_map_one_to_one_and_the_same_in_every_run() -> None:
    one, again, other = Pseudonyms(KEY), Pseudonyms(KEY), Pseudonyms(bytes(32))
    originals = [f"1.2.840.113619.{i}" for i in range(20_000)]
    mapped = [one.uid(uid) for uid in originals]
    assert len(set(mapped)) == len(originals)
    assert mapped == [again.uid(uid) for uid in originals]
    assert not set(mapped) & {other.uid(uid) for uid in originals}
    assert all(re.fullmatch(r"2\.25\.(0|[1-9]\d*)", uid) and len(uid) <= 64 for uid in mapped)
    assert one.uid("1.2.3\x00") == one.uid("1.2.3 ") == one.uid("1.2.3")
    assert one.uid("1.2.840.10008.1.2") == "1.2.840.10008.1.2"
    assert one.uid("1.2.840.10008.1.2.ROWENA").startswith("2.25.")
    assert one.instance_uid("1.2.840.10008.1.2").startswith("2.25.")
    assert one.uid("") == ""
    assert "0" * 10 not in repr(one)


def test_patients_are_told_apart_by_id_and_issuer() -> None:
    names = Pseudonyms(KEY)
    assert len({names.patient(*pair) for pair in (("1", ""), ("1", "A"), ("1A", ""), ("", "1A"), ("", ""))}) == 5
    with pytest.raises(ValueError, match="32 bytes"):
        Pseudonyms(b"short")


def test_references_between_files_hold(work: Path) -> None:
    study = sample("CT_small.dcm").parent / "dicomdirtests" / "98892003"
    report = Deidentifier(KEY).deidentify_folder(study, work / "out")
    assert (len(report.written), report.quarantined, report.unreadable) == (17, (), ())
    pairs = [(dcmread(w.source), dcmread(w.target)) for w in report.written]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "PatientID"):
        mapping = {str(before.get(keyword)): str(after.get(keyword)) for before, after in pairs}
        assert len(set(mapping.values())) == len(mapping)
        assert all(mapping[str(before.get(keyword))] == str(after.get(keyword)) for before, after in pairs)
    assert len(read_folder(work / "out").instances) == 17


# --- what is not written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "suspected"),
    [
        ({}, False),
        ({"BurnedInAnnotation": "YES"}, True),
        ({"BurnedInAnnotation": "maybe"}, True),
        ({"Modality": "US"}, True),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, False),
        ({"Modality": ""}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.9.4.1"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6"}, False),
        ({"Modality": ["CT", "US"]}, True),
        ({"Modality": "AU"}, True),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, True),
        ({"ConversionType": "WSD"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "BurnedInAnnotation": "NO"}, True),
    ],
)
def test_burned_in_suspects(work: Path, changes: dict[str, str], suspected: bool) -> None:
    dataset = dcmread(sample("CT_small.dcm"))
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.save_as("in.dcm")
    assert (burned_in_suspicion(dataset) is not None) is suspected
    outcome = Deidentifier(KEY).deidentify_file(Path("in.dcm"), work / "out")
    assert isinstance(outcome, Quarantined if suspected else Written)
    assert bool(left_in(work) - {"in.dcm"}) is not suspected


def test_a_folder_with_everything_in_it(work: Path) -> None:
    study = work / "study"
    study.mkdir()
    shutil.copy(sample("CT_small.dcm"), study / "ok")
    shutil.copy(sample("examples_rgb_color.dcm"), study / "ultrasound")
    (study / "notes.txt").write_text("hello")
    (study / "cut").write_bytes(sample("MR_small.dcm").read_bytes()[:300])
    report = Deidentifier(KEY).deidentify_folder(study, work / "out")
    assert [w.source.name for w in report.written] == ["ok"]
    assert [q.path.name for q in report.quarantined] == ["ultrasound"]
    assert sorted(u.path.name for u in report.unreadable) == ["cut", "notes.txt"]
    assert len(left_in(work / "out")) == 1
    assert report.actions["X"] > 0


def test_folders_within_each_other_are_refused(work: Path) -> None:
    (work / "study" / "deep").mkdir(parents=True)
    for source, target in (("study", "study"), ("study", "study/out"), ("study/deep", "study"), ("study", "study/../study/x")):
        with pytest.raises(UsageError):
            Deidentifier(KEY).deidentify_folder(work / source, work / target)


def test_a_second_run_goes_on_and_copies_are_one_file(work: Path) -> None:
    study = work / "study"
    study.mkdir()
    for name in ("a", "b"):
        shutil.copy(sample("CT_small.dcm"), study / name)
    shutil.copy(sample("MR_small.dcm"), study / "c")
    for _ in range(2):
        report = Deidentifier(KEY).deidentify_folder(study, work / "out")
        assert (len(report.written), report.unwritten) == (3, ())
        assert len(left_in(work / "out")) == 2


def test_other_contents_under_the_same_uid_are_not_written_over(work: Path) -> None:
    study = work / "study"
    study.mkdir()
    dataset = dcmread(sample("CT_small.dcm"))
    dataset.save_as(study / "a")
    dataset.SliceThickness = "7"
    dataset.save_as(study / "b")
    shutil.copy(sample("MR_small.dcm"), study / "c")
    report = Deidentifier(KEY).deidentify_folder(study, work / "out")
    assert [w.source.name for w in report.written] == ["a", "c"]
    assert [u.path.name for u in report.unwritten] == ["b"]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StudyInstanceUID", "1.2.840.10008.x/../../../../escaped_"),
        ("SOPInstanceUID", "1.2.840.10008.5.1.4.1.1.2.ROWENA"),
        ("SOPInstanceUID", "1.2.840.10008.1.2"),
        ("SeriesInstanceUID", "../../x"),
        ("SeriesInstanceUID", "a\\b"),
        ("StudyInstanceUID", ""),
        ("SOPInstanceUID", "1.2\x003"),
    ],
)
def test_uids_never_lead_out_of_the_folder_or_stay(work: Path, keyword: str, value: str) -> None:
    (work / "study").mkdir()
    dataset = dcmread(sample("CT_small.dcm"))
    original = str(dataset[keyword].value)
    dataset[keyword]._value = value
    dataset.save_as(work / "study" / "in.dcm")
    report = Deidentifier(KEY).deidentify_folder(work / "study", work / "deep" / "er" / "out")
    assert len(report.written) + len(report.unreadable) == 1
    for written in report.written:
        assert re.fullmatch(r"(2\.25\.\d+/){2}2\.25\.\d+\.dcm", str(written.target.relative_to(work / "deep" / "er" / "out")))
        assert original.encode() not in written.target.read_bytes()
        assert value not in {
            dcmread(written.target).get(k) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        }
        assert b"ROWENA" not in written.target.read_bytes()
    assert all(name.startswith(("study/", "deep/er/out/")) for name in left_in(work))


def element(tag: int, vr: str, value: bytes) -> bytes:
    """Return an element in Explicit VR Little Endian."""
    head = tag.to_bytes(4, "big")
    head = head[1::-1] + head[3:1:-1] + vr.encode()
    long = vr in ("OB", "OW", "SQ", "UN", "UR", "UT")
    return head + (b"\0\0" + len(value).to_bytes(4, "little") if long else len(value).to_bytes(2, "little")) + value


def with_element(name: str, tag: int, written: bytes) -> bytes:
    """Return the file `name` with an element put into its place."""
    raw, dataset = sample(name).read_bytes(), dcmread(sample(name))
    after = min(int(t) for t in list(dataset.keys()) if int(t) > tag)
    head = after.to_bytes(4, "big")
    start = 144 + dataset.file_meta.FileMetaInformationGroupLength
    at = raw.index(head[1::-1] + head[3:1:-1] + str(dataset.get_item(after).VR).encode(), start)
    return raw[:at] + written + raw[at:]


def nested(depth: int, content: bytes) -> bytes:
    """Return ReferencedSeriesSequence around itself, `depth` times, with `content` in the innermost item."""
    for _ in range(depth):
        content = element(0x00081115, "SQ", b"\xfe\xff\x00\xe0" + len(content).to_bytes(4, "little") + content)
    return content


@pytest.mark.parametrize("depth", [5, 14, 60, 70, 300])
def test_deep_nesting_costs_no_memory_and_stops_nobody(work: Path, depth: int) -> None:
    """An error far down must not be multiplied on its way up; too deep is refused."""
    study = work / "study"
    study.mkdir()
    shutil.copy(sample("MR_small.dcm"), study / "good")
    content = element(0x00100010, "PN", SECRET) + element(0x00200013, "IS", b"1A") + element(0x00280010, "US", b"abc")
    (study / "deep").write_bytes(with_element("CT_small.dcm", 0x00081115, nested(depth, content)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = Deidentifier(KEY).deidentify_folder(study, work / "out")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert [w.source.name for w in report.written] == (["deep", "good"] if depth < 64 else ["good"])
    assert all(b"ROWENA" not in w.target.read_bytes() for w in report.written)


SECRET = b"ROWENA HALVORSEN"  # 16 bytes


@pytest.mark.parametrize(
    ("tag", "vr", "value"),
    [
        (0x00200011, "IS", b"1\\" + SECRET),
        (0x00180050, "DS", SECRET),
        (0x00280010, "US", SECRET),
        (0x00280030, "OB", SECRET),
        (0x00280030, "UT", SECRET),
        (0x00080008, "CS", SECRET * 8),
        (0x00200013, "LO", SECRET),
        (0x00181020, "LO", SECRET),
        (0x00280002, "FD", SECRET),
        (0x0040A160, "UT", SECRET),
        (0x00081190, "UR", SECRET),
        (0x0040A067, "PN", SECRET),
        (0x04000520, "OB", SECRET),
        (0x00100099, "UN", SECRET),
        (0x00200242, "UI", b"1.2.3.4.5.6.7.8\0"),
        (0x52009229, "OB", b"\xfe\xff\x00\xe0\x18\0\0\0" + b"\x10\0\x10\0PN\x10\0" + SECRET),
        (0x00200013, "UN", SECRET * 5000),
    ],
)
def test_words_in_places_where_none_belong(work: Path, tag: int, vr: str, value: bytes) -> None:
    """A wrong VR, a wrong length, a number that is none, an attribute that the table forgot."""
    Path("in.dcm").write_bytes(with_element("CT_small.dcm", tag, element(tag, vr, value)))
    outcome = Deidentifier(KEY).deidentify_file(Path("in.dcm"), work / "out")
    if tag == 0x00181020:  # SoftwareVersions is text in its place: the table keeps it
        assert isinstance(outcome, Written)
        return
    assert isinstance(outcome, Written | Unreadable)
    if isinstance(outcome, Written):
        assert b"ROWENA" not in outcome.target.read_bytes()
        assert b"1.2.3.4.5.6.7.8" not in outcome.target.read_bytes()


def test_a_large_sequence_written_as_unknown_does_not_pass(work: Path) -> None:
    """pydicom leaves an unknown value of 64 KiB or more as bytes."""
    item = element(0x00100010, "PN", SECRET)[:4] + len(SECRET).to_bytes(4, "little") + SECRET
    item += b"\x10\0\0\x40" + (70_000).to_bytes(4, "little") + b"x" * 70_000
    value = b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item
    for tag in (0x0040A730, 0x52009229):
        Path("in.dcm").write_bytes(with_element("CT_small.dcm", tag, element(tag, "UN", value)))
        outcome = Deidentifier(KEY).deidentify_file(Path("in.dcm"), work / f"{tag}")
        assert isinstance(outcome, Written)
        assert b"ROWENA" not in outcome.target.read_bytes()


def test_local_codes_lose_their_meaning_and_public_ones_keep_it(work: Path) -> None:
    dataset = dcmread(sample("reportsi.dcm"))
    for scheme in ("99HOSP", "DCM", None):
        item, code = Dataset(), Dataset()
        item.ValueType, item.RelationshipType = "CODE", "CONTAINS"
        code.CodeValue, code.CodeMeaning = "1", f"Rowena by {scheme}"
        if scheme:
            code.CodingSchemeDesignator = scheme
        item.ConceptCodeSequence = [code]
        dataset.ContentSequence.append(item)
    dataset.save_as("in.dcm")
    outcome = Deidentifier(KEY).deidentify_file(Path("in.dcm"), work / "out")
    assert isinstance(outcome, Written)
    raw = outcome.target.read_bytes()
    assert b"Rowena by DCM" in raw
    assert b"Rowena by 99HOSP" not in raw
    assert b"Rowena by None" not in raw


def test_patients_without_a_number_are_not_merged() -> None:
    names = set()
    for study in ("1.2.3", "1.2.4"):
        dataset = dcmread(sample("CT_small.dcm"))
        dataset.PatientID, dataset.StudyInstanceUID = "", study
        Deidentifier(KEY).deidentify(dataset)
        names.add(str(dataset.PatientName))
    assert len(names) == 2


@pytest.mark.parametrize("cut", [10, 10_000, 30_000, 38_000])
def test_a_file_that_ends_too_early_is_reported(work: Path, cut: int) -> None:
    Path("in.dcm").write_bytes(sample("CT_small.dcm").read_bytes()[: -138 - cut])  # 138 bytes of padding at the end
    outcome = Deidentifier(KEY).deidentify_file(Path("in.dcm"), work / "out")
    assert isinstance(outcome, Unreadable)


def test_what_hides_in_the_pixel_data_is_quarantined(work: Path) -> None:
    for change in ("overlay bits", "longer"):
        dataset = dcmread(sample("CT_small.dcm"))
        if change == "overlay bits":
            dataset.add_new(0x60000100, "US", 16)
            dataset.add_new(0x60000102, "US", 12)
        else:
            dataset.PixelData += b"ROWENA"
        dataset.save_as("in.dcm")
        assert isinstance(Deidentifier(KEY).deidentify_file(Path("in.dcm"), work / "out"), Quarantined)
    dataset = dcmread(sample("CT_small.dcm"))
    dataset.add_new(0x60000100, "US", 1)
    dataset.add_new(0x60000102, "US", 0)
    dataset.save_as("in.dcm")
    assert isinstance(Deidentifier(KEY).deidentify_file(Path("in.dcm"), work / "out"), Written)


def test_values_that_cannot_be_decoded_do_not_stop_the_rest(work: Path) -> None:
    study = sample("CT_small.dcm").parent
    report = Deidentifier(KEY).deidentify_folder(study / "dicomdirtests", work / "out")
    assert len(report.written) > 50
    outcome = Deidentifier(KEY).deidentify_file(study / "badVR.dcm", work / "bad")
    assert isinstance(outcome, Written | Unreadable)


def test_nothing_is_said_about_values(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    """pydicom warns and logs with the values it dislikes; none of that comes through."""
    dataset = dcmread(sample("MR_small.dcm"))
    dataset.walk(lambda _dataset, _element: None)
    raw = BytesIO()
    dataset.save_as(raw)
    data = raw.getvalue().replace(b"DCM_PATIENT", b"ROWENA\\HQ\xff")
    for before, after in ((b"DS", b"IS"), (b"19950903", b"ROWENA.."), (b"1.3.6.1.4.1", b"ROWENA.4..1")):
        data = data.replace(before, after)
    Path("in.dcm").write_bytes(data)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_folder(work)
        report = Deidentifier(KEY).deidentify_folder(work, work.parent / "out")
    assert [str(warning.message) for warning in caught] == []
    assert caplog.text == ""
    assert "ROWENA" not in "".join(u.reason for u in (*found.unreadable, *report.unreadable))


# --- conformance -----------------------------------------------------------------------------------------------------------


def dciodvfy_errors(path: Path) -> Counter[str]:
    ran = subprocess.run(["dciodvfy", path], capture_output=True, check=False, timeout=60)
    lines = (ran.stdout + ran.stderr).decode("utf-8", "replace").splitlines()
    return Counter(line for line in lines if line.startswith("Error"))


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_no_file_becomes_less_conformant(work: Path) -> None:
    root = sample("CT_small.dcm").parent
    worse = {}
    count = 0
    for number, path in enumerate(sorted(root.glob("*.dcm"))):
        outcome = Deidentifier(KEY).deidentify_file(path, work / str(number))
        if isinstance(outcome, Written):
            count += 1
            before, after = dciodvfy_errors(path), dciodvfy_errors(outcome.target)
            if after.total() > before.total():
                worse[path.name] = after - before
    assert worse == {}
    assert count >= 20
