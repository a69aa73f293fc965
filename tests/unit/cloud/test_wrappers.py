"""Patience, pace, rehearsal and record, around a store that fails as told. Time is the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from conftest import left_in
from secure_media_processor import AuditLog, LocalConnector, RateLimiter
from secure_media_processor.cloud.connectors.base import CloudConnector, ObjectInfo, ResumeRecord
from secure_media_processor.cloud.digests import Digests
from secure_media_processor.cloud.testing import ConnectorConformance
from secure_media_processor.cloud.wrappers import Audited, Paced, Patience, Rehearsing, Retrying
from secure_media_processor.errors import (
    CredentialsError,
    ExistsError,
    IntegrityError,
    MissingError,
    NoSpaceError,
    SmpError,
    ThrottledError,
    TransientError,
    UsageError,
)


class Scripted(LocalConnector):
    """A folder whose calls fail in turn, as `script` says; None lets one through. `after` fails once the work is done."""

    script: list[SmpError | None]
    after: list[SmpError | None]
    calls: int = 0
    break_after: int | None = None

    def _next(self, script: list[SmpError | None]) -> None:
        error = script.pop(0) if script else None
        if error is not None:
            raise error

    def put(
        self,
        key: str,
        source: Iterable[bytes],
        *,
        digests: Mapping[str, str] | None = None,
        if_absent: bool = True,
        resume: ResumeRecord | None = None,
    ) -> ObjectInfo:
        self.calls += 1
        self._next(self.script)
        info = super().put(key, source, digests=digests, if_absent=if_absent, resume=resume)
        self._next(self.after)
        return info

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self.calls += 1
        self._next(self.script)
        sent = 0
        for block in super().get(key, offset=offset, length=length):
            if self.break_after is not None and sent + len(block) > self.break_after:
                yield block[: self.break_after - sent]
                raise TransientError("the connection broke")
            sent += len(block)
            yield block

    def stat(self, key: str) -> ObjectInfo:
        self.calls += 1
        self._next(self.script)
        return super().stat(key)

    def delete(self, key: str) -> None:
        self.calls += 1
        self._next(self.script)
        super().delete(key)
        self._next(self.after)

    def native_digest(self, key: str) -> Digests:
        self._next(self.script)
        return super().native_digest(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.calls += 1
        for info in super().list(prefix):
            self._next(self.script)
            yield info


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def store(work: Path) -> Scripted:
    connector = Scripted.create(work / "store")
    connector.script, connector.after = [], []
    return connector


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def patient(store: Scripted, clock: Clock) -> Retrying:
    return Retrying(store, clock=clock, sleep=clock.sleep)


WRAPPED: dict[str, Callable[[CloudConnector, Path], CloudConnector]] = {
    "retrying": lambda inner, _: Retrying(inner),
    "paced": lambda inner, _: Paced(inner, RateLimiter(1e12, 1e12)),
    "audited": lambda inner, folder: Audited(inner, AuditLog(folder / "audit" / "audit.jsonl")),
    "all": lambda inner, folder: Audited(
        Retrying(Paced(inner, RateLimiter(1e12, 1e12))), AuditLog(folder / "audit" / "audit.jsonl")
    ),
}


class TestWrapped(ConnectorConformance):
    """A wrapper is a connector: it passes the same exam."""

    @pytest.fixture(params=sorted(WRAPPED))
    def connector(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CloudConnector:
        folder = tmp_path_factory.mktemp("wrapped")
        return WRAPPED[request.param](LocalConnector.create(folder / "store"), folder)


# --- patience ------------------------------------------------------------------------------------------------------------


def test_what_may_pass_is_tried_again(store: Scripted, patient: Retrying, clock: Clock) -> None:
    store.script = [TransientError("1"), TransientError("2"), TransientError("3")]
    patient.put("key", [b"data"])
    assert store.calls == 4
    assert len(clock.pauses) == 3
    assert all(pause <= limit for pause, limit in zip(clock.pauses, (0.5, 1, 2), strict=True))
    for act in (patient.stat, patient.native_digest, patient.delete):
        store.script = [TransientError("x")] * 2
        act("key")


@pytest.mark.parametrize("kind", [NoSpaceError, CredentialsError, MissingError, IntegrityError, ExistsError, UsageError])
def test_what_will_not_pass_is_raised_at_once(store: Scripted, patient: Retrying, clock: Clock, kind: type[SmpError]) -> None:
    acts = (
        lambda: patient.put("key", [b""]),
        lambda: patient.stat("key"),
        lambda: patient.delete("key"),
        lambda: list(patient.get("key")),
    )
    for act in acts:
        store.script, store.calls = [kind("for good")], 0
        with pytest.raises(kind):
            act()
        assert (store.calls, clock.pauses) == (1, [])


def test_patience_ends(store: Scripted, clock: Clock) -> None:
    patient = Retrying(store, Patience(deadline=10, first=0.5, longest=4), clock=clock, sleep=clock.sleep)
    store.script = [TransientError(str(n)) for n in range(1000)]
    with pytest.raises(TransientError):
        patient.stat("key")
    assert clock.now <= 10
    assert max(clock.pauses) <= 4
    assert 3 <= store.calls < 1000


def test_a_provider_that_asks_for_a_pause_gets_it(store: Scripted, clock: Clock) -> None:
    limiter = RateLimiter(10, 20, clock=clock, sleep=clock.sleep)
    patient = Retrying(store, limiter=limiter, clock=clock, sleep=clock.sleep)
    store.put("key", [b"x"])
    store.script = [ThrottledError("slow down", retry_after=42), None]
    patient.stat("key")
    assert clock.pauses == [42]
    store.script = [ThrottledError("slow down", retry_after=10**9)]
    patient.stat("key")
    assert clock.pauses[1] == 300  # what a hostile or broken server asks for has an end
    store.script = [ThrottledError("slow down")]
    patient.stat("key")
    assert clock.pauses[2] <= 0.5
    limiter.penalize(5)
    assert limiter.acquire() == pytest.approx(5)


def test_a_source_that_can_be_read_once_gets_one_try(store: Scripted, patient: Retrying) -> None:
    store.script = [TransientError("down")]
    with pytest.raises(TransientError):
        patient.put("key", iter([b"data"]))
    assert store.calls == 1
    with pytest.raises(MissingError):
        store.stat("key")


def test_a_source_that_can_be_read_once_stays_one_inside_other_wrappers(store: Scripted, clock: Clock) -> None:
    """Else a second try would store an empty object and call it done."""
    limiter = RateLimiter(1e9, 1e9)
    wrapped = Paced(Retrying(store, clock=clock, sleep=clock.sleep), limiter)

    store.after = [TransientError("the answer was lost")]
    with pytest.raises(TransientError):
        wrapped.put("key", iter([b"data"]))
    assert store.calls == 1
    store.script = [TransientError("down")]
    wrapped.put("again", [b"data"])
    assert b"".join(store.get("again")) == b"data"


def test_an_answer_that_was_lost_is_not_a_conflict(store: Scripted, patient: Retrying) -> None:
    store.after = [TransientError("the answer was lost")]
    assert patient.put("key", [b"da", b"ta"]) == ObjectInfo("key", 4)
    store.after = [TransientError("the answer was lost")]
    patient.delete("key")
    with pytest.raises(MissingError):
        patient.delete("key")


def test_another_object_under_the_key_is_a_conflict(store: Scripted, patient: Retrying) -> None:
    store.put("key", [b"theirs"])
    with pytest.raises(ExistsError):
        patient.put("key", [b"ours"])
    store.script = [TransientError("down")]
    with pytest.raises(ExistsError):
        patient.put("key", [b"ours"])
    assert b"".join(store.get("key")) == b"theirs"


@pytest.mark.parametrize(("offset", "length"), [(0, None), (100_000, None), (5, 700_000), (0, 0)])
def test_a_transfer_goes_on_where_it_broke(store: Scripted, patient: Retrying, offset: int, length: int | None) -> None:
    data = bytes(range(256)) * 4_000
    store.put("key", [data])
    store.calls, store.break_after = 0, 300_000
    expected = data[offset:] if length is None else data[offset : offset + length]
    assert b"".join(patient.get("key", offset=offset, length=length)) == expected
    assert store.calls == -(-len(expected) // 300_000) or not expected


def test_a_transfer_that_stands_still_ends(store: Scripted, patient: Retrying, clock: Clock) -> None:
    store.put("key", [bytes(1000)])
    store.break_after = 0
    with pytest.raises(TransientError):
        list(patient.get("key"))
    assert clock.now <= 300


def test_a_listing_goes_on_after_the_last_key(store: Scripted, patient: Retrying) -> None:
    for number in range(5):
        store.put(f"key{number}", [b""])
    store.script = [None, None, TransientError("broke"), TransientError("again")]
    assert [info.key for info in patient.list()] == [f"key{number}" for number in range(5)]


# --- pace ----------------------------------------------------------------------------------------------------------------


def test_bytes_go_no_faster_than_allowed(store: Scripted, clock: Clock) -> None:
    paced = Paced(store, RateLimiter(1000, 1000, clock=clock, sleep=clock.sleep))
    paced.put("key", [bytes(500)] * 10)
    assert clock.now == pytest.approx(4)
    assert len(b"".join(paced.get("key"))) == 5000
    assert clock.now == pytest.approx(9)


# --- rehearsal -----------------------------------------------------------------------------------------------------------


def test_a_rehearsal_changes_nothing_and_says_what_it_would(store: Scripted, work: Path) -> None:
    told: list[str] = []
    rehearsing = Rehearsing(store, told.append)
    store.put("there", [b"data"])
    before = left_in(work)
    assert rehearsing.put("new", [b"four"]) == ObjectInfo("new", 4)
    rehearsing.delete("there")
    assert told == ["would store new (4 bytes)", "would remove there (4 bytes)"]
    for error, act in (
        (ExistsError, lambda: rehearsing.put("there", [b""])),
        (MissingError, lambda: rehearsing.delete("absent")),
        (UsageError, lambda: rehearsing.put("../x", [b""])),
        (IntegrityError, lambda: rehearsing.put("bad", [b""], digests={"sha256": sha256(b"x").hexdigest()})),
    ):
        with pytest.raises(error):
            act()
    rehearsing.put("there", [b"new"], if_absent=False)
    assert left_in(work) == before
    assert b"".join(rehearsing.get("there")) == b"data"


# --- record --------------------------------------------------------------------------------------------------------------


def test_what_is_done_is_recorded_and_names_are_not(store: Scripted, work: Path) -> None:
    log = AuditLog(work / "audit" / "audit.jsonl")
    audited = Audited(store, log)
    audited.put("rowena", [b"data"])
    list(audited.get("rowena"))
    next(iter(audited.get("rowena")))
    store.script = [TransientError("down")]
    with pytest.raises(TransientError):
        audited.delete("rowena")
    audited.stat("rowena")
    records = list(log.records())
    assert [(r.action, r.outcome) for r in records] == [
        ("cloud.put", "ok"), ("cloud.get", "ok"), ("cloud.get", "SMP-INTERRUPTED"), ("cloud.delete", "SMP-TRANSIENT"),
    ]  # fmt: skip
    assert {r.object for r in records} == {log.object_id(b"rowena")}
    assert "rowena" not in log.path.read_text()
