"""Amazon S3 and whatever speaks its protocol.

boto3's client is used for single requests only. Its transfer manager is not: with `awscrt` installed that may ignore the
endpoint that was configured and speak to AWS, and it does not check what it downloads in ranges. Part size, parallelism and
digests are ours.
"""

from __future__ import annotations

import itertools
import os
import re
from base64 import b64decode, b64encode
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from secure_media_processor.cloud.connectors.base import Capabilities, CloudConnector, ObjectInfo, settled
from secure_media_processor.cloud.digests import PART_SIZE, Digester, Digests, PartSource, checked_parts
from secure_media_processor.cloud.paths import check_key
from secure_media_processor.core.files import COPY_BLOCK
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
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from secure_media_processor.cloud.connectors.base import ResumeRecord

# What S3 allows in one multipart upload; with parts of 8 MiB the largest object has 78 GiB.
_MAX_PARTS = 10_000
# Parts on their way at once. More does not help one object, and each takes 8 MiB of memory.
_PARALLEL_PARTS = 4
# Bytes handed to the socket at once.
_SEND = 1 << 20
# A range of so many bytes is read at once: piece by piece it costs twice the time.
_AT_ONCE = 16 * 1024 * 1024
# Not an ARN: botocore would look for its server by itself. Old buckets, and other servers, allow more than AWS does now.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
# Where botocore finds credentials without asking anybody.
_LOCAL_CREDENTIALS = {"env", "shared-credentials-file", "config-file", "custom-process"}
# The name under which our way of signing is known to botocore; its own is s3v4.
_SIGNATURE = "smp-s3v4"
# Botocore's own attempts for one request; longer pauses and a deadline are the business of the wrapper around a connector.
_ATTEMPTS = 3

_MISSING_CODES = {"404", "NoSuchKey", "NotFound"}
_EXISTS_CODES = {"PreconditionFailed", "ConditionalRequestConflict", "412"}
_DIGEST_CODES = {"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}
_SLOW_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "429"}
_FULL_CODES = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
_NOT_IN_RANGE = {"InvalidRange", "416"}
# They come with a 400. The answer to a HEAD has no body, and so no code but its status; a wrong region can look like that too.
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "InvalidToken"}
_BAD_HEAD = "400"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Access:
    """A key pair, with the token of its session if it is good for a while only.

    The secrets are not shown by repr. Python cannot erase them from memory.

    Raises:
        CredentialsError: a part is missing, or holds a character that it cannot have.
    """

    aws_access_key_id: str = ""
    aws_secret_access_key: str = field(default="", repr=False)
    aws_session_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not (self.aws_access_key_id and self.aws_secret_access_key):
            hint = "it takes both aws_access_key_id and aws_secret_access_key"
            raise CredentialsError("the key pair for S3 is not complete", hint=hint)
        for part in fields(self):
            if not re.fullmatch(r"[!-~]*", getattr(self, part.name)):
                hint = "was a line break read with it?"
                raise CredentialsError(f"the {part.name} for S3 holds a character that it cannot have", hint=hint)


