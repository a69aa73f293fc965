"""One object in several stores: written at a quorum, checked replica by replica, repaired from a good copy."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from secure_media_processor.cloud.broadcast import Broadcast, CalledOffError, TooFewError
from secure_media_processor.cloud.connectors.base import ObjectInfo, read_blocks
from secure_media_processor.cloud.digests import Digester, Part, cut_into_parts, refuse_other
from secure_media_processor.cloud.objects import ObjectStatus, Replica, ReplicaState, StoredObject
from secure_media_processor.cloud.reading import one_by_one, read_raw
from secure_media_processor.cloud.waiting import LEFT_ALONE, STALL_TIMEOUT, Waiting
from secure_media_processor.core.encryption import read_file_id
from secure_media_processor.core.files import atomic_write
from secure_media_processor.errors import (
    ExistsError,
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
    from collections.abc import Iterable, Mapping, Sequence

    from secure_media_processor.cloud.connectors.base import CloudConnector, ResumeRecord
    from secure_media_processor.cloud.digests import Digests

# Before a store that failed is given the object again: once soon, for an answer that was lost, once when it may have recovered.
_PAUSES = (0.5, 3.0)  # seconds
# Bytes that a store that has to read an object before it can tell its digest reads in a second, at least.
_READ_FOR_DIGEST = 1 << 20
# Enough that no two objects ever get the same key by chance.
_KEY_BYTES = 16

_Result = TypeVar("_Result")

Producer = Callable[[Callable[[Part], None]], None]
"""Calls what it is given with each part of an object, in order. Called again, it gives the same parts again."""


def new_key() -> str:
    """Return a key for a new object: random, it tells nothing."""
    return secrets.token_hex(_KEY_BYTES)


class ConnectorManager:
    """Several stores that hold the same objects."""

    def __init__(
        self,
        connectors: Mapping[str, CloudConnector],
        *,
        quorum: int | None = None,
        stall_timeout: float = STALL_TIMEOUT,
        pauses: Sequence[float] = _PAUSES,
        waiting: Waiting | None = None,
    ) -> None:
        """Use `connectors`, by name.

        Args:
            connectors: At least one.
            quorum: How many stores must take an object for a write to succeed; the majority unless given.
            stall_timeout: Seconds for which a store may take or give nothing, or keep a quorum of others waiting, before it is
                left behind.
            pauses: Seconds before each further try to store an object where that failed for a reason that may pass.
            waiting: Shared with others who use these stores, in place of `stall_timeout`.
        """
        if not connectors:
            raise UsageError("at least one store is needed")
        self._connectors = dict(connectors)
        self._pauses = tuple(pauses)
        self.quorum = len(connectors) // 2 + 1 if quorum is None else quorum
        if not 1 <= self.quorum <= len(connectors):
            raise UsageError(f"a quorum of {self.quorum} cannot be met by {len(connectors)} stores")
        self.waiting = waiting or Waiting(stall_timeout=stall_timeout)
        """How long the stores are waited for, and which are not asked for a while."""
        self._given_up: dict[str, tuple[SmpError, float]] = {}
        """Stores that took nothing, why, and until when they are left alone: they may well give."""

    @property
    def connectors(self) -> Mapping[str, CloudConnector]:
        """The stores, by name."""
        return self._connectors

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

        def produce(send: Callable[[Part], None]) -> None:
            for data in cut_into_parts(read_blocks(path)):
                send(Part.of(data))

        return self.store(new_key(), produce)

    def store(
        self,
        key: str,
        produce: Producer,
        *,
        records: Mapping[str, ResumeRecord] | None = None,
        taken_up: bool = False,
        shared: bool = False,
        overwrite: bool = False,
    ) -> ObjectStatus:
        """Store what `produce` gives under `key` in every store, all at the same time.

        A store that fails for a reason that may pass is given the object again when the others are done.

        Args:
            key: From new_key, unless `shared`.
            produce: Gives the parts; called again only if a store failed.
            records: Where a put keeps what lets it be taken up later, by name of the store.
            taken_up: Whether an earlier process began this, so that some stores may have the object.
            shared: Whether others may use `key` too. Then nothing is ever removed from under it.
            overwrite: Replace what is under `key`.

        Returns:
            Where it is now; degraded if the quorum was met and not every store took it.

        Raises:
            QuorumError: too few stores took it; what was written has been removed again where that was possible.
            CredentialsError, NoSpaceError and the like: so too, for this reason everywhere.
        """
        work = _Work(key, self._digest_names(), records or {}, overwrite=overwrite)
        now = time.monotonic()
        alone = {name: error for name, (error, until) in self._given_up.items() if now < until} | self.waiting.left_alone()
        if (
            len(self._connectors.keys() - alone.keys()) < self.quorum
        ):  # then they are asked again: without them nothing is stored
            alone = {}
        had = self.ask_all(lambda store: store.stat(key)) if taken_up and not overwrite else {}
        for name, store in self._connectors.items():
            if name in alone:
                work.errors[name] = alone[name]
            elif isinstance(had.get(name), ObjectInfo):  # one that does not answer is asked again by the put
                work.errors[name] = ExistsError("it has the object already")
            else:
                work.targets[name] = store
        try:
            self._rounds(work, produce)
        except BaseException as error:
            # What is cut off with records is taken up later. An error of ours is one of the source, which will not be the same.
            if not shared and (isinstance(error, SmpError) or not records):
                self._withdraw(key, besides=work.hanging)
            raise
        return self._judge(work, withdraw=not shared)

    def discard(self, key: str, records: Mapping[str, ResumeRecord]) -> None:
        """Give up an object that was never completed, as far as the stores let it be given up now."""

        def act(name: str) -> None:
            store = self._connectors[name]
            with suppress(SmpError):  # what stays is encrypted, unfinished and unknown to the index
                store.discard(key, records[name])
            with suppress(SmpError):
                store.delete(key)

        self.waiting.ask_all({name: partial(act, name) for name in self._connectors})

    def delete(self, key: str, names: Iterable[str] | None = None) -> dict[str, SmpError | None]:
        """Remove the object `key` from every store, or those named.

        Returns for each the error that kept it from that; absent is removed.
        """

        def act(store: CloudConnector) -> None:
            with suppress(MissingError):
                store.delete(key)

        return self.ask_all(act, names)

    def _digest_names(self) -> set[str]:
        return set().union(*(store.capabilities.native_digests for store in self._connectors.values()))

    def _rounds(self, work: _Work, produce: Producer) -> None:
        """Send the object until each store has it, or has failed for good or each time."""
        for pause in (0.0, *self._pauses):
            time.sleep(pause)
            missing = self.quorum - work.taken()
            if len(work.targets) < missing:
                break
            work.send(produce, max(0, min(len(work.targets), missing)), self.waiting.stall_timeout)
            if not work.targets:
                break
        end = time.monotonic() + LEFT_ALONE
        for name in (*work.targets, *work.hanging):
            error = work.errors[name]
            if error is not None:
                self._given_up[name] = (error, end)
        if work.item is None and work.taken() >= self.quorum:
            work.targets = {}  # enough say that they have the object: it is read once more, to see whether it is this one
            work.send(produce, 0, self.waiting.stall_timeout)

    def _judge(self, work: _Work, *, withdraw: bool) -> ObjectStatus:
        """Return where the object is. Raises if that is not enough."""
        item = work.item
        replicas = {name: _replica(self._connectors[name], item, work.errors[name]) for name in self._connectors}
        failed = {name: replica.reason for name, replica in replicas.items() if replica.state is not ReplicaState.INTACT}
        if item is not None and len(replicas) - len(failed) >= self.quorum:
            return ObjectStatus(item, replicas)
        if withdraw and not work.records:  # with records the next try goes on with what is there
            self._withdraw(work.key, besides=work.hanging)
        errors = {name: work.errors[name] for name in failed if not isinstance(work.errors[name], CalledOffError)}
        for name in errors:
            if replicas[name].state is ReplicaState.UNREACHABLE:  # also if it said that it has the object, and no more
                errors[name] = TransientError(failed[name])
        reasons = "; ".join(f"{name}: {failed[name]}" for name in errors)
        able = len(replicas) - len(errors)
        message = f"{able} of {len(replicas)} stores can take the object, {self.quorum} must ({reasons})"
        raise _in_common([*errors.values()], message) or QuorumError(message)

    def verify(self, item: StoredObject, names: Iterable[str] | None = None) -> ObjectStatus:
        """Ask every store, or those named, for its own digest of `item`.

        A store that cannot be asked is reported, never taken as empty.
        """
        # Some read the object for that, and give no sign of life meanwhile.
        answers = self.ask_all(lambda store: _check(store, item), names, allowance=item.size / _READ_FOR_DIGEST)
        replicas = {
            name: Replica(ReplicaState.UNREACHABLE, str(answer)) if isinstance(answer, SmpError) else answer
            for name, answer in answers.items()
        }
        return ObjectStatus(item, replicas)

    def repair(self, item: StoredObject) -> ObjectStatus:
        """Copy `item` from an intact replica to each store where it is damaged or missing. Returns how it is afterwards.

        The object in the answer has the digests of stores that were not there when it was stored, too. Ciphertext goes from
        store to store through memory, its digest is checked on the way, and nothing is decrypted.

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
        return self.verify(self.mend(before)[0])

    def mend(self, status: ObjectStatus) -> tuple[StoredObject, dict[str, SmpError]]:
        """Copy an object from a replica that is intact, by `status`, to each store where it is damaged or missing.

        Returns the object, with the digests of stores that were not there when it was stored, too; and for each store into
        which it could not be copied the error that kept it from that.
        """
        item, failed = status.object, {}
        sources = [name for name, replica in status.replicas.items() if replica.state is ReplicaState.INTACT]
        for name, replica in status.replicas.items():
            if replica.state in (ReplicaState.DAMAGED, ReplicaState.MISSING):
                try:
                    item = self._copy(item, sources, name)
                except SmpError as error:
                    failed[name] = error
        return item, failed

    def fetch(self, item: StoredObject, path: Path | str, *, overwrite: bool = False) -> str:
        """Write `item` to the new file `path` from the first store that gives it intact. Returns the name of that store.

        Raises:
            ObjectLostError: none does.
            TransientError: none does, and some did not answer.
            ExistsError, FileAccessError, NoSpaceError: `path` cannot be written.
        """
        reasons, may_return = [], False
        with atomic_write(Path(path), overwrite=overwrite) as file:
            for replicas in one_by_one(self._connectors, item, self.waiting):
                file.seek(0)
                file.truncate()
                name = replicas.names[0]
                try:
                    read_raw(replicas, file)
                except SmpError as error:  # of the store: what goes wrong with the file is no SmpError here
                    reasons.append(f"{name}: {error}")
                    may_return = may_return or error.retryable
                else:
                    return name
            raise _unavailable(item, reasons, may_return=may_return)

    def _copy(self, item: StoredObject, sources: Sequence[str], target: str) -> StoredObject:
        """Copy `item` into the store `target` from the first of `sources` that gives it intact.

        Returns `item`, with the digests by which `target` will prove it. Raises what went wrong last if none does.
        """
        problem: SmpError = ObjectLostError("no store has an intact copy")
        for copy in one_by_one({name: self._connectors[name] for name in sources}, item, self.waiting):
            blocks = (data for _, _, data in copy.ranges(0, item.size))
            try:
                digests = self.put_into(target, item.key, blocks, expected=item.digests)
            except SmpError as error:
                problem = error
                continue
            return replace(item, digests={**digests, **item.digests})
        raise problem

    def put_into(
        self, name: str, key: str, blocks: Iterable[bytes], *, expected: Digests | None = None, overwrite: bool = True
    ) -> Digests:
        """Store `blocks` under `key` in the store `name` alone. Returns its digests, and raises what kept the store from it.

        Args:
            name: Of the store.
            key: Of the object.
            blocks: Read once.
            expected: Nothing is stored unless the object has these digests.
            overwrite: Replace what is under `key`.
        """
        digester = Digester({*self._connectors[name].capabilities.native_digests, *(expected or ())})
        store = {name: self._connectors[name]}
        broadcast = Broadcast(store, key, needed=1, stall_timeout=self.waiting.stall_timeout, overwrite=overwrite)
        with broadcast, suppress(TooFewError):
            for data in cut_into_parts(blocks):
                part = Part.of(data)
                broadcast.send(part)
                digester.add_part(part)
            refuse_other(digester.hexdigests(), expected)
            broadcast.finish()
        error = broadcast.outcome()[name]
        if error is not None:
            raise error
        return digester.hexdigests()

    def _withdraw(self, key: str, *, besides: set[str]) -> None:
        """Remove an object from every store but those that hang: one that gave no answer may have it all the same."""
        self.delete(key, self._connectors.keys() - besides)  # what fails cannot be helped, and the error that led here is told

    def ask_all(
        self, act: Callable[[CloudConnector], _Result], names: Iterable[str] | None = None, *, allowance: float = 0.0
    ) -> dict[str, _Result | SmpError]:
        """Return what `act` returns for each store, or those named, or the SmpError that it raises; see Waiting.ask_all."""
        chosen = self._connectors if names is None else {name: self._connectors[name] for name in names}
        return self.waiting.ask_all({name: partial(act, store) for name, store in chosen.items()}, allowance=allowance)


