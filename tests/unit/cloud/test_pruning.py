"""Objects that uploads left behind: they go when they are old, and never while anybody may yet refer to them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secure_media_processor import LocalConnector, SymmetricKey
from secure_media_processor.cloud import uploading
from secure_media_processor.cloud.archive import Archive, Keys
from secure_media_processor.cloud.connectors.base import CloudConnector, ObjectInfo
from secure_media_processor.cloud.index import Index, IndexedFile, IndexedObject, Record
from secure_media_processor.cloud.objects import ObjectState
from secure_media_processor.cloud.outcome import Action
from secure_media_processor.cloud.pruning import GRACE
from secure_media_processor.cloud.uploading import Source
from secure_media_processor.errors import DegradedError, TransientError

NAMES = ("one", "two", "three")
DAY = 86400.0
LARGE = (16 << 20) + 5  # has a journal


class Store(LocalConnector):
    """A folder that can be away."""

    away = False

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if self.away:
            raise TransientError("away")
        return super().list(prefix)

    @property
    def objects(self) -> set[str]:
        return {info.key for info in LocalConnector.list(self) if "/" not in info.key}


class DiedError(Exception):
    """As the process would."""


class World:
    def __init__(self, folder: Path) -> None:
        self.folder, self.key, self.now = folder, SymmetricKey.generate(), 1e9
        self.stores = {name: Store.create(folder / "stores" / name) for name in NAMES}

    def machine(self, name: str = "here", key: SymmetricKey | None = None) -> Archive:
        key = key or self.key
        stores: dict[str, CloudConnector] = dict(self.stores)
        return Archive(stores, Keys([key], [key], key.content_key), self.folder / name, answer_timeout=5)

    def source(self, name: str, size: int = 1000) -> Source:
        (self.folder / name).write_bytes(name.encode() + bytes(size))
        return Source(self.folder / name, name)

    def dies(self, name: str, machine: str = "other", size: int = 1000) -> Record:
        """Upload on another machine, up to the moment when it would write down what is stored; return what it would write."""
        archive, records = self.machine(machine), []

        def die(_index: Index, record: Record) -> None:
            records.append(record)
            raise DiedError

        archive.tell = die  # type: ignore[method-assign]
        with suppress(DiedError):
            list(archive.upload([self.source(name, size)]))
        return records[0]

    def prune(self, machine: str = "here", **options: object) -> set[str]:
        pruned = self.machine(machine).prune(now=self.now, **options)  # type: ignore[arg-type]
        return {stray.key for stray in pruned.removed}

    @property
    def objects(self) -> set[str]:
        return set().union(*(store.objects for store in self.stores.values()))


@pytest.fixture
def world(work: Path) -> World:
    return World(work)


def test_what_was_left_behind_goes_after_a_week(world: World) -> None:
    list(world.machine().upload([world.source("kept")]))
    kept = world.objects
    (lost,) = world.dies("lost").objects
    assert world.prune() == set()
    world.now += GRACE - 1
    assert world.prune() == set()
    assert world.prune("who sees it for the first time") == set()
    assert world.objects == kept | {lost}
    world.now += 1
    assert world.prune(dry_run=True) == {lost}
    assert world.objects == kept | {lost}
    assert world.prune() == {lost}
    assert all(store.objects == kept for store in world.stores.values())
    assert world.prune() == set()
    report = world.machine().verify()
    assert (report.worst, report.leftovers) == (ObjectState.FULL, {})


def test_a_dry_run_remembers_nothing(world: World) -> None:
    world.dies("lost")
    world.prune(dry_run=True)
    world.now += GRACE
    assert world.prune(dry_run=True) == set()


def test_a_shorter_time_can_be_chosen(world: World) -> None:
    (lost,) = world.dies("lost").objects
    assert world.prune(grace=0) == {lost}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.floats(0, GRACE - 1), st.sampled_from(["here", "there"])), min_size=1, max_size=5),
    st.lists(st.floats(0, 4 * GRACE), max_size=3),
)
def test_what_a_later_record_refers_to_stays(prunes: list[tuple[float, str]], later: list[float]) -> None:
    """However often it is pruned, from whichever machine, before the record comes, within the grace, and afterwards."""
    with TemporaryDirectory() as folder:
        world = World(Path(folder))
        record = world.dies("late")
        (key,) = record.objects
        start = world.now
        for after, machine in sorted(prunes):
            world.now = start + after
            assert world.prune(machine) == set()
        archive = world.machine("other")
        archive.tell(archive.read_index(), record)
        for after in sorted(later):
            world.now = start + GRACE + after
            assert world.prune() == world.prune("there") == set()
        assert key in world.objects
        assert world.machine("fresh").verify(deep=True).worst is ObjectState.FULL


@pytest.mark.parametrize("moment", ["before it is said", "when it is said"])
def test_a_record_that_comes_at_the_very_moment(world: World, moment: str) -> None:
    """The grace is over: at least one of both machines sees the other."""
    record = world.dies("late")
    (key,) = record.objects
    world.prune()
    world.now += GRACE
    archive, tell = world.machine(), Archive.tell

    def told(index: Index, what: Record) -> None:
        other = world.machine("other")
        if moment == "before it is said":
            other.tell(other.read_index(), record)
        tell(archive, index, what)
        if moment == "when it is said":
            other.tell(other.read_index(), record)

    archive.tell = told  # type: ignore[method-assign]
    pruned = archive.prune(now=world.now)
    assert [stray.key for stray in pruned.kept] == [key]
    assert pruned.removed == []
    assert key in world.objects
    assert world.machine("fresh").verify(deep=True).worst is ObjectState.FULL


def test_an_upload_that_took_too_long_says_so_and_is_done_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its object went while it slept, between sending and writing down."""
    source, archive = world.source("slow"), world.machine("other")
    tell = archive.tell

    def sleep(index: Index, record: Record) -> None:
        world.prune()
        world.now += GRACE
        assert world.prune() == set(record.objects)
        tell(index, record)

    monkeypatch.setattr(archive, "tell", sleep)
    start = time.time()
    monkeypatch.setattr(uploading.time, "time", lambda: start + world.now - 1e9)
    with pytest.raises(TransientError, match="removed by another machine"):
        list(archive.upload([source]))
    assert [one.action for one in world.machine("other").upload([source])] == [Action.STORED]
    assert world.machine("fresh").verify(deep=True).worst is ObjectState.FULL


