"""Files in several stores under names that only their owner can read: what `smp upload`, `download`, `ls`, `rm` and `sync` do.

The parts: transfer.py and packs.py bring files in, restoring.py brings them out, index.py knows which there are, records.py
keeps that in the stores, and manager.py keeps objects whole in all of them.
"""

from __future__ import annotations

import hmac
import stat
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from secure_media_processor.cloud.index import PREFIX, IndexedObject
from secure_media_processor.cloud.manager import ConnectorManager
from secure_media_processor.cloud.objects import ObjectState, ObjectStatus, Replica, ReplicaState, StoredObject
from secure_media_processor.cloud.outcome import Action, Done
from secure_media_processor.cloud.pruning import GRACE, Pruned, StrayBook, begun_here
from secure_media_processor.cloud.reading import Replicas, SealedObject, read_container, read_raw
from secure_media_processor.cloud.records import IndexRecords
from secure_media_processor.cloud.restoring import Restorer, Wanted
from secure_media_processor.cloud.transfer import Uploader
from secure_media_processor.cloud.uploading import Source, UploadRun, digest_of
from secure_media_processor.cloud.waiting import ANSWER_TIMEOUT, STALL_TIMEOUT, Waiting, in_turn
from secure_media_processor.errors import DegradedError, MissingError, ObjectLostError, SmpError, UsageError

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
class Mended:
    """A copy of an object that a repair has put right."""

    key: str
    """Of the object."""
    store: str
    was: ReplicaState


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
    mended: Sequence[Mended] = ()
    """After a repair: the copies that were not intact before it, and are now."""
    removed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """After a repair: store → objects that were removed from it."""

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
        answer_timeout: float = ANSWER_TIMEOUT,
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
            answer_timeout: See Waiting.
        """
        unknown = [name for name in targets if name not in stores]
        if unknown:
            raise UsageError(f"there is no store called {unknown[0]}", hint="`smp cloud list` shows the stores")
        labels = labels or {name: name for name in stores}
        chosen = {name: stores[name] for name in (targets or stores)}
        waiting = Waiting(answer_timeout=answer_timeout, stall_timeout=stall_timeout)
        self.manager = ConnectorManager(chosen, quorum=quorum, waiting=waiting)
        """Of the stores that new files go to."""
        self._everywhere = ConnectorManager(stores, quorum=self.manager.quorum, waiting=waiting)
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

    @property
    def memory_error(self) -> SmpError | None:
        """Why this machine cannot remember what it saw in the stores when the index was read; None if it can."""
        return self._records.memory_error

    def is_present(self, item: IndexedObject) -> bool:
        """Return whether as many stores have the object as must take a file, of those that new files go to.

        It is there if a store listed it, with its size, when the index was last read with objects.
        """
        present = self._records.present
        return sum(present.get(name, {}).get(item.key) == item.size for name in self.manager.connectors) >= self.manager.quorum

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
        self,
        sources: Iterable[Source],
        *,
        progress: Callable[[int], None] | None = None,
        dry_run: bool = False,
        is_leaving: Callable[[str], bool] = lambda _name: False,
    ) -> Iterator[Done]:
        """Store files, each encrypted on the way, and yield what became of each; one that cannot be read holds up no other.

        A file that is there under its name, of the same size and time, is not read. One whose contents are there already is
        not stored again. Small files share objects. No name may be that of a file and of a folder: which comes second fails.

        Args:
            sources: What to store, and under which names; an older file of the same name is replaced.
            progress: Called with the number of bytes read since the last call.
            dry_run: Only say what would be done. That contents are there already is not found out then.
            is_leaving: Tells of the name of a file in the archive that it will be removed next, and is in no other's way.

        Raises:
            QuorumError, CredentialsError and the like: too few stores take anything. What is stored by then is kept.
        """
        index = self.read_index(with_objects=True)
        if not dry_run:
            self._records.need_memory()
        with UploadRun(self, index, progress, is_leaving) as run:
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
            yield from self.upload(lost, progress=progress, is_leaving=is_leaving)
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
        waiting = self._everywhere.waiting
        restorer = Restorer(stores or self.stores, self.keys.identities, self.content_ids, overwrite, waiting)
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
        self._records.need_memory()
        before = index.unused()
        told = index.tell(removed_files=set(names))
        index.merge(told)
        self.tell(index, index.tell(removed_files=set(names), removed_objects=index.unused() - before))
        self._remove_unused(index)
        return done

    def _remove_unused(self, index: Index) -> set[str]:
        """Remove the objects in which no file lies any more, from `index` and from the stores. Returns their keys.

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
                going &= now.to_remove()
                self._delete(going)
                return going
        return set()

    def _delete(self, keys: Iterable[str]) -> None:
        for errors in in_turn(self._everywhere.delete, keys, _CHECKS_AT_ONCE):
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

        statuses = list(in_turn(check, everything, 1 if deep else _CHECKS_AT_ONCE))
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

    def repair(self, *, deep: bool = False, progress: Callable[[int], None] | None = None) -> Report:
        """Give every store that answers what it lacks, remove what was removed elsewhere, and check again.

        Args:
            deep: Read every replica first: a store may say of a damaged copy what it said when the copy was good.
            progress: As in verify, for the check before and the one after.

        Raises:
            QuorumError: what was learned could not be written down.
        """
        self.degraded = {}
        self._records.need_memory()
        report = self.verify(deep=deep, progress=progress)
        index = self.read_index(with_objects=True)
        self._records.repair()
        learned, failed = [], {}
        for status in report.objects:
            if status.object.key.startswith(PREFIX):
                for name, replica in status.replicas.items():
                    if replica.state is ReplicaState.DAMAGED:
                        self._records.put_back(name, status.object)
                continue
            item = index.object(status.object.key)
            if item is None or status.state is not ObjectState.DEGRADED:
                continue
            after, errors = self._everywhere.mend(status)
            failed[item.key] = errors
            if after.digests != status.object.digests:
                learned.append(IndexedObject(item.key, item.size, after.digests, item.file_id, item.stores))
        if learned:
            self.tell(index, index.tell(objects=learned))
        self._remove_unused(index)
        return _repaired(report, self.verify(deep=deep, progress=progress), failed)

    def prune(self, *, grace: float = GRACE, dry_run: bool = False, now: float | None = None) -> Pruned:
        """Remove objects that no record of the index tells of: uploads that died have left them behind.

        Args:
            grace: Seconds for which this machine must have seen an object so. If this is less than an upload may take between
                sending an object and writing it down, on any machine, prune can remove what a file lies in.
            dry_run: Only say what would be removed; nothing is remembered either.
            now: Seconds since 1970; the clock of this machine unless given.

        Raises:
            DegradedError: some store, or some record, cannot be read, or a store lacks records: nothing is removed then.
            QuorumError: too few stores took the news; nothing was removed.
        """
        now = time.time() if now is None else now
        index = self.read_index(with_objects=True)
        self._refuse_gaps()
        book = StrayBook(self._folder / "index" / "strays.json")
        strays = book.look(self._records.present, index.known(), now)
        begun = begun_here(self._folder / "uploads", [stray.key for stray in strays])
        due = [stray for stray in strays if stray.seen_for >= grace and stray.key not in begun]
        kept = [stray for stray in strays if stray not in due]
        if dry_run:
            return Pruned(due, kept)
        self._records.need_memory()
        book.remember(strays, now)
        if due:
            # Said first, as with all that is removed: a file that is found to lie in one of them after that keeps it there.
            self.tell(index, index.tell(removed_objects=[stray.key for stray in due]))
            removed = self._remove_unused(index)
            kept += [stray for stray in due if stray.key not in removed]
            due = [stray for stray in due if stray.key in removed]
        return Pruned(due, kept)

    def _refuse_gaps(self) -> None:
        """Raise DegradedError unless all that any record tells is known, as it was read last."""
        gaps: dict[str, Mapping[str, object]] = {
            "does not answer": self._records.unreachable,
            "holds records of the index that cannot be read": self._records.unreadable,
            "lacks records of the index": self._records.lacking(),
        }
        for what, names in gaps.items():
            if names:
                hint = "see `smp cloud verify`: every store must answer, and every record be readable with the keys at hand"
                raise DegradedError(f"nothing is removed: {', '.join(names)} {what}", hint=hint)

    def _stores_of(self, item: IndexedObject) -> Sequence[str]:
        """Return the names of the stores that an object should be in: those it was meant for.

        Names are those of the machine that stored it. In place of one that is not known here stand the stores that list the
        object; if there are none, all: what no store has must never pass for well.
        """
        meant = [name for name in item.stores if name in self.stores]
        if item.stores and len(meant) == len(item.stores):
            return meant
        listing = [name for name, listed in self._records.present.items() if item.key in listed and item.stores]
        return list(dict.fromkeys([*meant, *listing])) or list(self.stores)

    def _reachable(self, names: Sequence[str]) -> Sequence[str]:
        return [name for name in names if name not in self._records.unreachable]

    def _check(self, item: StoredObject, names: Sequence[str]) -> ObjectStatus:
        """Ask the stores `names` for their digests of an object; those that did not answer before are not asked again."""
        replicas = {
            name: Replica(ReplicaState.UNREACHABLE, str(error))
            for name, error in self._records.unreachable.items()
            if name in names
        }
        asked = self._reachable(names)
        if asked:
            replicas |= self._everywhere.verify(item, asked).replicas
        return ObjectStatus(item, replicas)

    def _check_deeply(self, status: ObjectStatus, file_id: str | None) -> ObjectStatus:
        """Read each replica that seems intact to its end."""
        replicas = dict(status.replicas)
        for name, replica in status.replicas.items():
            if replica.state is not ReplicaState.INTACT:
                continue
            copy = Replicas({name: self._everywhere.connectors[name]}, status.object, self._everywhere.waiting)
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


