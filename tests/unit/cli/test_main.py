"""The frame of the command line: help, laziness, errors, completion."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from conftest import Ran
from secure_media_processor import __version__
from secure_media_processor.cli import crypto
from secure_media_processor.cli.lazy import LazyGroup
from secure_media_processor.cli.main import main
from secure_media_processor.cli.medical.group import medical

HEAVY = {
    "SimpleITK", "asyncio", "boto3", "cryptography", "cv2", "importlib.metadata", "nibabel", "numpy", "onnx", "onnxruntime",
    "openvino", "platformdirs", "pydantic", "pydicom", "rich", "scipy", "torch",
}  # fmt: skip

REPORT_MODULES = """
import sys
from secure_media_processor.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("\\n".join(sorted(sys.modules)), file=sys.stderr)
"""


def loaded_by(*args: str, env: dict[str, str] | None = None) -> set[str]:
    command = [sys.executable, "-c", REPORT_MODULES, *args]
    done = subprocess.run(command, capture_output=True, check=False, text=True, env={**os.environ, **(env or {})}, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_help_version_and_completion_load_nothing_of_weight() -> None:
    assert loaded_by("--help") & HEAVY == set()
    assert loaded_by("medical", "--help") & HEAVY == set()
    assert loaded_by("--version") & HEAVY == set()
    completing = {"_SMP_COMPLETE": "bash_complete", "COMP_WORDS": "smp enc", "COMP_CWORD": "1"}
    assert loaded_by(env=completing) & HEAVY == set()


@pytest.mark.parametrize("command", ["convert", "evaluate", "preprocess", "segment", "train"])
def test_help_of_an_analysis_does_not_load_what_it_computes_with(command: str) -> None:
    needed_anyway = {"asyncio", "cryptography", "importlib.metadata", "platformdirs", "pydantic", "rich"}
    assert loaded_by("medical", command, "--help") & (HEAVY - needed_anyway) == set()


def test_encrypting_loads_what_it_needs_and_no_more(work: Path, key_file: Path) -> None:
    (work / "in").write_bytes(b"data")
    needless = {"pydicom", "numpy", "rich", "boto3", "torch"}
    assert loaded_by("encrypt", "in", "--key", str(key_file)) & needless == set()


@pytest.mark.parametrize("group", [main, medical], ids=["smp", "smp medical"])
def test_the_table_of_commands_says_what_they_say_themselves(group: LazyGroup) -> None:
    context = click.Context(group)
    for section in group.sections.values():
        for name, (_, _, line) in section.items():
            command = group.get_command(context, name)
            assert command is not None
            assert command.name == name
            assert command.get_short_help_str(limit=200) == line


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    context = click.Context(group)
    found: list[tuple[str, ...]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


@pytest.mark.parametrize("path", commands(main), ids=" ".join)
def test_every_command_helps_quickly_and_shows_an_example(smp: Callable[..., Ran], path: tuple[str, ...]) -> None:
    ran = smp(*path, "--help")
    assert ran.code == 0
    assert ran.err == ""
    assert "Usage: smp " + " ".join(path) in ran.text
    if path not in {("key", "list"), ("config", "show")}:
        assert "Example" in ran.text


def test_version(smp_process: Callable[..., Ran]) -> None:
    ran = smp_process("--version")
    assert (ran.code, ran.text, ran.err) == (0, f"smp {__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["nonsense"], "no such command 'nonsense'"),
        (["encrypt"], "missing argument 'IN'"),
        (["encrypt", "--nonsense"], "no such option '--nonsense'"),
        (["-c", "nonsense", "key", "list"], "NAME=VALUE"),
        (["-c", "nonsense=1", "key", "list"], "nonsense"),
        (["audit", "verify", "--head", "x"], "head"),
        (["completion", "powershell"], "powershell"),
    ],
)
def test_usage_errors_have_the_form_of_all_errors(smp: Callable[..., Ran], args: list[str], part: str) -> None:
    ran = smp(*args)
    assert ran.code == 2
    assert ran.out == b""
    assert re.fullmatch(r"smp: error: [^\n]+ \[SMP-(USAGE|CONFIG)\]\nsmp: hint: [^\n]+\n", ran.err)
    assert part in ran.err


@pytest.mark.parametrize("args", [[], ["key"], ["audit"], ["config"]])
def test_no_command_at_all_shows_the_help(smp: Callable[..., Ran], args: list[str]) -> None:
    ran = smp(*args)
    assert (ran.code, ran.out) == (2, b"")
    assert ran.err.startswith("Usage: smp ")
    assert "\\n" not in ran.err


def test_errors_as_json(smp: Callable[..., Ran], work: Path) -> None:
    ran = smp("decrypt", "absent.smp", "--json")
    assert ran.code == 7
    error = json.loads(ran.err)
    assert (error["schema"], error["code"], error["exit_code"]) == ("smp.error/1", "SMP-NOT-FOUND", 7)
    assert error["message"]
    assert error["hint"]


def test_a_mistake_of_ours_shows_no_traceback_and_no_data(
    smp: Callable[..., Ran], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise RuntimeError("Halvorsen^Rowena")

    monkeypatch.setattr(crypto, "encrypt_file", broken)
    (work / "in").write_bytes(b"")
    smp("key", "generate")
    ran = smp("encrypt", "in")
    assert ran.code == 1
    said = r"smp: error: this should not have happened: RuntimeError at cli/crypto.py:\d+ \[SMP-INTERNAL\]\nsmp: hint: [^\n]+\n"
    assert re.fullmatch(said, ran.err)
    assert "Rowena" not in (work / os.environ["HOME"] / ".local/state/secure-media-processor/audit.jsonl").read_text()


def test_an_odd_file_name_cannot_forge_lines(smp: Callable[..., Ran], work: Path) -> None:
    ran = smp("encrypt", "a\nsmp: fine\x1b[31m")
    assert len(ran.err.splitlines()) == 2
    assert "\x1b" not in ran.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(smp: Callable[..., Ran], shell: str) -> None:
    ran = smp("completion", shell)
    assert ran.code == 0
    assert "_SMP_COMPLETE" in ran.text
