"""One upload of many files: what is there already, what goes into packs, what goes by itself, and when it is written down."""

from __future__ import annotations

import os
import stat
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Self

from secure_media_processor.cloud.connectors.base import read_blocks
from secure_media_processor.cloud.index import IndexedFile, IndexedObject
from secure_media_processor.cloud.manager import new_key
from secure_media_processor.cloud.outcome import Action, Done
from secure_media_processor.cloud.packs import LARGEST_IN_PACK, Pack
from secure_media_processor.cloud.paths import check_key
from secure_media_processor.cloud.transfer import is_encrypted
from secure_media_processor.core.container import MAX_INTEGER
from secure_media_processor.core.files import open_source, os_errors, read_full
from secure_media_processor.errors import FileAccessError, SmpError, SourceChangedError, TransientError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from secure_media_processor.cloud.archive import Archive
    from secure_media_processor.cloud.digests import Part
    from secure_media_processor.cloud.index import Index
    from secure_media_processor.cloud.packs import Packed

# Packs on their way while the next is filled: hides what a far store takes to answer. Each takes 40 MiB while it is sealed.
_PACKS_UNDER_WAY = 1
# Seconds after which what is stored is written into the index, so that little is lost when the process dies.
_WRITE_DOWN_AFTER = 30.0
# Seconds after which an upload makes sure that nobody has taken what it sent for left behind; far less than pruning.GRACE.
_LONG = 86400.0


@dataclass(frozen=True, slots=True)
class Source:
    """A file on this machine, and the name it is to have in the archive."""

    path: Path
    name: str


