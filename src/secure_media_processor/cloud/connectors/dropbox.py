"""Dropbox, through its official SDK.

What Dropbox cannot do, and this connector does not hide:

* It keeps upper and lower case but does not tell them apart: keys that differ only in case are one object, and a folder is
  listed in the case in which it was first made.
* Deleting an object leaves its folders, and a key cannot be the name of a folder. Removing an empty folder is not safe beside
  another writer, because Dropbox deletes a folder with all that is in it.
* If the answer to the last request of a put is lost, nobody can tell whether the object is there. The put fails, and a second
  one may then say that the key is taken: native_digest tells by what. With a record, the second put looks at that itself.
* An upload session cannot be dropped. One that nobody takes up again is gone after seven days.
"""

from __future__ import annotations

import re
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from secure_media_processor.cloud.connectors.base import Capabilities, CloudConnector, ObjectInfo, settled
from secure_media_processor.cloud.digests import Digester, Digests, checked_parts
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
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import requests

    from secure_media_processor.cloud.connectors.base import ResumeRecord

# How often the SDK repeats one request that met a 429 or a 5xx: enough for a hiccup in the middle of a large upload, whose
# source cannot be read twice. More patience is the business of the wrapper around a connector.
_RETRIES = 2

_PARTIAL_CONTENT, _OUT_OF_RANGE, _SERVER_ERROR = 206, 416, 500
# How Dropbox's plain text for a 400 reads when the request was fine but not the token or the app.
_ABOUT_ACCESS = re.compile(r'(?i)oauth|HTTP header "Authorization"|invalid_client|invalid_grant|required scope')


@dataclass(frozen=True, slots=True, kw_only=True)
class DropboxAccess:
    """What opens an account: a refresh token with the key of the app it was given to, or an access token, good for hours.

    None of the secrets is shown by repr. Python cannot erase them from memory.

    Raises:
        CredentialsError: it is neither the one nor the other, or holds a character that no token has.
    """

    refresh_token: str = field(default="", repr=False)
    app_key: str = ""
    """Of the app in Dropbox's App Console. Public."""
    app_secret: str = field(default="", repr=False)
    """Not needed if the refresh token was obtained with PKCE."""
    access_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if bool(self.refresh_token) == bool(self.access_token):
            raise CredentialsError("either a refresh token or an access token is needed for Dropbox", hint=_LOG_IN)
        if self.refresh_token and not self.app_key:
            raise CredentialsError("a refresh token is of use only with the key of its app", hint="the App Console shows it")
        for part in fields(self):
            if not re.fullmatch(r"[!-~]*", getattr(self, part.name)):
                hint = "was a line break read with it?"
                raise CredentialsError(f"the {part.name} for Dropbox holds a character that it cannot have", hint=hint)


