"""How well `smp medical train` learns: every variant with every loss, on a folder of labelled volumes.

    python benchmarks/hippocampus.py --images DIR --labels DIR [--cpu-minutes N | --steps N] [--long N]

The data are the hippocampus volumes of the Medical Segmentation Decathlon (task 4; Antonelli 2022,
doi:10.1038/s41467-022-30695-9; CC BY-SA 4.0), which do not come with this program: images and label maps with equal file names,
1 anterior, 2 posterior. A fifth of the cases is kept apart, the same in all runs, and no run sees them. Each run is a whole
process with one thread, one after the other; CPU seconds are those of training alone, and of the whole process. With --long the
first variant and loss named is trained once more for so many CPU minutes.

Other programs on the same cores make a step cost more CPU seconds: with --cpu-minutes a busy machine gives worse figures.
With --steps figures do not depend on that, only the CPU seconds do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from whole_process import machine

RESULTS = Path(__file__).parent / "results" / "hippocampus.json"
VARIANTS = ["residual", "standard", "attention"]
LOSSES = ["dice-ce", "dice", "bce-dice", "focal", "tversky"]
LABELS = {"1": "anterior", "2": "posterior"}
WANTED = 0.86
"""Mean Dice of both labels, by the long run, in at most 30 CPU minutes."""


def train(options: argparse.Namespace, folder: Path, variant: str, loss: str, budget: list[str]) -> dict[str, Any]:
    """Train once; return what the run printed, and what the process cost."""
    command = [sys.executable, "-m", "secure_media_processor", "-v", "medical", "train", str(folder / f"{variant}-{loss}")]
    command += ["--images", str(options.images), "--labels", str(options.labels), "--variant", variant, "--loss", loss]
    command += ["--threads", "1", "--seed", str(options.seed), "--force", "--json", *budget]
    for label, name in LABELS.items():
        command += ["--label", f"{label}={name}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SMP_AUDIT_LOG": str(folder / "audit.jsonl")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        printed = process.stdout.read() if process.stdout is not None else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    found = json.loads(printed)
    return {
        "variant": variant,
        "loss": loss,
        "parameters": found["parameters"],
        "steps": found["steps"],
        "cpu_s": round(found["cpu_seconds"], 1),
        "process_cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "training": found["training"],
        "validation": found["validation"],
        "package_bytes": sum(path.stat().st_size for path in Path(found["package"]).iterdir()),
        "figures": found["figures"],
    }


def figure(row: dict[str, Any], label: str, metric: str) -> dict[str, Any]:
    """Return one figure of a run; NaN where the run could not give it."""
    wanted = (one for one in row["figures"] if (one["label"], one["metric"]) == (label, metric))
    return next(wanted, {"mean": float("nan"), "low": None, "high": None})


def shown(row: dict[str, Any]) -> str:
    """Return a run as a line of a Markdown table."""
    mean = figure(row, "mean of the labels", "dice")
    interval = "" if mean["low"] is None else f"{mean['low']:.3f}-{mean['high']:.3f}"
    labels = " | ".join(f"{figure(row, name, 'dice')['mean']:.3f}" for name in LABELS.values())
    far = " / ".join(f"{figure(row, name, 'hd95')['mean']:.2f}" for name in LABELS.values())
    return (
        f"| {row['variant']} | {row['loss']} | {row['steps']} | {row['cpu_s']:.0f} | {mean['mean']:.3f} | {interval} "
        f"| {labels} | {far} |"
    )


def main() -> None:
    """Train, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--labels", type=Path, required=True, help="folder of label maps")
    parser.add_argument("--cpu-minutes", type=float, default=4, help="for each run (default 4)")
    parser.add_argument("--steps", type=int, help="for each run, instead")
    parser.add_argument("--long", type=float, help="CPU minutes of one more run, of the first variant and loss")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    budget = ["--steps", str(options.steps)] if options.steps else ["--cpu-minutes", str(options.cpu_minutes)]
    header = "| variant | loss | steps | CPU s | mean Dice | 95 % interval | anterior | posterior | HD95 mm |"
    print(header, "|---" * 9 + "|", sep="\n", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="smp-bench-") as name:
        for variant in options.variants:
            for loss in options.losses:
                rows.append(train(options, Path(name), variant, loss, budget))
                print(shown(rows[-1]), flush=True)
        results: dict[str, Any] = {**machine(), "seed": options.seed, "budget": budget, "runs": rows}
        if options.long:
            long = ["--cpu-minutes", str(options.long)]
            row = train(options, Path(name), options.variants[0], options.losses[0], long)
            print(shown(row), flush=True)
            mean = figure(row, "mean of the labels", "dice")["mean"]
            results |= {"long": row, "bar": {"limit": WANTED, "measured": mean, "met": mean >= WANTED}}
    if not options.no_save:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
