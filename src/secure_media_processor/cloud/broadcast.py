"""One object into several stores at the same time, each at its own pace as long as that holds nobody up.

The sender calls `send` for each part and `finish` at the end. Each store takes the parts from a short queue in a thread of its
own. A store that takes nothing for a while, or that keeps enough others waiting, is left behind: repair is for that.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from threading import Condition, Thread
from typing import TYPE_CHECKING, Self

from secure_media_processor.cloud.digests import Part, PartSource
from secure_media_processor.errors import SmpError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from secure_media_processor.cloud.connectors.base import CloudConnector, ResumeRecord

# Parts that wait for a store, besides those it is at: enough that none waits for the sender, and 16 MiB each at most.
_AHEAD = 2
_LOOK_EVERY = 0.25  # seconds
# Seconds for stores to remove what was called off; a store that hangs is not waited for any longer.
_TO_CLEAN_UP = 5.0


class CalledOffError(TransientError):
    """The store did nothing wrong: the others failed, or the sender."""


class TooFewError(Exception):
    """Fewer stores are left than make sense. For whoever feeds the broadcast; users never see it."""


class Broadcast:
    """A put of one object into several stores, fed part by part. A context manager: leaving it early calls it off."""

    def __init__(
        self,
        stores: Mapping[str, CloudConnector],
        key: str,
        *,
        needed: int,
        stall_timeout: float,
        records: Mapping[str, ResumeRecord] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Begin.

        Args:
            stores: By name.
            key: Of the object.
            needed: How many stores must take it for the whole to make sense.
            stall_timeout: Seconds for which a store may take nothing, or keep `needed` others waiting.
            records: Where the put into a store keeps what lets it be taken up later.
            overwrite: Replace what is under `key`.
        """
        self._changed = Condition()
        self._needed, self._stall_timeout = needed, stall_timeout
        records = records or {}
        self._lanes = {
            name: _Lane(partial(store.put, key, if_absent=not overwrite, resume=records.get(name)), self._changed)
            for name, store in stores.items()
        }
        for lane in self._lanes.values():
            lane.thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # A source that will never give the same again says so to the stores, which then keep nothing for a later try.
        reason = error if isinstance(error, SmpError) and not error.retryable else CalledOffError("it was called off")
        with self._changed:
            called_off = self._active()
            for lane in called_off:
                lane.leave_behind(reason)
            self._changed.notify_all()
        end = time.monotonic() + _TO_CLEAN_UP
        for lane in called_off:
            lane.thread.join(max(0.0, end - time.monotonic()))

    def send(self, part: Part) -> None:
        """Hand `part` to every store that is still at it; waits for those that are behind.

        Raises:
            TooFewError: fewer than `needed` stores are left.
        """
        with self._changed:
            self._wait_for_room()
            for lane in self._active():
                lane.give(part)
            self._changed.notify_all()

    def finish(self) -> None:
        """Say that this was all, and wait for the stores."""
        with self._changed:
            for lane in self._active():
                lane.give(None)
            self._changed.notify_all()
            while pending := self._active():
                self._changed.wait(_LOOK_EVERY)
                for lane in pending:
                    if lane.silent_for() > self._stall_timeout:
                        lane.leave_behind(TransientError(f"it took nothing for {self._stall_timeout:.0f} s"))

    def outcome(self) -> dict[str, SmpError | None]:
        """Return for each store the error that kept it from taking the object. A mistake in a connector is raised."""
        for lane in self._lanes.values():
            if lane.mistake is not None:
                raise lane.mistake
        return {name: lane.error for name, lane in self._lanes.items()}

    @property
    def hanging(self) -> set[str]:
        """Names of the stores that were left behind, and may do anything yet."""
        return {name for name, lane in self._lanes.items() if lane.thread.is_alive()}

    def _active(self) -> Sequence[_Lane]:
        return [lane for lane in self._lanes.values() if not lane.over]

    def _wait_for_room(self) -> None:
        while True:
            active = self._active()
            if len(active) < self._needed:
                raise TooFewError
            full = [lane for lane in active if len(lane.waiting) >= _AHEAD]
            if not full:
                return
            start = time.monotonic()
            self._changed.wait(_LOOK_EVERY)
            idle = sum(not lane.waiting for lane in self._active())
            for lane in full:
                # Where all are slow, the line is, and nobody is to blame.
                if idle >= self._needed:
                    lane.held_others_up += time.monotonic() - start
                if lane.silent_for() > self._stall_timeout:
                    lane.leave_behind(TransientError(f"it took nothing for {self._stall_timeout:.0f} s"))
                elif lane.held_others_up > self._stall_timeout:
                    lane.leave_behind(TransientError(f"it kept the others waiting for {self._stall_timeout:.0f} s"))


class _Lane:
    """One store's put, in a daemon thread: a store that hangs for ever must not keep the program from ending."""

    def __init__(self, put: Callable[[Iterable[bytes]], object], changed: Condition) -> None:
        self._put, self._changed = put, changed
        self.waiting: deque[Part | None] = deque()
        """Parts to be taken; None is the end. Guarded by `changed`, as all here."""
        self._moved = time.monotonic()
        self.held_others_up = 0.0
        self.over = False
        self.left_behind = False
        self.error: SmpError | None = None
        self.mistake: BaseException | None = None
        self.thread = Thread(target=self._run, name="cloud-put", daemon=True)

    def give(self, part: Part | None) -> None:
        """Let `part`, or None for the end, wait for the store."""
        if not self.waiting:  # so far it may have been the sender that was slow
            self._moved = time.monotonic()
        self.waiting.append(part)

    def silent_for(self) -> float:
        """Return the seconds since the store last took a part, was given the first that waits, or said that it moves."""
        return time.monotonic() - self._moved

    def leave_behind(self, error: SmpError) -> None:
        """Go on without this store, whose put ends with `error` as soon as it asks for more."""
        self.over = self.left_behind = True
        self.error = error
        self.waiting.clear()

    def _alive(self) -> None:
        self._moved = time.monotonic()

    def _parts(self) -> Iterator[Part]:
        while True:
            with self._changed:
                self._moved = time.monotonic()
                self._changed.wait_for(lambda: self.waiting or self.left_behind)
                self._moved = time.monotonic()
                if self.left_behind and self.error is not None:
                    raise self.error
                part = self.waiting.popleft()
                self._changed.notify_all()
            if part is None:
                return
            yield part

    def _run(self) -> None:
        error: SmpError | None = None
        mistake: BaseException | None = None
        try:
            self._put(PartSource(self._parts(), self._alive))
        except SmpError as caught:
            error = caught
        except BaseException as caught:  # noqa: BLE001 - raised by finish in the thread of the caller
            mistake = caught
        with self._changed:
            if not self.left_behind:
                self.over, self.error, self.mistake = True, error, mistake
            self.waiting.clear()
            self._changed.notify_all()
