"""smp key, config, audit and doctor."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Ran, left_in
from secure_media_processor import SymmetricKey


def test_keys_are_made_listed_and_exported(work: Path, home: Path, smp: Callable[..., Ran]) -> None:
    assert smp("key", "list").text == ""
    assert "smp key generate" in smp("key", "list").err
    made = smp("key", "generate")
    key_id = made.text.strip()
    assert "keep a copy" in made.err
    listed = json.loads(smp("key", "list", "--json").out)
    assert listed["schema"] == "smp.key.list/1"
    assert [(k["id"], k["primary"], k["exported"]) for k in listed["keys"]] == [(key_id, True, None)]
    assert smp("key", "export", key_id, "copy.key").code == 0
    secret = (work / "copy.key").read_text().splitlines()[-1]
    assert SymmetricKey.load("copy.key").id == key_id
    again = smp("key", "export", key_id, "copy.key")
    assert (again.code, "--force" in again.err) == (8, False)
    assert smp("key", "export", key_id[:6], "-").text.splitlines()[-1] == secret
    assert smp("key", "export", "0" * 16, "other.key").code == 4
    assert smp("key", "export", "../../x", "other.key").code == 4
    assert json.loads(smp("key", "list", "--json").out)["keys"][0]["exported"]
    for args in (["key", "list"], ["key", "list", "--json"], ["doctor"], ["audit", "show"], ["config", "show"]):
        ran = smp(*args)
        assert secret not in ran.text + ran.err
    assert left_in(work) == {"copy.key"}


def test_config_show_says_where_each_value_came_from(
    work: Path, home: Path, smp: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "smp.toml").write_text('audit_on_failure = "warn"\n')
    assert smp("config", "show").code == smp("encrypt", "x").code == 2
    assert smp("config", "trust").code == 0
    monkeypatch.setenv("SMP_AUDIT_LOG", "/tmp/a.jsonl")  # noqa: S108 - never written to
    shown = json.loads(smp("-c", "keystore=here", "config", "show", "--json").out)["settings"]
    assert shown == {
        "keystore": {"value": str(work / "here"), "origin": "flag"},
        "key_file": {"value": None, "origin": "default"},
        "stores": {"value": str(home / ".config/secure-media-processor/stores.json"), "origin": "default"},
        "cloud_state": {"value": str(home / ".local/state/secure-media-processor/cloud"), "origin": "default"},
        "models": {"value": str(home / ".local/share/secure-media-processor/models"), "origin": "default"},
        "audit_log": {"value": "/tmp/a.jsonl", "origin": "environment SMP_AUDIT_LOG"},  # noqa: S108
        "audit_on_failure": {"value": "warn", "origin": str(work / "smp.toml")},
    }
    assert "environment SMP_AUDIT_LOG" in smp("config", "show").text


def test_the_audit_log_tells_what_was_done_to_a_file(work: Path, home: Path, smp: Callable[..., Ran]) -> None:
    smp("key", "generate")
    for name in ("rowena", "other"):
        (work / name).write_bytes(b"data")
        smp("encrypt", name)
    smp("decrypt", "rowena.smp", "copy")
    raw = (work / "rowena.smp").read_bytes()
    (work / "rowena.smp").write_bytes(raw[:-1])
    smp("verify", "rowena.smp")
    shown = json.loads(smp("audit", "show", "--file", "rowena.smp", "--json").out)["records"]
    assert [(r["action"], r["outcome"]) for r in shown] == [("encrypt", "ok"), ("decrypt", "ok"), ("verify", "SMP-TRUNCATED")]
    assert len(json.loads(smp("audit", "show", "-n", "2", "--json").out)["records"]) == 2
    log = (home / ".local/state/secure-media-processor/audit.jsonl").read_text()
    assert "rowena" not in log
    assert str(work) not in log
    assert os.environ.get("USER", "nobody-has-this-name") not in log


def test_a_changed_audit_log_ends_with_6(work: Path, home: Path, smp: Callable[..., Ran]) -> None:
    smp("key", "generate")
    smp("key", "generate")
    head = smp("audit", "verify").text.strip()
    assert smp("audit", "verify", "--head", head).code == 0
    log = home / ".local/state/secure-media-processor/audit.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0])
    assert smp("audit", "verify").code == 0
    assert smp("audit", "verify", "--head", head).code == 6
    log.write_bytes(lines[1])
    for args in (["audit", "verify"], ["audit", "show"], ["doctor"]):
        ran = smp(*args)
        assert ran.code == (1 if args == ["doctor"] else 6)
        assert "SMP-AUDIT-DAMAGED" in ran.text + ran.err


def test_an_audit_log_that_cannot_be_written(work: Path, home: Path, smp: Callable[..., Ran]) -> None:
    smp("key", "generate")
    (work / "in").write_bytes(b"data")
    (work / "file").write_bytes(b"")
    ran = smp("-c", "audit_log=file/audit.jsonl", "encrypt", "in")
    assert ran.code == 1
    assert "go on without a record, with `smp -c audit_on_failure=warn`" in ran.err
    assert left_in(work) == {"in", "file"}
    ran = smp("-c", "audit_log=file/audit.jsonl", "-c", "audit_on_failure=warn", "encrypt", "in")
    assert ran.code == 0
    assert "smp: warning: not recorded" in ran.err
    assert left_in(work) == {"in", "in.smp", "file"}


def test_doctor_notes_what_is_missing_and_fails_on_what_is_broken(work: Path, home: Path, smp: Callable[..., Ran]) -> None:
    findings = {f["check"]: f for f in json.loads(smp("doctor", "--json").out)["findings"]}
    assert findings["extra dicom"]["state"] == "ok"
    assert findings["keys"]["state"] == "note"
    assert findings["device cpu"]["state"] == "ok"
    assert smp("doctor").code == 0
    key_id = smp("key", "generate").text.strip()
    assert f"smp key export {key_id} FILE" in smp("doctor").text
    smp("key", "export", key_id, "copy.key")
    assert f"smp key export {key_id} FILE" not in smp("doctor").text
    (home / ".local/share/secure-media-processor/keys" / f"{key_id}.key").chmod(0o644)
    ran = smp("doctor")
    assert ran.code == 1
    assert "SMP-KEY-EXPOSED" in ran.text
    assert "chmod 600" in ran.text


def test_a_broken_setting_is_a_finding(work: Path, smp: Callable[..., Ran]) -> None:
    (work / "smp.toml").write_text("nonsense = 1\n")
    ran = smp("doctor")
    assert ran.code == 1
    assert "SMP-CONFIG" in ran.text


def test_a_key_comes_back_from_its_copy(work: Path, home: Path, smp: Callable[..., Ran]) -> None:
    """The disk died: on a new machine there is only the copy, on a stick where every file is open to all."""
    key_id = smp("key", "generate").text.strip()
    smp("key", "export", key_id, "copy.key")
    (work / "scan").write_bytes(b"data")
    smp("encrypt", "scan")
    (work / "copy.key").chmod(0o755)
    new = ("-c", "keystore=new")
    missing = smp(*new, "decrypt", "scan.smp", "back")
    assert (missing.code, "smp key import FILE" in missing.err) == (4, True)
    assert smp(*new, "key", "import", "copy.key").text.strip() == key_id
    assert smp(*new, "decrypt", "scan.smp", "back").code == 0
    assert smp(*new, "key", "import", "copy.key").code == 8
    assert (work / "new" / f"{key_id}.key").stat().st_mode & 0o777 == 0o600
    assert smp(*new, "key", "import", "scan").code == 4


def test_the_primary_key_can_be_chosen(work: Path, smp: Callable[..., Ran]) -> None:
    first = smp("key", "generate").text.strip()
    second = smp("key", "generate")
    assert "smp key primary" in second.err
    assert smp("key", "primary", second.text.strip()[:8]).code == 0
    listed = json.loads(smp("key", "list", "--json").out)["keys"]
    assert [k["id"] for k in listed if k["primary"]] == [second.text.strip()]
    assert smp("key", "primary", "nonsense").code == 4
    assert first in smp("key", "list").text
