"""Inference as it ships against torch eager float32 of the same network in MONAI's sliding window (roi 96, overlap 0.5).

Each side runs in a process of its own, on the same volume of 256 x 256 x 160 voxels, a head phantom with noise; CPU seconds of
all threads, wall seconds and peak resident memory are those of that process; time counts from when the network is loaded.
Networks are trained here, briefly, on such phantoms (other noise, other bias): a random network has no edges to agree about.

    python benchmarks/medical_inference.py
    python benchmarks/medical_inference.py train FOLDER light|large
    python benchmarks/medical_inference.py ours|monai FOLDER light|large OUT.npy
    python benchmarks/medical_inference.py many-classes FOLDER
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests"))

SHAPE = (256, 256, 160)
ROI = 96
NETWORKS: dict[str, tuple[tuple[int, ...], int, int]] = {
    # features, training steps, side of the training window
    "light": ((32, 32, 64, 128, 256), 160, 64),
    "large": ((32, 64, 128, 256, 320, 320), 110, 64),
}
TISSUES = ("air", "scalp", "skull", "fluid", "gray matter", "white matter", "nucleus")
BARS = {"light": 0.20, "large": 0.30}


def scan(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return image and labels of a phantom: Rician noise of 3 %, and a smooth bias that differs from seed to seed."""
    from unit.medical.phantoms import head  # noqa: PLC0415 - each process imports what it needs

    rng = np.random.default_rng(seed)
    made = head(shape, seed=seed)
    axes = np.ix_(*(np.linspace(-1, 1, size, dtype=np.float32) for size in shape))
    bias = np.exp(sum(axis * rng.uniform(-0.15, 0.15) for axis in axes))
    real, imaginary = (rng.normal(0, 0.03, shape).astype(np.float32) for _ in range(2))
    return np.sqrt((made.image * bias + real) ** 2 + imaginary**2).astype(np.float32), made.tissue


def train(folder: Path, size: str) -> None:
    """Write a package with a network that was trained on phantoms for a few minutes."""
    import torch  # noqa: PLC0415 - each process imports what it needs

    from secure_media_processor.medical.inference.card import (  # noqa: PLC0415 - as above
        Inputs,
        ModelCard,
        Normalization,
        Outputs,
        UNetArchitecture,
    )
    from secure_media_processor.medical.inference.packages import write_package  # noqa: PLC0415 - as above
    from secure_media_processor.medical.unet.losses import loss_named  # noqa: PLC0415 - as above
    from secure_media_processor.medical.unet.models import UNetConfig, build_unet  # noqa: PLC0415 - as above

    features, steps, side = NETWORKS[size]
    torch.manual_seed(0)
    config = UNetConfig("standard", 3, 1, len(TISSUES), features)
    network = build_unet(config)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (1 - step / steps) ** 0.9)
    loss_of, rng, losses = loss_named("dice-ce"), np.random.default_rng(1), []
    scans = [scan(seed) for seed in (11, 12)]
    for step in range(steps):
        image, labels = scans[step % len(scans)]
        corner = [int(rng.integers(0, length - side + 1)) for length in SHAPE]
        place = tuple(slice(start, start + side) for start in corner)
        flips = tuple(int(axis) for axis in np.flatnonzero(rng.random(3) < 0.5))  # noqa: PLR2004 - every second
        crop = np.flip((image[place] - image.mean()) / image.std(), flips).copy()
        truth = np.flip(labels[place], flips).astype(np.int64)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(torch.from_numpy(crop)[None, None])
        loss = loss_of(logits.float(), torch.from_numpy(truth.copy())[None])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    card = ModelCard(
        name=f"benchmark-{size}",
        version="1",
        task="segment",
        architecture=UNetArchitecture.of(config),
        inputs=Inputs(channels=("phantom",), roi=(ROI,) * 3, normalization=Normalization(method="zscore")),
        outputs=Outputs(labels={str(value): name for value, name in enumerate(TISSUES)}),
        intended_use="benchmarks",
        limitations="it knows nothing but phantoms",
        training_data="two head phantoms",
        licence="Apache-2.0",
    )
    write_package(folder / size, card, weights=network.state_dict(), overwrite=True)
    print(json.dumps({"first": np.mean(losses[:10]), "last": np.mean(losses[-10:]), "cpu_s": time.process_time()}))


