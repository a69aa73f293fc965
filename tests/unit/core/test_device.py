"""What this machine can compute on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secure_media_processor.core import device


def test_what_is_there() -> None:
    assert device.usable_cores() == len(os.sched_getaffinity(0))
    assert device.devices()[0].kind == "cpu"
    assert device.available_memory() > 0


@pytest.mark.parametrize(
    ("flags", "found"),
    [("flags\t: sse avx512_bf16", True), ("Features : asimd bf16", True), ("flags : avx2", False), ("", False)],
)
def test_bfloat16(monkeypatch: pytest.MonkeyPatch, flags: str, *, found: bool) -> None:
    monkeypatch.setattr(device, "_lines", lambda _path: flags.splitlines())
    assert device.has_bfloat16() is found


def test_a_container_has_less_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 4000 kB\n")
    monkeypatch.setattr(device, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(device, "_GROUPS", ((tmp_path, "memory.max", "memory.current"),))
    assert device.available_memory() == 4000 * 1024
    (tmp_path / "memory.current").write_text("2000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert device.available_memory() == 4000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    assert device.available_memory() == 1000000
    (tmp_path / "memory.stat").write_text("active_file 5\ninactive_file 500000\n")
    assert device.available_memory() == 1500000
