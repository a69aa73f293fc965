"""Several stores: quorum, verification, repair and fetching, with stores that die, lie and fill up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Event

import pytest

from conftest import left_in
from secure_media_processor import ConnectorManager as AnyManager
from secure_media_processor import LocalConnector, SymmetricKey, encrypt_file
from secure_media_processor.cloud.connectors.base import ObjectInfo, ResumeRecord
from secure_media_processor.cloud.digests import Digests
from secure_media_processor.cloud.objects import ObjectState, ReplicaState, StoredObject
from secure_media_processor.cloud.wrappers import Patience, Retrying
from secure_media_processor.errors import (
    CredentialsError,
    ExistsError,
    FileAccessError,
    MissingError,
    NoSpaceError,
    NotEncryptedError,
    ObjectLostError,
    QuorumError,
    SmpError,
    TransientError,
    UsageError,
)

INTACT, DAMAGED, MISSING, UNREACHABLE = (
    ReplicaState.INTACT,
    ReplicaState.DAMAGED,
    ReplicaState.MISSING,
    ReplicaState.UNREACHABLE,
)


ConnectorManager = partial(AnyManager, pauses=(0.01, 0.01))  # tests have no patience


class Failing(LocalConnector):
    """A store that fails as told."""

    error: SmpError | None = None
    flip: bool = False

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
        return super().put(key, source, digests=digests, if_absent=if_absent, resume=resume)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._fail()
        for block in super().get(key, offset=offset, length=length):
            yield bytes([block[0] ^ 1]) + block[1:] if self.flip else block

    def native_digest(self, key: str) -> Digests:
        self._fail()
        return super().native_digest(key)


@pytest.fixture
def stores(work: Path) -> dict[str, Failing]:
    return {name: Failing.create(work / name) for name in ("one", "two", "three")}


@pytest.fixture
def container(work: Path, key: SymmetricKey) -> Path:
    (work / "plain").write_bytes(b"data" * 100_000)
    encrypt_file(work / "plain", work / "in.smp", [key])
    return work / "in.smp"


def states(status: object) -> dict[str, ReplicaState]:
    return {name: replica.state for name, replica in status.replicas.items()}  # type: ignore[attr-defined]


def test_an_object_goes_everywhere_under_a_random_name(stores: dict[str, Failing], container: Path, work: Path) -> None:
    manager = ConnectorManager(stores)
    first, second = manager.sync_file(container), manager.sync_file(container)
    assert first.state is second.state is ObjectState.FULL
    assert first.object.key != second.object.key
    assert len(first.object.key) == 32
    assert first.object.digests == {"sha256": sha256(container.read_bytes()).hexdigest()}
    for store in stores.values():
        assert b"".join(store.get(first.object.key)) == container.read_bytes()
    assert manager.fetch(first.object, work / "out.smp") == "one"
    assert (work / "out.smp").read_bytes() == container.read_bytes()


def test_plaintext_is_refused_before_any_store_sees_it(stores: dict[str, Failing], work: Path) -> None:
    (work / "plain").write_bytes(b"a patient")
    with pytest.raises(NotEncryptedError):
        ConnectorManager(stores).sync_file(work / "plain")
    assert all(not list(store.list()) for store in stores.values())


@pytest.mark.parametrize("error", [TransientError("down"), NoSpaceError("full"), CredentialsError("no")])
def test_a_quorum_is_enough_and_the_rest_is_repaired(stores: dict[str, Failing], container: Path, error: SmpError) -> None:
    manager = ConnectorManager(stores)
    stores["two"].error = error
    status = manager.sync_file(container)
    assert status.state is ObjectState.DEGRADED
    assert status.replicas["two"].reason == str(error)
    assert manager.repair(status.object).state is ObjectState.DEGRADED
    stores["two"].error = None
    assert states(manager.verify(status.object)) == {"one": INTACT, "two": MISSING, "three": INTACT}
    assert manager.repair(status.object).state is ObjectState.FULL
    assert manager.verify(status.object).state is ObjectState.FULL


def test_below_the_quorum_nothing_stays(stores: dict[str, Failing], container: Path) -> None:
    stores["one"].error = stores["three"].error = TransientError("down")
    with pytest.raises(QuorumError, match="1 of 3") as caught:
        ConnectorManager(stores).sync_file(container)
    assert caught.value.exit_code == 11
    assert "one: down" in str(caught.value)
    stores["one"].error = stores["three"].error = None
    assert all(not list(store.list()) for store in stores.values())


@pytest.mark.parametrize(("quorum", "works"), [(1, True), (2, True), (3, False)])
def test_the_quorum_is_settable(stores: dict[str, Failing], container: Path, quorum: int, works: bool) -> None:
    stores["one"].error = TransientError("down")
    manager = ConnectorManager(stores, quorum=quorum)
    if works:
        assert manager.sync_file(container).state is ObjectState.DEGRADED
    else:
        with pytest.raises(QuorumError):
            manager.sync_file(container)


@pytest.mark.parametrize("quorum", [0, -1, 4])
def test_quorums_that_cannot_be(stores: dict[str, Failing], quorum: int) -> None:
    with pytest.raises(UsageError):
        ConnectorManager(stores, quorum=quorum)
    with pytest.raises(UsageError):
        ConnectorManager({})


def test_each_damage_is_named_and_healed(stores: dict[str, Failing], container: Path, work: Path) -> None:
    manager = ConnectorManager(stores)
    item = manager.sync_file(container).object
    raw = bytearray((work / "one" / item.key).read_bytes())
    raw[1000] ^= 1
    (work / "one" / item.key).write_bytes(raw)
    stores["three"].delete(item.key)
    status = manager.verify(item)
    assert states(status) == {"one": DAMAGED, "two": INTACT, "three": MISSING}
    assert status.state is ObjectState.DEGRADED
    assert manager.repair(item).state is ObjectState.FULL
    assert (work / "one" / item.key).read_bytes() == container.read_bytes()


def test_a_store_that_does_not_answer_is_never_taken_as_empty(stores: dict[str, Failing], container: Path) -> None:
    manager = ConnectorManager(stores)
    item = manager.sync_file(container).object
    stores["two"].error = TransientError("down")
    assert states(manager.verify(item))["two"] is UNREACHABLE
    assert states(manager.repair(item)) == {"one": INTACT, "two": UNREACHABLE, "three": INTACT}


def test_bytes_that_change_on_the_way_are_not_copied(stores: dict[str, Failing], container: Path) -> None:
    """The sources of a repair say they are intact and deliver other bytes: nothing false is stored."""
    manager = ConnectorManager(stores)
    item = manager.sync_file(container).object
    stores["three"].delete(item.key)
    stores["one"].flip = stores["two"].flip = True
    assert states(manager.repair(item)) == {"one": INTACT, "two": INTACT, "three": MISSING}
    assert not list(stores["three"].list())


def test_fetching_goes_on_to_the_next_store(stores: dict[str, Failing], container: Path, work: Path) -> None:
    manager = ConnectorManager(stores)
    item = manager.sync_file(container).object
    stores["one"].error = TransientError("down")
    stores["two"].flip = True
    assert manager.fetch(item, work / "out") == "three"
    assert (work / "out").read_bytes() == container.read_bytes()
    with pytest.raises(ExistsError):
        manager.fetch(item, work / "out")


@pytest.mark.parametrize("error", [CredentialsError("expired"), FileAccessError("a link"), NoSpaceError("?")])
def test_whatever_is_wrong_with_a_store_the_next_one_is_asked(
    stores: dict[str, Failing], container: Path, work: Path, error: SmpError
) -> None:
    manager = ConnectorManager(stores)
    item = manager.sync_file(container).object
    stores["one"].error = error
    assert manager.fetch(item, work / "out") == "two"
    assert (work / "out").read_bytes() == container.read_bytes()


def test_what_is_wrong_with_the_target_is_not_blamed_on_the_stores(
    stores: dict[str, Failing], container: Path, work: Path
) -> None:
    manager = ConnectorManager(stores)
    item = manager.sync_file(container).object
    with pytest.raises(MissingError):
        manager.fetch(item, work / "absent" / "out")
    with pytest.raises(FileAccessError):
        manager.fetch(item, work / "one", overwrite=True)


def test_a_repair_goes_on_to_the_next_good_copy(stores: dict[str, Failing], container: Path) -> None:
    manager = ConnectorManager(stores)
    item = manager.sync_file(container).object
    stores["three"].delete(item.key)
    stores["one"].flip = True
    assert manager.repair(item).state is ObjectState.FULL


def test_a_replica_that_is_a_link_is_damaged_and_healed(stores: dict[str, Failing], container: Path, work: Path) -> None:
    manager = ConnectorManager(stores)
    item = manager.sync_file(container).object
    (work / "one" / item.key).rename(work / "elsewhere")
    (work / "one" / item.key).symlink_to(work / "elsewhere")
    assert states(manager.verify(item))["one"] is DAMAGED


class Lost(Failing):
    """A store that takes everything and never says so."""

    def put(self, *args: object, **kwargs: object) -> ObjectInfo:
        super().put(*args, **kwargs)  # type: ignore[arg-type]
        raise TransientError("the answer was lost")


def test_a_store_whose_answer_was_lost_may_have_the_object(stores: dict[str, Failing], container: Path) -> None:
    """The next try finds it there, and its digest tells that it is the one."""
    lost = {name: Lost(store._folder) for name, store in stores.items()}
    assert ConnectorManager(lost).sync_file(container).state is ObjectState.FULL


def test_a_store_that_wrote_without_saying_so_is_withdrawn_from(stores: dict[str, Failing], container: Path) -> None:
    class Silent(Lost):
        def native_digest(self, key: str) -> Digests:
            raise TransientError("no answer")

    with pytest.raises(QuorumError):
        ConnectorManager({name: Silent(store._folder) for name, store in stores.items()}).sync_file(container)
    assert all(not list(store.list()) for store in stores.values())


def test_when_no_store_has_it(stores: dict[str, Failing], container: Path, work: Path) -> None:
    manager = ConnectorManager(stores)
    item = manager.sync_file(container).object
    for store in stores.values():
        store.delete(item.key)
    before = left_in(work)
    for act in (lambda: manager.fetch(item, work / "out"), lambda: manager.repair(item)):
        with pytest.raises(ObjectLostError):
            act()
    assert manager.verify(item).state is ObjectState.LOST
    stores["two"].error = TransientError("down")
    for act in (lambda: manager.fetch(item, work / "out"), lambda: manager.repair(item)):
        with pytest.raises(TransientError):
            act()
    assert left_in(work) == before


def test_mistakes_in_a_connector_are_not_swallowed(stores: dict[str, Failing], container: Path) -> None:
    class Broken(Failing):
        def put(self, *args: object, **kwargs: object) -> ObjectInfo:
            raise ZeroDivisionError

    broken = Broken(stores["one"]._folder)
    with pytest.raises(ZeroDivisionError):
        ConnectorManager({"broken": broken, "two": stores["two"]}).sync_file(container)
    assert list(stores["two"].list()) == []


def test_a_missing_file_is_missing(stores: dict[str, Failing], work: Path) -> None:
    with pytest.raises(MissingError):
        ConnectorManager(stores).sync_file(work / "absent.smp")


def test_digests_without_a_common_hash_prove_nothing(stores: dict[str, Failing], container: Path) -> None:
    class Other(Failing):
        def native_digest(self, key: str) -> Digests:
            return {"md5": "0" * 32}

    item = StoredObject("x", 1, {"sha256": "0" * 64})
    other = Other(stores["one"]._folder)
    assert states(ConnectorManager({"other": other}).verify(item)) == {"other": DAMAGED}


class Hanging(Failing):
    """A store that takes some parts and then nothing, until it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.let_go = Event()
        self.takes = 0

    def put(
        self,
        key: str,
        source: Iterable[bytes],
        *,
        digests: Mapping[str, str] | None = None,
        if_absent: bool = True,
        resume: ResumeRecord | None = None,
    ) -> ObjectInfo:
        def slow() -> Iterator[bytes]:
            for number, block in enumerate(source):
                if number >= self.takes:
                    self.let_go.wait(30)
                yield block

        return super().put(key, slow(), digests=digests, if_absent=if_absent, resume=resume)


