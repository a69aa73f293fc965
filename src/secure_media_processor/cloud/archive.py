"""Files in several stores under names that only their owner can read: what `smp upload`, `download`, `ls`, `rm` and `sync` do.

The parts: transfer.py and packs.py bring files in, restoring.py brings them out, index.py knows which there are, records.py
keeps that in the stores, and manager.py keeps objects whole in all of them.
"""

from __future__ import annotations

import hmac
import os
import stat
import unicodedata
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING

from secure_media_processor.cloud.connectors.base import read_blocks
from secure_media_processor.cloud.index import IndexedFile, IndexedObject
from secure_media_processor.cloud.manager import STALL_TIMEOUT, ConnectorManager, new_key
from secure_media_processor.cloud.objects import ObjectState, ObjectStatus, Replica, ReplicaState, StoredObject
from secure_media_processor.cloud.packs import LARGEST_IN_PACK, Pack
from secure_media_processor.cloud.paths import check_key
from secure_media_processor.cloud.reading import Replicas, SealedObject, read_container, read_raw
from secure_media_processor.cloud.records import IndexRecords
from secure_media_processor.cloud.restoring import Restorer, Wanted
from secure_media_processor.cloud.transfer import Uploader, is_encrypted
from secure_media_processor.core.container import MAX_INTEGER
from secure_media_processor.core.files import open_source, os_errors, read_full
from secure_media_processor.errors import MissingError, ObjectLostError, SmpError, SourceChangedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from secure_media_processor.cloud.connectors.base import CloudConnector
    from secure_media_processor.cloud.digests import Part
    from secure_media_processor.cloud.index import Index, Record
    from secure_media_processor.cloud.packs import Packed
    from secure_media_processor.core.recipients import Identity, Recipient

# Packs on their way while the next is filled: hides what a far store takes to answer, and each takes 15 MiB.
_PACKS_UNDER_WAY = 2
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


