"""Encrypt, decrypt and verify files and streams: the front door of the library.

Everything runs in constant memory, whatever the size. A file appears under its name only when it is complete, synced and, on
decryption, verified to its last byte.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from secure_media_processor.core.container import (
    FILE_KEY_SIZE,
    LEAD_SIZE,
    MAX_INTEGER,
    Header,
    Original,
    build_header,
    header_length,
    new_prefix,
    parse_header,
)
from secure_media_processor.core.files import atomic_write, open_source, os_errors, read_full, refuse_same_file
from secure_media_processor.core.payload import (
    SALT_SIZE,
    Progress,
    begin_payload,
    begin_payload_again,
    decrypt_payload,
    encrypt_payload,
)
from secure_media_processor.core.recipients import unwrap_file_key
from secure_media_processor.errors import IntegrityError, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from secure_media_processor.core.files import Sink, Source
    from secure_media_processor.core.payload import Encryptor
    from secure_media_processor.core.recipients import Identity, Recipient

SUFFIX = ".smp"

_MEDIA_TYPES = {
    ".avif": "image/avif",
    ".dcm": "application/dicom",
    ".gif": "image/gif",
    ".heic": "image/heic",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".mov": "video/quicktime",
    ".mp4": "video/mp4",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
    ".zip": "application/zip",
}


@dataclass(frozen=True, slots=True)
class Container:
    """An encrypted file that was written or read to its end."""

    file_id: str
    """32 hexadecimal digits, random: names the container without telling anything about the data."""
    original: Original
    """Size, SHA-256 and the like of the data."""


def encrypt_file(
    source: Path | str,
    target: Path | str,
    recipients: Sequence[Recipient],
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Container:
    """Encrypt the file `source` into the new file `target` (mode 0600) so that each of `recipients` can open it.

    Args:
        source: A file or named pipe.
        target: Must not exist, unless `overwrite`; never the same file as `source`.
        recipients: 1 to 64, such as SymmetricKey.
        overwrite: Replace `target` when the new file is complete.
        progress: Called with the number of bytes read so far.

    Raises:
        SameFileError, ExistsError, MissingError, FileAccessError, NoSpaceError: nothing is left behind.
    """
    source, target = Path(source), Path(target)
    with open_source(source) as data:
        refuse_same_file(source, target)
        with atomic_write(target, overwrite=overwrite) as output:
            facts = describe_file(source, data)
            return _encrypt(_Named(data, source), output, recipients, facts, progress)


def encrypt_stream(
    source: Source,
    sink: Sink,
    recipients: Sequence[Recipient],
    *,
    progress: Callable[[int], None] | None = None,
) -> Container:
    """Encrypt `source`, read to its end, into `sink`. As encrypt_file, for pipes and memory.

    If `source` is an open regular file, its name and modification time are recorded as encrypt_file does.
    """
    facts = NO_FACTS
    if isinstance(source, FileIO) and isinstance(source.name, str):
        facts = describe_file(Path(source.name), source)
    return _encrypt(source, sink, recipients, facts, progress)


def decrypt_file(
    source: Path | str,
    target: Path | str,
    identities: Sequence[Identity],
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Container:
    """Decrypt the file `source` into the new file `target` (mode 0600, modification time of the original).

    `target` appears only after every byte was authenticated and the SHA-256 of the whole agrees.

    Raises:
        IntegrityError: the file was damaged or is not for these identities; its subclasses say which.
        SameFileError, ExistsError, MissingError, FileAccessError, NoSpaceError: nothing is left behind.
    """
    source, target = Path(source), Path(target)
    with open_source(source) as data:
        refuse_same_file(source, target)
        with atomic_write(target, overwrite=overwrite) as output, errors_about(source):
            container = decrypt_stream(_Named(data, source), output, identities, progress=progress)
            if container.original.mtime_ns is not None:
                output.flush()
                os.utime(output.fileno(), ns=(container.original.mtime_ns, container.original.mtime_ns))
            return container


def decrypt_stream(
    source: Source,
    sink: Sink | None,
    identities: Sequence[Identity],
    *,
    progress: Callable[[int], None] | None = None,
) -> Container:
    """Decrypt `source`, read to its end, into `sink`; with None, verify only.

    `sink` is given authenticated bytes only, but gets the first of them before the last are known: what was written must be
    thrown away if this raises.
    """
    header = read_header(source)
    file_key = unwrap_file_key(header, identities)
    counter = Progress(progress, done=len(header.raw))
    original = decrypt_payload(source, sink, file_key, header.prefix, offset=len(header.raw), progress=counter)
    return Container(header.file_id.hex(), original)


def verify_file(
    source: Path | str,
    identities: Sequence[Identity],
    *,
    progress: Callable[[int], None] | None = None,
) -> Container:
    """Read the encrypted file `source` to its end and check every byte, as decrypt_file does; write nothing."""
    source = Path(source)
    with open_source(source) as data, errors_about(source):
        return decrypt_stream(_Named(data, source), None, identities, progress=progress)


@dataclass(frozen=True, slots=True)
class Sealing:
    """All that is drawn at random for one container. With it the same data gives the same bytes.

    That is what lets an upload be taken up after its process died. It must never be used for other data: two texts under one
    key and nonce betray each other, and GCM its authentication key. Whoever keeps a Sealing keeps digests of what it gave,
    too, and compares before a byte leaves the machine.
    """

    header: bytes
    """The container's header; it holds the file key, wrapped."""
    salt: bytes
    """24 bytes; public, the payload begins with it."""
    file_key: bytes = field(repr=False)
    _begun: list[tuple[Encryptor, bytes]] = field(default_factory=list, repr=False, compare=False)
    """The payload that drew the salt; it can be written once, and quicker than one that is made again."""

    @property
    def file_id(self) -> str:
        """The id of the container, 32 hexadecimal digits."""
        return parse_header(self.header).file_id.hex()

    @classmethod
    def new(cls, recipients: Sequence[Recipient]) -> Sealing:
        """Draw everything anew, for a container that each of `recipients` can open."""
        file_key, prefix = secrets.token_bytes(FILE_KEY_SIZE), new_prefix()
        header = build_header(prefix, [recipient.wrap(file_key, prefix) for recipient in recipients], file_key)
        begun = begin_payload(file_key, prefix)
        return cls(header, begun[1][:SALT_SIZE], file_key, [begun])

    @classmethod
    def restore(cls, header: bytes, salt: bytes, identities: Sequence[Identity]) -> Sealing:
        """Return the sealing whose header and salt were kept. Raises as unwrap_file_key."""
        return cls(header, salt, unwrap_file_key(parse_header(header), identities))


