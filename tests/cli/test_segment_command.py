"""smp medical segment and smp medical model, as they are typed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from conftest import Ran, left_in
from secure_media_processor import SymmetricKey, encrypt_file
from secure_media_processor.medical.inference.card import Code, LabelCodes
from secure_media_processor.medical.inference.packages import write_package
from unit.medical.synthetic import series
from unit.medical.toy_models import unet_package
from written_paths import written_paths

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom", "ignore::UserWarning:highdicom")
Smp = Callable[..., Ran]
AFFINE = np.array([[0, -1.2, 0, 3], [1, 0, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1.0]])
ENGINE = ("--engine", "torch", "--precision", "float32", "--device", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    unet_package(folder / "model", modality="MR")
    return folder / "model"


@pytest.fixture
def model(work: Path, made: Path) -> Path:
    shutil.copytree(made, work / "model")
    return Path("model")


def scan(path: str = "in.nii.gz", shape: tuple[int, int, int] = (12, 10, 14), seed: int = 0) -> Path:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), path)
    return Path(path)


def labels_in(path: str) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def picture(path: str) -> np.ndarray:
    with Image.open(path) as found:
        return np.asarray(found)


def test_a_volume_with_everything(model: Path, smp: Smp) -> None:
    scan()
    extra = ["--statistics", "regions.csv", "--preview", "look.png", "--uncertainty", "unsure.nii"]
    ran = smp("medical", "segment", "in.nii.gz", "out.nii.gz", "--model", model, *ENGINE, *extra, "--json")
    assert ran.code == 0, ran.err
    shown = json.loads(ran.text)
    assert shown["schema"] == "smp.medical.segment/1"
    assert shown["notice"].startswith("research use only")
    assert (shown["model"]["name"], shown["model"]["version"], shown["engine"]) == ("toy", "1.0", "torch")
    written = nibabel.load("out.nii.gz")
    assert written.shape == (12, 10, 14)
    assert np.allclose(written.affine, AFFINE)
    assert written.header["descrip"].tobytes().startswith(b"toy 1.0, research use only")
    labels = labels_in("out.nii.gz")
    counts = {region["label"]: region["voxels"] for region in shown["regions"]}
    assert counts == {int(label): int((labels == label).sum()) for label in np.unique(labels) if label}
    table = Path("regions.csv").read_text().splitlines()
    assert table[0].startswith("name,label,voxels,ml")
    assert len(table) == 1 + len(counts)
    assert all("research use only" in line for line in table[1:])
    assert picture("look.png").shape[1] > 300
    unsure = labels_in("unsure.nii")
    assert unsure.shape == labels.shape
    assert 0 <= unsure.min() <= unsure.max() <= 1


def test_other_formats_hold_the_same_labels(model: Path, smp: Smp) -> None:
    scan()
    assert smp("medical", "segment", "in.nii.gz", "a.nii", "--model", model, *ENGINE).code == 0
    assert smp("medical", "segment", "in.nii.gz", "a.npy", "--model", model, *ENGINE, "--format", "npy").code == 0
    ran = smp(
        "medical", "segment", "in.nii.gz", "slices", "--model", model, *ENGINE, "--format", "png", "--statistics", "a.json"
    )
    assert ran.code == 0
    assert "research use only" in ran.err
    assert "label 1" in ran.text
    expected = labels_in("a.nii")
    assert (np.load("a.npy", allow_pickle=False) == expected).all()
    assert sorted(left_in(Path("slices"))) == [f"slice-{number:04d}.png" for number in range(1, 15)]
    slices = [picture(f"slices/slice-{number:04d}.png").T for number in range(1, 15)]
    assert (np.stack(slices, axis=2) == expected).all()
    assert json.loads(Path("a.json").read_text())["notice"].startswith("research use only")
    ran = smp("medical", "segment", "in.nii.gz", "slices", "--model", model, *ENGINE, "--format", "png")
    assert ran.code == 8
    assert len(left_in(Path("slices"))) == 14


def test_a_dicom_segmentation(work: Path, smp: Smp) -> None:
    series("study")
    codes = {"1": LabelCodes(category=Code(value="91723000", scheme="SCT", meaning="Anatomical Structure"),
                             type=Code(value="10200004", scheme="SCT", meaning="Liver"))}  # fmt: skip
    unet_package(work / "model", codes=codes, modality="CT")
    ran = smp("medical", "segment", "study", "out.dcm", "--model", "model", *ENGINE, "--format", "seg")
    assert ran.code == 0, ran.err
    assert "the model was made for CT, and this is MR" in ran.err
    made = pydicom.dcmread("out.dcm")
    assert made.Modality == "SEG"
    assert made.ContentDescription.startswith("research use only")
    first, second = made.SegmentSequence
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert (first.SegmentLabel, first.SegmentAlgorithmType, first.SegmentAlgorithmName) == ("label 1", "AUTOMATIC", "toy 1.0")
    assert smp("medical", "segment", "study", "out.nii", "--model", "model", *ENGINE).code == 0
    assert (made.pixel_array.sum() > 0) == (labels_in("out.nii").max() > 0)


def test_encrypted_images(
    *, model: Path, work: Path, smp: Smp, key: SymmetricKey, key_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same labels as of the plain file, which is nowhere on the disk."""
    apart = tmp_path_factory.mktemp("apart")
    encrypt_file(scan(str(apart / "in.nii")), work / "in.nii.smp", [key])
    assert smp("medical", "segment", apart / "in.nii", apart / "out.nii", "--model", model, *ENGINE).code == 0
    with written_paths() as paths:
        ran = smp("medical", "segment", "in.nii.smp", "out.nii", "--model", model, *ENGINE, "--key", key_file)
    assert ran.code == 0, ran.err
    assert Path("out.nii").read_bytes() == (apart / "out.nii").read_bytes()
    assert not [path for path in paths if work in path.parents and path.name != "out.nii"]
    assert smp("medical", "segment", "in.nii.smp", "again.nii", "--model", model, *ENGINE).code == 4
    assert not Path("again.nii").exists()


