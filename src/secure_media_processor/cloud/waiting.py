"""Waiting for stores, and for none too long.

Each call to a store runs in a daemon thread of its own. A store that gives nothing, or next to nothing, while others answer is
left: its thread ends when it next moves, and keeps neither the others nor the end of the program waiting. Where all are slow,
the line is, and nobody is to blame.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from functools import partial
from threading import Condition, Thread
from typing import TYPE_CHECKING, Generic, TypeVar

from secure_media_processor.errors import SmpError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

# A store that gives nothing for so long (seconds) will hardly give or take the rest in time.
STALL_TIMEOUT = 120.0
# So long a store may give less than `_LEAST` when another could have answered, or has.
ANSWER_TIMEOUT = 10.0
# So long a store that was left, or failed each time, is left alone: a thousand files must not wait for it a thousand times.
LEFT_ALONE = 60.0  # seconds
# Bytes that a store gives in ANSWER_TIMEOUT at least; what is smaller is there by then.
_LEAST = 256 << 10
# What an object in a list counts as, in bytes: sixteen of them are enough to go on.
LISTED = _LEAST // 16
# A store that answers in tiny steps is left after so many times ANSWER_TIMEOUT, if another has answered.
_STEPS = 60
_LOOK_EVERY = 0.25  # seconds

_T = TypeVar("_T")
_Item = TypeVar("_Item")

_thread = threading.local()


def moved(size: int = _LEAST) -> None:
    """Say that the call that this thread is at goes on, and has `size` bytes more. Ends the call if nobody waits any more."""
    call: Call[object] | None = getattr(_thread, "call", None)
    if call is not None:
        call.move(size)


class _LeftError(Exception):
    """Nobody waits for this call any more. It ends the call's thread and is seen by nobody."""


class Call(Generic[_T]):
    """A call to a store, in a daemon thread."""

    def __init__(self, act: Callable[[], _T], changed: Condition) -> None:
        """Begin. `changed` is told of the end, and guards what is here."""
        self._act, self._changed = act, changed
        self._begun = self._moved = self._alive = time.monotonic()
        self._given = 0
        self._left = False
        self._answer: list[_T] = []
        self._mistake: BaseException | None = None
        self.over = False
        self.error: SmpError | None = None
        Thread(target=self._run, name="cloud-call", daemon=True).start()

    def move(self, size: int) -> None:
        """Count `size` bytes."""
        if self._left:
            raise _LeftError
        self._alive = time.monotonic()
        self._given += size
        if self._given >= _LEAST:
            self._given, self._moved = 0, self._alive

    def is_slow(self, timeout: float, since: float = 0.0) -> bool:
        """Return whether it gives next to nothing for `timeout` seconds after `since`, or goes on for very many times that."""
        now = time.monotonic()
        return now - max(self._moved, since) > timeout or now - self._begun > _STEPS * timeout

    def is_silent(self, timeout: float) -> bool:
        """Return whether it has given nothing at all for `timeout` seconds."""
        return time.monotonic() - self._alive > timeout

    def leave(self, error: SmpError | None = None) -> None:
        """Wait no longer: it ended with `error`."""
        self._left = self.over = True
        self.error = error

    def answer(self) -> _T:
        """Return or raise what the call did, which is over. A mistake in a connector is raised as it is."""
        if self._mistake is not None:
            raise self._mistake
        if self.error is not None:
            raise self.error
        return self._answer[0]

    def outcome(self) -> _T | SmpError:
        """As answer, but an SmpError is returned."""
        return self.answer() if self.error is None else self.error

    def _run(self) -> None:
        error: SmpError | None = None
        mistake: BaseException | None = None
        _thread.call = self
        try:
            self._answer.append(self._act())
        except SmpError as caught:
            error = caught
        except BaseException as caught:  # noqa: BLE001 - raised by answer in the thread of whoever waits
            mistake = caught
        with self._changed:
            if not self._left:
                self.over, self.error, self._mistake = True, error, mistake
            self._changed.notify_all()


