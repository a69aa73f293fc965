"""How good and how quick the imaging methods are, against the tools that people use.

    python benchmarks/medical.py [--part NAME]... [--rounds N]

Parts:
    n4      Bias field on a phantom with a known one: residual, CPU time and memory, against ANTs.
    nlm     Noise on the same phantom, 5 % Rician: PSNR, SSIM, CPU time and memory, against scikit-image.
    inference  Windows over the whole phantom with trained networks, against torch eager and MONAI; it trains them first.

The phantom is that of the tests, 256 x 256 x 160 voxels. Every command runs as a whole process, start-up, reading and writing
of arrays included, and a second time without the method in question; what it costs is the difference. In each round all of them
run once, one after the other, and each is compared with its peer in the same round; the median over the rounds counts. Times
are CPU seconds of all threads together. Arrays lie in a RAM-backed folder. Each part replaces its own figures in
benchmarks/results/medical.json and leaves the others.

ANTs (antspyx) and scikit-image are run by the Pythons that the variables ANTS_PYTHON and SKIMAGE_PYTHON name. Without them only
our own figures are measured, and the bars against them are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medical_inference import part_inference
from whole_process import RAM_FOLDER, Sample, machine, run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from unit.medical import phantoms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESULTS = Path(__file__).parent / "results" / "medical.json"
SHAPE = (256, 256, 160)
SIGMA = 0.05
N4_SIGMA = 0.02

# Each program gets: input, mask, output, and the name of what it does; "none" stands for everything else.
OURS = """
import sys
import numpy as np
image, mask, target, method = *map(np.load, sys.argv[1:3]), *sys.argv[3:]
from secure_media_processor.medical.preprocessing.bias import divided, n4, bias_field
from secure_media_processor.medical.preprocessing.denoise import anisotropic_diffusion, median, non_local_means
match method:
    case "none": result = image
    case "n4": result = n4(image, mask, (1.0, 1.0, 1.0))[1]
    case "n4-otsu": result = n4(image, None, (1.0, 1.0, 1.0))[1]
    case "nlm": result = non_local_means(image, sigma=0.05)
    case "nlm-estimated": result = non_local_means(image)
    case "anisotropic": result = anisotropic_diffusion(image, (1.0, 1.0, 1.0))
    case "median": result = median(image)
np.save(target, result)
"""
ANTS = """
import sys
import numpy as np
import ants
image, mask, target, method = *map(np.load, sys.argv[1:3]), *sys.argv[3:]
result = image
if method == "n4":
    result = np.log(ants.n4_bias_field_correction(ants.from_numpy(image), mask=ants.from_numpy(mask.astype(np.float32)),
        shrink_factor=4, convergence={"iters": [50] * 4, "tol": 1e-3}, return_bias_field=True).numpy())
np.save(target, result)
"""
SKIMAGE = """
import sys
import numpy as np
from skimage.restoration import denoise_nl_means
image, mask, target, method = *map(np.load, sys.argv[1:3]), *sys.argv[3:]
result = image
if method == "nlm":
    result = denoise_nl_means(image, patch_size=3, patch_distance=3, h=0.8 * 0.05, sigma=0.05, fast_mode=True)
