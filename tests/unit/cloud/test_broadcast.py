"""One object into several stores at the same time: who is waited for, who is left behind, and who is told of the end."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Event

import pytest

from secure_media_processor.cloud import broadcast as module
from secure_media_processor.cloud.broadcast import Broadcast, CalledOffError, TooFewError
from secure_media_processor.cloud.connectors.base import ResumeRecord
from secure_media_processor.cloud.digests import Part, PartSource
from secure_media_processor.errors import NoSpaceError, SmpError, SourceChangedError, TransientError

PATIENCE = 30.0  # for what must happen, on however busy a machine
PARTS = [Part.of(bytes([number]) * 10) for number in range(12)]


@dataclass
class Taker:
    """What a broadcast needs of a store."""

    before: Callable[[int], object] = lambda _number: None
    """Called before part `number` is asked for."""
    at_end: Callable[[], object] = lambda: None
    taken: list[bytes] = field(default_factory=list)
    error: SmpError | None = None
    """How its source ended, if not well."""
    options: Mapping[str, object] = field(default_factory=dict)
    done: bool = False

    def put(self, key: str, source: Iterable[bytes], **options: object) -> None:
        self.options = {"key": key, **options}
        parts = iter(source)
        try:
            while True:
                self.before(len(self.taken))
                part = next(parts, None)
                if part is None:
                    break
                self.taken.append(part)
            self.at_end()
        except SmpError as error:
            self.error = error
            raise
        self.done = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)
    yield
    deadline = time.monotonic() + PATIENCE
    while any(thread.name == "cloud-put" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a store is still at it"
        time.sleep(0.005)


def begin(*takers: Taker, needed: int = 1, stall_timeout: float = PATIENCE, **options: object) -> Broadcast:
    stores = {f"{number}": taker for number, taker in enumerate(takers)}
    return Broadcast(stores, "key", needed=needed, stall_timeout=stall_timeout, **options)  # type: ignore[arg-type]


def send_all(broadcast: Broadcast) -> None:
    for part in PARTS:
        broadcast.send(part)
    broadcast.finish()


def fail_at(number: int, error: BaseException) -> Callable[[int], None]:
    def before(now: int) -> None:
        if now == number:
            raise error

    return before


def wait_at(number: int, event: Event) -> Callable[[int], None]:
    def before(now: int) -> None:
        if now == number:
            assert event.wait(PATIENCE)

    return before


def test_every_store_gets_every_part_in_order() -> None:
    takers = [Taker(), Taker(before=lambda _: time.sleep(0.002)), Taker()]
    with begin(*takers, needed=3) as broadcast:
        send_all(broadcast)
    assert broadcast.outcome() == {"0": None, "1": None, "2": None}
    assert broadcast.hanging == set()
    for taker in takers:
        assert taker.taken == [part.data for part in PARTS]
        assert taker.done


def test_stores_are_told_under_which_conditions() -> None:
    class Record(ResumeRecord):
        pass

    record = Record()
    takers = [Taker(), Taker()]
    with begin(*takers, records={"1": record}, overwrite=True) as broadcast:
        send_all(broadcast)
    assert takers[0].options == {"key": "key", "if_absent": False, "resume": None}
    assert takers[1].options == {"key": "key", "if_absent": False, "resume": record}


def test_digests_are_not_computed_again() -> None:
    class Hashing(Taker):
        def put(self, key: str, source: Iterable[bytes], **options: object) -> None:
            assert isinstance(source, PartSource)
            super().put(key, source, **options)
            assert [source.sha256_of(number) for number in range(len(PARTS))] == [part.sha256 for part in PARTS]

    taker = Hashing()
    with begin(taker) as broadcast:
        send_all(broadcast)
    assert taker.done


def test_an_object_of_no_parts() -> None:
    taker = Taker()
    with begin(taker) as broadcast:
        broadcast.finish()
    assert (taker.taken, taker.done) == ([], True)


@pytest.mark.parametrize("at", [0, 1, 5, 11, 12])
def test_a_store_that_fails_holds_nobody_up(at: int) -> None:
    error = NoSpaceError("full")
    takers = [Taker(), Taker(before=fail_at(at, error)), Taker()]
    with begin(*takers, needed=2) as broadcast:
        send_all(broadcast)
    assert broadcast.outcome() == {"0": None, "1": error, "2": None}
    assert takers[0].done
    assert takers[2].done


@pytest.mark.parametrize("at", [0, 3, 11])
def test_when_too_few_are_left_the_rest_is_called_off(at: int) -> None:
    error = TransientError("dead")
    takers = [Taker(), Taker(before=fail_at(at, error)), Taker(before=fail_at(at, error))]
    sent = 0
    with pytest.raises(TooFewError), begin(*takers, needed=2) as broadcast:
        while True:
            broadcast.send(PARTS[0])
            sent += 1
    assert sent <= at + 8
    outcome = broadcast.outcome()
    assert outcome["1"] is outcome["2"] is error
    assert isinstance(outcome["0"], CalledOffError)
    assert isinstance(takers[0].error, CalledOffError)  # which can be tried again: what it has is kept
    assert not takers[0].done


def test_a_source_that_fails_is_called_off_everywhere() -> None:
    """What will never be the same again is told so; what may come again is kept."""
    for error, told in (
        (SourceChangedError("changed"), SourceChangedError),
        (TransientError("later"), CalledOffError),
        (KeyboardInterrupt(), CalledOffError),
        (ZeroDivisionError(), CalledOffError),
    ):
        takers = [Taker(), Taker()]
        with pytest.raises(type(error)), begin(*takers, needed=2) as broadcast:
            broadcast.send(PARTS[0])
            raise error
        for taker in takers:
            assert type(taker.error) is told
            assert not taker.done


def test_a_mistake_in_a_connector_is_raised() -> None:
    with begin(Taker(), Taker(before=fail_at(3, ZeroDivisionError()))) as broadcast:
        send_all(broadcast)
    with pytest.raises(ZeroDivisionError):
        broadcast.outcome()


def test_a_store_is_only_so_far_behind() -> None:
    """Parts wait in memory for it: two, and no more."""
    gate = Event()
    slow, quick = Taker(before=wait_at(1, gate)), Taker()
    with begin(slow, quick, needed=2) as broadcast:
        sender = threading.Thread(target=send_all, args=(broadcast,))
        sender.start()
        deadline = time.monotonic() + PATIENCE
        while len(quick.taken) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.1)
        assert len(quick.taken) == 3  # one is at the slow store, two wait
        gate.set()
        sender.join(PATIENCE)
    assert broadcast.outcome() == {"0": None, "1": None}
    assert slow.done


@pytest.mark.parametrize("at", [0, 4, 12])
def test_a_store_that_takes_nothing_is_left_behind(at: int) -> None:
    gate = Event()
    hanging, quick = Taker(before=wait_at(at, gate)), Taker()
    start = time.monotonic()
    with begin(hanging, quick, stall_timeout=0.15) as broadcast:
        send_all(broadcast)
    assert time.monotonic() - start < PATIENCE / 2
    outcome = broadcast.outcome()
    assert outcome["1"] is None
    assert quick.done
    assert isinstance(outcome["0"], TransientError)
    assert re.search("took nothing|kept the others waiting", str(outcome["0"]))  # whichever comes first
    assert broadcast.hanging == {"0"}
    gate.set()
    deadline = time.monotonic() + PATIENCE
    while broadcast.hanging and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not hanging.done or at == 12  # and it learns so as soon as it asks
    assert broadcast.outcome() == outcome


def test_a_store_that_hangs_at_the_very_end_is_left_behind() -> None:
    gate = Event()
    hanging, quick = Taker(at_end=lambda: gate.wait(PATIENCE)), Taker()
    start = time.monotonic()
    with begin(hanging, quick, stall_timeout=0.15) as broadcast:
        send_all(broadcast)
    assert time.monotonic() - start < PATIENCE / 2
    outcome = broadcast.outcome()
    assert isinstance(outcome["0"], TransientError)
    assert outcome["1"] is None
    gate.set()


def test_a_store_that_says_it_is_alive_is_waited_for() -> None:
    """It sends what it has taken: on a slow line eight parts on their way take longer than the patience for silence."""

    class Sending(Taker):
        def put(self, key: str, source: Iterable[bytes], **options: object) -> None:
            assert isinstance(source, PartSource)
            super().put(key, source, **options)
            self.done = False
            for _ in range(9):
                time.sleep(0.1)
                source.alive()
            self.done = True

    slow = Sending()
    with begin(slow, stall_timeout=0.7) as broadcast:
        send_all(broadcast)
    assert broadcast.outcome() == {"0": None}
    assert slow.done


def test_a_slow_store_that_holds_enough_others_up_is_left_behind() -> None:
    """It takes each part in time, and all together cost the others too much."""
    slow = Taker(before=lambda _: time.sleep(0.1))
    takers = [Taker(), slow, Taker()]
    with begin(*takers, needed=2, stall_timeout=0.35) as broadcast:
        send_all(broadcast)
    outcome = broadcast.outcome()
    assert "waiting" in str(outcome["1"])
    assert outcome["0"] is outcome["2"] is None
    assert takers[0].done
    assert takers[2].done


def test_where_all_are_slow_nobody_is_to_blame() -> None:
    takers = [Taker(before=lambda _: time.sleep(0.04)) for _ in range(3)]
    with begin(*takers, needed=2, stall_timeout=0.6) as broadcast:
        for part in PARTS:
            broadcast.send(part)
        send_all(broadcast)
    assert broadcast.outcome() == {"0": None, "1": None, "2": None}


def test_a_sender_that_takes_its_time_is_waited_for() -> None:
    takers = [Taker(), Taker()]
    with begin(*takers, needed=2, stall_timeout=0.4) as broadcast:
        broadcast.send(PARTS[0])
        time.sleep(0.8)
        for part in PARTS[1:]:
            broadcast.send(part)
        time.sleep(0.5)
        broadcast.finish()
    assert broadcast.outcome() == {"0": None, "1": None}


def test_leaving_does_not_wait_for_ever_for_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TO_CLEAN_UP", 0.1)
    gate = Event()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), begin(Taker(before=wait_at(0, gate)), Taker()) as broadcast:
        broadcast.send(PARTS[0])
        raise KeyboardInterrupt
    assert time.monotonic() - start < PATIENCE / 2
    assert broadcast.hanging == {"0"}
    gate.set()
