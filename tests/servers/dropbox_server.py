"""A Dropbox of our own on loopback: the routes that a store needs, answering as Dropbox documents, and faults on demand."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import socket
import ssl
import sys
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, RLock, Thread
from typing import Any

import pytest
import trustme
import urllib3

API, CONTENT = "api.dropboxapi.com", "content.dropboxapi.com"
ACCESS_TOKEN, REFRESH_TOKEN = "sl.access-91f0c2d7", "refresh-5be1a04c"
APP_KEY, APP_SECRET = "appkey-7d20", "appsecret-c41e88"
SECRETS = (ACCESS_TOKEN, REFRESH_TOKEN, APP_SECRET)

_BLOCK = 4 << 20
_LARGEST_BODY = 150 << 20  # as Dropbox has it
_LONGEST_HANG = 30.0  # seconds
_SCOPES = {
    "files/upload": "files.content.write",
    "files/upload_session/start": "files.content.write",
    "files/upload_session/append_v2": "files.content.write",
    "files/upload_session/finish": "files.content.write",
    "files/delete_v2": "files.content.write",
    "files/restore": "files.content.write",
    "files/download": "files.content.read",
    "files/get_metadata": "files.metadata.read",
    "files/list_folder": "files.metadata.read",
    "files/list_folder/continue": "files.metadata.read",
}
_CONTENT_ROUTES = {route for route in _SCOPES if "upload" in route or "download" in route}
_OWN_NAMES = {"desktop.ini", "thumbs.db", ".ds_store", "icon\r", ".dropbox", ".dropbox.attr"}


def content_hash(data: bytes) -> str:
    """Dropbox's hash, computed as its documentation says, independently of the package."""
    blocks = (data[start : start + _BLOCK] for start in range(0, len(data), _BLOCK))
    return hashlib.sha256(b"".join(hashlib.sha256(block).digest() for block in blocks)).hexdigest()


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def route(self) -> str:
        return self.path.removeprefix("/2/")

    @property
    def arg(self) -> Any:
        """The argument of the route, wherever it is carried."""
        return json.loads(self.headers.get("dropbox-api-arg") or self.body or b"null")


@dataclass
class Faults:
    """What goes wrong; a test sets it, and a number counts down."""

    throttle: int = 0
    """Requests to answer with 429."""
    retry_after: int = 1
    """Seconds, in those answers."""
    unavailable: int = 0
    """Requests to answer with 503."""
    lose_answer_to: str = ""
    """A route: its next request is carried out and then answered with 503."""
    drop_at: str = ""
    """A route: its requests find the connection closed instead of an answer."""
    hang: bool = False
    """No request is answered."""
    full: bool = False
    """The account has no space left."""
    busy: bool = False
    """Other writes are going on in the account."""
    forget_sessions: bool = False
    """Upload sessions are gone as soon as they are begun."""
    wrong_offset: int | None = None
    """Where each upload session says that it ends."""
    damage_upload: bool = False
    """What is stored differs from what came, and nothing is checked."""
    cut_download_after: int | None = None
    """The connection is closed after so many bytes of a download."""
    flip_download_at: int | None = None
    """The place of a byte that changes in each download."""
    ignore_range: bool = False
    """Downloads are always of the whole file."""
    login_page: bool = False
    """Somebody else answers, with a page of HTML."""
    refuse: int = 0
    """A status, such as 400, for an answer with `refusal` as its text."""
    refusal: str = ""


@dataclass
class _File:
    path: str
    """In the case in which it is shown."""
    data: bytes
    rev: str

    def metadata(self) -> dict[str, Any]:
        return {
            ".tag": "file",
            "name": self.path.rpartition("/")[2],
            "path_lower": self.path.lower(),
            "path_display": self.path,
            "id": "id:" + hashlib.sha256(self.path.lower().encode()).hexdigest()[:22],
            "client_modified": "2026-11-20T10:00:00Z",
            "server_modified": "2026-11-20T10:00:00Z",
            "rev": self.rev,
            "size": len(self.data),
            "is_downloadable": True,
            "content_hash": content_hash(self.data),
        }


