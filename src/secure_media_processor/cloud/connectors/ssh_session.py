"""One SFTP session for many threads: made when it is needed, and again after it broke.

All that speaks to the server runs in a thread of its own; the threads that call wait for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from secure_media_processor.core.files import os_errors
from secure_media_processor.core.keys import refuse_exposed
from secure_media_processor.errors import (
    CredentialsError,
    ExistsError,
    MissingError,
    MissingExtraError,
    NoSpaceError,
    SmpError,
    TransientError,
    UsageError,
)

try:
    import asyncssh
    from asyncssh.public_key import get_default_certificate_algs, get_default_public_key_algs
except ImportError as missing:
    raise MissingExtraError("asyncssh is not installed", hint="pip install 'secure-media-processor[sftp]'") from missing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from asyncssh import SFTPClient

_T = TypeVar("_T")

SSH_PORT = 22
PIECE = 128 * 1024  # of one request; OpenSSH takes up to 255 KiB
_IN_FLIGHT = 32  # requests of one transfer that wait for their answers: enough for 100 ms at 40 MB/s


@dataclass(frozen=True, slots=True)
class SSHServer:
    """Where a server is, and what tells it and us apart from others. Holds no secret."""

    host: str
    port: int
    user: str | None
    """The user's name on this machine if None."""
    identity: Path | None
    """File of a private key; those of ssh-agent and of ~/.ssh if None."""
    known_hosts: Path


