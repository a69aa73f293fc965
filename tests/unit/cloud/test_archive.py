"""Whole archives: what is seen, healed and never lost when stores fail, lie or are set back, and when machines meet."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from random import Random
from threading import Event

import pytest

from conftest import left_in
from secure_media_processor import LocalConnector, SymmetricKey
from secure_media_processor.cloud import manager, packs, records, transfer
from secure_media_processor.cloud.archive import Archive, Keys, Report
from secure_media_processor.cloud.connectors.base import ObjectInfo, ResumeRecord
from secure_media_processor.cloud.digests import Digests
from secure_media_processor.cloud.objects import ObjectState, ReplicaState
from secure_media_processor.cloud.outcome import Action, Done
from secure_media_processor.cloud.uploading import Source
from secure_media_processor.core.journal import Journal
from secure_media_processor.errors import (
    CredentialsError,
    ExistsError,
    FileAccessError,
    MissingError,
    NoSpaceError,
    ObjectLostError,
    QuorumError,
    SmpError,
    SourceChangedError,
    TransientError,
    UsageError,
)

NAMES = ("one", "two", "three")
LARGE = packs.LARGEST_IN_PACK + 4321  # has an object of its own


class Store(LocalConnector):
    """A folder that fails as told, tells when it is used, and counts what it gives away."""

    error: SmpError | None = None
    full: SmpError | None = None
    """As `error`, for put only."""
    before_put: Callable[[str], object] | None = None
    gets: int = 0
    given: int = 0

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def put(
        self,
        key: str,
        source: Iterable[bytes],
        *,
        digests: Mapping[str, str] | None = None,
        if_absent: bool = True,
        resume: ResumeRecord | None = None,
    ) -> ObjectInfo:
        self._fail()
        if self.full is not None:
            raise self.full
        if self.before_put is not None:
            self.before_put(key)
        return super().put(key, source, digests=digests, if_absent=if_absent, resume=resume)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._fail()
        self.gets += 1
        for block in super().get(key, offset=offset, length=length):
            self.given += len(block)
            yield block

    def stat(self, key: str) -> ObjectInfo:
        self._fail()
        return super().stat(key)

    def delete(self, key: str) -> None:
        self._fail()
        super().delete(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._fail()
        return super().list(prefix)

    def native_digest(self, key: str) -> Digests:
        self._fail()
        return super().native_digest(key)

    # what somebody does to it

    def path(self, key: str) -> Path:
        return self._folder / key

    @property
    def objects(self) -> set[str]:
        return {info.key for info in LocalConnector.list(self) if "/" not in info.key}

    @property
    def records(self) -> set[str]:
        return {info.key for info in LocalConnector.list(self, "index/")}

    def damage(self, key: str) -> None:
        data = bytearray(self.path(key).read_bytes())
        data[len(data) // 2] ^= 1
        self.path(key).write_bytes(data)


class World:
    """Some stores, and machines of one owner."""

    def __init__(self, folder: Path, names: Sequence[str] = NAMES) -> None:
        self.folder, self.key = folder, SymmetricKey.generate()
        self.stores = {name: Store.create(folder / "stores" / name) for name in names}
        (folder / "files").mkdir()
        (folder / "out").mkdir()

    def machine(self, name: str = "here", **options: object) -> Archive:
        """Return an archive as a new process on the machine `name` opens it."""
        keys = Keys([self.key], [self.key], self.key.content_key)
        options = {"stall_timeout": 5.0} | options
        return Archive(self.stores, keys, self.folder / "machines" / name, **options)  # type: ignore[arg-type]

    def file(self, name: str, size: int = 1000, seed: object = None) -> Source:
        """Make a file of random bytes, the same for the same `seed`."""
        path = self.folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Random(name if seed is None else seed).randbytes(size))
        return Source(path, name)

    def upload(self, *sources: Source, machine: str = "here", **options: object) -> list[Done]:
        return list(self.machine(machine, **options).upload(sources))

    def names(self, machine: str = "here") -> list[str]:
        return [file.name for file in self.machine(machine).read_index().files()]

    def object_of(self, name: str, machine: str = "here") -> str:
        file = self.machine(machine).read_index().file(name)
        assert file is not None
        return file.object

    def restore(self, *names: str, machine: str = "here", **options: object) -> list[Done]:
        archive = self.machine(machine)
        index = archive.read_index()
        files = [(file, self.folder / "out" / file.name) for file in index.files() if file.name in names or not names]
        return list(archive.restore(files, self.folder / "out", index, **options))  # type: ignore[arg-type]

    def check_restores(self, *sources: Source, machine: str = "a fresh one") -> None:
        """The files come out as they are, on a machine that has seen nothing yet."""
        shutil.rmtree(self.folder / "out")
        (self.folder / "out").mkdir()
        done = self.restore(machine=machine)
        assert [one.error for one in done] == [None] * len(done)
        assert left_in(self.folder / "out") == {source.name for source in sources}
        for source in sources:
            assert (self.folder / "out" / source.name).read_bytes() == source.path.read_bytes()

    def check_well(self, machine: str = "here") -> None:
        report = self.machine(machine).verify()
        assert report.worst is ObjectState.FULL
        assert (report.taken_back, report.unreadable, report.unreachable, report.leftovers) == ({}, {}, {}, {})


def troubles(report: Report) -> dict[tuple[str, str], ReplicaState]:
    """Return the state of each copy that is not intact, by object and store."""
    return {
        (status.object.key, name): replica.state
        for status in report.objects
        for name, replica in status.replicas.items()
        if replica.state is not ReplicaState.INTACT
    }


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(manager.ConnectorManager.__init__.__kwdefaults__, "pauses", (0.01, 0.01))


@pytest.fixture
def world(work: Path) -> World:
    return World(work)


# --- the everyday -----------------------------------------------------------------------------------------------------------


def test_what_goes_in_comes_out_on_any_machine(world: World) -> None:
    sources = [world.file("a/small"), world.file("a/empty", 0), world.file("large", LARGE), world.file("späť/é ü", 5)]
    assert [one.action for one in world.upload(*sources)] == [Action.STORED] * 4
    world.check_restores(*sources)
    for source in sources:
        out = world.folder / "out" / source.name
        assert out.stat().st_mode & 0o777 == 0o600
        assert out.stat().st_mtime_ns == source.path.stat().st_mtime_ns
    assert [one.action for one in world.upload(*sources)] == [Action.UNCHANGED] * 4
    assert [one.action for one in world.restore()] == [Action.UNCHANGED] * 4
    world.check_well()
    told = b"".join(path.read_bytes() for path in (world.folder / "stores").rglob("*") if path.is_file())
    for secret in (b"small", b"large", "späť".encode(), sources[0].path.read_bytes()[:16]):
        assert secret not in told


def test_equal_files_are_stored_once(world: World) -> None:
    sources = [world.file(name, size, seed=size) for size in (1000, LARGE) for name in (f"{size}-a", f"{size}-b")]
    assert [one.action for one in world.upload(*sources)].count(Action.LINKED) == 2
    again = [world.file("again", LARGE, seed=LARGE), world.file("again too", 1000, seed=1000)]
    assert [one.action for one in world.upload(*again)] == [Action.LINKED] * 2
    assert len(world.stores["one"].objects) == 2
    world.check_restores(*sources, *again)


@pytest.mark.parametrize("mtime_ns", [-(10**9), -1, 0, 2**63 + 10**9])
@pytest.mark.parametrize("size", [1000, LARGE])
def test_files_of_other_times(world: World, mtime_ns: int, size: int) -> None:
    """Cameras and archives make files from before 1970: they must not make a record of the index that nobody can read."""
    old, other = world.file("old", size), world.file("other")
    os.utime(old.path, ns=(0, mtime_ns))
    if old.path.stat().st_mtime_ns != mtime_ns:
        assert mtime_ns > 2**62  # the file system has no such time
    world.upload(old, other)
    world.check_restores(old, other)
    assert [one.action for one in world.upload(old)] in ([Action.UNCHANGED], [Action.LINKED])
    assert [one.action for one in world.restore("old")] == [Action.UNCHANGED]
    world.check_well()


def test_a_newer_file_takes_the_place_of_the_older(world: World) -> None:
    world.upload(world.file("x", seed=1))
    newer = world.file("x", 1001, seed=2)
    assert [one.action for one in world.upload(newer)] == [Action.STORED]
    world.check_restores(newer)
    world.check_well()


def test_what_was_replaced_or_removed_is_gone_from_the_stores(world: World) -> None:
    """No ciphertext of a file that its owner has removed stays for good, its older versions included."""
    for seed in (1, 2, 3):
        world.upload(world.file("x", LARGE + seed, seed=seed))
    world.machine().remove(["x"])
    world.machine().repair()
    assert [store.objects for store in world.stores.values()] == [set()] * 3


def test_a_dry_run_does_nothing(world: World) -> None:
    kept = world.file("kept")
    world.upload(kept)
    before = left_in(world.folder)
    done = list(world.machine().upload([kept, world.file("new")], dry_run=True))
    assert [one.action for one in done] == [Action.UNCHANGED, Action.STORED]
    assert [one.action for one in world.machine().remove(["kept"], dry_run=True)] == [Action.REMOVED]
    assert left_in(world.folder) == before | {"files/new"}
    assert world.names() == ["kept"]


def test_one_file_that_cannot_be_read_holds_up_no_other(world: World) -> None:
    good, gone = world.file("good"), world.file("gone")
    gone.path.unlink()
    bad_name = Source(good.path, "../outside")
    done = {one.name: one for one in world.upload(gone, bad_name, good)}
    assert done["good"].action is Action.STORED
    assert isinstance(done["gone"].error, MissingError)
    assert isinstance(done["../outside"].error, UsageError)
    assert world.names() == ["good"]


@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_file_that_changes_while_it_is_read_fails_alone(world: World, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    changing, good = world.file("changing", size), world.file("good")
    real = os.fstat

    def fstat(handle: int) -> os.stat_result:
        status = real(handle)
        if Path(f"/proc/self/fd/{handle}").readlink() == changing.path:
            os.utime(changing.path, ns=(0, status.st_mtime_ns + 1))
        return status

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        done = {one.name: one for one in world.upload(changing, good)}
    assert isinstance(done["changing"].error, SourceChangedError)
    assert done["good"].action is Action.STORED
    assert world.names() == ["good"]
    assert len(world.stores["one"].objects) == 1


# --- stores that fail -------------------------------------------------------------------------------------------------------


ERRORS = [TransientError("dead"), NoSpaceError("no space"), CredentialsError("wrong key pair")]


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize("error", ERRORS, ids=["dead", "full", "locked out"])
def test_one_of_three_stores_fails(world: World, error: SmpError, size: int) -> None:
    """The others have everything, the archive says which has not, and repair makes it whole."""
    source = world.file("x", size)
    if isinstance(error, NoSpaceError):
        world.stores["two"].full = error
    else:
        world.stores["two"].error = error
    archive = world.machine()
    assert [one.action for one in archive.upload([source])] == [Action.STORED]
    assert set(archive.degraded) == {"two"}
    assert str(error) in archive.degraded["two"]
    report = world.machine().verify()
    assert report.worst is ObjectState.DEGRADED
    states = {ReplicaState.UNREACHABLE} if world.stores["two"].error else {ReplicaState.MISSING}
    assert {name for _, name in troubles(report)} == {"two"}
    assert set(troubles(report).values()) == states
    assert set(report.unreachable) == ({"two"} if world.stores["two"].error else set())
    world.check_restores(source)
    world.stores["two"].error = world.stores["two"].full = None
    assert world.machine().repair().worst is ObjectState.FULL
    world.check_well()
    for name in ("one", "three"):
        world.stores[name].error = TransientError("now these")
    world.check_restores(source, machine="another")


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize("error", ERRORS, ids=["dead", "full", "locked out"])
def test_two_of_three_stores_fail(world: World, error: SmpError, size: int) -> None:
    """Nothing is written down, and nothing is left in the third."""
    world.upload(world.file("before"))
    there = {name: (store.objects, store.records) for name, store in world.stores.items()}
    for name in ("one", "three"):
        world.stores[name].full = error
    with pytest.raises(SmpError) as caught:
        world.upload(world.file("x", size))
    assert caught.value.exit_code == (11 if error.retryable else error.exit_code)
    for name in ("one", "three"):
        world.stores[name].full = None
    assert {name: (store.objects, store.records) for name, store in world.stores.items()} == there
    assert world.names() == ["before"]
    assert not list((world.folder / "machines" / "here").glob("uploads/*"))
    world.check_well()


def test_two_of_three_fail_for_different_reasons(world: World) -> None:
    world.stores["one"].full, world.stores["two"].full = NoSpaceError("no space"), CredentialsError("expired")
    with pytest.raises(QuorumError, match="1 of 3") as caught:
        world.upload(world.file("x"))
    assert "no space" in str(caught.value)
    assert "expired" in str(caught.value)
    assert world.stores["three"].objects == world.stores["three"].records == set()


@pytest.mark.parametrize("error", ERRORS, ids=["dead", "full", "locked out"])
@pytest.mark.parametrize("size", [1000, LARGE])
def test_the_only_store_fails(work: Path, error: SmpError, size: int) -> None:
    world = World(work, ["only"])
    world.stores["only"].full = error
    with pytest.raises(SmpError) as caught:
        world.upload(world.file("x", size))
    assert caught.value.exit_code == {0: 11, 1: 12, 2: 4}[ERRORS.index(error)]
    assert world.stores["only"].objects == world.stores["only"].records == set()
    world.stores["only"].full, world.stores["only"].error = None, error
    with pytest.raises(type(error)):
        world.machine().read_index()


def test_stores_that_are_back_at_once_are_asked_again(world: World) -> None:
    """In one process: a store that failed is left alone for a while only if the others are enough."""
    archive = world.machine()
    for name in ("one", "two"):
        world.stores[name].full = TransientError("away")
    with pytest.raises(QuorumError):
        list(archive.upload([world.file("x")]))
    for store in world.stores.values():
        store.full = None
    assert [one.action for one in archive.upload([world.file("x")])] == [Action.STORED]
    assert archive.degraded == {}
    world.check_well()


def test_a_failing_store_is_not_taken_for_a_file_that_cannot_be_read(world: World) -> None:
    """Although the name of the file stands in what the store says."""
    for name in ("one", "two"):
        world.stores[name].full = TransientError("there is no answer")
    source = world.file("large", LARGE)
    os.chdir(source.path.parent)
    source.path.rename("e")
    with pytest.raises(QuorumError):
        world.upload(Source(Path("e"), "e"), world.file("other"))


class Hanging(Store):
    """Takes connections, and never answers a put until it is let go."""

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        self.let_go = Event()

    def put(self, key: str, source: Iterable[bytes], **options: object) -> ObjectInfo:
        self.let_go.wait(30)
        return super().put(key, source, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_store_that_hangs(world: World, size: int) -> None:
    hanging = Hanging(world.folder / "stores" / "two")
    world.stores["two"] = hanging
    source = world.file("x", size)
    archive = world.machine(stall_timeout=0.2)
    start = time.monotonic()
    assert [one.action for one in archive.upload([source])] == [Action.STORED]
    assert time.monotonic() - start < 20
    assert "took nothing" in archive.degraded["two"]
    hanging.let_go.set()
    wait_for_puts()
    world.check_restores(source)
    assert world.machine().repair().worst is ObjectState.FULL
    world.check_well()


def test_two_stores_that_hang(world: World) -> None:
    for name in ("two", "three"):
        world.stores[name] = Hanging(world.folder / "stores" / name)
    with pytest.raises(QuorumError):
        world.upload(world.file("x"), stall_timeout=0.2)
    for name in ("two", "three"):
        world.stores[name].let_go.set()  # type: ignore[attr-defined]
    wait_for_puts()
    assert world.names() == []
    assert all(store.objects == set() for store in world.stores.values())


def wait_for_puts() -> None:
    deadline = time.monotonic() + 20
    while any(thread.name == "cloud-put" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.005)


# --- stores that lie --------------------------------------------------------------------------------------------------------

DAMAGES: dict[str, tuple[Callable[[Store, str, str], object], ReplicaState]] = {
    "tampered": (lambda store, key, _: store.damage(key), ReplicaState.DAMAGED),
    "cut": (lambda store, key, _: os.truncate(store.path(key), 1000), ReplicaState.DAMAGED),
    "emptied": (lambda store, key, _: os.truncate(store.path(key), 0), ReplicaState.DAMAGED),
    "longer": (lambda store, key, _: store.path(key).write_bytes(store.path(key).read_bytes() + b"x"), ReplicaState.DAMAGED),
    "deleted": (lambda store, key, _: store.path(key).unlink(), ReplicaState.MISSING),
    "another": (lambda store, key, other: shutil.copy(store.path(other), store.path(key)), ReplicaState.DAMAGED),
}


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_object_is_named_and_healed(world: World, damage: str, size: int) -> None:
    """Without fetching any object, and from whichever machine."""
    source, other = world.file("x", size), world.file("other", LARGE)
    world.upload(source)
    world.upload(other)
    key, other_key = world.object_of("x"), world.object_of("other")
    act, state = DAMAGES[damage]
    act(world.stores["two"], key, other_key)
    world.names("elsewhere")
    for store in world.stores.values():
        store.gets = 0
    for machine in ("here", "elsewhere"):
        report = world.machine(machine).verify()
        assert report.worst is ObjectState.DEGRADED
        assert troubles(report) == {(key, "two"): state}
        assert list(report.names[key]) == ["x"]
    assert [store.gets for store in world.stores.values()] == [0, 0, 0]
    assert world.machine().repair().worst is ObjectState.FULL
    world.check_well()
    world.check_restores(source, other)


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"longer"}))  # of that nobody reads what is too much
def test_an_object_that_is_damaged_everywhere_is_lost_and_named(world: World, damage: str) -> None:
    world.upload(world.file("x"))
    other = world.file("other", LARGE)
    world.upload(other)
    key, other_key = world.object_of("x"), world.object_of("other")
    for store in world.stores.values():
        DAMAGES[damage][0](store, key, other_key)
    report = world.machine().verify()
    assert report.worst is ObjectState.LOST
    assert {where for where, _ in troubles(report)} == {key}
    assert world.machine().repair().worst is ObjectState.LOST
    done = {one.name: one.error for one in world.restore()}
    assert isinstance(done["x"], ObjectLostError)
    assert done["x"].exit_code == 6
    assert done["other"] is None
    assert left_in(world.folder / "out") == {"other"}
    assert [one.action for one in world.upload(world.file("x", 1001))] == [Action.STORED]


def test_two_objects_that_were_swapped(world: World) -> None:
    """Of the same owner, valid, of the same size."""
    sources = [world.file("x", LARGE, seed=1), world.file("y", LARGE, seed=2)]
    world.upload(*sources)
    keys = [world.object_of(name) for name in ("x", "y")]
    for store in (world.stores["one"], world.stores["two"]):
        paths = [store.path(key) for key in keys]
        assert paths[0].stat().st_size == paths[1].stat().st_size
        texts = [path.read_bytes() for path in paths]
        for path, text in zip(paths, reversed(texts), strict=True):
            path.write_bytes(text)
    assert len(troubles(world.machine().verify())) == 4
    world.check_restores(*sources)
    for key in keys:
        world.stores["three"].delete(key)
    world.stores["three"].error = None
    done = world.restore(machine="here", overwrite=True)
    assert [type(one.error) for one in done if one.action is not Action.UNCHANGED] == []  # they are here already
    shutil.rmtree(world.folder / "out")
    (world.folder / "out").mkdir()
    assert [type(one.error) for one in world.restore()] == [ObjectLostError] * 2
    assert left_in(world.folder / "out") == set()


def test_a_header_for_somebody_else_is_one_stores_lie(world: World) -> None:
    """The id of the key in the header is changed: the other stores are asked, and one store cannot keep a file away."""
    source = world.file("x")
    world.upload(source)
    key = world.object_of("x")
    raw = bytearray(world.stores["one"].path(key).read_bytes())
    raw[40] ^= 1
    world.stores["one"].path(key).write_bytes(raw)
    world.check_restores(source)


def test_deep_verification_reads_everything(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a store says of itself may be false."""
    world.upload(world.file("x", LARGE), world.file("small"))
    key = world.object_of("x")
    good = world.stores["two"].native_digest(key)
    world.stores["two"].damage(key)
    real = world.stores["two"].native_digest
    monkeypatch.setattr(world.stores["two"], "native_digest", lambda k: good if k == key else real(k))
    assert world.machine().verify().worst is ObjectState.FULL
    report = world.machine().verify(deep=True)
    assert troubles(report) == {(key, "two"): ReplicaState.DAMAGED}


