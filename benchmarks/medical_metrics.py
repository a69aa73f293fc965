"""HD95 and ASSD of two masks of 256 x 256 x 256 voxels against MONAI's.

Each side runs in a process of its own on the same two masks (a ball with bumps, and the same with other bumps; Dice about 0.98,
some 85,000 surface voxels each, spacing 1.0 x 0.9 x 1.2 mm). CPU seconds of all threads, the best of three runs after a first
one; peak resident memory of the process, libraries included. MONAI's two figures are two calls, as its users make them.

    python benchmarks/medical_metrics.py
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
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE = 256
SPACING = (1.0, 0.9, 1.2)
BAR = 0.5
SAME = 1e-4
RUNS = 3


def write_masks(folder: Path) -> float:
    """Write prediction.npy and truth.npy, and return their Dice."""
    from scipy import ndimage  # noqa: PLC0415 - each process imports what it needs

    from secure_media_processor.medical.unet.metrics import dice  # noqa: PLC0415 - as above

    rng = np.random.default_rng(0)
    axes = (np.arange(SIDE, dtype=np.float32) - SIDE / 2) / np.array([[1.0], [0.9], [1.1]], dtype=np.float32)
    radius = np.sqrt(sum(axis**2 for axis in np.ix_(*axes)))

    def bumps(knots: int) -> np.ndarray[Any, Any]:
        coarse = rng.standard_normal((knots,) * 3).astype(np.float32)
        return ndimage.zoom(coarse, SIDE / knots, order=1)

    shape = radius + 6 * bumps(17)
    truth, prediction = shape < 85, shape + 2.5 * bumps(33) < 84  # noqa: PLR2004 - voxels
    np.save(folder / "truth.npy", truth)
    np.save(folder / "prediction.npy", prediction)
    return dice(prediction, truth)


def ours(prediction: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> Callable[[], tuple[float, float]]:
    """Return what is measured of our side."""
    from secure_media_processor.medical.unet.metrics import surface_distances  # noqa: PLC0415 - as above

    def measure() -> tuple[float, float]:
        found = surface_distances(prediction, truth, SPACING)
        return found.hd95, found.assd

    return measure


def monai(prediction: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> Callable[[], tuple[float, float]]:
    """Return what is measured of MONAI."""
    warnings.simplefilter("ignore")
    import torch  # noqa: PLC0415 - as above
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance  # noqa: PLC0415 - as above

    masks = [torch.from_numpy(mask[None, None]) for mask in (prediction, truth)]

    def measure() -> tuple[float, float]:
        hd95 = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=SPACING)
        assd = compute_average_surface_distance(*masks, include_background=True, symmetric=True, spacing=SPACING)
        return float(hd95), float(assd)

    return measure


def one_side(side: str, folder: Path) -> dict[str, float]:
    """Measure in this process."""
    masks = np.load(folder / "prediction.npy"), np.load(folder / "truth.npy")
    measure = {"ours": ours, "monai": monai}[side](*masks)
    hd95, assd = measure()
    seconds = []
    for _ in range(RUNS):
        start = time.process_time()
        measure()
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"hd95": hd95, "assd": assd, "cpu_seconds": round(min(seconds), 3), "peak_mib": round(peak)}


def metrics() -> dict[str, Any]:
    """Return both sides, their ratio, and whether the bar is met."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overlap = write_masks(folder)
        sides = {}
        for side in ("monai", "ours"):
            command = [sys.executable, __file__, side, name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            sides[side] = json.loads(done.stdout)
    ratio = sides["ours"]["cpu_seconds"] / sides["monai"]["cpu_seconds"]
    apart = max(abs(sides["ours"][name] - sides["monai"][name]) for name in ("hd95", "assd"))
    return {
        "voxels": [SIDE] * 3,
        "spacing": SPACING,
        "dice": round(overlap, 4),
        **sides,
        "cpu_ratio": round(ratio, 3),
        "bar": BAR,
        "largest_difference": apart,
        "met": ratio <= BAR and apart <= SAME,
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one_side(sys.argv[1], Path(sys.argv[2]))))
    else:
        print(json.dumps(metrics(), indent=2))
