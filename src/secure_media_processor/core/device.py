"""What this machine can compute on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
_MEMORY = Path("/proc/meminfo")
# Folder of the control group, and the names of what it may have and has; of versions 2 and 1.
_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Device:
    """A processor or an accelerator."""

    kind: str
    """"cpu" or "cuda"."""
    name: str
    detail: str


def devices() -> list[Device]:
    """Return the CPU, then each NVIDIA GPU whose driver is loaded. Asks the kernel only: no library is imported."""
    return [_cpu(), *_nvidia_gpus()]


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def has_bfloat16() -> bool:
    """Return whether the CPU computes with 16-bit brain floats by itself (AVX-512 or AMX on x86, or ARM)."""
    return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def available_memory() -> int:
    """Return the bytes that this process can still get: what the system has free, or less if its control group allows less."""
    free = next((int(line.split()[1]) * 1024 for line in _lines(_MEMORY) if line.startswith("MemAvailable:")), 1 << 62)
    for folder, most, used in _GROUPS:
        limit, taken = ("".join(_lines(folder / name)).strip() for name in (most, used))
        if limit.isdigit() and taken.isdigit():
            # Files that were read count as taken, and are given up when memory is wanted.
            cached = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.startswith("inactive_file ")]
            free = min(free, max(int(limit) - int(taken) + sum(cached), 0))
    return free


def _cpu_flags() -> set[str]:
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _cpu() -> Device:
    name = platform.machine()
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
            break
    flags = _cpu_flags()
    # What makes AES-GCM and SHA-256 fast; x86 and ARM have their own names for them.
    wanted = [flag for flag in ("aes", "vaes", "sha_ni", "sha2") if flag in flags]
    return Device("cpu", name, f"{usable_cores()} cores usable; {' '.join(wanted) or 'no AES instructions'}")


def _nvidia_gpus() -> list[Device]:
    found = []
    for information in sorted(_NVIDIA_GPUS.glob("*/information")):
        fields = dict(line.split(":", 1) for line in _lines(information) if ":" in line)
        found.append(Device("cuda", fields.get("Model", "unknown").strip(), information.parent.name))
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:  # no such file on this system: the caller's answer without it is right
        return []
