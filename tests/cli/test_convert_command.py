"""smp medical convert, as it is typed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from conftest import Ran, left_in
from secure_media_processor import SymmetricKey, encrypt_file
from unit.medical.synthetic import CANARY, image, save, series
from written_paths import written_paths

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom", "ignore::UserWarning:highdicom")
Smp = Callable[..., Ran]


def test_some_files_fail_and_the_others_go_on(work: Path, smp: Smp) -> None:
    series("in")
    Path("in/notes").write_text("hello")
    ran = smp("medical", "convert", "in", "out", "--format", "png", "--json")
    assert ran.code == 3
    shown = json.loads(ran.text)
    assert shown["schema"] == "smp.medical.convert/1"
    assert len(shown["written"]) == 6
    assert shown["failed"] == [{"path": "in/notes", "reason": "it is not a DICOM file"}]
    assert "in/notes: it is not a DICOM file" in ran.err
    assert CANARY not in ran.err + ran.text
    assert len(left_in(Path("out"))) == 6


def test_volumes(work: Path, smp: Smp) -> None:
    series("in")
    ran = smp("medical", "convert", "in", "out", "--format", "nifti", "--engine", "own", "-v")
    assert (ran.code, ran.out) == (0, b"")
    assert "1 volume written" in ran.err
    assert left_in(Path("out")) == {"series-001.nii.gz", "series-001.json"}
    assert smp("medical", "convert", "in", "out", "--format", "nifti").code == 3
    assert smp("medical", "convert", "in", "out", "--format", "nifti", "--force").code == 0


def test_a_missing_slice_is_told(work: Path, smp: Smp) -> None:
    series("in", leave_out=(2,))
    ran = smp("medical", "convert", "in", "out", "--format", "nifti")
    assert "1 slice is missing" in ran.err
    ran = smp("medical", "convert", "in", "own", "--format", "nifti", "--engine", "own")
    assert ran.code == 3
    assert not left_in(Path("own"))


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        (["in", "out"], 2, "--format"),
        (["in", "out", "--format", "png", "--engine", "own"], 2, "--engine is for --format nifti"),
        (["in", "out", "--format", "nifti", "--source", "in"], 2, "--source is for --format seg"),
        (["in", "out", "--format", "seg"], 2, "needs --source"),
        (["in", "in/out", "--format", "png"], 2, "written into in"),
        (["gone", "out", "--format", "png"], 7, "cannot read gone"),
        (["empty", "out", "--format", "nifti"], 7, "no files in empty"),
        (["in/notes", "out.png", "--format", "png"], 1, "in/notes: it is not a DICOM file"),
        (["in/notes", "out.dcm", "--format", "seg", "--source", "in", "--labels", "in/notes"], 2, "not JSON"),
    ],
)
def test_what_makes_no_sense(work: Path, smp: Smp, args: list[str], code: int, reason: str) -> None:
    Path("in").mkdir()
    Path("empty").mkdir()
    Path("in/notes").write_text("hello")
    ran = smp("medical", "convert", *args)
    assert ran.code == code, ran.err
    assert reason in ran.err
    assert left_in(work) == {"in/notes"}


def test_one_file(work: Path, smp: Smp) -> None:
    save(image(np.arange(64, dtype=np.uint8).reshape(8, 8)), "scan.dcm")
    assert smp("medical", "convert", "scan.dcm", "scan.png", "--format", "png").code == 0
    assert smp("medical", "convert", "scan.dcm", "scan.png", "--format", "png").code == 8
    assert smp("medical", "convert", "scan.dcm", "scan.dcm", "--format", "nifti").code != 0
    assert Path("scan.dcm").is_file()


@pytest.mark.parametrize("kind", ["png", "nifti"])
def test_encrypted_files(
    *,
    work: Path,
    home: Path,
    smp: Smp,
    kind: str,
    key: SymmetricKey,
    key_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same bytes as of the plain files, and nothing of these anywhere on the disk."""
    apart = tmp_path_factory.mktemp("apart")
    Path("sealed").mkdir()
    Path("tmp").mkdir()
    for path in series(apart / "in"):
        encrypt_file(path, Path("sealed", path.name), [key])
    more = ("--engine", "own") if kind == "nifti" else ()
    assert smp("medical", "convert", apart / "in", apart / "out", "--format", kind, *more).code == 0
    monkeypatch.setenv("TMPDIR", str(work / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with written_paths() as paths:
        ran = smp("medical", "convert", "sealed", "out", "--format", kind, "--key", key_file)
    assert (ran.code, ran.out) == (0, b""), ran.err
    assert left_in(Path("out")) == left_in(apart / "out")
    assert all(Path("out", name).read_bytes() == (apart / "out" / name).read_bytes() for name in left_in(Path("out")))
    assert not [path for path in paths if work in path.parents and not path.is_relative_to(work / "out")]
    assert not [path for path in paths if path.suffix == ".dcm"]
    assert left_in(Path("tmp")) == set()
    for folder in (work, home):
        assert not [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    if kind == "nifti":
        ran = smp("medical", "convert", "sealed", "other", "--format", kind, "--key", key_file, "--engine", "dcm2niix")
        assert ran.code == 3
        assert "it is encrypted, and dcm2niix can read only what lies decrypted on the disk" in ran.err


def test_keys_that_do_not_fit(work: Path, smp: Smp, key: SymmetricKey, key_file: Path) -> None:
    paths = series("in")
    theirs = SymmetricKey.generate()
    for path, whose in ((paths[0], key), (paths[1], theirs)):
        encrypt_file(path, f"{path}.smp", [whose])
        path.unlink()
    ran = smp("medical", "convert", "in", "out", "--format", "png", "--key", key_file, "--json")
    assert ran.code == 3
    shown = json.loads(ran.text)
    assert len(shown["written"]) == 5
    assert [bad["path"] for bad in shown["failed"]] == [f"{paths[1]}.smp"]
    assert "none of the keys at hand" in shown["failed"][0]["reason"]
    ran = smp("medical", "convert", "in", "other", "--format", "png")
    assert ran.code == 3
    assert ran.err.count("it is encrypted, and there is no key to read it with") == 2
    # One file has nothing that could go on, so the error is the keys'.
    for kind, target in (("png", "one.png"), ("nifti", "one.nii")):
        assert smp("medical", "convert", f"{paths[0]}.smp", target, "--format", kind).code == 4
        assert smp("medical", "convert", f"{paths[1]}.smp", target, "--format", kind, "--key", key_file).code == 6
        assert not Path(target).exists()


def test_a_mask_on_encrypted_images(work: Path, smp: Smp, key: SymmetricKey, key_file: Path) -> None:
    paths = series("in")
    assert smp("medical", "convert", "in", "mask.nii", "--format", "nifti", "--engine", "own").code == 0
    loaded = nibabel.load("mask.nii")
    mask = np.zeros(loaded.shape, np.uint8)
    mask[2:4, 2:4, 2:4] = 1
    nibabel.save(nibabel.Nifti1Image(mask, loaded.affine), "mask.nii")
    organ = {"label": "Liver", "category": ["123037004", "SCT", "Anatomical Structure"], "type": ["10200004", "SCT", "Liver"]}
    Path("labels.json").write_text(json.dumps({"1": organ}))
    for path in paths:
        encrypt_file(path, f"{path}.smp", [key])
        path.unlink()
    args = ("medical", "convert", "mask.nii", "mask.dcm", "--format", "seg", "--source", "in", "--labels", "labels.json")
    ran = smp(*args)
    assert ran.code == 1
    assert "6 cannot be read" in ran.err
    assert smp(*args, "--key", key_file).code == 0
    assert Path("mask.dcm").is_file()
