"""The journal of a long job: what is there after every kind of end, and who may hold it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import left_in
from secure_media_processor.core import journal as module
from secure_media_processor.core.journal import Journal
from secure_media_processor.errors import FileAccessError, NoSpaceError, SmpError, TransientError

ENTRIES = [{"format": 1}, {"part": 0, "sha256": "ab" * 32}, {"store": "späť", "state": {"upload_id": "1\n2"}}]


@pytest.fixture
def path(work: Path) -> Path:
    return work / "state" / "journal.jsonl"


def filled(path: Path) -> Path:
    with Journal(path) as journal:
        for entry in ENTRIES:
            journal.append(entry)
    return path


def entries_in(path: Path) -> list[dict[str, object]]:
    with Journal(path) as journal:
        return journal.entries


def test_entries_come_back_in_order(path: Path) -> None:
    assert entries_in(path) == []
    assert entries_in(filled(path)) == ENTRIES
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_it_is_removed_when_the_job_is_done(path: Path) -> None:
    with Journal(filled(path)) as journal:
        journal.remove()
        journal.remove()
    assert left_in(path.parent) == set()
    assert entries_in(path) == []


def test_beginning_anew_forgets_all(path: Path) -> None:
    with Journal(filled(path)) as journal:
        journal.begin_anew()
        assert journal.entries == []
        assert path.read_bytes() == b""
        journal.append({"a": 1})
    assert entries_in(path) == [{"a": 1}]


def test_an_entry_is_on_disk_when_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order: written, synced, returned."""
    steps = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda handle: (steps.append(path.read_bytes()), real(handle)))
    with Journal(path) as journal:
        journal.append({"a": 1})
        steps.append(b"returned")
    assert steps == [b'{"a":1}\n', b"returned"]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_last_line_that_a_crash_cut_short_is_not_there(path: Path, cut: int) -> None:
    data = filled(path).read_bytes()
    path.write_bytes(data[:-cut])
    assert entries_in(path) == ENTRIES[:-1]
    with Journal(path) as journal:  # and what follows is not glued to it
        journal.append({"next": True})
    assert entries_in(path) == [*ENTRIES[:-1], {"next": True}]


@given(st.binary(max_size=60), st.integers(0, 200))
def test_whatever_a_crash_leaves_behind_is_cut_off(tmp_path_factory: pytest.TempPathFactory, rest: bytes, cut: int) -> None:
    """The entries before it are found; nothing that is no entry is taken for one."""
    path = tmp_path_factory.mktemp("journal") / "journal"
    data = filled(path).read_bytes()
    whole = data[: max(0, len(data) - cut)]
    path.write_bytes(whole + rest)
    found = entries_in(path)
    sound = whole.count(b"\n")
    assert found[:sound] == ENTRIES[:sound]
    assert all(isinstance(entry, dict) for entry in found)
    assert path.read_bytes() == b"".join(line for line, _ in zip((whole + rest).splitlines(keepends=True), found, strict=False))
    assert entries_in(path) == found


@pytest.mark.parametrize("line", [b"[]\n", b"1\n", b"null\n", b"{\n", b"\xff\n", b"\n", b"{" * 100_000 + b"\n"])
def test_what_follows_a_line_that_is_none_is_not_believed(path: Path, line: bytes) -> None:
    first, *others = filled(path).read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"".join(others))
    assert entries_in(path) == ENTRIES[:1]
    assert path.read_bytes() == first


def test_a_disk_that_is_full_in_the_middle_of_a_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be written after half a line would not be found again: the journal takes nothing more."""
    real = os.write
    with Journal(filled(path)) as journal:
        monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:5]))
        with pytest.raises(NoSpaceError):
            journal.append({"part": 1})
        monkeypatch.setattr(os, "write", real)
        with pytest.raises(SmpError):  # there is space again
            journal.append({"part": 2})
        assert journal.entries == ENTRIES
    assert entries_in(path) == ENTRIES
    with Journal(path) as journal:
        journal.append({"part": 3})
    assert entries_in(path) == [*ENTRIES, {"part": 3}]


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_a_line_that_may_not_be_on_disk_is_none(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is dying")

    with Journal(filled(path)) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(FileAccessError, match=r"journal\.jsonl"):
                journal.append({"part": 1})
        with pytest.raises(FileAccessError):
            journal.append({"part": 2})
        assert journal.entries == ENTRIES
        journal.begin_anew()
        journal.append({"part": 3})
    assert entries_in(path) == [{"part": 3}]


def test_lines_of_many_threads_do_not_mix(path: Path) -> None:
    with Journal(path) as journal, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: journal.append({"n": number, "x": "y" * (number % 50)}), range(200)))
        assert len(journal.entries) == 200
    assert sorted(entry["n"] for entry in entries_in(path)) == list(range(200))  # type: ignore[type-var]


HOLD = """
import sys, time
from pathlib import Path
from secure_media_processor.core.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.append({"held": True})
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_told_to_wait_and_a_dead_one_holds_nothing(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(TransientError, match="another process") as caught:
            Journal(path)
        assert caught.value.exit_code == 11
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert entries_in(path) == [{"held": True}]


def test_a_journal_that_its_holder_has_just_removed_is_not_gone_on_with(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened while another process held it, locked when that had finished: what it tells is over."""
    filled(path)
    real = module.fcntl.flock

    def late(file: object, operation: int) -> None:
        path.unlink()
        real(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(module.fcntl, "flock", late)
    with pytest.raises(TransientError, match="another process"):
        Journal(path)
    monkeypatch.undo()
    assert entries_in(path) == []


def test_a_file_that_is_too_large_is_none_of_ours(path: Path) -> None:
    filled(path)
    os.truncate(path, 17 * 1024 * 1024)
    with pytest.raises(FileAccessError, match="not a journal"):
        Journal(path)
    assert path.stat().st_size == 17 * 1024 * 1024


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_what_stands_in_its_place_is_left_alone(path: Path, work: Path, kind: str) -> None:
    path.parent.mkdir(mode=0o700)
    (work / "other").write_bytes(b"somebody's")
    match kind:
        case "link":
            path.symlink_to(work / "other")
        case "dangling link":
            path.symlink_to(work / "absent")
        case "folder":
            path.mkdir()
        case _:
            os.mkfifo(path)
    with pytest.raises(FileAccessError):
        Journal(path)
    assert (work / "other").read_bytes() == b"somebody's"
    assert not (work / "absent").exists()


def test_it_holds_nothing_open_after_a_refusal(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Journal(filled(path)):
        for _ in range(3):
            with pytest.raises(TransientError):
                Journal(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_it_is_plain_text_for_whoever_must_look(path: Path) -> None:
    assert [json.loads(line) for line in filled(path).read_text().splitlines()] == ENTRIES
