"""The audit log: what it holds, what it notices, and what it survives."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import left_in
from secure_media_processor import AuditLog
from secure_media_processor.core import audit
from secure_media_processor.core.audit import Head
from secure_media_processor.errors import AuditDamagedError, FileAccessError, KeyExposedError, SmpError, WrongKeyError


@pytest.fixture
def log(work: Path) -> AuditLog:
    return AuditLog(work / "log" / "audit.jsonl")


def test_records_say_who_what_when_and_nothing_else(log: AuditLog) -> None:
    with log.operation("encrypt") as operation:
        operation.object = b"an object"
    with pytest.raises(WrongKeyError), log.operation("decrypt"):
        raise WrongKeyError("secret text")
    with pytest.raises(KeyboardInterrupt), log.operation("verify"):
        raise KeyboardInterrupt
    records = list(log.records())
    assert [(r.seq, r.action, r.outcome) for r in records] == [
        (1, "encrypt", "ok"), (2, "decrypt", "SMP-WRONG-KEY"), (3, "verify", "SMP-INTERRUPTED"),
    ]  # fmt: skip
    assert records[0].object == log.object_id(b"an object")
    assert records[1].object is None
    assert all(r.actor == f"uid:{os.getuid()}" for r in records)
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", r.ts) for r in records)
    text = log.path.read_text()
    assert "secret text" not in text
    assert "an object" not in text
    assert log.path.stat().st_mode & 0o777 == 0o600
    assert log.path.with_name("audit.key").stat().st_mode & 0o777 == 0o600


def test_object_ids_need_the_key(work: Path) -> None:
    one, two = AuditLog(work / "1" / "audit.jsonl"), AuditLog(work / "2" / "audit.jsonl")
    assert one.object_id(b"x") is None
    assert not (work / "1").exists()
    for log in (one, two):
        log.append("test", b"x", "ok")
        assert log.object_id(b"x") == next(log.records()).object
    assert one.object_id(b"x") != two.object_id(b"x")


def test_an_empty_log_is_intact(log: AuditLog) -> None:
    empty = Head(0, "0" * 64)
    assert log.verify() == log.verify(empty) == empty
    assert list(log.records()) == []
    filled(log)
    log.verify(empty)


def filled(log: AuditLog, count: int = 6) -> list[bytes]:
    for number in range(count):
        log.append("test", bytes([number]), "ok")
    return log.path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("field", ["seq", "ts", "actor", "action", "object", "outcome", "prev", "hash"])
def test_a_changed_field_is_noticed(log: AuditLog, number: int, field: str) -> None:
    lines = filled(log)
    record = json.loads(lines[number])
    record[field] = record[field] + 1 if field == "seq" else "x" + record[field][1:]
    lines[number] = json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    log.path.write_bytes(b"".join(lines))
    with pytest.raises(AuditDamagedError, match=f"record {number + 1}"):
        log.verify()


@pytest.mark.parametrize(
    "order", [[0, 2, 3, 4, 5], [1, 2, 3, 4, 5], [0, 1, 1, 2, 3, 4, 5], [1, 0, 2, 3, 4, 5], [0, 1, 2, 4, 3, 5]]
)
def test_removed_repeated_and_moved_records_are_noticed(log: AuditLog, order: list[int]) -> None:
    lines = filled(log)
    log.path.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(AuditDamagedError):
        log.verify()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_any_changed_byte_is_noticed(tmp_path: Path, position: int, byte: int) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    if not log.path.exists():
        filled(log, 3)
    raw = log.path.read_bytes()
    at = position % (len(raw) - 1)
    if raw[at] == byte:
        return
    log.path.write_bytes(raw[:at] + bytes([byte]) + raw[at + 1 :])
    try:
        with pytest.raises(AuditDamagedError):
            log.verify()
    finally:
        log.path.write_bytes(raw)


def test_a_cut_or_rewritten_log_is_noticed_with_its_head(log: AuditLog) -> None:
    lines = filled(log)
    head = log.verify()
    assert Head.parse(str(head)) == head
    log.append("test", None, "ok")
    log.verify(head)
    log.path.write_bytes(b"".join(lines[:5]))
    log.verify()
    with pytest.raises(AuditDamagedError, match="cut or written anew"):
        log.verify(head)
    log.path.unlink()
    filled(log, 8)
    with pytest.raises(AuditDamagedError, match="cut or written anew"):
        log.verify(head)


def test_a_line_cut_by_a_crash_is_removed_and_that_is_recorded(log: AuditLog) -> None:
    lines = filled(log, 2)
    for cut in (1, 50, len(lines[1]) - 1):
        log.path.write_bytes(lines[0] + lines[1][:cut])
        assert log.verify().seq == 1
        log.append("test", None, "ok")
        assert [record.action for record in log.records()] == ["test", "audit.recover", "test"]


def test_a_foreign_file_is_not_written_to(log: AuditLog) -> None:
    filled(log, 1)
    for text in (b"hello\n", b"x" * 20_000 + b"\n", b"{}\n"):
        log.path.write_bytes(text)
        with pytest.raises(AuditDamagedError):
            log.append("test", None, "ok")
        assert log.path.read_bytes() == text


def _append_many(path: Path) -> None:
    for _ in range(25):
        AuditLog(path).append("test", b"x", "ok")


def test_processes_append_together(log: AuditLog) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(log.path,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert log.verify().seq == 100


def test_a_log_that_cannot_be_written_stops_the_work_before_it_begins(work: Path) -> None:
    (work / "file").write_bytes(b"")
    begun = []
    for path in (work / "file" / "audit.jsonl", work):
        with pytest.raises(FileAccessError), AuditLog(path).operation("encrypt"):
            begun.append(path)
    assert not begun


def test_a_log_that_is_gone_is_not_an_empty_one(log: AuditLog) -> None:
    filled(log)
    log.path.unlink()
    with pytest.raises(AuditDamagedError, match="gone"):
        log.verify()


def test_a_lost_key_is_not_made_anew(log: AuditLog) -> None:
    filled(log)
    log.path.with_name("audit.key").unlink()
    for act in (log.check, lambda: log.append("test", b"x", "ok"), lambda: log.object_id(b"x")):
        with pytest.raises(AuditDamagedError, match="gone"):
            act()


@pytest.mark.parametrize("broken", ["key mode", "log mode", "end", "fifo", "locked", "folder"])
def test_nothing_is_begun_that_could_not_be_recorded(
    log: AuditLog, work: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(log)
    monkeypatch.setattr(audit, "_LOCK_TIMEOUT", 0.1)
    with ExitStack() as stack:
        match broken:
            case "key mode":
                log.path.with_name("audit.key").chmod(0o644)
            case "log mode":
                log.path.chmod(0o666)
            case "end":
                log.path.write_bytes(log.path.read_bytes()[:-3] + b'x"}\n')
            case "fifo":
                log.path.unlink()
                os.mkfifo(log.path)
            case "locked":
                other = stack.enter_context(log.path.open("rb"))
                fcntl.flock(other, fcntl.LOCK_EX)
            case "folder":
                log.path.unlink()
                log.path.mkdir()
        begun, told = [], []
        with pytest.raises(SmpError), log.operation("test"):
            begun.append(1)
        assert not begun
        with log.operation("test", on_failure=told.append):
            begun.append(1)
        assert begun
        assert told


def test_the_error_of_the_work_is_not_hidden_by_that_of_the_log(log: AuditLog) -> None:
    with pytest.raises(WrongKeyError) as caught, log.operation("decrypt"):
        log.path.chmod(0o666)
        raise WrongKeyError("no key")
    assert "not recorded" in caught.value.__notes__[0]


def test_work_that_could_not_be_recorded_after_all_says_that_it_was_done(log: AuditLog) -> None:
    with pytest.raises(KeyExposedError, match="encrypt was done, but not recorded"), log.operation("encrypt"):
        log.path.chmod(0o666)


def test_an_exposed_or_damaged_audit_key_is_refused(log: AuditLog) -> None:
    filled(log, 1)
    key = log.path.with_name("audit.key")
    key.chmod(0o644)
    with pytest.raises(KeyExposedError):
        log.append("test", b"x", "ok")
    key.chmod(0o600)
    key.write_bytes(b"short")
    with pytest.raises(AuditDamagedError):
        log.append("test", b"x", "ok")
    assert left_in(log.path.parent) == {"audit.jsonl", "audit.key"}


@pytest.mark.parametrize("text", ["", "1", "x:" + "0" * 64, "1:short"])
def test_heads_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"head|invalid"):
        Head.parse(text)