class Action(StrEnum):
    """What was done, or is to be done, with a file."""

    STORED = "stored"
    LINKED = "linked"
    """Its contents were there already, under another name or an earlier one."""
    UNCHANGED = "unchanged"
    """It is there, of the same size and time."""
    REMOVED = "removed"
    RESTORED = "restored"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one file."""

    name: str
    action: Action
    size: int = 0
    """Bytes."""
    error: SmpError | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A file on this machine, and the name it is to have in the archive."""

    path: Path
    name: str


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
        chosen = {name: stores[name] for name in (targets or stores)}
        self._manager = ConnectorManager(chosen, quorum=quorum, stall_timeout=stall_timeout)
        self._everywhere = ConnectorManager(stores, quorum=self._manager.quorum, stall_timeout=stall_timeout)
        self._keys, self._folder, self._targets = keys, folder, tuple(targets)
        names = {name: name for name in stores}
        self._records = IndexRecords(self._everywhere, folder / "index", labels or names, keys.recipients, keys.identities)
        self.degraded: dict[str, str] = {}
        """Stores that did not take all they should, and why: repair is for that."""

    def read_index(self) -> Index:
        """Return the index as the stores have it now. Stores that do not answer go into `degraded`.

        Raises:
            TransientError, CredentialsError and the like: no store answers.
        """
        index = self._records.read()
        self.degraded |= {name: str(error) for name, error in self._records.unreachable.items()}
        return index

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
        run = _UploadRun(self, self.read_index(), progress)
        for source in sources:
            if dry_run:
                yield run.plan(source)
            else:
                yield from run.take(source)
        if not dry_run:
            yield from run.finish()

    def _uploader(self, index: Index) -> Uploader:
        return Uploader(
            self._manager,
            self._keys.recipients,
            self._keys.identities,
            self._folder / "uploads",
            self._keys.content_key,
            lambda key: index.object(key) is not None,
        )

    def content_id(self, digest: bytes) -> str:
        """Return what stands in the index for data with this SHA-256."""
        return hmac.digest(self._keys.content_key, digest, sha256).hex()

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
        restorer = Restorer(self._everywhere.connectors, self._keys.identities, self._keys.content_key, overwrite)
        for one, problem in restorer.restore(wanted, root, progress=progress):
            action = Action.RESTORED if problem is None else Action.FAILED
            yield Done(one.file.name, action, one.file.size, problem)

    def _is_there(self, file: IndexedFile, target: Path) -> bool:
        """Return whether `target` is a file with these very contents."""
        try:
            status = target.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size != file.size:
                return False
            if file.mtime_ns not in (None, status.st_mtime_ns):
                return False
            return self.content_id(_sha256(target)) == file.content
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
        index = self.read_index()
        files = []
        for name in names:
            file = index.file(name)
            if file is None:
                raise MissingError(f"there is no file {name} in the archive", hint="`smp ls` shows the names")
            files.append(file)
        done = [Done(file.name, Action.REMOVED, file.size) for file in files]
        if dry_run or not files:
            return done
        gone = set(names)
        left = {file.object for file in index.files() if file.name not in gone}
        objects = {file.object for file in files} - left
        kept = {key: item for key in objects if (item := index.object(key)) is not None}
        self._tell(index, index.tell(removed_files=gone, removed_objects=objects))
        # Another machine may have found the contents of a new file in one of these objects at this moment. It looks again after
        # it has said so, and so do we: at least one of both sees the other.
        now = self.read_index()
        back = [item for key, item in kept.items() if key in now.in_use()]
        if back:
            self._tell(now, now.tell(objects=back))
        self._delete(objects - {item.key for item in back})
        return done

    def _delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            errors = self._everywhere.delete(key)
            self.degraded |= {name: str(error) for name, error in errors.items() if error is not None}

    # ------------------------------------------------------------------------------------------------ checking and mending

    def verify(self, *, deep: bool = False, progress: Callable[[int], None] | None = None) -> Report:
        """Ask every store for its own digest of every object; with `deep`, fetch and decrypt every replica.

        Args:
            deep: Read everything, from every store.
            progress: Called with the number of bytes checked since the last call.
        """
        index = self.read_index()
        items = [(_stored(item), item) for item in index.objects()]
        pairs = [(stored, self._stores_of(item), item) for stored, item in items]

        def check(pair: tuple[StoredObject, Sequence[str], IndexedObject]) -> ObjectStatus:
            stored, names, item = pair
            status = self._check(stored, names)
            if deep:
                status = self._check_deeply(status, item)
            if progress is not None:
                progress(stored.size)
            return status

        with ThreadPoolExecutor(1 if deep else _CHECKS_AT_ONCE) as pool:
            statuses = list(pool.map(check, pairs))
            statuses += pool.map(lambda record: self._check(*record), self._records.objects())
        names = defaultdict(list)
        for file in index.files():
            names[file.object].append(file.name)
        gone = {name: Replica(ReplicaState.MISSING, "it was removed") for name in self._everywhere.connectors}
        statuses += [ObjectStatus(StoredObject(key, 0, {}), gone) for key in names if index.object(key) is None]
        return Report(
            statuses,
            names,
            self._records.taken_back(),
            self._records.unreadable,
            self._records.unreachable,
            self._leftovers(index),
        )

    def repair(self) -> Report:
        """Give every store that answers what it lacks, remove what was removed elsewhere, and check again.

        Raises:
            QuorumError: what was learned could not be written down.
        """
        index = self.read_index()
        self._repair_index()
        learned = []
        for item in index.objects():
            stored, names = _stored(item), self._stores_of(item)
            status = self._check(stored, names)
            if status.state is not ObjectState.DEGRADED:
                continue
            after = ConnectorManager({name: self._everywhere.connectors[name] for name in self._reachable(names)}).repair(
                stored
            )
            if after.object.digests != stored.digests:
                learned.append(IndexedObject(item.key, item.size, after.object.digests, item.file_id, item.stores))
        if learned:
            self._tell(index, index.tell(objects=learned))
        removed = index.removed() - index.in_use()
        for name, keys in self._leftovers(index).items():
            for key in removed & set(keys):
                try:
                    self._everywhere.connectors[name].delete(key)
                except MissingError:
                    pass
                except SmpError as error:
                    self.degraded[name] = str(error)
        self.degraded = {}
        return self.verify()

    def _repair_index(self) -> None:
        self._records.repair()
        for record, stores in self._records.objects():
            for name, replica in self._check(record, stores).replicas.items():
                if replica.state is ReplicaState.DAMAGED:
                    self._records.put_back(name, record)

    def _stores_of(self, item: IndexedObject) -> Sequence[str]:
        """Return the names of the stores that an object should be in: those it was meant for, as far as they are known here."""
        names = [name for name in item.stores if name in self._everywhere.connectors]
        return names or tuple(self._everywhere.connectors)

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

    def _check_deeply(self, status: ObjectStatus, item: IndexedObject) -> ObjectStatus:
        """Read each replica that seems intact to its end."""
        replicas = dict(status.replicas)
        for name, replica in status.replicas.items():
            if replica.state is not ReplicaState.INTACT:
                continue
            copy = Replicas({name: self._everywhere.connectors[name]}, status.object)
            try:
                if item.file_id is None:
                    read_raw(copy, _Nowhere())
                else:
                    read_container(SealedObject.open(copy, self._keys.identities, file_id=item.file_id), _Nowhere())
            except SmpError as error:
                state = ReplicaState.UNREACHABLE if error.retryable else ReplicaState.DAMAGED
                replicas[name] = Replica(state, str(error))
        return ObjectStatus(status.object, replicas)

    def _leftovers(self, index: Index) -> dict[str, list[str]]:
        """Return for each store that answers the objects there that the index does not want, or does not know."""
        wanted = {item.key for item in index.objects()}

        def unwanted(store: CloudConnector) -> list[str]:
            try:
                return [info.key for info in store.list() if "/" not in info.key and info.key not in wanted]
            except SmpError:  # it has answered a moment ago; who asks again will see what it has
                return []

        found = self._everywhere.ask_all(unwanted)
        return {name: keys for name, keys in found.items() if keys}

    def _tell(self, index: Index, record: Record) -> None:
        self._note(self._records.write(index, record))

    def _note(self, status: ObjectStatus) -> None:
        for name, replica in status.replicas.items():
            if replica.state is not ReplicaState.INTACT:
                self.degraded[name] = replica.reason