class Waiting:
    """How long some stores are waited for, and which of them are left alone for a while."""

    def __init__(self, *, answer_timeout: float = ANSWER_TIMEOUT, stall_timeout: float = STALL_TIMEOUT) -> None:
        """Wait for stores.

        Args:
            answer_timeout: Seconds for which a store may give next to nothing when another has answered, or could instead.
            stall_timeout: Seconds for which a store may give nothing at all.
        """
        self.stall_timeout = stall_timeout
        self._answer_timeout = answer_timeout
        self._left: dict[str, tuple[SmpError, float]] = {}

    def left_alone(self) -> dict[str, SmpError]:
        """Return the stores that are left alone at present, and why."""
        now = time.monotonic()
        return {name: error for name, (error, until) in list(self._left.items()) if now < until}

    def leave_alone(self, name: str, error: SmpError) -> None:
        """Leave the store `name` alone for a while because of `error`."""
        self._left[name] = error, time.monotonic() + LEFT_ALONE

    def ask_all(self, acts: Mapping[str, Callable[[], _T]], *, allowance: float = 0.0) -> dict[str, _T | SmpError]:
        """Return what each of `acts` returns, or the SmpError that it raises, by name of the store; all at once.

        A store that is slow when another has answered is left, with a TransientError, and so is one that is left alone already.

        Args:
            acts: By name of the store; what they do with it.
            allowance: Seconds that a store may need besides before it answers, such as for reading a large object.
        """
        alone = self.left_alone()
        if acts.keys() <= alone.keys():  # then nobody would be asked
            alone = {}
        changed = Condition()
        calls = {name: Call(act, changed) for name, act in acts.items() if name not in alone}
        hurry, stall = self._answer_timeout + allowance, self.stall_timeout + allowance
        answered: float | None = None  # since when another would be kept waiting
        with changed:
            while pending := [name for name, call in calls.items() if not call.over]:
                if answered is None and any(call.over and call.error is None for call in calls.values()):
                    answered = time.monotonic()
                for name in pending:
                    if (answered is not None and calls[name].is_slow(hurry, answered)) or calls[name].is_silent(stall):
                        self._leave(name, calls[name])
                changed.wait(self._look_every)
        return {name: alone[name] if name in alone else calls[name].outcome() for name in acts}

    def first(
        self,
        acts: Iterable[tuple[str, Callable[[], _T]]],
        failed: Callable[[str, SmpError], object],
        *,
        others: bool = False,
    ) -> tuple[str, _T] | None:
        """Return what the first of `acts` to succeed returns, and the name of its store; None if none does.

        The next is begun when one fails, and when one is slow, which goes on beside it. Those that are left alone come last.

        Args:
            acts: Name of a store, and what to do with it.
            failed: Is told of each that does not succeed, and why.
            others: Whether the caller has somewhere else to turn to when all of these are slow.
        """
        alone = self.left_alone()
        waiting = deque(sorted(acts, key=lambda one: one[0] in alone))
        changed = Condition()
        calls: dict[str, Call[_T]] = {}
        passed_over: set[str] = set()
        with changed:
            while waiting or calls:
                for name, call in list(calls.items()):
                    if call.over and call.error is None:
                        self._choose(name, calls, passed_over)
                        return name, call.answer()
                    slow = call.is_slow(self._answer_timeout)
                    if not call.over and (call.is_silent(self.stall_timeout) or (slow and others and not waiting)):
                        self._leave(name, call)
                    if call.error is not None:
                        del calls[name]
                        failed(name, call.error)
                    elif slow:
                        passed_over.add(name)
                if waiting and calls.keys() <= passed_over:
                    name, act = waiting.popleft()
                    calls[name] = Call(act, changed)
                if calls:
                    changed.wait(self._look_every)
        return None

    def _choose(self, chosen: str, calls: Mapping[str, Call[_T]], passed_over: set[str]) -> None:
        if chosen in passed_over:  # the line is slow, not the store: another must not be asked so soon again
            self._answer_timeout = min(2 * self._answer_timeout, self.stall_timeout)
            passed_over.clear()
        for name, call in calls.items():
            if name in passed_over:
                self._leave(name, call)
            elif name != chosen:
                call.leave()

    def _leave(self, name: str, call: Call[_T]) -> None:
        error = TransientError("it gave nothing, or next to nothing, while it was waited for")
        call.leave(error)
        self.leave_alone(name, error)

    @property
    def _look_every(self) -> float:
        return min(_LOOK_EVERY, self._answer_timeout / 4)


def in_turn(act: Callable[[_Item], _T], items: Iterable[_Item], at_once: int) -> Iterator[_T]:
    """Yield what `act` returns for each item, in order, `at_once` of them under way. Who turns away waits for nothing."""
    pending: deque[Call[_T]] = deque()
    changed = Condition()
    for item in items:
        pending.append(Call(partial(act, item), changed))
        if len(pending) == at_once:
            yield _wait_for(pending.popleft(), changed)
    while pending:
        yield _wait_for(pending.popleft(), changed)


def _wait_for(call: Call[_T], changed: Condition) -> _T:
    with changed:
        while not call.over:
            changed.wait(_LOOK_EVERY)  # without end it could not be interrupted
    return call.answer()
