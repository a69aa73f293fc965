"""The token bucket against a clock of the test's own, and once against the real one."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_media_processor import RateLimiter
from secure_media_processor.errors import RateLimitError


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.on_sleep: list[object] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        for act in self.on_sleep:
            act()  # type: ignore[operator]
        self.on_sleep.clear()
        self.now += seconds


def limiter(rate: float = 10, burst: float = 20) -> tuple[RateLimiter, Clock]:
    clock = Clock()
    return RateLimiter(rate, burst, clock=clock, sleep=clock.sleep), clock


def test_a_burst_is_free_and_then_the_rate_holds() -> None:
    bucket, clock = limiter()
    assert [bucket.acquire() for _ in range(20)] == [0.0] * 20
    assert [round(bucket.acquire(), 6) for _ in range(3)] == [0.1, 0.1, 0.1]
    clock.now += 1000
    assert [bucket.acquire() for _ in range(20)] == [0.0] * 20
    assert bucket.acquire() > 0


def test_the_defaults_are_ten_a_second_and_twenty_at_once() -> None:
    clock = Clock()
    bucket = RateLimiter(clock=clock, sleep=clock.sleep)
    for _ in range(100):
        bucket.acquire()
    assert clock.now - 100 == pytest.approx(8.0)


@given(st.lists(st.tuples(st.floats(0.1, 30), st.floats(0, 5)), min_size=1, max_size=50), st.floats(0.5, 100), st.floats(1, 50))
def test_never_more_than_burst_and_rate_allow(asks: list[tuple[float, float]], rate: float, burst: float) -> None:
    bucket, clock = limiter(rate, burst)
    taken = 0.0
    for cost, pause in asks:
        clock.now += pause
        bucket.acquire(cost)
        taken += cost
        assert taken <= burst + rate * (clock.now - 100) + 1e-6


def test_a_timeout_is_known_at_once_and_costs_nothing() -> None:
    bucket, clock = limiter()
    bucket.acquire(20)
    with pytest.raises(RateLimitError) as caught:
        bucket.acquire(5, timeout=0.4)
    assert (clock.now, caught.value.exit_code, caught.value.retryable) == (100.0, 11, True)
    assert bucket.acquire(5, timeout=0.5) == pytest.approx(0.5)


def test_a_penalty_stops_everybody() -> None:
    bucket, _clock = limiter()
    bucket.penalize(7)
    bucket.penalize(3)
    assert bucket.acquire() == pytest.approx(7)
    assert bucket.acquire() == 0


def test_a_penalty_stops_those_who_wait_already() -> None:
    bucket, clock = limiter()
    bucket.acquire(20)
    clock.on_sleep = [lambda: bucket.penalize(5)]
    assert bucket.acquire() == pytest.approx(5)
    bucket.acquire(20)
    clock.on_sleep = [lambda: bucket.penalize(50)]
    with pytest.raises(RateLimitError):
        bucket.acquire(timeout=10)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0), (1, 0.5), (float("nan"), 1)])
def test_senseless_limits(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        RateLimiter(rate, burst)


@pytest.mark.parametrize("cost", [0, -1])
def test_senseless_costs(cost: float) -> None:
    with pytest.raises(ValueError, match="cost"):
        RateLimiter().acquire(cost)


def test_threads_share_one_bucket_in_real_time() -> None:
    """Eight threads, sixty turns, a hundred a second after twenty: never faster than the rate."""
    bucket = RateLimiter(100, 20)
    start = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        times = sorted(pool.map(lambda _: (bucket.acquire(), time.monotonic())[1], range(60)))
    for count, moment in enumerate(times, start=1):
        assert count <= 20 + 100 * (moment - start) + 1e-3
