"""Segmentation: always on the input's grid, tiled as untiled, mirrored as mirrored, and on when memory runs out."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy

from secure_media_processor.core import device
from secure_media_processor.errors import ImageError, MissingExtraError, ModelError, UsageError
from secure_media_processor.medical.inference.card import Normalization, PlainStep
from secure_media_processor.medical.inference.packages import Package, write_package
from secure_media_processor.medical.preprocessing.mask import foreground_mask
from secure_media_processor.medical.preprocessing.normalize import normalized
from secure_media_processor.medical.unet import engines, memory
from secure_media_processor.medical.unet.engines import Choice, OutOfMemoryError, TorchEngines, choose, engines_of
from secure_media_processor.medical.unet.inference import Options, entropy, segment, winner
from secure_media_processor.medical.unet.preparation import prepared, scaling_of
from secure_media_processor.medical.volume import ORIENTATIONS, Grid, Volume, reoriented, same_grid
from unit.medical.toy_models import Toy, blurred, card_of, onnx_bytes, thirds, unet_package

OBLIQUE = np.array([[0, -1.2, 0.05, 3], [1, 0, 0, 4], [0, 0.05, 2, 5], [0, 0, 0, 1.0]])
CPU = Options(engine="torch", precision="float32", device="cpu")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return unet_package(tmp_path_factory.mktemp("toy") / "m")


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A 2D model."""
    return unet_package(tmp_path_factory.mktemp("flat") / "m", dimensions=2)


def volume(shape: tuple[int, int, int] = (24, 20, 28), affine: np.ndarray | None = None, seed: int = 0, **more: Any) -> Volume:
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Volume(np.asfortranarray(array), Grid(shape, np.eye(4) if affine is None else affine), **more)


def with_card(package: Package, **fields: Any) -> Package:
    """Return the package with another card, unchecked."""
    inputs = package.card.inputs.model_copy(update=fields.pop("inputs", {}))
    outputs = package.card.outputs.model_copy(update=fields.pop("outputs", {}))
    card = package.card.model_copy(update={"inputs": inputs, "outputs": outputs, **fields})
    return Package(package.path, card, package.sha256, package.files)


# ------------------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("spacing", [None, (1.5, 0.7, 1.1)])
def test_in_every_orientation_the_result_is_on_the_grid_of_the_input(
    toy: Package, spacing: tuple[float, float, float] | None
) -> None:
    """And it is the same place by place, however the file keeps its axes."""
    image = volume((9, 12, 10), OBLIQUE, frame_of_reference_uid="1.2.3")
    package = with_card(toy, inputs={"spacing": spacing})
    expected = segment(image, package, CPU, engines=Toy(thirds)).labels
    assert set(np.unique(expected.array)) == {0, 1, 2}
    for orientation in ORIENTATIONS:
        turned = reoriented(image, orientation)
        found = segment(turned, package, CPU, engines=Toy(thirds)).labels
        assert found.grid is turned.grid
        assert found.array.dtype == np.uint8
        assert found.frame_of_reference_uid == "1.2.3"
        assert (reoriented(found, image.grid.orientation).array == expected.array).all()


def test_without_resampling_each_voxel_has_its_own_label(toy: Package) -> None:
    image = volume(affine=OBLIQUE)
    scaled = (image.array - image.array.mean()) / image.array.std()
    expected = thirds(scaled[None, None])[0].argmax(0)
    options = Options(engine="torch", precision="float32", device="cpu", tile=16)
    found = segment(image, toy, options, engines=Toy(thirds))
    assert (found.labels.array == expected).all()
    assert found.windows > 1


def test_a_model_of_another_orientation(toy: Package) -> None:
    """A network that sees where it is: the axes that it is given run as its card says."""
    package = with_card(toy, inputs={"orientation": "PIR", "normalization": Normalization(method="none"), "roi": (8, 8, 8)})

    def from_the_front(windows: np.ndarray) -> np.ndarray:
        return thirds(windows)

    grid = Grid((8, 8, 8), np.eye(4))
    front = np.broadcast_to(np.linspace(-2, 2, 8, dtype=np.float32)[None, :, None], (8, 8, 8))
    seen: list[np.ndarray] = []

    def look(windows: np.ndarray) -> np.ndarray:
        seen.append(windows.copy())
        return from_the_front(windows)

    segment(Volume(np.array(front), grid), package, CPU, engines=Toy(look))
    assert (np.diff(seen[0][0, 0], axis=0) < 0).all()  # the first axis runs to the back


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 40, 2), (17, 16, 16), (5, 5, 70)])
def test_odd_shapes(toy: Package, flat: Package, shape: tuple[int, int, int]) -> None:
    image = volume(shape)
    if image.array.size == 1:
        with pytest.raises(ImageError, match="cannot be scaled"):
            segment(image, toy, CPU)
        return
    for package in (toy, flat):
        assert segment(image, package, CPU).labels.array.shape == shape


