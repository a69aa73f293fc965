"""Reading any part of an encrypted file without decrypting the rest, and without a decrypted copy on disk.

docs/format/container.md is the contract. Chunks are opened when they are asked for; the last one is opened first, since it
alone says where the data ends.
"""

from __future__ import annotations

import io
import os
import stat
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from secure_media_processor.core.container import MAX_TRAILER, Original
from secure_media_processor.core.encryption import errors_about, read_header
from secure_media_processor.core.files import open_source, os_errors
from secure_media_processor.core.payload import CHUNK, HEAD_SIZE, SEALED_CHUNK, ChunkCipher, Progress, decrypt_payload
from secure_media_processor.core.recipients import unwrap_file_key
from secure_media_processor.errors import ChecksumError, FileAccessError, PayloadDamagedError, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import FileIO

    from typing_extensions import Buffer

    from secure_media_processor.core.container import Header
    from secure_media_processor.core.recipients import Identity

_TAG = SEALED_CHUNK - CHUNK
# Parsers go back and forth between a few places; more chunks than these would be memory without use.
_CHUNKS_KEPT = 4


def open_encrypted(path: Path | str, identities: Sequence[Identity]) -> io.BufferedReader:
    """Open the encrypted file `path` for reading as if it were the original: a binary file with read, seek and tell.

    Header, key and end of the file are checked before this returns: one that was cut or lengthened is refused before any byte
    is handed out. Each chunk is checked when it is read, so damage in the middle raises where it lies, and only what was read
    is known to be intact. That the SHA-256 of the whole agrees is checked by verify_file. A few chunks of 16 KiB are in memory
    at a time, and nothing is written to disk. `.raw` is the EncryptedFile. As with other files, threads must not share one.

    Args:
        path: A regular file; a pipe cannot be read from the middle.
        identities: Keys, such as SymmetricKey or Keystore.

    Raises:
        IntegrityError: the file was damaged or is not for these identities; its subclasses say which. Reading raises it too.
        MissingError, FileAccessError: it cannot be read.
    """
    path = Path(path)
    file = open_source(path)
    try:
        return io.BufferedReader(EncryptedFile(path, file, identities), CHUNK)
    except BaseException:
        file.close()
        raise


class EncryptedFile(io.RawIOBase):
    """The data in an open encrypted file; see open_encrypted, which makes one."""

    def __init__(self, path: Path, file: FileIO, identities: Sequence[Identity]) -> None:
        """Check the header and the end of `file`, which stands at its begin."""
        super().__init__()
        self._path = path
        self._file = file
        self._position = 0
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        with os_errors(f"read {path}"), errors_about(path):
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FileAccessError("it is a pipe, which cannot be read from the middle", hint="write it to a file first")
            header = read_header(file)
            self._file_key = unwrap_file_key(header, identities)
            self._start = len(header.raw) + HEAD_SIZE
            head = os.pread(file.fileno(), HEAD_SIZE, len(header.raw))
            if len(head) < HEAD_SIZE:
                raise TruncatedError(f"the file is cut short: it ends at byte {len(header.raw) + len(head)}")
            self._cipher = ChunkCipher.from_head(self._file_key, head, header.prefix)
            self.file_id = header.file_id.hex()
            """Of the encrypted file, 32 hexadecimal digits."""
            self.original = self._read_end(header, status.st_size)
            """What the encrypted file tells of its original: size, name and the like."""

    def _read_end(self, header: Header, size: int) -> Original:
        """Authenticate the end of the file, which is `size` bytes long, and return what its trailer says."""
        self._last, sealed = divmod(size - self._start, SEALED_CHUNK)
        last = self._cipher.open(self._last, self._pread(self._last)) if sealed >= _TAG else None
        if last is None:
            # A second reading, from end to end, says what is wrong with the file and where.
            self._file.seek(len(header.raw))
            counter = Progress(None)
            decrypt_payload(self._file, None, self._file_key, header.prefix, offset=len(header.raw), progress=counter)
            raise PayloadDamagedError("the file changed while it was opened")
        # The trailer may begin in the chunk before.
        tail = self._chunk(self._last - 1) + last if self._last and len(last) < MAX_TRAILER else last
        original, trailer = Original.from_trailer(tail)
        self._size = self._last * CHUNK + len(last) - trailer
        if self._size != original.size:
            raise ChecksumError("the file decrypts, but its size is not the one recorded when it was encrypted")
        self._keep(self._last, last)
        return original

    @property
    def name(self) -> str:
        """Path of the encrypted file, as other files have it."""
        return str(self._path)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in the data."""
        self._refuse_closed()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to `offset` from the begin of the data, from here or from its end, and return the position."""
        self._refuse_closed()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        if whence not in base:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        if base[whence] + offset < 0:
            raise ValueError("the position lies before the begin of the file")
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill `buffer` with data from here on, all of it unless the data ends. Raises IntegrityError where it is damaged."""
        self._refuse_closed()
        with memoryview(buffer).cast("B") as out:
            wanted = max(0, min(len(out), self._size - self._position))
            done = 0
            while done < wanted:
                index, start = divmod(self._position + done, CHUNK)
                piece = memoryview(self._chunk(index))[start : start + wanted - done]
                out[done : done + len(piece)] = piece
                done += len(piece)
        self._position += done
        return done

    def close(self) -> None:
        """Close the file and forget what was decrypted."""
        if not self.closed:
            self._chunks.clear()
            self._file.close()
        super().close()

    def _refuse_closed(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _chunk(self, index: int) -> bytes:
        """Return the data of a chunk, trailer included, authenticated."""
        if index in self._chunks:
            self._chunks.move_to_end(index)
            return self._chunks[index]
        with os_errors(f"read {self._path}"):
            sealed = self._pread(index)
        data = self._cipher.open(index, sealed)
        if data is None or (index < self._last and len(data) < CHUNK):
            with errors_about(self._path):
                raise self._cipher.diagnose(sealed, index, self._start + index * SEALED_CHUNK)
        self._keep(index, data)
        return data

    def _keep(self, index: int, data: bytes) -> None:
        self._chunks[index] = data
        if len(self._chunks) > _CHUNKS_KEPT:
            self._chunks.popitem(last=False)

    def _pread(self, index: int) -> bytes:
        return os.pread(self._file.fileno(), SEALED_CHUNK, self._start + index * SEALED_CHUNK)
