"""Stores that hang and trickle while they are read: others answer in their place, and nothing waits for them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from threading import Event

import pytest

from conftest import left_in
from secure_media_processor import LocalConnector, SymmetricKey
from secure_media_processor.cloud import waiting as module
from secure_media_processor.cloud.archive import Archive, Keys
from secure_media_processor.cloud.connectors.base import ObjectInfo
from secure_media_processor.cloud.digests import Digests
from secure_media_processor.cloud.objects import ObjectState, ReplicaState
from secure_media_processor.cloud.outcome import Action
from secure_media_processor.cloud.uploading import Source
from secure_media_processor.cloud.waiting import Waiting, in_turn, moved
from secure_media_processor.errors import MissingError, SmpError, TransientError

NAMES = ("one", "two", "three")
QUICK = 5.0  # seconds; far less than a store that hangs takes here


class Hanging(LocalConnector):
    """A folder that hangs, or trickles, in some calls until it is let go."""

    hangs: frozenset[str] = frozenset()
    trickles: bool = False
    flips: bool = False

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        self.let_go = Event()
        self.asked: list[str] = []

    def _hang(self, call: str) -> None:
        self.asked.append(call)
        if call in self.hangs and not self.trickles:
            self.let_go.wait(60)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._hang("get")
        for block in super().get(key, offset=offset, length=length):
            if self.trickles and "get" in self.hangs:
                for at in range(len(block)):
                    self.let_go.wait(0.02)
                    yield block[at : at + 1]
            elif self.flips:
                yield bytes([block[0] ^ 1]) + block[1:]
            else:
                yield block

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._hang("list")
        for info in super().list(prefix):
            if self.trickles and "list" in self.hangs:
                self.let_go.wait(0.1)
            yield info
        while self.trickles and "list" in self.hangs and not self.let_go.is_set():
            self.let_go.wait(0.1)
            yield ObjectInfo(f"x{time.monotonic()}", 1)

    def native_digest(self, key: str) -> Digests:
        self._hang("native_digest")
        return super().native_digest(key)

    def delete(self, key: str) -> None:
        self._hang("delete")
        super().delete(key)


class World:
    """Three stores and a file in them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, SymmetricKey.generate()
        self.stores = {name: Hanging.create(folder / "stores" / name) for name in NAMES}
        (folder / "files").mkdir()
        self.sources = [self._source("small", 1000), self._source("large", 1 << 21)]
        list(self.machine("first").upload(self.sources))

    def _source(self, name: str, size: int) -> Source:
        (self.folder / "files" / name).write_bytes(Random(name).randbytes(size))
        return Source(self.folder / "files" / name, name)

    def machine(self, name: str = "here", stores: Mapping[str, Hanging] | None = None) -> Archive:
        keys = Keys([self.key], [self.key], self.key.content_key)
        folder = self.folder / "machines" / name
        return Archive(stores or self.stores, keys, folder, answer_timeout=0.3, stall_timeout=20.0)

    def download(self, machine: str = "here") -> Archive:
        archive, out = self.machine(machine), self.folder / "out"
        out.mkdir()
        index = archive.read_index()
        done = list(archive.restore([(file, out / file.name) for file in index.files()], out, index))
        assert [one.action for one in done] == [Action.RESTORED] * 2
        for source in self.sources:
            assert (out / source.name).read_bytes() == source.path.read_bytes()
        assert left_in(out) == {"small", "large"}
        return archive


@pytest.fixture
def world(work: Path) -> Iterator[World]:
    world = World(work)
    yield world
    for store in world.stores.values():
        store.let_go.set()


@contextmanager
def at_once() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < QUICK


@pytest.mark.parametrize("trickles", [False, True])
@pytest.mark.parametrize("hanging", NAMES)
@pytest.mark.parametrize("calls", [{"list"}, {"get"}, {"list", "get", "native_digest", "delete"}])
def test_a_download_does_not_wait_for_a_store(world: World, hanging: str, calls: set[str], trickles: bool) -> None:
    store = world.stores[hanging]
    store.hangs, store.trickles = frozenset(calls), trickles
    with at_once():
        archive = world.download()
    assert set(archive.degraded) <= {hanging}


@pytest.mark.parametrize("hanging", NAMES)
def test_a_store_that_lies_while_another_hangs(world: World, hanging: str) -> None:
    """Authentication decides: what is quick and false is refused, from whichever store it comes."""
    store = world.stores[hanging]
    store.hangs = frozenset({"get"})
    liar = next(name for name in NAMES if name != hanging)
    world.stores[liar].flips = True
    with at_once():
        world.download()


def test_a_store_that_was_left_is_not_asked_for_each_file(world: World) -> None:
    world.stores["one"].hangs = frozenset({"get"})
    world.download("elsewhere")
    assert world.stores["one"].asked.count("get") <= 4


def test_everything_goes_on_without_a_store(world: World) -> None:
    """Listing, uploading, checking, removing and repairing; what the store lacks it gets when it is back."""
    world.stores["two"].hangs = frozenset({"list", "get", "native_digest", "delete"})
    with at_once():
        archive = world.machine()
        assert [file.name for file in archive.read_index().files()] == ["large", "small"]
        assert set(archive.degraded) == {"two"}
    with at_once():
        (world.folder / "files" / "new").write_bytes(b"new")
        new = Source(world.folder / "files" / "new", "new")
        assert [one.action for one in world.machine().upload([new])] == [Action.STORED]
    with at_once():
        report = world.machine().verify()
        assert set(report.unreachable) == {"two"}
        assert {status.replicas["two"].state for status in report.objects} == {ReplicaState.UNREACHABLE}
    with at_once():
        assert [one.action for one in world.machine().remove(["small"])] == [Action.REMOVED]
    with at_once():
        assert world.machine().repair().worst is ObjectState.DEGRADED
    world.stores["two"].hangs = frozenset()
    world.stores["two"].let_go.set()
    assert world.machine().repair().worst is ObjectState.FULL
    assert not world.machine().verify().leftovers