class SSHSession:
    """An SFTP session that many threads use at once, and that says in our errors what went wrong."""

    def __init__(self, server: SSHServer, timeout: float) -> None:
        """Speak to `server`. `timeout` is in seconds, for a connection, and for the time without any answer."""
        self._server, self._timeout = server, timeout
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        # What follows belongs to the thread.
        self._loop: asyncio.AbstractEventLoop
        self._connecting, self._ending = asyncio.Lock(), asyncio.Event()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._sftp: SFTPClient | None = None
        self._heard = 0.0

    def call(self, what: str, act: Callable[[SFTPClient], Awaitable[_T]]) -> _T:
        """Connect if need be, and `act`. Errors say that `what` could not be done, such as "store scan"."""

        async def connect_and_act() -> _T:
            sftp = await self._connected(what)
            return await self._limited(sftp, what, partial(act, sftp))

        return _result(self._submit(connect_and_act()))

    def step(self, sftp: SFTPClient, what: str, act: Callable[[], Awaitable[_T]], *, patience: int = 1) -> _T:
        """Go on with what `call` began with `sftp`; wait `patience` times as long as usual."""
        return _result(self._submit(self._limited(sftp, what, act, patience=patience)))

    def pipelined(self, sftp: SFTPClient, what: str, acts: Iterable[Callable[[], Awaitable[_T]]]) -> Iterator[_T]:
        """Yield the results of `acts` in order. Some are always under way, so that the line is never idle."""
        pending: deque[Future[_T]] = deque()
        try:
            for act in acts:
                pending.append(self._submit(self._limited(sftp, what, act)))
                if len(pending) == _IN_FLIGHT:
                    yield _result(pending.popleft())
            while pending:
                yield _result(pending.popleft())
        finally:
            for future in pending:
                future.cancel()

    def heard(self) -> None:
        """Note that an answer came. For what has many answers; called in our thread."""
        self._heard = self._loop.time()

    def close(self) -> None:
        """Close the connection. What other threads have begun fails."""
        with self._starting:
            self._closed, thread = True, self._thread
        if thread is not None and thread.is_alive():
            self._loop.call_soon_threadsafe(self._ending.set)
            thread.join()

    def _submit(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Let our thread run `coroutine`; start it if need be."""
        with self._starting:
            if self._closed:
                coroutine.close()
                raise UsageError("the connection was closed", hint="make a new SFTPConnector")
            if self._thread is None:
                runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
                self._loop = runner.get_loop()
                self._thread = threading.Thread(target=self._serve, args=(runner,), name="sftp", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _serve(self, runner: asyncio.Runner) -> None:
        """Run until `close`. What is still under way then is cancelled at the end of the block."""

        async def until_closed() -> None:
            await self._ending.wait()
            if self._connection is not None:
                self._connection.abort()
                await self._connection.wait_closed()

        with runner:
            runner.run(until_closed())

    async def _limited(self, sftp: SFTPClient, what: str, act: Callable[[], Awaitable[_T]], *, patience: int = 1) -> _T:
        """Act, and give up the connection if it breaks, or if for too long no answer to anybody comes.

        A limit for each answer by itself would be too short where many threads share a slow line.
        """
        began = self._loop.time()
        task = asyncio.ensure_future(act())
        try:
            while not task.done():
                left = max(began, self._heard) + patience * self._timeout - self._loop.time()
                if left <= 0:
                    raise TimeoutError
                await asyncio.wait([task], timeout=left)
            self.heard()
            return task.result()
        except (asyncssh.Error, OSError, ValueError) as error:
            if isinstance(error, asyncssh.SFTPError) and not isinstance(error, _NO_ANSWERS):
                raise _from_answer(error, what) from None
            if self._sftp is sftp and self._connection is not None:
                self._connection.abort()
                self._sftp = None
            said = f"cannot {what}: the line to {self._server.host} broke ({type(error).__name__})"
            raise TransientError(said) from None
        finally:
            task.cancel()

    async def _connected(self, what: str) -> SFTPClient:
        """Return the session, a new one if there is none that works."""
        async with self._connecting:
            if self._sftp is None or self._connection is None or self._connection.is_closed():
                self._sftp = None
                try:
                    async with asyncio.timeout(self._timeout):
                        self._connection = await _connect(self._server)
                        self._sftp = await self._connection.start_sftp_client(path_errors="surrogateescape")
                except (asyncssh.Error, OSError, ValueError) as error:
                    if self._connection is not None:
                        self._connection.abort()
                    raise _from_login(error, what, self._server) from None
            return self._sftp


def _result(future: Future[_T]) -> _T:
    try:
        return future.result()
    except CancelledError:
        raise TransientError("the connection was closed meanwhile") from None


async def _connect(server: SSHServer) -> asyncssh.SSHClientConnection:
    """Log in with a key, never with a password, at a server that is known."""
    try:
        known_hosts = asyncssh.read_known_hosts(str(server.known_hosts))
    except (OSError, ValueError) as error:
        said = f"cannot read the host keys in {server.known_hosts} ({type(error).__name__})"
        raise CredentialsError(said, hint=_HOST_KEY) from None
    port = None if server.port == SSH_PORT else server.port
    trusted, authorities, *_ = asyncssh.match_known_hosts(known_hosts, server.host, "", port)
    known = {name for key in trusted for name in key.sig_algorithms}
    kinds = get_default_public_key_algs()
    if authorities:
        kinds = get_default_certificate_algs() + kinds
    options: dict[str, Any] = {}
    if server.user is not None:
        options["username"] = server.user
    if server.identity is not None:
        with os_errors(f"read {server.identity}"):
            refuse_exposed(server.identity, server.identity.stat().st_mode)
        options |= {"client_keys": [str(server.identity)], "agent_path": None}
    return await asyncssh.connect(
        server.host,
        server.port,
        known_hosts=known_hosts,
        # What is known first; the others too, so that a server which now has a key of another kind is found out.
        server_host_key_algs=[name.decode() for name in sorted(kinds, key=lambda name: name not in known)],
        config=None,
        preferred_auth="publickey",
        gss_host=None,
        encryption_algs="^aes256-gcm@openssh.com,aes128-gcm@openssh.com",  # what processors have instructions for
        compression_algs=["none"],  # ciphertext does not shrink
        window=_IN_FLIGHT * PIECE,
        **options,
    )


_HOST_KEY = "compare the server's fingerprint with its administrator's, then write its key there; docs/how-to/sftp.md says how"
_LOG_IN = "put the public key into ~/.ssh/authorized_keys at the server, and the private one into ssh-agent or identity="
_PASSPHRASE = "a key with a passphrase belongs into ssh-agent: `ssh-add FILE`, and no identity= for the store"  # noqa: S105
SPACE = "make room on the server, or raise its quota"
_NO_ANSWERS = (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection, asyncssh.SFTPBadMessage)
_BY_ANSWER: tuple[tuple[tuple[type[asyncssh.SFTPError], ...], type[SmpError], str], ...] = (
    ((asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath), MissingError, "check the key"),
    ((asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect), CredentialsError, "check who owns the folder on the server"),
    ((asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded), NoSpaceError, SPACE),
    ((asyncssh.SFTPFileAlreadyExists,), ExistsError, "choose another key"),
    ((asyncssh.SFTPOpUnsupported,), UsageError, "the server needs OpenSSH's extensions of SFTP to replace an object"),
)


def _from_answer(error: asyncssh.SFTPError, what: str) -> SmpError:
    """Return our error for an answer that is one. What the server wrote into it is not repeated."""
    said = f"cannot {what}: the server says {type(error).__name__}"
    for answers, kind, hint in _BY_ANSWER:
        if isinstance(error, answers):
            return kind(said, hint=hint)
    return TransientError(said, hint="it gives no reason; look whether its disk is full, over quota or broken")


def _from_login(error: Exception, what: str, server: SSHServer) -> SmpError:
    """Return our error for a connection that was not made."""
    said = f"cannot {what}: "
    if isinstance(error, asyncssh.HostKeyNotVerifiable | asyncssh.KeyExchangeFailed):
        said += f"the host key of {server.host} is not the one in {server.known_hosts}, or none is there"
        return CredentialsError(said, hint=_HOST_KEY)
    if isinstance(error, asyncssh.PermissionDenied):
        return CredentialsError(f"{said}{server.host} accepts none of the keys", hint=_LOG_IN)
    if isinstance(error, asyncssh.KeyImportError | asyncssh.KeyEncryptionError):
        said += f"{server.identity} is no private key that can be used as it is"
        return CredentialsError(said, hint=_PASSPHRASE)
    return TransientError(f"{said}{server.host} does not answer as an SFTP server ({type(error).__name__})")