class UploadRun:
    """One upload of many files. A context manager: leaving it writes down what is stored, whatever happened."""

    def __init__(
        self,
        archive: Archive,
        index: Index,
        progress: Callable[[int], None] | None,
        is_leaving: Callable[[str], bool] = lambda _name: False,
    ) -> None:
        """Store files in `archive`, whose index is `index`.

        Args:
            archive: Where to.
            index: As it is now.
            progress: Called with the bytes read since the last call.
            is_leaving: See Archive.upload.
        """
        self._archive, self._index, self._progress = archive, index, progress
        self._taken = {file.name for file in index.files() if not is_leaving(file.name)}
        """Names of files, there or planned."""
        self._folders = {folder for name in self._taken for folder in _folders(name)}
        """Names of the folders that they lie in."""
        self._uploader = archive.uploader(index)
        self._by_content = {file.content: file for file in index.files()}
        self._sizes = {file.size for file in index.files()}
        self._names: set[str] = set()
        self._sent: set[str] = set()
        """Keys of the objects that this upload has stored."""
        self._stored: dict[str, IndexedObject] = {}
        """Key → object that is in the stores, and that the index does not know of yet."""
        self._files: list[IndexedFile] = []
        """Files that lie in those, or in objects that the index knows, and that it does not know of yet."""
        self._written_down = time.monotonic()
        self._pack, self._pack_key = Pack(), new_key()
        self._pool = ThreadPoolExecutor(_PACKS_UNDER_WAY, thread_name_prefix="cloud-pack")
        self._under_way: dict[str, tuple[list[IndexedFile], Future[IndexedObject]]] = {}
        self._linked: list[Source] = []
        self._begun = time.time()
        journals = self._uploader.journals
        self._goes_on = journals.is_dir() and any(journals.iterdir())
        """Whether objects may be written down that were sent long ago, by an earlier process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        wait([future for _, future in self._under_way.values()])
        self._pool.shutdown()
        for key, (files, future) in self._under_way.items():
            if not future.cancelled() and future.exception() is None:
                self._stored[key] = future.result()
                self._files.extend(files)
        self._under_way.clear()
        self.write_down()

    def plan(self, source: Source) -> Done:
        """Return what would be done with a file."""
        try:
            name = _name(source.name)
        except SmpError as error:
            return Done(source.name, Action.FAILED, 0, error)
        try:
            if name in self._names:
                raise UsageError(f"two files would have the name {name}", hint="store one of them under another name")
            self._refuse_file_and_folder(name)
            status = _status(source.path)
        except SmpError as error:
            return Done(name, Action.FAILED, 0, error)
        self._names.add(name)
        self._taken.add(name)
        self._folders.update(_folders(name))
        known = self._index.file(name)
        now = (status.st_size, _mtime_ns(status))
        unchanged = known is not None and (known.size, known.mtime_ns) == now and self._usable(known)
        return Done(name, Action.UNCHANGED if unchanged else Action.STORED, status.st_size)

    def _refuse_file_and_folder(self, name: str) -> None:
        """Raise UsageError if a file of this name would have the name of a folder, or lie in one that is a file."""
        if name in self._folders:
            hint = f"store it under another name, or remove that folder with `smp rm -r {name}`"
            raise UsageError(f"{name} cannot be stored: the archive has a folder of this name", hint=hint)
        for folder in _folders(name):
            if folder in self._taken:
                hint = f"store it under another name, or remove that file with `smp rm {folder}`"
                raise UsageError(f"{name} cannot be stored: {folder} is a file in the archive, and no folder", hint=hint)

    def take(self, source: Source) -> Iterator[Done]:
        """Store a file, or put it into a pack that is stored later."""
        plan = self.plan(source)
        if plan.action is not Action.STORED:
            yield plan
            return
        source = Source(source.path, plan.name)
        try:
            if plan.size <= LARGEST_IN_PACK and not is_encrypted(source.path):
                yield from self._take_small(source)
            else:
                yield from self._take_large(source, plan.size)
        except SmpError as error:
            if not _is_about(error, source.path):
                raise
            yield Done(plan.name, Action.FAILED, plan.size, error)

    def finish(self) -> Iterator[Done]:
        """Store what is left."""
        yield from self._flush()
        yield from self._collect(0)

    def lost(self) -> list[Source]:
        """Return the files whose contents were there, and whose object somebody removed at the same moment.

        To be called when all is written down. Whoever removes an object reads the index once more before it does: at least one
        of both sees the other.
        """
        if not self._linked and not (self._goes_on or time.time() - self._begun > _LONG):
            return []
        now = self._archive.read_index()
        if now.removed & self._sent:  # that took so long that somebody has taken them for left behind: see Archive.prune
            raise TransientError("what was stored was removed by another machine meanwhile", hint="run the same command again")
        return [source for source in self._linked if (file := now.file(source.name)) is not None and file.object in now.removed]

    def write_down(self) -> None:
        """Write into the index what is stored."""
        self._written_down = time.monotonic()
        self._sent |= self._stored.keys()
        known = [file for file in self._files if file.object in self._stored or self._index.object(file.object) is not None]
        if known or self._stored:
            self._archive.tell(self._index, self._index.tell(known, self._stored.values()))
        later = {*self._under_way, self._pack_key}
        self._files, self._stored = [file for file in self._files if file.object in later], {}

    def _take_small(self, source: Source) -> Iterator[Done]:
        data, mtime_ns = _read_small(source.path)
        self._count(len(data))
        digest = sha256(data)
        if self._link(source, len(data), mtime_ns, digest.digest()):
            yield Done(source.name, Action.LINKED, len(data))
            return
        self._pack.add(source.name, data, mtime_ns, digest.hexdigest())
        file = self._indexed(self._pack.files[-1], self._pack_key)
        self._by_content[file.content] = file
        if self._pack.full:
            yield from self._flush()

    def _take_large(self, source: Source, size: int) -> Iterator[Done]:
        status = _status(source.path)
        if size in self._sizes and self._link(source, size, _mtime_ns(status), digest_of(source.path)):
            self._count(size)
            yield Done(source.name, Action.LINKED, size)
            return
        with self._uploader.upload(source.path, source.name, progress=self._counter()) as uploaded:
            self._archive.note(uploaded.status)
            item, content = uploaded.status.object, self._archive.content_id(bytes.fromhex(uploaded.sha256))
            self._stored[item.key] = IndexedObject(
                item.key, item.size, item.digests, uploaded.file_id, tuple(self._archive.targets)
            )
            file = IndexedFile(source.name, uploaded.size, _mtime_ns(status), content, item.key)
            self._files.append(file)
            self._by_content[content] = file
            self._sizes.add(uploaded.size)
            self.write_down()
        yield Done(source.name, Action.STORED, uploaded.size)

    def _link(self, source: Source, size: int, mtime_ns: int | None, digest: bytes) -> bool:
        """Give the file the object in which its contents lie already, if there is one. Returns whether there is."""
        for content in self._archive.content_ids(digest):
            there = self._by_content.get(content)
            if there is not None and there.size == size and self._usable(there):
                self._files.append(IndexedFile(source.name, size, mtime_ns, content, there.object, there.offset))
                self._linked.append(source)
                return True
        return False

    def _usable(self, file: IndexedFile) -> bool:
        """Return whether the object of `file` is where this upload should go, and there."""
        if file.object == self._pack_key or file.object in self._under_way or file.object in self._stored:
            return True
        item = self._index.object(file.object)
        if item is None or item.key in self._index.removed:
            return False
        chosen = set(self._archive.targets or self._archive.stores)
        if item.stores and not chosen <= set(item.stores):
            return False
        return item.key in self._sent or self._archive.is_present(item)

    def _flush(self) -> Iterator[Done]:
        """Send the pack on its way."""
        if not self._pack.files:
            return
        yield from self._collect(_PACKS_UNDER_WAY - 1)
        pack, key = self._pack, self._pack_key
        files = [self._indexed(packed, key) for packed in pack.files]
        self._under_way[key] = (files, self._pool.submit(self._store_pack, pack, key))
        self._pack, self._pack_key = Pack(), new_key()

    def _indexed(self, packed: Packed, key: str) -> IndexedFile:
        content = self._archive.content_id(bytes.fromhex(packed.sha256))
        return IndexedFile(packed.name, packed.size, packed.mtime_ns, content, key, packed.offset)

    def _store_pack(self, pack: Pack, key: str) -> IndexedObject:
        file_id, parts = pack.seal(self._archive.keys.recipients)

        def produce(send: Callable[[Part], None]) -> None:
            for part in parts:
                send(part)

        status = self._archive.manager.store(key, produce)
        self._archive.note(status)
        return IndexedObject(key, status.object.size, status.object.digests, file_id, tuple(self._archive.targets))

    def _collect(self, leave: int) -> Iterator[Done]:
        """Wait until no more than `leave` packs are under way."""
        while len(self._under_way) > leave:
            key, (files, future) = next(iter(self._under_way.items()))
            self._stored[key] = future.result()
            self._files.extend(files)
            del self._under_way[key]
            yield from (Done(file.name, Action.STORED, file.size) for file in files)
            if time.monotonic() - self._written_down > _WRITE_DOWN_AFTER:
                self.write_down()

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


def _folders(name: str) -> list[str]:
    """Return the names of all folders that a file of this name lies in."""
    return [name[:at] for at, character in enumerate(name) if character == "/"]


def _name(name: str) -> str:
    """Return the name of a file in Unicode NFC. Raises UsageError if it cannot be one."""
    try:
        return check_key(unicodedata.normalize("NFC", name))
    except UsageError as error:
        raise UsageError(f"{name!r} cannot be stored under this name: {error}", hint="rename the file") from None


def _status(path: Path) -> os.stat_result:
    with os_errors(f"read {path}"):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise FileAccessError(f"cannot read {path}: it is not a file")
    return status


def _mtime_ns(status: os.stat_result) -> int | None:
    """Return the modification time of a file as the index keeps it: None if it is before 1970 or after 2262."""
    return status.st_mtime_ns if 0 <= status.st_mtime_ns <= MAX_INTEGER else None


def _read_small(path: Path) -> tuple[memoryview, int | None]:
    """Return the data and modification time of a small file. Raises SourceChangedError if it is being written."""
    with open_source(path) as file, os_errors(f"read {path}"):
        before = os.fstat(file.fileno())
        buffer = bytearray(min(before.st_size, LARGEST_IN_PACK) + 1)
        size = read_full(file, memoryview(buffer))
        after = os.fstat(file.fileno())
    if (size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise SourceChangedError(f"{path} was changed while it was being read")
    return memoryview(buffer)[:size], _mtime_ns(before)


def digest_of(path: Path) -> bytes:
    """Return the SHA-256, 32 bytes, of a file. Raises MissingError or FileAccessError."""
    digest = sha256()
    for block in read_blocks(path):
        digest.update(block)
    return digest.digest()


def _is_about(error: SmpError, path: Path) -> bool:
    """Return whether an error is one of a source file, so that the others can go on."""
    return isinstance(error, SourceChangedError) or str(error).startswith(f"cannot read {path}:")
