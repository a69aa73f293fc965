"""The hashes by which stores prove what they hold, all computed in one pass over an object.

| name | what it is | who reports it |
|---|---|---|
| `sha256` | SHA-256 of the whole | S3 (small objects), Google Drive, a folder |
| `sha256-8m` | SHA-256 over the concatenated SHA-256 of each part of 8 MiB | S3 (objects of several parts) |
| `dropbox` | SHA-256 over the concatenated SHA-256 of each block of 4 MiB | Dropbox (content_hash) |
| `md5` | MD5 of the whole; says nothing against who means harm | Google Drive (old objects), S3 clones |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from secure_media_processor.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MIB = 1 << 20
# The size of a part in a multipart upload: a multiple of what Google Drive (256 KiB) and Dropbox (4 MiB) ask for.
PART_SIZE = 8 * MIB
DROPBOX_BLOCK = 4 * MIB

Digests = dict[str, str]
"""Name from the table above → lower-case hexadecimal digits."""


class _Hash(Protocol):
    def update(self, data: bytes, /) -> object: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an object, hashed once for all who need that."""

    data: bytes
    """PART_SIZE bytes, fewer only in the last part."""
    sha256: bytes
    """32 bytes."""

    @classmethod
    def of(cls, data: bytes | memoryview) -> Self:
        """Return a copy of `data` as a part."""
        data = bytes(data)
        return cls(data, hashlib.sha256(data).digest())


class PartSource(Iterator[bytes]):
    """The parts of an object as a source for a put, which need not hash them again."""

    def __init__(self, parts: Iterator[Part], alive: Callable[[], object]) -> None:
        """Yield the data of `parts`. `alive` is to be called whenever some of what was read has gone out."""
        self._parts = parts
        self.alive = alive
        self._digests: list[bytes] = []

    def __next__(self) -> bytes:
        part = next(self._parts)
        self._digests.append(part.sha256)
        return part.data

    def sha256_of(self, number: int) -> bytes:
        """Return the SHA-256, 32 bytes, of part `number` (0, 1, …), which has been read."""
        return self._digests[number]


class BlockHash:
    """SHA-256 over the concatenated SHA-256 digests of blocks of one size; the last block may be shorter."""

    def __init__(self, block: int) -> None:
        self.block = block
        self._outer = hashlib.sha256()
        self._inner = hashlib.sha256()
        self._filled = 0

    def update(self, data: bytes, /) -> None:
        """Add `data`, of any length."""
        view = memoryview(data)
        while view:
            part = view[: self.block - self._filled]
            self._inner.update(part)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == self.block:
                self._outer.update(self._inner.digest())
                self._inner, self._filled = hashlib.sha256(), 0

    def add_block(self, digest: bytes) -> None:
        """Add a block, whole or the last, by its SHA-256."""
        self._outer.update(digest)

    def hexdigest(self) -> str:
        """Return the digest of what was added so far."""
        outer = self._outer.copy()
        if self._filled:
            outer.update(self._inner.digest())
        return outer.hexdigest()


def _new(name: str) -> _Hash:
    match name:
        case "sha256":
            return hashlib.sha256()
        case "sha256-8m":
            return BlockHash(PART_SIZE)
        case "dropbox":
            return BlockHash(DROPBOX_BLOCK)
        case "md5":
            return hashlib.md5(usedforsecurity=False)
        case _:
            raise ValueError(f"there is no digest {name!r}")


class Digester:
    """Computes several digests at once."""

    def __init__(self, names: Iterable[str]) -> None:
        """Compute the digests `names`, each from the table of this module."""
        self._hashes = {name: _new(name) for name in sorted(set(names))}

    def update(self, data: bytes) -> None:
        """Add `data`, of any length."""
        for digest in self._hashes.values():
            digest.update(data)

    def add_part(self, part: Part) -> None:
        """Add the next part, which is full or the last."""
        for digest in self._hashes.values():
            if isinstance(digest, BlockHash) and digest.block == PART_SIZE:
                digest.add_block(part.sha256)
            else:
                digest.update(part.data)

    def through(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield `blocks`, each added when it passes."""
        for block in blocks:
            self.update(block)
            yield block

    def hexdigests(self) -> Digests:
        """Return the digests of what was added so far."""
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}


def refuse_other(found: Mapping[str, str], expected: Mapping[str, str] | None) -> None:
    """Raise IntegrityError if a digest in both differs, or if `expected` has digests and none of them was found."""
    if not expected:
        return
    common = found.keys() & expected.keys()
    if not common or any(found[name] != expected[name] for name in common):
        raise IntegrityError("the bytes are not those that were expected: their digest differs")


def checked_parts(
    source: Iterable[bytes], digester: Digester, expected: Mapping[str, str] | None
) -> Iterator[tuple[bytes, bool]]:
    """Yield the bytes of `source` in parts of PART_SIZE, each with whether it is the last; that is empty only if `source` is.

    Raises:
        IntegrityError: instead of the last part, without which a store keeps nothing: `digester` does not find `expected`.
    """
    held: bytes | None = None
    for part in cut_into_parts(source):
        digester.update(part)
        if held is not None:  # known not to be the last only now that there is more
            yield held, False
        held = part
    refuse_other(digester.hexdigests(), expected)
    yield held or b"", True


def cut_into_parts(source: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of `source` in parts of PART_SIZE, fewer in the last; those that come so pass through as they are."""
    filled = bytearray()
    for block in source:
        if len(block) == PART_SIZE and not filled:
            yield block
            continue
        rest = memoryview(block)
        while rest:
            room = PART_SIZE - len(filled)
            filled += rest[:room]
            rest = rest[room:]
            if len(filled) == PART_SIZE:
                yield bytes(filled)
                filled.clear()
    if filled:
        yield bytes(filled)
