"""Timing commands as whole processes, one after the other in each round, and comparing each with a named peer."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RAM_FOLDER = Path("/dev/shm")  # noqa: S108 - a private folder is made in it


@dataclass(frozen=True)
class Sample:
    """One run of one command."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of user and system time."""
    rss: float
    """Peak resident memory in MiB."""


@dataclass(frozen=True)
class Step:
    """One kind of transfer by several programs."""

    name: str
    peer: str
    """Name of the command that the others are compared with."""
    commands: Mapping[str, list[str]]
    prepare: Callable[[str], None]
    """Called before each run with the name of the command."""
    check: Callable[[str], None]
    """Called after each run; RuntimeError if something is missing or wrong."""


def run(command: list[str], folder: Path, environment: dict[str, str]) -> Sample:
    """Run `command` in `folder` and measure it. Raises CalledProcessError if it fails."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            error = subprocess.CalledProcessError(process.returncode, command)
            error.add_note(errors.read().decode(errors="replace"))
            raise error
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure_step(step: Step, rounds: int, programs: set[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run the commands of a step `rounds` times in turn and return the figures."""
    commands = {name: command for name, command in step.commands.items() if name in programs}
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            step.prepare(name)
            sample = run(command, folder, environment)
            step.check(name)
            if number:  # the first round warms up
                samples[name].append(sample)
        print(f"{step.name}: round {number} of {rounds} done", file=sys.stderr)
    return {name: summarize(samples[name], samples[step.peer], step.peer) for name in commands}


def summarize(samples: list[Sample], peer: list[Sample], peer_name: str) -> dict[str, float]:
    """Return medians, and the median of the ratios to the peer round by round."""
    return {
        "wall_s": round(statistics.median(s.wall for s in samples), 3),
        "cpu_s": round(statistics.median(s.cpu for s in samples), 3),
        "rss_mib": round(max(s.rss for s in samples), 1),
        f"wall_vs_{peer_name}": round(statistics.median(s.wall / p.wall for s, p in zip(samples, peer, strict=True)), 3),
        f"best_vs_{peer_name}": round(min(s.wall for s in samples) / min(p.wall for p in peer), 3),
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the programs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": next((line.split(":")[1].strip() for line in lines if "model name" in line), "?"),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
