"""smp medical anonymize and reidentify, as a user runs them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from conftest import Ran, left_in
from secure_media_processor import SymmetricKey, encrypt_file
from written_paths import written_paths

PATIENT, NUMBER = "Halvorsen-Quist^Rowena", "MRN-7719-RHQ"


@pytest.fixture
def study(work: Path, smp: Callable[..., Ran]) -> Path:
    """Two images of one patient, and a key."""
    folder = work / "study"
    folder.mkdir()
    for number, name in enumerate(("CT_small.dcm", "MR_small.dcm")):
        dataset = dcmread(get_testdata_file(name))
        dataset.PatientName, dataset.PatientID, dataset.StudyDate = PATIENT, NUMBER, f"2004010{number + 1}"
        dataset.save_as(folder / f"quist-{number}")
    assert smp("key", "generate").code == 0
    return folder


def outputs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in left_in(folder)}


def test_a_study(study: Path, work: Path, smp: Callable[..., Ran]) -> None:
    ran = smp("medical", "anonymize", study, work / "clean")
    assert ran.code == 0, ran.err
    assert ran.out == b""
    assert "2 files of 1 patient written" in ran.err
    paths = outputs(work / "clean")
    assert len(paths) == 2
    for path in paths:
        assert path.stat().st_mode & 0o777 == 0o600
        data = path.read_bytes()
        assert b"Rowena" not in data
        assert b"MRN-7719" not in data  # the digits alone may be in a new UID
        assert "quist" not in str(path)
    again = smp("medical", "anonymize", study, work / "clean")
    assert again.code == 0
    assert outputs(work / "clean") == paths


def test_projects_give_other_names(study: Path, work: Path, smp: Callable[..., Ran]) -> None:
    names = []
    for number, more in enumerate(((), ("--project", "two"), ())):
        assert smp("medical", "anonymize", study, work / f"clean-{number}", *more).code == 0
        names.append({dcmread(path).PatientID for path in outputs(work / f"clean-{number}")})
    assert names[0] == names[2] != names[1]
    assert all(len(name) == 1 for name in names)


def test_what_is_said_as_json(study: Path, work: Path, smp: Callable[..., Ran]) -> None:
    (study / "notes.txt").write_text(PATIENT)
    shutil.copy(str(get_testdata_file("examples_rgb_color.dcm")), study / "echo")
    ran = smp("medical", "anonymize", study, work / "clean", "--profile", "research", "--retain-uids", "--json")
    assert ran.code == 3
    found = json.loads(ran.out)
    assert {Path(one["input"]).name: one["outcome"] for one in found["files"]} == {
        "quist-0": "written",
        "quist-1": "written",
        "notes.txt": "unreadable",
        "echo": "quarantined",
    }
    assert {"113100", "113105", "113107", "113110"} <= {one["code"] for one in found["method"]}
    assert found["patients"] == 1
    assert found["actions"]["C"] > 0
    for said in (ran.text, ran.err):
        assert "Rowena" not in said
        assert "7719" not in said


def test_a_mapping_tells_who_it_was(study: Path, work: Path, smp: Callable[..., Ran]) -> None:
    args = ("medical", "anonymize", study, work / "clean", "--shift-dates", "--mapping", "mapping.smp")
    assert smp(*args).code == 0
    assert smp(*args).code == 0
    first = dcmread(outputs(work / "clean")[0])
    ran = smp("medical", "reidentify", first.PatientID, first.SOPInstanceUID, "--mapping", "mapping.smp", "--json")
    assert ran.code == 0, ran.err
    patient, instance = json.loads(ran.out)["originals"]
    assert patient["old"] == NUMBER
    assert -3652 <= patient["days"] <= -31
    assert instance["old"] in {dcmread(path).SOPInstanceUID for path in study.iterdir()}
    assert NUMBER in smp("medical", "reidentify", first.PatientID, "--mapping", "mapping.smp").text
    ran = smp("medical", "reidentify", "--mapping", "mapping.smp", "--patients-csv", "p.csv", "--uids-csv", "u.csv")
    assert ran.code == 0, ran.err
    with (work / "p.csv").open() as file:
        assert list(csv.reader(file)) == [["old", "new"], [NUMBER, first.PatientID]]
    with (work / "u.csv").open() as file:
        assert {first.SOPInstanceUID, first.StudyInstanceUID} <= {row["new"] for row in csv.DictReader(file)}
    assert (work / "p.csv").stat().st_mode & 0o777 == 0o600


def test_a_mapping_of_another_profile_is_not_mixed_in(study: Path, work: Path, smp: Callable[..., Ran]) -> None:
    args = ("medical", "anonymize", study, work / "clean", "--mapping", "mapping.smp")
    assert smp(*args).code == 0
    before = (work / "mapping.smp").read_bytes()
    assert smp(*args[:3], work / "other", *args[4:], "--project", "other").code == 2
    assert (work / "mapping.smp").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("study", "study/clean"), (2, "within each other")),
        (("study", "clean", "--retain-dates", "--shift-dates"), (2, "kept or shifted")),
        (("study", "clean", "--profile", "none"), (2, "none")),
        (("study", "clean", "--mapping", "clean/mapping.smp"), (2, "among the de-identified")),
        (("absent", "clean"), (7, "absent")),
        (("empty", "clean"), (7, "no files")),
    ],
)
def test_what_cannot_be_done(
    study: Path, work: Path, smp: Callable[..., Ran], args: tuple[str, ...], said: tuple[int, str]
) -> None:
    code, part = said
    (work / "empty").mkdir()
    ran = smp("medical", "anonymize", *args)
    assert ran.code == code, ran.err
    assert part in ran.err
    assert not (work / "clean").exists()
    assert outputs(work / "study") == sorted(study.iterdir())


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((), 2),
        (("SMP-NOBODY",), 7),
        (("SMP-NOBODY", "--mapping", "absent.smp"), 7),
        (("SMP-NOBODY", "--mapping", "study/quist-0"), 6),
    ],
)
def test_what_cannot_be_told(study: Path, work: Path, smp: Callable[..., Ran], args: tuple[str, ...], code: int) -> None:
    assert smp("medical", "anonymize", study, work / "clean", "--mapping", "mapping.smp").code == 0
    if "--mapping" not in args:
        args = (*args, "--mapping", "mapping.smp")
    ran = smp("medical", "reidentify", *args)
    assert ran.code == code, ran.err
    assert ran.out == b""


def test_a_key_is_needed(work: Path, smp: Callable[..., Ran]) -> None:
    (work / "in").mkdir()
    assert smp("medical", "anonymize", "in", "out").code == 4
    assert os.listdir(work) == ["in"]  # noqa: PTH208 - names only


def test_encrypted_files(
    *,
    study: Path,
    work: Path,
    home: Path,
    smp: Callable[..., Ran],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same bytes as of the plain files, and nothing of these anywhere on the disk."""
    apart = tmp_path_factory.mktemp("apart")
    assert smp("medical", "anonymize", study, apart / "clean").code == 0
    (work / "sealed").mkdir()
    (work / "tmp").mkdir()
    for path in study.iterdir():
        assert smp("encrypt", path, "-o", work / "sealed" / f"{path.name}.smp").code == 0
    shutil.move(study, apart)
    assert smp("key", "export", next(home.rglob("*.key")).stem, work / "copy.key").code == 0
    monkeypatch.setenv("TMPDIR", str(work / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with written_paths() as paths:
        ran = smp("medical", "anonymize", "sealed", "clean")
    assert (ran.code, ran.out) == (0, b""), ran.err
    assert contents(work / "clean") == contents(apart / "clean")
    assert not [path for path in paths if work in path.parents and not path.is_relative_to(work / "clean")]
    assert left_in(work / "tmp") == set()
    for folder in (work, home):
        assert not [path for path in outputs(folder) if b"Rowena" in path.read_bytes() or b"MRN-7719" in path.read_bytes()]
    assert smp("medical", "anonymize", "sealed", "again", "--key", "copy.key").code == 0
    assert contents(work / "again") == contents(work / "clean")


def test_files_that_are_encrypted_for_others(study: Path, work: Path, smp: Callable[..., Ran]) -> None:
    theirs = SymmetricKey.generate()
    theirs.save(work / "theirs.key")
    encrypt_file(study / "quist-1", study / "sealed", [theirs])
    (study / "quist-1").unlink()
    ran = smp("medical", "anonymize", study, work / "clean")
    assert ran.code == 3
    assert f"{study}/sealed: unreadable: none of the keys at hand opens this file" in ran.err
    assert len(outputs(work / "clean")) == 1
    assert smp("medical", "anonymize", study, work / "other", "--key", "theirs.key").code == 0
    assert len(outputs(work / "other")) == 2