def _folder_metadata(path: str) -> dict[str, Any]:
    name = path.rpartition("/")[2]
    return {".tag": "folder", "name": name, "path_lower": path.lower(), "path_display": path, "id": f"id:{path.lower()}"}


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class _RouteError(Exception):
    """A 409."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error)
        self.error = error


class _RequestError(Exception):
    """An answer that is an error of no route in particular."""

    def __init__(self, status: int, body: dict[str, Any] | str, **headers: str) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


def _json(value: object, status: int = 200, **headers: str) -> _Answer:
    return _Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


def _at(path_error: str, **more: object) -> _RouteError:
    return _RouteError({".tag": "path", "path": {".tag": path_error, **more}})


class Account:
    """The files of one account, and the routes."""

    def __init__(self) -> None:
        self.files: dict[str, _File] = {}
        """By path in lower case."""
        self.folders: dict[str, str] = {}
        """Path in lower case → as it is shown. They stay when they become empty."""
        self.page_size = 3
        self.trap: Callable[[], None] | None = None
        """Called before each page of a listing but the first: the moment for somebody else to change something."""
        self.faults = Faults()
        self._sessions: dict[str, bytearray] = {}
        self._committed: set[str] = set()
        self._revisions: dict[str, _File] = {}
        self._cursors: dict[str, list[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)

    # Writing

    def upload(self, arg: dict[str, Any], body: bytes) -> dict[str, Any]:
        self._check_hash(arg, body)
        try:
            return self.save(arg, body)
        except _RouteError as error:  # an upload wraps its reason once more
            reason = error.error["path"]
            raise _RouteError({".tag": "path", "reason": reason, "upload_session_id": "pid_1"}) from error

    def session_start(self, arg: dict[str, Any], body: bytes) -> dict[str, Any]:
        self._check_hash(arg, body)
        session = f"session-{next(self._numbers)}"
        if not self.faults.forget_sessions:
            self._sessions[session] = bytearray(body)
        return {"session_id": session}

    def session_append(self, arg: dict[str, Any], body: bytes) -> None:
        self._check_hash(arg, body)
        self._session(arg, lambda error: error).extend(body)

    def session_finish(self, arg: dict[str, Any], body: bytes) -> dict[str, Any]:
        self._check_hash(arg, body)
        session = self._session(arg, lambda error: {".tag": "lookup_failed", "lookup_failed": error})
        session.extend(body)
        saved = self.save(arg["commit"], bytes(session))
        del self._sessions[arg["cursor"]["session_id"]]
        self._committed.add(arg["cursor"]["session_id"])
        return saved

    def expire_sessions(self) -> None:
        """Let seven days pass: all upload sessions are forgotten, committed ones as well."""
        self._sessions.clear()
        self._committed.clear()

    def cut_sessions(self, size: int) -> None:
        """Let all upload sessions end after `size` bytes: the rest of the last request was lost on the way."""
        for session in self._sessions.values():
            del session[size:]

    def _session(self, arg: dict[str, Any], wrap: Callable[[dict[str, Any]], dict[str, Any]]) -> bytearray:
        cursor = arg["cursor"]
        if cursor["session_id"] in self._committed:
            raise _RouteError(wrap({".tag": "closed"}))
        session = self._sessions.get(cursor["session_id"])
        if session is None:
            raise _RouteError(wrap({".tag": "not_found"}))
        end = len(session) if self.faults.wrong_offset is None else self.faults.wrong_offset
        if cursor["offset"] != end:
            raise _RouteError(wrap({".tag": "incorrect_offset", "correct_offset": end}))
        return session

    def _check_hash(self, arg: dict[str, Any], body: bytes) -> None:
        if not self.faults.damage_upload and arg.get("content_hash") not in (None, content_hash(body)):
            raise _RouteError({".tag": "content_hash_mismatch"})

    def save(self, commit: dict[str, Any], data: bytes) -> dict[str, Any]:
        """Put a file in its place, under the conditions of `commit`."""
        path = _well_formed(commit["path"])
        if self.faults.full:
            raise _at("insufficient_space")
        if self.faults.busy:
            raise _at("too_many_write_operations")
        if path.rpartition("/")[2].lower() in _OWN_NAMES:
            raise _at("disallowed_name")
        ancestors = [path[:end] for end in range(1, len(path)) if path[end] == "/"]
        if any(folder.lower() in self.files for folder in ancestors):
            raise _at("conflict", conflict={".tag": "file_ancestor"})
        if path.lower() in self.folders:
            raise _at("conflict", conflict={".tag": "folder"})
        taken = self.files.get(path.lower())
        if taken and _tag(commit.get("mode", "add")) == "add":
            if commit.get("strict_conflict") or taken.data != data:
                raise _at("conflict", conflict={".tag": "file"})
            return _untagged(taken)
        for folder in ancestors:
            self.folders.setdefault(folder.lower(), folder)
        shown = self.folders.get(ancestors[-1].lower(), "") if ancestors else ""
        stored = b"\xff" + data[1:] if self.faults.damage_upload else data
        file = _File(f"{shown}/{path.rpartition('/')[2]}", stored, f"{next(self._numbers):012x}")
        self.files[path.lower()] = self._revisions[file.rev] = file
        return _untagged(file)

    def delete(self, arg: dict[str, Any], _body: bytes) -> dict[str, Any]:
        path = _well_formed(arg["path"]).lower()
        file = self.files.get(path)
        if file is None and path not in self.folders:
            raise _RouteError({".tag": "path_lookup", "path_lookup": {".tag": "not_found"}})
        if arg.get("parent_rev") and (file is None or file.rev != arg["parent_rev"]):
            raise _RouteError({".tag": "path_write", "path_write": {".tag": "conflict", "conflict": {".tag": "file"}}})
        metadata = file.metadata() if file else _folder_metadata(self.folders[path])
        for known in [*self.files, *self.folders]:
            if known == path or known.startswith(f"{path}/"):
                self.files.pop(known, None)
                self.folders.pop(known, None)
        return {"metadata": metadata}

    def restore(self, arg: dict[str, Any], _body: bytes) -> dict[str, Any]:
        path = _well_formed(arg["path"]).lower()
        file = self._revisions.get(arg["rev"])
        if file is None or file.path.lower() != path:
            raise _RouteError({".tag": "invalid_revision"})
        self.files[path] = _File(file.path, file.data, f"{next(self._numbers):012x}")
        return _untagged(self.files[path])

    # Reading

    def get_metadata(self, arg: dict[str, Any], _body: bytes) -> dict[str, Any]:
        path = _well_formed(arg["path"]).lower()
        if path in self.folders:
            return _folder_metadata(self.folders[path])
        return self.file(path).metadata()

    def file(self, path: str) -> _File:
        path = _well_formed(path).lower()
        if path in self.folders:
            raise _at("not_file")
        if path not in self.files:
            raise _at("not_found")
        return self.files[path]

    def list_folder(self, arg: dict[str, Any], _body: bytes) -> dict[str, Any]:
        path = arg["path"].lower()
        if path and _well_formed(path) in self.files:
            raise _at("not_folder")
        if path and path not in self.folders:
            raise _at("not_found")
        found = [file.metadata() for file in self.files.values()] + [_folder_metadata(f) for f in self.folders.values()]
        below = [entry for entry in found if entry["path_lower"].startswith(f"{path}/")]
        if not arg.get("recursive"):
            below = [entry for entry in below if "/" not in entry["path_lower"][len(path) + 1 :]]
        random.Random(len(below)).shuffle(below)  # Dropbox promises no order
        return self._page(below)

    def list_continue(self, arg: dict[str, Any], _body: bytes) -> dict[str, Any]:
        if self.trap:
            self.trap()
        if arg["cursor"] not in self._cursors:
            raise _RouteError({".tag": "reset"})
        return self._page(self._cursors[arg["cursor"]])

    def _page(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        cursor = f"cursor-{next(self._numbers)}"
        self._cursors[cursor] = entries[self.page_size :]
        return {"entries": entries[: self.page_size], "cursor": cursor, "has_more": len(entries) > self.page_size}

    def tell_in_listings(self, entry: dict[str, Any]) -> None:
        """Add `entry` to the end of every listing that goes on: a change that happened meanwhile."""
        for left in self._cursors.values():
            left.append(entry)

    def forget_cursors(self) -> None:
        self._cursors.clear()


def _well_formed(path: str) -> str:
    if not path.startswith("/"):
        raise _RequestError(400, f"Error in call to API function: path: {path!r} did not match pattern")
    if any(segment in ("", ".", "..") for segment in path[1:].split("/")):
        raise _at("malformed_path", malformed_path=None)
    return path


def _tag(union: Any) -> str:
    return union if isinstance(union, str) else union[".tag"]


def _untagged(file: _File) -> dict[str, Any]:
    return {name: value for name, value in file.metadata().items() if name != ".tag"}


class DropboxServer(Account):
    """The account behind HTTPS, with its tokens, faults, and a record of all that was asked."""

    def __init__(self, certificate: trustme.LeafCert) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        """What went wrong in the server itself: a test that leaves anything here has found a bug in this file."""
        self.access_tokens = {ACCESS_TOKEN}
        self.expired_tokens: set[str] = set()
        self.scopes = set(_SCOPES.values())
        self.keep_bodies = True
        self.stopping = Event()
        self._lock = RLock()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        self._http = _HttpServer(self, context)
        self._thread = Thread(target=self._http.serve_forever, args=(0.02,), name="dropbox-server")
        self._routes: dict[str, Callable[[dict[str, Any], bytes], dict[str, Any] | None]] = {
            "files/upload": self.upload,
            "files/upload_session/start": self.session_start,
            "files/upload_session/append_v2": self.session_append,
            "files/upload_session/finish": self.session_finish,
            "files/get_metadata": self.get_metadata,
            "files/list_folder": self.list_folder,
            "files/list_folder/continue": self.list_continue,
            "files/delete_v2": self.delete,
            "files/restore": self.restore,
        }

    @property
    def port(self) -> int:
        return self._http.server_port

    def routes_asked(self) -> list[str]:
        return [request.route for request in self.requests]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let go of all connections and threads."""
        self.stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.hang_up()
        self._http.server_close()  # joins the threads of the connections

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def answer(self, request: Request) -> _Answer:
        """Carry a request out."""
        with self._lock:
            try:
                self._fail_first(request)
                answer = self._carry_out(request)
            except _RouteError as error:
                summary = "/".join(str(part) for part in error.error.values() if isinstance(part, str))
                return _json({"error_summary": f"{summary}/..", "error": error.error}, 409)
            except _RequestError as error:
                if isinstance(error.body, dict):
                    return _json(error.body, error.status, **error.headers)
                return _Answer(error.status, error.body.encode(), {"Content-Type": "text/plain", **error.headers})
            if self.faults.lose_answer_to == request.route:
                self.faults.lose_answer_to = ""
                return _Answer(503, b"the answer got lost")
            return answer

    def _fail_first(self, request: Request) -> None:
        faults = self.faults
        if faults.throttle:
            faults.throttle -= 1
            error = {"reason": {".tag": "too_many_requests"}, "retry_after": faults.retry_after}
            body = {"error_summary": "too_many_requests/..", "error": error}
            raise _RequestError(429, body, **{"Retry-After": str(faults.retry_after)})
        if faults.unavailable:
            faults.unavailable -= 1
            raise _RequestError(503, "Service Unavailable")
        if faults.refuse:
            raise _RequestError(faults.refuse, faults.refusal)
        if faults.login_page:
            raise _RequestError(200, "<html>Welcome to the hotel. Please log in.</html>")
        host = request.headers["host"].partition(":")[0]
        if host.endswith(".dropboxapi.com") and host != (CONTENT if request.route in _CONTENT_ROUTES else API):
            raise _RequestError(404, "this route lives on another host")

    def _carry_out(self, request: Request) -> _Answer:
        if request.path == "/oauth2/token":
            return self._give_token(request)
        self._check_token(request)
        if request.route == "files/download":
            return self._download(request)
        if request.route not in self._routes:
            raise _RequestError(404, "no such route")
        return _json(self._routes[request.route](request.arg, request.body))

    def _give_token(self, request: Request) -> _Answer:
        form = dict(urllib.parse.parse_qsl(request.body.decode()))
        if form.get("client_id") != APP_KEY or form.get("client_secret", APP_SECRET) != APP_SECRET:
            said = "invalid_client: Invalid client_id or client_secret"
            raise _RequestError(400, {"error": said, "error_description": said})
        if form.get("grant_type") != "refresh_token" or form.get("refresh_token") != REFRESH_TOKEN:
            raise _RequestError(400, {"error": "invalid_grant", "error_description": "refresh token is invalid or revoked"})
        return _json({"access_token": ACCESS_TOKEN, "token_type": "bearer", "expires_in": 14400})

    def _check_token(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer":
            said = f'Invalid authorization value in HTTP header "Authorization": "{scheme} {token}"'
            raise _RequestError(400, said)  # Dropbox repeats what it was sent
        if token in self.expired_tokens:
            raise _unauthorized("expired_access_token")
        if token not in self.access_tokens:
            raise _unauthorized("invalid_access_token")
        scope = _SCOPES.get(request.route)
        if scope not in self.scopes:
            raise _unauthorized("missing_scope", required_scope=scope)

    def _download(self, request: Request) -> _Answer:
        file = self.file(request.arg["path"])
        data = bytearray(file.data)
        headers = {"Content-Type": "application/octet-stream", "Dropbox-API-Result": json.dumps(_untagged(file))}
        status, begin, end = 200, 0, len(data)
        if "range" in request.headers and not self.faults.ignore_range:
            first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
            status, begin, end = 206, int(first), min(int(last) + 1 if last else end, end)
            if begin >= len(data):
                raise _RequestError(416, "", **{"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        if self.faults.flip_download_at is not None:
            data[self.faults.flip_download_at] ^= 0xFF
        return _Answer(status, bytes(data[begin:end]), headers)


def _unauthorized(tag: str, **more: object) -> _RequestError:
    return _RequestError(401, {"error_summary": f"{tag}/..", "error": {".tag": tag, **more}})


class _HttpServer(ThreadingHTTPServer):
    """Speaks TLS; each connection in a thread of its own, the handshake included."""

    daemon_threads = False

    def __init__(self, dropbox: DropboxServer, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.dropbox = dropbox
        self._context = context
        self._open: set[ssl.SSLSocket] = set()

    def get_request(self) -> tuple[ssl.SSLSocket, Any]:
        connection, address = super().get_request()
        # Answers go out in two pieces; without this the second waits for the client to acknowledge the first.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wrapped = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self._open.add(wrapped)
        return wrapped, address

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in tuple(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the client was first
                pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError) and error is not None:  # that a client hangs up is its business
            self.dropbox.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HttpServer
    timeout = _LONGEST_HANG

    def do_POST(self) -> None:
        dropbox = self.server.dropbox
        length = int(self.headers.get("Content-Length", 0))
        if length > _LARGEST_BODY:
            self._send(_Answer(413, b"", {"Connection": "close"}))
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if len(body) < length:  # the client hung up
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request("POST", self.path, headers, body)
        dropbox.record(request if dropbox.keep_bodies else Request("POST", self.path, headers, b""))
        if dropbox.faults.hang:
            dropbox.stopping.wait(_LONGEST_HANG)
            self.close_connection = True
        elif dropbox.faults.drop_at == request.route:
            self.close_connection = True
        else:
            self._send(dropbox.answer(request))

    def _send(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        self.send_header("x-dropbox-request-id", f"request-{len(self.server.dropbox.requests)}")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        cut = self.server.dropbox.faults.cut_download_after if "Dropbox-API-Result" in answer.headers else None
        self.wfile.write(answer.body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing."""


def certificates(folder: Path) -> tuple[trustme.LeafCert, Path]:
    """Make a certificate for Dropbox's names and for loopback; returns it and the file of the authority that signed it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    return authority.issue_cert(API, CONTENT, "localhost", "127.0.0.1"), folder / "authority.pem"


@contextmanager
def running(certificate: trustme.LeafCert) -> Iterator[DropboxServer]:
    """Run a server with an empty account. It has stopped, its threads included, when the block ends."""
    server = DropboxServer(certificate)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def take_the_place_of_dropbox(
    server: DropboxServer, authority: Path, monkeypatch: pytest.MonkeyPatch, *, besides: Iterable[tuple[str, int]] = ()
) -> None:
    """Lead every connection to Dropbox's names to `server`, and let no other leave this process but those to `besides`.

    The SDK reads its host names from the environment when it is imported, once for all tests; here they stay the real ones,
    so that certificate and host headers are checked as well.
    """
    connect, others = urllib3.util.connection.create_connection, frozenset(besides)

    def connect_to_server(address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
        if address in others:
            return connect(address, *args, **kwargs)
        if address not in ((API, 443), (CONTENT, 443)):
            raise OSError(f"a test tried to reach {address}")
        return connect(("127.0.0.1", server.port), *args, **kwargs)

    monkeypatch.setattr(urllib3.util.connection, "create_connection", connect_to_server)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))  # stronger than the bundle of requests
