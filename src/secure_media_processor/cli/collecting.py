"""The files that `smp upload` and `smp sync` are to store, and what of them cannot be."""

from __future__ import annotations

import os
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from secure_media_processor.cli.names import is_folder, reason
from secure_media_processor.cli.schemas import PassedOver
from secure_media_processor.cli.ui import current
from secure_media_processor.cloud.outcome import Action, Done
from secure_media_processor.cloud.paths import check_key
from secure_media_processor.cloud.stores import StoreBook
from secure_media_processor.cloud.uploading import Source
from secure_media_processor.core.config import get_settings
from secure_media_processor.core.files import os_errors, smp_error_from
from secure_media_processor.errors import FileAccessError, SmpError, UsageError


@dataclass(slots=True)
class Found:
    """Files to store, and what of them cannot be."""

    sources: dict[str, Source] = field(default_factory=dict)
    """Name in the stores → file."""
    failed: dict[str, Done] = field(default_factory=dict)
    """Name in the stores → why it cannot be stored."""
    passed_over: list[PassedOver] = field(default_factory=list)

    def take(self, path: Path, name: str) -> None:
        """Take the file `path`, or the files in the folder, to be stored under `name`. Links in a folder are passed over."""
        name = unicodedata.normalize("NFC", name)
        if not is_folder(path):
            self._take_named(path, name)
            return

        def fail(error: OSError) -> None:
            place = Path(error.filename)
            self._fail(_below(name, path, place), smp_error_from(error, f"read {place}"))

        own = _own_folders()
        for folder, folders, files in os.walk(path, onerror=fail):
            for ours in [one for one in folders if Path(folder, one).resolve() in own]:
                self._pass_over(Path(folder, ours), "it holds keys, records or a store of smp")
                folders.remove(ours)
            folders.sort()
            for found in (Path(folder, entry) for entry in (*sorted(files), *folders)):
                try:
                    mode = found.lstat().st_mode
                except OSError as error:
                    fail(error)
                    continue
                if stat.S_ISREG(mode):
                    self._add(Source(found, _below(name, path, found)))
                elif not stat.S_ISDIR(mode):
                    self._pass_over(found, f"it is a {'symbolic link' if stat.S_ISLNK(mode) else 'pipe or a device'}")

    def _take_named(self, path: Path, name: str) -> None:
        """Take what the user has named, and what is no folder."""
        try:
            check_key(name)
            mode = path.stat().st_mode
        except UsageError as error:
            message = f"{path} cannot be stored as {name!r}: {reason(error)}"
            self._fail(name, UsageError(message, hint="give it another name with --remote-key"))
        except OSError as error:
            self._fail(name, smp_error_from(error, f"read {path}"))
        else:
            if stat.S_ISREG(mode):
                self._add(Source(path, name))
            else:
                message = f"cannot read {path}: it is a pipe or a device"
                self._fail(name, FileAccessError(message, hint="`smp encrypt` takes pipes"))

    def _add(self, source: Source) -> None:
        other = self.sources.setdefault(source.name, source)
        if other is source:
            return
        with os_errors(f"read {source.path}"):
            same = source.path.samefile(other.path)
        if not same:
            message = f"{other.path} and {source.path} would both be stored as {source.name}: one would replace the other"
            raise UsageError(message, hint="upload them one at a time, with --remote-key, or the folder that they are in")

    def _pass_over(self, path: Path, reason: str) -> None:
        current().warn(f"{path} is passed over: {reason}")
        self.passed_over.append(PassedOver(str(path), reason))

    def _fail(self, name: str, error: SmpError) -> None:
        self.failed.setdefault(name, Done(name, Action.FAILED, 0, error))


def _own_folders() -> set[Path]:
    """Return the folders that must never be uploaded: of the keys, of our records, and of stores in folders."""
    settings = get_settings()
    folders = {settings.keystore, settings.cloud_state, settings.audit_log.parent, settings.stores.parent}
    options = [store.options.get("folder", "") for store in StoreBook(settings.stores).stores() if store.kind == "local"]
    return {folder.resolve() for folder in (*folders, *map(Path, filter(None, options)))}


def _below(name: str, folder: Path, path: Path) -> str:
    """Return the name for `path`, which is `folder`, stored as `name`, or below it."""
    inner = path.relative_to(folder).as_posix()
    return name if inner == "." else unicodedata.normalize("NFC", f"{name}/{inner}")
