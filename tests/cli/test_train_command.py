"""smp medical train: what it writes, what it refuses, and that a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import nibabel as nib  # noqa: E402 - torch first, or the test is skipped

from conftest import left_in  # noqa: E402
from secure_media_processor.errors import NoSpaceError  # noqa: E402
from secure_media_processor.medical.inference.packages import read_package  # noqa: E402
from secure_media_processor.medical.unet import train as training  # noqa: E402

FOLDERS = ["--images", "images", "--labels", "labels"]
QUICK = [*FOLDERS, "--channels", "4,6", "--window", "8,8,8", "--threads", "1", "--precision", "float32"]


@pytest.fixture
def cases(work: Path) -> Path:
    """Five images of balls."""
    grid = np.stack(np.meshgrid(*[np.arange(10)] * 3, indexing="ij"), axis=-1)
    for number in range(5):
        far = np.linalg.norm(grid - 4.5 - number / 5, axis=-1)
        noise = np.random.default_rng(number).normal(0, 5, far.shape)
        for folder, array in (("images", (100 * (far < 3) + noise).astype(np.float32)), ("labels", (far < 3).astype(np.uint8))):
            Path(folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), f"{folder}/patient-{number}.nii.gz")
    before = torch.get_num_threads()
    yield work
    torch.set_num_threads(before)


def made() -> set[str]:
    return {name for name in left_in(Path()) if not name.startswith(("images/", "labels/"))}


PACKAGE = {"model/model.json", "model/weights.safetensors", "model/TRAINING.md"}


def test_a_package_is_written(cases: Path, smp) -> None:
    more = ["--label", "1=ball", "--license", "CC0-1.0", "--data", "Balls, made here.", "--modality", "MR"]
    done = smp("medical", "train", "model", *QUICK, "--steps", "20", *more, "--json")
    assert done.code == 0, done.err
    assert made() == PACKAGE | {"model.training/curve.png"}
    found = json.loads(done.text)
    assert (found["training"], found["validation"], found["steps"]) == (4, 1, 20)
    assert found["labels"] == {"0": "background", "1": "ball"}
    assert found["parameters"] == sum(value.numel() for value in read_package(Path("model")).state_dict().values())
    card = read_package(Path("model")).card
    assert card.name == "model"
    assert card.inputs.modality == "MR"
    assert card.training_data.startswith("Balls, made here. 4 cases for training, 1 for validation; 20 steps")
    dice = next(one["mean"] for one in found["figures"] if (one["label"], one["metric"]) == ("ball", "dice"))
    assert dice == card.metrics.values["ball"]["dice"].mean
    assert "patient-" not in Path("model/model.json").read_text() + Path("model/TRAINING.md").read_text()
    first = Path("model/weights.safetensors").read_bytes()
    assert smp("medical", "train", "model", *QUICK, "--steps", "20").code == 8
    assert smp("medical", "train", "model", *QUICK, "--steps", "20", "--force").code == 0
    assert Path("model/weights.safetensors").read_bytes() == first
    assert smp("medical", "train", "other", *QUICK, "--steps", "20", "--seed", "1").code == 0
    assert Path("other/weights.safetensors").read_bytes() != first


def test_a_dry_run_writes_nothing(cases: Path, smp) -> None:
    done = smp("medical", "train", "model", *QUICK, "--dry-run")
    assert done.code == 0
    assert "4 cases for training, 1 for validation" in done.text
    assert json.loads(smp("medical", "train", "model", *QUICK, "--dry-run", "--json").text)["steps"] is None
    assert made() == set()


def test_time_and_slices(cases: Path, smp) -> None:
    flat = [*QUICK, "--dimensions", "2", "--window", "8,8", "--loss", "focal", "--variant", "standard"]
    assert smp("medical", "train", "model", *flat, "--minutes", "0.005").code == 0
    assert read_package(Path("model")).card.dimensions == 2
    assert smp("medical", "train", "other", *QUICK, "--cpu-minutes", "0.005").code == 0


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--minutes", "1", "--steps", "1"], 2, "--minutes and --steps"),
        (["--validation", "0.5", "--validation-list", "list.txt"], 2, "--validation and --validation-list"),
        (["--validation-list", "list.txt"], 2, "1 of the validation cases are not there"),
        (["--validation-list", "nowhere"], 7, "nowhere"),
        (["--resume"], 7, "no checkpoint"),
        (["--label", "ball"], 2, "not a label"),
        (["--label", "4=ball"], 2, "no label 4"),
        (["--channels", "4"], 2, "levels"),
        (["--channels", "4,x"], 2, "whole numbers"),
        (["--window", "8,8"], 2, "2 sides"),
        (["--spacing", "1,1"], 2, "three numbers"),
        (["--name", "../x"], 2, "name of the model"),
        (["--variant", "attention"], 2, "levels"),
        (["--images", "empty"], 7, "no NIfTI"),
        (["--images", "two"], 2, "1 case"),
    ],
)
def test_what_is_refused_leaves_nothing(cases: Path, smp, options: list[str], code: int, reason: str) -> None:
    Path("list.txt").write_text("patient-0\nnobody\n")
    Path("empty").mkdir()
    Path("two").mkdir()
    if "two" in options:
        os.link("images/patient-0.nii.gz", "two/patient-0.nii.gz")
        options = [*options, "--labels", "two"]
    done = smp("medical", "train", "model", *QUICK, "--steps", "2", *options)
    assert (done.code, reason in done.err) == (code, True), done.err
    assert {name for name in made() if "model" in name} == set()


def test_without_torch_it_says_what_to_install(cases: Path, smp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = smp("medical", "train", "model", *QUICK)
    assert done.code == 10
    assert "secure-media-processor[medical,ml]" in done.err
    assert made() == set()


def test_places_that_are_refused(cases: Path, smp) -> None:
    assert smp("medical", "train", "images/model", *QUICK, "--steps", "1").code == 2
    assert smp("medical", "train", "nowhere/model", *QUICK, "--steps", "1").code == 7
    assert made() == set()


def test_a_case_that_cannot_be_read_is_told_before_the_first_step(cases: Path, smp) -> None:
    Path("images/patient-3.nii.gz").write_bytes(b"junk")
    done = smp("medical", "train", "model", *QUICK, "--steps", "1")
    assert done.code == 1
    assert "patient-3.nii.gz" in done.err
    assert made() == set()


def test_a_full_disk_leaves_a_checkpoint_that_goes_on(cases: Path, smp, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [*QUICK, "--steps", "6", "--checkpoint-seconds", "0"]
    assert smp("medical", "train", "whole", *steps).code == 0
    kept, calls = training.write_checkpoint, []

    def full(*args: object) -> None:
        calls.append(args)
        if len(calls) > 3:
            raise NoSpaceError("no space left on device")
        kept(*args)

    monkeypatch.setattr(training, "write_checkpoint", full)
    assert smp("medical", "train", "model", *steps).code == 12
    monkeypatch.setattr(training, "write_checkpoint", kept)
    assert not Path("model").exists()
    again = smp("medical", "train", "model", *steps)
    assert again.code == 8
    assert "--resume" in again.err
    assert smp("medical", "train", "model", *steps, "--resume").code == 0
    assert Path("model/weights.safetensors").read_bytes() == Path("whole/weights.safetensors").read_bytes()
    assert smp("medical", "train", "model2", *steps, "--resume").code == 7


def test_a_killed_run_goes_on_to_the_same_model(cases: Path, smp) -> None:
    steps = [*QUICK, "--steps", "60", "--checkpoint-seconds", "0"]
    command = [sys.executable, "-m", "secure_media_processor", "medical", "train", "model", *steps]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        checkpoint = Path("model.training/checkpoint.safetensors")
        until = time.monotonic() + 60
        while not checkpoint.exists() and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert made() >= {"model.training/checkpoint.safetensors"}
    assert not Path("model").exists()
    assert smp("medical", "train", "model", *steps, "--resume").code == 0
    assert made() == PACKAGE | {"model.training/curve.png"}
    assert smp("medical", "train", "whole", *steps).code == 0
    assert Path("model/weights.safetensors").read_bytes() == Path("whole/weights.safetensors").read_bytes()
