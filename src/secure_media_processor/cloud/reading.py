"""Reading an object of which several stores have a copy: from any of them, and from the next when one fails or lies.

Nothing that a store sends is trusted. A container is opened chunk by chunk, and a chunk that is not authentic is asked of the
next store; what is written is authenticated, always. An object that was stored as it was is compared with its digests when all
of it is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

from secure_media_processor.cloud.digests import Digester, refuse_other
from secure_media_processor.cloud.waiting import Waiting, in_turn, moved
from secure_media_processor.core.container import LEAD_SIZE, MAX_TRAILER, Original, header_length, parse_header
from secure_media_processor.core.payload import CHUNK, HEAD_SIZE, SEALED_CHUNK, ChunkCipher
from secure_media_processor.core.recipients import unwrap_file_key
from secure_media_processor.errors import (
    ChecksumError,
    IntegrityError,
    ObjectLostError,
    PayloadDamagedError,
    SmpError,
    TransientError,
    TruncatedError,
    WrongKeyError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from hashlib import _Hash

    from secure_media_processor.cloud.connectors.base import CloudConnector
    from secure_media_processor.cloud.objects import StoredObject
    from secure_media_processor.core.files import Sink
    from secure_media_processor.core.recipients import Identity

# What is asked of a store at once, 512 chunks: 8 MiB, the size of a part.
_RANGE = 512 * SEALED_CHUNK
# Ranges on their way at the same time, so that neither a far store nor one that gives each connection little is slow.
_PARALLEL = 4
# The first request asks for this much, which holds the header, unless it has very many recipients.
_TAG = SEALED_CHUNK - CHUNK


class Replicas:
    """The copies of one object. Stores that fail or lie are not asked again, and where one is slow another is asked besides."""

    def __init__(
        self, stores: Mapping[str, CloudConnector], item: StoredObject, waiting: Waiting | None = None, *, others: bool = False
    ) -> None:
        """Read `item` from `stores`, the first one first.

        Args:
            stores: By name.
            item: The object.
            waiting: How long to wait for a store.
            others: Whether the caller has other stores to turn to when all of these are slow.
        """
        self.item = item
        self._waiting, self._others = waiting or Waiting(), others
        self._stores = dict(stores)
        self._errors: dict[str, SmpError] = {}

    @property
    def names(self) -> list[str]:
        """The stores that are asked."""
        return list(self._stores)

    def give_up(self, name: str, error: SmpError) -> None:
        """Do not ask the store `name` any more."""
        if self._stores.pop(name, None) is not None:
            self._errors[name] = error

    def fetch(self, offset: int, length: int) -> tuple[str, bytes]:
        """Return `length` bytes from `offset` on, and the name of the store that gave them.

        Raises:
            ObjectLostError: no store does.
            TransientError: no store does, and some did not answer.
            WrongKeyError: SealedObject.open found in all of them an object for other keys.
        """

        def get(store: CloudConnector) -> bytes:
            data = take(store.get(self.item.key, offset=offset, length=length), length)
            if len(data) != length:
                raise TruncatedError(f"the object ends at byte {offset + len(data)} of {self.item.size}")
            return data

        acts = [(name, partial(get, store)) for name, store in list(self._stores.items())]
        found = self._waiting.first(acts, self.give_up, others=self._others)
        if found is None:
            raise self.unavailable()
        return found

    def ranges(self, start: int, end: int) -> Iterator[tuple[int, str, bytes]]:
        """Return the bytes from `start` to `end`: the offset of each range, the store that it came from, and the bytes.

        The next ranges are fetched meanwhile. Raises as fetch.
        """

        def fetch(offset: int) -> tuple[int, str, bytes]:
            return offset, *self.fetch(offset, min(_RANGE, end - offset))

        return in_turn(fetch, range(start, end, _RANGE), _PARALLEL)

    def unavailable(self) -> SmpError:
        """Return the error that says why no store gives the object."""
        errors = self._errors.values()
        if errors and all(isinstance(error, WrongKeyError) for error in errors):  # if only some say so, they have changed it
            return next(iter(errors))
        reasons = "; ".join(f"{name}: {error}" for name, error in self._errors.items())
        message = f"no store gives the object {self.item.key} intact ({reasons or 'there is no store'})"
        return TransientError(message) if any(error.retryable for error in errors) else ObjectLostError(message)


def one_by_one(stores: Mapping[str, CloudConnector], item: StoredObject, waiting: Waiting) -> Iterator[Replicas]:
    """Yield each copy of `item` by itself: which of two is the right one shows only when all of it is there.

    Those of stores that are left alone come last.
    """
    alone = waiting.left_alone()
    names = sorted(stores, key=lambda name: name in alone)
    for name in names:
        yield Replicas({name: stores[name]}, item, waiting, others=name != names[-1])


@dataclass(frozen=True, slots=True)
class SealedObject:
    """An object that is an SMP1 container, its header read and its key unwrapped."""

    replicas: Replicas
    cipher: ChunkCipher
    start: int
    """Offset of chunk 0."""

    @classmethod
    def open(cls, replicas: Replicas, identities: Sequence[Identity], *, file_id: str | None = None) -> SealedObject:
        """Read the header of an object.

        Args:
            replicas: The object.
            identities: Who may be able to open it.
            file_id: The id of the container that it is, 32 hexadecimal digits; a store that has another one there is given up.

        Raises:
            WrongKeyError, KeyMissingError: it is for nobody in `identities`.
            ObjectLostError, TransientError: no store gives a header that is sound.
        """
        while True:
            name, data = replicas.fetch(0, min(replicas.item.size, SEALED_CHUNK))
            try:
                length = header_length(data[:LEAD_SIZE])
                start = length + HEAD_SIZE
                if (replicas.item.size - start) % SEALED_CHUNK < _TAG:  # also if it is less than 0: the last chunk is too short
                    raise TruncatedError("it is cut short")
                if start > len(data):
                    name, data = replicas.fetch(0, start)
                header = parse_header(data[:length])
                if file_id is not None and header.file_id.hex() != file_id:
                    raise IntegrityError("it has another object in this place")  # noqa: TRY301 - as above
                file_key = unwrap_file_key(header, identities)
                return cls(replicas, ChunkCipher.from_head(file_key, data[length:start], header.prefix), start)
            except IntegrityError as error:
                replicas.give_up(name, error)

    @property
    def plain_size(self) -> int:
        """Bytes of data and trailer."""
        payload = self.replicas.item.size - self.start
        return payload - _TAG * (payload // SEALED_CHUNK + 1)

    def blocks(self, start: int, end: int) -> Iterator[memoryview]:
        """Yield the plaintext from `start` to `end`, authenticated, in blocks; both are offsets into data and trailer.

        A block is good until the next is asked for: it lies in a buffer that is used again.

        Raises:
            ObjectLostError, TransientError: no store gives bytes that are authentic.
            IntegrityError: the object ends before `end`.
        """
        if end > self.plain_size:
            raise IntegrityError("what is looked for would lie beyond the end of the object")
        buffer = memoryview(bytearray(min(_plain_size(_RANGE), _plain_size(self.replicas.item.size))))
        while start < end:
            index, skip = divmod(start, CHUNK)
            for _, name, sealed in self.replicas.ranges(self._at(index), self._at(-(-end // CHUNK))):
                opened = self._open(index, sealed, buffer)
                block = opened[skip : skip + end - start]
                if block:
                    yield block
                start += len(block)
                if len(opened) < _plain_size(len(sealed)):
                    self.replicas.give_up(name, PayloadDamagedError(f"its copy is damaged in chunk {start // CHUNK}"))
                    break
                index, skip = index + len(opened) // CHUNK, 0

    def _open(self, index: int, sealed: bytes, buffer: memoryview) -> memoryview:
        """Decrypt the chunks in `sealed` into `buffer`; return the data up to the first that is not authentic."""
        view, filled = memoryview(sealed), 0
        for number, position in enumerate(range(0, len(sealed), SEALED_CHUNK), start=index):
            chunk = view[position : position + SEALED_CHUNK]
            size = len(chunk) - _TAG
            if not self.cipher.open_into(number, chunk, buffer[filled : filled + size]):
                break
            filled += size
        return buffer[:filled]

    def _at(self, index: int) -> int:
        """Return the offset of chunk `index`, or the end of the object."""
        return min(self.start + index * SEALED_CHUNK, self.replicas.item.size)


def read_container(
    sealed: SealedObject,
    sink: Sink,
    *,
    start: int = 0,
    known: _Hash | None = None,
    progress: Callable[[int], None] | None = None,
) -> Original:
    """Write the data of an object to `sink`, from byte `start` on (a multiple of 16,384), and return its trailer.

    What is written is authentic; that it is all, and has its SHA-256, is known only on return.

    Args:
        sealed: The object.
        sink: Gets the data.
        start: How much of the data the caller has already.
        known: SHA-256 of that.
        progress: Called with the number of bytes of data so far.

    Raises:
        ChecksumError: the trailer tells of other data.
        ObjectLostError, TransientError: as SealedObject.blocks.
    """
    digest = known or sha256()
    end, position = sealed.plain_size, start
    safe = max(start, end - MAX_TRAILER)  # what is before this is no trailer
    tail = bytearray()
    for block in sealed.blocks(start, end):
        data = block[: max(0, safe - position)]
        sink.write(data)
        digest.update(data)
        tail += block[len(data) :]
        position += len(block)
        if progress is not None:
            progress(position)
    original, trailer_size = Original.from_trailer(bytes(tail))
    rest = tail[: len(tail) - trailer_size]
    sink.write(bytes(rest))
    digest.update(rest)
    if (original.size, original.sha256) != (end - trailer_size, digest.hexdigest()):
        raise ChecksumError("the object decrypts, but its contents are not those recorded when it was encrypted")
    return original


def read_raw(replicas: Replicas, sink: Sink, *, progress: Callable[[int], None] | None = None) -> None:
    """Write an object to `sink` as the stores have it, and compare it with its digests.

    Raises:
        IntegrityError: it is another one.
        ObjectLostError, TransientError: as Replicas.fetch.
    """
    digester = Digester(replicas.item.digests)
    for offset, _, data in replicas.ranges(0, replicas.item.size):
        sink.write(data)
        digester.update(data)
        if progress is not None:
            progress(offset + len(data))
    refuse_other(digester.hexdigests(), replicas.item.digests)


def at_most(most: int, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield `blocks`. Raises IntegrityError if they have more than `most` bytes, before those fill memory or disk."""
    size = 0
    for block in blocks:
        size += len(block)
        moved(len(block))
        if size > most:
            raise IntegrityError("the store sends more than it was asked for")
        yield block


def take(blocks: Iterable[bytes], most: int) -> bytes:
    """Return `blocks` together. Raises IntegrityError if they have more than `most` bytes."""
    return b"".join(at_most(most, blocks))


def _plain_size(sealed: int) -> int:
    """Return how many bytes of data are in chunks of `sealed` bytes together."""
    return sealed - _TAG * -(-sealed // SEALED_CHUNK)
