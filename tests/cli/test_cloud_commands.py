"""smp cloud: naming stores, asking them, forgetting them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from conftest import Ran, left_in
from secure_media_processor import LocalConnector


def test_a_folder_becomes_a_store_and_is_forgotten(work: Path, home: Path, smp: Callable[..., Ran]) -> None:
    ran = smp("cloud", "add", "clinic-nas", "local", "folder=nas/smp")
    assert (ran.code, ran.err) == (0, "smp: added clinic-nas; it answers\n")
    listed = json.loads(smp("cloud", "list", "--json").out)
    assert listed["stores"] == [{"name": "clinic-nas", "kind": "local", "options": {"folder": str(work / "nas" / "smp")}}]
    assert left_in(work) == {"nas/smp/.smp-store"}
    LocalConnector(work / "nas" / "smp").put("key", [b"x"])
    assert smp("cloud", "add", "clinic-nas", "local", "folder=other").code == 2
    assert left_in(work) == {"nas/smp/.smp-store", "nas/smp/key"}
    assert smp("cloud", "remove", "clinic-nas").code == 0
    assert smp("cloud", "remove", "clinic-nas").code == 7
    assert "smp cloud add" in smp("cloud", "list").err
    assert left_in(work) == {"nas/smp/.smp-store", "nas/smp/key"}


def test_status_tells_who_answers(work: Path, smp: Callable[..., Ran]) -> None:
    for name in ("one", "two"):
        smp("cloud", "add", name, "local", f"folder={name}")
    assert smp("cloud", "status").code == 0
    shutil.rmtree(work / "two")
    ran = smp("cloud", "status", "one", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["stores"][0]["answers"]


def test_exit_codes_of_status(work: Path, smp: Callable[..., Ran], monkeypatch: object) -> None:
    from secure_media_processor.cli import cloud  # noqa: PLC0415 - to shorten its patience
    from secure_media_processor.cloud.wrappers import Patience  # noqa: PLC0415

    assert smp("cloud", "status").code == 0
    monkeypatch.setattr(cloud, "_LOOK", Patience(deadline=0))  # type: ignore[attr-defined]
    for name in ("one", "two"):
        smp("cloud", "add", name, "local", f"folder={name}")
    shutil.rmtree(work / "two")
    ran = smp("cloud", "status")
    assert ran.code == 3
    assert "1 of 2 stores do not answer: two" in ran.err
    assert "there is no store in" in ran.text
    shutil.rmtree(work / "one")
    assert smp("cloud", "status").code == 11
    assert smp("cloud", "status", "three").code == 7


def test_a_store_that_does_not_answer_is_not_added_unless_asked(work: Path, smp: Callable[..., Ran]) -> None:
    place = ("s3", "bucket=b", "endpoint=http://127.0.0.1:9", "region=us-east-1")
    ran = smp("cloud", "add", "far", *place)
    assert ran.code in (4, 11)
    assert json.loads(smp("cloud", "list", "--json").out)["stores"] == []
    assert smp("cloud", "add", "far", *place, "--no-check").code == 0
    assert json.loads(smp("cloud", "list", "--json").out)["stores"][0]["name"] == "far"


def test_what_cannot_be_added(work: Path, home: Path, smp: Callable[..., Ran]) -> None:
    for args, code in (
        (["x", "nonsense"], 10),
        (["x", "local"], 2),
        (["x", "local", "folder"], 2),
        (["x", "local", "folder="], 2),
        (["x", "local", "folder=a", "secret=b"], 2),
        (["X", "local", "folder=a"], 2),
        (["x", "dropbox", "credentials=absent.json"], 4),
    ):
        ran = smp("cloud", "add", *args)
        assert ran.code == code, ran.err
        assert left_in(work) == set()
    assert not (home / ".config/secure-media-processor/stores.json").exists()


def test_kinds_tell_their_options(smp: Callable[..., Ran]) -> None:
    kinds = json.loads(smp("cloud", "kinds", "--json").out)["kinds"]
    assert set(kinds) == {"azure", "dropbox", "gdrive", "local", "s3", "sftp"}
    assert {"option": "bucket", "required": True, "meaning": "its name"} in kinds["s3"]
    assert "bucket" in smp("cloud", "kinds").text


def test_what_nothing_refers_to_is_pruned(work: Path, smp: Callable[..., Ran]) -> None:
    smp("key", "generate")
    for name in ("one", "two"):
        smp("cloud", "add", name, "local", f"folder={name}")
    stray = "0123456789abcdef" * 2
    LocalConnector(work / "one").put(stray, [b"left behind"])
    ran = smp("cloud", "prune")
    assert (ran.code, stray in ran.text) == (0, True)
    assert "0 objects removed, 1 kept" in ran.err
    ran = smp("cloud", "prune", "--grace", "0", "--dry-run", "--json")
    (found,) = json.loads(ran.out)["removed"]
    assert (found["object"], found["size"], found["stores"]) == (stray, 11, ["one"])
    assert (work / "one" / stray).exists()
    assert smp("cloud", "prune", "--grace", "-1").code == 2
    assert smp("cloud", "prune", "--grace", "0").code == 0
    assert not (work / "one" / stray).exists()
    shutil.rmtree(work / "two")
    ran = smp("cloud", "prune", "--grace", "0")
    assert (ran.code, "two does not answer" in ran.err) == (9, True)
