"""A file into the stores, encrypted on the way: read once, hashed once, never written to disk, and taken up again after a kill.

A large file has a journal while it is on its way. It holds the object's key, the container's header (in which the file key is
wrapped), the salt, and the SHA-256 of each part, on disk before the part leaves this machine. A later process can so make the
same bytes again and send only those that a store lacks. If the file has changed meanwhile, a part comes out different: then it
is not sent, what was sent is removed, and the upload begins anew with another key. Key and nonce never meet two texts.
"""

from __future__ import annotations

import hmac
import os
import re
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from secure_media_processor.cloud.digests import PART_SIZE, Part
from secure_media_processor.cloud.manager import new_key
from secure_media_processor.core.container import LEAD_SIZE, derive, header_length, parse_header
from secure_media_processor.core.encryption import Sealing, describe_file, seal_stream
from secure_media_processor.core.files import open_source, os_errors, read_full
from secure_media_processor.core.journal import Journal
from secure_media_processor.errors import CredentialsError, IntegrityError, SmpError, SourceChangedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from io import FileIO
    from pathlib import Path

    from secure_media_processor.cloud.manager import ConnectorManager
    from secure_media_processor.cloud.objects import ObjectStatus
    from secure_media_processor.core.recipients import Identity, Recipient

# What is smaller is sent again as quickly as its journal would be kept.
_WORTH_A_JOURNAL = 2 * PART_SIZE
_JOURNAL_FORMAT = 1
_AGE_HEADER = re.compile(
    rb"age-encryption\.org/v1\n(?:-> [!-~]+(?: [!-~]+)*\n(?:[A-Za-z0-9+/]{64}\n)*[A-Za-z0-9+/]{0,63}\n)+--- [A-Za-z0-9+/]{43}\n"
)
# What is read of a file to see whether it was encrypted before; the largest header of smp.
_LONGEST_HEADER = 256 * 1024


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A file that is in the stores."""

    status: ObjectStatus
    sha256: str
    """Of the data; of the file as it is if it was encrypted before. 64 hexadecimal digits."""
    size: int
    """Bytes of the same."""
    file_id: str | None
    """Of the container that it became; None if it was encrypted before."""


@dataclass(frozen=True, slots=True)
class Uploader:
    """How files get into the stores of `manager`."""

    manager: ConnectorManager
    recipients: Sequence[Recipient]
    identities: Sequence[Identity]
    """Can open what was made for `recipients`: needed to take an upload up."""
    journals: Path
    """Folder of the journals."""
    content_key: bytes
    """From it comes the key under which journals are named, so that they tell nothing of names."""
    is_kept: Callable[[str], bool] = lambda _key: False
    """Whether the object of that key is written down as stored: an upload of it is over, whatever a journal says."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Name of a store → what tells it from all others that ever had that name; the name unless given."""

    @contextmanager
    def upload(
        self,
        path: Path,
        name: str,
        *,
        key: str | None = None,
        overwrite: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Uploaded]:
        """Store the file `path`. Its journal goes when the block ends without an error: write down there what must be kept.

        Args:
            path: A regular file. One that smp or age has encrypted is stored as it is.
            name: What it is stored for, which may be done for one file under several names at the same time.
            key: Of the object; random unless given. One that is given is not ours alone: nothing is removed from under it.
            overwrite: Replace what is under `key`.
            progress: Called with the bytes of the file that have been read.

        Raises:
            SourceChangedError: the file changes while it is read.
            QuorumError, CredentialsError and the like: see ConnectorManager.store.
        """
        with open_source(path) as file:
            start = partial(_Upload, path, file, progress)
            store = partial(self.manager.store, shared=key is not None, overwrite=overwrite)
            if os.fstat(file.fileno()).st_size < _WORTH_A_JOURNAL:
                upload = start(self._sealing(path))
                yield upload.uploaded(store(key or new_key(), upload.produce))
                return
            with Journal(self._journal_path(path, name)) as journal:
                try:
                    uploaded = self._with_journal(journal, start, store, key, _Identity.of(path, file))
                except SmpError as error:
                    if not error.retryable and not isinstance(error, CredentialsError):  # nothing is left to be taken up
                        journal.remove()
                    raise
                yield uploaded
                journal.remove()

    def _with_journal(
        self,
        journal: Journal,
        start: Callable[[Sealing | None, Journal], _Upload],
        store: Callable[..., ObjectStatus],
        key: str | None,
        source: _Identity,
    ) -> Uploaded:
        begun = self._begun(journal, key, source)
        if begun is not None:
            object_key, sealing = begun
            upload = start(sealing, journal)
            with suppress(SourceChangedError):  # since the journal was begun, in a way that its times do not show
                return upload.uploaded(
                    store(object_key, upload.produce, records=self._records(journal, object_key), taken_up=True)
                )
        self._give_up(journal, shared=key is not None)
        object_key, sealing = key or new_key(), None if source.encrypted else Sealing.new(self.recipients)
        kept = {"header": b64encode(sealing.header).decode(), "salt": sealing.salt.hex()} if sealing else {}
        journal.append({"format": _JOURNAL_FORMAT, "object": object_key, "source": source.fields, **kept})
        upload = start(sealing, journal)
        return upload.uploaded(store(object_key, upload.produce, records=self._records(journal, object_key)))

    def _records(self, journal: Journal, key: str) -> dict[str, _StoreRecord]:
        return {name: _StoreRecord(journal, name, key) for name in self.manager.connectors}

    def _give_up(self, journal: Journal, *, shared: bool) -> None:
        """Remove from the stores what a journal tells of, unless it is complete, or under a key that is not ours alone."""
        key = journal.entries[0].get("object") if journal.entries else None
        if isinstance(key, str) and not shared and not self.is_kept(key):
            self.manager.discard(key, self._records(journal, key))
        journal.begin_anew()

    def _sealing(self, path: Path) -> Sealing | None:
        return None if is_encrypted(path) else Sealing.new(self.recipients)

    def _journal_path(self, path: Path, name: str) -> Path:
        stores = [self.labels.get(store, store) for store in self.manager.connectors]
        text = "\0".join([str(path.absolute()), name, *sorted(stores)])
        key = derive(self.content_key, b"smp.v1 journal name", 32)
        return self.journals / f"{hmac.digest(key, text.encode('utf-8', 'surrogatepass'), sha256).hex()[:32]}.jsonl"

    def _begun(self, journal: Journal, key: str | None, source: _Identity) -> tuple[str, Sealing | None] | None:
        """Return the object and the sealing that an earlier process began with; None if there is nothing to go on with.

        The file must be the very one, by number and times. What these do not show, the digests of the parts do.
        """
        if not journal.entries:
            return None
        head = journal.entries[0]
        try:
            if head["format"] != _JOURNAL_FORMAT or head["source"] != source.fields:
                return None
            if (key or head["object"]) != head["object"] or self.is_kept(head["object"]):
                return None
            if source.encrypted:
                return str(head["object"]), None
            header, salt = b64decode(head["header"]), bytes.fromhex(head["salt"])
            return str(head["object"]), Sealing.restore(header, salt, self.identities)
        except (LookupError, TypeError, ValueError, IntegrityError):  # of another version, or for a key that is gone
            return None