np.save(target, result.astype(np.float32))
"""


# The peak that the system names for a child begins at that of its parent, which holds the phantom; this is its own.
PEAK = """
lines = open("/proc/self/status").read().splitlines()
open(target + ".peak", "w").write(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


@dataclass(frozen=True)
class Program:
    """Something that is measured."""

    python: str | None
    """Interpreter; None if it is not there."""
    script: str
    method: str


def measure_programs(
    programs: Mapping[str, Program],
    arrays: Mapping[str, Path],
    rounds: int,
    score: Callable[[np.ndarray], dict[str, float]],
) -> dict[str, dict[str, Any]]:
    """Run all programs in turn; return medians over the rounds of what they cost beyond reading and writing, and their scores.

    Args:
        programs: By name.
        arrays: Paths of "image" and "mask".
        rounds: How many.
        score: Gets the result of a program.
    """
    target = arrays["image"].with_name("result.npy")
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "HOME": str(target.parent)}
    there = {name: program for name, program in programs.items() if program.python is not None}
    for name in programs.keys() - there.keys():
        print(f"{name}: not measured, as no interpreter is named for it", file=sys.stderr)
    samples: dict[str, list[tuple[Sample, Sample]]] = {name: [] for name in there}
    scores: dict[str, dict[str, float]] = {}

    def measured(program: Program, method: str) -> Sample:
        command = [str(program.python), "-c", program.script + PEAK, str(arrays["image"]), str(arrays["mask"]), str(target)]
        found = run([*command, method], target.parent, environment)
        return replace(found, rss=int(Path(f"{target}.peak").read_text()) / 1024)

    for program in there.values():  # what is imported is then in the cache of the system
        measured(program, "none")
    for number in range(rounds):
        for name, program in there.items():
            bare = measured(program, "none")
            samples[name].append((measured(program, program.method), bare))
            scores[name] = scores.get(name) or score(np.load(target))
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    return {
        name: {
            "cpu_s": round(statistics.median(full.cpu - bare.cpu for full, bare in found), 2),
            "wall_s": round(statistics.median(full.wall - bare.wall for full, bare in found), 2),
            "whole_process_cpu_s": round(statistics.median(full.cpu for full, _ in found), 2),
            "rss_mib": round(max(full.rss for full, _ in found), 1),
            "rss_beyond_none_mib": round(max(full.rss - bare.rss for full, bare in found), 1),
            "cpu_by_round": [round(full.cpu - bare.cpu, 2) for full, bare in found],
            **scores[name],
        }
        for name, found in samples.items()
    }


def ratio_by_round(figures: dict[str, dict[str, Any]], name: str, peer: str) -> float:
    """Return the median over the rounds of the ratio of CPU times."""
    pairs = zip(figures[name]["cpu_by_round"], figures[peer]["cpu_by_round"], strict=True)
    return round(statistics.median(own / other for own, other in pairs), 3)


def bar(text: str, measured: float, *, most: float | None = None, least: float | None = None) -> dict[str, Any]:
    """Return what was wanted, what was measured, and whether that is enough."""
    limit = most if most is not None else least
    met = (most is None or measured <= most) and (least is None or measured >= least)
    return {"bar": text, "limit": limit, "at_most": most is not None, "measured": round(measured, 3), "met": met}


def saved(folder: Path, **arrays: np.ndarray) -> dict[str, Path]:
    """Write arrays to files and return their paths."""
    found = {}
    for name, array in arrays.items():
        found[name] = folder / f"{name}.npy"
        np.save(found[name], array)
    return found


def part_n4(folder: Path, rounds: int) -> dict[str, Any]:
    """Measure the correction of bias fields."""
    head = phantoms.head(SHAPE)
    truth = phantoms.log_bias(SHAPE)
    image = phantoms.rician(head.image * np.exp(truth), N4_SIGMA)
    arrays = saved(folder, image=image, mask=head.brain)
    white = head.tissue == phantoms.WHITE
    own = truth[head.brain].std(dtype=np.float64)

    def score(field: np.ndarray) -> dict[str, float]:
        flat = image[white] / np.exp(field[white])
        left = (field - truth)[head.brain].std(dtype=np.float64)
        return {
            "residual_of_true": round(float(left / own), 4),
            "white_matter_cv": round(float(flat.std(dtype=np.float64) / flat.mean(dtype=np.float64)), 4),
        }

    programs = {
        "ANTs": Program(os.environ.get("ANTS_PYTHON"), ANTS, "n4"),
        "smp": Program(sys.executable, OURS, "n4"),
        "smp, Otsu's mask": Program(sys.executable, OURS, "n4-otsu"),
    }
    figures = measure_programs(programs, arrays, rounds, score)
    bars = [
        bar("N4: residual bias in the brain, in multiples of the true one", figures["smp"]["residual_of_true"], most=0.70),
        bar("N4: the same with Otsu's mask", figures["smp, Otsu's mask"]["residual_of_true"], most=0.70),
    ]  # fmt: skip
    if "ANTs" in figures:
        bars += [
            bar("N4: CPU time, in multiples of ANTs'", ratio_by_round(figures, "smp", "ANTs"), most=1.0),
            bar("N4: peak memory, in multiples of ANTs'", figures["smp"]["rss_mib"] / figures["ANTs"]["rss_mib"], most=0.5),
        ]
    return {"true_log_bias_std": round(float(own), 4), "noise": N4_SIGMA, "figures": figures, "bars": bars}


