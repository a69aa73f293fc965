"""Who can open a container: recipients wrap its file key into stanzas, identities unwrap it again.

A new kind of recipient is a class with these two methods and a stanza type of its own in docs/format/container.md; containers
that use it are still parsed, and opened through their other stanzas, by programs that do not know it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from secure_media_processor.errors import KeyMissingError, WrongKeyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from secure_media_processor.core.container import Header, Stanza

KEY_FILE_STANZA = 1
KEY_ID_SIZE = 8


class Recipient(Protocol):
    """Somebody a container is made for."""

    def wrap(self, file_key: bytes, prefix: bytes) -> Stanza:
        """Return `file_key` (32 bytes) wrapped for this recipient and bound to the 28-byte `prefix` of its container."""


class Identity(Protocol):
    """Somebody who may be able to open a container."""

    def unwrap(self, stanza: Stanza, prefix: bytes) -> bytes | None:
        """Return the file key (32 bytes), or None if `stanza` is not for this identity.

        Raises:
            HeaderDamagedError: it is for this identity, but was changed or moved from another file.
        """


def unwrap_file_key(header: Header, identities: Sequence[Identity]) -> bytes:
    """Return the file key of the container that begins with `header`, which is authenticated on the way.

    Raises:
        KeyMissingError: `identities` is empty.
        WrongKeyError: no stanza is for any of them.
        HeaderDamagedError: a stanza or the header was changed.
    """
    if not identities:
        raise KeyMissingError("there is no key to decrypt with")
    for stanza in header.stanzas:
        for identity in identities:
            file_key = identity.unwrap(stanza, header.prefix)
            if file_key is not None:
                header.authenticate(file_key)
                return file_key
    raise WrongKeyError(f"none of the keys at hand opens this file; it was encrypted for {_describe(header.stanzas)}")


def _describe(stanzas: Sequence[Stanza]) -> str:
    ids = [stanza.body[:KEY_ID_SIZE].hex() for stanza in stanzas if stanza.type == KEY_FILE_STANZA]
    others = len(stanzas) - len(ids)
    named = [f"key {key_id}" for key_id in ids]
    return ", ".join(named + ([f"{others} of kinds that this version does not know"] if others else []))