class S3Connector(CloudConnector):
    """One bucket, or the part of it under a prefix."""

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        access: S3Access | None = None,
        session: Any = None,
        conditional_writes: bool = True,
        before_request: Callable[[], object] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Prepare a client; nothing is sent until the first call.

        Credentials come from where the AWS tools look for them: the environment, `~/.aws`, a profile, and on AWS's own
        endpoints the machine's role.

        Args:
            bucket: Its name. It must exist.
            prefix: Put before every key, such as "backup/"; also keeps other objects in the bucket out of sight.
            endpoint_url: Of a server that is not AWS. Then nothing is contacted but this server, or the proxy that HTTP_PROXY
                or HTTPS_PROXY names.
            region: As AWS names it; by default what the AWS settings say, or us-east-1.
            profile: Name of a profile in the AWS settings.
            access: A key pair, to be used in place of all that.
            session: A boto3.Session with credentials from elsewhere; `profile`, `access` and `region` are not
                looked at then.
            conditional_writes: Whether the server honours If-None-Match. Some clones ignore it; then a key is looked up before
                it is written, which is no protection against another writer at the same moment.
            before_request: Called before each HTTP request, repeated ones included: the place for a rate limiter.
            timeout: Seconds to wait for a connection, and for each part of an answer.

        Raises:
            MissingExtraError: boto3 is not installed.
            CredentialsError: there is no such profile, or what it says of credentials does not work.
            UsageError: this is no name of a bucket, or the AWS settings both name an endpoint and say to ignore it.
        """
        if not _BUCKET.fullmatch(bucket):
            raise UsageError("this is no name of a bucket", hint="3 to 63 lower-case letters, digits, dots and hyphens")
        self._bucket, self._prefix, self._conditional = bucket, prefix, conditional_writes
        with _our_errors("connect"):
            self._client = _client(session or _session(profile, region, access), endpoint_url, timeout)
        if before_request is not None:
            self._client.meta.events.register("before-send.s3", lambda **_request: before_request() and None)

    @property
    def capabilities(self) -> Capabilities:
        """S3 checks and keeps SHA-256: of the parts, and of the whole for an object of one part, which tells the same."""
        return Capabilities(frozenset({"sha256-8m"}), atomic_create=self._conditional, digests_are_stored=True)

    def put(
        self,
        key: str,
        source: Iterable[bytes],
        *,
        digests: Mapping[str, str] | None = None,
        if_absent: bool = True,
        resume: ResumeRecord | None = None,
    ) -> ObjectInfo:
        """Store the bytes of `source` under `key`; see CloudConnector. UsageError over 78 GiB."""
        name = self._name(key)
        if if_absent and not self._conditional:
            self._refuse_taken(key)
        condition = {"IfNoneMatch": "*"} if if_absent and self._conditional else {}
        parts = checked_parts(source, Digester(digests or ()), digests)
        outgoing = _Outgoing(source) if isinstance(source, PartSource) else _Outgoing()
        first, is_last = next(parts)
        if is_last:
            checksum = outgoing.checksum(0, first)
            with _our_errors(f"store {key}"):
                self._client.put_object(
                    Bucket=self._bucket, Key=name, Body=_Body(first, outgoing.alive), ChecksumSHA256=checksum, **condition
                )
            return ObjectInfo(key, len(first))
        rest = (part for part, _ in parts)
        return ObjectInfo(key, self._put_parts(key, itertools.chain([first], rest), outgoing, condition, resume))

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of an object; see CloudConnector."""
        name = self._name(key)
        if length == 0:
            self.stat(key)
            return
        last = "" if length is None else str(offset + length - 1)
        byte_range = {"Range": f"bytes={offset}-{last}"} if offset or length is not None else {}
        try:
            with _our_errors(f"fetch {key}"):
                body = self._client.get_object(Bucket=self._bucket, Key=name, **byte_range)["Body"]
                with body:
                    if length is not None and length <= _AT_ONCE:
                        yield body.read()
                    else:
                        yield from body.iter_chunks(COPY_BLOCK)
        except _RangeError:  # the object ends before `offset`
            return

    def stat(self, key: str) -> ObjectInfo:
        """Return what S3 knows of an object; see CloudConnector."""
        name = self._name(key)
        with _our_errors(f"find {key}"):
            head = self._client.head_object(Bucket=self._bucket, Key=name)
        return ObjectInfo(key, int(head["ContentLength"]))

    def delete(self, key: str) -> None:
        """Remove an object; see CloudConnector. In a bucket with versioning the old version stays until its rules remove it."""
        self.stat(key)  # S3 says yes to deleting what is not there
        with _our_errors(f"delete {key}"):
            self._client.delete_object(Bucket=self._bucket, Key=self._name(key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with `prefix`, in order of key; see CloudConnector."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
        with _our_errors("list the objects"):
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield ObjectInfo(entry["Key"].removeprefix(self._prefix), int(entry["Size"]))

    def native_digest(self, key: str) -> Digests:
        """Return the SHA-256 that S3 keeps; see CloudConnector. Where a server keeps none, the object is read for it."""
        name = self._name(key)
        with _our_errors(f"find {key}"):
            head = self._client.head_object(Bucket=self._bucket, Key=name, ChecksumMode="ENABLED")
        kept = _kept_digest(head.get("ChecksumSHA256", ""), int(head["ContentLength"]))
        if kept is not None:
            return kept
        digester = Digester(self.capabilities.native_digests)
        for block in self.get(key):
            digester.update(block)
        return digester.hexdigests()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _put_parts(
        self, key: str, parts: Iterable[bytes], outgoing: _Outgoing, condition: dict[str, str], resume: ResumeRecord | None
    ) -> int:
        """Store an object in a multipart upload and return its size. What is left after an error stands in `resume`."""
        upload, there = self._begin(key, resume)

        def give_up() -> None:
            with suppress(MissingError), _our_errors(f"abort the upload of {key}"):
                self._client.abort_multipart_upload(**upload)

        with settled(resume, give_up):
            sent = self._send_parts(partial(self._send_part, upload, outgoing, there), parts)
            listed = [{"PartNumber": part.number, "ETag": part.etag, "ChecksumSHA256": part.checksum} for part in sent]
            self._complete(key, upload, listed, condition)
        return sum(part.size for part in sent)

    def _complete(
        self, key: str, upload: dict[str, str], parts: Sequence[Mapping[str, object]], condition: dict[str, str]
    ) -> None:
        """Make an object of the parts. If S3 knows the upload no more, an earlier try may have made it: the digest tells."""
        try:
            with _our_errors(f"store {key}"):
                self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **condition)
        except MissingError as error:
            whole = sha256(b"".join(b64decode(str(part["ChecksumSHA256"])) for part in parts)).hexdigest()
            try:
                made = self.native_digest(key).get("sha256-8m") == whole
            except MissingError:
                made = False
            if not made:
                raise TransientError(f"cannot store {key}: S3 knows the upload no more") from error

    def discard(self, key: str, resume: ResumeRecord) -> None:
        """Abort the upload in `resume`; see CloudConnector."""
        begun = dict(resume.load())
        if "upload_id" in begun:
            with suppress(MissingError), _our_errors(f"abort the upload of {key}"):
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._name(key), UploadId=begun["upload_id"])
        resume.save({})

    def _begin(self, key: str, resume: ResumeRecord | None) -> tuple[dict[str, str], Mapping[int, _SentPart]]:
        """Return a multipart upload, the one in `resume` if S3 still has it, and the parts that it has already."""
        name = {"Bucket": self._bucket, "Key": self._name(key)}
        begun = dict(resume.load()) if resume is not None else {}
        if "upload_id" in begun:
            upload = {**name, "UploadId": begun["upload_id"]}
            with suppress(MissingError):  # S3's rules have removed it, or it was completed
                return upload, self._parts_of(key, upload)
        with _our_errors(f"store {key}"):
            answer = self._client.create_multipart_upload(**name, ChecksumAlgorithm="SHA256")
        if resume is not None:
            resume.save({"upload_id": answer["UploadId"]})
        return {**name, "UploadId": answer["UploadId"]}, {}

    def _parts_of(self, key: str, upload: dict[str, str]) -> Mapping[int, _SentPart]:
        with _our_errors(f"find what is there of {key}"):
            pages = self._client.get_paginator("list_parts").paginate(**upload)
            parts = [part for page in pages for part in page.get("Parts", ())]
        return {
            int(part["PartNumber"]): _SentPart(
                int(part["PartNumber"]), part["ETag"], part.get("ChecksumSHA256", ""), int(part["Size"])
            )
            for part in parts
        }

    def _send_parts(self, send: Callable[[int, bytes], _SentPart], parts: Iterable[bytes]) -> Sequence[_SentPart]:
        """Send all parts, some at a time, and return them in order."""
        sent: list[_SentPart] = []
        pending: deque[Future[_SentPart]] = deque()
        with ThreadPoolExecutor(_PARALLEL_PARTS, thread_name_prefix="s3-part") as pool:
            for number, part in enumerate(parts, start=1):
                if number > _MAX_PARTS:
                    raise UsageError(f"an object of more than {_MAX_PARTS * PART_SIZE >> 30} GiB cannot be stored in S3")
                if len(pending) == _PARALLEL_PARTS:
                    sent.append(pending.popleft().result())
                pending.append(pool.submit(send, number, part))
            sent.extend(future.result() for future in pending)
        return sent

    def _send_part(
        self, upload: dict[str, str], outgoing: _Outgoing, there: Mapping[int, _SentPart], number: int, data: bytes
    ) -> _SentPart:
        """Send a part, unless it is `there`."""
        checksum = outgoing.checksum(number - 1, data)
        old = there.get(number)
        # A server that lists no checksum has at least checked it when the part came; a part that is not whole it never lists.
        if old is not None and old.size == len(data) and old.checksum in ("", checksum):
            return _SentPart(number, old.etag, checksum, len(data))
        with _our_errors(f"store {upload['Key'].removeprefix(self._prefix)}"):
            answer = self._client.upload_part(
                **upload, PartNumber=number, Body=_Body(data, outgoing.alive), ChecksumSHA256=checksum
            )
        return _SentPart(number, answer["ETag"], checksum, len(data))

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _refuse_taken(self, key: str) -> None:
        with suppress(MissingError):
            self.stat(key)
            raise ExistsError(f"there is an object {key} already")