class _UploadRun:
    """One upload of many files."""

    def __init__(self, archive: Archive, index: Index, progress: Callable[[int], None] | None) -> None:
        self._archive, self._index, self._progress = archive, index, progress
        self._uploader = archive._uploader(index)  # noqa: SLF001 - a part of the archive
        self._by_content = {file.content: file for file in index.files()}
        self._sizes = {file.size for file in index.files()}
        self._files: list[IndexedFile] = []
        """Files that are stored, or were there, and that the stores' index does not know of yet."""
        self._objects: list[IndexedObject] = []
        self._pack = Pack()
        self._pack_key = new_key()
        self._pool = ThreadPoolExecutor(_PACKS_UNDER_WAY, thread_name_prefix="cloud-pack")
        self._under_way: list[tuple[list[IndexedFile], Future[IndexedObject]]] = []
        self._linked: list[Source] = []
        self._sources: dict[str, Source] = {}

    def plan(self, source: Source) -> Done:
        """Return what would be done with a file."""
        try:
            name = _name(source.name)
            status = _status(source.path)
        except SmpError as error:
            return Done(source.name, Action.FAILED, 0, error)
        known = self._index.file(name)
        now = (status.st_size, status.st_mtime_ns)
        unchanged = known is not None and (known.size, known.mtime_ns) == now and self._usable(known)
        return Done(name, Action.UNCHANGED if unchanged else Action.STORED, status.st_size)

    def take(self, source: Source) -> Iterator[Done]:
        """Store a file, or put it into a pack that is stored later."""
        plan = self.plan(source)
        if plan.action is not Action.STORED:
            yield plan
            return
        try:
            if plan.size <= LARGEST_IN_PACK and not is_encrypted(source.path):
                yield from self._take_small(Source(source.path, plan.name))
            else:
                yield from self._take_large(Source(source.path, plan.name), plan.size)
        except SmpError as error:
            if not _is_about(error, source.path):
                self._keep_what_is_stored()
                raise
            yield Done(plan.name, Action.FAILED, plan.size, error)

    def finish(self) -> Iterator[Done]:
        """Store what is left, and write all down."""
        try:
            yield from self._flush()
            yield from self._collect(0)
        finally:
            self._pool.shutdown(wait=True)
            self._keep_what_is_stored()
        yield from self._look_again()

    def _take_small(self, source: Source) -> Iterator[Done]:
        data, mtime_ns = _read_small(source.path)
        self._count(len(data))
        digest = sha256(data)
        content = self._archive.content_id(digest.digest())
        if self._link(source, len(data), mtime_ns, content):
            yield Done(source.name, Action.LINKED, len(data))
            return
        self._pack.add(source.name, data, mtime_ns, digest.hexdigest())
        self._by_content[content] = self._indexed(self._pack.files[-1], self._pack_key)
        if self._pack.full:
            yield from self._flush()

    def _take_large(self, source: Source, size: int) -> Iterator[Done]:
        status = _status(source.path)
        if size in self._sizes:
            content = self._archive.content_id(_sha256(source.path))
            if self._link(source, size, _mtime_ns(status), content):
                self._count(size)
                yield Done(source.name, Action.LINKED, size)
                return
        with self._uploader.upload(source.path, source.name, progress=self._counter()) as uploaded:
            self._archive._note(uploaded.status)  # noqa: SLF001 - as above
            item, content = uploaded.status.object, self._archive.content_id(bytes.fromhex(uploaded.sha256))
            stores = self._archive._targets  # noqa: SLF001
            self._objects.append(IndexedObject(item.key, item.size, item.digests, uploaded.file_id, stores))
            file = IndexedFile(source.name, uploaded.size, _mtime_ns(status), content, item.key)
            self._files.append(file)
            self._by_content[content] = file
            self._sizes.add(uploaded.size)
            self._write_down()
        yield Done(source.name, Action.STORED, uploaded.size)

    def _link(self, source: Source, size: int, mtime_ns: int | None, content: str) -> bool:
        """Give the file the object in which its contents lie already, if there is one. Returns whether there is."""
        there = self._by_content.get(content)
        if there is None or there.size != size or not self._usable(there):
            return False
        self._files.append(IndexedFile(source.name, size, mtime_ns, content, there.object, there.offset))
        self._linked.append(source)
        return True

    def _usable(self, file: IndexedFile) -> bool:
        """Return whether the object of `file` is where this upload should go."""
        item = self._index.object(file.object)
        if item is None:
            return any(key == file.object for key in self._new_objects())
        targets = self._archive._targets  # noqa: SLF001 - as above
        return not item.stores or set(targets or self._archive._everywhere.connectors) <= set(item.stores)  # noqa: SLF001

    def _new_objects(self) -> Iterator[str]:
        yield self._pack_key
        yield from (item.key for item in self._objects)
        for files, _ in self._under_way:
            yield files[0].object

    def _flush(self) -> Iterator[Done]:
        """Send the pack on its way."""
        if not self._pack.files:
            return
        yield from self._collect(_PACKS_UNDER_WAY - 1)
        pack, key = self._pack, self._pack_key
        files = [self._indexed(packed, key) for packed in pack.files]
        self._under_way.append((files, self._pool.submit(self._store_pack, pack, key)))
        self._pack, self._pack_key = Pack(), new_key()

    def _indexed(self, packed: Packed, key: str) -> IndexedFile:
        content = self._archive.content_id(bytes.fromhex(packed.sha256))
        return IndexedFile(packed.name, packed.size, packed.mtime_ns, content, key, packed.offset)

    def _store_pack(self, pack: Pack, key: str) -> IndexedObject:
        file_id, parts = pack.seal(self._archive._keys.recipients)  # noqa: SLF001 - as above

        def produce(send: Callable[[Part], None]) -> None:
            for part in parts:
                send(part)

        status = self._archive._manager.store(key, produce)  # noqa: SLF001
        self._archive._note(status)  # noqa: SLF001
        return IndexedObject(key, status.object.size, status.object.digests, file_id, self._archive._targets)  # noqa: SLF001

    def _collect(self, leave: int) -> Iterator[Done]:
        """Wait until no more than `leave` packs are under way."""
        while len(self._under_way) > leave:
            files, future = self._under_way[0]
            item = future.result()
            del self._under_way[0]
            self._objects.append(item)
            self._files.extend(files)
            yield from (Done(file.name, Action.STORED, file.size) for file in files)

    def _keep_what_is_stored(self) -> None:
        """Write down what is stored, also when the rest fails."""
        there = {item.key for item in self._objects}
        self._files = [file for file in self._files if file.object in there or self._index.object(file.object) is not None]
        self._write_down()

    def _write_down(self) -> None:
        there = {item.key for item in self._objects}
        ready = [file for file in self._files if file.object in there or self._index.object(file.object) is not None]
        if not ready and not self._objects:
            return
        self._archive._tell(self._index, self._index.tell(ready, self._objects))  # noqa: SLF001 - as above
        self._files = [file for file in self._files if file not in ready]
        self._objects = []

    def _look_again(self) -> Iterator[Done]:
        """See to the files whose contents were there, if their object was removed by another machine at the same moment."""
        if not self._linked:
            return
        linked, self._linked = self._linked, []
        now = self._archive.read_index()
        lost = [source for source in linked if (file := now.file(source.name)) is not None and now.object(file.object) is None]
        if lost:
            yield from self._archive.upload(lost, progress=self._progress)

    def _count(self, size: int) -> None:
        if self._progress is not None:
            self._progress(size)

    def _counter(self) -> Callable[[int], None] | None:
        if self._progress is None:
            return None
        before = 0

        def count(done: int) -> None:
            nonlocal before
            self._count(max(0, done - before))
            before = max(before, done)

        return count


