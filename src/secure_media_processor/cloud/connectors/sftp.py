"""A folder on a server that is reached by SSH: a NAS, a machine of the institute, a rented box.

What SFTP cannot do, and this connector does not hide:

* It knows no digests: native_digest reads the object. It cannot sync a folder, so a power cut at the server may lose the newest
  names, never half an object.
* Most failures have one and the same number, without a reason. They count as transient, unless the disk is found to be full.
* A put whose line broke leaves a hidden file, which no listing shows and nobody removes.
* Deleting an object leaves its folders, and a key cannot be the name of a folder.
* On a server without hard links (`hardlink@openssh.com`) a rename must refuse a taken name, as the protocol says. Some servers
  replace; a put looks first, which does not help against another writer at the same moment.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, TypeVar

from secure_media_processor.cloud.connectors.base import Capabilities, CloudConnector, ObjectInfo
from secure_media_processor.cloud.connectors.ssh_session import PIECE, SPACE, SSH_PORT, SSHServer, SSHSession
from secure_media_processor.cloud.digests import Digester, Digests, checked_parts
from secure_media_processor.cloud.paths import check_key
from secure_media_processor.core.files import PRIVATE_FILE, PRIVATE_FOLDER
from secure_media_processor.errors import (
    ExistsError,
    MissingError,
    NoSpaceError,
    SmpError,
    StoreAbsentError,
    TransientError,
    UsageError,
)

# ssh_session has said so if asyncssh is missing.
import asyncssh  # isort: skip
from asyncssh.constants import FILEXFER_TYPE_DIRECTORY, FILEXFER_TYPE_REGULAR  # isort: skip

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    from asyncssh import SFTPClient, SFTPClientFile

    from secure_media_processor.cloud.connectors.base import ResumeRecord

_T = TypeVar("_T")

# As LocalConnector has it: a folder without it is a disk that the server has not mounted, not an empty store.
_MARK = ".smp-store"
_SYNCING = 10  # times the usual patience: all of a large object may have to reach the disk
_FOLDERS_AT_ONCE = 16
_MAX_NAMES = 5_000_000  # in one listing: what a server sends must not fill our memory


class SFTPConnector(CloudConnector):
    """A folder on an SSH server. Each object is the file of its key, so that any other tool can read it too.

    One connection serves all threads. It is made when it is first needed, and again after it broke.
    """

    def __init__(
        self,
        host: str,
        folder: str,
        *,
        port: int = SSH_PORT,
        user: str | None = None,
        identity: Path | str | None = None,
        known_hosts: Path | str = "~/.ssh/known_hosts",
        before_request: Callable[[], object] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Use the store that `create` made in `folder` of `host`. Nothing is sent until the first call.

        Args:
            host: Name or address.
            folder: Where the objects lie; below the user's home unless it begins with a slash.
            port: Of the SSH server.
            user: At the server; the user's name on this machine unless given.
            identity: File of a private key without a passphrase. Unless given, those of ssh-agent and of ~/.ssh are tried.
            known_hosts: File of host keys, as OpenSSH has it. A server whose key does not stand there is not spoken to.
            before_request: Called before each operation: the place for a rate limiter.
            timeout: Seconds to wait for a connection, and without any answer for one.

        Raises:
            UsageError: `folder` is empty.
        """
        if not folder:
            raise UsageError("the store needs a folder on the server", hint="such as folder=smp")
        self._host, self._before_request = host, before_request
        self._root = "." if folder in ("~", "~/") else folder.removeprefix("~/").rstrip("/")
        own_key = None if identity is None else Path(identity).expanduser()
        self._session = SSHSession(SSHServer(host, port, user, own_key, Path(known_hosts).expanduser()), timeout)

    def create(self) -> None:
        """Make a store in the folder, which is created if need be. A store that is there already is used as it is.

        Raises CredentialsError or TransientError.
        """
        self._call("make the store", self._mark, marked=False)

    @property
    def capabilities(self) -> Capabilities:
        """SFTP has no digests: they are computed by reading the object."""
        return Capabilities(frozenset({"sha256"}), atomic_create=True, digests_are_stored=False)

    def put(
        self,
        key: str,
        source: Iterable[bytes],
        *,
        digests: Mapping[str, str] | None = None,
        if_absent: bool = True,
        resume: ResumeRecord | None = None,  # noqa: ARG002 - what was cut off is not taken up again
    ) -> ObjectInfo:
        """Store the bytes of `source` under `key`; see CloudConnector. Two parts of 8 MiB are in memory at most."""
        what, path = f"store {key}", self._path(key)
        folder = path.rpartition("/")[0]
        temporary = f"{folder}/.{token_hex(8)}.smp-part"
        sftp, file = self._call(what, partial(self._begin, temporary))
        try:
            parts = (part for part, _ in checked_parts(source, Digester(digests or ()), digests))
            most = _piece(sftp.limits.max_write_len)
            pieces = (part[start : start + most] for part in parts for start in range(0, len(part), most))
            # A part is a multiple of a piece, so only the last piece is shorter.
            writes = (partial(_write, sftp, file, piece, number * most, folder) for number, piece in enumerate(pieces))
            size = sum(self._session.pipelined(sftp, what, writes))
            finish = partial(_finish, sftp, file, temporary, path, if_absent=if_absent)
            self._session.step(sftp, what, finish, patience=_SYNCING)
        except BaseException:
            with suppress(SmpError):  # with the line gone the file stays, and the first error is the one to tell
                self._session.step(sftp, what, partial(_discard, sftp, file, temporary))
            raise
        return ObjectInfo(key, size)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of an object; see CloudConnector."""
        what, path = f"fetch {key}", self._path(key)

        async def begin(sftp: SFTPClient) -> tuple[SFTPClient, SFTPClientFile, int]:
            info = await _find(sftp, path, key)
            return sftp, await sftp.open(path, "rb", block_size=0), info.size

        sftp, file, size = self._call(what, begin)
        end = size if length is None else min(size, offset + length)
        most = _piece(sftp.limits.max_read_len)
        ranges = ((start, min(most, end - start)) for start in range(offset, end, most))
        reads = (partial(_read, file, start, count) for start, count in ranges)
        try:
            yield from self._session.pipelined(sftp, what, reads)
        finally:
            with suppress(SmpError):  # the bytes were read, or a worse error is on its way
                self._session.step(sftp, what, file.close)

    def stat(self, key: str) -> ObjectInfo:
        """Return size and key of an object; see CloudConnector."""
        path = self._path(key)
        return self._call(f"find {key}", lambda sftp: _find(sftp, path, key))

    def delete(self, key: str) -> None:
        """Remove an object; see CloudConnector. Its folder stays: somebody else may be putting another object into it."""
        path = self._path(key)

        async def remove(sftp: SFTPClient) -> None:
            await _find(sftp, path, key)
            await sftp.remove(path)

        self._call(f"remove {key}", remove)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with `prefix`, in order of key; see CloudConnector."""
        start = prefix.rpartition("/")[0]
        if start and not _is_key(start):
            return  # no key begins so
        found = self._call("list the objects", partial(_walk, root=self._root, prefix=prefix, heard=self._session.heard))
        for key in sorted(found):
            yield ObjectInfo(key, found[key])

    def native_digest(self, key: str) -> Digests:
        """Return the SHA-256 of an object, computed now; see CloudConnector."""
        hasher = sha256()
        for block in self.get(key):
            hasher.update(block)
        return {"sha256": hasher.hexdigest()}

    def close(self) -> None:
        """Close the connection. What other threads have begun fails."""
        self._session.close()

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _call(self, what: str, act: Callable[[SFTPClient], Awaitable[_T]], *, marked: bool = True) -> _T:
        """Look for the mark of the store, and `act`."""
        if self._before_request is not None:
            self._before_request()

        async def look_and_act(sftp: SFTPClient) -> _T:
            if marked:
                await self._refuse_absent_store(sftp)
            return await act(sftp)

        return self._session.call(what, look_and_act)

    async def _mark(self, sftp: SFTPClient) -> None:
        await _make_folders(sftp, self._root)
        with suppress(asyncssh.SFTPFailure):  # the store was made before: that is what was asked for
            async with sftp.open(f"{self._root}/{_MARK}", "xb", asyncssh.SFTPAttrs(permissions=PRIVATE_FILE)) as file:
                await file.write(b"smp store, version 1\n")
        await self._refuse_absent_store(sftp)

    async def _refuse_absent_store(self, sftp: SFTPClient) -> None:
        try:
            await sftp.lstat(f"{self._root}/{_MARK}")
        except asyncssh.SFTPNoSuchFile:
            raise StoreAbsentError(f"there is no store in {self._root} on {self._host}") from None

    async def _begin(self, temporary: str, sftp: SFTPClient) -> tuple[SFTPClient, SFTPClientFile]:
        """Open a new hidden file, in a new folder if need be."""
        open_new = partial(sftp.open, temporary, "xb", asyncssh.SFTPAttrs(permissions=PRIVATE_FILE), block_size=0)
        try:
            return sftp, await open_new()
        except asyncssh.SFTPNoSuchFile:
            await _make_folders(sftp, temporary.rpartition("/")[0])
        try:
            return sftp, await open_new()
        except asyncssh.SFTPNoSuchFile:
            raise ExistsError("an object has the name of a folder of this key", hint="choose another key") from None