@dataclass(frozen=True, slots=True)
class _SentPart:
    number: int
    etag: str
    checksum: str
    """SHA-256, Base64."""
    size: int


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """What the source of a put knows besides its bytes."""

    source: PartSource | None = None

    @property
    def alive(self) -> Callable[[], object] | None:
        return None if self.source is None else self.source.alive

    def checksum(self, number: int, data: bytes) -> str:
        """Return the SHA-256, Base64, of part `number` (0, 1, …), which is `data`."""
        digest = sha256(data).digest() if self.source is None else self.source.sha256_of(number)
        return b64encode(digest).decode()


class _RangeError(Exception):
    """A range that begins after the end of the object."""


def _session(profile: str | None, region: str | None, access: S3Access | None) -> Any:
    try:
        import boto3  # noqa: PLC0415 - 150 ms that only S3 pays for
    except ImportError as error:
        raise MissingExtraError("boto3 is not installed", hint="pip install 'secure-media-processor[s3]'") from error
    pair = {name: value for name, value in asdict(access).items() if value} if access is not None else {}
    return boto3.Session(profile_name=profile, region_name=region, **pair)


def _client(session: Any, endpoint_url: str | None, timeout: float) -> Any:
    from botocore.config import Config  # noqa: PLC0415 - as boto3

    # Client-side monitoring sends a datagram for each request to whoever AWS_CSM_HOST names.
    session._session.set_config_variable("csm_enabled", False)  # noqa: FBT003, SLF001 - there is no public way
    own = endpoint_url is not None or _has_endpoint_of_its_own(session)
    if endpoint_url is None and own and session._session.get_config_variable("ignore_configured_endpoint_urls"):  # noqa: SLF001
        # Botocore would speak to AWS then, and one of the two settings was not meant.
        hint = "remove the setting ignore_configured_endpoint_urls (AWS_IGNORE_CONFIGURED_ENDPOINT_URLS), or the endpoint"
        raise UsageError("the AWS settings name an endpoint, and say that it is to be ignored", hint=hint)
    if own:
        # Roles and tokens are asked of AWS's services, which have nothing to do with another server.
        chain = session._session.get_component("credential_provider")  # noqa: SLF001
        chain.providers = [provider for provider in chain.providers if provider.METHOD in _LOCAL_CREDENTIALS]
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if own else "auto"},
        defaults_mode="legacy",  # as botocore has it; "auto" asks the metadata service of AWS
        connect_timeout=timeout,
        read_timeout=timeout,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=4 * _PARALLEL_PARTS,
        # We send SHA-256 with every object and check what we get ourselves; weak clones stumble over CRC trailers.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    with _credential_errors():
        session.get_credentials()
    client = session.client("s3", endpoint_url=endpoint_url, region_name=session.region_name or "us-east-1", config=config)
    _sign_known_payloads(client)
    client.meta.events.register_first("before-sign.s3", _renew_credentials)
    return client


