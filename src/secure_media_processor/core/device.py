"""What this machine can compute on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


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


def _cpu() -> Device:
    name = platform.machine()
    flags: set[str] = set()
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    # What makes AES-GCM and SHA-256 fast; x86 and ARM have their own names for them.
    wanted = [flag for flag in ("aes", "vaes", "sha_ni", "sha2") if flag in flags]
    return Device("cpu", name, f"{len(os.sched_getaffinity(0))} cores usable; {' '.join(wanted) or 'no AES instructions'}")


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
