"""The encrypted index: which files there are, and in which objects they lie. docs/format/index.md is the contract.

The index is a set of records. Each is an SMP1 container under a random key, written once and never changed, and tells of some
files and objects with a version each; of two that tell of the same thing the higher version counts. So it does not matter in
which order records are read, which of them a store lacks as long as another has it, or who wrote at the same moment as whom.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from secure_media_processor.cloud.paths import check_key
from secure_media_processor.core.container import Original
from secure_media_processor.core.encryption import Sealing, decrypt_stream, seal_stream
from secure_media_processor.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from secure_media_processor.core.recipients import Identity, Recipient

# Authenticated in the trailer of each record, and never given to a user's file: no stored object passes for a record.
_MEDIA_TYPE = "application/vnd.smp.index+json"
_FORMAT = 1
_ID_BYTES = 16
_SMALLEST = 4096  # bytes; records of few entries all look the same
# Enough for a hundred thousand files in one record. What is larger is neither written nor read: it would fill the memory.
MAX_RECORD = 64 << 20

_Same = TypeVar("_Same")


class Version(NamedTuple):
    """Which of several entries for one thing counts: the highest."""

    counter: int
    """One more than the highest that the writer had seen."""
    record: str
    """Id of the record that brought it: decides between two of the same counter, anyhow but for all alike."""


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file, as it was when it was stored."""

    name: str
    """Path with `/`, as paths.check_key allows."""
    size: int
    """Bytes of data."""
    mtime_ns: int | None
    """Modification time in nanoseconds since 1970-01-01 UTC."""
    content: str
    """HMAC-SHA-256 of the SHA-256 of the data under a key of the owner's: equal for equal files, and to nobody else of use."""
    object: str
    """Key of the object that it lies in."""
    offset: int | None = None
    """Where it begins in the data of a pack; None if it is all of its object."""


@dataclass(frozen=True, slots=True)
class IndexedObject:
    """An object in the stores."""

    key: str
    size: int
    """Bytes of ciphertext."""
    digests: Mapping[str, str]
    """Of the ciphertext; see cloud/digests.py."""
    file_id: str | None
    """Id of the SMP1 container that it is, 32 hexadecimal digits; None if it is a file as it was, encrypted by its owner."""
    stores: tuple[str, ...] = ()
    """Names of the stores that it was meant for; empty for all."""


@dataclass(frozen=True, slots=True)
class Record:
    """What one object of the index tells."""

    id: str
    counter: int
    files: Mapping[str, tuple[Version, IndexedFile | None]]
    """Name → version and file; None for one that was removed."""
    objects: Mapping[str, tuple[Version, IndexedObject]]
    """Key → version and object."""
    removed: frozenset[str] = frozenset()
    """Keys of objects that are to go from every store, unless a file lies in them. Nothing ever takes that back."""

    @property
    def key(self) -> str:
        """The key that it has in the stores."""
        return key_of(self.id)

    def seal(self, recipients: Sequence[Recipient]) -> bytes:
        """Return the object: an SMP1 container, padded."""
        entries: dict[str, Any] = {
            "format": _FORMAT,
            "id": self.id,
            "counter": self.counter,
            "files": [_entry("name", name, version, file) for name, (version, file) in self.files.items()],
            "objects": [_entry("key", key, version, item) for key, (version, item) in self.objects.items()],
            "removed": sorted(self.removed),
        }
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (_padded(len(text)) - len(text))
        sealed = BytesIO()
        seal_stream(BytesIO(text), sealed, Sealing.new(recipients), Original(0, "", media_type=_MEDIA_TYPE))
        return sealed.getvalue()

    @classmethod
    def open(cls, record_id: str, sealed: bytes, identities: Sequence[Identity]) -> Record:
        """Return what the object with this id tells. Raises IntegrityError if it is no record, or another one."""
        text = BytesIO()
        container = decrypt_stream(BytesIO(sealed), text, identities)
        if container.original.media_type != _MEDIA_TYPE:
            raise IntegrityError("this is no record of the index")
        try:
            entries = text.getvalue().decode()
            text.close()  # a large record takes much memory: not twice while it is read
            fields = json.loads(entries, object_hook=_EntryReader())
            if fields["format"] != _FORMAT or fields["id"] != record_id:
                raise ValueError("another record")  # noqa: TRY301 - the handler is the one for all that is wrong
            files = {name: (version, file) for name, version, file in map(_FileEntry.checked, fields["files"])}
            objects = {key: (version, item) for key, version, item in map(_ObjectEntry.checked, fields["objects"])}
            removed = frozenset(check_key(_text(key)) for key in fields["removed"])
            return cls(record_id, _integer(fields["counter"]), files, objects, removed)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, UsageError) as error:
            raise IntegrityError("a record of the index does not keep to its format, or is not where it was put") from error


