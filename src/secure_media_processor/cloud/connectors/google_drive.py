"""Google Drive as a store: each object is one file, named by its key, in one folder that the app made.

Drive knows files by ids, not by names, and allows several of one name. An object is found by its folder and a property that
only this app sees (``smpKey``). If two writers made two files for one key at once, the one with the smallest (createdTime, id)
is the object, for every reader; the others are leftovers of writers that died before they removed their own. What replaces an
object is a new file as well: the old one is the object until it is removed, which happens when all of the new one has arrived
and is right.

All calls go through google-auth and requests, not through google-api-python-client. Half of them that client cannot do: its
uploads want a source that can seek and tell its size, its downloads hold each chunk in memory and cost a request a chunk, it
cannot cancel an upload, and nobody is asked before it repeats a request or renews a token. For the other half it would bring a
second set of connections (of httplib2, which threads may not share), of tokens and of errors. google-auth's AuthorizedSession
is not used either: for a service account it starts a thread that asks another Google server where the account may be used, a
call that nobody ordered, and its requests for tokens leave the signed assertion in the debug log. What is left of it, a header
and one renewal after a 401, is in Account.

Put reads its source once, so it takes up a broken upload by itself, a few times (_Patience). Nothing else is retried here.
With a record, a later put takes it up as well, for the week that Drive keeps a session, if it still would go to the same file.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import attrgetter
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from secure_media_processor.cloud.connectors.base import Capabilities, CloudConnector, ObjectInfo, clear, settled
from secure_media_processor.cloud.connectors.google_http import Account, Http, object_in, refuse_missing_extra
from secure_media_processor.cloud.digests import Digester, Digests, checked_parts
from secure_media_processor.cloud.paths import check_key
from secure_media_processor.core.files import COPY_BLOCK
from secure_media_processor.errors import (
    CredentialsError,
    ExistsError,
    IntegrityError,
    MissingError,
    RateLimitError,
    SmpError,
    ThrottledError,
    TransientError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from google.auth.credentials import Credentials

    from secure_media_processor.cloud.connectors.base import ResumeRecord


_ENDPOINT = "https://www.googleapis.com"
_FOLDER_TYPE = "application/vnd.google-apps.folder"
_FIELDS = "id,name,size,createdTime,trashed,appProperties,md5Checksum,sha256Checksum"
_PROPERTY = "smpKey"
_MAX_PROPERTY = 124  # bytes of UTF-8, name and value together
_PAGE = 1000  # files; the most that Drive gives at once
_IDS = 100  # fetched at a time; each new file takes one
_ONE_REQUEST = 5_000_000  # bytes; what Drive allows in an upload that is not resumable
# New files turn up in searches with a delay (seconds, at times minutes), so this many of our own are remembered.
_REMEMBERED = 1000
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a step of an upload is tried again, one after each failure
_LONGEST_PAUSE = 30.0  # seconds; a longer Retry-After is left to the caller

_CREATED, _NO_CONTENT, _PARTIAL, _INCOMPLETE = 201, 204, 206, 308
_NOT_FOUND, _CONFLICT, _GONE, _CANCELLED = 404, 409, 410, 499
_OK = 200
_Result = TypeVar("_Result")


class GoogleDriveConnector(CloudConnector):
    """A folder in Google Drive, or in a shared drive. It is made by the first put."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        folder: str = "smp",
        shared_drive: str | None = None,
        before_request: Callable[[], object] | None = None,
        timeout: float = 60.0,
        endpoint: str = _ENDPOINT,
    ) -> None:
        """Prepare a store; nothing is sent until the first call.

        Args:
            credentials: From load_credentials, or any others of google-auth.
            folder: Name of the folder, at the top of the drive. One of the same name that another app made is not seen.
            shared_drive: Its id; the account's own drive unless given. A service account has no space of its own.
            before_request: Called before each HTTP request, repeated ones and those for tokens included: for a rate limiter.
            timeout: Seconds to wait for a connection, and for each part of an answer.
            endpoint: Of another server than Google's, for tests.

        Raises:
            MissingExtraError: google-auth or requests is not installed.
        """
        refuse_missing_extra()
        self._http = Http(Account(credentials, before_request, timeout), before_request, timeout)
        self._files_url = f"{endpoint.rstrip('/')}/drive/v3/files"
        self._upload_url = f"{endpoint.rstrip('/')}/upload/drive/v3/files"
        self._folder_name, self._top = folder, shared_drive or "root"
        self._scope: dict[str, str] = {}
        self._search_scope: dict[str, str] = {}
        if shared_drive is not None:
            self._scope = {"supportsAllDrives": "true"}
            self._search_scope = {
                **self._scope,
                "corpora": "drive",
                "driveId": shared_drive,
                "includeItemsFromAllDrives": "true",
            }
        self._ids: list[str] = []  # its pop and extend are atomic
        self._lock = Lock()  # so that threads find or make the folder once
        self._folder_id: str | None = None
        self._written: dict[str, str] = {}
        """Key → id of what this connector wrote lately; see _REMEMBERED."""

    @property
    def capabilities(self) -> Capabilities:
        """Drive keeps SHA-256 and MD5 of each file.

        Its create is not called atomic, because Drive has no condition "only if there is none". Two puts of one key at the same
        moment make two files; then both look, and the later one withdraws. That settles it wherever a search shows a file as
        soon as it has its time of creation. Google does not promise that, and people have seen searches lag behind.
        """
        return Capabilities(frozenset({"sha256", "md5"}), atomic_create=False, digests_are_stored=True)

    def put(
        self,
        key: str,
        source: Iterable[bytes],
        *,
        digests: Mapping[str, str] | None = None,
        if_absent: bool = True,
        resume: ResumeRecord | None = None,
    ) -> ObjectInfo:
        """Store the bytes of `source` under `key`; see CloudConnector. TransientError also if the folder went meanwhile."""
        check_key(key)
        digester = Digester({"sha256", "md5", *(digests or ())})
        parts = checked_parts(source, digester, digests)
        target = self._begun(key, resume)

        def give_up() -> None:
            if target is not None:
                self._drop(target)

        with settled(resume, give_up):
            folder = self._folder_for_writing()
            old = sorted(self._files_of(key, folder), key=_rank)
            if if_absent and old and (target is None or target.id != old[0].id):
                raise ExistsError(f"there is an object {key} already")
            first = next(parts)  # what a source or digest has against it mostly shows before anything is sent
            target = self._target(key, folder, target, resume)
            file = self._send(target, first, parts, resume)
            self._refuse_altered(file, digester.hexdigests())
            if if_absent:
                self._refuse_second(file, folder)
            else:
                target = None  # the old object may be gone from here on, so the new one stays
                self._replace(old, file, folder)
            self._remember(file)
        return ObjectInfo(key, file.size)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of an object; see CloudConnector."""
        file = self._existing(key)
        end = file.size if length is None else min(file.size, offset + length)
        if offset >= end:
            return
        in_part = (offset, end) != (0, file.size)
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-{end - 1}"} if in_part else {})
        url, params = f"{self._files_url}/{file.id}", {"alt": "media", **self._scope}
        left = end - offset
        with self._http.ask(
            f"fetch {key}", "GET", url, accept=(_PARTIAL if in_part else _OK,), params=params, headers=headers, stream=True
        ) as answer:
            for block in answer.iter_content(COPY_BLOCK):
                left -= len(block)
                yield block
        if left:
            raise TransientError(f"cannot fetch {key}: it was replaced or cut short while it was read")

    def stat(self, key: str) -> ObjectInfo:
        """Return what Drive knows of an object; see CloudConnector."""
        return ObjectInfo(key, self._existing(key).size)

    def delete(self, key: str) -> None:
        """Remove an object for good, not into the trash; see CloudConnector. Leftover files of the same key go with it."""
        first, *leftovers = self._all_existing(key)
        for file in leftovers:  # before the object itself: what is interrupted here must not bring an older one to light
            with suppress(MissingError):
                self._remove(file.id, key)
        self._remove(first.id, key)
        with self._lock:
            self._written.pop(key, None)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with `prefix`, in order of key; see CloudConnector.

        Drive's own order by name is not that of the keys, so all pages are read before the first object comes.
        """
        folder = self._folder()
        if folder is None:
            return
        objects: dict[str, _File] = {}
        for file in self._search_in(folder, "list the objects"):
            if file.is_object and file.name.startswith(prefix):
                objects[file.name] = min(file, objects.get(file.name, file), key=_rank)
        for key in sorted(objects):
            yield ObjectInfo(key, objects[key].size)

    def native_digest(self, key: str) -> Digests:
        """Return the SHA-256 and MD5 that Drive keeps, or one of them; see CloudConnector."""
        return self._existing(key).digests

    def close(self) -> None:
        """Close the connections and drop the credentials. Calls after that raise UsageError."""
        self._http.close()

    # --------------------------------------------------------------------------------------- finding files

    def _folder(self) -> str | None:
        """Return the id of our folder, None if there is none yet."""
        with self._lock:
            if self._folder_id is None:
                self._folder_id = self._search_folder()
            return self._folder_id

    def _folder_for_writing(self) -> str:
        with self._lock:
            if self._folder_id is None:
                self._folder_id = self._search_folder() or self._make_folder()
            return self._folder_id

    def _search_folder(self) -> str | None:
        # Not by name in the query: people have seen searches by name lag behind those by parent.
        top = f"{_quoted(self._top)} in parents"
        try:
            folders = [*self._search("find the folder", top, f"mimeType={_quoted(_FOLDER_TYPE)}")]
        except MissingError:
            hint = "check the id of the shared drive, and that the account is a member of it"
            raise CredentialsError("cannot find the folder: the account has no such drive", hint=hint) from None
        ours = [folder for folder in folders if folder.name == self._folder_name]
        return min(ours, key=_rank).id if ours else None

    def _make_folder(self) -> str:
        """Make the folder and return its id, or that of one that another writer made at the same moment.

        In that case ours is left where it is: empty it does no harm, and somebody may have begun to use it.
        """
        metadata = {"id": self._take_id(), "name": self._folder_name, "mimeType": _FOLDER_TYPE, "parents": [self._top]}
        params = {"fields": "id", **self._scope}
        made = self._http.json("make the folder", "POST", self._files_url, params=params, json=metadata)
        return self._search_folder() or str(made.get("id", metadata["id"]))

    def _files_of(self, key: str, folder: str) -> Sequence[_File]:
        """Return the files that claim to be the object `key`."""
        with self._lock:
            written = self._written.get(key)
        files = [*self._search_key(key, folder)]
        if written is not None and all(file.id != written for file in files):
            try:
                files.append(self._describe(written, key))
            except MissingError:  # deleted by somebody else
                with self._lock:
                    self._written.pop(key, None)
        return [file for file in files if not file.trashed]

    def _search_key(self, key: str, folder: str) -> Iterator[_File]:
        claim = f"appProperties has {{ key={_quoted(_PROPERTY)} and value={_quoted(_property_of(key))} }}"
        return (file for file in self._search_in(folder, f"find {key}", claim) if file.name == key)

    def _search_in(self, folder: str, what: str, *conditions: str) -> Iterator[_File]:
        try:
            yield from self._search(what, f"{_quoted(folder)} in parents", *conditions)
        except MissingError:
            self._folder_id = None
            raise TransientError(f"cannot {what}: the folder of the store was deleted meanwhile") from None

    def _all_existing(self, key: str) -> Sequence[_File]:
        """Return the files of the object `key`, the one that counts first. Raises MissingError if there is none."""
        check_key(key)
        folder = self._folder()
        files = [] if folder is None else sorted(self._files_of(key, folder), key=_rank)
        if not files:
            raise MissingError(f"there is no object {key} in Google Drive", hint="check the key and the folder of the store")
        return files

    def _existing(self, key: str) -> _File:
        return self._all_existing(key)[0]

    def _search(self, what: str, *conditions: str) -> Iterator[_File]:
        """Yield the files that meet all `conditions` and are not in the trash, page by page."""
        params = {
            "q": " and ".join((*conditions, "trashed=false")),
            "fields": f"kind,nextPageToken,incompleteSearch,files({_FIELDS})",
            "pageSize": str(_PAGE),
            **self._search_scope,
        }
        while True:
            page = self._http.json(what, "GET", self._files_url, params=params)
            # An answer that is not a list, or half of one, must not pass for a short list.
            if page.get("kind") != "drive#fileList" or page.get("incompleteSearch"):
                raise TransientError(f"cannot {what}: Google Drive gave an incomplete list")
            yield from map(_file_from, page.get("files", ()))
            token = page.get("nextPageToken")
            if not token:
                return
            params["pageToken"] = token

    def _describe(self, file_id: str, key: str) -> _File:
        return _file_from(self._look_up(file_id, f"find {key}"))

    def _look_up(self, file_id: str, what: str) -> dict[str, Any]:
        params = {"fields": _FIELDS, **self._scope}
        return self._http.json(what, "GET", f"{self._files_url}/{file_id}", params=params)

    # -------------------------------------------------------------------------------------- changing files

    def _begun(self, key: str, resume: ResumeRecord | None) -> _Target | None:
        """Return where an earlier put was going that was cut off, if there was one."""
        state = resume.load() if resume is not None else {}
        if not state or not _same_server(state["session"], self._upload_url):
            return None
        target = _Target(key, state["folder"], state["id"])
        target.upload = _ResumableUpload(self._http, state["session"], target.what)
        return target

    def _target(self, key: str, folder: str, begun: _Target | None, resume: ResumeRecord | None) -> _Target:
        """Return where the upload goes: to where `begun` went, if that is the same and can go on, or to a new file."""
        if begun is not None and begun.upload is not None:
            if begun.folder == folder and self._can_go_on(begun, begun.upload):
                return begun
            self._drop(begun)
            clear(resume)
        return _Target(key, folder, self._take_id())

    def _can_go_on(self, begun: _Target, upload: _ResumableUpload) -> bool:
        """Ask Drive what it has of the upload `begun`, or of the file that it made. Returns False if there is neither."""
        if upload.ask() and not upload.stored:
            return True
        try:  # a file that was made may have been deleted since, and the session may be forgotten before the file
            upload.stored = self._look_up(begun.id, begun.what)
        except MissingError:
            return False
        return not _file_from(upload.stored).trashed

    def _send(
        self, target: _Target, first: tuple[bytes, bool], parts: Iterable[tuple[bytes, bool]], resume: ResumeRecord | None
    ) -> _File:
        """Upload `first` and `parts` and return the file."""
        data, is_last = first
        if is_last and len(data) <= _ONE_REQUEST and target.upload is None:
            return _file_from(self._send_whole(target, data))
        return _file_from(self._send_parts(target, chain([first], parts), resume))

    def _send_whole(self, target: _Target, data: bytes) -> dict[str, Any]:
        """Upload metadata and `data` in one request."""
        body, content_type = _multipart(target.metadata, data)
        params = {"uploadType": "multipart", "fields": _FIELDS, **self._scope}
        headers = {"Content-Type": content_type}

        def send() -> dict[str, Any]:
            try:
                return self._http.json(target.what, "POST", self._upload_url, params=params, headers=headers, data=body)
            except ExistsError:  # the file of our own id: an earlier try arrived, and only its answer was lost
                return self._look_up(target.id, target.what)

        return _patiently(target.what, send)

    def _send_parts(self, target: _Target, parts: Iterable[tuple[bytes, bool]], resume: ResumeRecord | None) -> dict[str, Any]:
        """Upload `parts` in the session of `target`, or a new one."""
        upload = target.upload
        if upload is None:
            params = {"uploadType": "resumable", "fields": _FIELDS, **self._scope}
            begin = partial(_ResumableUpload.begin, self._http, self._upload_url, target, params=params)
            upload = target.upload = _patiently(target.what, begin)
            if resume is not None:
                resume.save({"session": upload.uri, "folder": target.folder, "id": target.id})
        for part, is_last in parts:
            upload.send(part, is_last=is_last)
        return upload.stored

    def _refuse_altered(self, file: _File, sent: Digests) -> None:
        """Raise IntegrityError if Drive does not have what was sent, and TransientError if it threw it away at once."""
        if not file.digests or any(sent[name] != digest for name, digest in file.digests.items()):
            message = f"cannot store {file.name}: Google Drive recorded another digest than that of the bytes sent"
            raise IntegrityError(message, hint="run the same command again")
        if file.trashed:
            self._folder_id = None
            raise TransientError(f"cannot store {file.name}: the folder of the store is in the trash of Google Drive")

    def _refuse_second(self, file: _File, folder: str) -> None:
        """Raise ExistsError unless our new `file` is the first of its key, as all who look will see it.

        Of two files of one millisecond either may have been first, and its writer may have looked before the other was there
        and be content. So the one with the larger id withdraws if it sees the other, and the other waits for that.
        """
        error = ExistsError(f"there is an object {file.name} already: another put came first")
        patience = _Patience()
        while rivals := [other for other in self._others(file, folder) if other.created <= file.created]:
            if min([file, *rivals], key=_rank) is not file:
                raise error
            patience.wait(error)

    def _replace(self, old: Sequence[_File], file: _File, folder: str) -> None:
        """Remove the `old` files of the key, and those that came meanwhile before our new `file`, which then is the object.

        Later ones stay: of two who replace at the same moment, the later removes the file of the other, and never both.
        """
        every = {other.id: other for other in (*old, *self._others(file, folder)) if _rank(other) < _rank(file)}

        def remove(other: _File) -> None:
            with suppress(MissingError):
                self._remove(other.id, file.name)

        try:
            # The object last: what is interrupted here must not bring an older one to light.
            for other in sorted(every.values(), key=_rank, reverse=True):
                _patiently(f"replace {file.name}", partial(remove, other))
        except SmpError as error:
            if not error.retryable:  # the old object is there for sure
                self._remove_quietly(file.id, file.name)
            raise

    def _others(self, file: _File, folder: str) -> Sequence[_File]:
        found = _patiently(f"store {file.name}", lambda: [*self._search_key(file.name, folder)])
        return [other for other in found if other.id != file.id]

    def _drop(self, target: _Target) -> None:
        """Leave nothing of an upload."""
        if target.upload is not None and not target.upload.stored:
            target.upload.cancel()
        self._remove_quietly(target.id, target.key)  # also after a failed upload: the last part can arrive without an answer

    def _remove_quietly(self, file_id: str, key: str) -> None:
        with suppress(SmpError):  # the error that led here says more
            self._remove(file_id, key)

    def _remove(self, file_id: str, key: str) -> None:
        url = f"{self._files_url}/{file_id}"
        with self._http.ask(f"delete {key}", "DELETE", url, accept=(_OK, _NO_CONTENT), params=self._scope):
            pass

    def _remember(self, file: _File) -> None:
        with self._lock:
            self._written[file.name] = file.id
            if len(self._written) > _REMEMBERED:
                del self._written[next(iter(self._written))]

    def _take_id(self) -> str:
        """Return an id for a new file, so that making it twice makes one."""
        try:
            return self._ids.pop()
        except IndexError:
            params = {"count": str(_IDS), "space": "drive"}
            page = self._http.json("get ids", "GET", f"{self._files_url}/generateIds", params=params)
            fresh = [str(fresh_id) for fresh_id in page.get("ids", ())]
            if not fresh:
                raise TransientError("cannot get ids: Google Drive gave none") from None
            self._ids.extend(fresh[1:])
            return fresh[0]


