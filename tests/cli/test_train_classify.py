"""smp medical train --task classify: what it writes, what it refuses, and that a killed run goes on."""

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
from secure_media_processor.medical.inference.packages import read_package  # noqa: E402

QUICK = [
    *["--task", "classify", "--images", "images", "--truth", "truth.csv"],
    *["--channels", "4,6", "--threads", "1", "--precision", "float32"],
]
LABELS = ["plain", "blob"] * 5


def table(lines: list[str]) -> None:
    Path("truth.csv").write_text("\n".join(["id,label", *lines]) + "\n")


@pytest.fixture
def cases(work: Path) -> Path:
    """Ten images, half of them with a blob."""
    grid = np.stack(np.meshgrid(*[np.arange(10)] * 3, indexing="ij"), axis=-1)
    Path("images").mkdir()
    for number, label in enumerate(LABELS):
        noise = np.random.default_rng(number).normal(100, 10, (10, 10, 10))
        blob = 100 * (np.linalg.norm(grid - 3 - number / 3, axis=-1) < 2) * (label == "blob")
        nib.save(nib.Nifti1Image((noise + blob).astype(np.float32), np.eye(4)), f"images/patient-{number}.nii.gz")
    table([f"patient-{number},{label}" for number, label in enumerate(LABELS)])
    before = torch.get_num_threads()
    yield work
    torch.set_num_threads(before)


def made() -> set[str]:
    return {name for name in left_in(Path()) if not name.startswith("images/") and name != "truth.csv"}


PACKAGE = {"model/model.json", "model/weights.safetensors", "model/TRAINING.md"}
ORDER = ["--label", "0=plain", "--label", "1=blob"]


def test_a_package_is_written(cases: Path, smp) -> None:
    done = smp("medical", "train", "model", *QUICK, *ORDER, "--steps", "20", "--validation", "0.4", "--json")
    assert done.code == 0, done.err
    assert made() == PACKAGE | {"model.training/curve.png"}
    found = json.loads(done.text)
    assert (found["task"], found["training"], found["validation"]) == ("classify", 6, 4)
    assert (found["labels"], found["cases"], found["voxels"]) == ({"0": "plain", "1": "blob"}, {"0": 5, "1": 5}, {})
    assert (found["variant"], found["loss"]) == (None, "cross-entropy")
    assert [(one["label"], one["metric"]) for one in found["figures"]] == [
        ("blob", "auc"),
        ("blob", "sensitivity"),
        ("blob", "specificity"),
    ]
    assert found["parameters"] == sum(value.numel() for value in read_package(Path("model")).state_dict().values())
    assert "patient-" not in Path("model/model.json").read_text() + Path("model/TRAINING.md").read_text()
    assert "classifier, 3D" in smp("medical", "model", "info", "model").text
    assert smp("medical", "model", "verify", "model").code == 0
    refused = smp("medical", "segment", "images/patient-0.nii.gz", "out.nii.gz", "--model", "model")
    assert (refused.code, "does not segment" in refused.err) == (1, True)
    assert not Path("out.nii.gz").exists()
    assert smp("medical", "train", "model", *QUICK, "--steps", "20").code == 8


def test_a_dry_run_writes_nothing(cases: Path, smp) -> None:
    done = smp("medical", "train", "model", *QUICK, "--dry-run")
    assert done.code == 0, done.err
    assert "cases of each class: blob (0): 5, plain (1): 5" in done.text
    assert "classifier in 3D" in done.text
    assert made() == set()


GOOD = [f"patient-{number},{label}" for number, label in enumerate(LABELS)]


@pytest.mark.parametrize(
    ("lines", "options", "expected"),
    [
        ([*GOOD, "nobody,blob"], [], (2, "have no image")),
        (GOOD[1:], [], (2, "are not in truth.csv")),
        ([line.replace("blob", "plain") for line in GOOD], [], (1, "1 class")),
        ([*GOOD, GOOD[0]], [], (1, "line 12: the id of line 2 again")),
        ([*GOOD[:-1], "patient-9,nan"], [], (1, "line 11: it has no label")),
        ([*GOOD[:-1], "patient-9,third"], [], (2, "1 case of class")),
        (GOOD, ["--label", "0=plain"], (2, "names of the classes")),
        (GOOD, ["--truth", "nowhere.csv"], (7, "nowhere.csv")),
        (GOOD, ["--labels", "images"], (2, "does not take --labels")),
        (GOOD, ["--variant", "residual"], (2, "does not take --variant")),
        (GOOD, ["--loss", "dice"], (2, "does not take --loss")),
        (GOOD, ["--window", "8,8,8"], (2, "does not hold all")),
        (GOOD, ["--dimensions", "2"], (1, "10 slices")),
        (GOOD, ["--task", "segment"], (2, "needs --labels")),
        (GOOD, ["--task", "segment", "--labels", "images"], (2, "does not take --truth")),
    ],
)
def test_what_is_refused_leaves_nothing(
    cases: Path, smp, lines: list[str], options: list[str], expected: tuple[int, str]
) -> None:
    table(lines)
    done = smp("medical", "train", "model", *QUICK, "--steps", "2", *options)
    assert (done.code, expected[1] in done.err) == (expected[0], True), done.err
    assert made() == set()


def test_a_table_is_needed(cases: Path, smp) -> None:
    done = smp("medical", "train", "model", "--task", "classify", "--images", "images")
    assert (done.code, "needs --truth" in done.err) == (2, True)


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