def ours(folder: Path, size: str, out: Path, **options: Any) -> dict[str, Any]:
    """Segment with this product."""
    from secure_media_processor.medical.inference.packages import read_package  # noqa: PLC0415 - as above
    from secure_media_processor.medical.unet.inference import Options, segment  # noqa: PLC0415 - as above
    from secure_media_processor.medical.volume import Grid, Volume  # noqa: PLC0415 - as above

    image = Volume(np.asfortranarray(scan(99)[0]), Grid(SHAPE, np.eye(4)))
    package = read_package(folder / size)
    wall, cpu = time.perf_counter(), time.process_time()
    done = segment(image, package, Options(device="cpu", **options))
    figures = _figures(wall, cpu)
    np.save(out, done.labels.array)
    return figures | _about(done)


def monai(folder: Path, size: str, out: Path) -> dict[str, Any]:
    """Segment as one does with torch and MONAI: eager, float32, Gaussian weights, the whole map of logits."""
    import torch  # noqa: PLC0415 - as above

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.inferers import SlidingWindowInferer  # noqa: PLC0415 - as above

    from secure_media_processor.medical.inference.packages import read_package  # noqa: PLC0415 - as above
    from secure_media_processor.medical.unet.engines import network_of  # noqa: PLC0415 - as above

    network = network_of(read_package(folder / size))
    image = torch.from_numpy(scan(99)[0])[None, None]
    image = (image - image.mean()) / image.std(correction=0)
    inferer = SlidingWindowInferer(roi_size=ROI, sw_batch_size=1, overlap=0.5, mode="gaussian")
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        labels = inferer(image, network)[0].argmax(0)
    figures = _figures(wall, cpu)
    np.save(out, labels.numpy().astype(np.uint8))
    return figures


def many_classes(folder: Path) -> dict[str, Any]:
    """Segment 512 x 512 x 800 voxels into 25 classes, with a small network: what is asked is the memory."""
    import torch  # noqa: PLC0415 - as above

    from secure_media_processor.medical.inference.card import (  # noqa: PLC0415 - as above
        Inputs,
        ModelCard,
        Normalization,
        Outputs,
        UNetArchitecture,
    )
    from secure_media_processor.medical.inference.packages import write_package  # noqa: PLC0415 - as above
    from secure_media_processor.medical.unet.inference import Options, segment  # noqa: PLC0415 - as above
    from secure_media_processor.medical.unet.models import UNetConfig, build_unet  # noqa: PLC0415 - as above
    from secure_media_processor.medical.volume import Grid, Volume  # noqa: PLC0415 - as above

    torch.manual_seed(0)
    config = UNetConfig("residual", 3, 1, 25, (8, 16, 32, 64))
    card = ModelCard(
        name="many-classes",
        version="1",
        task="segment",
        architecture=UNetArchitecture.of(config),
        inputs=Inputs(channels=("phantom",), roi=(ROI,) * 3, normalization=Normalization(method="zscore")),
        outputs=Outputs(labels={str(value): f"class {value}" for value in range(25)}),
        intended_use="benchmarks",
        limitations="random weights",
        training_data="none",
        licence="Apache-2.0",
    )
    package = write_package(folder / "many", card, weights=build_unet(config).state_dict(), overwrite=True)
    shape = (512, 512, 800)
    rng = np.random.default_rng(0)
    array = np.empty(shape, np.float32, order="F")
    for k in range(shape[2]):
        array[:, :, k] = rng.standard_normal(shape[:2], np.float32)
    wall, cpu = time.perf_counter(), time.process_time()
    done = segment(Volume(array, Grid(shape, np.eye(4))), package, Options(device="cpu"))
    return _figures(wall, cpu) | _about(done)


