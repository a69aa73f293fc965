"""Opening the archive in the user's stores, and recording what is done with it."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.chosen_keys import decryption_keys, encryption_key
from secure_media_processor.cli.ui import counted
from secure_media_processor.cloud.archive import Archive, Keys
from secure_media_processor.cloud.stores import StoreBook
from secure_media_processor.cloud.wrappers import Patience
from secure_media_processor.core.config import get_settings
from secure_media_processor.core.keystore import Keystore
from secure_media_processor.errors import CredentialsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from secure_media_processor.core.keys import SymmetricKey

# With several stores one that does not answer is passed over soon: the others have everything, and repair is for the rest.
_ONE_OF_SEVERAL = Patience(deadline=10.0)
_ONLY_ONE = Patience(deadline=120.0)


@dataclass(frozen=True, slots=True)
class Opened:
    """What an archive is opened with."""

    targets: Sequence[str]
    """Names of the stores that new files go to; all if there are none."""
    require: int | None
    """How many of these must take a file; -1 for all, None for the majority."""
    key_file: Path | None

    @contextmanager
    def archive(self) -> Iterator[Archive]:
        """Open the archive in the user's stores, and close the stores at the end."""
        settings = get_settings()
        stores = StoreBook(settings.stores).stores()
        if not stores:
            raise UsageError(
                "there is no store yet", hint="`smp cloud add` names one, such as: smp cloud add nas local folder=/mnt/nas"
            )
        targets = tuple(dict.fromkeys(self.targets))
        there = len(targets or stores)
        if self.require is not None and self.require > there:
            raise UsageError(f"--require {self.require}: the files are to go to {counted(there, 'store')}")
        key = encryption_key(self.key_file)
        older = _older_content_keys(key) if self.key_file is None else []
        keys = Keys([key], [key, *decryption_keys(self.key_file)], key.content_key, older)
        quorum = there if self.require == -1 else self.require
        with ExitStack() as stack:
            patience = _ONE_OF_SEVERAL if len(stores) > 1 else _ONLY_ONE
            connectors = {store.name: stack.enter_context(store.open(patience)) for store in stores}
            labels = {store.name: store.label for store in stores}
            yield Archive(connectors, keys, settings.cloud_state, labels=labels, targets=targets, quorum=quorum)


def open_archive(key_file: Path | None) -> AbstractContextManager[Archive]:
    """Open the archive in all the user's stores; they are closed at the end of the block."""
    return Opened((), None, key_file).archive()


@contextmanager
def recorded_for(action: str, names: Sequence[str], *, dry_run: bool = False) -> Iterator[None]:
    """Record what the block does with the files `names`, and how it ends. What only would be done is not recorded."""
    if dry_run:
        yield
        return
    with recorded(action) as operation:
        if len(names) == 1 and names[0]:
            operation.object = names[0].encode("utf-8", "surrogatepass")
        yield


def _older_content_keys(primary: SymmetricKey) -> list[bytes]:
    """Return the content keys of the other keys in the keystore: what was stored for these is to be found by their means."""
    settings = get_settings()
    if settings.key_file:
        return []
    keystore, found = Keystore(settings.keystore), []
    for entry in keystore.entries():
        with suppress(CredentialsError):  # a key that is damaged opens nothing either, and `smp doctor` tells of it
            if entry.id != primary.id:
                found.append(keystore.load(entry.id).content_key)
    return found