# ----------------------------------------------------------------------------------- the data of Drive


@dataclass(frozen=True, slots=True)
class _File:
    """A file as Drive describes it."""

    id: str
    name: str
    size: int
    created: str
    """UTC in RFC 3339 with milliseconds: sorts as text."""
    trashed: bool
    tag: str | None
    """The property by which it is found."""
    digests: Digests

    @property
    def is_object(self) -> bool:
        return self.tag == _property_of(self.name)


_rank = attrgetter("created", "id")


@dataclass(slots=True)
class _Target:
    """Where an upload goes."""

    key: str
    folder: str
    id: str
    """Of the file, which is new."""
    upload: _ResumableUpload | None = None
    """The session, once there is one."""

    @property
    def what(self) -> str:
        return f"store {self.key}"

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.key,
            "parents": [self.folder],
            "mimeType": "application/octet-stream",
            "appProperties": {_PROPERTY: _property_of(self.key)},
        }


def _file_from(data: dict[str, Any]) -> _File:
    digests = {
        name: str(data[field]) for name, field in (("sha256", "sha256Checksum"), ("md5", "md5Checksum")) if field in data
    }
    try:
        return _File(
            id=data["id"],
            name=data["name"],
            size=int(data.get("size", 0)),  # folders and Google's own documents have none
            created=data["createdTime"],
            trashed=bool(data["trashed"]),
            tag=data.get("appProperties", {}).get(_PROPERTY),
            digests=digests,
        )
    except (KeyError, ValueError, TypeError, AttributeError):
        raise TransientError("Google Drive described a file in another way than it documents") from None


