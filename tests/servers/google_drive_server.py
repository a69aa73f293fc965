"""A Google Drive on loopback: the part of API v3 that the connector uses, as Google documents it, and what goes wrong with it.

Only what is asked for in `fields` is returned, lists come in small pages and no order, a shared drive is seen only by those who
say that they know of such, and uploads in parts obey the rule of 256 KiB. Faults are attributes of GoogleDriveServer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import trustme

GRANULE = 256 * 1024  # parts but the last have a multiple of this
FOLDER = "application/vnd.google-apps.folder"
CLIENT_ID, CLIENT_SECRET = "client-id", "client-secret-7f3a9c"
MAX_BODY = 64 << 20
MULTIPART_LIMIT = 5 * 1024 * 1024
CANCELLED = 499


@dataclass
class StoredFile:
    """A file or folder."""

    id: str
    name: str
    mime_type: str
    parents: list[str]
    properties: dict[str, str]
    content: bytes | None
    created: str
    trashed: bool = False
    lag: int = 0
    """How many searches will not see it yet."""
    trashes_itself_after: int | None = None
    """How many searches will still see it."""


@dataclass
class Session:
    """A resumable upload that is not finished."""

    file_id: str | None
    metadata: dict[str, Any]
    data: bytearray = field(default_factory=bytearray)
    done: StoredFile | None = None


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    at: float


@dataclass
class Failure:
    """An answer to give instead of the right one."""

    times: int
    status: int
    reason: str
    on: str
    headers: dict[str, str]


class _Answer(Exception):  # noqa: N818 - the way out of any depth
    def __init__(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.headers = status, headers or {}
        self.body = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()


def _refusal(status: int, reason: str) -> _Answer:
    error = {"domain": "global", "reason": reason, "message": f"The message of {reason}."}
    return _Answer(status, {"error": {"code": status, "message": error["message"], "errors": [error]}})


class GoogleDriveServer:
    """Runs while it is entered. `folder` gets the certificate of its authority."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca_file = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self._server = _Server(self, context)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self.token_uri = f"{self.url}/token"
        self.lock = threading.RLock()
        self.files: dict[str, StoredFile] = {}
        self.sessions: dict[str, Session] = {}
        self.requests: list[Request] = []
        self.crashes: list[BaseException] = []
        self.tokens = {f"access-{secrets.token_hex(16)}"}
        self.refresh_token = f"refresh-{secrets.token_hex(16)}"
        self.service_accounts: set[str] = set()
        self.root = "0ARootOfMyDrive"
        self.shared_drives: set[str] = set()
        self._given_ids: set[str] = set()
        self._used_ids: set[str] = set()
        self._ticks = 0
        # Faults.
        self.page_size = 3
        self.failures: list[Failure] = []
        self.quota_full = False
        self.drop_after: list[int] = []
        """For each of the next parts of an upload: bytes after which the connection breaks."""
        self.persist_at_most: list[int] = []
        """For each of the next parts of an upload: bytes that are kept of it."""
        self.lose_answers = 0
        """How many of the next uploads, or last parts of one, are done and not answered."""
        self.alter_uploads = False
        self.flip_download_at: int | None = None
        self.cut_download_at: int | None = None
        self.hang_on = ""
        """Requests like this ("GET /drive") get no answer until the test is over."""
        self.files_per_millisecond = 1
        self.search_lag = 0
        self.incomplete_search = False
        self.before_commit: Callable[[GoogleDriveServer, dict[str, Any]], None] = lambda _server, _metadata: None
        self.released = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.stop()
        if self.crashes:
            raise self.crashes[0]

    @property
    def token(self) -> str:
        """A token that is accepted."""
        return next(iter(self.tokens))

    def fail(self, times: int, status: int, reason: str = "backendError", *, on: str = "", **headers: str) -> None:
        """Answer the next `times` requests like `on` ("PUT /upload") with `status`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.failures.append(Failure(times, status, reason, on, named))

    def asked(self, on: str) -> list[Request]:
        """Return the requests that begin with `on`."""
        with self.lock:
            return [request for request in self.requests if f"{request.method} {request.target}".startswith(on)]

    def objects(self) -> dict[str, list[bytes]]:
        """Return the contents of all files that are no folders, by name, oldest first."""
        found: dict[str, list[bytes]] = {}
        with self.lock:
            for file in sorted(self.files.values(), key=lambda f: (f.created, f.id)):
                if file.content is not None:
                    found.setdefault(file.name, []).append(file.content)
        return found

    def add(self, name: str, content: bytes | None, parents: list[str], **properties: str) -> StoredFile:
        """Make a file behind the client's back."""
        mime_type = FOLDER if content is None else "application/octet-stream"
        return self.commit(
            None, {"name": name, "parents": parents, "mimeType": mime_type, "appProperties": properties}, content
        )

    def folders(self, name: str) -> list[StoredFile]:
        """Return the folders called `name`."""
        with self.lock:
            return [file for file in self.files.values() if file.content is None and file.name == name]

    # ------------------------------------------------------------------------------------------------- what the drive does

    def commit(self, file_id: str | None, metadata: dict[str, Any], content: bytes | None) -> StoredFile:
        """Make a file (of the id in `metadata`, if any), or change that of `file_id`."""
        if content is not None and self.alter_uploads:
            content = bytes([content[0] ^ 1]) + content[1:]
        with self.lock:
            if file_id is not None:
                file = self.file(file_id)
                file.content = content
                return file
            new_id = metadata.get("id") or f"made-{secrets.token_hex(12)}"
            if metadata.get("id") and new_id not in self._given_ids:
                raise _refusal(400, "invalid")
            if new_id in self._used_ids:
                raise _refusal(409, "fileIdInUse")
            for parent in metadata.get("parents", [self.root]):
                self.file(parent)
            self._used_ids.add(new_id)
            self._ticks += 1
            created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self._ticks // self.files_per_millisecond)
            file = StoredFile(
                id=new_id,
                name=metadata["name"],
                mime_type=metadata.get("mimeType", "application/octet-stream"),
                parents=[self.root if p == "root" else p for p in metadata.get("parents", [self.root])],
                properties=dict(metadata.get("appProperties", {})),
                content=content,
                created=created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                lag=self.search_lag,
            )
            self.files[new_id] = file
            return file

    def file(self, file_id: str) -> StoredFile:
        """Return a file, or the top of a drive as one."""
        if file_id in {"root", self.root, *self.shared_drives}:
            return StoredFile(file_id, "", FOLDER, [], {}, None, "")
        try:
            return self.files[file_id]
        except KeyError:
            raise _refusal(404, "notFound") from None

    def is_trashed(self, file: StoredFile) -> bool:
        """Whether it, or a folder that it is in, is in the trash."""
        return file.trashed or any(self.is_trashed(self.file(parent)) for parent in file.parents)

    def drive_of(self, file: StoredFile) -> str:
        """Return the drive that a file is in."""
        while file.parents:
            if file.parents[0] in self.shared_drives | {self.root}:
                return file.parents[0]
            file = self.file(file.parents[0])
        return file.id

    def visible(self, file_id: str, query: dict[str, str]) -> StoredFile:
        """Return a file if those who ask like this may see it."""
        file = self.file(file_id)
        if self.drive_of(file) in self.shared_drives and query.get("supportsAllDrives") != "true":
            raise _refusal(404, "notFound")
        return file

    def describe(self, file: StoredFile, fields: str) -> dict[str, Any]:
        """Return a file as JSON, with `fields` only."""
        content: dict[str, Any] = {}
        if file.content is not None:
            content = {
                "size": str(len(file.content)),
                "md5Checksum": hashlib.md5(file.content, usedforsecurity=False).hexdigest(),
                "sha256Checksum": hashlib.sha256(file.content).hexdigest(),
            }
        everything = {
            "kind": "drive#file",
            "id": file.id,
            "name": file.name,
            "mimeType": file.mime_type,
            "parents": file.parents,
            "createdTime": file.created,
            "trashed": self.is_trashed(file),
            **({"appProperties": file.properties} if file.properties else {}),
            **content,
        }
        wanted = fields.split(",") if fields else ["kind", "id", "name", "mimeType"]
        return {name: value for name, value in everything.items() if name in wanted}

    def give_ids(self, count: int) -> list[str]:
        """Return new ids for files, in no order of time."""
        ids = [f"1{secrets.token_urlsafe(24)}" for _ in range(count)]
        self._given_ids.update(ids)
        return ids

    def search(self, query: dict[str, str]) -> dict[str, Any]:
        """Answer files.list."""
        drive = query.get("driveId", self.root)
        if drive != self.root:
            named = (query.get("corpora"), query.get("includeItemsFromAllDrives"), query.get("supportsAllDrives"))
            if named != ("drive", "true", "true"):
                raise _refusal(403, "teamDrivesParentLimit")
            if drive not in self.shared_drives:
                raise _refusal(404, "notFound")
        matches = self._condition(query.get("q", ""))
        with self.lock:
            found = []
            for file in self.files.values():
                if self.drive_of(file) == drive and matches(file):
                    found += [file] if not file.lag else []
                    file.lag = max(0, file.lag - 1)
                    if file.trashes_itself_after is not None:
                        file.trashes_itself_after -= 1
                        file.trashed = file.trashes_itself_after <= 0
        found.sort(key=lambda file: hashlib.sha256(file.id.encode()).digest())  # no order that anybody could rely on
        start = int(query.get("pageToken", "~0")[1:])
        size = min(int(query.get("pageSize", "100")), self.page_size)
        fields = query.get("fields", "kind,nextPageToken,incompleteSearch,files(kind,id,name,mimeType)")
        of_files = re.search(r"files\(([^)]*)\)", fields)
        page: dict[str, Any] = {
            "kind": "drive#fileList",
            "incompleteSearch": self.incomplete_search,
            "files": [self.describe(file, of_files[1]) for file in found[start : start + size]] if of_files else [],
        }
        if start + size < len(found):
            page["nextPageToken"] = f"~{start + size}"
        outer = re.sub(r"\([^)]*\)", "", fields).split(",")
        return {name: value for name, value in page.items() if name in outer}

    def _condition(self, q: str) -> Callable[[StoredFile], bool]:
        """Return the test that a query means; those parts of the language that exist here."""
        text = r"'((?:[^'\\]|\\.)*)'"
        tests: list[Callable[[StoredFile], bool]] = []
        terms: list[tuple[str, Callable[..., Callable[[StoredFile], bool]]]] = [
            (rf"name\s*=\s*{text}", lambda name: lambda file: file.name == name),
            (rf"mimeType\s*=\s*{text}", lambda kind: lambda file: file.mime_type == kind),
            (rf"{text} in parents", self._in_parent),
            (r"trashed\s*=\s*(true|false)", lambda value: lambda file: self.is_trashed(file) == (value == "true")),
            (
                rf"appProperties has \{{\s*key\s*=\s*{text} and value\s*=\s*{text}\s*\}}",
                lambda key, value: lambda file: file.properties.get(key) == value,
            ),
        ]
        rest = q
        while rest:
            for pattern, make in terms:
                if match := re.match(pattern, rest):
                    tests.append(make(*(re.sub(r"\\(.)", r"\1", group) for group in match.groups())))
                    rest = rest[match.end() :]
                    break
            else:
                raise _refusal(400, "invalid")
            if rest and not rest.startswith(" and "):
                raise _refusal(400, "invalid")
            rest = rest.removeprefix(" and ")
        return lambda file: all(test(file) for test in tests)

    def _in_parent(self, parent: str) -> Callable[[StoredFile], bool]:
        self.file(parent)  # a folder that does not exist is an error, not an empty list
        wanted = self.root if parent == "root" else parent
        return lambda file: wanted in file.parents

    def new_token(self, form: dict[str, str]) -> dict[str, Any]:
        """Answer the token server."""
        if form.get("grant_type") == "refresh_token":
            given = (form.get("refresh_token"), form.get("client_id"), form.get("client_secret"))
            accepted = given == (self.refresh_token, CLIENT_ID, CLIENT_SECRET)
        else:
            claims = form.get("assertion", "..").split(".")[1]
            issuer = json.loads(base64.urlsafe_b64decode(claims + "==") or b"{}").get("iss")
            accepted = issuer in self.service_accounts
        if not accepted:
            body = {"error": "invalid_grant", "error_description": f"not accepted: {form}"}  # as unwise as a server may be
            raise _Answer(400, body)
        token = f"access-{secrets.token_hex(16)}"
        self.tokens.add(token)
        return {"access_token": token, "expires_in": 3600, "token_type": "Bearer"}


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # they are joined at the end
    block_on_close = True
    request_queue_size = 64

    def __init__(self, drive: GoogleDriveServer, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.drive, self._context = drive, context
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()

    def get_request(self) -> tuple[ssl.SSLSocket, Any]:
        # The handshake happens in the thread of the connection, so that a silent client holds up nobody else.
        raw, address = super().get_request()
        raw.settimeout(20)
        connection = self._context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        with self._guard:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        import sys  # noqa: PLC0415 - the error is nowhere else

        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):  # clients may go away; anything else is a fault of ours
            self.drive.crashes.append(error)

    def stop(self) -> None:
        with self._guard:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body of an answer are written apart
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - names that the base class looks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
        """Say nothing."""

    @property
    def drive(self) -> GoogleDriveServer:
        return self.server.drive

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        if length > MAX_BODY or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            return
        body = self._read_body(length)
        if body is None:
            return
        request = Request(self.command, self.path, dict(self.headers.items()), body, time.monotonic())
        with self.drive.lock:
            self.drive.requests.append(request)
        line = f"{self.command} {self.path}"
        if self.drive.hang_on and line.startswith(self.drive.hang_on):
            self.drive.released.wait(20)
            self.close_connection = True
            return
        try:
            self._refuse_as_told(line)
            answer = self._route(request)
        except _Answer as raised:
            answer = raised
        self._send(answer)

    def _read_body(self, length: int) -> bytes | None:
        """Read the body, unless the connection is to break before its end: then keep what came of it."""
        is_part = self.command == "PUT" and length > 0
        if not (is_part and self.drive.drop_after):
            return self.rfile.read(length)
        limit = self.drive.drop_after.pop(0)
        part = self.rfile.read(min(limit, length))
        with self.drive.lock:
            self.drive.requests.append(Request(self.command, self.path, dict(self.headers.items()), part, time.monotonic()))
        session = self.drive.sessions[_query_of(self.path)["upload_id"]]
        start = int(re.findall(r"\d+", self.headers["Content-Range"])[0])
        if start == len(session.data):
            session.data += part[: len(part) // GRANULE * GRANULE]
        self._break()
        return None

    def _break(self) -> None:
        """Reset the connection."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()

    def _refuse_as_told(self, line: str) -> None:
        with self.drive.lock:
            for failure in self.drive.failures:
                if failure.times and line.startswith(failure.on):
                    failure.times -= 1
                    refusal = _refusal(failure.status, failure.reason)
                    refusal.headers.update(failure.headers)
                    raise refusal

    def _route(self, request: Request) -> _Answer:
        path, query = urlsplit(self.path).path, _query_of(self.path)
        if (self.command, path) == ("POST", "/token"):
            form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
            return _Answer(200, self.drive.new_token(form))
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self.drive.tokens:
            raise _refusal(401, "authError")
        name = path.removeprefix("/upload").removeprefix("/drive/v3/")
        return (self._upload if path.startswith("/upload/") else self._call)(request, name, query)

    def _call(self, request: Request, name: str, query: dict[str, str]) -> _Answer:
        match self.command, name.split("/"):
            case "GET", ["about"]:
                if "fields" not in query:
                    raise _refusal(400, "required")
                used = sum(len(file.content or b"") for file in self.drive.files.values())
                return _Answer(200, {"storageQuota": {"usage": str(used)}})
            case "GET", ["files"]:
                return _Answer(200, self.drive.search(query))
            case "GET", ["files", "generateIds"]:
                ids = self.drive.give_ids(min(int(query.get("count", "10")), 1000))
                return _Answer(200, {"kind": "drive#generatedIds", "space": "drive", "ids": ids})
            case "POST", ["files"]:
                made = self._commit(None, json.loads(request.body), None)
                return _Answer(200, self.drive.describe(made, query.get("fields", "")))
            case "GET", ["files", file_id]:
                file = self.drive.visible(file_id, query)
                if query.get("alt") == "media":
                    return self._download(file)
                return _Answer(200, self.drive.describe(file, query.get("fields", "")))
            case "DELETE", ["files", file_id]:
                with self.drive.lock:
                    del self.drive.files[self.drive.visible(file_id, query).id]
                return _Answer(204)
        raise _refusal(404, "notFound")

    def _commit(self, file_id: str | None, metadata: dict[str, Any], content: bytes | None) -> StoredFile:
        if self.drive.quota_full and content is not None:
            raise _refusal(403, "storageQuotaExceeded")
        for name, value in metadata.get("appProperties", {}).items():
            if len((name + value).encode()) > 124:
                raise _refusal(400, "propertyTooLarge")
        self.drive.before_commit(self.drive, metadata)
        return self.drive.commit(file_id, metadata, content)

    def _download(self, file: StoredFile) -> _Answer:
        if file.content is None:
            raise _refusal(403, "fileNotDownloadable")
        content, status, headers = file.content, 200, {}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            if first >= len(content):
                return _Answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            last = min(last, len(content) - 1)
            headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            content, status = content[first : last + 1], 206
        if (at := self.drive.flip_download_at) is not None:
            content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        return _Answer(status, content, headers)

    # ---------------------------------------------------------------------------------------------------------- uploads

    def _upload(self, request: Request, name: str, query: dict[str, str]) -> _Answer:
        if "upload_id" in query:
            return self._session(request, query)
        file_id = name.removeprefix("files/") if self.command == "PATCH" else None
        if file_id is not None:
            self.drive.visible(file_id, query)
        match query.get("uploadType"):
            case "multipart":
                metadata, content = self._multipart(request.body)
                file = self._commit(file_id, metadata, content)
                return self._finished(file, query)
            case "media":
                return self._finished(self._commit(file_id, {"name": "Untitled"}, request.body), query)
            case "resumable":
                if self.drive.quota_full:
                    raise _refusal(403, "storageQuotaExceeded")
                upload_id = secrets.token_urlsafe(32)
                self.drive.sessions[upload_id] = Session(file_id, json.loads(request.body or b"{}"))
                return _Answer(200, b"", {"Location": f"{self.drive.url}{self.path}&upload_id={upload_id}"})
        raise _refusal(400, "invalid")

    def _multipart(self, body: bytes) -> tuple[dict[str, Any], bytes]:
        kind = self.headers["Content-Type"]
        if len(body) > MULTIPART_LIMIT or not kind.startswith("multipart/related; boundary="):
            raise _refusal(400, "invalid")
        pieces = body.split(b"--" + kind.partition("boundary=")[2].strip('"').encode())
        if len(pieces) != 4 or pieces[3].strip() != b"--":
            raise _refusal(400, "invalid")
        newline = b"\r\n" if pieces[1].startswith(b"\r\n") else b"\n"  # Google's own client sends the latter
        frame = len(newline)
        metadata, content = (piece[frame:-frame].partition(2 * newline)[2] for piece in pieces[1:3])
        return json.loads(metadata), content

    def _finished(self, file: StoredFile, query: dict[str, str]) -> _Answer:
        if self.drive.lose_answers:
            self.drive.lose_answers -= 1
            return _Answer(0)
        return _Answer(200, self.drive.describe(file, query.get("fields", "")))

    def _session(self, request: Request, query: dict[str, str]) -> _Answer:
        session = self.drive.sessions.get(query["upload_id"])
        if session is None:
            raise _refusal(404, "notFound")
        if self.command == "DELETE":
            del self.drive.sessions[query["upload_id"]]
            return _Answer(CANCELLED)
        if session.done:
            return _Answer(200, self.drive.describe(session.done, query.get("fields", "")))
        header = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers.get("Content-Range", ""))
        if not header:
            raise _refusal(400, "invalid")
        first, last, total = header.groups()
        if first is not None:
            self._take(session, request.body, int(first), int(last), is_last=total != "*")
        if total == str(len(session.data)):
            session.done = self._commit(session.file_id, session.metadata, bytes(session.data))
            return self._finished(session.done, query)
        return _Answer(308, b"", {"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {})

    def _take(self, session: Session, body: bytes, first: int, last: int, *, is_last: bool) -> None:
        if not body or last - first + 1 != len(body) or first > len(session.data) or (len(body) % GRANULE and not is_last):
            raise _refusal(400, "invalid")
        kept = body[: self.drive.persist_at_most.pop(0)] if self.drive.persist_at_most else body
        session.data += kept[len(session.data) - first :]

    def _send(self, answer: _Answer) -> None:
        if answer.status == 0:
            self._break()
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        is_error = answer.status >= 400 and answer.body
        self.send_header("Content-Type", "application/json" if is_error else "application/octet-stream")
        if answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        cut = self.drive.cut_download_at if "alt=media" in self.path and answer.status < 300 else None
        self.wfile.write(answer.body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


def _query_of(target: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(target).query, keep_blank_values=True).items()}