@dataclass(frozen=True, slots=True)
class _Identity:
    """Which file a journal is about, and as what it was stored."""

    fields: list[object]
    encrypted: bool

    @classmethod
    def of(cls, path: Path, file: FileIO) -> _Identity:
        """Describe the open `file`."""
        status = os.fstat(file.fileno())
        encrypted = is_encrypted(path)
        times = [status.st_mtime_ns, status.st_ctime_ns]
        return cls([status.st_dev, status.st_ino, status.st_size, *times, encrypted], encrypted)


def is_encrypted(path: Path) -> bool:
    """Return whether the file `path` was made by smp or age, by its name and its header. Raises as open_source."""
    if path.suffix.lower() not in _ENCRYPTED:
        return False
    start = bytearray(_LONGEST_HEADER)
    with open_source(path) as file, os_errors(f"read {path}"):
        size = read_full(file, memoryview(start))
    return _ENCRYPTED[path.suffix.lower()](bytes(start[:size]))


def _is_smp(start: bytes) -> bool:
    """Return whether a file that begins so is an SMP1 container, as far as its header tells."""
    try:
        length = header_length(start[:LEAD_SIZE])
        parse_header(start[:length])
    except SmpError:
        return False
    return length <= len(start)


def _is_age(start: bytes) -> bool:
    """Return whether a file that begins so is an age file: version, stanzas, MAC (C2SP, age, "Encrypted file format")."""
    return _AGE_HEADER.match(start) is not None


_ENCRYPTED = {".smp": _is_smp, ".age": _is_age}


