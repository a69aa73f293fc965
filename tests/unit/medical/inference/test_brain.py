"""The brain model: the very networks of deepbet, installed without running anything of it, on a real head."""

from __future__ import annotations

import os
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from conftest import left_in
from secure_media_processor.errors import ImageError, IntegrityError, MissingExtraError, ModelError, UsageError
from secure_media_processor.medical.inference import installing
from secure_media_processor.medical.inference.brain import brain_mask
from secure_media_processor.medical.inference.installing import install_brain_t1w
from secure_media_processor.medical.inference.linknet import LinkNetPair
from secure_media_processor.medical.inference.packages import Package, read_package
from secure_media_processor.medical.inference.vectors import verify_vector
from secure_media_processor.medical.unet.engines import choose, network_of
from secure_media_processor.medical.unet.inference import Options, segment
from secure_media_processor.medical.volume import Grid, Volume, read_volume, reoriented

HEADS = Path(os.environ.get("SMP_TEST_HEADS", "/usr/share/mricron/templates"))


def weights_at(name: str) -> Path:
    try:
        return Path(str(distribution("deepbet").locate_file(name)))
    except PackageNotFoundError:
        pytest.skip("deepbet")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    weights_at("data/models/model.pt")
    return install_brain_t1w(tmp_path_factory.mktemp("models") / "brain-t1w")


def test_the_networks_are_those_of_deepbet_bit_for_bit(package: Package) -> None:
    ours = network_of(package)
    image = torch.randn(1, 1, 32, 64, 32, generator=torch.Generator().manual_seed(1))
    for network, name in ((ours.box, "bbox_model.pt"), (ours.brain, "model.pt")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have no TorchScript
            theirs = torch.jit.load(weights_at(f"data/models/{name}")).eval()
        with torch.inference_mode():
            assert torch.equal(network(image).softmax(1), theirs(image))


def test_the_package_is_the_same_each_time_and_tests_itself(package: Package, tmp_path: Path) -> None:
    again = install_brain_t1w(tmp_path / "again.zip")
    assert again.files == package.files
    assert "Permission is hereby granted" in package.files["LICENCE.txt"].decode()
    found = verify_vector(package, choose(package))
    assert found is not None
    assert found.passed


def test_the_brain_of_a_real_head_is_found_however_its_voxels_are_stored(package: Package) -> None:
    if not (HEADS / "ch2bet.nii.gz").exists():
        pytest.skip("mricron-data")
    head = reoriented(read_volume(HEADS / "ch2.nii.gz"), "LIP")
    done = segment(head, package, Options())
    assert done.labels.grid is head.grid
    mask = reoriented(done.labels, "RAS").array > 0
    truth = np.asanyarray(nibabel.load(HEADS / "ch2bet.nii.gz").dataobj) > 0
    # The truth is another program's, which leaves out more of the fluid. deepbet's own code gives this mask voxel by voxel.
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.93
    assert mask.sum() == 1_956_468


def test_what_is_no_head_has_no_brain(package: Package) -> None:
    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x * 0 + 1, x * 0], dim=1)

    networks = LinkNetPair()
    networks.box = networks.brain = Nothing()  # type: ignore[assignment]
    networks.register_parameter("device", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ImageError, match="no brain"):
        brain_mask(np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32), networks)
    with pytest.raises(ImageError, match="one value"):
        brain_mask(np.zeros((20, 20, 20), np.float32), networks)


def test_options_and_images_that_it_has_no_use_for_are_refused(package: Package) -> None:
    image = Volume(np.zeros((8, 8, 8), np.float32), Grid((8, 8, 8), np.eye(4)))
    for options in (Options(tta=True), Options(uncertainty=True), Options(tile=32), Options(engine="openvino")):
        with pytest.raises(UsageError):
            segment(image, package, options)
    with pytest.raises(UsageError, match="this needs about"):
        segment(image, package, Options(max_memory=1000))
    with pytest.raises(ModelError, match="one image"):
        segment([image, image], package)


def test_other_weights_than_those_that_were_tried_are_not_opened(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(installing._WEIGHTS, "box.", ("data/models/bbox_model.pt", "0" * 64))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(IntegrityError):
        install_brain_t1w(tmp_path / "out")
    assert left_in(tmp_path) == set()


def test_without_the_weights_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installing, "distribution", absent)
    with pytest.raises(MissingExtraError) as raised:
        install_brain_t1w(tmp_path / "out")
    assert "pip install --no-deps deepbet" in raised.value.hint
    assert left_in(tmp_path) == set()


def test_an_installed_package_is_read_like_any_other(package: Package) -> None:
    assert read_package(package.path).sha256 == package.sha256
