"""A journal: what a long job must know if it is to go on after its process died.

A file of JSON lines, mode 0600, each line on disk before `append` returns. A last line that a crash cut short is not there. The
file is held by one process at a time, and removed when the job is done. It holds no key and no data.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from io import FileIO
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from secure_media_processor.core.files import PRIVATE_FILE, make_private_folder, os_errors
from secure_media_processor.errors import FileAccessError, TransientError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

# A journal that is larger was not written by us: 10,000 parts take 1 MB.
_MAX_SIZE = 16 * 1024 * 1024


class Journal:
    """An open journal, held by this process. A context manager: leaving it lets go of the file."""

    def __init__(self, path: Path) -> None:
        """Open the journal `path`, or begin it.

        Raises:
            TransientError: another process holds it.
            FileAccessError: it cannot be read or written.
        """
        self.path = path
        self._lock, self._broken = Lock(), False
        make_private_folder(path.parent)
        with os_errors(f"open the journal {path}"):
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = FileIO(os.open(path, flags, PRIVATE_FILE), "r+")
        try:
            self._hold()
            self.entries = self._read()
        except BaseException:
            self._file.close()
            raise

    def append(self, entry: dict[str, Any]) -> None:
        """Add `entry`, which JSON can express. It is on disk on return. Raises NoSpaceError or FileAccessError."""
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with os_errors(f"write the journal {self.path}"), self._lock:
            if self._broken:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self._broken = True  # unless all goes well: after a line that is not whole none would be found again
            if os.write(self._file.fileno(), line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._file.fileno())
            self._broken = False
            self.entries.append(entry)

    def begin_anew(self) -> None:
        """Forget all entries."""
        with os_errors(f"write the journal {self.path}"):
            self._file.truncate(0)
            os.fsync(self._file.fileno())
        self.entries, self._broken = [], False

    def remove(self) -> None:
        """Remove the file: the job is done."""
        with os_errors(f"remove the journal {self.path}"):
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _hold(self) -> None:
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_SIZE:
            raise FileAccessError(f"{self.path} is not a journal", hint=f"move {self.path} away")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._held_elsewhere() from None
        if not os.fstat(self._file.fileno()).st_nlink:  # its holder has just finished the job, and removed it
            raise self._held_elsewhere()

    def _held_elsewhere(self) -> TransientError:
        message = f"another process is at the same job (it holds {self.path})"
        return TransientError(message, hint="wait until it has ended")

    def _read(self) -> list[dict[str, Any]]:
        """Return the entries, and cut off what a crash left behind them."""
        with os_errors(f"read the journal {self.path}"):
            data = self._file.readall()
            good, entries = 0, []
            for line in data.splitlines(keepends=True):
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except (ValueError, RecursionError):
                    break
                if not isinstance(entry, dict):
                    break
                entries.append(entry)
                good += len(line)
            if good < len(data):
                self._file.truncate(good)
        return entries