@pytest.fixture
def big(work: Path, key: SymmetricKey) -> Path:
    (work / "plain").write_bytes(bytes(2_000_000))
    encrypt_file(work / "plain", work / "big.smp", [key])
    return work / "big.smp"


def test_a_store_that_hangs_is_left_behind_and_repaired_later(stores: dict[str, Failing], big: Path) -> None:
    hanging = Hanging(stores["two"]._folder)
    manager = ConnectorManager({**stores, "two": hanging}, stall_timeout=0.3)
    start = time.monotonic()
    status = manager.sync_file(big)
    assert time.monotonic() - start < 5
    assert states(status) == {"one": INTACT, "two": UNREACHABLE, "three": INTACT}
    assert "took nothing" in status.replicas["two"].reason
    hanging.let_go.set()
    hanging.takes = 10**6
    assert manager.repair(status.object).state is ObjectState.FULL


def test_two_of_three_that_hang_are_too_many(stores: dict[str, Failing], big: Path) -> None:
    hanging = {name: Hanging(stores[name]._folder) for name in ("two", "three")}
    manager = ConnectorManager({**stores, **hanging}, stall_timeout=0.3)
    with pytest.raises(QuorumError, match="1 of 3"):
        manager.sync_file(big)
    for store in hanging.values():
        store.let_go.set()
    deadline = time.monotonic() + 10
    while any(thread.name == "cloud-put" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(not list(store.list()) for store in stores.values())


def test_a_slow_store_is_waited_for(stores: dict[str, Failing], big: Path) -> None:
    """Slow is not stalled: each block comes in time."""

    class Slow(Failing):
        def put(self, key: str, source: Iterable[bytes], **options: object) -> ObjectInfo:
            return super().put(key, (time.sleep(0.1) or block for block in source), **options)  # type: ignore[arg-type]

    manager = ConnectorManager({**stores, "two": Slow(stores["two"]._folder)}, stall_timeout=0.4)
    assert manager.sync_file(big).state is ObjectState.FULL


def test_a_failed_put_is_tried_again_where_there_is_patience(stores: dict[str, Failing], container: Path) -> None:
    class Once(Failing):
        tries = 0

        def put(self, key: str, source: Iterable[bytes], **options: object) -> ObjectInfo:
            self.tries += 1
            if self.tries == 1:
                next(iter(source))
                raise TransientError("in the middle")
            return super().put(key, source, **options)  # type: ignore[arg-type]

    once = Once(stores["two"]._folder)
    manager = ConnectorManager({**stores, "two": Retrying(once, Patience(first=0.001))})
    assert manager.sync_file(container).state is ObjectState.FULL
    assert once.tries == 2
