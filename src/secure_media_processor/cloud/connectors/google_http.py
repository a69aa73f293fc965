"""How Google is spoken to: credentials, tokens, requests, and what goes wrong with them.

Why neither google-api-python-client nor AuthorizedSession does it is told in google_drive.py.
"""

from __future__ import annotations

import re
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from secure_media_processor.core.private_json import read_private_json
from secure_media_processor.errors import (
    CredentialsError,
    ExistsError,
    MissingError,
    MissingExtraError,
    NoSpaceError,
    SmpError,
    ThrottledError,
    TransientError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from google.auth.credentials import Credentials
    from requests import PreparedRequest, Response, Session

DRIVE_FILE_SCOPE = "https://www.googleapis.com/auth/drive.file"
"""Lets a program see and change the files that it made itself, and no others."""

_OK, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TIMEOUT, _CONFLICT, _GONE, _TOO_MANY = 200, 401, 403, 404, 408, 409, 410, 429
_SERVER_ERROR = 500
# Reasons that Drive gives with a 403. All others mean that the account may not do it.
_SLOW_REASONS = {"rateLimitExceeded", "userRateLimitExceeded", "sharingRateLimitExceeded", "dailyLimitExceeded"}
_FULL_REASONS = {
    "storageQuotaExceeded",
    "teamDriveFileLimitExceeded",
    "numChildrenInNonRootLimitExceeded",
    "activeItemCreationLimitExceeded",
}
NEW_TOKEN_HINT = "make a new credentials file: see docs/how-to/google-drive.md"  # noqa: S105 - not a secret
"""What helps against credentials that are none."""


def load_credentials(path: Path | str, *, scopes: Sequence[str] = (DRIVE_FILE_SCOPE,)) -> Credentials:
    """Return the credentials in a JSON file of a service account, or of a user who has given consent (OAuth).

    Args:
        path: Readable by its owner only.
        scopes: What to ask permission for. The default reaches nothing but the files that the app made.

    Raises:
        MissingExtraError: google-auth or requests is not installed.
        KeyExposedError: other users of this machine can read the file.
        CredentialsError: there is no such file, or it holds neither kind of credentials.
        FileAccessError: it cannot be read.
    """
    refuse_missing_extra()
    path = Path(path)
    return credentials_of(read_private_json(path, hint=NEW_TOKEN_HINT), str(path), scopes=scopes)


def credentials_of(info: dict[str, object], place: str, *, scopes: Sequence[str] = (DRIVE_FILE_SCOPE,)) -> Credentials:
    """Return the credentials in `info`, which was read from `place`. Raises MissingExtraError or CredentialsError."""
    refuse_missing_extra()
    from google.oauth2.credentials import Credentials as UserCredentials  # noqa: PLC0415 - 100 ms that only Drive pays for
    from google.oauth2.service_account import Credentials as ServiceCredentials  # noqa: PLC0415

    credentials: Credentials | None = None
    try:
        if info.get("type") == "service_account":
            credentials = ServiceCredentials.from_service_account_info(info, scopes=scopes)
        elif "refresh_token" in info:
            credentials = UserCredentials.from_authorized_user_info(info, scopes=scopes)
    except (ValueError, TypeError, AttributeError):  # their texts may quote the file
        raise CredentialsError(f"{place} is damaged, or lacks a part of the credentials", hint=NEW_TOKEN_HINT) from None
    if credentials is None:
        raise CredentialsError(f"{place} holds neither a service account nor a user's token", hint=NEW_TOKEN_HINT)
    return credentials


class Account:
    """The credentials: a header for each request, renewed by one thread at a time."""

    def __init__(self, credentials: Credentials, before_request: Callable[[], object] | None, timeout: float) -> None:
        from requests import Session  # noqa: PLC0415 - see load_credentials

        self._credentials: Credentials | None = credentials
        self._before_request, self._timeout = before_request, timeout
        self._lock = Lock()
        self._session = Session()

    def headers(self, *, instead_of: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the headers that authorize a request, others than `instead_of`, which were refused.

        Raises:
            CredentialsError: Google gives no token for these credentials.
            TransientError: Google's token server does not answer.
            UsageError: the connector is closed.
        """
        with self._lock:
            if self._credentials is None:
                raise UsageError("the connector is closed")
            if not self._credentials.valid:
                self._renew(self._credentials)
            headers = self._apply(self._credentials)
            if headers == instead_of:  # otherwise another thread has renewed it already
                self._renew(self._credentials)
                headers = self._apply(self._credentials)
            return headers

    def close(self) -> None:
        """Drop the credentials."""
        with self._lock:
            self._credentials = None
            self._session.close()

    @staticmethod
    def _apply(credentials: Credentials) -> dict[str, str]:
        headers: dict[str, str] = {}
        credentials.apply(headers)
        return headers

    def _renew(self, credentials: Credentials) -> None:
        from google.auth.exceptions import GoogleAuthError, TransportError  # noqa: PLC0415 - see load_credentials

        try:
            credentials.refresh(self._ask_for_token)
        except GoogleAuthError as error:  # its text may quote the answer, and so a token
            if isinstance(error, TransportError) or error.retryable:
                raise TransientError("cannot get a token: Google's token server does not answer") from None
            message = f"cannot get a token: Google does not accept the credentials ({type(error).__name__})"
            raise CredentialsError(message, hint=NEW_TOKEN_HINT) from None

    def _ask_for_token(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **_options: object,
    ) -> _TokenAnswer:
        """Send what google-auth asks for: the interface of google.auth.transport.Request.

        Raises:
            TransportError: no answer.
        """
        from google.auth.exceptions import TransportError  # noqa: PLC0415 - see load_credentials

        if self._before_request is not None:
            self._before_request()
        try:
            answer = self._session.request(
                method, url, data=body, auth=_with_headers(headers or {}), timeout=self._timeout, allow_redirects=False
            )
        except OSError as error:
            raise TransportError(type(error).__name__) from None
        return _TokenAnswer(answer.status_code, answer.headers, answer.content)


@dataclass(frozen=True, slots=True)
class _TokenAnswer:
    """What google-auth reads of an answer."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class Http:
    """Sends requests to Drive. Each connection is used by one thread at a time, and then by the next."""

    def __init__(self, account: Account, before_request: Callable[[], object] | None, timeout: float) -> None:
        self._account, self._before_request, self._timeout = account, before_request, timeout
        self._idle: deque[Session] = deque()  # its append and pop are atomic
        self._closed = False

    def json(self, what: str, method: str, url: str, **request: Any) -> dict[str, Any]:
        """Return the JSON object that answers a request. Raises as ask."""
        with self.ask(what, method, url, **request) as answer:
            return object_in(answer)

    @contextmanager
    def ask(
        self, what: str, method: str, url: str, *, accept: Collection[int] = (_OK,), stream: bool = False, **request: Any
    ) -> Iterator[Response]:
        """Send a request, in order to `what`, and yield the answer.

        Args:
            what: Such as "find a/b", for the message of an error.
            method: HTTP method.
            url: Where to.
            accept: Statuses that are no error.
            stream: Leave the body to be read in the block.
            request: For requests.Session.request.

        Raises:
            SmpError: the one that fits the status, see error_from.
            TransientError: no answer, or half of one, also if that shows in the block.
        """
        session = self._take()
        try:
            with self._authorized(session, method, url, stream=stream, **request) as answer:
                if answer.status_code not in accept:
                    raise error_from(answer, what)
                yield answer
        except OSError as error:  # of which those of requests are kinds; their texts hold addresses of upload sessions
            raise TransientError(f"cannot {what}: no answer from Google Drive ({type(error).__name__})") from None
        finally:
            self._give(session)

    def close(self) -> None:
        """Close all connections, those in use when they are given back."""
        self._closed = True
        self._account.close()
        while self._idle:
            self._idle.pop().close()

    def _authorized(self, session: Session, method: str, url: str, **request: Any) -> Response:
        token = self._account.headers()
        answer = self._send(session, method, url, token, **request)
        if answer.status_code != _UNAUTHORIZED:
            return answer
        answer.close()  # the token was withdrawn, or a clock is wrong: a new one may do
        return self._send(session, method, url, self._account.headers(instead_of=token), **request)

    def _send(self, session: Session, method: str, url: str, token: Mapping[str, str], **request: Any) -> Response:
        if self._before_request is not None:
            self._before_request()
        return session.request(method, url, auth=_with_headers(token), timeout=self._timeout, allow_redirects=False, **request)

    def _take(self) -> Session:
        from requests import Session  # noqa: PLC0415 - see load_credentials

        try:
            return self._idle.pop()
        except IndexError:
            session = Session()
            session.headers["User-Agent"] = "secure-media-processor"
            return session

    def _give(self, session: Session) -> None:
        self._idle.append(session)
        if self._closed:
            self.close()


def _with_headers(headers: Mapping[str, str]) -> Callable[[PreparedRequest], PreparedRequest]:
    """Return an `auth` for requests that sets `headers`; a mere header it would replace by a password from ~/.netrc."""

    def authorize(prepared: PreparedRequest) -> PreparedRequest:
        prepared.headers.update(headers)
        return prepared

    return authorize


def error_from(answer: Response, what: str) -> SmpError:
    """Return our error for an answer of Drive that is one. Of its text only the reason, a plain word, is repeated."""
    status, reason = answer.status_code, _reason_in(answer)
    said = f"cannot {what}: Google Drive says {reason or 'no'} ({status})"
    if status == _TOO_MANY or (status == _FORBIDDEN and reason in _SLOW_REASONS):
        after = answer.headers.get("Retry-After", "")
        return ThrottledError(said, retry_after=float(after) if after.isdecimal() else None)
    if status == _FORBIDDEN and reason in _FULL_REASONS:
        return NoSpaceError(said, hint="make room in the drive; a service account needs a shared drive")
    if status == _FORBIDDEN:
        return CredentialsError(said, hint="check that the account may do this, and that the Drive API is enabled for the app")
    if status == _UNAUTHORIZED:
        return CredentialsError(said, hint=NEW_TOKEN_HINT)
    if status in {_NOT_FOUND, _GONE}:
        return MissingError(said, hint="check the key and the folder of the store")
    if status == _CONFLICT:
        return ExistsError(said)
    if status >= _SERVER_ERROR or status == _TIMEOUT:
        return TransientError(said)
    return SmpError(said)


def _reason_in(answer: Response) -> str:
    try:
        reason = answer.json()["error"]["errors"][0]["reason"]
    except (ValueError, LookupError, TypeError):
        return ""
    return reason if isinstance(reason, str) and re.fullmatch("[A-Za-z]{1,40}", reason) else ""


def object_in(answer: Response) -> dict[str, Any]:
    """Return the JSON object in an answer. Raises TransientError if it is none."""
    data = answer.json()
    if not isinstance(data, dict):
        raise TransientError("Google Drive gave an answer that is no JSON object")
    return data


def refuse_missing_extra() -> None:
    """Raise MissingExtraError if google-auth or requests is not installed."""
    try:
        import google.auth  # noqa: F401, PLC0415 - see load_credentials
        import requests  # noqa: F401, PLC0415
    except ImportError:
        hint = "pip install 'secure-media-processor[gdrive]'"
        raise MissingExtraError("google-auth and requests are not installed", hint=hint) from None