@dataclass(slots=True)
class Index:
    """All records together."""

    counter: int = 0
    """The highest seen."""
    removed: set[str] = field(default_factory=set)
    """Keys of the objects that are to go from every store, unless a file lies in them."""
    _files: dict[str, tuple[Version, IndexedFile | None]] = field(default_factory=dict)
    _objects: dict[str, tuple[Version, IndexedObject]] = field(default_factory=dict)
    _in_use: set[str] | None = None

    def merge(self, record: Record) -> bool:
        """Take in what `record` tells. Returns whether any of it was news."""
        self.counter = max(self.counter, record.counter)
        self._in_use = None
        more = not record.removed <= self.removed
        self.removed |= record.removed
        # No generator: both must be merged.
        news = [_merge(self._files, record.files), _merge(self._objects, record.objects), more]
        return any(news)

    def file(self, name: str) -> IndexedFile | None:
        """Return the file of that name, None if there is none."""
        return self._files.get(name, (None, None))[1]

    def files(self, prefix: str = "") -> Iterator[IndexedFile]:
        """Yield the files whose names are `prefix` or lie below it as a folder, sorted; all if it is empty."""
        folder = f"{prefix}/" if prefix else ""
        for name in sorted(name for name in self._files if name == prefix or name.startswith(folder)):
            file = self._files[name][1]
            if file is not None:
                yield file

    def object(self, key: str) -> IndexedObject | None:
        """Return the object of that key; None if there is none, or it is to go."""
        found = self._objects.get(key)
        return None if found is None or (key in self.removed and key not in self.in_use()) else found[1]

    def objects(self) -> Iterator[IndexedObject]:
        """Yield all objects that are to be kept, sorted by key."""
        gone = self.to_remove()
        for key in sorted(self._objects.keys() - gone):
            yield self._objects[key][1]

    def in_use(self) -> set[str]:
        """Return the keys of the objects in which some file lies."""
        if self._in_use is None:
            self._in_use = {file.object for _, file in self._files.values() if file is not None}
        return self._in_use

    def known(self) -> set[str]:
        """Return the keys of all objects of which any record tells anything."""
        return self._objects.keys() | self.in_use() | self.removed

    def unused(self) -> set[str]:
        """Return the keys of the objects in which no file lies any more, and that nobody has said are to go."""
        return self._objects.keys() - self.in_use() - self.removed

    def to_remove(self) -> set[str]:
        """Return the keys of the objects that are to go, and in which no file lies."""
        return self.removed - self.in_use()

    def tell(
        self,
        files: Iterable[IndexedFile] = (),
        objects: Iterable[IndexedObject] = (),
        *,
        removed_files: Iterable[str] = (),
        removed_objects: Iterable[str] = (),
    ) -> Record:
        """Return a new record that tells this, over all that is known."""
        record_id = secrets.token_hex(_ID_BYTES)
        version = Version(self.counter + 1, record_id)
        return Record(
            record_id,
            version.counter,
            dict.fromkeys(removed_files, (version, None)) | {file.name: (version, file) for file in files},
            {item.key: (version, item) for item in objects},
            frozenset(removed_objects),
        )

    def summary(self) -> Record:
        """Return a new record that tells all that is known, in place of the records that were merged.

        Also of objects that are to go: a record that has not been seen yet may tell of a file that lies in one of them.
        """
        record_id, objects = secrets.token_hex(_ID_BYTES), dict(self._objects)
        return Record(record_id, self.counter + 1, dict(self._files), objects, frozenset(self.removed))