def test_two_channels(work: Path, smp: Smp) -> None:
    unet_package(work / "model", channels=2)
    scan("t1.nii")
    scan("t2.nii", seed=1)
    assert smp("medical", "segment", "t1.nii", "o.nii", "--model", "model", *ENGINE, "--channel", "t2.nii").code == 0
    ran = smp("medical", "segment", "t1.nii", "p.nii", "--model", "model", *ENGINE)
    assert ran.code == 1
    assert "takes 2 images (image 0, image 1), not 1" in ran.err


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        (["in.nii.gz", "out.nii"], 2, "--model"),
        (["in.nii.gz", "out.nii", "--model", "gone"], 7, "cannot read gone"),
        (["gone.nii", "out.nii", "--model", "model"], 7, "cannot read gone.nii"),
        (["in.nii.gz", "out.png", "--model", "model"], 2, "no name for --format nifti"),
        (["in.nii.gz", "out.nii", "--model", "model", "--format", "seg"], 2, "no name for --format seg"),
        (["in.nii.gz", "in.nii.gz", "--model", "model", "--force"], 2, "same file"),
        (["in.nii.gz", "out.nii", "--model", "model", "--preview", "in.nii.gz"], 2, "same file"),
        (["in.nii.gz", "out.nii", "--model", "model", "--uncertainty", "out.nii"], 2, "one file"),
        (["in.nii.gz", "out.nii", "--model", "model", "--statistics", "table.xls"], 2, "does not say what it is"),
        (["in.nii.gz", "out.nii", "--model", "model", "--max-memory", "much"], 2, "no size"),
        (["in.nii.gz", "out.nii", "--model", "model", "--max-memory", "20M"], 2, "is allowed by --max-memory"),
        (["in.nii.gz", "out.nii", "--model", "model", "--tile", "big"], 2, "neither fitted"),
        (["in.nii.gz", "out.nii", "--model", "model", "--tile", "1"], 2, "size of a window"),
        (["in.nii.gz", "out.nii", "--model", "model", "--engine", "onnx"], 2, "not an ONNX graph"),
        (["in.nii.gz", "out.nii", "--model", "in.nii.gz"], 1, "is not a package"),
        (["nan.nii", "out.nii", "--model", "model"], 1, "no numbers"),
        (["flat.nii", "out.nii", "--model", "model"], 1, "all of them are the same"),
        (["in.nii.gz", "there.nii", "--model", "model"], 8, "exists"),
    ],
)
def test_what_makes_no_sense(*, model: Path, work: Path, smp: Smp, args: list[str], code: int, reason: str) -> None:
    scan()
    Path("there.nii").write_text("mine")
    for name, value in (("nan", np.nan), ("flat", 1)):
        nibabel.save(nibabel.Nifti1Image(np.full((8, 8, 8), value, np.float32), AFFINE), f"{name}.nii")
    before = left_in(work)
    ran = smp("medical", "segment", *args)
    assert ran.code == code, ran.err
    assert reason in ran.err
    assert left_in(work) == before
    assert Path("there.nii").read_text() == "mine"