def _repaired(before: Report, after: Report, failed: Mapping[str, Mapping[str, SmpError]]) -> Report:
    """Return `after` with what was done, and with the reasons (object → store → error) why some copies could not be mended."""
    wrong = {
        (status.object.key, name): replica.state
        for status in before.objects
        for name, replica in status.replicas.items()
        if replica.state in (ReplicaState.DAMAGED, ReplicaState.MISSING)
    }
    objects, mended = [], []
    for status in after.objects:
        key, replicas = status.object.key, dict(status.replicas)
        for name, replica in status.replicas.items():
            error = failed.get(key, {}).get(name)
            if replica.state is not ReplicaState.INTACT:
                if error is not None:
                    replicas[name] = Replica(replica.state, f"it cannot be copied there: {error}")
            elif (key, name) in wrong:
                mended.append(Mended(key, name, wrong[key, name]))
        objects.append(ObjectStatus(status.object, replicas))
    removed = {
        name: [key for key in keys if key not in after.leftovers.get(name, ())]
        for name, keys in before.leftovers.items()
        if name not in after.unreachable
    }
    return replace(after, objects=objects, mended=mended, removed={name: keys for name, keys in removed.items() if keys})


def _stored(item: IndexedObject) -> StoredObject:
    return StoredObject(item.key, item.size, dict(item.digests))


def _content_id(key: bytes, digest: bytes) -> str:
    return hmac.digest(key, digest, sha256).hex()
