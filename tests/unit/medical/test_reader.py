"""Reading folders of files that may be anything."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from secure_media_processor import SymmetricKey, encrypt_file, read_folder
from secure_media_processor.errors import FileAccessError, MissingError
from secure_media_processor.medical.dicom import elements, reader
from secure_media_processor.medical.dicom.reader import Instance, Unreadable, read_dataset, read_instance
from secure_media_processor.medical.dicom.scan import CutError, UnscannableError, scan_header
from secure_media_processor.medical.dicom.series import group_into_series
from secure_media_processor.medical.dicom.silence import silent_pydicom

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of what the tests themselves write


def sample(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def test_every_file_is_in_exactly_one_list(work: Path) -> None:
    root = sample("CT_small.dcm").parent
    contents = read_folder(root)
    files = {path for path in root.rglob("*") if path.is_file()}
    assert {i.path for i in contents.instances} | {u.path for u in contents.unreadable} == files
    assert len(contents.instances) + len(contents.unreadable) == len(files)
    assert len(contents.instances) > 140


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is not a DICOM file"),
        (b"hello", "it is not a DICOM file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "it is not a DICOM file"),
        (bytes(1000), "it is not a DICOM file"),
        (bytes(128) + b"DICM", "it has no SOPClassUID"),
        (bytes(128) + b"DICM" + b"\xff" * 200, None),
        (bytes(128) + b"DICM" + os.urandom(5000), None),
    ],
)
def test_what_is_not_dicom(work: Path, data: bytes, reason: str | None) -> None:
    Path("x").write_bytes(data)
    found = read_instance(Path("x"))
    assert isinstance(found, Unreadable)
    assert reason is None or found.reason == reason
    assert "\n" not in found.reason


def test_a_mark_with_nothing_after_it_is_refused(work: Path) -> None:
    Path("x").write_bytes(bytes(128) + b"DICM")
    assert isinstance(read_dataset(Path("x")), Unreadable)


def test_a_file_cut_anywhere_never_raises(work: Path) -> None:
    raw = sample("MR_small.dcm").read_bytes()
    for length in [*range(0, 2_000, 13), *range(2_000, len(raw), 501)]:
        Path("cut").write_bytes(raw[:length])
        assert isinstance(read_instance(Path("cut")), Instance | Unreadable)
        assert isinstance(read_dataset(Path("cut")), Dataset | Unreadable)


def test_numbers_that_are_none_do_not_cost_the_file(work: Path) -> None:
    dataset = dcmread(sample("MR_small.dcm"))
    dataset["InstanceNumber"]._value = "Rowena"
    dataset["ImagePositionPatient"]._value = "1"
    dataset.save_as("bad.dcm")
    found = read_instance(Path("bad.dcm"))
    assert isinstance(found, Instance)
    assert (found.instance_number, found.position) == (None, None)


def test_very_deep_folders(work: Path) -> None:
    """Deeper than Python's recursion goes, and than a path may be long."""
    os.chdir(work)
    for _ in range(1_200):
        Path("d").mkdir()
        os.chdir("d")
    shutil.copy(sample("CT_small.dcm"), "image")
    os.chdir(work)
    contents = read_folder(work)
    assert len(contents.instances) + len(contents.unreadable) == 1
    subprocess.run(["rm", "-rf", work / "d"], check=True)


def test_odd_things_in_a_folder(work: Path) -> None:
    (work / "a").mkdir()
    (work / "a" / "loop").symlink_to(work)
    (work / "a" / "gone").symlink_to("nowhere")
    os.mkfifo(work / "a" / "pipe")
    (work / "a" / "image").symlink_to(sample("CT_small.dcm"))
    contents = read_folder(work)
    assert [i.path.name for i in contents.instances] == ["image"]
    assert {u.path.name: u.reason for u in contents.unreadable} == {
        "loop": "it is a link to a folder",
        "gone": "cannot read it: no such file or directory",
        "pipe": "it is not a file",
    }


def test_folders_that_are_none(work: Path) -> None:
    (work / "file").write_bytes(b"")
    with pytest.raises(MissingError):
        read_folder(work / "absent")
    (work / "loop").symlink_to("loop")
    for name in ("file", "loop", "x" * 300):
        with pytest.raises(FileAccessError):
            read_folder(work / name)


