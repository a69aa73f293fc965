"""Azure Blob Storage, and servers that speak its protocol.

Microsoft's SDK is used for single requests; parts, parallelism and digests are ours. What Azure cannot do, and this connector
does not hide:

* For an object of several blocks it computes no hash: the Content-MD5 that it shows is what the writer claimed. So it proves
  nothing, and native_digest reads the object. On the way in each block is checked: the service compares the MD5 sent with it.
* Blocks that were sent and never committed cannot be removed. They are under no key and nobody can read them. The service drops
  them after a week, or when the next object is stored under that key.
"""

from __future__ import annotations

import io
import itertools
import logging
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from secure_media_processor.cloud.connectors.base import Capabilities, CloudConnector, ObjectInfo
from secure_media_processor.cloud.digests import PART_SIZE, Digester, Digests, PartSource, checked_parts
from secure_media_processor.cloud.paths import check_key
from secure_media_processor.errors import (
    CredentialsError,
    ExistsError,
    IntegrityError,
    MissingError,
    MissingExtraError,
    NoSpaceError,
    SmpError,
    ThrottledError,
    TransientError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from secure_media_processor.cloud.connectors.azure_access import AzureAccess
    from secure_media_processor.cloud.connectors.base import ResumeRecord

# What Azure allows in one object; with blocks of 8 MiB the largest has 390 GiB.
_MAX_BLOCKS = 50_000
# Blocks on their way at once. More does not help one object, and each takes 8 MiB of memory.
_PARALLEL_BLOCKS = 4
# Bytes handed to the socket at once; an object of no more goes in one request.
_SEND = 1 << 20
# How often the SDK repeats a block that met a broken line or a 5xx: the source of a put can be read only once, and a block can
# be sent twice. So it does with a range whose answer breaks off. A commit is not repeated: "it exists" would mean nothing then.
_RETRIES = 2
_CONTAINER = re.compile(r"[a-z0-9](-?[a-z0-9]){2,62}")


class AzureBlobConnector(CloudConnector):
    """One container of a storage account, or the part of it under a prefix. Each object is a block blob."""

    def __init__(
        self,
        container: str,
        access: AzureAccess,
        *,
        prefix: str = "",
        before_request: Callable[[], object] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Prepare a client; nothing is sent until the first call, and then to nobody but the endpoint in `access`.

        Args:
            container: Its name. It must exist.
            access: To the account.
            prefix: Put before every key, such as "backup/"; also keeps other objects in the container out of sight.
            before_request: Called before each HTTP request, repeated ones included: the place for a rate limiter.
            timeout: Seconds to wait for a connection, and for each part of an answer.

        Raises:
            MissingExtraError: the SDK is not installed.
            UsageError: this is no name of a container.
        """
        if not _CONTAINER.fullmatch(container):
            raise UsageError("this is no name of a container", hint="3 to 63 lower-case letters, digits and single hyphens")
        self._prefix = prefix
        self._container = _client(container, access, before_request, timeout)

    @property
    def capabilities(self) -> Capabilities:
        """Azure keeps no hash that it has computed itself: the object is read for one."""
        return Capabilities(frozenset({"sha256"}), atomic_create=True, digests_are_stored=False)

    def put(
        self,
        key: str,
        source: Iterable[bytes],
        *,
        digests: Mapping[str, str] | None = None,
        if_absent: bool = True,
        resume: ResumeRecord | None = None,
    ) -> ObjectInfo:
        """Store the bytes of `source` under `key`; see CloudConnector. Also raises ThrottledError, and UsageError over 390 GiB.

        With `resume` blocks that the service still has are not sent again. They are found by their names, which say what is in
        them, so the record stays empty.
        """
        blob = self._blob(key)
        digester = Digester({"md5", *(digests or ())})
        parts = checked_parts(source, digester, digests)
        first, is_last = next(parts)
        if is_last and len(first) <= _SEND:
            with _our_errors(f"store {key}"):
                blob.upload_blob(first, overwrite=not if_absent, validate_content=True, content_settings=_settings(digester))
            return ObjectInfo(key, len(first))
        there = _blocks_of(blob, key) if resume is not None else frozenset()
        rest = itertools.chain([first], (part for part, _ in parts))
        names, size = _send_blocks(blob, key, rest, source if isinstance(source, PartSource) else None, there)
        with _our_errors(f"store {key}"):
            _commit(blob, names, _settings(digester), if_absent=if_absent)
        return ObjectInfo(key, size)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of an object, fetched 8 MiB a request; see CloudConnector. Also raises ThrottledError.

        IntegrityError if the object is replaced meanwhile.
        """
        blob = self._blob(key)
        if length == 0:  # no range of HTTP says that
            self.stat(key)
            return
        with suppress(_RangeError), _our_errors(f"fetch {key}", reading=True):  # the object ends before `offset`
            yield from blob.download_blob(offset=offset, length=length, max_concurrency=1, decompress=False).chunks()

    def stat(self, key: str) -> ObjectInfo:
        """Return what Azure knows of an object; see CloudConnector. Also raises ThrottledError."""
        blob = self._blob(key)
        with _our_errors(f"find {key}"):
            return ObjectInfo(key, int(blob.get_blob_properties().size))

    def delete(self, key: str) -> None:
        """Remove an object; see CloudConnector. With soft delete or versions Azure keeps it until their rules remove it."""
        blob = self._blob(key)
        with _our_errors(f"delete {key}"):
            blob.delete_blob()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with `prefix`, in order of key; see CloudConnector. Also raises ThrottledError."""
        with _our_errors("list the objects"):
            for found in self._container.list_blobs(name_starts_with=self._prefix + prefix or None):
                yield ObjectInfo(found.name.removeprefix(self._prefix), int(found.size))

    def native_digest(self, key: str) -> Digests:
        """Return the SHA-256 of an object, computed from what Azure sends now; see CloudConnector."""
        digester = Digester(self.capabilities.native_digests)
        for block in self.get(key):
            digester.update(block)
        return digester.hexdigests()

    def close(self) -> None:
        """Close the connections."""
        self._container.close()

    def _blob(self, key: str) -> Any:
        return self._container.get_blob_client(self._prefix + check_key(key))


def _send_blocks(
    blob: Any, key: str, parts: Iterable[bytes], source: PartSource | None, there: frozenset[str]
) -> tuple[list[str], int]:
    """Send the parts that are not `there`, some at a time; return the names of all in order, and how many bytes they have."""
    alive = None if source is None else source.alive
    names: list[str] = []
    size = 0
    pending: deque[Future[object]] = deque()
    with ThreadPoolExecutor(_PARALLEL_BLOCKS, thread_name_prefix="azure-block") as pool:
        for number, part in enumerate(parts):
            if number == _MAX_BLOCKS:
                raise UsageError(f"an object of more than {_MAX_BLOCKS * PART_SIZE >> 30} GiB cannot be stored in Azure")
            digest = sha256(part).digest() if source is None else source.sha256_of(number)
            # The name tells the content, so neither a cut-off put nor another writer of the same key can lend us a wrong block.
            name = f"{number:05d}{digest.hex()}"[:64]  # all must be of one length, and no longer
            names.append(name)
            size += len(part)
            if name in there:
                continue
            if len(pending) == _PARALLEL_BLOCKS:
                pending.popleft().result()
            pending.append(pool.submit(_send_block, blob, key, name, _Body(part, alive), len(part)))
        for sent in pending:
            sent.result()
    return names, size


def _send_block(blob: Any, key: str, name: str, body: _Body, size: int) -> None:
    with _our_errors(f"store {key}"):
        blob.stage_block(name, body, size, validate_content=True, retry_total=_RETRIES)


def _blocks_of(blob: Any, key: str) -> frozenset[str]:
    """Return the names of the blocks that the service has for an object."""
    try:
        with _our_errors(f"find what is there of {key}"):
            return frozenset(block.id for blocks in blob.get_block_list("all") for block in blocks)
    except MissingError:  # neither an object nor a block; if it is the container, the first block says so
        return frozenset()


def _commit(blob: Any, names: Iterable[str], settings: Any, *, if_absent: bool) -> None:
    """Make an object of blocks, if none is there or it may be replaced."""
    from azure.core import MatchConditions  # noqa: PLC0415 - see _client
    from azure.storage.blob import BlobBlock  # noqa: PLC0415

    condition = {"match_condition": MatchConditions.IfMissing} if if_absent else {}
    blob.commit_block_list([BlobBlock(name) for name in names], content_settings=settings, validate_content=True, **condition)


def _settings(digester: Digester) -> Any:
    """Return the headers that are kept with an object: the MD5 is for other programs, which look at it after a download."""
    from azure.storage.blob import ContentSettings  # noqa: PLC0415 - see _client

    md5 = bytearray.fromhex(digester.hexdigests()["md5"])
    return ContentSettings(content_type="application/octet-stream", content_md5=md5)


class _Body(io.BytesIO):
    """The bytes of a request, read in large pieces: http.client asks for 16 KiB at a time, and sends what it gets."""

    def __init__(self, data: bytes, alive: Callable[[], object] | None) -> None:
        super().__init__(data)
        self._alive = alive

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, more than `size` if that is little."""
        if self._alive is not None:
            self._alive()  # what was read before has gone out
        return super().read(size if size is None or size < 0 else max(size, _SEND))


def _client(container: str, access: AzureAccess, before_request: Callable[[], object] | None, timeout: float) -> Any:
    try:
        import requests  # noqa: PLC0415 - comes with the SDK
        from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential  # noqa: PLC0415
        from azure.core.pipeline.transport import RequestsTransport  # noqa: PLC0415
        from azure.storage.blob import ContainerClient, LinearRetry  # noqa: PLC0415 - half a second that only Azure pays for
    except ImportError as error:
        hint = "pip install 'secure-media-processor[azure]'"
        raise MissingExtraError("azure-storage-blob is not installed", hint=hint) from error
    credential: AzureNamedKeyCredential | AzureSasCredential
    if access.key:
        credential = AzureNamedKeyCredential(access.account, access.key)
    else:
        credential = AzureSasCredential(access.sas_token)
        logging.getLogger("urllib3.connectionpool").addFilter(_hide_signature)
    session = requests.Session()
    # Without an authentication of its own, requests would replace our signature by what ~/.netrc has for the host.
    session.auth = lambda request: request
    return ContainerClient(
        access.endpoint,
        container,
        credential=credential,
        transport=RequestsTransport(session=session, connection_timeout=timeout, read_timeout=timeout),
        retry_policy=LinearRetry(backoff=1, random_jitter_range=1, retry_total=0),
        permit_redirects=False,  # they may lead to anybody
        raw_request_hook=(lambda _request: before_request()) if before_request is not None else None,
        max_single_get_size=PART_SIZE,
        max_chunk_get_size=PART_SIZE,
    )


def _hide_signature(record: logging.LogRecord) -> bool:
    """Take the signature of a SAS token, which stands in the address, out of what urllib3 logs of each request."""
    if isinstance(record.args, tuple):
        record.args = tuple(re.sub(r"sig=[^&\s]+", "sig=…", arg) if isinstance(arg, str) else arg for arg in record.args)
    return True


class _RangeError(Exception):
    """A range that begins after the end of the object."""


@contextmanager
def _our_errors(what: str, *, reading: bool = False) -> Iterator[None]:
    """Turn the SDK's errors into ours. Their texts are not repeated: they hold addresses, and with them SAS tokens."""
    from azure.core.exceptions import AzureError, HttpResponseError  # noqa: PLC0415 - see _client

    try:
        yield
    except HttpResponseError as error:
        raise _from_answer(error.response, what, reading=reading) from None
    except AzureError as error:
        raise TransientError(f"cannot {what}: the Azure server does not answer ({type(error).__name__})") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # an answer without what every answer has
        raise TransientError(f"cannot {what}: the Azure server's answer makes no sense ({type(error).__name__})") from None


def _from_answer(answer: Any, what: str, *, reading: bool) -> SmpError | _RangeError:
    """Return our error for an answer that is one; None is an answer that broke off."""
    status = 0 if answer is None else int(answer.status_code)
    code = "" if answer is None else str(answer.headers.get("x-ms-error-code") or "")
    said = f"cannot {what}: Azure says {code or status}" if status else f"cannot {what}: the answer of Azure broke off"
    if status == _NOT_IN_RANGE:
        return _RangeError()
    if status == _NOT_FOUND:
        hint = "make the container, or check its name" if code == "ContainerNotFound" else "check the container and the key"
        return MissingError(said, hint=hint)
    if code in ("BlobAlreadyExists", "ConditionNotMet", "UnmodifiedSinceConditionNotMet"):
        if reading:  # we ask for the rest of what we have begun
            return IntegrityError(f"cannot {what}: it was replaced meanwhile", hint="run the same command again")
        return ExistsError(f"cannot {what}: there is an object of that key already")
    if code == "Md5Mismatch":
        return IntegrityError(f"cannot {what}: the bytes changed on the way ({code})", hint="run the same command again")
    if code == "ServerBusy" or status == _TOO_MANY:
        after = str(answer.headers.get("retry-after") or "")
        return ThrottledError(said, retry_after=float(after) if after.isdigit() else None)
    if status == _INSUFFICIENT_STORAGE:
        return NoSpaceError(said, hint="make room in the account, or raise its quota")
    if status in _DENIED or code == "InvalidAuthenticationInfo":
        hint = "check the key or SAS token, that it may read, write, delete and list, and the clock"
        return CredentialsError(said, hint=hint)
    # The last: another writer of the same key has taken the blocks away.
    may_pass = status >= _SERVER_ERROR or status < _REDIRECT or code == "InvalidBlockList"
    return TransientError(said) if may_pass else UsageError(said)


_TOO_MANY, _INSUFFICIENT_STORAGE, _SERVER_ERROR, _REDIRECT = 429, 507, 500, 300
_NOT_FOUND, _NOT_IN_RANGE, _DENIED = 404, 416, {401, 403}
