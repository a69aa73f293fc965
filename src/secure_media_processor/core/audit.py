"""The audit log: append-only, chained by hashes, free of names. docs/format/audit.md is the contract."""

from __future__ import annotations

import errno
import fcntl
import hmac
import json
import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, BinaryIO

from secure_media_processor.core.files import PRIVATE_FILE, make_private_folder, os_errors, write_file
from secure_media_processor.core.keys import refuse_exposed
from secure_media_processor.errors import AuditDamagedError, ExistsError, SmpError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GENESIS = "0" * 64
_KEY_SIZE = 32
_OBJECT_DIGITS = 32
# A record has about 350 bytes; anything longer was not written by us.
_MAX_RECORD = 4096
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "seq": int,
    "ts": str,
    "actor": str,
    "action": str,
    "object": (str, type(None)),
    "outcome": str,
    "prev": str,
}


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the log."""

    seq: int
    ts: str
    """UTC, ISO 8601 with microseconds."""
    actor: str
    """"uid:" and the numeric user id."""
    action: str
    object: str | None
    """Keyed id of what was acted on, 32 hexadecimal digits."""
    outcome: str
    """"ok" or the code of an error."""
    prev: str
    hash: str

    @classmethod
    def parse(cls, line: bytes) -> Record:
        """Return the record in `line`. Raises ValueError if it is none, or if its hash is not its own."""
        fields = json.loads(line)
        if not isinstance(fields, dict) or set(fields) != {*_FIELDS, "hash"}:
            raise ValueError("not a record")
        if any(not isinstance(fields[name], kind) for name, kind in _FIELDS.items()):
            raise ValueError("a field of the wrong type")
        claimed = fields.pop("hash")
        if not isinstance(claimed, str) or claimed != _hash(fields):
            raise ValueError("it was changed")
        return cls(**fields, hash=claimed)


@dataclass(frozen=True, slots=True)
class Head:
    """The last record of a log: what to keep elsewhere to be able to notice later that the log was cut or replaced."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Return the head that `str` wrote. Raises ValueError."""
        seq, _, digest = text.partition(":")
        if len(digest) != len(_GENESIS):
            raise ValueError("a head is a number, a colon and 64 hexadecimal digits")
        return cls(int(seq), digest)


@dataclass(slots=True)
class Operation:
    """Something that is being done and will be recorded."""

    object: bytes | None = None
    """What it is done to; set it as soon as it is known. Recorded as a keyed hash."""


@dataclass(frozen=True, slots=True)
class AuditLog:
    """The log in one file. Any number of processes may append to it."""

    path: Path

    @contextmanager
    def operation(self, action: str) -> Iterator[Operation]:
        """Record `action` when the block ends, with its outcome. That the log can be written is checked before.

        Raises:
            FileAccessError, NoSpaceError: the log cannot be written.
        """
        operation = Operation()
        with self._open():
            pass
        try:
            yield operation
        except BaseException as error:
            self.append(action, operation.object, error.code if isinstance(error, SmpError) else type(error).__name__)
            raise
        self.append(action, operation.object, "ok")

    def append(self, action: str, item: bytes | None, outcome: str) -> Record:
        """Append a record and sync it to disk."""
        keyed = None if item is None else self.object_id(item)
        with os_errors(f"write the audit log {self.path}"), self._open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            last = self._repair_end(file)
            return _append(file, last, action, keyed, outcome)

    def records(self) -> Iterator[Record]:
        """Yield every record, checking the chain on the way; nothing if there is no log.

        Raises:
            AuditDamagedError: a record was changed, removed, inserted or moved.
        """
        if not self.path.exists():
            return
        previous = None
        with os_errors(f"read the audit log {self.path}"), self.path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_RECORD), b""), start=1):
                if len(line) < _MAX_RECORD and not line.endswith(b"\n"):
                    return  # cut short by a crash and never acknowledged; the next append removes it
                previous = _follow(previous, line, number)
                yield previous

    def verify(self, expected: Head | None = None) -> Head:
        """Check the whole chain and return its head. With `expected`, also that the record with that number is still that one.

        Raises:
            AuditDamagedError: see records; or the log is shorter than `expected`, or was written anew.
        """
        head = Head(0, _GENESIS)
        seen = expected is None
        for record in self.records():
            head = Head(record.seq, record.hash)
            seen = seen or head == expected
        if not seen:
            raise AuditDamagedError(f"the audit log does not hold the head {expected}: it was cut or written anew")
        return head

    def object_id(self, item: bytes) -> str:
        """Return the keyed id under which `item` stands in this log."""
        return hmac.digest(self._key(), item, sha256).hex()[:_OBJECT_DIGITS]

    def _key(self) -> bytes:
        path = self.path.with_name("audit.key")
        make_private_folder(self.path.parent)
        if not path.exists():
            try:
                write_file(path, secrets.token_bytes(_KEY_SIZE))
            except ExistsError:  # another process made it just now
                pass
        with os_errors(f"read {path}"):
            refuse_exposed(path, path.stat().st_mode)
            key = path.read_bytes()
        if len(key) != _KEY_SIZE:
            raise AuditDamagedError(f"{path} is not an audit key")
        return key

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        make_private_folder(self.path.parent)
        with os_errors(f"write the audit log {self.path}"):
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, PRIVATE_FILE)
        with open(descriptor, "r+b", buffering=0) as file:  # noqa: PTH123 - a descriptor has no path
            yield file

    def _repair_end(self, file: BinaryIO) -> Record | None:
        """Return the last record. A line that a crash cut short is taken away, and that is recorded."""
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - 2 * _MAX_RECORD))
        tail = file.read(2 * _MAX_RECORD)
        complete = tail[: tail.rfind(b"\n") + 1]
        last = _last_record(complete)
        if last is None and (start > 0 or complete):
            raise AuditDamagedError("the end of the audit log cannot be read")
        if len(complete) < len(tail):
            file.truncate(start + len(complete))
            last = _append(file, last, "audit.recover", None, "ok")
        return last


def _last_record(lines: bytes) -> Record | None:
    try:
        return Record.parse(lines.splitlines()[-1])
    except (ValueError, IndexError):
        return None


def _append(file: BinaryIO, last: Record | None, action: str, item: str | None, outcome: str) -> Record:
    fields: dict[str, object] = {
        "seq": last.seq + 1 if last else 1,
        "ts": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
        "actor": f"uid:{os.getuid()}",
        "action": action,
        "object": item,
        "outcome": outcome,
        "prev": last.hash if last else _GENESIS,
    }
    record = fields | {"hash": _hash(fields)}
    line = _canonical(record) + b"\n"
    if file.write(line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file.fileno())
    return Record.parse(line)


def _follow(previous: Record | None, line: bytes, number: int) -> Record:
    try:
        record = Record.parse(line)
    except (ValueError, RecursionError):
        raise AuditDamagedError(f"record {number} of the audit log is damaged") from None
    expected = (previous.seq + 1, previous.hash) if previous else (1, _GENESIS)
    if (record.seq, record.prev) != expected:
        raise AuditDamagedError(f"record {number} of the audit log does not follow the one before")
    return record


def _canonical(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _hash(fields: dict[str, object]) -> str:
    return sha256(_canonical(fields)).hexdigest()
