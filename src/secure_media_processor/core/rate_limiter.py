"""A token bucket that makes callers wait their turn."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING

from secure_media_processor.errors import RateLimitError

if TYPE_CHECKING:
    from collections.abc import Callable

# What Google Drive and Dropbox bear from one account without complaint; S3 stands more.
DEFAULT_RATE = 10.0
DEFAULT_BURST = 20.0


class RateLimiter:
    """Lets `rate` tokens a second through, and `burst` at once after a rest. Safe to share between threads.

    A caller takes its tokens at once and then sleeps until they are due (the balance may fall below zero), so turns are given
    in the order of asking and nobody polls.
    """

    def __init__(
        self,
        rate: float = DEFAULT_RATE,
        burst: float = DEFAULT_BURST,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Start with a full bucket.

        Args:
            rate: Tokens a second, above 0.
            burst: Tokens that an idle bucket gathers, at least 1.
            clock: Seconds, never running backwards.
            sleep: Waits for that many seconds on `clock`.
        """
        if not (rate > 0 and burst >= 1):
            raise ValueError("a rate above 0 and a burst of at least 1 are needed")
        self._rate, self._burst = rate, burst
        self._clock, self._sleep = clock, sleep
        self._lock = Lock()
        self._tokens = burst
        self._updated = clock()
        self._penalty_ends = self._updated

    def acquire(self, cost: float = 1.0, *, timeout: float | None = None) -> float:
        """Wait until `cost` tokens are due and take them. Returns the seconds waited.

        Args:
            cost: Tokens, above 0; more than `burst` is allowed and waits accordingly.
            timeout: Longest wait in seconds; None waits as long as it takes.

        Raises:
            RateLimitError: it would take longer than `timeout`; known, and raised, at once, and no token is taken.
                If a penalty imposed meanwhile makes it longer, the error comes when that is noticed and the tokens are lost.
        """
        if cost <= 0:
            raise ValueError("cost must be above 0")
        with self._lock:
            start = self._clock()
            self._refill(start)
            due = max(start + max(cost - self._tokens, 0.0) / self._rate, self._penalty_ends)
            _refuse_late(due - start, timeout)
            self._tokens -= cost
        while (now := self._clock()) < due:
            self._sleep(due - now)
            with self._lock:
                due = max(due, self._penalty_ends)
            _refuse_late(due - start, timeout)
        return now - start

    def penalize(self, seconds: float) -> None:
        """Let nobody through for `seconds` from now, those already waiting included: the answer to a Retry-After header."""
        with self._lock:
            self._penalty_ends = max(self._penalty_ends, self._clock() + seconds)

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now


def _refuse_late(wait: float, timeout: float | None) -> None:
    if timeout is not None and wait > timeout:
        raise RateLimitError(f"the rate limit asks for a wait of {wait:.1f} s, more than the {timeout:.1f} s allowed")