def test_an_unfinished_upload_of_this_machine_keeps_its_object(world: World) -> None:
    (key,) = world.dies("large", machine="here", size=LARGE).objects
    world.prune()
    world.now += GRACE
    assert world.prune() == set()
    assert [one.action for one in world.machine().upload([Source(world.folder / "large", "large")])] == [Action.STORED]
    assert world.objects == {key}


def test_what_was_referred_to_meanwhile_begins_anew(world: World) -> None:
    record = world.dies("late")
    (key,) = record.objects
    world.prune()
    other = world.machine("other")
    other.tell(other.read_index(), record)
    world.now += GRACE
    assert world.prune() == set()
    assert (world.folder / "here" / "index" / "strays.json").read_text() == "{}"
    assert key in world.objects


def test_a_clock_that_was_set_back_and_a_memory_that_has_suffered(world: World) -> None:
    (key,) = world.dies("lost").objects
    world.prune()
    world.now -= 2 * GRACE
    world.prune()
    world.now += GRACE - 1
    assert world.prune() == set()
    book = world.folder / "here" / "index" / "strays.json"
    for text in ("", "[", "[1]", f'{{"{key}": "x"}}', f'{{"{key}": null}}', "[" * 100_000):
        book.write_text(text)
        assert world.prune() == set()
    world.now += GRACE
    assert world.prune() == {key}


def test_objects_of_others_and_records_stay(world: World) -> None:
    list(world.machine().upload([world.source("kept")]))
    foreign = ["notes.txt", "a" * 31, "A" * 32, f"folder/{'a' * 32}", "index/readme", f"{'a' * 32}.smp"]
    for key in foreign:
        world.stores["one"].put(key, [b"x"])
    before = {info.key for info in LocalConnector.list(world.stores["one"])}
    assert world.prune(grace=0) == set()
    assert {info.key for info in LocalConnector.list(world.stores["one"])} == before


def test_nothing_goes_unless_all_is_known(world: World) -> None:
    list(world.machine().upload([world.source("kept")]))
    world.dies("lost")
    before = world.objects
    two = world.stores["two"]

    two.away = True
    with pytest.raises(DegradedError, match="two does not answer"):
        world.prune(grace=0)
    two.away = False

    (record,) = [info.key for info in LocalConnector.list(two, "index/")]
    sealed = b"".join(two.get(record))
    two.delete(record)
    with pytest.raises(DegradedError, match="two lacks records"):
        world.prune(grace=0)
    two.put(record, [sealed])

    somebody = SymmetricKey.generate()
    list(world.machine("somebody else", somebody).upload([world.source("theirs")]))
    with pytest.raises(DegradedError, match="cannot be read"):
        world.prune(grace=0)
    assert before <= world.objects


def test_an_object_that_is_only_told_of_stays(world: World) -> None:
    """By a file without an entry for its object, and by a removal."""
    list(world.machine().upload([world.source("kept")]))
    archive = world.machine()
    index = archive.read_index()
    world.stores["one"].put("a" * 32, [b"x"])
    archive.tell(index, index.tell([IndexedFile("odd", 1, 2, "c", "a" * 32)], [IndexedObject("b" * 32, 1, {}, None)]))
    assert world.prune(grace=0) == set()
    assert "a" * 32 in world.objects