# ---------------------------------------------------------------------------------------------------------- properties


@settings(max_examples=15)
@given(
    shape=st.tuples(*[st.integers(6, 18).map(lambda half: 2 * half)] * 3),
    flips=st.tuples(*[st.booleans()] * 3).filter(any),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    tta=st.booleans(),
    dimensions=st.sampled_from([2, 3]),
)
def test_a_mirrored_image_gives_mirrored_labels(
    *,
    toy: Package,
    flat: Package,
    shape: tuple[int, int, int],
    flips: tuple[bool, ...],
    overlap: float,
    tta: bool,
    dimensions: int,
) -> None:
    axes = tuple(axis for axis, flip in enumerate(flips) if flip)
    package = with_card(toy if dimensions == 3 else flat, inputs={"normalization": Normalization(method="none")})
    options = Options(engine="torch", precision="float32", device="cpu", overlap=overlap, tta=tta)
    image = volume(shape)
    mirrored = Volume(np.flip(image.array, axes).copy(), image.grid)
    one = segment(image, package, options, engines=Toy(blurred))
    other = segment(mirrored, package, options, engines=Toy(blurred))
    assert (np.flip(other.labels.array, axes) == one.labels.array).mean() > 0.9999


@settings(max_examples=8)
@given(shape=st.tuples(*[st.integers(20, 40)] * 3), overlap=st.sampled_from([0.25, 0.5]))
def test_inside_a_window_it_makes_no_difference_that_there_are_windows(
    *, toy: Package, shape: tuple[int, int, int], overlap: float
) -> None:
    """With a network that sees one voxel far, only the outermost layer of a window can differ, and it counts for little."""
    image = volume(shape)
    whole = blurred((image.array[None, None] - image.array.mean()) / image.array.std())[0]
    options = Options(engine="torch", precision="float32", device="cpu", overlap=overlap, tile=16)
    found = segment(image, toy, options, engines=Toy(blurred))
    margin = np.sort(whole, axis=0)
    clear = margin[-1] - margin[-2] > 0.05
    assert found.windows > 1
    assert (found.labels.array == whole.argmax(0))[clear].mean() > 0.999


def test_the_same_twice(toy: Package) -> None:
    image = volume(affine=OBLIQUE)
    package = with_card(toy, inputs={"spacing": (1.0, 1.0, 1.0)})
    first, second = (segment(image, package, Options(uncertainty=True, device="cpu")) for _ in range(2))
    assert (first.labels.array == second.labels.array).all()
    assert first.uncertainty is not None
    assert second.uncertainty is not None
    assert (first.uncertainty.array == second.uncertainty.array).all()


def test_the_winner_is_that_of_argmax() -> None:
    logits = np.random.default_rng(0).integers(-3, 3, (5, 4, 4, 4)).astype(np.float32)
    labels = np.full((4, 4, 4), 9, np.uint8)
    winner(logits, labels)
    assert (labels == logits.argmax(0)).all()
    expected = scipy_entropy(softmax(logits.astype(np.float64), axis=0), axis=0) / np.log(5)
    assert np.abs(entropy(logits) - expected).max() < 1e-6


def test_uncertainty(toy: Package) -> None:
    image = volume(affine=OBLIQUE)
    package = with_card(toy, inputs={"spacing": (1.3, 1.3, 1.3)})
    found = segment(image, package, Options(uncertainty=True, device="cpu", engine="torch", tta=True)).uncertainty
    assert found is not None
    assert same_grid(found.grid, image.grid)
    assert found.array.dtype == np.float32
    assert 0 <= found.array.min() < found.array.max() <= 1