def test_a_deflate_bomb_is_not_inflated(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MAX_INFLATED", 4 << 20)
    dataset = dcmread(sample("image_dfl.dcm"))
    assert dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    assert isinstance(read_dataset(sample("image_dfl.dcm")), Dataset)
    head = sample("image_dfl.dcm").read_bytes()
    length = 144 + dataset.file_meta.FileMetaInformationGroupLength
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = head[:length] + packer.compress(bytes(5 << 20)) + packer.flush()
    monkeypatch.setattr(pydicom, "dcmread", lambda *_args, **_options: pytest.fail("it was inflated"))
    for group_length in (dataset.file_meta.FileMetaInformationGroupLength, 0xFFFFFFF0, 0):
        Path("bomb").write_bytes(bomb[:140] + group_length.to_bytes(4, "little") + bomb[144:])
        found = read_dataset(Path("bomb"))
        assert isinstance(found, Unreadable)
        assert found.reason == "it is deflated and would become larger than any image"


def test_series_are_sorted_along_the_normal(work: Path) -> None:
    base = dcmread(sample("CT_small.dcm"))
    base.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]  # sagittal: the normal is -x
    for number, (x, name) in enumerate([(5, "c"), (-5, "a"), (0, "d"), (10, "b")]):
        base.ImagePositionPatient = [x, 0, 0]
        base.InstanceNumber = number
        base.SliceLocation = -x * 7
        base.SOPInstanceUID = f"1.2.{number}"
        base.save_as(name)
    (series,) = group_into_series(read_folder(work).instances)
    (stack,) = series.stacks
    assert stack.regular
    assert [i.position[0] for i in stack.instances if i.position] == [10, 5, 0, -5]
    assert series.modality == "CT"


@pytest.mark.parametrize("orientation", [[0] * 6, [1, 0, 0, 1, 0, 0], [1, 0, 0, 2, 0, 0]])
def test_an_orientation_that_is_none_sorts_nothing(work: Path, orientation: list[int]) -> None:
    base = dcmread(sample("CT_small.dcm"))
    base.ImageOrientationPatient = orientation
    for number in (5, 1, 3):
        base.InstanceNumber, base.ImagePositionPatient = number, [number, 0, 0]
        base.SOPInstanceUID = f"1.2.{number}"
        base.save_as(str(number))
    (series,) = group_into_series(read_folder(work).instances)
    (stack,) = series.stacks
    assert stack.kinds == {"no-geometry"}
    assert [i.instance_number for i in series.instances] == [i.instance_number for i in stack.instances] == [1, 3, 5]


def test_series_without_geometry_are_sorted_by_number(work: Path) -> None:
    base = dcmread(sample("CT_small.dcm"))
    del base.ImageOrientationPatient
    for number, name in ((3, "a"), (None, "b"), (1, "c")):
        base.InstanceNumber = number
        base.SOPInstanceUID = f"1.2.{name.encode()[0]}"
        base.save_as(name)
    (series,) = group_into_series(read_folder(work).instances)
    assert [i.path.name for i in series.instances] == ["c", "a", "b"]
    assert [s.kinds for s in series.stacks] == [{"no-geometry"}]


