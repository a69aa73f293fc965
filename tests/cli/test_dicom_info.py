"""smp medical dicom-info: files, folders, encrypted ones, and what it never says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from conftest import Ran, left_in
from secure_media_processor import SymmetricKey, encrypt_file

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of what the tests themselves write

SECRETS = {
    "PatientName": "Halvorsen^Rowena", "PatientID": "MRN-4711-X", "PatientBirthDate": "19510203", "AccessionNumber": "ACC90817",
    "InstitutionName": "St Elsewhere", "ReferringPhysicianName": "Quackenbush^Ada", "StudyDate": "20190807",
}  # fmt: skip


def sample(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


@pytest.fixture
def study(work: Path) -> Path:
    """Twelve slices of a CT, one of them missing, in files whose names say nothing, and an image of another kind."""
    folder = work / "study"
    (folder / "deep" / "er").mkdir(parents=True)
    dataset = dcmread(sample("CT_small.dcm"))
    for keyword, value in SECRETS.items():
        setattr(dataset, keyword, value)
    dataset.SeriesDescription = "Thorax 2.5"
    for n in range(12):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{n}"
        dataset.InstanceNumber, dataset.ImagePositionPatient = n + 1, [0, 0, 2.5 * n]
        if n != 5:
            dataset.save_as(folder / "deep" / f"{(n * 7) % 12:02}")
    dataset.SeriesInstanceUID, dataset.SeriesNumber, dataset.SeriesDescription = "1.2.9", 2, "One\x1b[31m"
    dataset.save_as(folder / "deep" / "er" / "x")
    return folder


def silent(ran: Ran) -> None:
    """Check that nothing of the patient is in what was printed."""
    for value in (*SECRETS.values(), "Halvorsen", "1.2.3.", "1.3.6.1.4.1.5962"):
        assert value not in ran.text + ran.err


def test_a_folder(study: Path, smp: Callable[..., Ran]) -> None:
    ran = smp("medical", "dicom-info", study)
    assert (ran.code, ran.err) == (0, "")
    rows = [line.split("  ") for line in ran.text.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[0] == ["SERIES", "MODALITY", "DESCRIPTION", "IMAGES", "SIZE", "MM", "VERDICT"]
    assert cells[1] == ["1", "CT", "Thorax 2.5", "11", "128 x 128", "0.661 x 0.661 x 2.5", "gaps"]
    assert cells[2][-1] == "regular"
    assert "\x1b" not in ran.text
    silent(ran)


def test_details_of_series(study: Path, smp: Callable[..., Ran]) -> None:
    ran = smp("medical", "dicom-info", study, "--series")
    assert ran.code == 0
    assert "series 1 CT Thorax 2.5: 11 objects, 1 stack\n" in ran.text
    assert "  stack 1: 11 images, 128 x 128, axial, 0.661 x 0.661 x 2.5 mm: not regular\n" in ran.text
    assert "    1 slice is missing, after slice 5\n" in ran.text
    silent(ran)
    assert "SeriesInstanceUID 1.2.9" in smp("medical", "dicom-info", study, "--series", "--identifiers").text


def test_a_file(study: Path, smp: Callable[..., Ran]) -> None:
    file = study / "deep" / "00"
    ran = smp("medical", "dicom-info", file)
    assert (ran.code, ran.err) == (0, "")
    assert "TransferSyntaxUID          Explicit VR Little Endian\n" in ran.text
    assert "SOPClassUID                CT Image Storage\n" in ran.text
    silent(ran)
    ran = smp("medical", "dicom-info", file, "--identifiers")
    for value in SECRETS.values():
        assert value in ran.text


def test_json(study: Path, smp: Callable[..., Ran]) -> None:
    ran = smp("medical", "dicom-info", study, "--json")
    silent(ran)
    shown = json.loads(ran.out)
    assert shown["schema"] == "smp.medical.dicom-info/1"
    assert (shown["attributes"], shown["instances"], shown["patients"], shown["unreadable"]) == (None, 12, 1, [])
    first, second = shown["series"]
    (stack,) = first["stacks"]
    assert (first["number"], first["instances"], first["series_instance_uid"]) == (1, 11, None)
    assert (stack["images"], stack["regular"], stack["slice_spacing"], stack["affine"]) == (11, False, 2.5, None)
    assert stack["problems"] == [{"kind": "gaps", "text": "1 slice is missing, after slice 5", "amount": 1, "slices": [4]}]
    (stack,) = second["stacks"]
    assert stack["affine"][3] == [0, 0, 0, 1]
    shown = json.loads(smp("medical", "dicom-info", study / "deep" / "00", "--json", "--identifiers").out)
    assert shown["attributes"]["PatientName"] == SECRETS["PatientName"]
    assert shown["series"][0]["series_instance_uid"]


def test_unreadable_files_are_named_and_the_rest_is_shown(study: Path, smp: Callable[..., Ran]) -> None:
    (study / "notes").write_text("Rowena Halvorsen, MRN-4711-X")
    raw = (study / "deep" / "00").read_bytes()
    (study / "cut").write_bytes(raw[:-20_000])
    (study / "loop").symlink_to(study)
    ran = smp("medical", "dicom-info", study)
    assert ran.code == 3
    assert len(ran.text.splitlines()) == 3
    assert ran.err.splitlines() == [
        f"smp: warning: {study}/cut: it ends too early, or holds what cannot be parsed",
        f"smp: warning: {study}/loop: it is a link to a folder",
        f"smp: warning: {study}/notes: it is not a DICOM file",
        "smp: error: 3 of 15 files could not be read [SMP-PARTIAL]",
        "smp: hint: see the warnings above",
    ]
    ran = smp("medical", "dicom-info", study, "--json")
    assert (ran.code, len(json.loads(ran.out)["unreadable"])) == (3, 3)


def test_what_lies_beside_the_images_is_counted(study: Path, smp: Callable[..., Ran]) -> None:
    plain = smp("medical", "dicom-info", study)
    for name in ("README", "Readme.TXT", "autorun.inf", ".DS_Store", "Thumbs.db", "viewer.exe"):
        (study / name).write_bytes(b"hello")
    shutil.copy(sample("DICOMDIR"), study / "deep" / "INDEX")
    ran = smp("medical", "dicom-info", study)
    assert (ran.code, ran.out) == (0, plain.out)
    listed = ", ".join(f"{study}/{name}" for name in (".DS_Store", "README", "Readme.TXT", "Thumbs.db", "autorun.inf"))
    assert ran.err == f"smp: 7 files beside the images: {listed} and 2 more\n"
    shown = json.loads(smp("medical", "dicom-info", study, "--json").out)
    assert (len(shown["side_files"]), shown["unreadable"]) == (7, [])


@pytest.mark.parametrize("name", ["scan.txt", "README", "x.dcm", "IM0001"])
def test_an_image_that_cannot_be_read_is_no_side_file(study: Path, smp: Callable[..., Ran], name: str) -> None:
    """What has the mark of DICOM is judged by that, whatever it is called; what has not, by its name."""
    raw = (study / "deep" / "00").read_bytes()
    (study / name).write_bytes(raw[:-20_000] if name in {"scan.txt", "README"} else raw[200:])
    ran = smp("medical", "dicom-info", study)
    assert (ran.code, f"{study}/{name}: " in ran.err) == (3, True)


def test_two_patients_are_a_warning(study: Path, smp: Callable[..., Ran]) -> None:
    dataset = dcmread(study / "deep" / "00")
    dataset.PatientID = "MRN-4712-X"
    dataset.save_as(study / "other")
    ran = smp("medical", "dicom-info", study)
    assert (ran.code, ran.err) == (0, "smp: warning: these are files of 2 patients\n")


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (lambda path: path.write_bytes(b"hello"), 1, "it is not a DICOM file"),
        (lambda path: path.write_bytes(b""), 1, "it is not a DICOM file"),
        (lambda path: path.write_bytes(bytes(128) + b"DICM"), 1, "there is nothing in it"),
        (os.mkfifo, 1, "it is a pipe or a device"),
        (lambda path: path.mkdir(), 7, "there is no file in"),
        (lambda path: (path.mkdir(), (path / "a").write_bytes(b"x")), 7, "there is no DICOM file that can be read in"),
        (str, 7, "no such file or directory"),
        (lambda path: path.symlink_to(path), 1, "too many levels of symbolic links"),
    ],
)
def test_what_is_not_dicom(work: Path, smp: Callable[..., Ran], make: Callable[[Path], object], code: int, said: str) -> None:
    make(Path("x"))
    ran = smp("medical", "dicom-info", "x")
    assert (ran.code, ran.out) == (code, b"")
    assert said in ran.err
    assert ran.err.startswith("smp: error: ")
    assert len(ran.err.splitlines()) <= 2


def test_a_file_that_is_cut_shows_what_it_has(work: Path, smp: Callable[..., Ran]) -> None:
    Path("cut").write_bytes(sample("CT_small.dcm").read_bytes()[:-20_000])
    ran = smp("medical", "dicom-info", "cut")
    assert ran.code == 3
    assert "Modality" in ran.text
    assert "it ends too early" in ran.err


def test_encrypted_input(study: Path, work: Path, smp: Callable[..., Ran], key: SymmetricKey, key_file: Path) -> None:
    sealed = work / "sealed"
    sealed.mkdir()
    for path in sorted(p for p in study.rglob("*") if p.is_file()):
        encrypt_file(path, sealed / f"{path.name}.smp", [key])
    before = left_in(sealed)
    plain, ran = smp("medical", "dicom-info", study), smp("medical", "dicom-info", sealed, "--key", key_file)
    assert (ran.code, ran.out, ran.err) == (0, plain.out, "")
    ran = smp("medical", "dicom-info", sealed / "00.smp", "--key", key_file)
    assert (ran.code, ran.out) == (0, smp("medical", "dicom-info", study / "deep" / "00").out)
    assert left_in(sealed) == before
    # No key, and a wrong one: told for each file of a folder, and the code of the reason for a single file.
    assert smp("medical", "dicom-info", sealed).code == 7
    assert smp("medical", "dicom-info", sealed / "00.smp").code == 4
    assert smp("key", "generate").code == 0
    ran = smp("medical", "dicom-info", sealed / "00.smp")
    assert (ran.code, ran.out) == (6, b"")
    assert "SMP-WRONG-KEY" in ran.err
    encrypt_file(sample("MR_small.dcm"), sealed / "mr.smp", [SymmetricKey.generate()])
    ran = smp("medical", "dicom-info", sealed, "--key", key_file)
    assert ran.code == 3
    assert f"{sealed}/mr.smp: none of the keys at hand opens this file" in ran.err
    (sealed / "00.smp").write_bytes((sealed / "00.smp").read_bytes()[:-1])
    ran = smp("medical", "dicom-info", sealed / "00.smp", "--key", key_file)
    assert (ran.code, "SMP-TRUNCATED" in ran.err) == (6, True)


def test_nothing_of_a_patient_in_any_message(work: Path, smp: Callable[..., Ran]) -> None:
    """Files cut at many places, with identifying values in all that is left."""
    dataset = dcmread(sample("MR_small.dcm"))
    for keyword, value in SECRETS.items():
        setattr(dataset, keyword, value)
    dataset["InstanceNumber"]._value = "Halvorsen"
    dataset["Rows"].VR, dataset["Rows"]._value = "SH", "Halvorsen"
    dataset.save_as("whole")
    raw = Path("whole").read_bytes()
    for length in range(100, 1_600, 23):
        Path("whole").write_bytes(raw[:length])
        for options in ([], ["-v"], ["--series"], ["--json"]):
            silent(smp("medical", "dicom-info", ".", *options))
            silent(smp("medical", "dicom-info", "whole", *options))
