"""Files in several stores under names that only their owner can read: what `smp upload`, `download`, `ls`, `rm` and `sync` do.

The parts: transfer.py and packs.py bring files in, restoring.py brings them out, index.py knows which there are, records.py
keeps that in the stores, and manager.py keeps objects whole in all of them.
"""

from __future__ import annotations

import hmac
import stat
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from secure_media_processor.cloud.index import PREFIX, IndexedObject
from secure_media_processor.cloud.manager import STALL_TIMEOUT, ConnectorManager
from secure_media_processor.cloud.objects import ObjectState, ObjectStatus, Replica, ReplicaState, StoredObject
from secure_media_processor.cloud.outcome import Action, Done
from secure_media_processor.cloud.reading import Replicas, SealedObject, read_container, read_raw
from secure_media_processor.cloud.records import IndexRecords
from secure_media_processor.cloud.restoring import Restorer, Wanted
from secure_media_processor.cloud.transfer import Uploader
from secure_media_processor.cloud.uploading import Source, UploadRun, digest_of
from secure_media_processor.errors import MissingError, ObjectLostError, SmpError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from secure_media_processor.cloud.connectors.base import CloudConnector
    from secure_media_processor.cloud.index import Index, IndexedFile, Record
    from secure_media_processor.core.recipients import Identity, Recipient

# Objects that are checked at the same time; each costs a request.
_CHECKS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Keys:
    """What an archive is locked with."""

    recipients: Sequence[Recipient]
    identities: Sequence[Identity]
    """Among them one for `recipients`."""
    content_key: bytes = field(repr=False)
    """32 bytes under which equal files are found: SymmetricKey.content_key."""
    older_content_keys: Sequence[bytes] = field(default=(), repr=False)
    """Those of keys that files were encrypted for earlier."""


@dataclass(frozen=True, slots=True)
class Report:
    """How things stand, after all was checked."""

    objects: Sequence[ObjectStatus]
    """Each object that is to be there, records of the index included."""
    names: Mapping[str, Sequence[str]]
    """Key of an object → names of the files that lie in it."""
    taken_back: Mapping[str, Sequence[str]]
    """Store → records of the index that it once had and has no more: it was rolled back."""
    unreadable: Mapping[str, Mapping[str, SmpError]]
    """Store → id of a record there that is damaged, or not for these keys → why."""
    unreachable: Mapping[str, SmpError]
    """Stores that did not answer, and why."""
    leftovers: Mapping[str, Sequence[str]]
    """Store → objects there that were removed elsewhere, or that nothing is known of."""

    @property
    def worst(self) -> ObjectState:
        """The state of the object that is worst off."""
        states = {status.state for status in self.objects}
        for state in (ObjectState.LOST, ObjectState.DEGRADED):
            if state in states:
                return state
        return ObjectState.FULL