def test_a_scan_finds_what_pydicom_finds() -> None:
    """Every test file of pydicom: what is not left to pydicom gives the same elements."""
    scanned = 0
    for path in sorted(p for p in sample("CT_small.dcm").parent.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            try:
                found, storage = scan_header(file, reader._TAGS, reader._SEQUENCES)
            except (UnscannableError, CutError):
                continue
        expected = dcmread(path, specific_tags=[*reader._TAGS, "PixelData"], defer_size=1)
        assert storage == expected.file_meta.get("MediaStorageSOPClassUID", "")
        expected.pop("PixelData", None)
        assert {e.tag: e.value for e in found} == {e.tag: e.value for e in expected}, path.name
        scanned += 1
    assert scanned > 100


def test_bare_values_are_those_of_pydicom() -> None:
    for path in (
        sample("CT_small.dcm"),
        sample("MR_small.dcm"),
        sample("MR_small_implicit.dcm"),
        sample("MR_small_bigendian.dcm"),
    ):
        raw, whole = (dcmread(path, stop_before_pixels=True) for _ in range(2))
        whole.decode()
        for element in whole:
            if element.VR in {"DS", "IS", "US", "SS", "FD", "FL", "UL"}:
                values = element.value if element.VM > 1 else [element.value] if element.VM else []
                assert elements.numbers(raw, element.tag) == (tuple(map(float, values)) or None)
            elif element.VR in {"UI", "CS", "SH", "LO", "PN", "TM", "DA"}:
                values = element.value if element.VM > 1 else [element.value] if element.VM else []
                assert "\\".join(elements.texts(raw, element.tag)).strip() == "\\".join(map(str, values)).strip()


def test_letters_of_the_world_are_read(work: Path) -> None:
    for name, charset, description in (
        ("ja", "ISO 2022 IR 87", "頭部"),
        ("ru", "ISO_IR 144", "Голова"),
        ("de", "ISO_IR 192", "Schädel"),
    ):
        dataset = dcmread(sample("CT_small.dcm"))
        dataset.SpecificCharacterSet = ["", charset] if "2022" in charset else charset
        dataset.SeriesDescription = description
        dataset.save_as(name)
        found = read_instance(Path(name))
        assert isinstance(found, Instance)
        assert found.series_description == description


@pytest.mark.parametrize(("rows", "frames"), [(65_535, "99999999"), (16, "-3")])
def test_sizes_that_no_image_has(work: Path, rows: int, frames: str) -> None:
    dataset = dcmread(sample("CT_small.dcm"))
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, 65_535, frames
    dataset.save_as("bomb")
    found = read_instance(Path("bomb"))
    assert isinstance(found, Unreadable)
    assert found.reason == "it claims a number of pixels that no image has"


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["CT_small.dcm", "MR_small_implicit.dcm", "rtdose.dcm", "liver_1frame.dcm", "reportsi.dcm"]),
    places=st.lists(st.tuples(st.integers(0, 6_000), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_changed_bytes_never_raise(work: Path, name: str, places: list[tuple[int, int]]) -> None:
    raw = bytearray(sample(name).read_bytes())
    for place, value in places:
        raw[place % len(raw)] = value
    Path("changed").write_bytes(raw)
    found = read_instance(Path("changed"))
    assert isinstance(found, Instance | Unreadable)
    if isinstance(found, Instance):
        (series,) = group_into_series([found])
        assert sum(len(stack.slices) for stack in series.stacks) == len(found.frames)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_implicit.dcm"])
def test_pixel_data_that_are_cut(work: Path, name: str) -> None:
    Path("cut").write_bytes(sample(name).read_bytes()[:-5_000])
    assert read_instance(Path("cut")) == Unreadable(Path("cut"), "it ends too early, or holds what cannot be parsed")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_sequences_of_undefined_length_are_passed_over(work: Path, syntax: UID) -> None:
    dataset = dcmread(sample("CT_small.dcm"))
    inner, outer = Dataset(), Dataset()
    inner.CodeValue = "1"
    outer.ConceptNameCodeSequence = [inner, inner]
    dataset.ReferencedImageSequence = [outer, Dataset()]
    for element in (dataset["ReferencedImageSequence"], outer["ConceptNameCodeSequence"]):
        element.is_undefined_length = True
    outer.is_undefined_length_sequence_item = True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as("x")
    with Path("x").open("rb") as file:
        found, _ = scan_header(file, reader._TAGS, reader._SEQUENCES)
    assert found.Rows == 128
    assert isinstance(read_instance(Path("x")), Instance)


def test_encrypted_files_are_read_without_a_copy(work: Path, key: SymmetricKey) -> None:
    for name in ("CT_small.dcm", "image_dfl.dcm", "MR_small_bigendian.dcm"):
        encrypt_file(sample(name), f"{name}.smp", [key])
        plain, found = read_instance(sample(name)), read_instance(Path(f"{name}.smp"), identities=[key])
        assert isinstance(plain, Instance)
        assert found == replace(plain, path=Path(f"{name}.smp"), encrypted=True)
        whole = read_dataset(Path(f"{name}.smp"), identities=[key])
        assert isinstance(whole, Dataset)
        assert whole.PixelData == dcmread(sample(name)).PixelData
    Path("damaged").write_bytes(Path("CT_small.dcm.smp").read_bytes()[:-1])
    assert {p.name for p in work.iterdir()} == {
        "CT_small.dcm.smp",
        "image_dfl.dcm.smp",
        "MR_small_bigendian.dcm.smp",
        "damaged",
    }
    assert [u.path.name for u in read_folder(work, identities=[key]).unreadable] == ["damaged"]
    assert {u.reason for u in read_folder(work).unreadable} == {"it is encrypted, and there is no key to read it with"}
    reasons = {u.reason for u in read_folder(work, identities=[SymmetricKey.generate()]).unreadable}
    assert reasons == {f"none of the keys at hand opens this file; it was encrypted for key {key.id}"}


def test_patients_are_counted_and_not_shown(work: Path) -> None:
    for number, (patient, name) in enumerate([("1", "A"), ("1", "B"), ("2", "A"), ("", "A"), ("", "C")]):
        dataset = dcmread(sample("CT_small.dcm"))
        dataset.PatientID, dataset.PatientName = patient, f"Halvorsen^{name}"
        dataset.save_as(str(number))
    contents = read_folder(work)
    assert contents.patients == 4
    assert "Halvorsen" not in repr(contents)


def test_the_series_of_a_real_study() -> None:
    folder = sample("CT_small.dcm").parent / "dicomdirtests" / "98892003"
    expected = Counter(str(dcmread(path).SeriesInstanceUID) for path in folder.rglob("*") if path.is_file())
    series = group_into_series(read_folder(folder).instances)
    assert {s.series_instance_uid: len(s.instances) for s in series} == expected
    assert {s.modality for s in series} == {"MR"}
    assert len(expected) > 3


def test_what_pydicom_says_is_heard_in_every_block_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    logger, level = logging.getLogger("pydicom"), logging.getLogger("pydicom").level
    mode = pydicom.config.settings.reading_validation_mode
    with silent_pydicom() as outer:
        logger.warning("first")
        with pytest.raises(KeyError), silent_pydicom() as inner:
            logger.warning("second")
            raise KeyError
        logger.warning("third")
    assert (outer, inner) == (["first", "second", "third"], ["second"])
    assert (logger.level, logger.filters, pydicom.config.settings.reading_validation_mode) == (level, [], mode)
    assert not caplog.records