def seal_stream(
    source: Source, sink: Sink, sealing: Sealing, facts: Original, *, progress: Callable[[int], None] | None = None
) -> Container:
    """Encrypt `source`, read to its end, into `sink`, as `sealing` has it; see there before using one twice.

    Args:
        source: The data.
        sink: Gets the container.
        sealing: For this data alone.
        facts: From describe_file, or NO_FACTS for data without a name; size and SHA-256 are filled in.
        progress: Called with the number of bytes read so far.
    """
    header = parse_header(sealing.header)
    sink.write(sealing.header)
    counter = Progress(progress)
    begun = sealing._begun.pop() if sealing._begun else None  # noqa: SLF001 - ours
    begun = begun or begin_payload_again(sealing.file_key, header.prefix, sealing.salt)
    original = encrypt_payload(source, sink, begun, facts=facts, progress=counter)
    return Container(header.file_id.hex(), original)


def read_file_id(source: Path | str) -> bytes:
    """Return the 16-byte file id of the encrypted file `source`, not authenticated. Raises IntegrityError if it is none."""
    source = Path(source)
    with open_source(source) as data, errors_about(source):
        return read_header(_Named(data, source)).file_id


NO_FACTS = Original(size=0, sha256="")
"""What is known of data that comes through a pipe."""


@contextmanager
def errors_about(path: Path) -> Iterator[None]:
    """Say in an error about the contents of a file which file it is."""
    try:
        yield
    except IntegrityError as error:
        raise type(error)(f"{path}: {error}", hint=error.hint) from error


def _encrypt(
    source: Source,
    sink: Sink,
    recipients: Sequence[Recipient],
    facts: Original,
    progress: Callable[[int], None] | None,
) -> Container:
    file_key, prefix = secrets.token_bytes(FILE_KEY_SIZE), new_prefix()
    header = build_header(prefix, [recipient.wrap(file_key, prefix) for recipient in recipients], file_key)
    sink.write(header)
    original = encrypt_payload(source, sink, begin_payload(file_key, prefix), facts=facts, progress=Progress(progress))
    return Container(parse_header(header).file_id.hex(), original)


def describe_file(path: Path, file: FileIO) -> Original:
    """Return what the trailer will say of the open `file` and is known before it is read: its name, time and media type."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        return NO_FACTS  # the name of a pipe says nothing of what comes through it
    mtime_ns = status.st_mtime_ns if 0 <= status.st_mtime_ns <= MAX_INTEGER else None
    suffixes = path.name.lower().removesuffix(".gz")
    media_type = "application/x-nifti" if suffixes.endswith(".nii") else _MEDIA_TYPES.get(path.suffix.lower())
    return Original(size=0, sha256="", name=path.name, mtime_ns=mtime_ns, media_type=media_type)


def read_header(source: Source) -> Header:
    """Read the header of a container from `source`, which stands at its begin. Raises IntegrityError if there is none."""
    lead = bytearray(LEAD_SIZE)
    filled = read_full(source, memoryview(lead))
    rest = bytearray(header_length(bytes(lead[:filled])) - LEAD_SIZE)
    filled = read_full(source, memoryview(rest))
    if filled < len(rest):
        raise TruncatedError(f"the file is cut short: it ends at byte {LEAD_SIZE + filled}, inside its header")
    return parse_header(bytes(lead + rest))


@dataclass(frozen=True, slots=True)
class _Named:
    """A file that is named when reading it fails (the writer names its own)."""

    file: FileIO
    path: Path

    def readinto(self, buffer: memoryview, /) -> int | None:
        with os_errors(f"read {self.path}"):
            return self.file.readinto(buffer)