def _property_of(key: str) -> str:
    """Return the property by which the object `key` is found. Names are compared as well, so a digest will do."""
    encoded = key.encode()
    return key if len(_PROPERTY) + len(encoded) <= _MAX_PROPERTY else hashlib.sha256(encoded).hexdigest()


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _multipart(metadata: dict[str, Any], data: bytes) -> tuple[bytes, str]:
    """Return the body of an upload in one request and its content type."""
    boundary = secrets.token_hex(16)
    head = (
        f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(metadata)}\r\n"
        f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    return b"".join((head.encode(), data, f"\r\n--{boundary}--\r\n".encode())), f"multipart/related; boundary={boundary}"


# ----------------------------------------------------------------------------------- resumable uploads


class _Patience:
    """How often a step of an upload is tried again, and when, before its failure is reported."""

    def __init__(self) -> None:
        self._pauses = iter(_PAUSES)

    def wait(self, error: SmpError) -> None:
        """Wait before the next try, or raise `error` if enough was tried or a limiter of our own says so."""
        pause = next(self._pauses, None)
        asked = (error.retry_after or 0) if isinstance(error, ThrottledError) else 0
        if pause is None or asked > _LONGEST_PAUSE or isinstance(error, RateLimitError):
            raise error
        time.sleep(max(pause, asked))


