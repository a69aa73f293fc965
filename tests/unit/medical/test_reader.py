"""Reading folders of files that may be anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from collections import Counter
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian

from secure_media_processor import read_folder
from secure_media_processor.errors import FileAccessError, MissingError
from secure_media_processor.medical.dicom import reader
from secure_media_processor.medical.dicom.reader import Instance, Unreadable, read_dataset, read_instance
from secure_media_processor.medical.dicom.series import group_into_series

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
    assert series.spatially_sorted
    assert [i.position[0] for i in series.instances if i.position] == [10, 5, 0, -5]
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
    assert not series.spatially_sorted
    assert [i.instance_number for i in series.instances] == [1, 3, 5]


def test_series_without_geometry_are_sorted_by_number(work: Path) -> None:
    base = dcmread(sample("CT_small.dcm"))
    del base.ImageOrientationPatient
    for number, name in ((3, "a"), (None, "b"), (1, "c")):
        base.InstanceNumber = number
        base.SOPInstanceUID = f"1.2.{name.encode()[0]}"
        base.save_as(name)
    (series,) = group_into_series(read_folder(work).instances)
    assert not series.spatially_sorted
    assert [i.path.name for i in series.instances] == ["c", "a", "b"]


def test_the_series_of_a_real_study() -> None:
    folder = sample("CT_small.dcm").parent / "dicomdirtests" / "98892003"
    expected = Counter(str(dcmread(path).SeriesInstanceUID) for path in folder.rglob("*") if path.is_file())
    series = group_into_series(read_folder(folder).instances)
    assert {s.series_instance_uid: len(s.instances) for s in series} == expected
    assert {s.modality for s in series} == {"MR"}
    assert len(expected) > 3
