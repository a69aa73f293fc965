"""The payload of an SMP1 container: Cobblestone-256 over the data and its trailer, in constant memory.

docs/format/container.md is the contract. For a file that is read or written from end to end the library's class does the work.
ChunkCipher is the same cipher chunk by chunk: it names the place and kind of damage after that class has refused a file, makes
the same bytes again when an upload is taken up, and opens chunks that come from several places.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secure_media_processor.core.container import TRAILER_MAGIC, Original, derive, ends_like_payload
from secure_media_processor.core.files import read_full
from secure_media_processor.core.hashing import Sha256Ring
from secure_media_processor.errors import (
    ChecksumError,
    IntegrityError,
    PayloadDamagedError,
    TrailingDataError,
    TruncatedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from secure_media_processor.core.files import Sink, Source

CHUNK = 16384
_TAG = 16
SEALED_CHUNK = CHUNK + _TAG
SALT_SIZE = 24
HEAD_SIZE = SALT_SIZE + 32  # salt and commitment
_NONCE = 12

# Sixteen chunks, 256 KiB: large enough that calls cost nothing, small enough for the second-level cache. The trailer (at most
# 4096 bytes) always lies within the last two blocks.
_BLOCK = 16 * CHUNK
_SEALED_BLOCK = 16 * SEALED_CHUNK


class Encryptor(Protocol):
    """What encrypts a payload, block by block."""

    def update_into(self, data: memoryview, out: memoryview, /) -> int:
        """Encrypt `data`; write what is complete to `out` and return how much that is."""

    def update(self, data: bytes, /) -> bytes:
        """Encrypt `data`; return what is complete."""

    def finalize(self) -> bytes:
        """Return the last chunk."""


@dataclass(slots=True)
class Progress:
    """Tells a listener, if there is one, how many bytes have gone through."""

    listener: Callable[[int], None] | None
    done: int = 0

    def add(self, size: int) -> None:
        """Count `size` more bytes."""
        self.done += size
        if self.listener is not None:
            self.listener(self.done)


def begin_payload(file_key: bytes, prefix: bytes) -> tuple[Encryptor, bytes]:
    """Return an encryptor for a new payload, and the head (56 bytes) that it begins with; the first 24 are its salt."""
    encryptor = Cobblestone256Encryptor(file_key, _context(prefix))
    return encryptor, encryptor.update(b"")


def begin_payload_again(file_key: bytes, prefix: bytes, salt: bytes) -> tuple[Encryptor, bytes]:
    """As begin_payload, with the `salt` of an earlier one: the same data gives the same bytes.

    Whoever does so must see to it that no byte differs before any leaves the machine: two texts under one key and nonce betray
    each other.
    """
    cipher = ChunkCipher.of(file_key, salt, prefix)
    return _ChunkEncryptor(cipher), cipher.head


def encrypt_payload(
    source: Source, sink: Sink, begun: tuple[Encryptor, bytes], *, facts: Original, progress: Progress
) -> Original:
    """Read `source` to its end and write the payload that was `begun`. Returns `facts` with size and SHA-256 filled in."""
    encryptor, head = begun
    sink.write(head)
    # A chunk may be completed by a block that began inside it.
    sealed = memoryview(bytearray(_SEALED_BLOCK + SEALED_CHUNK))
    size = 0
    with Sha256Ring(_BLOCK) as ring:
        filled = _BLOCK
        while filled == _BLOCK:
            block = ring.take()
            filled = read_full(source, block)
            ring.hash(block, filled)
            sink.write(sealed[: encryptor.update_into(block[:filled], sealed)])
            size += filled
            progress.add(filled)
        original = facts.with_content(size, ring.hexdigest())
    sink.write(encryptor.update(original.to_trailer()) + encryptor.finalize())
    return original


def decrypt_payload(
    source: Source, sink: Sink | None, file_key: bytes, prefix: bytes, *, offset: int, progress: Progress
) -> Original:
    """Read the payload from `source`, which stands at byte `offset` of the file, to its end. Write the data to `sink`, if any.

    Every byte given to `sink` is authenticated; that the data is complete and has its SHA-256 is known only on return.

    Raises:
        PayloadDamagedError, TruncatedError, TrailingDataError: with the byte of the file where it happened.
        ChecksumError: the trailer tells of other data.
    """
    head = bytearray(HEAD_SIZE)
    filled = read_full(source, memoryview(head))
    if filled < HEAD_SIZE:
        raise TruncatedError(f"the file is cut short: it ends at byte {offset + filled}")
    decryptor = Cobblestone256Decryptor(file_key, _context(prefix))
    try:
        decryptor.update(head)
    except InvalidTag:
        raise PayloadDamagedError(f"the file is damaged at byte {offset}") from None
    offset += HEAD_SIZE
    progress.add(HEAD_SIZE)
    sealed = memoryview(bytearray(_SEALED_BLOCK))
    held: memoryview | None = None  # the trailer may reach back into the block before the last
    index = size = 0
    with Sha256Ring(_BLOCK) as ring:
        while True:
            filled = read_full(source, sealed)
            progress.add(filled)
            block = ring.take()
            try:
                opened = decryptor.update_into(sealed[:filled], block)
                rest = decryptor.finalize() if filled < _SEALED_BLOCK else None
            except InvalidTag:
                chunks = ChunkCipher.of(file_key, bytes(head[:SALT_SIZE]), prefix)
                raise chunks.diagnose(bytes(sealed[:filled]), index, offset) from None
            if rest is not None:
                break
            if held is not None:
                size += _pass_on(held, sink, ring)
            held, index, offset = block, index + _SEALED_BLOCK // SEALED_CHUNK, offset + filled
        tail = b"".join((held or b"", block[:opened], rest))
        original, trailer_size = Original.from_trailer(tail)
        data = tail[: len(tail) - trailer_size]
        if sink is not None:
            sink.write(data)
        size += len(data)
        if (original.size, original.sha256) != (size, ring.hexdigest(data)):
            raise ChecksumError("the file decrypts, but its contents are not those recorded when it was encrypted")
    return original


def _pass_on(block: memoryview, sink: Sink | None, ring: Sha256Ring) -> int:
    """Write a full block of data and hand it to the hash, in that order: the hash gives the buffer back to be filled anew."""
    if sink is not None:
        sink.write(block)
    ring.hash(block, len(block))
    return len(block)


def _context(prefix: bytes) -> bytes:
    return b"smp.v1 payload\x00" + prefix


@dataclass(frozen=True, slots=True)
class ChunkCipher:
    """Cobblestone-256 of one payload, chunk by chunk, over AESGCM (the library's class takes them only in order)."""

    head: bytes
    """What the payload begins with: the salt and the commitment to the key."""
    aead: AESGCM = field(repr=False)
    key: bytes = field(repr=False)
    base_nonce: int = field(repr=False)

    @classmethod
    def of(cls, file_key: bytes, salt: bytes, prefix: bytes) -> ChunkCipher:
        """Return the cipher of the payload that begins with `salt` (24 bytes) in the container that begins with `prefix`."""
        info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00" + salt + _context(prefix)
        derived = derive(file_key, info, 32 + _NONCE + HEAD_SIZE - SALT_SIZE)
        key, base_nonce = derived[:32], int.from_bytes(derived[32 : 32 + _NONCE], "big")
        return cls(salt + derived[32 + _NONCE :], AESGCM(key), key, base_nonce)

    @classmethod
    def from_head(cls, file_key: bytes, head: bytes, prefix: bytes) -> ChunkCipher:
        """Return the cipher of the payload that begins with `head`. Raises PayloadDamagedError if that is for another key."""
        cipher = cls.of(file_key, head[:SALT_SIZE], prefix)
        if not hmac.compare_digest(cipher.head, head):
            raise PayloadDamagedError("the file is damaged: the first bytes of its payload are not those of its key")
        return cipher

    def seal(self, index: int, data: bytes | memoryview) -> bytes:
        """Return chunk `index` encrypted: the data (16,384 bytes, fewer in the last chunk) and a tag of 16."""
        return self.aead.encrypt(self._nonce(index), data, None)

    def seal_into(self, index: int, data: memoryview, out: memoryview) -> None:
        """Write chunk `index`, encrypted, to `out`, which has room for the data and a tag of 16."""
        self.aead.encrypt_into(self._nonce(index), data, None, out)

    def open(self, index: int, chunk: bytes | memoryview) -> bytes | None:
        """Return the data in chunk `index`; None if it is not authentic."""
        try:
            return self.aead.decrypt(self._nonce(index), chunk, None)
        except InvalidTag:
            return None

    def open_into(self, index: int, chunk: memoryview, out: memoryview) -> bool:
        """Write the data in chunk `index` to `out`, which is as long; return False if it is not authentic."""
        try:
            self.aead.decrypt_into(self._nonce(index), chunk, None, out)
        except InvalidTag:
            return False
        return True

    def diagnose(self, sealed: bytes, index: int, offset: int) -> IntegrityError:
        """Name what is wrong with a block that was refused; `sealed` begins with chunk `index` at byte `offset` of the file."""
        for position in range(0, len(sealed), SEALED_CHUNK):
            chunk = sealed[position : position + SEALED_CHUNK]
            if not (len(chunk) == SEALED_CHUNK and self.open(index, chunk) is not None):
                return self._diagnose_chunk(chunk, index, offset + position)
            index += 1
        return TruncatedError(f"the file is cut short: it ends at byte {offset + len(sealed)}")

    def _diagnose_chunk(self, chunk: bytes, index: int, offset: int) -> IntegrityError:
        """Name what is wrong with the first chunk that is not an authentic full one."""
        text = self._open_unauthenticated(index, chunk)
        for end in ends_like_payload(text):
            if end + _TAG < len(chunk) and self.open(index, chunk[: end + _TAG]) is not None:
                return TrailingDataError(f"{offset + end + _TAG} bytes are the file; more were added after them")
        if len(chunk) == SEALED_CHUNK or text[:-_TAG].endswith(TRAILER_MAGIC):
            return PayloadDamagedError(f"the file is damaged between byte {offset} and byte {offset + len(chunk) - 1}")
        return TruncatedError(f"the file is cut short, or damaged after byte {offset}: it ends at byte {offset + len(chunk)}")

    def _open_unauthenticated(self, index: int, chunk: bytes) -> bytes:
        # GCM encrypts in counter mode and starts the data at block 2 (SP 800-38D section 7.1).
        counter = modes.CTR(self._nonce(index) + (2).to_bytes(4, "big"))
        return Cipher(algorithms.AES256(self.key), counter).decryptor().update(chunk)

    def _nonce(self, index: int) -> bytes:
        return (self.base_nonce ^ index).to_bytes(_NONCE, "big")


class _ChunkEncryptor:
    """Cobblestone256Encryptor over a ChunkCipher."""

    def __init__(self, cipher: ChunkCipher) -> None:
        self._cipher = cipher
        self._index = 0
        self._begun = b""
        """Data of a chunk that is not full yet."""

    def update_into(self, data: bytes | memoryview, out: memoryview, /) -> int:
        """Encrypt `data`; write what is complete to `out` and return how much that is."""
        written = 0
        if self._begun:
            data = self._begun + bytes(data)
        view = memoryview(data)
        full = len(view) - len(view) % CHUNK
        for start in range(0, full, CHUNK):
            self._cipher.seal_into(self._index, view[start : start + CHUNK], out[written : written + SEALED_CHUNK])
            self._index += 1
            written += SEALED_CHUNK
        self._begun = bytes(view[full:])
        return written

    def update(self, data: bytes, /) -> bytes:
        """Encrypt `data`; return what is complete."""
        out = memoryview(bytearray((len(data) + CHUNK) // CHUNK * SEALED_CHUNK))
        return bytes(out[: self.update_into(data, out)])

    def finalize(self) -> bytes:
        """Return the last chunk."""
        return self._cipher.seal(self._index, self._begun)