def _patiently(what: str, act: Callable[[], _Result]) -> _Result:
    """Return what `act` does, which is part of an upload and can be done twice, after a few tries if need be."""
    patience = _Patience()
    while True:
        try:
            return act()
        except MissingError:
            raise TransientError(f"cannot {what}: the folder was deleted meanwhile") from None
        except TransientError as error:
            patience.wait(error)


def _same_server(uri: str, url: str) -> bool:
    """Tell whether an upload session is where it should be: the token goes to nobody else."""
    return urlsplit(uri)[:2] == urlsplit(url)[:2]


class _ResumableUpload:
    """An upload session of Drive. It takes parts in order and goes on where Drive stopped after a failure."""

    def __init__(self, http: Http, uri: str, what: str) -> None:
        self._http, self.uri, self._what = http, uri, what
        self._start = 0
        """Where the next part begins in the file."""
        self._have = 0
        """How many bytes of the file Drive has."""
        self.stored: dict[str, Any] = {}
        """Drive's description of the file, once all of it is there."""

    @classmethod
    def begin(cls, http: Http, url: str, target: _Target, *, params: Mapping[str, str]) -> _ResumableUpload:
        """Open a session."""
        with http.ask(target.what, "POST", url, params=params, json=target.metadata) as answer:
            uri = answer.headers.get("Location", "")
        if not _same_server(uri, url):
            raise TransientError(f"cannot {target.what}: Google Drive opened no upload session")
        return cls(http, uri, target.what)

    def ask(self) -> bool:
        """Find out what Drive has of an upload that was cut off. Returns False if it has forgotten the session."""
        try:
            answer = self._put(b"", "bytes */*")
        except SmpError as error:
            if error.retryable:
                raise
            return False  # whichever 4xx it is, Google says, the session is over
        if isinstance(answer, dict):
            self.stored = answer
        else:
            self._have = answer
        return True

    def send(self, part: bytes, *, is_last: bool) -> None:
        """Send what Drive does not have of the next part. After the last, `stored` is there."""
        start, end = self._start, self._start + len(part)
        if is_last and self._have > end:
            message = f"cannot {self._what}: these are fewer bytes than Google Drive was sent before"
            raise IntegrityError(message, hint="run the same command again")
        total = str(end) if is_last else "*"
        only_ask, patience = self._have == end, _Patience()
        while not self.stored and (self._have < end or is_last):
            try:
                if only_ask:
                    answer = self._put(b"", f"bytes */{total}")
                else:
                    answer = self._put(part[self._have - start :], f"bytes {self._have}-{end - 1}/{total}")
            except MissingError:  # waiting does not bring it back
                raise TransientError(f"cannot {self._what}: Google Drive dropped the upload session") from None
            except TransientError as error:
                patience.wait(error)
                only_ask = True
                continue
            if isinstance(answer, dict):
                self.stored = answer
                break
            if not start <= answer <= end:
                raise TransientError(f"cannot {self._what}: Google Drive lost a part that it had confirmed")
            if answer > self._have:
                patience = _Patience()
            elif not only_ask or self._have == end:
                patience.wait(TransientError(f"cannot {self._what}: Google Drive takes no more of it"))
            self._have, only_ask = answer, answer == end
        self._start = end

    def cancel(self) -> None:
        """Drop the session and what it has, if Drive can be reached; otherwise Drive does so after a week."""
        with suppress(SmpError), self._http.ask("cancel", "DELETE", self.uri, accept=(_NO_CONTENT, _CANCELLED)):
            pass

    def _put(self, data: bytes, content_range: str) -> dict[str, Any] | int:
        """Return Drive's description of the file if it is complete, else the number of bytes that Drive has."""
        headers, accept = {"Content-Range": content_range}, (_OK, _CREATED, _INCOMPLETE)
        with self._http.ask(self._what, "PUT", self.uri, accept=accept, headers=headers, data=data) as answer:
            if answer.status_code != _INCOMPLETE:
                return object_in(answer)
            confirmed = re.fullmatch(r"bytes=0-(\d{1,15})", answer.headers.get("Range", ""))
            return int(confirmed[1]) + 1 if confirmed else 0
