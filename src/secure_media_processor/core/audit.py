"""The audit log: append-only, chained by hashes, free of names. docs/format/audit.md is the contract."""

from __future__ import annotations

import errno
import fcntl
import hmac
import json
import os
import secrets
import stat
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from io import FileIO
from typing import TYPE_CHECKING

from secure_media_processor.core.files import PRIVATE_FILE, make_private_folder, os_errors, write_file
from secure_media_processor.core.keys import refuse_exposed
from secure_media_processor.errors import AuditDamagedError, FileAccessError, MissingError, SmpError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_GENESIS = "0" * 64
_KEY_SIZE = 32
_OBJECT_DIGITS = 32
# A record has about 350 bytes; anything longer was not written by us.
_MAX_RECORD = 4096
# Appending takes milliseconds: who waits longer than this waits for something that hangs.
_LOCK_TIMEOUT = 10.0
_LOCK_PAUSE = 0.02
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
    def operation(self, action: str, *, on_failure: Callable[[SmpError], None] | None = None) -> Iterator[Operation]:
        """Record `action` when the block ends, with its outcome.

        Before the block begins everything is checked that a record needs: key, modes, lock, the end of the chain. What can go
        wrong after that (a disk that fills up meanwhile) is reported as "done, but not recorded".

        Args:
            action: Such as "encrypt".
            on_failure: Told of an error of the log, which is then not raised.

        Raises:
            SmpError: the log cannot be written; its subclasses say why.
        """
        operation = Operation()
        try:
            self.check()
        except SmpError as error:
            if on_failure is None:
                if isinstance(error, FileAccessError):  # on a disk that is read-only nothing else helps
                    other = "go on without a record, with `smp -c audit_on_failure=warn`"
                    error.hint = f"{error.hint}; or {other}" if error.hint else other
                raise
            on_failure(error)
        try:
            yield operation
        except BaseException as error:
            try:
                self.append(action, operation.object, _outcome(error))
            except SmpError as unrecorded:  # what went wrong first is what the user must hear of
                if on_failure is not None:
                    on_failure(unrecorded)
                error.add_note(f"not recorded: {unrecorded}")
            raise
        try:
            self.append(action, operation.object, "ok")
        except SmpError as error:
            if on_failure is None:
                raise type(error)(f"{action} was done, but not recorded: {error}", hint=error.hint) from error
            on_failure(error)

    def check(self) -> None:
        """Make sure that a record can be appended now. Raises as append."""
        with self._open() as file:
            self._key(file)
            self._last(file)

    def append(self, action: str, item: bytes | None, outcome: str) -> Record:
        """Append a record and sync it to disk.

        Raises:
            FileAccessError, NoSpaceError: the log cannot be written.
            KeyExposedError: others can write the log or read its key.
            AuditDamagedError: the end of the chain was changed, or the key is gone.
            TransientError: another process holds the log for longer than ten seconds.
        """
        with self._open() as file, os_errors(f"write the audit log {self.path}"):
            keyed = None if item is None else _keyed(self._key(file), item)
            last, cut = self._last(file)
            if cut is not None:
                file.truncate(cut)
                last = _append(file, last, "audit.recover", None, "ok")
            return _append(file, last, action, keyed, outcome)

    def records(self) -> Iterator[Record]:
        """Yield every record, checking the chain on the way; nothing if there is no log.

        Raises:
            AuditDamagedError: a record was changed, removed, inserted or moved.
        """
        try:
            with os_errors(f"read the audit log {self.path}"):
                file = self.path.open("rb")
        except MissingError:
            if self._key_path.exists():
                raise AuditDamagedError(f"there was an audit log {self.path}, and it is gone") from None
            return
        previous = None
        with file, os_errors(f"read the audit log {self.path}"):
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
        seen = expected in (None, head)
        for record in self.records():
            head = Head(record.seq, record.hash)
            seen = seen or head == expected
        if not seen:
            raise AuditDamagedError(f"the audit log does not hold the head {expected}: it was cut or written anew")
        return head

    def object_id(self, item: bytes) -> str | None:
        """Return the keyed id under which `item` stands in this log; None if there is no log yet."""
        try:
            with os_errors(f"read the audit log {self.path}"), self.path.open("rb", buffering=0) as file:
                return _keyed(self._key(file), item)
        except MissingError:
            return None

    @property
    def _key_path(self) -> Path:
        return self.path.with_name("audit.key")

    def _key(self, file: FileIO) -> bytes:
        """Return the key of the log that is open as `file`. It is made with the log, and only then."""
        path = self._key_path
        try:
            with os_errors(f"read {path}"), path.open("rb", buffering=0) as key_file:
                refuse_exposed(path, os.fstat(key_file.fileno()).st_mode)
                key = key_file.read(_KEY_SIZE + 1)
        except MissingError:
            if os.fstat(file.fileno()).st_size:
                raise AuditDamagedError(f"the key of the audit log, {path}, is gone") from None
            key = secrets.token_bytes(_KEY_SIZE)
            write_file(path, key)
        if len(key) != _KEY_SIZE:
            raise AuditDamagedError(f"{path} is not an audit key")
        return key

    @contextmanager
    def _open(self) -> Iterator[FileIO]:
        """Open the log for appending, alone; it is made if it is not there."""
        make_private_folder(self.path.parent)
        with os_errors(f"write the audit log {self.path}"):
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = FileIO(os.open(self.path, flags, PRIVATE_FILE), "r+")
        with file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise FileAccessError(f"the audit log {self.path} is not a file", hint="name a file in the setting audit_log")
            refuse_exposed(self.path, mode)
            self._lock(file)
            yield file

    def _lock(self, file: FileIO) -> None:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TransientError(f"the audit log {self.path} is held by another process") from None
                time.sleep(_LOCK_PAUSE)
            else:
                return

    def _last(self, file: FileIO) -> tuple[Record | None, int | None]:
        """Return the last record, and where to cut the file if a crash left part of a line after it."""
        with os_errors(f"read the audit log {self.path}"):
            size = file.seek(0, os.SEEK_END)
            start = file.seek(max(0, size - 2 * _MAX_RECORD))
            tail = file.read(2 * _MAX_RECORD)
        complete = tail[: tail.rfind(b"\n") + 1]
        last = _last_record(complete)
        if last is None and (start > 0 or complete):
            raise AuditDamagedError(f"the end of the audit log {self.path} was changed")
        return last, start + len(complete) if len(complete) < len(tail) else None


def _outcome(error: BaseException) -> str:
    """Return how an error stands in the log: by its code, never by its text."""
    if isinstance(error, SmpError):
        return error.code
    stopped = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | BrokenPipeError)
    return "SMP-INTERRUPTED" if stopped else "SMP-INTERNAL"


def _keyed(key: bytes, item: bytes) -> str:
    return hmac.digest(key, item, sha256).hex()[:_OBJECT_DIGITS]


def _last_record(lines: bytes) -> Record | None:
    try:
        return Record.parse(lines.splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        return None


def _append(file: FileIO, last: Record | None, action: str, item: str | None, outcome: str) -> Record:
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
