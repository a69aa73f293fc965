"""Preprocessing as data: to JSON and back, run step by step, the same again, and a picture of it."""

from __future__ import annotations

import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.preprocessing import denoise
from secure_media_processor.medical.preprocessing.normalize import Landmarks
from secure_media_processor.medical.preprocessing.pipeline import (
    PreprocessingSteps,
    memory_needed,
    preprocess,
    read_steps,
    steps_from_json,
    steps_to_json,
    write_steps,
)
from secure_media_processor.medical.preprocessing.quality import mid_planes, picture
from secure_media_processor.medical.volume import ORIENTATIONS, Grid, Volume, reoriented, same_grid
from unit.medical.phantoms import head

LINE = Landmarks((1.0, 50.0, 99.0), (0.0, 50.0, 100.0))
GRID = Grid((64, 64, 40), np.diag((-1.0, 1.0, 1.5, 1.0)))


def noisy_head() -> Volume:
    noise = np.random.default_rng(1).normal(size=(2, *GRID.shape)) * 0.05
    array = np.hypot(head().image + noise[0], noise[1]) * 1000
    return Volume(array.astype(np.float32), GRID, "1.2.3", "MR")


all_steps = st.builds(
    PreprocessingSteps,
    orient=st.none() | st.sampled_from(ORIENTATIONS),
    bias=st.sampled_from(["none", "n4"]),
    shrink=st.integers(1, 16),
    denoise=st.sampled_from(["none", "nlm", "anisotropic", "median"]),
    mask=st.booleans(),
    clahe=st.booleans(),
    spacing=st.none() | st.tuples(*[st.floats(0.1, 10)] * 3),
    normalize=st.sampled_from(["none", "zscore", "minmax", "percentile"]),
    low=st.floats(0, 49),
    high=st.floats(50, 100),
)


@given(steps=all_steps)
@settings(max_examples=50)
def test_steps_survive_json(steps: PreprocessingSteps) -> None:
    assert steps_from_json(steps_to_json(steps)) == steps


def test_steps_in_a_file(work: Path) -> None:
    steps = PreprocessingSteps(normalize="nyul", landmarks=LINE, spacing=(1.0, 1.0, 2.0))
    write_steps(steps, Path("p.json"))
    assert read_steps(Path("p.json")) == steps
    short = {"schema": "smp.preprocessing/1", "denoise": "median", "spacing": [1, 1, 1]}
    assert steps_from_json(json.dumps(short)) == PreprocessingSteps(denoise="median", spacing=(1.0, 1.0, 1.0))
    Path("p.json").write_bytes(b" " * 100_000)
    with pytest.raises(UsageError, match="too large"):
        read_steps(Path("p.json"))


@pytest.mark.parametrize(
    "fields",
    [
        {"bias": "dark"},
        {"bias": 4},
        {"denoise": None},
        {"normalize": "nyul"},
        {"normalize": "zscore", "landmarks": {"percentiles": [1, 99], "standard": [0, 100], "volumes": 1}},
        {"mask": 1},
        {"shrink": 0},
        {"shrink": 2.0},
        {"spacing": [1, 1]},
        {"spacing": [1, 1, 0]},
        {"spacing": [1, 1, float("inf")]},
        {"spacing": [True, 1, 1]},
        {"spacing": 1},
        {"orient": "RAR"},
        {"orient": ["R", "A", "S"]},
        {"low": "x"},
        {"low": 60, "high": 40},
        {"landmarks": {"percentiles": []}},
        {"command": "rm"},
        {"schema": "smp.preprocessing/2"},
    ],
    ids=str,
)
def test_what_is_no_pipeline(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        steps_from_json(json.dumps({"schema": "smp.preprocessing/1", **fields}))


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "[" * 50_000])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(UsageError):
        steps_from_json(text)


def test_steps_are_run_in_order_and_told() -> None:
    steps = PreprocessingSteps(
        orient="RAS", denoise="median", mask=True, clahe=True, spacing=(2.0, 2.0, 2.0), normalize="percentile", low=1, high=99
    )
    said: list[str] = []
    done = preprocess(noisy_head(), steps, progress=said.append)
    order = ["orient", "denoise", "mask", "clahe", "spacing", "normalize", "outside"]
    assert said == [run.name for run in done.runs] == list(steps.names) == order
    assert done.volume.grid.orientation == "RAS"
    assert done.volume.grid.shape == (32, 32, 30)
    assert done.volume.array.dtype == np.float32
    assert done.volume.frame_of_reference_uid == "1.2.3"
    assert done.mask is not None
    assert done.mask.array.shape == done.volume.array.shape
    assert (done.volume.array[~done.mask.array] == 0).all()
    last = done.runs[-1]
    assert (last.least, last.greatest) == (done.volume.array.min(), done.volume.array.max())
    assert all(run.cpu_seconds >= 0 for run in done.runs)
    assert done.runs[0].parameters == {"from": "LAS", "to": "RAS"}
    assert done.bias is None


def test_the_same_steps_give_the_same_voxels() -> None:
    steps = PreprocessingSteps(bias="n4", denoise="nlm", mask=True, normalize="zscore")
    first, second = preprocess(noisy_head(), steps), preprocess(noisy_head(), steps_from_json(steps_to_json(steps)))
    assert first.volume.array.tobytes() == second.volume.array.tobytes()
    assert same_grid(first.volume.grid, GRID)
    assert first.bias is not None
    field = first.bias.volume()
    assert same_grid(field.grid, GRID)
    only = preprocess(noisy_head(), PreprocessingSteps(bias="n4")).volume.array
    assert np.allclose(only * field.array, noisy_head().array, rtol=1e-4)
    inside = first.mask.array
    assert abs(first.volume.array[inside].mean(dtype=float)) < 1e-4
    names = [(run.name, run.parameters) for run in first.runs]
    assert names == [(run.name, run.parameters) for run in second.runs]