# --- the index in the stores ------------------------------------------------------------------------------------------------


def only(items: Iterable[str]) -> str:
    [item] = items
    return item


def test_a_record_that_was_deleted_is_named_as_taken_back_and_healed(world: World) -> None:
    source = world.file("x")
    world.upload(source)
    record = only(world.stores["two"].records)
    world.stores["two"].path(record).unlink()
    report = world.machine().verify()
    assert report.taken_back == {"two": [record.removeprefix("index/")]}
    assert troubles(report) == {(record, "two"): ReplicaState.MISSING}
    elsewhere = world.machine("elsewhere").verify()  # has never seen it there
    assert elsewhere.taken_back == {}
    assert elsewhere.worst is ObjectState.DEGRADED
    assert world.machine().repair().taken_back == {}
    world.check_well()


@pytest.mark.parametrize("machine", ["here", "elsewhere"])
@pytest.mark.parametrize("damage", ["tampered", "cut", "emptied", "longer", "another"])
def test_a_record_that_was_damaged_is_named_and_healed(world: World, damage: str, machine: str) -> None:
    sources = [world.file("x"), world.file("y", LARGE)]
    world.upload(sources[0])
    first = only(world.stores["two"].records)
    world.upload(sources[1])
    second = only(world.stores["two"].records - {first})
    DAMAGES[damage][0](world.stores["two"], first, second)
    assert world.names(machine) == ["x", "y"]
    report = world.machine(machine).verify()
    assert report.worst is ObjectState.DEGRADED
    assert troubles(report) == {(first, "two"): ReplicaState.DAMAGED}
    assert world.machine(machine).repair().worst is ObjectState.FULL
    world.check_well(machine)
    world.check_well("fresh")
    world.check_restores(*sources)


