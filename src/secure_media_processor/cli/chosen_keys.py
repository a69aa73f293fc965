"""Which keys a command works with: --key, else the setting key_file, else the keystore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_media_processor.core.config import get_settings
from secure_media_processor.core.keys import SymmetricKey
from secure_media_processor.core.keystore import Keystore
from secure_media_processor.errors import KeyMissingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity


def encryption_key(key_file: Path | None) -> SymmetricKey:
    """Return the key to encrypt with: of the key file that is named, or the primary one of the keystore."""
    settings = get_settings()
    chosen = key_file or settings.key_file
    return SymmetricKey.load(chosen) if chosen else Keystore(settings.keystore).primary()


def keys_at_hand(key_file: Path | None) -> Sequence[Identity]:
    """Return what may open a file, for a command that needs it only if it meets an encrypted one: none if there is no key."""
    settings = get_settings()
    if key_file or settings.key_file:
        return decryption_keys(key_file)
    keystore = Keystore(settings.keystore)
    return [keystore] if keystore.entries() else []


def decryption_keys(key_file: Path | None) -> Sequence[Identity]:
    """Return what may open a file: the key file that is named, or the whole keystore."""
    settings = get_settings()
    chosen = key_file or settings.key_file
    if chosen:
        return [SymmetricKey.load(chosen)]
    keystore = Keystore(settings.keystore)
    if not keystore.entries():
        hint = "bring a copy back with `smp key import FILE`, or name it with --key FILE"
        raise KeyMissingError(f"there is no key in {settings.keystore}", hint=hint)
    return [keystore]
