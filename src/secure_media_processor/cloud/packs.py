"""Small files, many to an object.

A pack is an SMP1 container of a tar archive, so `smp decrypt` and tar open it without any index. The index knows where in the
archive each file begins; one file is read without the others.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secure_media_processor.cloud.transfer import PartSink
from secure_media_processor.core.container import Original
from secure_media_processor.core.encryption import Sealing, seal_stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from secure_media_processor.cloud.digests import Part
    from secure_media_processor.core.recipients import Recipient

# What is larger gains nothing from a pack: a request costs about as much as sending so many bytes.
LARGEST_IN_PACK = 1 << 20
# Enough that requests cost nothing, little enough to hold a few in memory. Fits two parts with what tar adds.
PACK_SIZE = 15 << 20
_TAR_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Packed:
    """A file in a pack."""

    name: str
    size: int
    """Bytes of data."""
    mtime_ns: int | None
    sha256: str
    """Of the data, 64 hexadecimal digits."""
    offset: int
    """Where it begins in the archive."""


class Pack:
    """A pack that is being filled."""

    def __init__(self) -> None:
        self._archive = bytearray()
        self.files: list[Packed] = []

    @property
    def full(self) -> bool:
        """Whether the next file belongs into another pack."""
        return len(self._archive) >= PACK_SIZE - LARGEST_IN_PACK

    def add(self, name: str, data: bytes | memoryview, mtime_ns: int | None, sha256: str) -> None:
        """Add a file.

        Args:
            name: As in the index.
            data: At most LARGEST_IN_PACK bytes.
            mtime_ns: Modification time in nanoseconds since 1970-01-01 UTC, if it is known.
            sha256: Of the data.
        """
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = len(data), (mtime_ns or 0) // 10**9, 0o600
        self._archive += member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        self.files.append(Packed(name, len(data), mtime_ns, sha256, len(self._archive)))
        self._archive += data
        self._archive += bytes(-len(data) % _TAR_BLOCK)

    def seal(self, recipients: Sequence[Recipient]) -> tuple[str, list[Part]]:
        """Return the id of the container and its parts."""
        self._archive += bytes(2 * _TAR_BLOCK)  # the end of an archive
        parts: list[Part] = []
        sink = PartSink(parts.append)
        facts = Original(0, "", media_type="application/x-tar")
        archive, self._archive = self._archive, bytearray()  # a pack is sealed once, and memory is short
        container = seal_stream(_Buffer(archive), sink, Sealing.new(recipients), facts)
        sink.flush()
        return container.file_id, parts


class _Buffer:
    """Bytes in memory as a source, without a copy of them."""

    def __init__(self, data: bytearray) -> None:
        self._rest = memoryview(data)

    def readinto(self, buffer: memoryview, /) -> int:
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