def test_a_store_that_hangs_only_when_it_is_checked(world: World) -> None:
    world.stores["three"].hangs = frozenset({"native_digest"})
    with at_once():
        report = world.machine().verify()
    assert report.worst is ObjectState.DEGRADED
    assert world.stores["three"].asked.count("native_digest") <= 8


def test_where_all_are_slow_nobody_is_left(world: World) -> None:
    """The line is slow then."""
    for store in world.stores.values():
        threading.Timer(1.0, store.let_go.set).start()
        store.hangs = frozenset({"list"})
    archive = world.machine()
    archive.read_index()
    assert archive.degraded == {}


def test_the_only_store_is_waited_for_until_it_stalls(world: World) -> None:
    store = world.stores["one"]
    store.hangs = frozenset({"list"})
    archive = world.machine(stores={"one": store})
    archive.manager.waiting.stall_timeout = 0.5
    with at_once(), pytest.raises(TransientError):
        archive.read_index()


def test_the_program_ends_while_a_store_hangs(work: Path) -> None:
    code = """
import threading, time
from secure_media_processor.cloud.waiting import Waiting
waiting = Waiting(answer_timeout=0.2)
print(waiting.ask_all({"hanging": lambda: time.sleep(600), "quick": lambda: 1}))
"""
    with at_once():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert b"'quick': 1" in done.stdout
    assert done.stderr == b""


# --- the mechanism ----------------------------------------------------------------------------------------------------------


def gave(value: object, after: float = 0.0, error: SmpError | None = None) -> Callable[[], object]:
    def act() -> object:
        time.sleep(after)
        if error is not None:
            raise error
        return value

    return act


def test_the_next_is_asked_when_one_fails_or_is_slow() -> None:
    failed: dict[str, SmpError] = {}
    waiting = Waiting(answer_timeout=0.2, stall_timeout=20)
    acts = [("bad", gave(0, error=MissingError("no"))), ("slow", gave(1, after=10)), ("good", gave(2))]
    with at_once():
        assert waiting.first(acts, failed.__setitem__) == ("good", 2)
    assert list(failed) == ["bad"]
    assert list(waiting.left_alone()) == ["slow"]
    with at_once():  # that comes last now
        assert waiting.first(acts[1:], failed.__setitem__) == ("good", 2)


def test_when_the_slow_one_is_the_quicker_all_are_given_more_time() -> None:
    waiting = Waiting(answer_timeout=0.2, stall_timeout=20)
    acts = [("slow", gave(1, after=0.6)), ("slower", gave(2, after=5))]
    assert waiting.first(acts, dict[str, SmpError]().__setitem__) == ("slow", 1)
    assert waiting.left_alone() == {}
    assert waiting._answer_timeout == 0.4


def test_nobody_answers() -> None:
    failed: dict[str, SmpError] = {}
    waiting = Waiting(answer_timeout=0.1, stall_timeout=0.4)
    with at_once():
        assert waiting.first([("a", gave(1, after=5)), ("b", gave(1, after=5))], failed.__setitem__) is None
    assert {type(error) for error in failed.values()} == {TransientError}


def test_one_that_moves_is_waited_for_and_one_that_trickles_is_not() -> None:
    def steps(size: int) -> Callable[[], int]:
        def act() -> int:
            for _ in range(12):
                time.sleep(0.1)
                moved(size)
            return size

        return act

    acts = {"moves": steps(module._LEAST), "trickles": steps(1), "quick": lambda: 0}
    answers = Waiting(answer_timeout=0.6).ask_all(acts)
    assert (answers["moves"], answers["quick"]) == (module._LEAST, 0)
    assert isinstance(answers["trickles"], TransientError)


def test_a_store_of_many_little_steps_is_left_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEPS", 3)

    def endless() -> None:
        while True:
            time.sleep(0.02)
            moved()

    with at_once():
        assert isinstance(Waiting(answer_timeout=0.2).ask_all({"endless": endless, "quick": lambda: None})["endless"], SmpError)


def test_a_call_that_was_left_ends_when_it_moves() -> None:
    ended = Event()

    def act() -> None:
        try:
            while True:
                time.sleep(0.05)
                moved(1)
        finally:
            ended.set()

    Waiting(answer_timeout=0.2).ask_all({"trickles": act, "quick": lambda: None})
    assert ended.wait(5)


def test_a_mistake_in_a_connector_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        Waiting().ask_all({"wrong": lambda: 1 // 0})
    with pytest.raises(ZeroDivisionError):
        Waiting().first([("wrong", lambda: 1 // 0)], dict[str, SmpError]().__setitem__)
    with pytest.raises(ZeroDivisionError):
        list(in_turn(lambda n: 1 // n, [1, 0], 2))


def test_in_turn_keeps_the_order_and_does_a_few_at_once() -> None:
    under_way, most, lock = 0, 0, threading.Lock()

    def act(number: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01 * (number % 3))
        with lock:
            under_way -= 1
        return number

    assert list(in_turn(act, range(20), 4)) == list(range(20))
    assert 1 < most <= 4
