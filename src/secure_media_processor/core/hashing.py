"""SHA-256 beside the work: one thread hashes what the other reads, encrypts or writes.

Hashing takes most of the time of encrypting (AES-256-GCM runs several times faster than SHA-256 where the processor has
instructions for both), and hashlib lets other threads run meanwhile; so it goes to a second core.
"""

from __future__ import annotations

from hashlib import sha256
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

# Enough for the hash to lag behind a little without stopping the reader; 1.5 MiB with blocks of 256 KiB.
_BUFFERS = 6


class Sha256Ring:
    """Buffers to fill, in turn, and the SHA-256 of what was in them.

    A context manager: leaving it stops the thread, whatever happened. The thread starts with the second buffer, so that a small
    file costs none.
    """

    def __init__(self, block: int) -> None:
        self._block = block
        self._digest = sha256()
        self._made = 0
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        self._work: SimpleQueue[tuple[memoryview, int] | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._handed_over = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop()

    def take(self) -> memoryview:
        """Return a buffer of `block` bytes to fill; waits for the hash to be done with one if all are in use."""
        if self._free.empty() and self._made < _BUFFERS:
            self._made += 1
            return memoryview(bytearray(self._block))
        return self._free.get()

    def hash(self, buffer: memoryview, size: int) -> None:
        """Hash the first `size` bytes of `buffer`, which goes back to the ring. The caller may read it until its next take."""
        self._handed_over += 1
        self._work.put((buffer, size))
        if self._handed_over == 2:  # noqa: PLR2004 - see the class: the second buffer starts the thread
            self._thread = Thread(target=self._run, name="sha256", daemon=True)
            self._thread.start()

    def hexdigest(self, tail: bytes = b"") -> str:
        """Return the SHA-256, as 64 hexadecimal digits, of all that was handed over, and `tail`. Ends the hashing."""
        started = self._thread is not None
        self._stop()
        if not started:
            self._work.put(None)
            self._run()
        self._digest.update(tail)
        return self._digest.hexdigest()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            buffer, size = item
            self._digest.update(buffer[:size])
            self._free.put(buffer)

    def _stop(self) -> None:
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None