def test_records_that_are_gone_from_every_store_come_back_from_this_machine(world: World) -> None:
    source = world.file("x")
    world.upload(source)
    for store in world.stores.values():
        for record in store.records:
            store.path(record).unlink()
    assert world.names() == ["x"]
    assert world.names("fresh") == []
    assert set(world.machine().verify().taken_back) == set(NAMES)
    world.machine().repair()
    world.check_well()
    world.check_restores(source)


@pytest.mark.parametrize("many", [2, 48])
def test_a_store_that_was_set_back_is_named_and_healed(world: World, monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """Its whole folder is as it was some time ago, whether the index has been rewritten since or not."""
    monkeypatch.setattr(records, "_MANY", many)
    sources = [world.file(f"{n}", LARGE + n) for n in range(5)]
    world.upload(*sources[:2])
    folder = world.folder / "stores" / "two"
    shutil.copytree(folder, world.folder / "copy")
    world.upload(*sources[2:])
    world.machine().remove(["0"])
    shutil.rmtree(folder)
    shutil.move(world.folder / "copy", folder)
    assert world.names() == ["1", "2", "3", "4"]
    report = world.machine().verify()
    assert set(report.taken_back) == {"two"}
    assert report.worst is ObjectState.DEGRADED
    assert {(key, "two") for key in (world.object_of(name) for name in "234")} <= set(troubles(report))
    assert world.machine().repair().worst is ObjectState.FULL
    world.check_well()
    world.check_restores(*sources[1:])


def test_all_stores_are_set_back(world: World) -> None:
    """This machine still knows what there was."""
    world.upload(world.file("x"))
    shutil.copytree(world.folder / "stores", world.folder / "copy")
    world.upload(world.file("y"))
    shutil.rmtree(world.folder / "stores")
    shutil.move(world.folder / "copy", world.folder / "stores")
    assert world.names() == ["x", "y"]
    report = world.machine().verify()
    assert set(report.taken_back) == set(NAMES)
    assert report.worst is ObjectState.LOST


def test_a_removal_cannot_be_taken_back(world: World) -> None:
    world.upload(world.file("x"))
    shutil.copytree(world.folder / "stores", world.folder / "copy")
    world.machine().remove(["x"])
    shutil.rmtree(world.folder / "stores")
    shutil.move(world.folder / "copy", world.folder / "stores")
    assert world.names() == []
    assert set(world.machine().verify().taken_back) == set(NAMES)
    world.machine().repair()
    assert world.names("fresh") == []
    assert all(store.objects == set() for store in world.stores.values())


def test_a_stored_object_among_the_records_is_not_taken_for_one(world: World) -> None:
    """By somebody who hopes that the contents of a file are read as an index."""
    source = world.file("x", LARGE)
    world.upload(source)
    key = world.object_of("x")
    false = "index/" + "f" * 32
    for store in world.stores.values():
        shutil.copy(store.path(key), store.path(false))
    for machine in ("here", "fresh"):
        assert world.names(machine) == ["x"]
        assert {name: set(found) for name, found in world.machine(machine).verify().unreadable.items()} == {
            name: {"f" * 32} for name in NAMES
        }


@pytest.mark.parametrize(
    "garbage", [b"", b"x", bytes(5000), b"SMPENC\x00\x01" + bytes(5000), Random(1).randbytes(5000)], ids=range(5)
)
def test_garbage_among_the_records_does_no_harm_and_is_told_of(world: World, garbage: bytes) -> None:
    world.upload(world.file("x"))
    store = world.stores["two"]
    for name in ("0" * 32, "not-an-id", "a/b", "F" * 32, "1" * 31):
        store.path(f"index/{name}").parent.mkdir(exist_ok=True)
        store.path(f"index/{name}").write_bytes(garbage)
    assert world.names() == world.names("fresh") == ["x"]
    assert [one.action for one in world.upload(world.file("y"))] == [Action.STORED]
    report = world.machine().verify()
    assert {name: set(found) for name, found in report.unreadable.items()} == {"two": {"0" * 32}}
    assert report.worst is ObjectState.FULL
    assert world.machine().repair().worst is ObjectState.FULL
    assert world.names() == ["x", "y"]


def test_a_store_that_lists_a_record_that_it_has_not_breaks_nothing(world: World) -> None:
    world.upload(world.file("x"))
    store = world.stores["two"]
    real = store.list

    def listing(prefix: str = "") -> Iterator[ObjectInfo]:
        yield from real(prefix)
        yield ObjectInfo("index/" + "0" * 32, 5000)

    store.list = listing  # type: ignore[method-assign]
    assert world.names() == ["x"]
    assert [one.action for one in world.upload(world.file("y"))] == [Action.STORED]
    assert {name: set(found) for name, found in world.machine().verify().unreadable.items()} == {"two": {"0" * 32}}


def test_a_copy_of_the_index_that_has_suffered_is_read_from_the_stores(world: World) -> None:
    world.upload(world.file("x"))
    state = world.folder / "machines" / "here" / "index"
    for path in state.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff")
    assert world.names() == ["x"]
    world.check_well()


def test_an_object_in_which_a_file_lies_is_never_removed(world: World) -> None:
    """Whatever the index says: whoever wrote that it is to go had not seen the file."""
    sources = [world.file("x"), world.file("y")]
    world.upload(*sources)
    archive = world.machine()
    index = archive.read_index()
    key = world.object_of("x")
    archive.tell(index, index.tell(removed_objects=[key]))
    assert world.machine().repair().worst is ObjectState.FULL
    assert all(store.objects == {key} for store in world.stores.values())
    world.check_restores(*sources)
    world.machine().remove(["x"])
    assert all(store.objects == {key} for store in world.stores.values())
    world.machine().remove(["y"])
    assert all(store.objects == set() for store in world.stores.values())


def test_a_file_without_an_object_is_lost_and_told_of(world: World) -> None:
    """It should never come to that; if it does, nobody is told that all is well."""
    world.upload(world.file("x"))
    archive = world.machine()
    index = archive.read_index()
    file = index.file("x")
    assert file is not None
    archive.tell(index, index.tell([replace(file, object="0" * 32)]))
    report = world.machine().verify()
    assert report.worst is ObjectState.LOST
    assert list(report.names["0" * 32]) == ["x"]
    assert [type(one.error) for one in world.restore()] == [ObjectLostError]
    assert [one.action for one in world.upload(world.file("x"))] == [Action.STORED]  # although its time may be the same
    world.check_restores(world.file("x"))


# --- removing ---------------------------------------------------------------------------------------------------------------


def test_removing_leaves_nothing_but_what_others_need(world: World) -> None:
    twin, other = world.file("twin", LARGE, seed=1), world.file("other")
    world.upload(world.file("x", LARGE, seed=1), twin, other, world.file("packed with other"))
    assert len(world.stores["one"].objects) == 2
    world.machine().remove(["x", "packed with other"])
    world.check_restores(twin, other)
    assert len(world.stores["one"].objects) == 2
    world.machine().remove(["twin"])
    assert [len(store.objects) for store in world.stores.values()] == [1, 1, 1]
    world.machine().remove(["other"])
    assert [store.objects for store in world.stores.values()] == [set()] * 3
    world.check_well()
    with pytest.raises(MissingError):
        world.machine().remove(["other"])


def test_of_several_names_all_are_removed_or_none(world: World) -> None:
    world.upload(world.file("x"))
    with pytest.raises(MissingError):
        world.machine().remove(["x", "absent"])
    assert world.names() == ["x"]


@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_store_that_was_away_when_a_file_was_removed(world: World, size: int) -> None:
    """It brings nothing back, and loses the object with the next repair."""
    world.upload(world.file("x", size), world.file("kept", LARGE))
    key = world.object_of("x")
    world.stores["two"].error = TransientError("away")
    archive = world.machine()
    archive.remove(["x"])
    assert "two" in archive.degraded
    world.stores["two"].error = None
    assert key in world.stores["two"].objects
    for machine in ("here", "fresh"):
        assert world.names(machine) == ["kept"]
    assert set(world.machine().verify().leftovers) == {"two"}
    assert world.machine().repair().worst is ObjectState.FULL
    assert key not in world.stores["two"].objects
    assert world.names("another") == ["kept"]
    world.check_well()


def test_a_store_that_keeps_what_it_was_told_to_remove(world: World) -> None:
    world.upload(world.file("x"))
    key = world.object_of("x")
    kept = world.stores["three"].path(key).read_bytes()
    world.machine().remove(["x"])
    world.stores["three"].path(key).write_bytes(kept)
    assert world.names() == []
    assert world.machine().verify().leftovers == {"three": [key]}
    world.machine().repair()
    world.check_well()


def test_objects_of_others_are_left_alone(world: World) -> None:
    """A folder or bucket may be shared: what is unknown is told of, and never removed."""
    world.upload(world.file("x"))
    world.stores["one"].put("somebodys", [b"data"])
    world.stores["one"].put("folder/somebodys", [b"data"])
    assert world.machine().repair().leftovers == {"one": ["folder/somebodys", "somebodys"]}
    assert b"".join(world.stores["one"].get("somebodys")) == b"data"
    assert b"".join(world.stores["one"].get("folder/somebodys")) == b"data"


def test_when_the_news_of_a_removal_reach_too_few_nothing_is_removed(world: World) -> None:
    source = world.file("x")
    world.upload(source)
    for name in ("one", "two"):
        world.stores[name].full = TransientError("away")
    with pytest.raises(QuorumError):
        world.machine().remove(["x"])
    for name in ("one", "two"):
        world.stores[name].full = None
    assert world.names() == ["x"]
    world.check_restores(source)


# --- killed -----------------------------------------------------------------------------------------------------------------


class KilledError(BaseException):
    pass


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> Iterator[None]:
    def die(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(target, name, die)
        with suppress(KilledError):
            yield
            raise AssertionError("nobody came here")


@pytest.mark.parametrize("times_show_it", [True, False])
def test_the_journal_of_an_upload_that_is_over_takes_nothing_away(
    world: World, monkeypatch: pytest.MonkeyPatch, times_show_it: bool
) -> None:
    """Killed between the index and the end of the journal; then the file changes, and another still needs its old contents."""
    if not times_show_it:
        same = transfer._Identity([], encrypted=False)
        monkeypatch.setattr(transfer._Identity, "of", lambda *_: same)
    big = 17 << 20
    original = world.file("x", big, seed=1)
    with killed_at(monkeypatch, Journal, "remove"):
        world.upload(original)
    copy = world.file("copy", big, seed=1)
    assert [one.action for one in world.upload(original, copy)] == [Action.UNCHANGED, Action.LINKED]
    changed = world.file("x", big, seed=2)
    assert [one.action for one in world.upload(changed)] == [Action.STORED]
    assert world.machine().verify().worst is ObjectState.FULL
    world.check_restores(changed, copy)
    assert not list((world.folder / "machines" / "here" / "uploads").iterdir())


def test_many_small_files_go_on_where_they_were(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill near the end of a large folder does not cost the whole of it."""
    monkeypatch.setattr("secure_media_processor.cloud.packs.PACK_SIZE", 3 << 20)
    sources = [world.file(f"{n:03}", 900_000) for n in range(60)]

    def dying() -> Iterator[Source]:
        yield from sources[:55]
        raise KilledError

    with suppress(KilledError):
        list(world.machine().upload(dying()))
    done = world.upload(*sources)
    assert sum(one.action is Action.UNCHANGED for one in done) >= 25
    world.check_restores(*sources)


# --- machines that meet -----------------------------------------------------------------------------------------------------


def at_once(*acts: Callable[[], object]) -> list[object]:
    with ThreadPoolExecutor(len(acts)) as pool:
        return [future.result() for future in [pool.submit(act) for act in acts]]


@pytest.mark.parametrize("many", [3, 48])
def test_uploads_from_two_machines_lose_nothing(world: World, monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """Also while one puts a single record in the place of many, and a third reads."""
    monkeypatch.setattr(records, "_MANY", many)
    sources = {name: [world.file(f"{name}/{n}", 100 + n) for n in range(8)] for name in "ab"}
    stop, seen = Event(), []

    def upload(name: str) -> None:
        for source in sources[name]:  # a record each
            world.upload(source, machine=name)

    def read() -> None:
        reader = world.machine("c")
        while not stop.is_set():
            seen.append({file.name for file in reader.read_index().files()})

    reading = threading.Thread(target=read)
    reading.start()
    try:
        at_once(partial(upload, "a"), partial(upload, "b"))
    finally:
        stop.set()
        reading.join()
    every = sorted(source.name for found in sources.values() for source in found)
    for machine in ("a", "b", "c", "fresh"):
        assert world.names(machine) == every
    assert all(earlier <= later for earlier, later in pairwise(seen)), "a file was there, and then not"
    if many == 3:
        assert len(world.stores["one"].records) < 10
    world.check_restores(*sources["a"], *sources["b"])


def test_the_same_name_from_two_machines(world: World) -> None:
    """One of them wins, the same one for all."""
    for n in range(5):
        files = [world.file(f"{machine}/x", 2000, seed=f"{machine}{n}").path for machine in "ab"]
        at_once(*(partial(world.upload, Source(path, "x"), machine=path.parent.name) for path in files))
        contents = set()
        for machine in ("a", "b", "fresh"):
            world.restore("x", machine=machine, overwrite=True)
            contents.add((world.folder / "out" / "x").read_bytes())
        assert len(contents) == 1
        assert contents <= {path.read_bytes() for path in files}


class Turns:
    """Lets threads do their steps in a given order; who has no more steps leaves its turns to the others."""

    def __init__(self, order: Iterable[str]) -> None:
        self._order, self._changed = deque(order), threading.Condition()

    def wrap(self, who: str, act: Callable[..., object]) -> Callable[..., object]:
        def in_turn(*args: object, **options: object) -> object:
            with self._changed:
                assert self._changed.wait_for(lambda: not self._order or self._order[0] == who, timeout=30)
            try:
                return act(*args, **options)
            finally:
                with self._changed:
                    if self._order and self._order[0] == who:
                        self._order.popleft()
                    self._changed.notify_all()

        return in_turn

    def end(self, who: str) -> None:
        with self._changed:
            self._order = deque(other for other in self._order if other != who)
            self._changed.notify_all()

    def run(self, who: str, archive: Archive, act: Callable[[Archive], object]) -> object:
        """Do `act` with each reading and writing of the index, and each removal of an object, in turn."""
        own = archive._records
        own.read = self.wrap(who, own.read)  # type: ignore[method-assign, assignment]
        own._publish = self.wrap(who, own._publish)  # type: ignore[method-assign, assignment]
        archive._delete = self.wrap(who, archive._delete)  # type: ignore[method-assign, assignment]
        try:
            return act(archive)
        finally:
            self.end(who)


ORDERS = ["".join("R" if n in chosen else "L" for n in range(7)) for chosen in combinations(range(7), 4)]


@pytest.mark.parametrize(("size", "orders"), [(1000, ORDERS), (LARGE, ORDERS[::5])], ids=["small", "large"])
def test_a_file_is_removed_while_another_machine_finds_its_contents(work: Path, size: int, orders: Sequence[str]) -> None:
    """R reads, tells, reads again, removes; L reads, tells, reads again. In every order the new file is there at the end."""
    for number, order in enumerate(orders):
        folder = work / f"{number}"
        folder.mkdir()
        world = World(folder, ["one", "two"])
        world.upload(world.file("old", size, seed=1), machine="R")
        new = world.file("new", size, seed=1)
        turns = Turns(order)
        at_once(
            partial(turns.run, "R", world.machine("R"), lambda archive: archive.remove(["old"])),
            partial(turns.run, "L", world.machine("L"), lambda archive, new=new: list(archive.upload([new]))),
        )
        world.check_restores(new)
        assert world.machine("R").repair().worst is ObjectState.FULL, order
        world.check_restores(new, machine="L")
        assert len(world.stores["one"].objects) == 1, order


@pytest.mark.parametrize("order", ["AABB", "ABAB", "ABBA", "BAAB", "BABA", "BBAA"])
def test_two_machines_put_one_record_in_place_of_many(world: World, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    """At the same moment, each without the other's: nothing is lost, and the store ends with few records."""
    names = [f"{n}" for n in range(4)]
    for name in names:
        world.upload(world.file(name))
    monkeypatch.setattr(records, "_MANY", 3)
    turns = Turns(order)
    at_once(
        *(
            partial(
                turns.run, who, world.machine(who), lambda archive, who=who: list(archive.upload([world.file(f"new {who}")]))
            )
            for who in "AB"
        )
    )
    for machine in ("A", "B", "here", "fresh"):
        assert world.names(machine) == [*names, "new A", "new B"]
    assert all(len(store.records) <= 3 for store in world.stores.values())
    assert world.machine().verify().taken_back == {}


def test_a_reader_between_the_list_and_the_records(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it has listed is replaced by one record before it fetches the first."""
    names = [f"{n}" for n in range(4)]
    for name in names:
        world.upload(world.file(name))
    monkeypatch.setattr(records, "_MANY", 3)
    reader = world.machine("reader")
    real = reader._records._list
    times = 0

    def listing(prefix: str) -> None:
        nonlocal times
        times += 1
        real(prefix)
        if times == 1:
            world.upload(world.file("late"))

    monkeypatch.setattr(reader._records, "_list", listing)
    assert [file.name for file in reader.read_index().files()] == [*names, "late"]
    assert times == 2
    assert reader._records.unreadable == {}


def test_a_store_that_was_away_when_records_were_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes back with the many: that is no fault, and a repair gives it the one."""
    names = [f"{n}" for n in range(4)]
    for name in names:
        world.upload(world.file(name))
    monkeypatch.setattr(records, "_MANY", 3)
    world.stores["two"].error = TransientError("away")
    world.upload(world.file("late"))
    world.stores["two"].error = None
    assert len(world.stores["one"].records) == 1
    assert len(world.stores["two"].records) == 4
    monkeypatch.setattr(records, "_MANY", 48)
    report = world.machine().verify()
    assert report.worst is ObjectState.DEGRADED
    assert report.taken_back == {}
    assert {name for _, name in troubles(report)} == {"two"}
    for machine in ("here", "fresh"):
        assert world.machine(machine).repair().worst is ObjectState.FULL
    world.check_well()
    assert world.names("another") == [*names, "late"]


def test_progress_adds_up(world: World) -> None:
    sources = [world.file("a", 1000), world.file("b", LARGE), world.file("c", LARGE, seed="b")]
    seen: list[int] = []
    list(world.machine().upload(sources, progress=seen.append))
    assert sum(seen) == 1000 + 2 * LARGE
    seen.clear()
    archive = world.machine()
    index = archive.read_index()
    files = [(file, world.folder / "out" / file.name) for file in index.files()]
    list(archive.restore(files, world.folder / "out", index, progress=seen.append))
    assert abs(sum(seen) - (1000 + 2 * LARGE)) <= 3 * 4096  # a trailer is counted with its data


def test_stores_can_be_chosen(world: World) -> None:
    only_two = world.file("only two", LARGE)
    world.upload(only_two, targets=["two"])
    assert [len(store.objects) for store in world.stores.values()] == [0, 1, 0]
    world.check_well()
    world.machine().repair()
    assert [len(store.objects) for store in world.stores.values()] == [0, 1, 0]
    assert [one.action for one in world.upload(only_two, targets=["two"])] == [Action.UNCHANGED]
    assert [one.action for one in world.upload(only_two)] == [Action.STORED]  # now it is to be everywhere
    assert [len(store.objects) for store in world.stores.values()][::2] == [1, 1]
    with pytest.raises(UsageError):
        world.machine(targets=["four"])


def test_a_new_store_gets_everything_with_a_repair(world: World) -> None:
    sources = [world.file("x"), world.file("y", LARGE)]
    world.upload(*sources)
    world.stores["four"] = Store.create(world.folder / "stores" / "four")
    report = world.machine().verify()
    assert {name for _, name in troubles(report)} == {"four"}
    assert report.taken_back == {}
    assert world.machine().repair().worst is ObjectState.FULL
    for name in NAMES:
        world.stores[name].error = TransientError("away")
    world.check_restores(*sources)


# --- where files come out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, LARGE])
def test_nothing_is_overwritten_or_led_elsewhere(world: World, size: int) -> None:
    sources = [world.file("folder/x", size), world.file("y", size)]
    world.upload(*sources)
    (world.folder / "elsewhere").mkdir()
    out = world.folder / "out"
    (out / "folder").symlink_to(world.folder / "elsewhere")
    (out / "y").write_bytes(b"mine")
    done = {one.name: one.error for one in world.restore()}
    assert isinstance(done["folder/x"], FileAccessError)
    assert isinstance(done["y"], ExistsError)
    assert left_in(world.folder / "elsewhere") == set()
    assert (out / "y").read_bytes() == b"mine"
    done = {one.name: one.error for one in world.restore(overwrite=True)}
    assert isinstance(done["folder/x"], FileAccessError)
    assert done["y"] is None
    assert (out / "y").read_bytes() == sources[1].path.read_bytes()
    assert left_in(world.folder / "elsewhere") == set()


def test_a_store_that_another_machine_calls_by_another_name(world: World) -> None:
    """What no store has is never taken for well, and where an object is it is checked."""
    source = world.file("x", LARGE)
    world.upload(source, targets=["one", "two"])
    key, ours = world.object_of("x"), world.stores
    world.stores = {"eins": ours["one"], "zwei": ours["two"], "drei": ours["three"]}
    assert world.machine("there").verify().worst is ObjectState.FULL
    ours["one"].damage(key)
    report = world.machine("there").verify()
    assert troubles(report) == {(key, "eins"): ReplicaState.DAMAGED}
    assert world.machine("there").repair().worst is ObjectState.FULL
    assert ours["three"].objects == set()
    for name in ("one", "two"):
        ours[name].path(key).unlink()
    assert world.machine("there").verify().worst is ObjectState.LOST


def test_a_record_that_two_of_three_stores_took_is_brought_to_the_third(world: World) -> None:
    """Records go to all stores, and the quorum of the chosen ones is enough for them."""
    world.stores["three"].full = TransientError("busy")
    assert [one.action for one in world.upload(world.file("x"), targets=["one", "two"])] == [Action.STORED]
    assert world.stores["three"].records == set()
    assert len(world.stores["one"].records) == len(world.stores["two"].records) == 1
    world.stores["three"].full = None
    assert world.machine().verify().worst is ObjectState.DEGRADED
    assert world.machine().repair().worst is ObjectState.FULL
    assert world.stores["three"].records == world.stores["one"].records
    assert world.stores["three"].objects == set()
    world.stores = {"three": world.stores["three"]}
    assert world.names("fresh") == ["x"]