PREFIX = "index/"


def key_of(record_id: str) -> str:
    """Return the key under which a record lies in the stores."""
    return f"{PREFIX}{record_id}"


def _merge(known: dict[str, Any], told: Mapping[str, Any]) -> bool:
    news = {name: entry for name, entry in told.items() if name not in known or entry[0] > known[name][0]}
    known |= news
    return bool(news)


def _entry(label: str, name: str, version: Version, thing: IndexedFile | IndexedObject | None) -> dict[str, Any]:
    fields = {"removed": True} if thing is None else {k: v for k, v in asdict(thing).items() if v is not None}
    return {label: name, "version": list(version), **fields}


class _FileEntry(NamedTuple):
    """What a record tells of a file."""

    name: str
    version: Version
    file: IndexedFile | None

    @classmethod
    def checked(cls, entry: object) -> _FileEntry:
        """Return `entry`. Raises TypeError if it is none."""
        if not isinstance(entry, cls):
            raise TypeError("not an entry for a file")
        return entry


class _ObjectEntry(NamedTuple):
    """What a record tells of an object."""

    key: str
    version: Version
    item: IndexedObject

    @classmethod
    def checked(cls, entry: object) -> _ObjectEntry:
        """Return `entry`. Raises TypeError if it is none."""
        if not isinstance(entry, cls):
            raise TypeError("not an entry for an object")
        return entry


class _EntryReader:
    """Makes each entry of a record as soon as its JSON is read: all of a large record as JSON would be several times as much.

    What is the same in many entries, such as the version and the key of a pack, is kept once.
    """

    def __init__(self) -> None:
        self._same: dict[object, Any] = {}

    def __call__(self, fields: dict[str, Any]) -> object:
        """Return what `fields`, an object in JSON, stands for; itself if it is no entry."""
        if "version" not in fields:
            return fields
        version = self._once(_version(fields))
        if "name" in fields:
            return _FileEntry(fields["name"], version, None if "removed" in fields else self._file(fields))
        return _ObjectEntry(fields["key"], version, _object(fields))

    def _file(self, fields: dict[str, Any]) -> IndexedFile:
        return IndexedFile(
            name=check_key(_text(fields["name"])),
            size=_integer(fields["size"]),
            mtime_ns=_integer(fields["mtime_ns"]) if "mtime_ns" in fields else None,
            content=_text(fields["content"]),
            object=self._once(check_key(_text(fields["object"]))),
            offset=_integer(fields["offset"]) if "offset" in fields else None,
        )

    def _once(self, value: _Same) -> _Same:
        same: _Same = self._same.setdefault(value, value)
        return same


def _version(entry: dict[str, Any]) -> Version:
    counter, record = entry["version"]
    return Version(_integer(counter), _text(record))


def _object(entry: dict[str, Any]) -> IndexedObject:
    return IndexedObject(
        key=check_key(_text(entry["key"])),
        size=_integer(entry["size"]),
        digests={_text(name): _text(digest) for name, digest in entry["digests"].items()},
        file_id=_text(entry["file_id"]) if "file_id" in entry else None,
        stores=tuple(_text(name) for name in entry["stores"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise TypeError("not a number from 0 to 2⁶³-1")
    return value


def _padded(size: int) -> int:
    """Return the size to pad a record to: Padmé (Nikitin et al., PETS 2019), at most 12 % more, tells little of the size."""
    if size <= _SMALLEST:
        return _SMALLEST
    exponent = size.bit_length() - 1
    step = 1 << (exponent - exponent.bit_length())
    return -(-size // step) * step
