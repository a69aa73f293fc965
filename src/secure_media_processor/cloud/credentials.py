"""Where credentials are kept: in files that only their owner can read, or in the keyring of the operating system.

Either way they are one JSON object. The place of one is told by a text, the option `credentials` of a store: a path, or
``keyring:NAME``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from secure_media_processor.core.private_json import json_object, read_private_json
from secure_media_processor.errors import CredentialsError, MissingError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from keyring.backend import KeyringBackend

_T = TypeVar("_T")

OPTION = "credentials"
"""The option of a store that tells where its credentials are."""
_KEYRING = "keyring"
_SERVICE = "secure-media-processor"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
# They keep nothing, or in a file that everybody can read who gets hold of the disk. Subclasses are no better.
_KEEPS_NOTHING = {"keyring.backends.fail", "keyring.backends.null"}
_PLAIN = {"PlaintextKeyring", "BasicKeyring"}
_UNLOCK = "unlock the keyring, or keep the credentials in a file with mode 0600"


def is_in_keyring(place: str) -> bool:
    """Tell whether `place` means the keyring, and not a file. The file ``keyring`` is ``./keyring``."""
    return place == _KEYRING or place.startswith(f"{_KEYRING}:")


def named(place: str, name: str) -> str:
    """Return `place` with the name of its entry, which is `name` if ``keyring`` is all that was said."""
    return f"{_KEYRING}:{name}" if place == _KEYRING else place


def read_credentials(place: str, *, hint: str) -> dict[str, object]:
    """Return the JSON object at `place`. No message holds anything of it; `hint` says how to get another.

    Raises:
        MissingExtraError: it is in the keyring, and the package keyring is not installed.
        KeyExposedError: other users of this machine can read the file.
        CredentialsError: there is none, it is no JSON object, or the keyring is locked, out of order or not safe.
        FileAccessError: the file cannot be read.
        UsageError: the entry cannot have this name.
    """
    if not is_in_keyring(place):
        return read_private_json(Path(place), hint=hint)
    name = _checked(place.partition(":")[2])
    text = _in_keyring("read from", lambda backend: backend.get_password(_SERVICE, name))
    if text is None:
        kept = f"smp cloud keep-credentials {name}"
        raise CredentialsError(f"the keyring has no credentials called {name}", hint=f"`{kept}` puts them there")
    return json_object(text.encode("utf-8", "surrogatepass"), f"{name} in the keyring", hint)


def read_texts(place: str, names: Collection[str], *, hint: str) -> dict[str, str]:
    """Return the JSON object at `place`, in which each value is a text under one of `names`. Raises as read_credentials."""
    found = read_credentials(place, hint=hint)
    texts = {name: value for name, value in found.items() if isinstance(value, str) and name in names}
    if texts.keys() != found.keys():
        raise CredentialsError(f"{place} may hold {', '.join(sorted(names))}, each a text, and nothing else", hint=hint)
    return texts


def keep_in_keyring(name: str, credentials: dict[str, object]) -> None:
    """Keep `credentials` in the keyring, in place of those that it has of that name.

    Raises:
        MissingExtraError: the package keyring is not installed.
        CredentialsError: the keyring is locked, out of order or not safe.
        UsageError: `name` cannot be one.
    """
    text = json.dumps(credentials)
    _checked(name)
    _in_keyring("write to", lambda backend: backend.set_password(_SERVICE, name, text))
    # Some take anything and keep nothing, or only so many bytes.
    if _in_keyring("read from", lambda backend: backend.get_password(_SERVICE, name)) != text:
        raise CredentialsError("the keyring did not keep the credentials", hint="keep them in a file with mode 0600")


def forget_in_keyring(name: str) -> None:
    """Remove credentials from the keyring. Raises as keep_in_keyring, and MissingError if it has none of that name."""
    _checked(name)
    if _in_keyring("read from", lambda backend: backend.get_password(_SERVICE, name)) is None:
        raise MissingError(f"the keyring has no credentials called {name}", hint="check the name")
    _in_keyring("remove from", lambda backend: backend.delete_password(_SERVICE, name))


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        hint = "1 to 64 letters, digits and . _ @ -, such as keyring:clinic-box"
        raise UsageError("this is no name for credentials in the keyring", hint=hint)
    return name


def _in_keyring(what: str, act: Callable[[KeyringBackend], _T]) -> _T:
    """Return what `act` does with the keyring. Whatever goes wrong with that becomes an error of ours, without its text."""
    try:
        from keyring import errors, get_keyring  # noqa: PLC0415 - 100 ms that only its users pay for
    except ImportError:
        hint = "pip install 'secure-media-processor[keyring]'"
        raise MissingExtraError("keyring is not installed", hint=hint) from None
    try:
        backend = _safe_one(get_keyring())
        if backend is not None:
            return act(backend)
    except errors.KeyringLocked:
        raise CredentialsError(f"cannot {what} the keyring: it is locked", hint=_UNLOCK) from None
    except Exception as error:  # noqa: BLE001 - a backend is somebody's plugin, and fails in ways of its own
        message = f"cannot {what} the keyring: it does not work ({type(error).__name__})"
        raise CredentialsError(message, hint=_UNLOCK) from None
    hint = "start the system's own (Secret Service, KWallet, Keychain), or keep the credentials in a file with mode 0600"
    raise CredentialsError(f"cannot {what} the keyring: there is none that keeps a secret", hint=hint)


def _safe_one(backend: KeyringBackend) -> KeyringBackend | None:
    """Return `backend`, or of a chain the first, if it keeps secrets; None if there is none that does."""
    from keyring.backends.chainer import ChainerBackend  # noqa: PLC0415 - as keyring

    candidates = backend.backends if isinstance(backend, ChainerBackend) else [backend]
    return next((one for one in candidates if not _is_unsafe(one)), None)


def _is_unsafe(backend: KeyringBackend) -> bool:
    return any(kind.__module__ in _KEEPS_NOTHING or kind.__name__ in _PLAIN for kind in type(backend).__mro__)