def _is_key(text: str) -> bool:
    try:
        check_key(text)
    except UsageError:
        return False
    return True


async def _find(sftp: SFTPClient, path: str, key: str) -> ObjectInfo:
    """Return what there is under `key`. A folder, or a symbolic link, which may lead anywhere, is no object."""
    attrs = await sftp.lstat(path)
    if attrs.type != FILEXFER_TYPE_REGULAR or attrs.size is None:
        raise MissingError(f"there is no object {key}, but a folder or a link", hint="check the key")
    return ObjectInfo(key, attrs.size)


def _piece(most: int) -> int:
    """Return how much to ask for at once of a server that takes `most`: a power of two, so that parts are multiples of it."""
    return min(PIECE, 1 << max(12, most.bit_length() - 1))


async def _read(file: SFTPClientFile, offset: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        block: bytes = await file.read(count - len(data), offset + len(data))
        if not block:
            raise TransientError("an object became shorter while it was read")
        data += block
    return data


async def _write(sftp: SFTPClient, file: SFTPClientFile, piece: bytes, offset: int, folder: str) -> int:
    try:
        return await file.write(piece, offset)
    except asyncssh.SFTPFailure:
        with suppress(asyncssh.SFTPOpUnsupported):  # then nobody can tell
            space = await sftp.statvfs(folder)
            if space.bavail * space.frsize < len(piece):
                raise NoSpaceError("the disk of the server is full", hint=SPACE) from None
        raise


async def _finish(sftp: SFTPClient, file: SFTPClientFile, temporary: str, path: str, *, if_absent: bool) -> None:
    """Give the complete file its name."""
    with suppress(asyncssh.SFTPOpUnsupported):
        await file.fsync()
    await file.close()
    if not if_absent:
        try:
            await sftp.posix_rename(temporary, path)
        except asyncssh.SFTPFailure:
            if await sftp.isdir(path):
                raise ExistsError("there is a folder of that name already", hint="choose another key") from None
            raise
        return
    try:
        await sftp.link(temporary, path)  # fails if the name is taken; a rename replaces it on some servers
    except (asyncssh.SFTPFailure, asyncssh.SFTPPermissionDenied, asyncssh.SFTPOpUnsupported):
        if await sftp.lexists(path):
            raise ExistsError("there is an object or a folder of that name already") from None
        await sftp.rename(temporary, path)  # no hard links there
    else:
        await sftp.remove(temporary)


async def _discard(sftp: SFTPClient, file: SFTPClientFile, temporary: str) -> None:
    await file.close()
    await sftp.remove(temporary)


async def _make_folders(sftp: SFTPClient, folder: str) -> None:
    """Make `folder`, and those above it that are missing."""
    if folder and not await sftp.isdir(folder):
        await _make_folders(sftp, folder.rpartition("/")[0])
        with suppress(
            asyncssh.SFTPFailure, asyncssh.SFTPNoSuchFile
        ):  # another writer was quicker, or a file has the name: the next step tells
            await sftp.mkdir(folder, asyncssh.SFTPAttrs(permissions=PRIVATE_FOLDER))


async def _walk(sftp: SFTPClient, *, root: str, prefix: str, heard: Callable[[], object]) -> dict[str, int]:
    """Return key and size of the objects whose keys begin with `prefix`. `heard` is called for each name."""
    found: dict[str, int] = {}
    folders = [prefix.rpartition("/")[0]]
    names = 0

    async def scan(folder: str) -> None:
        nonlocal names
        async for entry in sftp.scandir(f"{root}/{folder}"):
            heard()
            names += 1
            if names > _MAX_NAMES:
                raise UsageError(f"the server lists more than {_MAX_NAMES} names", hint="use a folder for smp alone")
            name, attrs = os.fsdecode(entry.filename), entry.attrs
            key = f"{folder}/{name}" if folder else name
            if "/" in name or not _is_key(key):  # `.` and `..`, what a put left behind, or what is not ours
                continue
            if attrs.type == FILEXFER_TYPE_DIRECTORY and key.startswith(prefix[: len(key)]):
                folders.append(key)
            elif attrs.type == FILEXFER_TYPE_REGULAR and key.startswith(prefix) and attrs.size is not None:
                found[key] = attrs.size

    while folders:
        now, folders = folders[:_FOLDERS_AT_ONCE], folders[_FOLDERS_AT_ONCE:]
        for outcome in await asyncio.gather(*map(scan, now), return_exceptions=True):
            # No folder is of that name, or it was removed meanwhile. That the store is there was asked before.
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncssh.SFTPNoSuchFile):
                raise outcome
    return found
