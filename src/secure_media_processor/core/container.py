"""The SMP1 container around the payload: prefix, stanzas, header MAC, trailer. docs/format/container.md is the contract."""

from __future__ import annotations

import hmac
import json
import secrets
import struct
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from secure_media_processor import __version__
from secure_media_processor.errors import (
    HeaderDamagedError,
    NotEncryptedError,
    PayloadDamagedError,
    TruncatedError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC = b"SMPENC\x00\x01"
PREFIX_SIZE = 28
# Enough of a file to know its format and how long its header is.
LEAD_SIZE = 32
FILE_KEY_SIZE = 32
MAX_STANZAS = 64

_SUITE = 1
_FILE_ID_SIZE = 16
_PREFIX = struct.Struct(">8sBBH16s")
_STANZA = struct.Struct(">BH")
_HEADER_BLOCK = 512
_MAX_HEADER = 256 * 1024  # 64 stanzas of the largest kind known (1.2 KB) fit three times
_MAC_SIZE = 32
_UNUSED_STANZA = 0

_TRAILER_BLOCK = 512
MAX_TRAILER = 4096
MAX_INTEGER = 2**63 - 1
_TRAILER_END = struct.Struct(">II4s")
TRAILER_MAGIC = b"SMT1"
_MAX_NAME = 512  # bytes of UTF-8: twice the longest name on Linux; six times that, escaped, still fits the trailer

# A hostile tail may repeat the mark of the end; each place to check costs one pass over 16 KiB.
_MAX_END_CANDIDATES = 20

_AGE_MAGIC = b"age-encryption.org/"


def derive(key: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand with SHA-512 (RFC 5869 section 2.3) of a uniformly random `key`."""
    return HKDFExpand(hashes.SHA512(), length, info).derive(key)


@dataclass(frozen=True, slots=True)
class Stanza:
    """One wrapped copy of the file key."""

    type: int
    """Kind of recipient, 1 to 255."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """A header as it stands in a file, parsed but not yet authenticated."""

    prefix: bytes
    """The first 28 bytes: magic, suite, flags, reserved, file id. Bound into every stanza and into the payload."""
    stanzas: tuple[Stanza, ...]
    raw: bytes
    """The whole header, MAC included. The payload begins at offset ``len(raw)``."""

    @property
    def file_id(self) -> bytes:
        """16 random bytes that name the container."""
        return self.prefix[-_FILE_ID_SIZE:]

    def authenticate(self, file_key: bytes) -> None:
        """Raise HeaderDamagedError unless the MAC was made with `file_key` over this very header."""
        expected = _header_mac(file_key, self.raw[:-_MAC_SIZE])
        if not hmac.compare_digest(expected, self.raw[-_MAC_SIZE:]):
            raise HeaderDamagedError("the header of the file was changed")


def new_prefix() -> bytes:
    """Return a prefix with a fresh file id."""
    return _PREFIX.pack(MAGIC, _SUITE, 0, 0, secrets.token_bytes(_FILE_ID_SIZE))


def build_header(prefix: bytes, stanzas: Sequence[Stanza], file_key: bytes) -> bytes:
    """Return the header bytes for `stanzas` (1 to 64), authenticated under `file_key`."""
    if not 1 <= len(stanzas) <= MAX_STANZAS:
        raise ValueError(f"a container takes 1 to {MAX_STANZAS} recipients, not {len(stanzas)}")
    body = b"".join(_STANZA.pack(stanza.type, len(stanza.body)) + stanza.body for stanza in stanzas)
    used = LEAD_SIZE + 2 + len(body)
    length = _round_up(used + _MAC_SIZE, _HEADER_BLOCK)
    lead = prefix + struct.pack(">IH", length, len(stanzas))
    unsigned = lead + body + bytes(length - used - _MAC_SIZE)
    return unsigned + _header_mac(file_key, unsigned)


def header_length(lead: bytes) -> int:
    """Return the length of the whole header, given the first 32 bytes of a file (fewer if it is shorter).

    Raises:
        NotEncryptedError: the file is empty or has another magic number.
        UnsupportedError: a newer format.
        TruncatedError: an SMP1 file that ends inside these bytes.
        HeaderDamagedError: the length is out of range.
    """
    if not lead:
        raise NotEncryptedError("the file is empty")
    if lead.startswith(_AGE_MAGIC):
        raise NotEncryptedError("this is an age file, not an smp file", hint="decrypt it with age")
    if not lead.startswith(MAGIC[: len(lead)]):
        raise NotEncryptedError("the file was not encrypted by smp")
    if len(lead) < LEAD_SIZE:
        raise TruncatedError(f"the file is cut short: it ends at byte {len(lead)}, inside its header")
    _, suite, flags, reserved, _ = _PREFIX.unpack_from(lead)
    if suite != _SUITE or flags or reserved:
        raise UnsupportedError("the file was made by a newer version of smp, or its first bytes are damaged")
    length = int.from_bytes(lead[PREFIX_SIZE:LEAD_SIZE], "big")
    if length % _HEADER_BLOCK or not _HEADER_BLOCK <= length <= _MAX_HEADER:
        raise HeaderDamagedError("the header of the file gives a length that cannot be")
    return length


def parse_header(raw: bytes) -> Header:
    """Return the parts of a header of `header_length` bytes.

    Raises:
        HeaderDamagedError: a count, a length or the padding is not as the format demands.
    """
    count = int.from_bytes(raw[LEAD_SIZE : LEAD_SIZE + 2], "big")
    if not 1 <= count <= MAX_STANZAS:
        raise HeaderDamagedError("the header of the file gives a number of recipients that cannot be")
    position, end = LEAD_SIZE + 2, len(raw) - _MAC_SIZE
    stanzas = []
    for _ in range(count):
        body = position + _STANZA.size
        if body > end:
            raise HeaderDamagedError("the header of the file is too short for its recipients")
        kind, size = _STANZA.unpack_from(raw, position)
        position = body + size
        if position > end or kind == _UNUSED_STANZA:
            raise HeaderDamagedError("a recipient in the header of the file is damaged")
        stanzas.append(Stanza(kind, raw[body:position]))
    if any(raw[position:end]):
        raise HeaderDamagedError("the padding in the header of the file is not empty")
    return Header(raw[:PREFIX_SIZE], tuple(stanzas), raw)


@dataclass(frozen=True, slots=True)
class Original:
    """What the trailer says of the data: authenticated with it, and as secret."""

    size: int
    """Bytes."""
    sha256: str
    """64 lower-case hexadecimal digits."""
    name: str | None = None
    """File name without folder; for people to read, never to be used as a path."""
    mtime_ns: int | None = None
    """Modification time in nanoseconds since 1970-01-01 UTC."""
    media_type: str | None = None
    writer: str | None = f"smp {__version__}"
    """Program and version that wrote the container."""

    def with_content(self, size: int, sha256: str) -> Original:
        """Return the same facts about data of `size` bytes with this SHA-256."""
        return replace(self, size=size, sha256=sha256)

    def to_trailer(self) -> bytes:
        """Return the trailer block, its size a multiple of 512 bytes."""
        name = self.name
        if name is not None:
            # A name that is not UTF-8, or absurdly long, is shortened: it serves people, not programs.
            name = name.encode("utf-8", "replace")[:_MAX_NAME].decode("utf-8", "ignore")
        fields = {
            "size": self.size,
            "sha256": self.sha256,
            "name": name,
            "mtime_ns": self.mtime_ns,
            "media_type": self.media_type,
            "writer": self.writer,
        }
        present = {key: value for key, value in fields.items() if value is not None}
        text = json.dumps(present, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        size = _round_up(len(text) + _TRAILER_END.size, _TRAILER_BLOCK)
        if size > MAX_TRAILER:
            raise ValueError("the facts about the original do not fit its trailer")
        return text + bytes(size - len(text) - _TRAILER_END.size) + _TRAILER_END.pack(len(text), size, TRAILER_MAGIC)

    @classmethod
    def from_trailer(cls, tail: bytes) -> tuple[Original, int]:
        """Parse the trailer block at the end of `tail`. Returns it and the number of bytes that the block takes.

        Raises:
            PayloadDamagedError: the block does not keep to the format. As it is authenticated, its writer was at fault.
        """
        try:
            return cls._parse(tail)
        except (ValueError, TypeError, AttributeError, RecursionError, struct.error) as error:
            raise PayloadDamagedError("the file does not end as the format demands") from error

    @classmethod
    def _parse(cls, tail: bytes) -> tuple[Original, int]:
        text_size, size, magic = _TRAILER_END.unpack(tail[-_TRAILER_END.size :])
        if magic != TRAILER_MAGIC or size % _TRAILER_BLOCK or not 0 < size <= min(len(tail), MAX_TRAILER):
            raise ValueError("bad trailer end")
        if text_size > size - _TRAILER_END.size or any(tail[len(tail) - size + text_size : -_TRAILER_END.size]):
            raise ValueError("bad trailer padding")
        fields = json.loads(tail[len(tail) - size :][:text_size])
        length, digest = _integer(fields, "size"), _text(fields, "sha256")
        if length is None or digest is None:
            raise ValueError("no size or sha256")
        original = cls(
            size=length,
            sha256=digest,
            name=_text(fields, "name"),
            mtime_ns=_integer(fields, "mtime_ns"),
            media_type=_text(fields, "media_type"),
            writer=_text(fields, "writer"),
        )
        return original, size


def ends_like_payload(plaintext: bytes) -> list[int]:
    """Return each length at which unauthenticated `plaintext` could have ended; a diagnosis, to be checked by a tag."""
    lengths = list(range(len(TRAILER_MAGIC)))  # the mark may straddle the chunk before
    position = plaintext.find(TRAILER_MAGIC)
    while position >= 0 and len(lengths) < _MAX_END_CANDIDATES:
        lengths.append(position + len(TRAILER_MAGIC))
        position = plaintext.find(TRAILER_MAGIC, position + 1)
    return lengths


def _text(fields: dict[str, object], key: str) -> str | None:
    """Return a string; None if there is none, or something else in its place."""
    value = fields.get(key)
    return value if isinstance(value, str) else None


def _integer(fields: dict[str, object], key: str) -> int | None:
    """Return an integer from 0 to 2⁶³-1; None if there is none, or something else in its place."""
    value = fields.get(key)
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_INTEGER
    return value if isinstance(value, int) and usable else None


def _header_mac(file_key: bytes, unsigned: bytes) -> bytes:
    return hmac.digest(derive(file_key, b"smp.v1 header", _MAC_SIZE), unsigned, sha256)


def _round_up(size: int, block: int) -> int:
    return -(-size // block) * block
