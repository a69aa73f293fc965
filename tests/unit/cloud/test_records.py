"""The records of the index in the stores, and what this machine remembers of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import left_in
from secure_media_processor import LocalConnector, SymmetricKey
from secure_media_processor.cloud import records as module
from secure_media_processor.cloud.connectors.base import ObjectInfo
from secure_media_processor.cloud.index import Index, IndexedFile, IndexedObject, Record
from secure_media_processor.cloud.manager import ConnectorManager
from secure_media_processor.cloud.objects import ObjectState
from secure_media_processor.cloud.records import IndexRecords
from secure_media_processor.errors import CredentialsError, QuorumError, SmpError, TransientError

NAMES = ("one", "two", "three")
KEY = SymmetricKey.generate()


class Store(LocalConnector):
    """A folder that fails as told, and counts."""

    error: SmpError | None = None
    read_only: SmpError | None = None
    gets: int = 0

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def put(self, *args: object, **options: object) -> ObjectInfo:
        self._fail()
        if self.read_only is not None:
            raise self.read_only
        return super().put(*args, **options)  # type: ignore[arg-type]

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._fail()
        self.gets += 1
        return super().get(key, offset=offset, length=length)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._fail()
        return super().list(prefix)

    @property
    def records(self) -> set[str]:
        return {info.key.removeprefix("index/") for info in LocalConnector.list(self, "index/")}

    def path(self, record_id: str) -> Path:
        return self._folder / "index" / record_id


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stores = {name: Store.create(folder / "stores" / name) for name in NAMES}

    def records(self, machine: str = "here", key: SymmetricKey = KEY, **labels: str) -> IndexRecords:
        manager = ConnectorManager(self.stores, pauses=(0.01,), stall_timeout=5)
        names = {name: labels.get(name, name) for name in self.stores}
        return IndexRecords(manager, self.folder / machine, names, [key], [key])

    def write(self, *names: str, machine: str = "here") -> Record:
        """Tell of these files in one record."""
        records = self.records(machine)
        index = records.read()
        record = index.tell([file(name) for name in names], [item(name) for name in names])
        records.write(index, record)
        return record

    def names(self, machine: str = "here") -> list[str]:
        return [one.name for one in self.records(machine).read().files()]


def file(name: str) -> IndexedFile:
    return IndexedFile(name, 1, 2, "c", f"object-of-{name}")


def item(name: str) -> IndexedObject:
    return IndexedObject(f"object-of-{name}", 1, {"sha256": "d"}, None)


@pytest.fixture
def world(work: Path) -> World:
    return World(work)


def test_a_record_goes_into_every_store_and_a_copy_stays_here(world: World) -> None:
    record = world.write("x")
    assert all(store.records == {record.id} for store in world.stores.values())
    assert left_in(world.folder / "here") == {f"records/{record.id}.smp", *(f"seen/{name}.json" for name in NAMES)}
    for path in (world.folder / "here").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
    assert world.names() == world.names("fresh") == ["x"]


def test_what_was_read_once_is_not_fetched_again(world: World) -> None:
    world.write("x")
    world.names("fresh")
    for store in world.stores.values():
        store.gets = 0
    assert world.names() == world.names("fresh") == ["x"]
    assert [store.gets for store in world.stores.values()] == [0, 0, 0]


def test_a_fresh_machine_fetches_each_record_once(world: World) -> None:
    for number in range(6):
        world.write(f"{number}")
    for store in world.stores.values():
        store.gets = 0
    assert len(world.names("fresh")) == 6
    assert sum(store.gets for store in world.stores.values()) == 6


def test_a_record_that_too_few_take_is_not_there(world: World) -> None:
    world.write("x")
    for name in ("one", "two"):
        world.stores[name].read_only = TransientError("away")
    records = world.records()
    index = records.read()
    with pytest.raises(QuorumError):
        records.write(index, index.tell([file("y")]))
    assert [one.name for one in index.files()] == ["x"]
    for name in ("one", "two"):
        world.stores[name].read_only = None
    assert len(world.stores["three"].records) == 1
    assert world.names() == world.names("fresh") == ["x"]


def test_a_store_that_took_nothing_is_given_it_later(world: World) -> None:
    world.stores["two"].read_only = TransientError("away")
    record = world.write("x")
    world.stores["two"].read_only = None
    records = world.records()
    records.read()
    assert records.lacking() == {"two": [record.id]}
    assert records.taken_back() == {}
    assert records.repair() == {}
    assert world.stores["two"].records == {record.id}
    records.read()
    assert records.lacking() == {}


def test_a_repair_that_fails_says_so(world: World) -> None:
    world.stores["two"].read_only = TransientError("away")
    world.write("x")
    records = world.records()
    records.read()
    assert [str(error) for error in records.repair()["two"]] == ["away"]
    world.stores["two"].error = TransientError("gone")
    records.read()
    assert set(records.unreachable) == {"two"}
    assert records.repair() == {}


def test_when_no_store_answers(world: World) -> None:
    """Not even what is known here is taken for how things are."""
    world.write("x")
    for store in world.stores.values():
        store.error = TransientError("away")
    with pytest.raises(TransientError, match="one: away"):
        world.names()
    for store in world.stores.values():
        store.error = CredentialsError("expired")
    with pytest.raises(CredentialsError):
        world.names()


def test_one_store_is_enough_to_read(world: World) -> None:
    world.write("x")
    for name in ("one", "two"):
        world.stores[name].error = TransientError("away")
    records = world.records("fresh")
    assert [one.name for one in records.read().files()] == ["x"]
    assert set(records.unreachable) == {"one", "two"}
    assert not records.complete


def test_a_record_is_taken_from_the_store_that_has_it_sound(world: World) -> None:
    record = world.write("x")
    for name, data in (("one", b"garbage"), ("two", b"")):
        world.stores[name].path(record.id).write_bytes(data)
    records = world.records("fresh")
    assert [one.name for one in records.read().files()] == ["x"]
    assert {name: set(found) for name, found in records.unreadable.items()} == {"one": {record.id}, "two": {record.id}}
    for stored, names in records.objects():
        assert stored.key == record.key
        assert names == list(NAMES)
        for name in ("one", "two"):
            records.put_back(name, stored)
    for name in NAMES:
        assert world.stores[name].path(record.id).read_bytes() == world.stores["three"].path(record.id).read_bytes()


def test_records_of_somebody_else_are_told_of_and_left_alone(world: World) -> None:
    """Two people share a folder."""
    other = SymmetricKey.generate()
    theirs = world.records("theirs", other)
    index = theirs.read()
    theirs.write(index, index.tell([file("theirs")]))
    record = world.write("mine")
    assert world.names() == ["mine"]
    records = world.records()
    records.read()
    assert all(len(found) == 1 for found in records.unreadable.values())
    records.repair()
    assert all(len(store.records) == 2 for store in world.stores.values())
    assert [stored.key for stored, _ in records.objects()] == [record.key]


def test_another_store_by_an_old_name_has_taken_nothing_back(world: World) -> None:
    """The user has removed `two` and named another folder so."""
    world.write("x")
    world.stores["two"] = Store.create(world.folder / "stores" / "another")
    same, other = world.records(), world.records(two="two-of-another-label")
    for records, expected in ((same, {"two"}), (other, set())):
        assert [one.name for one in records.read().files()] == ["x"]
        assert set(records.taken_back()) == expected
        assert set(records.lacking()) == {"two"}


@pytest.mark.parametrize("data", [b"", b"{}", b'[1, null, "x"]', b"[" * 100_000, b"\xff", b'["../../../etc/passwd"]'])
def test_a_memory_that_has_suffered_is_as_none(world: World, data: bytes) -> None:
    world.write("x")
    for name in NAMES:
        (world.folder / "here" / "seen" / f"{name}.json").write_bytes(data)
    assert world.names() == ["x"]
    found = json.loads((world.folder / "here" / "seen" / "one.json").read_bytes())
    assert set(found) == world.stores["one"].records


# --- one in place of many ---------------------------------------------------------------------------------------------------


def test_now_and_then_one_record_takes_the_place_of_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MANY", 4)
    names = [f"{number:02}" for number in range(11)]
    for name in names:
        world.write(name)
        assert all(len(store.records) <= 4 for store in world.stores.values())
    assert world.names() == world.names("fresh") == names
    records = world.records()
    records.read()
    assert (records.lacking(), records.taken_back(), records.unreadable) == ({}, {}, {})
    copies = {path.stem for path in (world.folder / "here" / "records").iterdir()}
    assert copies == world.stores["one"].records  # what was replaced takes no room here either


def test_a_machine_that_has_seen_the_many_learns_of_the_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number}" for number in range(4)]
    for name in names:
        world.write(name)
    assert world.names("elsewhere") == names
    monkeypatch.setattr(module, "_MANY", 4)
    world.write("last")
    monkeypatch.setattr(module, "_MANY", 48)
    records = world.records("elsewhere")
    assert [one.name for one in records.read().files()] == [*names, "last"]
    assert (records.lacking(), records.taken_back()) == ({}, {})
    assert [names for _, names in records.objects()] == [list(NAMES)]


def test_a_removed_file_stays_removed_when_one_takes_the_place_of_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write("x", "y")
    world.stores["two"].error = TransientError("away")
    records = world.records()
    index = records.read()
    records.write(index, index.tell(removed_files=["x"], removed_objects=["object-of-x"]))
    monkeypatch.setattr(module, "_MANY", 2)
    world.write("z")
    world.stores["two"].error = None
    for machine in ("here", "fresh"):
        assert world.names(machine) == ["y", "z"]
        assert "object-of-x" in world.records(machine).read().removed


def test_a_store_that_does_not_take_the_one_keeps_the_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        world.write(f"{number}")
    monkeypatch.setattr(module, "_MANY", 3)
    world.stores["two"].read_only = TransientError("full for now")
    world.write("last")
    assert [len(store.records) for store in world.stores.values()] == [1, 3, 1]
    for name in ("one", "three"):
        world.stores[name].error = TransientError("away")
    world.stores["two"].read_only = None
    assert world.names("fresh") == ["0", "1", "2"]
    assert world.names() == ["0", "1", "2", "last"]


# --- stores that lie --------------------------------------------------------------------------------------------------------


def test_a_record_that_vanishes_for_a_moment_is_looked_for_again(world: World) -> None:
    record = world.write("x")
    for store in world.stores.values():
        store.path(record.id).rename(store.path(record.id).with_suffix(".away"))
    records = world.records("fresh")
    real, times = records._list, 0

    def listing(prefix: str) -> None:
        nonlocal times
        times += 1
        real(prefix)
        if times == 1:
            for name in NAMES:
                records._listed[name] = {record.id}
            return
        for store in world.stores.values():
            store.path(record.id).with_suffix(".away").rename(store.path(record.id))
        real(prefix)

    records._list = listing  # type: ignore[method-assign]
    assert [one.name for one in records.read().files()] == ["x"]
    assert times == 2
    assert records.unreadable == {}


@pytest.mark.parametrize("liars", [["one"], ["one", "two"], list(NAMES)])
def test_stores_that_list_what_they_do_not_have(world: World, liars: list[str]) -> None:
    world.write("x")
    false = "0" * 32
    for name in liars:
        store = world.stores[name]
        infos = [*store.list("index/"), ObjectInfo(f"index/{false}", 5000)]
        store.list = lambda _prefix="", infos=infos: iter(infos)  # type: ignore[method-assign, misc]
    records = world.records("fresh")
    assert [one.name for one in records.read().files()] == ["x"]
    assert {name: set(found) for name, found in records.unreadable.items()} == {name: {false} for name in liars}


def test_a_store_that_lists_without_end_is_not_listened_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 1000)
    world.write("x")
    endless = (ObjectInfo(f"index/{number:032x}", 1) for number in range(10**12))
    world.stores["two"].list = lambda _prefix="": endless  # type: ignore[method-assign]
    records = world.records("fresh")
    assert [one.name for one in records.read().files()] == ["x"]
    assert set(records.unreachable) == {"two"}


def test_a_store_that_gives_without_end_fills_no_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECORD", 1 << 20)
    record = world.write("x")
    given = 0

    def get(_key: str, **_: object) -> Iterator[bytes]:
        nonlocal given
        while True:
            given += 1 << 16
            yield bytes(1 << 16)

    world.stores["one"].get = get  # type: ignore[method-assign, assignment]
    records = world.records("fresh")
    assert [one.name for one in records.read().files()] == ["x"]
    assert set(records.unreadable["one"]) == {record.id}
    assert given <= 2 << 20


def test_a_store_that_fails_between_the_list_and_the_records_is_not_complete(world: World) -> None:
    """Nobody knows what its record would have told: that must not look as if nothing was there."""
    world.write("x")
    lonely = Index().tell([file("lonely")])
    world.stores["two"].put(lonely.key, [lonely.seal([KEY])])
    real = world.stores["two"].get

    def get(key: str, **options: object) -> Iterator[bytes]:
        if key == lonely.key:
            raise TransientError("the line broke")
        return real(key, **options)  # type: ignore[arg-type]

    world.stores["two"].get = get  # type: ignore[method-assign, assignment]
    records = world.records("fresh")
    assert [one.name for one in records.read().files()] == ["x"]
    assert set(records.unreachable) == {"two"}


def test_records_are_checked_by_digest(world: World) -> None:
    world.write("x")
    records = world.records()
    records.read()
    [(stored, names)] = records.objects()
    manager = ConnectorManager({name: world.stores[name] for name in names})
    assert manager.verify(stored).state is ObjectState.FULL
    world.stores["two"].path(stored.key.removeprefix("index/")).write_bytes(b"other")
    assert manager.verify(stored).state is ObjectState.DEGRADED