def test_mirrored_windows_are_averaged(toy: Package) -> None:
    """A network that likes one side likes neither when it has seen both."""

    def one_sided(windows: np.ndarray) -> np.ndarray:
        ramp = np.linspace(-1, 1, windows.shape[2])[None, None, :, None, None] * np.ones_like(windows)
        return np.concatenate([np.full_like(windows, 0.01), ramp, -ramp], axis=1)

    image = volume((16, 16, 16))
    plain = segment(image, toy, CPU, engines=Toy(one_sided))
    assert set(np.unique(plain.labels.array)) == {1, 2}
    engine = Toy(one_sided)
    mean = segment(image, toy, Options(engine="torch", precision="float32", device="cpu", tta=True), engines=engine)
    assert not mean.labels.array.any()
    assert len(engine.seen) == 8


# ------------------------------------------------------------------------------------------------------------- scaling


@settings(max_examples=20)
@given(
    method=st.sampled_from(["zscore", "minmax", "percentile"]),
    masked=st.booleans(),
    seed=st.integers(0, 9),
    scale=st.sampled_from([1e-3, 1.0, 1e6]),
)
def test_scaling_is_that_of_the_preprocessing(*, method: Any, masked: bool, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    array = np.asfortranarray((rng.gamma(2, 1, (6, 7, 8)) * scale).astype(np.float32))
    mask = array > np.median(array) if masked else None
    settings = Normalization(method=method, low=2, high=97)
    expected = normalized(array, method, mask, low=2, high=97)
    assert np.array_equal(scaling_of(array, settings, mask)(array), expected)


def test_crop_and_mask(toy: Package) -> None:
    array = np.full((60, 30, 30), 0.0, np.float32)
    array[5:25, 5:25, 5:25] = 100 + np.random.default_rng(0).normal(size=(20, 20, 20))
    image = Volume(np.asfortranarray(array), Grid(array.shape, np.eye(4)))
    package = with_card(toy, inputs={"crop": "foreground", "normalization": Normalization(method="zscore", mask="foreground")})
    seen = prepared([image], package.card.inputs)
    assert seen.box[0].stop < 40
    inside = seen.scalings[0](array)[foreground_mask(array)]
    assert abs(float(inside.mean())) < 0.01
    found = segment(image, package, CPU, engines=Toy(lambda windows: thirds(windows + 5)))
    assert not found.labels.array[40:].any()
    assert found.labels.array[:25].any()


def test_several_images(tmp_path: Path) -> None:
    package = unet_package(tmp_path / "m", channels=2)
    images = [volume(seed=0), volume(seed=1)]
    seen: list[np.ndarray] = []

    def look(windows: np.ndarray) -> np.ndarray:
        seen.append(windows)
        return thirds(windows)

    segment(images, package, CPU, engines=Toy(look))
    assert seen[0].shape[1] == 2
    with pytest.raises(ModelError, match="takes 2 images"):
        segment(images[0], package, CPU)
    with pytest.raises(ImageError, match="one grid"):
        segment([images[0], volume((5, 5, 5))], package, CPU)


def test_steps_after_the_network(toy: Package) -> None:
    array = np.zeros((20, 20, 20), np.float32)
    array[2:10, 2:10, 2:10] = 1
    array[15, 15, 15] = 1
    image = Volume(array, Grid(array.shape, np.eye(4)))
    inputs = {"normalization": Normalization(method="minmax")}
    plain = with_card(toy, inputs=inputs)
    assert segment(image, plain, CPU, engines=Toy(thirds)).labels.array[15, 15, 15] == 2
    step = PlainStep(step="largest-component", labels=(2,))
    cleaned = segment(image, with_card(toy, inputs=inputs, outputs={"postprocessing": (step,)}), CPU, engines=Toy(thirds))
    assert cleaned.labels.array[15, 15, 15] == 0
    assert cleaned.labels.array[5, 5, 5] == 2


def test_doubts_are_told(toy: Package) -> None:
    image = volume(modality="CT", notes=("its space is not known",))
    found = segment(image, with_card(toy, inputs={"modality": "MR", "spacing": (5.0, 1.0, 1.0)}), CPU, engines=Toy(thirds))
    assert "made for MR, and this is CT" in found.warnings[1]
    assert "its space is not known" in found.warnings
    assert "5.0-fold" in found.warnings[2]
    assert segment(image, with_card(toy, inputs={"modality": "CT"}), CPU, engines=Toy(thirds)).warnings == image.notes


def test_what_is_refused(toy: Package) -> None:
    with pytest.raises(ImageError, match="all of them are the same"):
        segment(Volume(np.ones((8, 8, 8), np.float32), Grid((8, 8, 8), np.eye(4))), toy, CPU)
    with pytest.raises(ModelError, match="its task is classify"):
        segment(volume(), with_card(toy, task="classify"), CPU)
    with pytest.raises(ModelError, match="the network gives"):
        segment(volume(), toy, CPU, engines=Toy(lambda windows: windows))
    with pytest.raises(UsageError, match="overlap"):
        segment(volume(), toy, Options(device="cpu", overlap=0.9))


# ------------------------------------------------------------------------------------------------------- out of memory


def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_has_gpu", lambda: True)


def test_smaller_batches_then_smaller_windows_then_the_cpu(toy: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch)
    image = volume((40, 40, 40))
    expected = segment(image, toy, CPU, engines=Toy(thirds)).labels.array
    options = Options(overlap=0.25)
    plenty = Toy(thirds)
    done = segment(image, toy, options, engines=plenty)
    window = plenty.seen[0][0] and plenty.seen[0]
    assert done.choice == Choice("torch", "bfloat16", "cuda")
    assert (done.labels.array == expected).all()
    assert done.warnings == ()
    single = int(np.prod(window[1:]))
    assert window[0] > 1

    fewer = Toy(thirds, most=single)
    done = segment(image, toy, options, engines=fewer)
    assert {shape[0] for shape in fewer.seen} == {1}
    assert done.choice.device == "cuda"
    assert done.warnings == ()
    assert (done.labels.array == expected).all()

    smaller = Toy(thirds, most=single // 2)
    done = segment(image, toy, options, engines=smaller)
    assert done.choice.device == "cuda"
    assert np.prod(done.window) <= single // 2
    assert "the GPU ran out of memory; it was done with windows of" in done.warnings[0]
    assert (done.labels.array == expected).all()

    none = Toy(thirds, most=1)
    done = segment(image, toy, options, engines=none)
    assert done.choice.device == "cpu"
    assert "on the CPU" in done.warnings[-1]
    assert (done.labels.array == expected).all()


def test_out_of_memory_in_slices(flat: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch)
    image = volume((20, 20, 12))
    expected = segment(image, flat, CPU, engines=Toy(thirds)).labels.array
    for most in (4 * 32 * 32, 32 * 32, 100, 1):
        done = segment(image, flat, Options(), engines=Toy(thirds, most=most))
        assert (done.labels.array == expected).all()
    assert done.choice.device == "cpu"


def test_no_memory_at_all(toy: Package) -> None:
    with pytest.raises(UsageError, match="not enough memory, even for the smallest windows"):
        segment(volume(), toy, CPU, engines=Toy(thirds, most=1, device="cpu"))


def test_what_torch_says_when_its_memory_is_full() -> None:
    class Full(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemoryError):
        TorchEngines(Full()).open((8, 8, 8), "cpu").logits(np.zeros((1, 1, 8, 8, 8), np.float32))


def test_memory_is_told_beforehand(toy: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"needs about .* and 10 MB is allowed by --max-memory") as caught:
        segment(volume(), toy, Options(device="cpu", max_memory=10_000_000))
    assert "--max-memory" in caught.value.hint
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    with pytest.raises(UsageError, match="is free"):
        segment(volume(), toy, CPU)
    assert device.available_memory() > 0


def test_less_memory_means_smaller_windows(toy: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resident", lambda: 500_000_000)
    large = with_card(toy, inputs={"roi": (16, 16, 16)})
    image = volume((64, 64, 64))
    plenty = segment(image, large, CPU, engines=Toy(thirds))
    need = memory.needs(large, plenty.choice, voxels=64**3, fixed=64**3)
    tight = memory.resident() + need.fixed + 2_200_000
    little = segment(
        image, large, Options(engine="torch", precision="float32", device="cpu", max_memory=tight), engines=Toy(thirds)
    )
    assert np.prod(little.window) < np.prod(plenty.window)
    assert (little.labels.array == plenty.labels.array).all()


def test_memory_does_not_grow_with_the_classes_of_the_whole(tmp_path: Path) -> None:
    """32 classes of 96³ voxels are 113 MB as float32; what is held between windows is a fraction of that."""
    package = unet_package(tmp_path / "m", classes=32)
    image = volume((96, 96, 96))

    def many(windows: np.ndarray) -> np.ndarray:
        return np.repeat(windows, 32, axis=1)

    gc.collect()
    tracemalloc.start()
    segment(image, package, Options(engine="torch", precision="float32", device="cpu", tile=16), engines=Toy(many))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000


# ------------------------------------------------------------------------------------------------------------- engines


@pytest.mark.parametrize(
    ("dimensions", "others"),
    [(3, [("openvino", "float32"), ("openvino", "bfloat16"), ("torch", "bfloat16")]), (2, [("openvino", "float32")])],
)
def test_engines_agree(toy: Package, flat: Package, dimensions: int, others: list[tuple[Any, Any]]) -> None:
    package, image = (toy if dimensions == 3 else flat), volume((20, 17, 19))
    exact = segment(image, package, CPU).labels.array
    for engine, precision in others:
        found = segment(image, package, Options(engine=engine, precision=precision, device="cpu"))
        assert found.choice == Choice(engine, precision, "cpu")
        assert (found.labels.array == exact).mean() > (0.999 if precision == "float32" else 0.97)


def test_onnx_by_both_engines(tmp_path: Path) -> None:
    package = write_package(tmp_path / "m", card_of(None, roi=(12, 12, 12)), onnx=onnx_bytes())
    image = volume()
    results = [segment(image, package, Options(engine=engine, precision="float32")) for engine in ("onnx", "openvino")]
    assert (results[0].labels.array == results[1].labels.array).mean() > 0.999
    assert segment(image, package).choice.engine == "openvino"
    fixed = write_package(tmp_path / "fixed", card_of(None, roi=(12, 12, 12)), onnx=onnx_bytes(spatial=(12, 12, 12)))
    for engine in ("onnx", "openvino"):
        options = Options(engine=engine, precision="float32", tile=12)
        assert (segment(image, fixed, options).labels.array == results[0].labels.array).mean() > 0.9
    with pytest.raises(ModelError, match="does not take windows"):
        segment(image, fixed, Options(engine="onnx", precision="float32", tile=16))


def test_choices(toy: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(toy, device="cpu").engine == "openvino"
    monkeypatch.setattr(engines, "has_bfloat16", lambda: False)
    assert choose(toy, device="cpu").precision == "float32"
    monkeypatch.setattr(engines, "_installed", lambda name: name == "torch")
    monkeypatch.setattr(engines, "_has_gpu", lambda: False)
    assert choose(toy).engine == "torch"
    with pytest.raises(MissingExtraError, match="no GPU"):
        choose(toy, device="cuda")
    with pytest.raises(UsageError, match="on a GPU"):
        choose(toy, device="cuda", engine="openvino")
    with pytest.raises(UsageError, match="not an ONNX graph"):
        choose(toy, engine="onnx")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match="openvino is not installed"):
        engines_of(toy, Choice("openvino", "float32", "cpu")).open((16, 16, 16), "cpu")


def test_openvino_keeps_quiet(toy: Package, home: Path, tmp_path: Path) -> None:
    """It writes no identifier into the home folder, opens no connection and starts no thread that would."""
    card = toy.card.model_copy(update={"files": {}})
    write_package(tmp_path / "m", card, weights=toy.state_dict())
    code = f"""
import socket, threading
from pathlib import Path
def refuse(*args, **kwargs):
    raise AssertionError("the network was used")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from secure_media_processor.medical.inference.packages import read_package
from secure_media_processor.medical.unet.engines import Choice, engines_of
import numpy as np
engine = engines_of(read_package(Path({str(tmp_path / "m")!r})), Choice("openvino", "float32", "cpu")).open((16, 16, 16), "cpu")
assert engine.logits(np.zeros((1, 1, 16, 16, 16), np.float32)).shape == (1, 3, 16, 16, 16)
assert threading.active_count() == 1, threading.enumerate()
"""
    env = {name: value for name, value in os.environ.items() if name != "CI"}  # where it would be quiet by itself
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=env)
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_openvino_is_silenced_even_if_somebody_else_imported_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loud = ModuleType("openvino.tools.ovc.loud")
    loud.tm = object()
    monkeypatch.setitem(sys.modules, loud.__name__, loud)
    engines.quiet_openvino()
    assert loud.tm is sys.modules["openvino.tools.ovc.telemetry_stub"]
    with pytest.raises(ImportError):
        importlib.import_module("openvino_telemetry")