class Archive:
    """Files in some stores."""

    def __init__(
        self,
        stores: Mapping[str, CloudConnector],
        keys: Keys,
        folder: Path,
        *,
        labels: Mapping[str, str] | None = None,
        targets: Sequence[str] = (),
        quorum: int | None = None,
        stall_timeout: float = STALL_TIMEOUT,
    ) -> None:
        """Open the archive in `stores`. Nothing is sent until it is used.

        Args:
            stores: All that hold, or are to hold, parts of it, by name.
            keys: What it is locked with.
            folder: Where this machine keeps what it has seen of the index, and journals of uploads.
            labels: Name of a store → what tells it from all others that ever had that name; the name unless given.
            targets: Names of the stores that new files go to; all unless given.
            quorum: How many of these must take a file; the majority unless given.
            stall_timeout: See ConnectorManager.
        """
        unknown = [name for name in targets if name not in stores]
        if unknown:
            raise UsageError(f"there is no store called {unknown[0]}", hint="`smp cloud list` shows the stores")
        labels = labels or {name: name for name in stores}
        chosen = {name: stores[name] for name in (targets or stores)}
        self.manager = ConnectorManager(chosen, quorum=quorum, stall_timeout=stall_timeout)
        """Of the stores that new files go to."""
        self._everywhere = ConnectorManager(stores, quorum=self.manager.quorum, stall_timeout=stall_timeout)
        self.keys, self._folder, self.targets, self._labels = keys, folder, tuple(targets), labels
        self._records = IndexRecords(self._everywhere, folder / "index", labels, keys.recipients, keys.identities)
        self.degraded: dict[str, str] = {}
        """Stores that did not take all they should, and why: repair is for that."""

    @property
    def stores(self) -> Mapping[str, CloudConnector]:
        """All stores, by name."""
        return self._everywhere.connectors

    def read_index(self, *, with_objects: bool = False) -> Index:
        """Return the index as the stores have it now. Stores that do not answer go into `degraded`.

        Args:
            with_objects: Find out which objects there are, too: see is_present.

        Raises:
            TransientError, CredentialsError and the like: no store answers.
        """
        index = self._records.read(with_objects=with_objects)
        self.degraded |= {name: str(error) for name, error in self._records.unreachable.items()}
        return index

    def is_present(self, item: IndexedObject) -> bool:
        """Return whether some store listed the object, with its size, when the index was last read with objects."""
        return any(listed.get(item.key) == item.size for listed in self._records.present.values())

    def tell(self, index: Index, record: Record) -> None:
        """Write `record` into the stores and merge it into `index`. Raises QuorumError and the like."""
        self.note(self._records.write(index, record))

    def note(self, status: ObjectStatus) -> None:
        """Remember which stores did not take an object."""
        for name, replica in status.replicas.items():
            if replica.state is not ReplicaState.INTACT:
                self.degraded[name] = replica.reason

    def content_id(self, digest: bytes) -> str:
        """Return what stands in the index for data with this SHA-256."""
        return _content_id(self.keys.content_key, digest)

    def content_ids(self, digest: bytes) -> list[str]:
        """Return what may stand in the index for data with this SHA-256: one for each key that there was."""
        return [_content_id(key, digest) for key in (self.keys.content_key, *self.keys.older_content_keys)]

    # ------------------------------------------------------------------------------------------------ bringing in

    def upload(
        self, sources: Iterable[Source], *, progress: Callable[[int], None] | None = None, dry_run: bool = False
    ) -> Iterator[Done]:
        """Store files, each encrypted on the way, and yield what became of each; one that cannot be read holds up no other.

        A file that is there under its name, of the same size and time, is not read. One whose contents are there already is
        not stored again. Small files share objects.

        Args:
            sources: What to store, and under which names; an older file of the same name is replaced.
            progress: Called with the number of bytes read since the last call.
            dry_run: Only say what would be done. That contents are there already is not found out then.

        Raises:
            QuorumError, CredentialsError and the like: too few stores take anything. What is stored by then is kept.
        """
        index = self.read_index(with_objects=True)
        with UploadRun(self, index, progress) as run:
            for source in sources:
                if dry_run:
                    yield run.plan(source)
                else:
                    yield from run.take(source)
            yield from run.finish()
        if dry_run:
            return
        lost = run.lost()
        if lost:
            yield from self.upload(lost, progress=progress)
        self._remove_unused(index)

    def uploader(self, index: Index) -> Uploader:
        """Return what brings single files in; `index` tells which uploads are over."""
        return Uploader(
            self.manager,
            self.keys.recipients,
            self.keys.identities,
            self._folder / "uploads",
            self.keys.content_key,
            lambda key: index.object(key) is not None,
            self._labels,
        )

    # ------------------------------------------------------------------------------------------------ bringing out

    def restore(
        self,
        files: Sequence[tuple[IndexedFile, Path]],
        root: Path,
        index: Index,
        *,
        overwrite: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Done]:
        """Write files to their targets, which lie below `root`, and yield what became of each.

        Args:
            files: From `index`, each with its target. One that is there already, with the same contents, is left alone.
            root: An existing folder; no symbolic link below it is followed.
            index: From read_index.
            overwrite: Replace what is in the way.
            progress: Called with the number of bytes written since the last call.
        """
        wanted = []
        for file, target in files:
            item = index.object(file.object)
            if item is None:
                error = ObjectLostError(f"{file.name}: the object that it lies in was removed", hint="store the original again")
                yield Done(file.name, Action.FAILED, file.size, error)
            elif self._is_there(file, target):
                yield Done(file.name, Action.UNCHANGED, file.size)
            else:
                wanted.append(Wanted(file, _stored(item), item.file_id, target))
        stores = {name: store for name, store in self.stores.items() if name not in self._records.unreachable}
        restorer = Restorer(stores or self.stores, self.keys.identities, self.content_ids, overwrite)
        for one, problem in restorer.restore(wanted, root, progress=progress):
            action = Action.RESTORED if problem is None else Action.FAILED
            yield Done(one.file.name, action, one.file.size, problem)

    def _is_there(self, file: IndexedFile, target: Path) -> bool:
        """Return whether `target` is a file with these very contents."""
        try:
            status = target.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size != file.size:
                return False
            return file.content in self.content_ids(digest_of(target))
        except (OSError, SmpError):
            return False

    # ------------------------------------------------------------------------------------------------ removing

    def remove(self, names: Sequence[str], *, dry_run: bool = False) -> list[Done]:
        """Remove files, and the objects in which no other file lies.

        What a store does not let go of now is removed by repair: the index remembers that it is to go.

        Raises:
            MissingError: there is no file of one of these names; nothing was removed then.
            QuorumError: too few stores took the news; nothing was removed.
        """
        index = self.read_index(with_objects=True)
        files = []
        for name in names:
            file = index.file(name)
            if file is None:
                raise MissingError(f"there is no file {name} in the archive", hint="`smp ls` shows the names")
            files.append(file)
        done = [Done(file.name, Action.REMOVED, file.size) for file in files]
        if dry_run or not files:
            return done
        before = index.unused()
        told = index.tell(removed_files=set(names))
        index.merge(told)
        self.tell(index, index.tell(removed_files=set(names), removed_objects=index.unused() - before))
        self._remove_unused(index)
        return done

    def _remove_unused(self, index: Index) -> None:
        """Remove the objects in which no file lies any more, from `index` and from the stores.

        Another machine may find the contents of a new file in one of them at this moment. It reads the index again after it has
        said so, and so do we after we have said that the object is to go: at least one of both sees the other. If so few
        stores answer that we could have overlooked that, nothing is deleted now, and repair does it later.
        """
        unused = index.unused()
        if unused:
            self.tell(index, index.tell(removed_objects=unused))
        going = {key for key in index.to_remove() if any(key in listed for listed in self._records.present.values())} | unused
        if going:
            now = self.read_index()
            if self._records.complete:
                self._delete(going & now.to_remove())

    def _delete(self, keys: Iterable[str]) -> None:
        with ThreadPoolExecutor(_CHECKS_AT_ONCE) as pool:
            for errors in pool.map(self._everywhere.delete, keys):
                self.degraded |= {name: str(error) for name, error in errors.items() if error is not None}

    # ------------------------------------------------------------------------------------------------ checking and mending

    def verify(self, *, deep: bool = False, progress: Callable[[int], None] | None = None) -> Report:
        """Ask every store for its own digest of every object; with `deep`, fetch and decrypt every replica.

        Args:
            deep: Read everything, from every store.
            progress: Called with the number of bytes checked since the last call.
        """
        index = self.read_index(with_objects=True)
        everything = [(_stored(item), self._stores_of(item), item.file_id) for item in index.objects()]
        everything += [(record, names, None) for record, names in self._records.objects()]

        def check(one: tuple[StoredObject, Sequence[str], str | None]) -> ObjectStatus:
            status = self._check(one[0], one[1])
            if deep:
                status = self._check_deeply(status, one[2])
            if progress is not None:
                progress(one[0].size)
            return status

        with ThreadPoolExecutor(1 if deep else _CHECKS_AT_ONCE) as pool:
            statuses = list(pool.map(check, everything))
        names = defaultdict(list)
        for file in index.files():
            names[file.object].append(file.name)
        gone = {name: Replica(ReplicaState.MISSING, "it was removed") for name in self.stores}
        statuses += [ObjectStatus(StoredObject(key, 0, {}), gone) for key in names if index.object(key) is None]
        wanted = {item.key for item in index.objects()}
        leftovers = {name: sorted(listed.keys() - wanted) for name, listed in self._records.present.items()}
        return Report(
            statuses,
            names,
            self._records.taken_back(),
            self._records.unreadable,
            self._records.unreachable,
            {name: keys for name, keys in leftovers.items() if keys},
        )

    def repair(self, *, deep: bool = False) -> Report:
        """Give every store that answers what it lacks, remove what was removed elsewhere, and check again.

        Args:
            deep: Read every replica first: a store may say of a damaged copy what it said when the copy was good.

        Raises:
            QuorumError: what was learned could not be written down.
        """
        self.degraded = {}
        report = self.verify(deep=deep)
        index = self.read_index(with_objects=True)
        self._records.repair()
        learned = []
        for status in report.objects:
            if status.object.key.startswith(PREFIX):
                for name, replica in status.replicas.items():
                    if replica.state is ReplicaState.DAMAGED:
                        self._records.put_back(name, status.object)
                continue
            item = index.object(status.object.key)
            if item is None or status.state is not ObjectState.DEGRADED:
                continue
            after = self._everywhere.mend(status)
            if after.digests != status.object.digests:
                learned.append(IndexedObject(item.key, item.size, after.digests, item.file_id, item.stores))
        if learned:
            self.tell(index, index.tell(objects=learned))
        self._remove_unused(index)
        return self.verify(deep=deep)

    def _stores_of(self, item: IndexedObject) -> Sequence[str]:
        """Return the names of the stores that an object should be in: those it was meant for, as far as they are known here."""
        return [name for name in item.stores if name in self.stores] if item.stores else list(self.stores)

    def _reachable(self, names: Sequence[str]) -> Sequence[str]:
        return [name for name in names if name not in self._records.unreachable]

    def _check(self, item: StoredObject, names: Sequence[str]) -> ObjectStatus:
        """Ask the stores `names` for their digests of an object; those that did not answer before are not asked again."""
        replicas = {
            name: Replica(ReplicaState.UNREACHABLE, str(error))
            for name, error in self._records.unreachable.items()
            if name in names
        }
        asked = {name: self._everywhere.connectors[name] for name in self._reachable(names)}
        if asked:
            replicas |= ConnectorManager(asked).verify(item).replicas
        return ObjectStatus(item, replicas)

    def _check_deeply(self, status: ObjectStatus, file_id: str | None) -> ObjectStatus:
        """Read each replica that seems intact to its end."""
        replicas = dict(status.replicas)
        for name, replica in status.replicas.items():
            if replica.state is not ReplicaState.INTACT:
                continue
            copy = Replicas({name: self._everywhere.connectors[name]}, status.object)
            try:
                if file_id is None:
                    read_raw(copy, _Nowhere())
                else:
                    read_container(SealedObject.open(copy, self.keys.identities, file_id=file_id), _Nowhere())
            except SmpError as error:
                state = ReplicaState.UNREACHABLE if error.retryable else ReplicaState.DAMAGED
                replicas[name] = Replica(state, str(error))
        return ObjectStatus(status.object, replicas)


class _Nowhere:
    """A sink that keeps nothing."""

    def write(self, data: memoryview | bytes) -> None:
        """Drop `data`."""


def _stored(item: IndexedObject) -> StoredObject:
    return StoredObject(item.key, item.size, dict(item.digests))


def _content_id(key: bytes, digest: bytes) -> str:
    return hmac.digest(key, digest, sha256).hex()
