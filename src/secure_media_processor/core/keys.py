"""Symmetric keys and their files. docs/format/keys.md and docs/format/container.md (stanza type 1) are the contract."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag

from secure_media_processor.core import bech32
from secure_media_processor.core.container import Stanza, derive
from secure_media_processor.core.files import open_source, os_errors, read_full, write_file
from secure_media_processor.core.recipients import KEY_FILE_STANZA, KEY_ID_SIZE
from secure_media_processor.errors import (
    HeaderDamagedError,
    KeyDamagedError,
    KeyExposedError,
    KeyMissingError,
    MissingError,
)

_KEY_SIZE = 32
_HRP = "smp-secret-key-"
_MAX_KEY_FILE = 4096
# Cobblestone-256 of a 32-byte file key: salt 24, commitment 32, key 32, tag 16.
_WRAPPED_SIZE = 104
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True, eq=False)
class SymmetricKey:
    """A key of 32 random bytes that both encrypts and decrypts: a recipient and an identity."""

    secret: bytes = field(repr=False)
    """The 32 bytes themselves."""

    def __post_init__(self) -> None:
        if len(self.secret) != _KEY_SIZE:
            raise ValueError(f"a symmetric key has {_KEY_SIZE} bytes, not {len(self.secret)}")

    @classmethod
    def generate(cls) -> Self:
        """Return a new key from the system's random source."""
        return cls(secrets.token_bytes(_KEY_SIZE))

    @classmethod
    def load(cls, path: Path | str, *, exposed: bool = False) -> Self:
        """Read the key file `path`; with `exposed`, even one that other users can read, such as a copy on a USB stick.

        Raises:
            KeyMissingError: there is no such file.
            KeyExposedError: others than its owner may read or change it.
            KeyDamagedError: it does not hold exactly one sound key.
        """
        path = Path(path)
        try:
            return cls.from_text(_read_private(path, exposed=exposed))
        except KeyDamagedError as error:
            raise KeyDamagedError(f"{path}: {error}") from None

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the key in the text of a key file. Raises KeyDamagedError; the message never holds the text."""
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if len(lines) != 1:
            raise KeyDamagedError(f"a key file holds one key, this one has {len(lines)} lines that could be keys")
        try:
            hrp, secret = bech32.decode(lines[0])
        except ValueError as error:
            raise KeyDamagedError(f"the key cannot be read: {error}") from None
        if hrp != _HRP or len(secret) != _KEY_SIZE:
            raise KeyDamagedError("the key is of a kind that this version does not know")
        return cls(secret)

    def to_text(self) -> str:
        """Return the text of a key file."""
        return (
            "# smp key file: whoever has it can read what was encrypted with it. Keep a copy in a safe place.\n"
            f"# created: {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n"
            f"# key id: {self.id}\n"
            f"{bech32.encode(_HRP, self.secret).upper()}\n"
        )

    def save(self, path: Path | str) -> None:
        """Write a key file, mode 0600. Raises ExistsError rather than replace anything."""
        write_file(Path(path), self.to_text().encode())

    @property
    def id(self) -> str:
        """16 hexadecimal digits that name the key and tell nothing else about it."""
        return derive(self.secret, b"smp.v1 key id", KEY_ID_SIZE).hex()

    @property
    def content_key(self) -> bytes:
        """A key of 32 bytes under which equal files get equal ids in an index, and for nothing else."""
        return derive(self.secret, b"smp.v1 content id", _KEY_SIZE)

    def pseudonym_key(self, project: str) -> bytes:
        """Return the key of 32 bytes under which patients and UIDs get new names in `project`, any text; for nothing else."""
        return derive(self.secret, b"smp.v1 pseudonyms " + project.encode("utf-8", "surrogateescape"), _KEY_SIZE)

    def wrap(self, file_key: bytes, prefix: bytes) -> Stanza:
        """Return the stanza of type 1 that holds `file_key` for this key; see Recipient."""
        encryptor = Cobblestone256Encryptor(self.secret, _stanza_context(prefix))
        wrapped = encryptor.update(file_key) + encryptor.finalize()
        return Stanza(KEY_FILE_STANZA, bytes.fromhex(self.id) + wrapped)

    def unwrap(self, stanza: Stanza, prefix: bytes) -> bytes | None:
        """Return the file key in `stanza`, or None if it is for somebody else; see Identity."""
        if stanza.type != KEY_FILE_STANZA:
            return None
        key_id, wrapped = stanza.body[:KEY_ID_SIZE], stanza.body[KEY_ID_SIZE:]
        if not hmac.compare_digest(key_id, bytes.fromhex(self.id)):
            return None
        if len(wrapped) != _WRAPPED_SIZE:
            raise HeaderDamagedError("the wrapped key in the header of the file has the wrong length")
        decryptor = Cobblestone256Decryptor(self.secret, _stanza_context(prefix))
        try:
            return decryptor.update(wrapped) + decryptor.finalize()
        except InvalidTag:
            raise HeaderDamagedError("the wrapped key in the header of the file was changed") from None


def _stanza_context(prefix: bytes) -> bytes:
    return b"smp.v1 stanza\x00" + prefix


def refuse_exposed(path: Path, mode: int) -> None:
    """Raise KeyExposedError if `mode` lets users other than the owner in."""
    if mode & _OTHERS:
        fix = "700" if stat.S_ISDIR(mode) else "600"
        raise KeyExposedError(f"{path} is open to other users (mode {mode & 0o777:03o})", hint=f"chmod {fix} {path}")


def _read_private(path: Path, *, exposed: bool) -> str:
    """Return the text of a small file that, unless `exposed`, nobody but its owner may touch."""
    try:
        file = open_source(path)
    except MissingError:
        raise KeyMissingError(f"there is no key file {path}") from None
    with file, os_errors(f"read {path}"):
        if not exposed:
            refuse_exposed(path, os.fstat(file.fileno()).st_mode)
        buffer = bytearray(_MAX_KEY_FILE + 1)
        size = read_full(file, memoryview(buffer))
    if size > _MAX_KEY_FILE:
        raise KeyDamagedError("it is too large to be a key file")
    return buffer[:size].decode("ascii", "replace")
