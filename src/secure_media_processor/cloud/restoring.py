"""Files out of the stores: verified before they appear under their names, from whichever store has them."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import groupby
from typing import TYPE_CHECKING, BinaryIO

from secure_media_processor.cloud.reading import Replicas, SealedObject, one_by_one, read_container, read_raw
from secure_media_processor.cloud.waiting import Waiting
from secure_media_processor.core.container import MAX_TRAILER
from secure_media_processor.core.files import COPY_BLOCK, atomic_write_below, resumable_write
from secure_media_processor.core.payload import CHUNK
from secure_media_processor.errors import ChecksumError, IntegrityError, SmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from hashlib import _Hash
    from pathlib import Path

    from secure_media_processor.cloud.connectors.base import CloudConnector
    from secure_media_processor.cloud.index import IndexedFile
    from secure_media_processor.cloud.objects import StoredObject
    from secure_media_processor.core.container import Original
    from secure_media_processor.core.recipients import Identity

# What is smaller is fetched again as quickly as it would be found how much of it is there.
_WORTH_RESUMING = 16 << 20
# Files of a pack that lie closer together than this are fetched in one go, with what is between them.
_SMALL_GAP = 1 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file and where it is to go."""

    file: IndexedFile
    item: StoredObject
    """The object that it lies in."""
    file_id: str | None
    """Of the container that the object is; None if the object is not to be decrypted."""
    target: Path


@dataclass(frozen=True, slots=True)
class Restorer:
    """How files get out of stores."""

    stores: Mapping[str, CloudConnector]
    identities: Sequence[Identity]
    content_ids: Callable[[bytes], Sequence[str]]
    """Returns what may stand in the index (IndexedFile.content) for data with a SHA-256."""
    overwrite: bool = False
    waiting: Waiting = field(default_factory=Waiting)

    def restore(
        self, wanted: Sequence[Wanted], root: Path, *, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[Wanted, SmpError | None]]:
        """Write files below the existing folder `root`, yielding each when it is there, or the error that kept it away.

        Args:
            wanted: Their targets lie below `root`.
            root: No symbolic link below it is followed.
            progress: Called with the number of bytes written since the last call.
        """
        by_object = sorted(wanted, key=lambda one: (one.item.key, one.file.offset or 0))
        for _, group in groupby(by_object, key=lambda one: one.item.key):
            files = list(group)
            if files[0].file.offset is None:
                for one in files:
                    yield one, _error_of(partial(self._restore_whole, one, root, progress))
            else:
                yield from self._restore_packed(files, root, progress)

    def _restore_whole(self, one: Wanted, root: Path, progress: Callable[[int], None] | None) -> None:
        """Write the file that is all of its object."""
        counted = _differences(progress)
        if one.item.size < _WORTH_RESUMING or one.file_id is None:
            with atomic_write_below(root, one.target, overwrite=self.overwrite) as file:
                if one.file_id is None:
                    self._copy_raw(one, file, counted)
                    _set_times(file, one.file)
                else:
                    self._check(one, read_container(self._open(one), file, progress=counted), file)
            return
        token = sha256(f"{one.item.key}/{one.target.name}".encode()).hexdigest()[:16]
        restore_container(
            Replicas(self.stores, one.item, self.waiting),
            self.identities,
            one.target,
            token,
            check=partial(self._check, one),
            file_id=one.file_id,
            root=root,
            overwrite=self.overwrite,
            progress=counted,
        )

    def _check(self, one: Wanted, original: Original, file: BinaryIO) -> None:
        self._refuse_other(one, bytes.fromhex(original.sha256))
        _set_times(file, one.file)

    def _open(self, one: Wanted) -> SealedObject:
        return SealedObject.open(Replicas(self.stores, one.item, self.waiting), self.identities, file_id=one.file_id)

    def _refuse_other(self, one: Wanted, digest: bytes) -> None:
        """Raise IntegrityError unless the data with this SHA-256 is what the index says the file is."""
        if one.file.content not in self.content_ids(digest):
            raise IntegrityError(f"{one.file.name} is not what the index says of it", hint="store the original again")

    def _copy_raw(self, one: Wanted, file: BinaryIO, progress: Callable[[int], None] | None) -> None:
        """Write an object as it is, from the first store that gives it whole and right."""
        replicas = Replicas(self.stores, one.item)
        for copy in one_by_one(self.stores, one.item, self.waiting):
            file.seek(0)
            file.truncate()
            name = copy.names[0]
            try:
                read_raw(copy, file, progress=progress)
            except SmpError as error:
                replicas.give_up(name, error)
            else:
                return
        raise replicas.unavailable()

    def _restore_packed(
        self, files: Sequence[Wanted], root: Path, progress: Callable[[int], None] | None
    ) -> Iterator[tuple[Wanted, SmpError | None]]:
        """Write files of one pack."""
        try:
            sealed = self._open(files[0])
        except SmpError as error:
            yield from ((one, error) for one in files)
            return
        runs = deque(_runs(files))
        while runs:
            run = runs.popleft()
            window = _Window(sealed.blocks(_offset(run[0]), _offset(run[-1]) + run[-1].file.size), _offset(run[0]))
            for number, one in enumerate(run, start=1):
                try:
                    data = window.take(_offset(one), one.file.size)
                except SmpError as error:
                    yield one, error
                    if run[number:]:  # those after a place that is damaged everywhere may be sound
                        runs.appendleft(run[number:])
                        sealed = self._open(one)
                    break
                yield one, _error_of(partial(self._write, one, data, root))
                if progress is not None:
                    progress(one.file.size)

    def _write(self, one: Wanted, data: bytes, root: Path) -> None:
        self._refuse_other(one, sha256(data).digest())
        with atomic_write_below(root, one.target, overwrite=self.overwrite) as file:
            file.write(data)
            _set_times(file, one.file)