def _unavailable(item: StoredObject, reasons: list[str], *, may_return: bool) -> SmpError:
    message = f"no store gives the object {item.key} intact ({'; '.join(reasons)})"
    return TransientError(message) if may_return else ObjectLostError(message)


class _Work:
    """An object on its way into the stores."""

    def __init__(self, key: str, names: Iterable[str], records: Mapping[str, ResumeRecord], *, overwrite: bool) -> None:
        self.key, self._names, self.records, self._overwrite = key, set(names), records, overwrite
        self.targets: dict[str, CloudConnector] = {}
        """Stores that it is still to be sent to."""
        self.errors: dict[str, SmpError | None] = {}
        """Why a store does not have it; None if it has."""
        self.hanging: set[str] = set()
        self.item: StoredObject | None = None
        """The object; None if it was never sent to its end."""

    def taken(self) -> int:
        """Return how many stores have it, as far as they say so."""
        return sum(error is None or isinstance(error, ExistsError) for error in self.errors.values())

    def send(self, produce: Producer, needed: int, stall_timeout: float) -> None:
        """Send the object to all targets; those that have it, or fail for good, are none any more."""
        digester, size = Digester(self._names), 0
        broadcast = Broadcast(
            self.targets,
            self.key,
            needed=needed,
            stall_timeout=stall_timeout,
            records=self.records,
            overwrite=self._overwrite,
        )

        def send(part: Part) -> None:
            nonlocal size
            broadcast.send(part)
            digester.add_part(part)
            size += len(part.data)

        with broadcast, suppress(TooFewError):
            produce(send)
            self.item = StoredObject(self.key, size, digester.hexdigests())
            broadcast.finish()
        self.errors |= broadcast.outcome()
        self.hanging |= broadcast.hanging
        self.targets = {
            name: store
            for name, store in self.targets.items()
            if name not in self.hanging and (error := self.errors[name]) is not None and error.retryable
        }


def _replica(store: CloudConnector, item: StoredObject | None, error: SmpError | None) -> Replica:
    """Return what a store has, given how the put ended."""
    match error:
        case None:
            return Replica(ReplicaState.INTACT)
        case ExistsError():  # if it is this object, an earlier try came through, and only its answer was lost
            return _check(store, item) if item is not None else Replica(ReplicaState.MISSING, str(error))
        case _:
            return Replica(ReplicaState.UNREACHABLE if error.retryable else ReplicaState.MISSING, str(error))


def _in_common(errors: Sequence[SmpError | None], message: str) -> SmpError | None:
    """Return an error of the class that all `errors` have in common, if that is one for which no retry helps."""
    kinds = {type(error) for error in errors}
    first = errors[0] if errors else None
    if len(kinds) > 1 or first is None or first.retryable:
        return None
    return first if len(errors) == 1 else type(first)(message, hint=first.hint)


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