def test_the_input_is_left_as_it_was() -> None:
    volume = noisy_head()
    kept = volume.array.copy()
    for steps in (PreprocessingSteps(mask=True), PreprocessingSteps(normalize="minmax"), PreprocessingSteps(orient="LPS")):
        preprocess(volume, steps)
        assert (volume.array == kept).all()


def test_each_filter_is_the_one_that_was_asked_for() -> None:
    volume = noisy_head()
    expected = {
        "anisotropic": denoise.anisotropic_diffusion(volume.array, GRID.spacing),
        "median": denoise.median(volume.array),
        "nlm": denoise.non_local_means(volume.array),
    }
    for name, array in expected.items():
        done = preprocess(volume, PreprocessingSteps(denoise=name))
        assert np.allclose(done.volume.array, array, rtol=1e-4, atol=1e-2), name
        assert done.runs[0].parameters["method"] == name


def test_nyul_by_its_landmarks() -> None:
    done = preprocess(noisy_head(), PreprocessingSteps(normalize="nyul", landmarks=LINE))
    assert np.allclose(np.percentile(done.volume.array, LINE.percentiles), LINE.standard, atol=0.5)


def test_a_volume_without_contrast_is_refused() -> None:
    flat = Volume(np.ones(GRID.shape, np.float32), GRID)
    for steps in (PreprocessingSteps(mask=True), PreprocessingSteps(clahe=True), PreprocessingSteps(normalize="zscore")):
        with pytest.raises(ImageError):
            preprocess(flat, steps)


def test_memory_is_reckoned_from_the_grid() -> None:
    volume = GRID.size * 4
    base = memory_needed(GRID, PreprocessingSteps(normalize="zscore")) - 3 * volume
    assert base > 0
    assert memory_needed(GRID, PreprocessingSteps(spacing=(0.5, 0.5, 0.75))) - base > 8 * volume


# --------------------------------------------------------------------------------------------------------------- picture


def test_planes_are_shown_as_radiologists_look() -> None:
    """Right at the left, front and head up, however the file keeps its axes."""
    array = np.zeros((20, 22, 24), np.float32)
    array[15:, :, :] = 1  # the patient's right half has a bright edge
    array[:, 17:, :] = 2  # the front
    array[:, :, 19:] = 3  # the head
    volume = Volume(array, Grid(array.shape, np.diag((1.0, 1.0, 2.0, 1.0))))
    for orientation in ("RAS", "LPI", "SAR", "PIR"):
        planes = mid_planes(reoriented(volume, orientation))
        axial, coronal, sagittal = planes.planes
        assert axial[-1, 0] == 1
        assert (axial[0] == 2).all()
        assert (coronal[0] == 3).all()
        assert coronal[-1, 0] == 1
        assert (sagittal[0] == 3).all()
        assert sagittal[-1, 0] == 2
        assert planes.spacings == ((1, 1), (2, 1), (2, 1))


def test_the_picture_holds_nothing_but_the_picture() -> None:
    before = noisy_head()
    after = preprocess(before, PreprocessingSteps(denoise="median", spacing=(2.0, 2.0, 2.0)))
    data = picture(mid_planes(before), mid_planes(after.volume))
    opened = Image.open(BytesIO(data))
    assert opened.mode == "L"
    assert opened.info == {}
    assert np.asarray(opened).std() > 10
    assert b"tEXt" not in data
    flat = Volume(np.zeros((3, 400, 1), np.float32), Grid((3, 400, 1), np.diag((5.0, 1.0, 9.0, 1.0))))
    assert Image.open(BytesIO(picture(mid_planes(flat)))).size[0] > 0


_MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from secure_media_processor.medical.preprocessing import bias, denoise, pipeline
from secure_media_processor.medical.volume import Grid, Volume, read_volume, write_volume

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

shape = (256, 256, 160)
if sys.argv[1] == "make":
    index = np.indices((256, 256), np.float32) - 128
    disc = (np.hypot(*index) < 100) * 500.0
    array = (disc[:, :, None] + np.random.default_rng(1).random(shape, np.float32) * 50).astype(np.float32)
    write_volume(Volume(array, Grid(shape, np.diag((-1.0, 1, 1, 1)))), Path("big.nii"), overwrite=False)
else:
    small = np.random.default_rng(1).random((32, 32, 32), np.float32) + np.indices((32, 32, 32))[0] // 16
    steps = pipeline.steps_from_json(sys.argv[2])
    pipeline.preprocess(Volume(small, Grid(small.shape, np.eye(4))), steps)
    base = peak()
    done = pipeline.preprocess(read_volume(Path("big.nii")), steps)
    write_volume(done.volume, Path("out.nii"), overwrite=True)
    print((peak() - base) / (4 * np.prod(shape)))
"""


def test_memory_stays_below_three_volumes(work: Path) -> None:
    def run(*args: str) -> str:
        done = subprocess.run([sys.executable, "-c", _MEASURE, *args], capture_output=True, text=True, check=True)
        return done.stdout

    run("make")
    steps = PreprocessingSteps(orient="RAS", mask=True, normalize="percentile")
    assert float(run("measure", steps_to_json(steps))) <= 3