class DropboxConnector(CloudConnector):
    """A folder in one Dropbox account. Each object is the file of its key, so that Dropbox's own programs show it too."""

    def __init__(
        self,
        access: DropboxAccess,
        *,
        folder: str = "",
        before_request: Callable[[], object] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Prepare a client; nothing is sent until the first call.

        Args:
            access: To the account.
            folder: Where the objects lie, such as "backup"; the whole account, or the app's own folder, unless given. It need
                not exist.
            before_request: Called before each HTTP request, repeated ones included: the place for a rate limiter.
            timeout: Seconds to wait for a connection, and for each part of an answer.

        Raises:
            MissingExtraError: the SDK is not installed.
            UsageError: `folder` is not a name that a key could have.
        """
        folder = folder.strip("/")
        self._folder = f"/{check_key(folder)}" if folder else ""
        sdk = _sdk()
        self._client: Any = sdk.Dropbox(
            oauth2_access_token=access.access_token or None,
            oauth2_refresh_token=access.refresh_token or None,
            app_key=access.app_key or None,
            app_secret=access.app_secret or None,
            max_retries_on_error=_RETRIES,
            max_retries_on_rate_limit=_RETRIES,
            session=_session(before_request),
            timeout=timeout,
        )

    @property
    def capabilities(self) -> Capabilities:
        """Dropbox keeps its content_hash with every file."""
        return Capabilities(frozenset({"dropbox"}), atomic_create=True, digests_are_stored=True)

    def put(
        self,
        key: str,
        source: Iterable[bytes],
        *,
        digests: Mapping[str, str] | None = None,
        if_absent: bool = True,
        resume: ResumeRecord | None = None,
    ) -> ObjectInfo:
        """Store the bytes of `source` under `key`; see CloudConnector. No more than three parts of 8 MiB are in memory.

        Also raises ThrottledError, and UsageError for the few names that Dropbox keeps for itself.
        """
        with settled(resume, give_up=lambda: None):  # an upload session cannot be dropped
            return self._store(key, source, digests, if_absent=if_absent, resume=resume)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of an object; see CloudConnector. Also raises ThrottledError."""
        if length == 0:  # no range of HTTP says that
            self.stat(key)
            return
        path = self._path(key)
        with _our_errors(f"fetch {key}"):
            opened = self._open(path, offset, length)
            if opened is None:
                return
            size, response = opened
            left = size - offset if length is None else min(length, size - offset)
            with closing(response):
                for block in response.iter_content(COPY_BLOCK):
                    left -= len(block)
                    yield block
            if left:
                raise TransientError(f"cannot fetch {key}: Dropbox sent another number of bytes than it said")

    def stat(self, key: str) -> ObjectInfo:
        """Return what Dropbox knows of an object; see CloudConnector. Also raises ThrottledError."""
        return ObjectInfo(key, int(self._file(key).size))

    def delete(self, key: str) -> None:
        """Remove an object; see CloudConnector. Dropbox keeps deleted files for a while, in its version history.

        Also raises ThrottledError, and TransientError if the object was replaced at the same moment.
        """
        found = self._file(key)
        with _our_errors(f"delete {key}", {ExistsError: TransientError}):
            # With the revision nothing but this file can go: without, a folder would, and all objects in it.
            self._dropbox.files_delete_v2(self._path(key), parent_rev=found.rev)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with `prefix`, in order of key; see CloudConnector.

        Dropbox promises no order, so all pages of the folder that `prefix` names are read, on the first step, and then sorted.
        Also raises ThrottledError.
        """
        folder = prefix.rpartition("/")[0]
        if folder and not _is_key(folder):
            return  # no key begins so
        files: dict[str, Any] = {}
        for entry in self._entries(folder):
            _apply(entry, files)
        found = (ObjectInfo(self._key(entry), int(entry.size)) for entry in files.values())
        yield from sorted((info for info in found if info.key.startswith(prefix)), key=lambda info: info.key)

    def native_digest(self, key: str) -> Digests:
        """Return the content_hash of an object; see CloudConnector. Also raises ThrottledError."""
        return {"dropbox": str(self._file(key).content_hash)}

    def close(self) -> None:
        """Close the connections and forget the tokens."""
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def _dropbox(self) -> Any:
        if self._client is None:
            raise UsageError("the connection to Dropbox was closed", hint="make a new DropboxConnector")
        return self._client

    def _path(self, key: str) -> str:
        return f"{self._folder}/{check_key(key)}"

    def _key(self, entry: Any) -> str:
        """Return the key of a listed file. Dropbox may spell our folder in another case, so its segments are counted."""
        return str(entry.path_display).split("/", self._folder.count("/") + 1)[-1]

    def _file(self, key: str) -> Any:
        """Return Dropbox's metadata of the object `key`. Raises MissingError if there is none, or a folder."""
        path = self._path(key)
        with _our_errors(f"find {key}"):
            found = self._dropbox.files_get_metadata(path)
        if not _is_object(found):
            raise MissingError(f"there is no object {key} in Dropbox, but a folder", hint="check the key")
        return found

    def _open(self, path: str, offset: int, length: int | None) -> tuple[int, requests.Response] | None:
        """Return the size of the whole file and an answer that yields its bytes; None if the file ends before `offset`."""
        headers = {"Accept-Encoding": "identity"}  # what Dropbox compressed would not have the length that it says
        if offset or length is not None:
            last = "" if length is None else str(offset + length - 1)
            headers["Range"] = f"bytes={offset}-{last}"
        try:
            metadata, response = self._dropbox.files_download(path, extra_headers=headers)
        except _sdk().exceptions.HttpError as error:
            if error.status_code == _OUT_OF_RANGE:
                return None
            raise
        if "Range" in headers and response.status_code != _PARTIAL_CONTENT:
            response.close()
            raise TransientError("the range that was asked of Dropbox was ignored on the way")
        return int(metadata.size), response

    def _store(
        self,
        key: str,
        source: Iterable[bytes],
        digests: Mapping[str, str] | None,
        *,
        if_absent: bool,
        resume: ResumeRecord | None,
    ) -> ObjectInfo:
        """Do what put does, but for the end of the record."""
        path, digester = self._path(key), Digester({"dropbox", *(digests or ())})
        replaced = None if if_absent else self._revision(key)
        upload: _Upload | None = None
        size = 0
        for part, is_last in checked_parts(source, digester, digests):
            if upload is None and not is_last:
                upload = self._begin(key, part, if_absent=if_absent, resume=resume)
            if upload is not None:
                self._send_part(key, upload, size, part)
            size += len(part)
        ours = digester.hexdigests()["dropbox"]
        if upload is not None and upload.taken_by is not None:
            if upload.taken_by.content_hash != ours:
                raise ExistsError(f"cannot store {key}: there is an object of that key already", hint=_CASE)
            return ObjectInfo(key, size)
        if upload is not None and upload.end > size:
            raise IntegrityError(f"cannot store {key}: these are fewer bytes than Dropbox was sent before", hint=_AGAIN)
        commit = _commit(path, if_absent=if_absent)
        with _our_errors(f"store {key}", {MissingError: TransientError}):  # what may be missing here is the upload session
            if upload is not None:
                cursor = _sdk().files.UploadSessionCursor(upload.session, size)
                stored = self._dropbox.files_upload_session_finish(b"", cursor, _sdk().files.CommitInfo(**commit))
            else:
                stored = self._dropbox.files_upload(part, content_hash=ours, **commit)
        if stored.content_hash != ours:
            self._withdraw(path, stored.rev, replaced)
            raise IntegrityError(f"cannot store {key}: Dropbox has other bytes than were sent", hint=_AGAIN)
        return ObjectInfo(key, size)

    def _begin(self, key: str, first: bytes, *, if_absent: bool, resume: ResumeRecord | None) -> _Upload:
        """Return the upload in `resume` if Dropbox still has it, otherwise a new one; without `resume` it has `first`."""
        begun = resume.load() if resume is not None else {}
        if begun:
            end = self._end_of(key, begun["session_id"])
            if end is not None:
                return _Upload(begun["session_id"], end)
            if if_absent:  # the session may be gone because it made the file
                with suppress(MissingError):
                    return _Upload(begun["session_id"], 0, taken_by=self._file(key))
        data = first if resume is None else b""  # nothing is sent before the record is safe
        with _our_errors(f"store {key}"):
            session = str(self._dropbox.files_upload_session_start(data, content_hash=_content_hash(data)).session_id)
        if resume is not None:
            resume.save({"session_id": session})
        return _Upload(session, len(data))

    def _end_of(self, key: str, session: str) -> int | None:
        """Return how many bytes Dropbox has in an upload session; None if it is gone, or was made into a file."""
        sdk = _sdk()
        with _our_errors(f"store {key}"):
            try:
                self._dropbox.files_upload_session_append_v2(b"", sdk.files.UploadSessionCursor(session, 0))
            except sdk.exceptions.ApiError as error:
                end = _offset_after(error.error)
                if end is None and not (error.error.is_not_found() or error.error.is_closed()):
                    raise
                return end
        return 0

    def _send_part(self, key: str, upload: _Upload, offset: int, part: bytes) -> None:
        """Send what Dropbox does not have yet of `part`, which begins at `offset`."""
        missing = part[upload.end - offset :]
        if upload.taken_by is not None or not missing:
            return
        sdk = _sdk()
        end = upload.end + len(missing)
        with _our_errors(f"store {key}", {MissingError: TransientError}):
            cursor = sdk.files.UploadSessionCursor(upload.session, upload.end)
            try:
                self._dropbox.files_upload_session_append_v2(missing, cursor, content_hash=_content_hash(missing))
            except sdk.exceptions.ApiError as error:
                if _offset_after(error.error) != end:
                    raise
                # Dropbox had taken the part, its answer got lost, and the SDK sent the part again: all is well.
        upload.end = end

    def _revision(self, key: str) -> str | None:
        """Return the revision of the object `key`, None if there is none."""
        try:
            return str(self._file(key).rev)
        except MissingError:
            return None

    def _withdraw(self, path: str, revision: str, replaced: str | None) -> None:
        """Remove the file that was just written, unless somebody replaced it, and bring back the revision that it replaced.

        No condition of Dropbox's covers a whole upload session, only the bytes of one request, so what a session has become
        shows when it is a file already. That it should go is told by another error.
        """
        with suppress(SmpError), _our_errors("withdraw"):
            self._dropbox.files_delete_v2(path, parent_rev=revision)
            if replaced is not None:
                self._dropbox.files_restore(path, replaced)

    def _entries(self, folder: str) -> Iterator[Any]:
        """Yield all that Dropbox has below `folder`, page by page, and nothing if there is no such folder."""
        what = "list the objects"
        try:
            # A file in place of `folder` means that no key lies below; in place of our own folder it is a mistake.
            with _our_errors(what, {UsageError: MissingError} if folder else {}):
                page = self._dropbox.files_list_folder(f"{self._folder}/{folder}".rstrip("/"), recursive=True)
        except MissingError:  # Dropbox makes a folder with the first file in it
            return
        yield from page.entries
        while page.has_more:
            with _our_errors(what):
                page = self._dropbox.files_list_folder_continue(page.cursor)
            yield from page.entries


@dataclass(slots=True)
class _Upload:
    """An upload session."""

    session: str
    """Its id."""
    end: int
    """How many bytes Dropbox has in it."""
    taken_by: Any = None
    """The file that has the key already. Then the session is of no use; the file may be what it was made into."""


def _sdk() -> Any:
    """Return the module dropbox, which has no types, imported when first needed: it takes a quarter of a second."""
    try:
        return import_module("dropbox")
    except ImportError as error:
        raise MissingExtraError("dropbox is not installed", hint="pip install 'secure-media-processor[dropbox]'") from error


def _session(before_request: Callable[[], object] | None) -> requests.Session:
    """Return a session that calls `before_request` before each request."""
    import requests  # noqa: PLC0415 - comes with the SDK

    class Session(requests.Session):
        def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
            if before_request is not None:
                before_request()
            return super().send(request, **kwargs)

    session = Session()
    # Without an authentication of its own, requests would replace our token by what ~/.netrc has for the host.
    session.auth = lambda request: request
    return session


def _commit(path: str, *, if_absent: bool) -> dict[str, Any]:
    """Return under what name and conditions a file is to appear."""
    mode = _sdk().files.WriteMode
    return {
        "path": path,
        "mode": mode.add if if_absent else mode.overwrite,
        "autorename": False,
        "mute": True,  # no message on the owner's desktop for each object
        "strict_conflict": if_absent,  # else Dropbox says yes to a second file of the same content
    }


def _content_hash(data: bytes) -> str:
    digester = Digester({"dropbox"})
    digester.update(data)
    return digester.hexdigests()["dropbox"]


def _is_key(text: str) -> bool:
    try:
        check_key(text)
    except UsageError:
        return False
    return True


def _is_object(entry: Any) -> bool:
    """Tell a file from a folder, and from documents that live in Dropbox's own editors and have no bytes."""
    return isinstance(entry, _sdk().files.FileMetadata) and entry.content_hash is not None


def _apply(entry: Any, files: dict[str, Any]) -> None:
    """Note what a listing says, in `files` by path; it may take back what it said before, when something changes meanwhile."""
    path = entry.path_lower
    if _is_object(entry):
        files[path] = entry
    elif isinstance(entry, _sdk().files.DeletedMetadata):
        for gone in [known for known in files if known == path or known.startswith(f"{path}/")]:
            del files[gone]


def _offset_after(error: Any) -> int | None:
    """Return where Dropbox wants the next part of an upload to begin, if that is what `error` says."""
    return int(error.get_incorrect_offset().correct_offset) if error.is_incorrect_offset() else None


_LOG_IN = "get a new token; docs/how-to/dropbox.md says how"
_CASE = "Dropbox does not tell upper from lower case, and a key cannot be the name of a folder"
_NAME = "Dropbox keeps a few names for itself; choose another key"
_SPACE = "make room in the Dropbox account"
_AGAIN = "run the same command again"
_ALLOW = "check what the account may do with this folder"

# The tags of Dropbox's errors, of any route, that mean the same wherever they occur. The outermost that is listed counts.
_BY_TAG: dict[str, tuple[type[SmpError], str]] = {
    "not_found": (MissingError, "check the key"),
    "not_file": (MissingError, "check the key"),
    "not_folder": (UsageError, "a file has the name of the folder; choose another folder"),
    "conflict": (ExistsError, _CASE),
    "insufficient_space": (NoSpaceError, _SPACE),
    "team_folder_insufficient_space": (NoSpaceError, _SPACE),
    "member_folder_insufficient_space": (NoSpaceError, _SPACE),
    "upload_traffic_limit_reached": (NoSpaceError, "wait for the next month, or raise the limit of the account"),
    "content_hash_mismatch": (IntegrityError, _AGAIN),
    "malformed_path": (UsageError, _NAME),
    "disallowed_name": (UsageError, _NAME),
    "too_large": (UsageError, "Dropbox takes 2 TiB for one object"),
    "no_write_permission": (CredentialsError, _ALLOW),
    "access_restricted": (CredentialsError, _ALLOW),
    "restricted_content": (CredentialsError, _ALLOW),
    "operation_suppressed": (CredentialsError, _ALLOW),
    "lookup_failed": (TransientError, _AGAIN),
    "incorrect_offset": (TransientError, _AGAIN),
    "closed": (TransientError, _AGAIN),
    "reset": (TransientError, _AGAIN),
    "locked": (TransientError, _AGAIN),
}


@contextmanager
def _our_errors(what: str, instead: Mapping[type[SmpError], type[SmpError]] | None = None) -> Iterator[None]:
    """Turn the errors of a call of the SDK that was to do `what` into ours; `instead` has other kinds for some answers.

    Their texts are not repeated, nor are they chained: they may hold a header with a token, or a proxy's password.
    """
    sdk = _sdk()
    import requests  # noqa: PLC0415 - comes with the SDK

    try:
        yield
    except sdk.exceptions.ApiError as error:
        raise _from_tags(_tags(error.error), what, instead or {}) from None
    except sdk.exceptions.HttpError as error:
        raise _from_status(error, what) from None
    except requests.RequestException as error:
        hint = "check the network, the proxy, and REQUESTS_CA_BUNDLE if a proxy inspects TLS"
        raise TransientError(f"cannot {what}: Dropbox does not answer ({type(error).__name__})", hint=hint) from None
    except (AssertionError, KeyError, ValueError, sdk.files.bv.ValidationError) as error:
        # What the SDK raises for an answer in no form that Dropbox uses, such as the login page of a hotel.
        name = type(error).__name__
        raise TransientError(f"cannot {what}: what answers does not speak as Dropbox does ({name})") from None


def _tags(error: Any) -> list[str]:
    """Return the tags of a nested error, from the outermost in: path, conflict, file."""
    tags: list[str] = []
    while (tag := getattr(error, "_tag", None)) is not None:
        tags.append(str(tag))
        value = getattr(error, "_value", None)
        error = getattr(value, "reason", value)  # an upload wraps the reason once more
    return tags


def _from_tags(tags: list[str], what: str, instead: Mapping[type[SmpError], type[SmpError]]) -> SmpError:
    """Return our error for an error of a route."""
    said = f"cannot {what}: Dropbox says {'/'.join(tags)}"
    if "too_many_write_operations" in tags:
        return ThrottledError(said)
    kind, hint = next((_BY_TAG[tag] for tag in tags if tag in _BY_TAG), (SmpError, ""))
    return instead[kind](said, hint=_AGAIN) if kind in instead else kind(said, hint=hint)


def _from_status(error: Any, what: str) -> SmpError:
    """Return our error for an answer that is an error of no route in particular."""
    kinds = _sdk().exceptions
    if isinstance(error, kinds.AuthError):
        return _from_auth(error.error, what)
    if isinstance(error, kinds.RateLimitError):
        after = None if error.backoff is None else float(error.backoff)
        return ThrottledError(f"cannot {what}: Dropbox asks for fewer requests", retry_after=after)
    if isinstance(error, kinds.BadInputError) and _ABOUT_ACCESS.search(error.body or ""):
        return CredentialsError(f"cannot {what}: Dropbox does not accept the token, or the app", hint=_LOG_IN)
    said = f"cannot {what}: Dropbox answers {error.status_code}"
    return TransientError(said) if error.status_code >= _SERVER_ERROR else UsageError(said)


def _from_auth(error: Any, what: str) -> CredentialsError:
    """Return our error for an answer 401."""
    said = f"cannot {what}: Dropbox says {'/'.join(_tags(error))}"
    if error.is_missing_scope():
        scope = error.get_missing_scope().required_scope
        return CredentialsError(said, hint=f"tick {scope} on the Permissions tab of your app, then {_LOG_IN}")
    if error.is_expired_access_token():
        return CredentialsError(said, hint="access tokens live for hours; use a refresh token: docs/how-to/dropbox.md says how")
    return CredentialsError(said, hint=_LOG_IN)