def test_a_malicious_model(model: Path, work: Path, smp: Smp) -> None:
    """No code runs and no file is made, whatever stands in the package."""
    scan()
    card = json.loads((model / "model.json").read_text())
    evil = f"$__import__('os').system('touch {work}/ran')"
    (model / "model.json").write_text(json.dumps(card | {"preprocessing": evil}))
    ran = smp("medical", "segment", "in.nii.gz", "out.nii", "--model", model, *ENGINE)
    assert ran.code == 1
    assert "preprocessing" in ran.err
    assert left_in(work) == {"in.nii.gz", "model/model.json", "model/weights.safetensors"}


# --------------------------------------------------------------------------------------------------------------- model


def test_what_a_package_says(model: Path, smp: Smp) -> None:
    ran = smp("medical", "model", "info", model)
    assert ran.code == 0
    assert "residual U-Net, 3D, features 4, 8" in ran.text
    shown = json.loads(smp("medical", "model", "info", model, "--json").text)
    assert shown["labels"] == {"0": "label 0", "1": "label 1", "2": "label 2"}
    assert shown["self_test"] is True


def test_a_package_is_verified(model: Path, smp: Smp) -> None:
    shown = json.loads(smp("medical", "model", "verify", model, "--engine", "torch", "--json").text)
    assert shown["largest_difference"] <= shown["tolerance"]
    weights = bytearray((model / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "weights.safetensors").write_bytes(weights)
    ran = smp("medical", "model", "verify", model)
    assert ran.code == 6
    assert "is not the file" in ran.err


def test_a_network_that_computes_something_else(model: Path, work: Path, smp: Smp) -> None:
    from secure_media_processor.medical.inference.packages import read_package  # noqa: PLC0415 - brings torch for one test

    package = read_package(model)
    weights = {name: tensor * 2 for name, tensor in package.state_dict().items()}
    write_package(work / "other", package.card, weights=weights)
    ran = smp("medical", "model", "verify", "other", "--engine", "torch")
    assert ran.code == 6
    assert "does not compute what it did" in ran.err


def test_a_model_that_was_installed_goes_by_its_name(smp: Smp, work: Path) -> None:
    done = smp("medical", "model", "install", "brain-t1w", "--json")
    if done.code == 10:
        pytest.skip("deepbet")
    assert done.code == 0, done.err
    assert smp("medical", "model", "verify", "brain-t1w").code == 0
    assert smp("medical", "model", "info", "brain-t1w").text.startswith("brain-t1w 1.0.2")
    assert smp("medical", "model", "install", "brain-t1w").code == 8
    assert smp("medical", "model", "install", "brain-t1w", "--force").code == 0
    (work / "brain-t1w").mkdir()  # a path that is there comes before a name
    assert smp("medical", "model", "info", "brain-t1w").code != 0
