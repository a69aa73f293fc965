"""The payload of an SMP1 container: Cobblestone-256 over the data and its trailer, in constant memory.

docs/format/container.md is the contract. The library's class does the encryption; the single-chunk reader here only names the
place and kind of damage after that class has refused a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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

_CHUNK = 16384
_TAG = 16
_SEALED_CHUNK = _CHUNK + _TAG
_SALT = 24
_HEAD = _SALT + 32  # salt and commitment
_NONCE = 12

# Sixteen chunks, 256 KiB: large enough that calls cost nothing, small enough for the second-level cache. The trailer (at most
# 4096 bytes) always lies within the last two blocks.
_BLOCK = 16 * _CHUNK
_SEALED_BLOCK = 16 * _SEALED_CHUNK


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


def encrypt_payload(
    source: Source, sink: Sink, file_key: bytes, prefix: bytes, *, facts: Original, progress: Progress
) -> Original:
    """Read `source` to its end and write the payload. Returns `facts` with size and SHA-256 filled in."""
    encryptor = Cobblestone256Encryptor(file_key, _context(prefix))
    # The first call gives the head too; a chunk may be completed by a block that began inside it.
    sealed = memoryview(bytearray(_HEAD + _SEALED_BLOCK + _SEALED_CHUNK))
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
    head = bytearray(_HEAD)
    filled = read_full(source, memoryview(head))
    if filled < _HEAD:
        raise TruncatedError(f"the file is cut short: it ends at byte {offset + filled}")
    decryptor = Cobblestone256Decryptor(file_key, _context(prefix))
    try:
        decryptor.update(head)
    except InvalidTag:
        raise PayloadDamagedError(f"the file is damaged at byte {offset}") from None
    offset += _HEAD
    progress.add(_HEAD)
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
                chunks = _Chunks.of(file_key, bytes(head), prefix)
                raise chunks.diagnose(bytes(sealed[:filled]), index, offset) from None
            if rest is not None:
                break
            if held is not None:
                size += _pass_on(held, sink, ring)
            held, index, offset = block, index + _SEALED_BLOCK // _SEALED_CHUNK, offset + filled
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
class _Chunks:
    """Chunks of one payload, opened singly over AESGCM (the library's class opens them only in order)."""

    key: bytes
    base_nonce: int

    @classmethod
    def of(cls, file_key: bytes, head: bytes, prefix: bytes) -> _Chunks:
        info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00" + head[:_SALT] + _context(prefix)
        derived = derive(file_key, info, 32 + _NONCE + 32)
        return cls(derived[:32], int.from_bytes(derived[32 : 32 + _NONCE], "big"))

    def diagnose(self, sealed: bytes, index: int, offset: int) -> IntegrityError:
        """Name what is wrong with a block that was refused; `sealed` begins with chunk `index` at byte `offset` of the file."""
        for position in range(0, len(sealed), _SEALED_CHUNK):
            chunk = sealed[position : position + _SEALED_CHUNK]
            if not (len(chunk) == _SEALED_CHUNK and self._authentic(index, chunk)):
                return self._diagnose_chunk(chunk, index, offset + position)
            index += 1
        return TruncatedError(f"the file is cut short: it ends at byte {offset + len(sealed)}")

    def _diagnose_chunk(self, chunk: bytes, index: int, offset: int) -> IntegrityError:
        """Name what is wrong with the first chunk that is not an authentic full one."""
        text = self._open_unauthenticated(index, chunk)
        for end in ends_like_payload(text):
            if end + _TAG < len(chunk) and self._authentic(index, chunk[: end + _TAG]):
                return TrailingDataError(f"{offset + end + _TAG} bytes are the file; more were added after them")
        if len(chunk) == _SEALED_CHUNK or text[:-_TAG].endswith(TRAILER_MAGIC):
            return PayloadDamagedError(f"the file is damaged between byte {offset} and byte {offset + len(chunk) - 1}")
        return TruncatedError(f"the file is cut short, or damaged after byte {offset}: it ends at byte {offset + len(chunk)}")

    def _authentic(self, index: int, chunk: bytes) -> bool:
        try:
            AESGCM(self.key).decrypt(self._nonce(index), chunk, None)
        except InvalidTag:
            return False
        return True

    def _open_unauthenticated(self, index: int, chunk: bytes) -> bytes:
        # GCM encrypts in counter mode and starts the data at block 2 (SP 800-38D section 7.1).
        counter = modes.CTR(self._nonce(index) + (2).to_bytes(4, "big"))
        return Cipher(algorithms.AES256(self.key), counter).decryptor().update(chunk)

    def _nonce(self, index: int) -> bytes:
        return (self.base_nonce ^ index).to_bytes(_NONCE, "big")
