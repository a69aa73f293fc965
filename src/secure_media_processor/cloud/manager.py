"""One object in several stores: written at a quorum, checked replica by replica, repaired from a good copy."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, BinaryIO

from secure_media_processor.cloud.connectors.base import read_blocks
from secure_media_processor.cloud.digests import Digester, Digests, refuse_other
from secure_media_processor.core.encryption import read_file_id
from secure_media_processor.core.files import atomic_write
from secure_media_processor.errors import (
    FileAccessError,
    IntegrityError,
    MissingError,
    ObjectLostError,
    QuorumError,
    SmpError,
    TransientError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from secure_media_processor.cloud.connectors.base import CloudConnector

# A store that takes nothing for so long (seconds) will hardly take the rest in time; it is repaired later.
_STALL_TIMEOUT = 60.0
_LOOK_EVERY = 0.25  # seconds
# Enough that no two objects ever get the same key by chance.
_KEY_BYTES = 16


class ReplicaState(StrEnum):
    """What one store has of an object."""

    INTACT = "intact"
    DAMAGED = "damaged"
    MISSING = "missing"
    UNREACHABLE = "unreachable"


class ObjectState(StrEnum):
    """What all stores together have of an object."""

    FULL = "full"
    """Every store has an intact copy."""
    DEGRADED = "degraded"
    """Some store has, and not every one."""
    LOST = "lost"
    """No store that answers has."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """How to find an object again and to know that it is the right one."""

    key: str
    size: int
    """Bytes of ciphertext."""
    digests: Digests
    """Of the ciphertext: SHA-256, and whatever else the stores report by themselves (cloud/digests.py)."""


@dataclass(frozen=True, slots=True)
class Replica:
    """An object in one store."""

    state: ReplicaState
    reason: str = ""
    """Why it is not intact, for people."""


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """An object in all stores."""

    object: StoredObject
    replicas: Mapping[str, Replica]
    """Name of the store → what it has."""

    @property
    def state(self) -> ObjectState:
        """The replicas in one word."""
        intact = sum(replica.state is ReplicaState.INTACT for replica in self.replicas.values())
        if intact == len(self.replicas):
            return ObjectState.FULL
        return ObjectState.DEGRADED if intact else ObjectState.LOST


class ConnectorManager:
    """Several stores that hold the same objects."""

    def __init__(
        self, connectors: Mapping[str, CloudConnector], *, quorum: int | None = None, stall_timeout: float = _STALL_TIMEOUT
    ) -> None:
        """Use `connectors`, by name.

        Args:
            connectors: At least one.
            quorum: How many stores must take an object for a write to succeed; the majority unless given.
            stall_timeout: Seconds without a byte taken after which a store is left behind; the others do not wait for it.
        """
        if not connectors:
            raise UsageError("at least one store is needed")
        self._connectors = dict(connectors)
        self._stall_timeout = stall_timeout
        self._quorum = len(connectors) // 2 + 1 if quorum is None else quorum
        if not 1 <= self._quorum <= len(connectors):
            raise UsageError(f"a quorum of {self._quorum} cannot be met by {len(connectors)} stores")

    def sync_file(self, path: Path | str) -> ObjectStatus:
        """Store the encrypted file `path` in every store, all at the same time, under a random key that tells nothing.

        Args:
            path: An SMP1 container; anything else is refused, because it would reach the stores in clear.

        Returns:
            Where it is now. The state is degraded if the quorum was met and not every store took it: repair it later.

        Raises:
            NotEncryptedError: `path` is not encrypted.
            QuorumError: too few stores took it; what was written has been removed again where that was possible.
        """
        path = Path(path)
        read_file_id(path)
        names = {"sha256"}.union(*(store.capabilities.native_digests for store in self._connectors.values()))
        item = _describe(path, secrets.token_hex(_KEY_BYTES), names)
        transfers = {name: _Transfer(store, item, path) for name, store in self._connectors.items()}
        outcomes: dict[str, Replica] = {}
        try:
            outcomes = _finish(transfers, self._stall_timeout)
        finally:
            written = sum(replica.state is ReplicaState.INTACT for replica in outcomes.values())
            if written < self._quorum:
                self._withdraw(item, besides={name for name, transfer in transfers.items() if transfer.left_behind})
        if written < self._quorum:
            reasons = "; ".join(f"{name}: {replica.reason}" for name, replica in outcomes.items() if replica.reason)
            raise QuorumError(f"{written} of {len(outcomes)} stores took the object, {self._quorum} must ({reasons})")
        return ObjectStatus(item, outcomes)

    def verify(self, item: StoredObject) -> ObjectStatus:
        """Ask every store for its own digest of `item`. A store that cannot be asked is reported, never taken as empty."""
        return ObjectStatus(item, self._everywhere(lambda store: _check(store, item)))

    def repair(self, item: StoredObject) -> ObjectStatus:
        """Copy `item` from an intact replica to each store where it is damaged or missing. Returns how it is afterwards.

        Ciphertext goes from store to store through memory, its digest is checked on the way, and nothing is decrypted.

        Raises:
            ObjectLostError: no store has an intact copy.
            TransientError: no store that answers has one.
        """
        before = self.verify(item)
        sources = [name for name, replica in before.replicas.items() if replica.state is ReplicaState.INTACT]
        if not sources:
            reasons = [f"{name}: {replica.reason}" for name, replica in before.replicas.items()]
            unreachable = any(replica.state is ReplicaState.UNREACHABLE for replica in before.replicas.values())
            raise _unavailable(item, reasons, may_return=unreachable)
        for name, replica in before.replicas.items():
            if replica.state in (ReplicaState.DAMAGED, ReplicaState.MISSING):
                self._copy(item, sources, name)
        return self.verify(item)

    def fetch(self, item: StoredObject, path: Path | str, *, overwrite: bool = False) -> str:
        """Write `item` to the new file `path` from the first store that gives it intact. Returns the name of that store.

        Raises:
            ObjectLostError: none does.
            TransientError: none does, and some did not answer.
            ExistsError, FileAccessError, NoSpaceError: `path` cannot be written.
        """
        reasons, may_return = [], False
        with atomic_write(Path(path), overwrite=overwrite) as file:
            for name, store in self._connectors.items():
                file.seek(0)
                file.truncate()
                try:
                    _copy_into(file, store, item)
                except SmpError as error:  # of the store: what goes wrong with the file is no SmpError here
                    reasons.append(f"{name}: {error}")
                    may_return = may_return or error.retryable
                else:
                    return name
            raise _unavailable(item, reasons, may_return=may_return)

    def _copy(self, item: StoredObject, sources: Sequence[str], target: str) -> None:
        """Copy `item` into the store `target` from the first of `sources` that gives it intact, if any does."""
        for source in sources:
            try:
                blocks = self._connectors[source].get(item.key)
                self._connectors[target].put(item.key, blocks, digests=item.digests, if_absent=False)
            except SmpError:  # the check after the repair reports what is still wrong, and why
                continue
            return

    def _withdraw(self, item: StoredObject, *, besides: set[str]) -> None:
        """Remove `item` from every store but those that hang: one that gave no answer may have it all the same."""
        for name, store in self._connectors.items():
            if name not in besides:
                with suppress(SmpError):  # it cannot be helped, and the error that led here tells the rest
                    store.delete(item.key)

    def _everywhere(self, act: Callable[[CloudConnector], Replica]) -> dict[str, Replica]:
        """Act on all stores at once. Errors of the tree become part of the answer; others are mistakes and are raised."""
        with ThreadPoolExecutor(len(self._connectors)) as pool:
            futures = {name: pool.submit(act, store) for name, store in self._connectors.items()}
            return {name: future.result() for name, future in futures.items()}


def _unavailable(item: StoredObject, reasons: list[str], *, may_return: bool) -> SmpError:
    message = f"no store gives the object {item.key} intact ({'; '.join(reasons)})"
    return TransientError(message) if may_return else ObjectLostError(message)


def _describe(path: Path, key: str, names: Iterable[str]) -> StoredObject:
    """Return `path` as an object, with the digests `names`, computed in one pass."""
    digester, size = Digester(names), 0
    for block in read_blocks(path):
        digester.update(block)
        size += len(block)
    return StoredObject(key, size, digester.hexdigests())


def _copy_into(file: BinaryIO, store: CloudConnector, item: StoredObject) -> None:
    """Write `item` to `file` and check it on the way. Raises as get, and IntegrityError."""
    digester = Digester(item.digests)
    for block in store.get(item.key):
        digester.update(block)
        file.write(block)
    refuse_other(digester.hexdigests(), item.digests)


class _Transfer:
    """A put into one store, in a thread of its own that nobody has to wait for. As a source it knows when it was last read."""

    def __init__(self, store: CloudConnector, item: StoredObject, path: Path) -> None:
        self._store, self._item, self._path = store, item, path
        self._moved = time.monotonic()
        self.left_behind = False
        self.replica: Replica | None = None
        self.mistake: BaseException | None = None
        # A daemon: a store that hangs for ever must not keep the program from ending.
        self.thread = Thread(target=self._run, name="cloud-put", daemon=True)

    def __iter__(self) -> Iterator[bytes]:
        for block in read_blocks(self._path):
            if self.left_behind:
                raise TransientError("it was left behind")
            self._moved = time.monotonic()
            yield block

    def leave_behind_if_stalled(self, timeout: float) -> None:
        """Give the store up if it has taken nothing for `timeout` seconds."""
        if time.monotonic() - self._moved > timeout:
            self.left_behind = True
            self.replica = Replica(ReplicaState.UNREACHABLE, f"it took nothing for {timeout:.0f} s")

    def _run(self) -> None:
        try:
            self._store.put(self._item.key, self, digests=self._item.digests)
            replica = Replica(ReplicaState.INTACT)
        except SmpError as error:
            replica = Replica(ReplicaState.UNREACHABLE if error.retryable else ReplicaState.MISSING, str(error))
        except BaseException as error:  # noqa: BLE001 - raised by _finish in the thread of the caller
            self.mistake = error
            return
        if not self.left_behind:
            self.replica = replica


def _finish(transfers: Mapping[str, _Transfer], stall_timeout: float) -> dict[str, Replica]:
    """Run all transfers at the same time until each has ended or stalled. A mistake in a connector is raised."""
    for transfer in transfers.values():
        transfer.thread.start()
    pending = list(transfers.values())
    while pending:
        pending[0].thread.join(min(_LOOK_EVERY, stall_timeout))
        for transfer in pending:
            if transfer.thread.is_alive():
                transfer.leave_behind_if_stalled(stall_timeout)
        pending = [transfer for transfer in pending if transfer.thread.is_alive() and not transfer.left_behind]
    for transfer in transfers.values():
        if transfer.mistake is not None:
            raise transfer.mistake
    return {name: transfer.replica for name, transfer in transfers.items() if transfer.replica is not None}


def _check(store: CloudConnector, item: StoredObject) -> Replica:
    try:
        refuse_other(store.native_digest(item.key), item.digests)
    except MissingError as error:
        return Replica(ReplicaState.MISSING, str(error))
    except (IntegrityError, FileAccessError) as error:
        return Replica(ReplicaState.DAMAGED, str(error))
    except SmpError as error:
        return Replica(ReplicaState.UNREACHABLE, str(error))
    return Replica(ReplicaState.INTACT)