def part_nlm(folder: Path, rounds: int) -> dict[str, Any]:
    """Measure the removal of noise."""
    head = phantoms.head(SHAPE)
    image = phantoms.rician(head.image, SIGMA)
    arrays = saved(folder, image=image, mask=head.brain)

    def score(found: np.ndarray) -> dict[str, float]:
        return {
            "psnr_db": round(phantoms.psnr(found, head.image, head.brain), 2),
            "ssim": round(phantoms.ssim(found, head.image, head.brain), 4),
        }

    programs = {
        "scikit-image": Program(os.environ.get("SKIMAGE_PYTHON"), SKIMAGE, "nlm"),
        "smp": Program(sys.executable, OURS, "nlm"),
        "smp, sigma estimated": Program(sys.executable, OURS, "nlm-estimated"),
        "smp, anisotropic": Program(sys.executable, OURS, "anisotropic"),
        "smp, median": Program(sys.executable, OURS, "median"),
    }
    figures = measure_programs(programs, arrays, rounds, score)
    noisy = score(image)
    volume = image.nbytes / 1024**2
    bars = [
        bar("NLM: PSNR gained in the brain, dB", figures["smp"]["psnr_db"] - noisy["psnr_db"], least=4.0),
        bar("NLM: SSIM in the brain", figures["smp"]["ssim"], least=0.93),
        bar("NLM: memory beyond reading and writing, in volumes of float32", figures["smp"]["rss_beyond_none_mib"] / volume,
            most=2.0),
    ]  # fmt: skip
    if "scikit-image" in figures:
        ratio = ratio_by_round(figures, "smp", "scikit-image")
        bars.append(bar("NLM: CPU time, in multiples of scikit-image's nl_means", ratio, most=0.7))
    return {"noise": SIGMA, "noisy": noisy, "figures": figures, "bars": bars}


PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {"n4": part_n4, "nlm": part_nlm, "inference": part_inference}


def show(name: str, part: dict[str, Any]) -> None:
    """Print the figures of a part."""
    rows = part.get("figures", {})
    columns = [key for key in next(iter(rows.values()), {}) if key != "cpu_by_round"]
    print(f"\n{name:24}" + "".join(f"{key:>22}" for key in columns))
    for row, figures in rows.items():
        print(f"{row:24}" + "".join(f"{figures.get(key, ''):>22}" for key in columns))
    print()
    for one in part["bars"]:
        word = "most" if one["at_most"] else "least"
        print(f"{'met' if one['met'] else 'MISSED':7} {one['bar']}: {one['measured']}, at {word} {one['limit']} wanted")


def main() -> None:
    """Measure, print tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="what to measure (default: everything)")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default 3)")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.part or sorted(PARTS):
        with tempfile.TemporaryDirectory(dir=RAM_FOLDER if RAM_FOLDER.is_dir() else None, prefix="smp-bench-") as folder:
            part = PARTS[name](Path(folder), options.rounds)
        libraries = {library: version(library) for library in ("numpy", "scipy", "SimpleITK")}
        results[name] = {"shape": SHAPE, "rounds": options.rounds, **machine(), **libraries, **part}
        show(name, results[name])
        if not options.no_save:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
