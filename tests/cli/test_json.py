"""What commands print with --json is what the reference says. The fixture `smp` compares each object with its schema."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import click
import pytest

from conftest import SCHEMAS, Ran, refuse_what_is_not_documented
from secure_media_processor.cli.main import main
from secure_media_processor.cli.schemas import every_result

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "json.md"
# Where the command has another form beside.
BUCKET = {"smp.upload.bucket/1", "smp.download.bucket/1"}


def commands_with_json(group: click.Group, path: tuple[str, ...] = ("smp",)) -> list[tuple[str, ...]]:
    context = click.Context(group)
    found: list[tuple[str, ...]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            found += commands_with_json(command, (*path, name))
        elif command is not None and any("--json" in parameter.opts for parameter in command.params):
            found.append((*path, name))
    return found


def test_every_command_has_one_schema_and_every_schema_a_command() -> None:
    assert {f"{'.'.join(path)}/1" for path in commands_with_json(main)} == SCHEMAS.keys() - BUCKET


@pytest.mark.parametrize("kind", every_result(), ids=lambda kind: kind.schema)
def test_every_field_stands_in_the_reference(kind: type) -> None:
    assert kind.__doc__
    section = REFERENCE.read_text().split(f"## {kind.schema}\n")[1].split("\n## ")[0]  # type: ignore[attr-defined]
    assert all(f"| `{field.name}` |" in section for field in fields(kind))
    assert get_type_hints(kind)


def test_each_command_prints_its_schema(work: Path, smp: Callable[..., Ran]) -> None:
    seen = set()

    def run(*args: str, code: int = 0) -> dict[str, object]:
        ran = smp(*args, "--json")
        assert ran.code == code, ran.err
        found: dict[str, object] = json.loads(ran.out)
        assert set(found) == {"schema", *(field.name for field in fields(SCHEMAS[str(found["schema"])]))}
        seen.add(found["schema"])
        return found

    (work / "smp.toml").write_text('keystore = "keys"\n')
    run("config", "trust")
    key = str(run("key", "generate")["id"])
    run("key", "list")
    run("key", "export", key, "copy.key")
    shutil.rmtree("keys")
    run("key", "import", "copy.key")
    run("key", "primary", key)
    (work / "study").mkdir()
    (work / "study" / "file").write_bytes(b"data")
    (work / "study" / "link").symlink_to("file")
    run("encrypt", "study/file")
    run("verify", "study/file.smp")
    run("decrypt", "study/file.smp", "copy")
    for name in ("a", "b"):
        run("cloud", "add", name, "local", f"folder=stores/{name}")
    run("cloud", "list")
    run("cloud", "status")
    run("cloud", "kinds")
    run("upload", "study")
    run("upload", "study", "absent", code=3)
    run("sync", "study")
    run("ls")
    run("download", "study", "-o", "out")
    next(path for path in Path("stores/a").iterdir() if path.is_file() and path.name.isalnum()).unlink()
    assert run("cloud", "verify", code=9)["copies"]
    assert run("cloud", "repair")["mended"]
    run("rm", "-r", "study")
    run("cloud", "prune")
    run("cloud", "remove", "a")
    run("config", "show")
    run("audit", "show")
    run("audit", "verify")
    run("doctor")
    elsewhere = {"smp.demo/1", "smp.cloud.keep-credentials/1", "smp.cloud.forget-credentials/1", *BUCKET}  # in other tests
    assert seen == {name for name in SCHEMAS if not name.startswith("smp.medical.")} - elsewhere


@pytest.mark.parametrize("change", [{"size": "1"}, {"mtime_ns": 1.5}, {"extra": 1}, {"name": None}])
def test_the_comparison_finds_what_is_wrong(change: dict[str, object]) -> None:
    file = {"name": "x", "size": 1, "mtime_ns": None}
    listing = {"schema": "smp.ls/1", "degraded": {}}
    refuse_what_is_not_documented(json.dumps({**listing, "files": [file]}).encode())
    with pytest.raises((AssertionError, ValueError)):
        refuse_what_is_not_documented(json.dumps({**listing, "files": [{**file, **change}]}).encode())


def test_paths_that_are_no_unicode_are_printed_all_the_same(work: Path, smp: Callable[..., Ran]) -> None:
    smp("key", "generate")
    name = os.fsdecode(b"\xff")
    (work / name).write_bytes(b"data")
    assert json.loads(smp("encrypt", name, "--json").out)["input"] == name
