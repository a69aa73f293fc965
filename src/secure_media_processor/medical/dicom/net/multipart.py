"""Bodies of several parts, as DICOMweb has them (PS3.18 section 8.6.1.2, RFC 2046 section 5.1), read and written as streams."""

from __future__ import annotations

from email.message import Message
from typing import TYPE_CHECKING, BinaryIO

from secure_media_processor.errors import IntegrityError, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAX_HEAD = 16 * 1024


def parameters(content_type: str) -> tuple[str, str]:
    """Return the media type in a header, in lower case, and its boundary; empty texts for what is not there."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    return message.get_content_type(), boundary if isinstance(boundary, str) else ""


def only_part(blocks: Iterable[bytes], boundary: str) -> Iterator[bytes]:
    """Yield the bytes of the one part that a body has, without its head.

    Raises:
        TransientError: the body ends before its part does.
        IntegrityError: it has no part, or a second one, or the part is no DICOM object.
    """
    rest = iter(blocks)
    first, delimiter = f"--{boundary}".encode(), f"\r\n--{boundary}".encode()
    head, data = _head(rest)
    if first not in head:
        raise IntegrityError("the server's answer has no parts")
    if b"application/dicom" not in head.partition(first)[2].lower():
        raise IntegrityError("the server's answer is no DICOM object")
    while (end := data.find(delimiter)) < 0:
        keep = max(len(data) - len(delimiter) + 1, 0)
        yield data[:keep]
        data = data[keep:] + _next(rest)
    yield data[:end]
    data = data[end + len(delimiter) :]
    while len(data) < len(b"--"):
        data += _next(rest)
    if not data.startswith(b"--"):
        raise IntegrityError("the server sent more than one object")


def _head(rest: Iterator[bytes]) -> tuple[bytes, bytes]:
    """Return what stands before the first part's bytes, and the begin of these."""
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > _MAX_HEAD:
            raise IntegrityError("the server's answer has no parts")
        data += _next(rest)
    head, _, data = data.partition(b"\r\n\r\n")
    return head, data


def _next(rest: Iterator[bytes]) -> bytes:
    for block in rest:
        if block:
            return block
    raise TransientError("the server's answer ends too early")


class OnePart:
    """A body with a file as its only part, for `requests` to read block by block. It has a length, so it needs no chunks."""

    def __init__(self, file: BinaryIO, size: int, boundary: str) -> None:
        """Put `size` bytes of `file` between the lines that `boundary` makes."""
        self._file, self._left = file, size
        self._before = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._after = f"\r\n--{boundary}--\r\n".encode()
        self._size = len(self._before) + size + len(self._after)

    def __len__(self) -> int:
        """Return the number of bytes of the whole."""
        return self._size

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size`; none at the end.

        Raises IntegrityError if the file has become shorter: the server must not take what is left for the whole.
        """
        if self._before:
            block, self._before = self._before, b""
            return block
        if self._left:
            block = self._file.read(self._left if size < 0 else min(size, self._left))
            if not block:
                raise IntegrityError("the file became shorter while it was sent")
            self._left -= len(block)
            return block
        block, self._after = self._after, b""
        return block
