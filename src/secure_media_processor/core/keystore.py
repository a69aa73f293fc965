"""The folder of keys: one primary key for new files, all of them for reading. docs/format/keys.md is the contract."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from secure_media_processor.core.files import locked_folder, make_private_folder, os_errors, write_file
from secure_media_processor.core.keys import SymmetricKey, refuse_exposed
from secure_media_processor.core.recipients import KEY_FILE_STANZA, KEY_ID_SIZE
from secure_media_processor.errors import FileAccessError, KeyDamagedError, KeyMissingError, MissingError

if TYPE_CHECKING:
    from pathlib import Path

    from secure_media_processor.core.container import Stanza

_KEY_FILE = re.compile(r"([0-9a-f]{16})\.key")


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key of a keystore, without its secret."""

    id: str
    path: Path
    primary: bool
    exported: str | None
    """UTC time of the last export, ISO 8601; None if there was none."""


@dataclass(frozen=True, slots=True)
class Keystore:
    """Keys in a folder that only its owner can read. As an identity it opens whatever one of its keys opens."""

    folder: Path

    def generate(self, *, primary: bool = False) -> KeyEntry:
        """Make a key. It becomes the primary one if asked for, or if it is the first."""
        return self.add(SymmetricKey.generate(), primary=primary)

    def add(self, key: SymmetricKey, *, primary: bool = False) -> KeyEntry:
        """Put `key` into the keystore. It becomes the primary one if asked for, or if there is none.

        Raises:
            ExistsError: it is there already.
            KeyExposedError: other users can read the keystore.
        """
        make_private_folder(self.folder)
        self._refuse_exposed_folder()
        with locked_folder(self.folder):
            key.save(self._path(key.id))
            if primary or self._primary_id() is None:
                self._set_primary(key.id)
        return self.find(key.id)

    def make_primary(self, key_id: str) -> KeyEntry:
        """Encrypt new files for the key `key_id` from now on. Raises KeyMissingError if there is no such key."""
        self.find(key_id)
        with locked_folder(self.folder):
            self._set_primary(key_id)
        return self.find(key_id)

    def entries(self) -> list[KeyEntry]:
        """Return all keys, sorted by id; none if there is no keystore yet. Other files in the folder are not looked at."""
        try:
            with os_errors(f"read {self.folder}"):
                names = sorted(path.name for path in self.folder.iterdir())
        except MissingError:
            if self.folder.is_file():
                raise FileAccessError(f"the keystore {self.folder} is not a folder") from None
            return []
        self._refuse_exposed_folder()
        primary, exported = self._primary_id(), self._exported()
        ids = [match[1] for match in map(_KEY_FILE.fullmatch, names) if match]
        return [KeyEntry(i, self._path(i), i == primary, exported.get(i)) for i in ids]

    def find(self, key_id: str) -> KeyEntry:
        """Return the key whose id is, or alone begins with, `key_id`. Raises KeyMissingError if there is not exactly one."""
        found = [entry for entry in self.entries() if key_id and entry.id.startswith(key_id)]
        if len(found) != 1:
            problem = "several keys begin with" if found else "there is no key"
            raise KeyMissingError(f"{problem} {key_id} in {self.folder}", hint="`smp key list` shows the ids")
        return found[0]

    def primary(self) -> SymmetricKey:
        """Return the key that new files are encrypted for. Raises KeyMissingError if there is none."""
        key_id = self._primary_id()
        if key_id is not None:
            self._refuse_exposed_folder()
            return self.load(key_id)
        if self.entries():
            hint = "choose one with `smp key primary ID`; `smp key list` shows the ids"
            raise KeyMissingError(f"none of the keys in {self.folder} is the primary one", hint=hint)
        hint = "make one with `smp key generate`, bring a copy back with `smp key import FILE`, or name one with --key FILE"
        raise KeyMissingError(f"there is no key in {self.folder}", hint=hint)

    def load(self, key_id: str) -> SymmetricKey:
        """Return the key `key_id` (16 digits).

        Raises:
            KeyMissingError: it is not there.
            KeyDamagedError: its file holds no key, or another one.
        """
        path = self._path(key_id)
        key = SymmetricKey.load(path)
        if key.id != key_id:
            raise KeyDamagedError(f"{path} holds the key {key.id}, not the one that its name says")
        return key

    def unwrap(self, stanza: Stanza, prefix: bytes) -> bytes | None:
        """Return the file key in `stanza` if it is for a key of this store; see Identity. Only that key is read."""
        key_id = stanza.body[:KEY_ID_SIZE].hex()
        if stanza.type != KEY_FILE_STANZA or all(entry.id != key_id for entry in self.entries()):
            return None
        return self.load(key_id).unwrap(stanza, prefix)

    def note_export(self, key_id: str) -> None:
        """Remember that the key `key_id` was copied elsewhere just now."""
        with locked_folder(self.folder):
            exported = self._exported() | {key_id: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
            write_file(self.folder / "exported.json", json.dumps(exported, sort_keys=True).encode(), overwrite=True)

    def _path(self, key_id: str) -> Path:
        return self.folder / f"{key_id}.key"

    def _set_primary(self, key_id: str) -> None:
        write_file(self.folder / "primary", f"{key_id}\n".encode(), overwrite=True)

    def _primary_id(self) -> str | None:
        """Return the id in the file `primary`; None if there is no such file, or it names no key that is there."""
        path = self.folder / "primary"
        try:
            with os_errors(f"read {path}"):
                key_id = path.read_text("ascii", "replace").strip()
                return key_id if _KEY_FILE.fullmatch(f"{key_id}.key") and self._path(key_id).exists() else None
        except MissingError:
            return None

    def _exported(self) -> dict[str, str]:
        """Return when each key was exported. A file that cannot be read only means that nobody knows."""
        try:
            exported = json.loads((self.folder / "exported.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return {str(key_id): str(when) for key_id, when in exported.items()} if isinstance(exported, dict) else {}

    def _refuse_exposed_folder(self) -> None:
        with os_errors(f"read {self.folder}"):
            mode = self.folder.stat().st_mode
        refuse_exposed(self.folder, mode)
