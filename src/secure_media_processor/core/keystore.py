"""The folder of keys: one primary key for new files, all of them for reading. docs/format/keys.md is the contract."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from secure_media_processor.core.files import make_private_folder, os_errors, write_file
from secure_media_processor.core.keys import SymmetricKey, refuse_exposed
from secure_media_processor.errors import KeyDamagedError, KeyMissingError

if TYPE_CHECKING:
    from pathlib import Path

_SUFFIX = ".key"


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
    """Keys in a folder that only its owner can read."""

    folder: Path

    def generate(self, *, primary: bool = False) -> KeyEntry:
        """Make a key. It becomes the primary one if asked for, or if it is the first."""
        make_private_folder(self.folder)
        self._refuse_exposed_folder()
        key = SymmetricKey.generate()
        key.save(self._path(key.id))
        if primary or not self._primary_file.exists():
            write_file(self._primary_file, f"{key.id}\n".encode(), overwrite=True)
        return next(entry for entry in self.entries() if entry.id == key.id)

    def entries(self) -> list[KeyEntry]:
        """Return all keys, sorted by id; none if there is no keystore yet."""
        if not self.folder.exists():
            return []
        self._refuse_exposed_folder()
        primary, exported = self._primary_id(), self._exported()
        with os_errors(f"read {self.folder}"):
            paths = sorted(self.folder.glob(f"*{_SUFFIX}"))
        return [KeyEntry(p.stem, p, p.stem == primary, exported.get(p.stem)) for p in paths]

    def primary(self) -> SymmetricKey:
        """Return the key that new files are encrypted for. Raises KeyMissingError if there is none."""
        for entry in self.entries():
            if entry.primary:
                return self._load(entry)
        raise KeyMissingError(f"there is no primary key in {self.folder}")

    def keys(self) -> list[SymmetricKey]:
        """Return every key, to read with."""
        return [self._load(entry) for entry in self.entries()]

    def export(self, key_id: str, target: Path) -> None:
        """Copy the key `key_id` to the new file `target`, mode 0600, and note when that was done.

        Raises:
            KeyMissingError: there is no such key.
            ExistsError: `target` exists.
        """
        entry = next((entry for entry in self.entries() if entry.id == key_id), None)
        if entry is None:
            raise KeyMissingError(f"there is no key {key_id} in {self.folder}", hint="`smp key list` shows the ids")
        self._load(entry).save(target)
        exported = self._exported() | {key_id: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
        write_file(self._exported_file, json.dumps(exported, sort_keys=True).encode(), overwrite=True)

    @property
    def _primary_file(self) -> Path:
        return self.folder / "primary"

    @property
    def _exported_file(self) -> Path:
        return self.folder / "exported.json"

    def _path(self, key_id: str) -> Path:
        return self.folder / f"{key_id}{_SUFFIX}"

    def _load(self, entry: KeyEntry) -> SymmetricKey:
        key = SymmetricKey.load(entry.path)
        if key.id != entry.id:
            raise KeyDamagedError(f"{entry.path} holds the key {key.id}, not the one that its name says")
        return key

    def _primary_id(self) -> str | None:
        if not self._primary_file.exists():
            return None
        with os_errors(f"read {self._primary_file}"):
            return self._primary_file.read_text("ascii", "replace").strip()

    def _exported(self) -> dict[str, str]:
        if not self._exported_file.exists():
            return {}
        try:
            with os_errors(f"read {self._exported_file}"):
                exported = json.loads(self._exported_file.read_bytes())
            return {str(key_id): str(when) for key_id, when in exported.items()}
        except (ValueError, AttributeError):
            hint = f"delete {self._exported_file} and export the keys again"
            raise KeyDamagedError(f"{self._exported_file} is damaged", hint=hint) from None

    def _refuse_exposed_folder(self) -> None:
        with os_errors(f"read {self.folder}"):
            mode = self.folder.stat().st_mode
        refuse_exposed(self.folder, mode)
