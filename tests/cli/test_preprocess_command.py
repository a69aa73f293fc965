"""smp medical preprocess: what it writes, refuses, tells and leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from conftest import Ran, left_in
from secure_media_processor.core.encryption import encrypt_file
from secure_media_processor.core.keys import SymmetricKey
from secure_media_processor.medical import volume as volumes
from secure_media_processor.medical.preprocessing.normalize import learn_landmarks, write_landmarks
from unit.medical.phantoms import head
from unit.medical.synthetic import CANARY, series
from written_paths import written_paths

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
Smp = Callable[..., Ran]
AFFINE = np.array([[-1, 0, 0, 30], [0, 0, 1.5, -20], [0, 1, 0, -25], [0, 0, 0, 1.0]])


def save_head(path: str | Path, seed: int = 1, shape: tuple[int, int, int] = (40, 40, 24)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(2, *shape)) * 0.05
    array = (np.hypot(head(shape).image + noise[0], noise[1]) * 1000).astype(np.float32)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return array


def test_everything_at_once(work: Path, smp: Smp) -> None:
    save_head("t1.nii.gz")
    before = Path("t1.nii.gz").read_bytes()
    args = [
        "--bias",
        "n4",
        "--denoise",
        "nlm",
        "--normalize",
        "zscore",
        "--mask",
        "--clahe",
        "--spacing",
        "2",
        "--orient",
        "ras",
    ]
    more = ["--qc", "look.png", "--bias-field", "field.nii.gz", "--log", "run.json", "--save-pipeline", "steps.json"]
    ran = smp("medical", "preprocess", "t1.nii.gz", "out.nii.gz", *args, *more, "--json")
    assert ran.code == 0, ran.err
    assert ran.err == ""
    assert Path("t1.nii.gz").read_bytes() == before
    assert left_in(work) == {"t1.nii.gz", "out.nii.gz", "look.png", "field.nii.gz", "run.json", "steps.json"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in work.iterdir() if path.name != "t1.nii.gz")
    shown = json.loads(ran.text)
    assert json.loads(Path("run.json").read_text()) == shown
    (one,) = shown["written"]
    assert [step["name"] for step in one["steps"]] == shown["steps"]
    assert (one["orientation"], one["spacing"], one["notes"]) == ("RAS", [2, 2, 2], [])
    loaded = nibabel.load("out.nii.gz")
    assert nibabel.aff2axcodes(loaded.affine) == ("R", "A", "S")
    assert list(loaded.shape) == one["shape"]
    assert loaded.get_data_dtype() == np.float32
    field = nibabel.load("field.nii.gz")
    assert nibabel.aff2axcodes(field.affine) == ("R", "A", "S")
    assert 0.2 < field.get_fdata().min() < field.get_fdata().max() < 5
    with Image.open("look.png") as picture:
        assert picture.info == {}
    # The pipeline that was saved does the same.
    assert smp("medical", "preprocess", "t1.nii.gz", "again.nii.gz", "--pipeline", "steps.json").code == 0
    assert Path("again.nii.gz").read_bytes() == Path("out.nii.gz").read_bytes()


def test_the_grid_of_the_input_stays(work: Path, smp: Smp) -> None:
    array = save_head("t1.nii")
    ran = smp("medical", "preprocess", "t1.nii", "out.nii", "--normalize", "minmax")
    assert (ran.code, ran.out) == (0, b"")
    loaded = nibabel.load("out.nii")
    assert np.allclose(loaded.affine, AFFINE, atol=1e-5)
    expected = (array - array.min()) / (array.max() - array.min())
    assert np.allclose(loaded.get_fdata(), expected, atol=1e-6)
    assert smp("medical", "preprocess", "t1.nii", "out.nii", "--normalize", "zscore").code == 8
    assert np.allclose(nibabel.load("out.nii").get_fdata(), expected, atol=1e-6)
    assert smp("medical", "preprocess", "t1.nii", "out.nii", "--normalize", "zscore", "--force").code == 0
    assert nibabel.load("out.nii").get_fdata().min() < 0


def test_a_dicom_folder_and_nyul(work: Path, smp: Smp) -> None:
    series("in")
    read = volumes.read_volume(Path("in"))
    write_landmarks(learn_landmarks([(read.array, None)]), Path("l.json"))
    ran = smp("medical", "preprocess", "in", "out.nii.gz", "--normalize", "nyul", "--landmarks", "l.json")
    assert ran.code == 0, ran.err
    found = nibabel.load("out.nii.gz")
    assert np.allclose(found.affine, read.grid.affine, atol=1e-4)
    assert np.isclose(np.percentile(found.get_fdata(), 99), 100, atol=0.5)
    assert CANARY.encode() not in Path("out.nii.gz").read_bytes()
    assert CANARY not in found.header.binaryblock.decode("latin-1")


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        (["t1.nii", "out.nii"], 2, "no step is asked for"),
        (["t1.nii", "out.mha", "--mask"], 2, "written as NIfTI"),
        (["t1.nii", "out.nii", "--bias-field", "b.nii", "--mask"], 2, "--bias-field needs --bias n4"),
        (["t1.nii", "out.nii", "--bias", "n4", "--bias-field", "b.png"], 2, "written as NIfTI"),
        (["t1.nii", "out.nii", "--normalize", "nyul"], 2, "landmarks and --normalize nyul belong together"),
        (["t1.nii", "out.nii", "--percentiles", "1,99"], 2, "--percentiles is for"),
        (["t1.nii", "out.nii", "--normalize", "percentile", "--percentiles", "99,1"], 2, "the lower one first"),
        (["t1.nii", "out.nii", "--spacing", "1,2"], 2, "3 numbers"),
        (["t1.nii", "out.nii", "--spacing", "0"], 2, "above 0"),
        (["t1.nii", "out.nii", "--spacing", "0.0001"], 1, "too many voxels"),
        (["t1.nii", "out.nii", "--orient", "RAR"], 2, "no orientation"),
        (["t1.nii", "out.nii", "--pipeline", "bad.json"], 2, "no pipeline"),
        (["t1.nii", "out.nii", "--pipeline", "bad.json", "--mask"], 2, "--pipeline says which steps"),
        (["t1.nii", "t1.nii", "--mask", "--force"], 2, "same file"),
        (["t1.nii", "out.nii", "--mask", "--log", "out.nii"], 2, "two outputs"),
        (["t1.nii", "out.nii", "--mask", "--log", "bad.json"], 8, "bad.json exists already"),
        (["t1.nii", "none/out.nii", "--normalize", "zscore", "--qc", "look.png"], 7, "none/out.nii"),
        (["t1.nii", "out.nii", "--normalize", "zscore", "--qc", "none/look.png"], 7, "none/look.png"),
        (["gone.nii", "out.nii", "--mask"], 7, "cannot read gone.nii"),
        (["bad.json", "out.nii", "--mask"], 1, "neither NIfTI nor DICOM"),
        (["nan.nii", "out.nii", "--mask"], 1, "3 of its 64 voxels are no numbers"),
        (["flat.nii", "out.nii", "--normalize", "zscore", "--qc", "look.png"], 1, "flat.nii: its intensities cannot"),
        (["empty", "out.nii", "--mask"], 1, "empty holds no DICOM images"),
        (["many", "many/out", "--mask"], 2, "written into many"),
        (["many", "out", "--mask", "--qc", "look.png"], 2, "for a single volume"),
    ],
)
def test_what_makes_no_sense_leaves_nothing(work: Path, smp: Smp, args: list[str], code: int, reason: str) -> None:
    save_head("t1.nii", shape=(16, 16, 12))
    Path("many").mkdir()
    Path("empty").mkdir()
    bad = np.ones((4, 4, 4), np.float32)
    nibabel.save(nibabel.Nifti1Image(bad, AFFINE), "flat.nii")
    nibabel.save(nibabel.Nifti1Image(bad, AFFINE), "many/a.nii")
    bad[0, 0, :3] = np.nan
    nibabel.save(nibabel.Nifti1Image(bad, AFFINE), "nan.nii")
    Path("bad.json").write_text("{}" + " " * 200)
    before = {name: Path(name).read_bytes() for name in left_in(work)}
    ran = smp("medical", "preprocess", *args)
    assert ran.code == code, ran.err
    assert reason in ran.err
    assert {name: Path(name).read_bytes() for name in left_in(work)} == before


def test_a_rehearsal_writes_nothing(work: Path, smp: Smp) -> None:
    save_head("in/a.nii.gz")
    save_head("in/b.nii")
    ran = smp("medical", "preprocess", "in", "out", "--bias", "n4", "--normalize", "zscore", "--dry-run")
    assert ran.code == 0, ran.err
    assert "steps: bias, normalize" in ran.text
    assert "in/a.nii.gz -> out/a.nii.gz: 40 x 40 x 24 voxels, about " in ran.text
    ran = smp("medical", "preprocess", "in", "out", "--bias", "n4", "--dry-run", "--json")
    shown = json.loads(ran.text)
    assert shown["dry_run"]
    assert all(one["memory"] > 4 * 40 * 40 * 24 for one in shown["written"])
    assert left_in(work) == {"in/a.nii.gz", "in/b.nii"}
    assert not Path("out").exists()


def test_a_folder_goes_on_after_a_bad_file(work: Path, smp: Smp, key: SymmetricKey, key_file: Path) -> None:
    arrays = {name: save_head(f"in/{name}", seed) for seed, name in enumerate(("a.nii.gz", "b.nii", "c.nii.gz"))}
    encrypt_file(Path("in/c.nii.gz"), Path("in/c.nii.gz.smp"), [key])
    Path("in/c.nii.gz").unlink()
    Path("in/bad.nii.gz").write_bytes(b"\x1f\x8b nothing")
    Path("in/notes.txt").write_text("hello")
    args = ("medical", "preprocess", "in", "out", "--normalize", "minmax", "--key", key_file, "--log", "run.json")
    ran = smp(*args, "--json")
    assert ran.code == 3
    shown = json.loads(ran.text)
    assert [one["path"] for one in shown["written"]] == ["out/a.nii.gz", "out/b.nii", "out/c.nii.gz"]
    assert [bad["path"] for bad in shown["failed"]] == ["in/bad.nii.gz"]
    assert left_in(Path("out")) == set(arrays)
    for name, array in arrays.items():
        assert np.allclose(nibabel.load(f"out/{name}").get_fdata(), (array - array.min()) / np.ptp(array), atol=1e-6)
    # Again: what is there stays, unless it may be replaced.
    assert smp(*args[:-1], "second.json").code == 3
    assert smp(*args[:-1], "third.json").err.count("exists already") == 3
    Path("in/bad.nii.gz").unlink()
    assert smp(*args, "--force").code == 0
    save_head("in/c.nii.gz")
    ran = smp(*args, "--force")
    assert ran.code == 2
    assert "would both become c.nii.gz" in ran.err


def test_encrypted_input_is_decrypted_in_memory_only(
    work: Path, smp: Smp, key: SymmetricKey, key_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    apart = tmp_path_factory.mktemp("apart")
    save_head(apart / "t1.nii.gz")
    encrypt_file(apart / "t1.nii.gz", Path("t1.smp"), [key])
    args = ("medical", "preprocess", "t1.smp", "out.nii.gz", "--denoise", "median")
    with written_paths() as paths:
        ran = smp(*args, "--key", key_file)
    assert ran.code == 0, ran.err
    assert not [path for path in paths if work in path.parents and path.parent != work]
    assert left_in(work) - {"keys/test.key"} == {"t1.smp", "out.nii.gz"}
    assert smp("medical", "preprocess", apart / "t1.nii.gz", "plain.nii.gz", "--denoise", "median").code == 0
    assert Path("plain.nii.gz").read_bytes() == Path("out.nii.gz").read_bytes()
    assert smp(*args, "--force").code == 4
    SymmetricKey.generate().save(Path("other.key"))
    assert smp(*args, "--force", "--key", "other.key").code == 6


def test_a_volume_without_a_place_says_so(work: Path, smp: Smp) -> None:
    save_head("t1.nii")
    image = nibabel.load("t1.nii")
    image = nibabel.Nifti1Image(image.get_fdata(dtype=np.float32), None)
    nibabel.save(image, "lost.nii")
    ran = smp("medical", "preprocess", "lost.nii", "out.nii", "--denoise", "median")
    assert ran.code == 0
    assert "warning: lost.nii: its header does not say where its voxels lie" in ran.err


def test_too_little_memory_is_said(work: Path, smp: Smp, monkeypatch: pytest.MonkeyPatch) -> None:
    save_head("t1.nii")

    def full(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(volumes, "read_volume", full)
    ran = smp("medical", "preprocess", "t1.nii", "out.nii", "--denoise", "median")
    assert ran.code == 1
    assert "not enough memory; about" in ran.err
    assert left_in(work) == {"t1.nii"}