def restore_container(
    replicas: Replicas,
    identities: Sequence[Identity],
    target: Path,
    token: str,
    *,
    check: Callable[[Original, BinaryIO], object] | None = None,
    file_id: str | None = None,
    root: Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Original:
    """Write the data of a container to `target`; what an earlier call wrote before it was cut off is not fetched again.

    Args:
        replicas: The container.
        identities: Who may be able to open it.
        target: Appears when all of it was verified, `check` included.
        token: See resumable_write.
        check: Is shown the trailer, and the file before it gets its name; raises if anything is wrong.
        file_id: See SealedObject.open.
        root: See resumable_write.
        overwrite: Replace what is in the way.
        progress: Called with the number of bytes of data so far.

    Raises:
        IntegrityError, TransientError and the like: as SealedObject.open and read_container. What can be had by trying again
            keeps what was written.
    """
    with resumable_write(target, token, overwrite=overwrite, root=root) as file:
        sealed = SealedObject.open(replicas, identities, file_id=file_id)
        start, known = _what_is_there(file, sealed.plain_size - MAX_TRAILER)
        try:
            original = read_container(sealed, file, start=start, known=known, progress=progress)
        except ChecksumError:
            if not start:
                raise
            file.seek(0)  # a crash has left in the file what was never written; once more, then, from the start
            file.truncate()
            original = read_container(sealed, file, progress=progress)
        if check is not None:
            check(original, file)
        return original


class _Window:
    """A stream of blocks from which ranges are taken in order."""

    def __init__(self, blocks: Iterator[memoryview], position: int) -> None:
        self._blocks, self._position = blocks, position
        self._held = bytearray()
        """What was read from `_position` on, as far as it is still wanted."""

    def take(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`, which is not before the end of the last range."""
        while self._position + len(self._held) < offset + size:
            block = next(self._blocks, None)
            if block is None:
                raise IntegrityError("the object ends before a file that should lie in it")
            unwanted = min(len(self._held), max(0, offset - self._position))
            del self._held[:unwanted]
            self._position += unwanted
            self._held += block
        start = offset - self._position
        return bytes(memoryview(self._held)[start : start + size])


def _runs(files: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    """Yield files of one pack, sorted by offset, in groups that lie close together."""
    run: list[Wanted] = []
    for one in files:
        if run and _offset(one) - (_offset(run[-1]) + run[-1].file.size) > _SMALL_GAP:
            yield run
            run = []
        run.append(one)
    yield run


def _offset(one: Wanted) -> int:
    return one.file.offset or 0


def _what_is_there(file: BinaryIO, most: int) -> tuple[int, _Hash]:
    """Return how much of the data an unfinished file holds, and the SHA-256 of that; what is beyond whole chunks goes."""
    there = max(0, min(file.tell(), most))
    there -= there % CHUNK
    digest = sha256()
    file.seek(0)
    left = there
    while left:
        block = file.read(min(COPY_BLOCK, left))
        if not block:
            break
        digest.update(block)
        left -= len(block)
    file.seek(there)
    file.truncate()
    return there, digest


def _set_times(file: BinaryIO, indexed: IndexedFile) -> None:
    if indexed.mtime_ns is not None:
        file.flush()
        os.utime(file.fileno(), ns=(indexed.mtime_ns, indexed.mtime_ns))


def _error_of(act: Callable[[], object]) -> SmpError | None:
    try:
        act()
    except SmpError as error:
        return error
    return None


def _differences(progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
    """Return a function that takes totals and passes on differences."""
    if progress is None:
        return None
    before = 0

    def count(done: int) -> None:
        nonlocal before
        progress(done - before)
        before = done

    return count
