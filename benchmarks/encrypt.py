"""How long it takes to encrypt and decrypt a large file, against age, cp and AES-GCM over the whole file at once.

    python benchmarks/encrypt.py [--size MIB] [--rounds N]

Every command runs as a whole process. In each round all of them run once, one after the other, and each is compared with age in
the same round, so that a machine that slows down slows all of them; the median over the rounds is what counts. Files lie in a
RAM-backed folder; each output is removed before the next command. age comes from the system (Debian package age).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "encrypt.json"
RAM_FOLDER = Path("/dev/shm")  # noqa: S108 - a private folder is made in it
MIB = 1 << 20

# What a script without a library does: fine for small files, and the reason why large ones need chunks.
WHOLE_FILE = """
import os, sys, hashlib
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
data = open(sys.argv[1], "rb").read()
hashlib.sha256(data).digest()
with open(sys.argv[2], "wb") as out:
    nonce = os.urandom(12)
    out.write(nonce + AESGCM(os.urandom(32)).encrypt(nonce, data, None))
"""


@dataclass(frozen=True)
class Sample:
    """One run of one command."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of user and system time."""
    rss: float
    """Peak resident memory in MiB."""


def run(command: list[str], output: Path, environment: dict[str, str]) -> Sample:
    """Run `command`, which writes `output`, and measure it. Raises CalledProcessError if it fails."""
    output.unlink(missing_ok=True)
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=process.stderr.read())  # type: ignore[union-attr]
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def age_version(age: str) -> str:
    """Return what age says of itself."""
    return subprocess.run([age, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def prepare(folder: Path, size: int, environment: dict[str, str]) -> tuple[str, str, Path]:
    """Write the plaintext and the keys. Returns age's program, its recipient, and smp's key file."""
    age, keygen = shutil.which("age"), shutil.which("age-keygen")
    if not age or not keygen:
        sys.exit("age is not installed: apt-get install age")
    with (folder / "plain").open("wb") as file:
        for _ in range(size):
            file.write(os.urandom(MIB))
    subprocess.run([keygen, "-o", folder / "age.key"], check=True, capture_output=True)
    recipient = next(line for line in (folder / "age.key").read_text().splitlines() if "public key" in line).split()[-1]
    smp = [sys.executable, "-m", "secure_media_processor"]
    made = subprocess.run([*smp, "key", "generate", "-q"], check=True, capture_output=True, text=True, env=environment)
    return age, recipient, Path(environment["SMP_KEYSTORE"]) / f"{made.stdout.strip()}.key"


def measure(folder: Path, size: int, rounds: int) -> dict[str, object]:
    """Run all commands `rounds` times in turn and return the figures."""
    environment = {**os.environ, "SMP_KEYSTORE": str(folder / "keys"), "SMP_AUDIT_LOG": str(folder / "audit" / "audit.jsonl")}
    age, recipient, key = prepare(folder, size, environment)
    plain, sealed, aged, output = (str(folder / name) for name in ("plain", "plain.smp", "plain.age", "output"))
    python, smp = sys.executable, [sys.executable, "-m", "secure_media_processor"]
    subprocess.run([*smp, "encrypt", plain, "-o", sealed, "--key", key, "-q"], check=True, env=environment)
    subprocess.run([age, "-r", recipient, "-o", aged, plain], check=True)
    one_core = ["taskset", "-c", "0"]
    commands = {
        "encrypt": {
            "age": [age, "-r", recipient, "-o", output, plain],
            "smp": [*smp, "encrypt", plain, "-o", output, "--key", str(key), "-q"],
            "smp, one core": [*one_core, *smp, "encrypt", plain, "-o", output, "--key", str(key), "-q"],
            "cp": ["cp", plain, output],
            "whole-file AESGCM + SHA-256": [python, "-c", WHOLE_FILE, plain, output],
        },
        "decrypt": {
            "age": [age, "-d", "-i", str(folder / "age.key"), "-o", output, aged],
            "smp": [*smp, "decrypt", sealed, "-o", output, "--key", str(key), "-q"],
        },
    }
    figures: dict[str, object] = {}
    for direction, peers in commands.items():
        samples: dict[str, list[Sample]] = {name: [] for name in peers}
        for number in range(rounds + 1):
            for name, command in peers.items():
                sample = run(command, Path(output), environment)
                if number:  # the first round warms up
                    samples[name].append(sample)
            print(f"{direction}: round {number} of {rounds} done", file=sys.stderr)
        figures[direction] = {name: summarize(samples[name], samples["age"]) for name in peers}
    return {
        "size_mib": size,
        "rounds": rounds,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": next(
            (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "?"
        ),
        "cores": len(os.sched_getaffinity(0)),
        "age": age_version(age),
        "python": platform.python_version(),
        "cryptography": version("cryptography"),
        "figures": figures,
    }


def summarize(samples: list[Sample], age: list[Sample]) -> dict[str, float]:
    """Return medians, and the median of the ratios to age round by round."""
    return {
        "wall_s": round(statistics.median(s.wall for s in samples), 3),
        "cpu_s": round(statistics.median(s.cpu for s in samples), 3),
        "rss_mib": round(max(s.rss for s in samples), 1),
        "wall_vs_age": round(statistics.median(s.wall / a.wall for s, a in zip(samples, age, strict=True)), 3),
        "best_vs_age": round(min(s.wall for s in samples) / min(a.wall for a in age), 3),
    }


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of random data (default 1024)")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds (default 7)")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=RAM_FOLDER, prefix="smp-bench-") as name:
        results = measure(Path(name), options.size, options.rounds)
    for direction, peers in results["figures"].items():  # type: ignore[attr-defined]
        print(f"\n{direction:28} {'wall s':>8} {'CPU s':>8} {'MiB':>7} {'vs age':>7} {'best':>6}")
        for peer, row in peers.items():
            figures = f"{row['wall_s']:8.2f} {row['cpu_s']:8.2f} {row['rss_mib']:7.0f}"
            print(f"{peer:28} {figures} {row['wall_vs_age']:7.2f} {row['best_vs_age']:6.2f}")
    if not options.no_save:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