def _about(done: Any) -> dict[str, Any]:
    return {
        "engine": f"{done.choice.engine} {done.choice.precision}",
        "windows": f"{done.windows} of {'x'.join(map(str, done.window))}",
        "expected_gb": round(done.peak_memory / 1e9, 3),
    }


def dice(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> list[float]:
    """Return the Dice coefficient of each label but the first."""
    pairs = [(a == label, b == label) for label in range(1, len(TISSUES))]
    return [float(2 * (one & other).sum() / max(one.sum() + other.sum(), 1)) for one, other in pairs]


def part_inference(folder: Path, _rounds: int) -> dict[str, Any]:
    """Run everything once, each step in a process of its own, and return the figures as benchmarks/medical.py keeps them."""
    figures: dict[str, dict[str, Any]] = {}
    bars: list[dict[str, Any]] = []
    for size, most in BARS.items():
        _compare(folder, size, figures)
        ours, peer = figures[f"{size}, smp"], figures[f"{size}, torch and MONAI"]
        name = f"inference, {size} network"
        bars += [
            _bar(f"{name}: CPU time, in multiples of torch's eager float32 with MONAI", ours["cpu_s"] / peer["cpu_s"], most),
            _bar(f"{name}: mean Dice against that", ours["dice_against_peer"], 0.999, at_most=False),
            _bar(f"{name}: peak memory, GB", ours["peak_gb"], 2.0),
        ]
    figures["25 classes, 512 x 512 x 800"] = _start("many-classes", folder)
    bars.append(_bar("inference, 25 classes: peak memory, GB", figures["25 classes, 512 x 512 x 800"]["peak_gb"], 3.0))
    return {"roi": ROI, "networks": {size: list(NETWORKS[size][0]) for size in BARS}, "figures": figures, "bars": bars}


def _compare(folder: Path, size: str, figures: dict[str, dict[str, Any]]) -> None:
    if not (folder / size).exists():
        _start("train", folder, size)
    sides = {"smp": "ours", "torch and MONAI": "monai"}
    found = {name: _start(kind, folder, size, folder / f"{kind}.npy") for name, kind in sides.items()}
    labels = {name: np.load(folder / f"{kind}.npy") for name, kind in sides.items()}
    truth = scan(99)[1]
    for name in sides:
        found[name]["dice_against_truth"] = round(float(np.mean(dice(labels[name], truth))), 5)
        found[name]["dice_against_peer"] = round(float(np.mean(dice(labels[name], labels["torch and MONAI"]))), 5)
        figures[f"{size}, {name}"] = found[name]


def _bar(text: str, measured: float, limit: float, *, at_most: bool = True) -> dict[str, Any]:
    met = measured <= limit if at_most else measured >= limit
    return {"bar": text, "limit": limit, "at_most": at_most, "measured": round(measured, 4), "met": met}


def _start(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _figures(wall: float, cpu: float) -> dict[str, Any]:
    return {
        "cpu_s": round(time.process_time() - cpu, 2),
        "wall_s": round(time.perf_counter() - wall, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
    }


def main() -> None:
    """Do one step, and print its figures as JSON."""
    match sys.argv[1:]:
        case ["train", folder, size]:
            train(Path(folder), size)
        case ["ours", folder, size, out, *more]:
            print(json.dumps(ours(Path(folder), size, Path(out), **(json.loads(more[0]) if more else {}))))
        case ["monai", folder, size, out]:
            print(json.dumps(monai(Path(folder), size, Path(out))))
        case ["many-classes", folder]:
            print(json.dumps(many_classes(Path(folder))))
        case []:
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps(part_inference(Path(folder), 1), indent=1))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
