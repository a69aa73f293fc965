"""A folder as a store: a second disk, a network share, the embedded default."""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Self

from secure_media_processor.cloud.connectors.base import (
    Capabilities,
    CloudConnector,
    ObjectInfo,
    read_blocks,
)
from secure_media_processor.cloud.digests import Digester, Digests, refuse_other
from secure_media_processor.cloud.paths import check_key
from secure_media_processor.core.files import (
    COPY_BLOCK,
    atomic_write,
    make_private_folder,
    os_errors,
    write_file,
)
from secure_media_processor.errors import ExistsError, FileAccessError, MissingError, StoreAbsentError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from secure_media_processor.cloud.connectors.base import ResumeRecord

# Marks the folder of a store. A folder without it is a disk that is not mounted, not an empty store.
_MARK = ".smp-store"


class LocalConnector(CloudConnector):
    """A store in a folder. Each object is the file of its key, so that any other tool can read it too."""

    def __init__(self, folder: Path | str) -> None:
        """Use the store that `create` made in `folder`. Nothing is touched until the first call."""
        self._folder = Path(folder)

    @classmethod
    def create(cls, folder: Path | str) -> Self:
        """Make a store in `folder`, which is created if need be. A store that is there already is used as it is."""
        store = cls(folder)
        make_private_folder(store._folder)
        try:
            write_file(store._folder / _MARK, b"smp store, version 1\n")
        except ExistsError:  # the store was made before: that is what was asked for
            pass
        return store

    @property
    def capabilities(self) -> Capabilities:
        """A folder records no digests: they are computed by reading the file."""
        return Capabilities(frozenset({"sha256"}), atomic_create=True, digests_are_stored=False)

    def put(
        self,
        key: str,
        source: Iterable[bytes],
        *,
        digests: Mapping[str, str] | None = None,
        if_absent: bool = True,
        resume: ResumeRecord | None = None,  # noqa: ARG002 - what was cut off leaves nothing here
    ) -> ObjectInfo:
        """Store the bytes of `source` under `key`; see CloudConnector."""
        path = self._path(key)
        make_private_folder(path.parent)
        with suppress(OSError):  # a folder that earlier objects left empty makes way; if it is none, or not empty, it stays
            path.rmdir()
        digester, size = Digester(digests or ()), 0
        with atomic_write(path, overwrite=not if_absent) as file:
            for block in source:
                digester.update(block)
                size += len(block)
                file.write(block)
            refuse_other(digester.hexdigests(), digests)
        return ObjectInfo(key, size)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of an object; see CloudConnector."""
        path = self._existing(key)
        left = length
        with os_errors(f"read {path}"), path.open("rb") as file:
            file.seek(offset)
            while left is None or left > 0:
                block = file.read(COPY_BLOCK if left is None else min(COPY_BLOCK, left))
                if not block:
                    return
                left = None if left is None else left - len(block)
                yield block

    def stat(self, key: str) -> ObjectInfo:
        """Return size and key of an object; see CloudConnector."""
        path = self._existing(key)
        with os_errors(f"read {path}"):
            return ObjectInfo(key, path.stat().st_size)

    def delete(self, key: str) -> None:
        """Remove an object; see CloudConnector. Its folder stays: somebody else may be putting another object into it."""
        path = self._existing(key)
        with os_errors(f"remove {path}"):
            path.unlink()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with `prefix`, in order of key; see CloudConnector."""
        self._refuse_absent_store()
        with os_errors(f"read {self._folder}"):
            keys = sorted(self._keys(prefix))
        for key in keys:
            with suppress(MissingError, FileAccessError, UsageError):  # deleted meanwhile, a link, or a name that is no key
                yield self.stat(key)

    def native_digest(self, key: str) -> Digests:
        """Return the SHA-256 of an object, computed now; see CloudConnector."""
        hasher = sha256()
        for block in read_blocks(self._existing(key)):
            hasher.update(block)
        return {"sha256": hasher.hexdigest()}

    def _keys(self, prefix: str) -> Iterator[str]:
        for folder, _, names in os.walk(self._folder, onerror=_raise):
            for name in names:
                key = os.path.relpath(os.path.join(folder, name), self._folder)  # noqa: PTH118 - strings, for speed
                if key.startswith(prefix):
                    yield key

    def _path(self, key: str) -> Path:
        """Return where the object `key` is or would be. Raises FileAccessError if a link leads elsewhere."""
        check_key(key)
        self._refuse_absent_store()
        path = self._folder / key
        if path.is_symlink() or not path.parent.resolve().is_relative_to(self._folder.resolve()):
            raise FileAccessError(f"{path} is, or lies behind, a symbolic link")
        return path

    def _existing(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise MissingError(f"there is no object {key} in {self._folder}")
        return path

    def _refuse_absent_store(self) -> None:
        with os_errors(f"read {self._folder}"):
            if not (self._folder / _MARK).is_file():
                raise StoreAbsentError(f"there is no store in {self._folder}")


def _raise(error: OSError) -> None:
    raise error