class _Nowhere:
    """A sink that keeps nothing."""

    def write(self, data: memoryview | bytes) -> None:
        """Drop `data`."""


def _stored(item: IndexedObject) -> StoredObject:
    return StoredObject(item.key, item.size, dict(item.digests))


def _name(name: str) -> str:
    """Return the name of a file in Unicode NFC. Raises UsageError if it cannot be one."""
    try:
        return check_key(unicodedata.normalize("NFC", name))
    except UsageError as error:
        raise UsageError(f"{name!r} cannot be stored under this name: {error}", hint="rename the file") from None


def _status(path: Path) -> os.stat_result:
    with os_errors(f"read {path}"):
        return path.stat()


def _mtime_ns(status: os.stat_result) -> int | None:
    """Return the modification time of a file as the index keeps it: None if it is before 1970 or after 2262."""
    return status.st_mtime_ns if 0 <= status.st_mtime_ns <= MAX_INTEGER else None


def _read_small(path: Path) -> tuple[bytes, int | None]:
    """Return the data and modification time of a small file. Raises SourceChangedError if it is being written."""
    with open_source(path) as file, os_errors(f"read {path}"):
        before = os.fstat(file.fileno())
        buffer = bytearray(before.st_size + 1)
        size = read_full(file, memoryview(buffer))
        after = os.fstat(file.fileno())
    if (size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise SourceChangedError(f"{path} was changed while it was being read")
    return bytes(buffer[:size]), _mtime_ns(before)


def _sha256(path: Path) -> bytes:
    digest = sha256()
    for block in read_blocks(path):
        digest.update(block)
    return digest.digest()


def _is_about(error: SmpError, path: Path) -> bool:
    """Return whether an error is one of a source file, so that the others can go on."""
    return isinstance(error, SourceChangedError) or str(error).startswith(f"cannot read {path}:")