def _renew_credentials(request_signer: Any, **_request: object) -> None:
    """Renew credentials that are good for a while only. Botocore would do so next, but amid errors that mean other things."""
    credentials = request_signer._credentials  # noqa: SLF001 - there is no public way
    if credentials is not None:
        with _credential_errors():
            credentials.get_frozen_credentials()


def _has_endpoint_of_its_own(session: Any) -> bool:
    """Return whether the AWS settings name another server than AWS's."""
    if os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        return True
    profile = session._session.get_scoped_config()  # noqa: SLF001 - as above
    return bool(profile.get("endpoint_url") or profile.get("services"))


def _kept_digest(checksum: str, size: int) -> Digests | None:
    """Return what ChecksumSHA256 in an answer of S3 means; None if it is absent or of parts of another size than ours."""
    digest, dash, count = checksum.partition("-")
    if not digest:
        return None
    raw = b64decode(digest)
    if dash:
        return {"sha256-8m": raw.hex()} if int(count) == -(-size // PART_SIZE) else None
    if size > PART_SIZE:  # another program has sent it in one piece
        return None
    return {"sha256-8m": (sha256(raw) if size else sha256()).hexdigest()}  # the object is its only part


class _Body:
    """The bytes of a request, read in large pieces: http.client asks for 16 KiB at a time, and sends what it gets."""

    def __init__(self, data: bytes, alive: Callable[[], object] | None) -> None:
        self._data, self._at, self._alive = memoryview(data), 0, alive

    def read(self, size: int = -1) -> memoryview:
        """Return the next bytes, more than `size` if that is little; empty at the end."""
        if self._alive is not None:
            self._alive()  # what was read before has gone out
        piece = self._data[self._at :] if size < 0 else self._data[self._at : self._at + max(size, _SEND)]
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to `offset`, as files do."""
        self._at = offset + (0, self._at, len(self._data))[whence]
        return self._at

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._at


def _sign_known_payloads(client: Any) -> None:
    """Let requests that carry the SHA-256 of their body be signed with it, in place of hashing the body once more.

    On http botocore signs a hash that it computes itself, on https none at all; so https requests have it now as well.
    """
    from botocore import auth  # noqa: PLC0415 - as boto3

    class KnownPayloadAuth(auth.S3SigV4Auth):  # type: ignore[misc]  # botocore has no types
        def payload(self, request: Any) -> str:
            known = request.headers.get("x-amz-checksum-sha256")
            return str(super().payload(request)) if known is None else b64decode(known).hex()

    auth.AUTH_TYPE_MAPS.setdefault(_SIGNATURE, KnownPayloadAuth)
    for operation in ("PutObject", "UploadPart"):
        client.meta.events.register(f"choose-signer.s3.{operation}", lambda **_request: _SIGNATURE)


@contextmanager
def _credential_errors() -> Iterator[None]:
    """Turn what goes wrong with a program, a login or a service of AWS that is to give credentials into our errors.

    Their texts are not repeated: a program may print anything.
    """
    from botocore import exceptions as aws  # noqa: PLC0415 - as boto3

    what = "get AWS credentials"
    try:
        yield
    except aws.ClientError as error:
        found = _from_answer(error, what)
        retryable = isinstance(found, SmpError) and found.retryable
        raise found if retryable else CredentialsError(f"cannot {what}: AWS refuses", hint=_NO_PAIR) from None
    except (aws.HTTPClientError, aws.ConnectionError) as error:
        raise TransientError(f"cannot {what}: who gives them does not answer ({type(error).__name__})") from None
    # A program may be missing or print no JSON; what it gives may have expired already (RuntimeError).
    except (aws.BotoCoreError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        name = type(error).__name__
        raise CredentialsError(f"cannot {what}: the profile or its login does not work ({name})", hint=_NO_PAIR) from None


_NO_PAIR = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, write a profile with `aws configure`, or log in with `aws sso login`"
)


@contextmanager
def _our_errors(what: str) -> Iterator[None]:
    """Turn botocore's errors into ours. Their texts are not repeated: they may hold names of keys and accounts."""
    try:
        from botocore import exceptions as aws  # noqa: PLC0415 - as boto3
    except ImportError:  # _client says so
        yield
        return
    try:
        yield
    except aws.ClientError as error:
        raise _from_answer(error, what) from None
    except (aws.NoCredentialsError, aws.ProfileNotFound) as error:
        raise CredentialsError(f"cannot {what}: no AWS credentials ({type(error).__name__})", hint=_NO_PAIR) from None
    except aws.ParamValidationError:
        raise UsageError(f"cannot {what}: the name of the bucket or object is not allowed") from None
    except (aws.HTTPClientError, aws.ConnectionError, aws.IncompleteReadError) as error:
        raise TransientError(f"cannot {what}: the S3 server does not answer ({type(error).__name__})") from None
    except (KeyError, ValueError) as error:  # an answer without what every answer has
        raise TransientError(f"cannot {what}: the S3 server's answer makes no sense ({type(error).__name__})") from None
    except aws.BotoCoreError as error:
        raise UsageError(f"cannot {what}: the AWS settings do not work ({type(error).__name__})") from None


def _from_answer(error: Any, what: str) -> SmpError | _RangeError:
    """Return our error for an answer of S3 that is one."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    metadata = error.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    said = f"cannot {what}: S3 says {code or status}"
    if code in _NOT_IN_RANGE:
        return _RangeError()
    if code in _MISSING_CODES or code in {"NoSuchBucket", "NoSuchUpload"}:
        return MissingError(said, hint="check the bucket and the key")
    if code in _EXISTS_CODES:
        return ExistsError(f"cannot {what}: there is an object of that key already")
    if code in _DIGEST_CODES:
        return IntegrityError(f"cannot {what}: the bytes changed on the way ({code})", hint="run the same command again")
    if code in _SLOW_CODES or status == _TOO_MANY:
        after = metadata.get("HTTPHeaders", {}).get("retry-after", "")
        return ThrottledError(said, retry_after=float(after) if after.isdigit() else None)
    if code in _FULL_CODES or status == _INSUFFICIENT_STORAGE:
        return NoSpaceError(said, hint="make room in the bucket, or raise its quota")
    if code in _EXPIRED_CODES or code == _BAD_HEAD:
        hint = "get new credentials: the token of the session has expired"
        return CredentialsError(said, hint=hint if code != _BAD_HEAD else f"{hint}, or the bucket is in another region")
    if status in _DENIED:
        return CredentialsError(said, hint="check the key pair, and that it may read and write this bucket")
    return TransientError(said) if status >= _SERVER_ERROR or not status else UsageError(said)


_TOO_MANY, _INSUFFICIENT_STORAGE, _SERVER_ERROR, _DENIED = 429, 507, 500, {401, 403}