class PartSink:
    """A sink that cuts what it is given into parts. Each is hashed on a thread of its own while the next is filled."""

    def __init__(self, send: Callable[[Part], None]) -> None:
        """Call `send` with each part, in order."""
        self._send = send
        self._buffer = memoryview(bytearray(PART_SIZE))
        self._filled = 0
        self._hasher: ThreadPoolExecutor | None = None
        self._hashed: Future[Part] | None = None

    def write(self, data: memoryview | bytes) -> None:
        """Take `data`."""
        rest = memoryview(data)
        while rest:
            if self._filled == PART_SIZE:  # known not to be the last only now that there is more
                self._hash_beside()
            room = min(len(rest), PART_SIZE - self._filled)
            self._buffer[self._filled : self._filled + room] = rest[:room]
            self._filled += room
            rest = rest[room:]

    def flush(self) -> None:
        """Send what is there: the last part, if there is any."""
        self._send_hashed()
        if self._hasher is not None:
            self._hasher.shutdown()
            self._hasher = None
        if self._filled:
            part, self._filled = Part.of(self._buffer[: self._filled]), 0
            self._send(part)

    def _hash_beside(self) -> None:
        data, self._filled = bytes(self._buffer), 0
        self._send_hashed()
        self._hasher = self._hasher or ThreadPoolExecutor(1, thread_name_prefix="part-hash")
        self._hashed = self._hasher.submit(Part.of, data)

    def _send_hashed(self) -> None:
        hashed, self._hashed = self._hashed, None
        if hashed is not None:
            self._send(hashed.result())


class _Upload:
    """One file as a Producer: however often it is asked, it gives the same parts, or raises."""

    def __init__(
        self,
        path: Path,
        file: FileIO,
        progress: Callable[[int], None] | None,
        sealing: Sealing | None,
        journal: Journal | None = None,
    ) -> None:
        self._path, self._file, self._sealing = path, file, sealing
        self._progress, self._journal = progress, journal
        entries = journal.entries if journal is not None else []
        self._digests: dict[int, str] = {entry["part"]: entry["sha256"] for entry in entries if "part" in entry}
        self._sha256, self._size = "", 0

    def uploaded(self, status: ObjectStatus) -> Uploaded:
        """Return what is known when the file is in the stores."""
        return Uploaded(status, self._sha256, self._size, self._sealing.file_id if self._sealing else None)

    def produce(self, send: Callable[[Part], None]) -> None:
        """Give the parts, as ConnectorManager.store asks for them."""
        number = 0

        def send_checked(part: Part) -> None:
            nonlocal number
            self._check(number, part)
            send(part)
            number += 1

        before = os.fstat(self._file.fileno())
        with os_errors(f"read {self._path}"):
            self._file.seek(0)
        original = self._write(PartSink(send_checked))
        after = os.fstat(self._file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise self._changed()
        self._sha256, self._size = original

    def _write(self, sink: PartSink) -> tuple[str, int]:
        """Write the file to `sink`, encrypted or as it is, and return the SHA-256 and size of what was read."""
        source = _NamedFile(self._file, self._path)
        if self._sealing is not None:
            facts = describe_file(self._path, self._file)
            original = seal_stream(source, sink, self._sealing, facts, progress=self._progress).original
            sink.flush()
            return original.sha256, original.size
        digest, size, block = sha256(), 0, memoryview(bytearray(_LONGEST_HEADER))
        while count := read_full(source, block):
            if not size and not _ENCRYPTED[self._path.suffix.lower()](bytes(block[:count])):
                raise self._changed()  # since it was looked at: it must not go out as it is now
            digest.update(block[:count])
            sink.write(block[:count])
            size += count
            if self._progress is not None:
                self._progress(size)
        sink.flush()
        return digest.hexdigest(), size

    def _check(self, number: int, part: Part) -> None:
        """Write down the digest of a part before it is sent, or compare it with what was written down."""
        digest = part.sha256.hex()
        known = self._digests.get(number)
        if known is None:
            if self._journal is not None:
                self._journal.append({"part": number, "sha256": digest})
            self._digests[number] = digest
        elif known != digest:
            raise self._changed()

    def _changed(self) -> SourceChangedError:
        return SourceChangedError(f"{self._path} was changed while it was being read")


@dataclass(frozen=True, slots=True)
class _NamedFile:
    """A file that is named when reading it fails."""

    file: FileIO
    path: Path

    def readinto(self, buffer: memoryview, /) -> int | None:
        with os_errors(f"read {self.path}"):
            return self.file.readinto(buffer)


@dataclass(frozen=True, slots=True)
class _StoreRecord:
    """The ResumeRecord of one store, in a journal."""

    journal: Journal
    store: str
    key: str
    """Of the object: a put that hangs since an earlier try must not be taken for one of this."""

    def load(self) -> Mapping[str, str]:
        mine = (self.store, self.key)
        states: list[Any] = [
            entry["state"] for entry in self.journal.entries if (entry.get("store"), entry.get("object")) == mine
        ]
        return states[-1] if states else {}

    def save(self, state: Mapping[str, str]) -> None:
        self.journal.append({"store": self.store, "object": self.key, "state": dict(state)})
