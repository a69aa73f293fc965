"""CloudStorageManager: the archive in four calls, under the names that earlier versions of this product had for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from secure_media_processor.cloud.archive import Archive, Keys
from secure_media_processor.cloud.uploading import Source
from secure_media_processor.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from secure_media_processor.cloud.archive import Report
    from secure_media_processor.cloud.connectors.base import CloudConnector
    from secure_media_processor.cloud.index import IndexedFile
    from secure_media_processor.cloud.outcome import Done
    from secure_media_processor.core.keys import SymmetricKey


class CloudStorageManager:
    """Encrypted files in several stores, one call a step. For many files at once, use Archive."""

    def __init__(
        self, stores: Mapping[str, CloudConnector], key: SymmetricKey, folder: Path | str, *, quorum: int | None = None
    ) -> None:
        """Open the archive in `stores`.

        Args:
            stores: By name.
            key: Encrypts what is stored, and opens it.
            folder: Where this machine keeps what it has seen of the index; see Archive.
            quorum: How many stores must take a file; the majority unless given.
        """
        self._archive = Archive(stores, Keys([key], [key], key.content_key), Path(folder), quorum=quorum)

    @property
    def degraded(self) -> Mapping[str, str]:
        """Stores that did not take all they should, and why: `repair` is for that."""
        return self._archive.degraded

    def upload_file(self, path: Path | str, remote_key: str | None = None) -> Done:
        """Encrypt the file `path` on its way into the stores, under `remote_key` or its own name.

        Raises:
            MissingError, FileAccessError, UsageError: the file, or its name.
            QuorumError, CredentialsError, NoSpaceError: too few stores took it.
        """
        path = Path(path)
        (done,) = self._archive.upload([Source(path, remote_key or path.name)])
        if done.error is not None:
            raise done.error
        return done

    def download_file(self, remote_key: str, path: Path | str, *, overwrite: bool = False) -> Done:
        """Write the file `remote_key` to `path`, which appears when every byte of it was verified.

        Raises:
            MissingError: there is no such file.
            ExistsError: `path` exists, with other contents.
            IntegrityError, TransientError: no store gives it intact.
        """
        index, path = self._archive.read_index(), Path(path)
        file = index.file(remote_key)
        if file is None:
            raise MissingError(f"there is no file {remote_key} in the archive")
        (done,) = self._archive.restore([(file, path)], path.parent, index, overwrite=overwrite)
        if done.error is not None:
            raise done.error
        return done

    def delete_file(self, remote_key: str) -> None:
        """Remove the file `remote_key` from all stores. Raises MissingError."""
        self._archive.remove([remote_key])

    def list_files(self, prefix: str = "") -> Sequence[IndexedFile]:
        """Return the file of that name, or the files in that folder; all unless given."""
        return list(self._archive.read_index().files(prefix.strip("/")))

    def verify(self, *, deep: bool = False) -> Report:
        """Check every copy; see Archive.verify."""
        return self._archive.verify(deep=deep)

    def repair(self) -> Report:
        """Copy what a store lacks from one that has it; see Archive.repair."""
        return self._archive.repair()
