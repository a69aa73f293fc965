"""Google Drive against a server that keeps its documented rules, and what only Drive can do wrong."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import traceback
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import httplib2
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.oauth2.credentials import Credentials
from google_auth_httplib2 import AuthorizedHttp
from googleapiclient.discovery import build_from_document
from googleapiclient.discovery_cache import get_static_doc
from googleapiclient.http import MediaIoBaseDownload, MediaIoBaseUpload

from secure_media_processor.cloud.connectors import google_drive
from secure_media_processor.cloud.connectors.base import Capabilities, ObjectInfo
from secure_media_processor.cloud.connectors.google_drive import GoogleDriveConnector
from secure_media_processor.cloud.connectors.google_http import DRIVE_FILE_SCOPE, load_credentials
from secure_media_processor.cloud.digests import PART_SIZE
from secure_media_processor.cloud.testing import ConnectorConformance
from secure_media_processor.core.rate_limiter import RateLimiter
from secure_media_processor.errors import (
    CredentialsError,
    ExistsError,
    IntegrityError,
    KeyExposedError,
    MissingError,
    MissingExtraError,
    NoSpaceError,
    RateLimitError,
    SmpError,
    ThrottledError,
    TransientError,
    UsageError,
)
from servers.google_drive_server import CLIENT_ID, CLIENT_SECRET, FOLDER, GRANULE, GoogleDriveServer

Connect = Callable[..., GoogleDriveConnector]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleDriveServer]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in {"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}:
            monkeypatch.delenv(name)
    monkeypatch.setattr(google_drive, "_PAUSES", (0.001,) * len(google_drive._PAUSES))
    with GoogleDriveServer(tmp_path_factory.mktemp("drive")) as running:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(running.ca_file))
        yield running


@pytest.fixture
def connect(server: GoogleDriveServer) -> Iterator[Connect]:
    """Make connectors, which are closed at the end."""
    made = []

    def connect(credentials: Credentials | None = None, **options) -> GoogleDriveConnector:
        connector = GoogleDriveConnector(credentials or Credentials(server.token), endpoint=server.url, **options)
        made.append(connector)
        return connector

    yield connect
    for connector in made:
        connector.close()


@pytest.fixture
def store(connect: Connect) -> GoogleDriveConnector:
    return connect()


def refreshable(server: GoogleDriveServer, **changes: str | None) -> Credentials:
    """Return a user's credentials that have no access token yet."""
    values = {"refresh_token": server.refresh_token, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    return Credentials(None, token_uri=server.token_uri, **(values | changes))


def service_account(server: GoogleDriveServer, path: Path) -> Path:
    """Write the credentials file of a service account that the server knows."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    info = {
        "type": "service_account",
        "client_email": "robot@example.org",
        "private_key": pem.decode(),
        "token_uri": server.token_uri,
    }
    server.service_accounts.add(info["client_email"])
    path.touch(mode=0o600)
    path.write_text(json.dumps(info))
    return path


def read(store: GoogleDriveConnector, key: str) -> bytes:
    return b"".join(store.get(key))


class Record:
    """A ResumeRecord in memory."""

    def __init__(self) -> None:
        self.saved: list[dict[str, str]] = [{}]

    def load(self) -> Mapping[str, str]:
        return self.saved[-1]

    def save(self, state: Mapping[str, str]) -> None:
        self.saved.append(dict(state))


class ProcessDied(BaseException):
    """Nothing that anybody handles."""


class TestGoogleDriveConnector(ConnectorConformance):
    @pytest.fixture
    def connector(self, store: GoogleDriveConnector) -> GoogleDriveConnector:
        return store

    def test_one_of_many_writers_wins(
        self, connector: GoogleDriveConnector, server: GoogleDriveServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not promised, as Google does not promise what it takes; this server does what it takes, so it must hold here."""
        assert not connector.capabilities.atomic_create
        monkeypatch.setattr(google_drive, "_PAUSES", (0.05,) * 40)
        server.files_per_millisecond = 3
        claimed = Capabilities(frozenset({"sha256", "md5"}), atomic_create=True, digests_are_stored=True)
        monkeypatch.setattr(GoogleDriveConnector, "capabilities", claimed)
        super().test_one_of_many_writers_wins(connector)


class TestNaming:
    def test_an_object_is_one_file_in_one_folder(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        store.put("a/b", [b"1"])
        store.put("c", [b"2"])
        (folder,) = server.folders("smp")
        assert folder.parents == [server.root]
        files = [file for file in server.files.values() if file.mime_type != FOLDER]
        assert {(file.name, file.properties["smpKey"]) for file in files} == {("a/b", "a/b"), ("c", "c")}
        assert all(file.parents == [folder.id] for file in files)

    @pytest.mark.parametrize("length", [117, 118, 119, 240])
    def test_long_keys_are_found_by_their_digest(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, length: int
    ) -> None:
        key = "k" * length
        store.put(key, [b"1"])
        (file,) = [file for file in server.files.values() if file.name == key]
        assert file.properties["smpKey"] == (key if length <= 118 else sha256(key.encode()).hexdigest())
        assert read(store, key) == b"1"

    def test_the_digest_of_a_long_key_is_another_key(self, store: GoogleDriveConnector) -> None:
        long_key = "k" * 200
        store.put(long_key, [b"long"])
        store.put(sha256(long_key.encode()).hexdigest(), [b"short"])
        assert read(store, long_key) == b"long"
        assert read(store, sha256(long_key.encode()).hexdigest()) == b"short"

    @pytest.mark.parametrize("key", ["it's", "' or name='x", "a' and value='b", "{'}"])
    def test_quotes_are_only_characters(self, store: GoogleDriveConnector, key: str) -> None:
        store.put(key, [b"1"])
        assert read(store, key) == b"1"
        with pytest.raises(MissingError):
            store.stat(key + "'")

    def test_the_name_of_the_folder_may_hold_anything(self, connect: Connect) -> None:
        store = connect(folder="it's \\ ours")
        store.put("a", [b"1"])
        assert [info.key for info in connect(folder="it's \\ ours").list()] == ["a"]

    def test_two_folders_are_two_stores(self, connect: Connect) -> None:
        connect(folder="one").put("a", [b"1"])
        assert not list(connect(folder="two").list())

    def test_reading_makes_no_folder(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        assert not list(store.list())
        with pytest.raises(MissingError):
            store.stat("a")
        assert not server.files

    def test_other_files_are_not_ours(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        store.put("a", [b"1"])
        folder = server.folders("smp")[0].id
        server.add("a", b"by hand", [folder])
        server.add("b", b"by hand", [folder])
        server.add("c", b"of another key", [folder], smpKey="d")
        server.add("e", b"elsewhere", ["root"], smpKey="e")
        assert [info.key for info in store.list()] == ["a"]
        for key in "bcde":
            with pytest.raises(MissingError):
                store.stat(key)
        store.delete("a")
        assert len(server.objects()) == 4

    def test_listing_goes_through_all_pages(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        keys = sorted(f"{number:02}" for number in range(11))
        for key in keys:
            store.put(key, [b"1"])
        before = len(server.requests)
        assert [info.key for info in store.list()] == keys
        assert len(server.requests) - before == 4

    def test_an_incomplete_search_is_no_empty_list(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        store.put("a", [b"1"])
        server.incomplete_search = True
        for act in (lambda: list(store.list()), lambda: store.stat("a")):
            with pytest.raises(TransientError, match="incomplete"):
                act()

    def test_shared_drives(self, connect: Connect, server: GoogleDriveServer) -> None:
        server.shared_drives.add("0ASharedDrive")
        store = connect(shared_drive="0ASharedDrive")
        store.put("a", [secrets.token_bytes(6_000_000)])
        store.put("a", [b"1"], if_absent=False)
        assert read(store, "a") == b"1"
        assert server.folders("smp")[0].parents == ["0ASharedDrive"]
        assert not list(connect().list())
        store.delete("a")
        assert not list(store.list())

    def test_a_shared_drive_that_is_not_there(self, connect: Connect) -> None:
        with pytest.raises(CredentialsError, match="no such drive"):
            list(connect(shared_drive="0AUnknown").list())


class TestSeveralWriters:
    """Drive allows several files of one name, so several may turn up."""

    def twins(self, server: GoogleDriveServer, files_per_millisecond: int = 1) -> None:
        folder = server.add("smp", None, ["root"]).id
        server.files_per_millisecond = files_per_millisecond
        for content in (b"first", b"second", b"third"):
            server.add("twin", content, [folder], smpKey="twin")

    @pytest.mark.parametrize("files_per_millisecond", [1, 100])
    def test_the_first_is_the_object(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, files_per_millisecond: int
    ) -> None:
        self.twins(server, files_per_millisecond)
        first = server.objects()["twin"][0]
        assert read(store, "twin") == first
        assert [(info.key, info.size) for info in store.list()] == [("twin", len(first))]
        assert store.native_digest("twin")["sha256"] == sha256(first).hexdigest()
        with pytest.raises(ExistsError):
            store.put("twin", [b"new"])

    def test_replacing_replaces_what_is_read(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        self.twins(server)
        store.put("twin", [b"new"], if_absent=False)
        assert read(store, "twin") == b"new"

    def test_deleting_deletes_all(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        self.twins(server)
        store.delete("twin")
        assert not server.objects()

    @pytest.mark.parametrize("if_absent", [True, False])
    def test_who_comes_second_withdraws_or_replaces(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, if_absent: bool
    ) -> None:
        store.put("other", [b"1"])

        def rival_comes_first(drive: GoogleDriveServer, metadata: dict) -> None:
            drive.before_commit = lambda _drive, _metadata: None
            drive.add("key", b"rival", metadata["parents"], smpKey="key")

        server.before_commit = rival_comes_first
        with pytest.raises(ExistsError) if if_absent else nullcontext():
            store.put("key", [b"ours"], if_absent=if_absent)
        left = b"rival" if if_absent else b"ours"
        assert server.objects()["key"] == [left]
        assert read(store, "key") == left

    @pytest.mark.parametrize(
        ("rival_id", "withdraws", "ours_wins"), [("0", False, False), ("zzz", False, False), ("zzz", True, True)]
    )
    def test_a_tie_within_a_millisecond(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, rival_id: str, withdraws: bool, ours_wins: bool
    ) -> None:
        """A rival with a larger id that stays has looked before our file was there, and been content."""
        store.put("other", [b"1"])
        server.files_per_millisecond = 1000

        def rival_comes_first(drive: GoogleDriveServer, metadata: dict) -> None:
            drive.before_commit = lambda _drive, _metadata: None
            rival = drive.files.pop(drive.add("key", b"rival", metadata["parents"], smpKey="key").id)
            rival.id = rival_id
            drive.files[rival_id] = rival
            rival.trashes_itself_after = 1 if withdraws else None

        server.before_commit = rival_comes_first
        if ours_wins:
            store.put("key", [b"ours"])
        else:
            with pytest.raises(ExistsError):
                store.put("key", [b"ours"])
        assert read(store, "key") == (b"ours" if ours_wins else b"rival")
        assert len([file for file in server.files.values() if file.name == "key" and not file.trashed]) == 1

    def test_two_who_make_the_folder_use_one(self, connect: Connect, server: GoogleDriveServer) -> None:
        def rival_comes_first(drive: GoogleDriveServer, metadata: dict) -> None:
            drive.before_commit = lambda _drive, _metadata: None
            drive.add("smp", None, ["root"])

        server.before_commit = rival_comes_first
        connect().put("a", [b"1"])
        assert len(server.folders("smp")) == 2
        assert read(connect(), "a") == b"1"

    def test_many_threads_share_a_connector(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        def cycle(number: int) -> None:
            data = secrets.token_bytes(10_000 + number)
            store.put(f"key/{number}", [data])
            assert read(store, f"key/{number}") == data
            store.delete(f"key/{number}")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(cycle, range(24)))
        assert not server.objects()
        assert len(server.folders("smp")) == 1

    def test_what_was_written_is_found_before_searches_show_it(
        self, store: GoogleDriveConnector, server: GoogleDriveServer
    ) -> None:
        """People have seen Drive's searches lag behind its files."""
        store.put("first", [b"1"])
        server.search_lag = 1000
        store.put("late", [b"1"])
        assert store.stat("late").size == 1
        with pytest.raises(ExistsError):
            store.put("late", [b"2"])
        store.delete("late")
        with pytest.raises(MissingError):
            store.stat("late")

    def test_a_remembered_file_may_be_gone(
        self, store: GoogleDriveConnector, connect: Connect, server: GoogleDriveServer
    ) -> None:
        store.put("a", [b"1"])
        connect().delete("a")
        with pytest.raises(MissingError):
            store.stat("a")
        store.put("a", [b"2"])

    def test_only_so_many_are_remembered(self, store: GoogleDriveConnector, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(google_drive, "_REMEMBERED", 2)
        for key in "abc":
            store.put(key, [b"1"])
        assert list(store._written) == ["b", "c"]


class TestUploads:
    BIG = 2 * PART_SIZE + 3 * GRANULE + 17

    def test_parts_are_as_drive_wants_them(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        data = secrets.token_bytes(self.BIG)
        store.put("big", [data])
        ranges = [request.headers["Content-Range"] for request in server.asked("PUT /upload")]
        assert ranges == [
            f"bytes 0-{PART_SIZE - 1}/*",
            f"bytes {PART_SIZE}-{2 * PART_SIZE - 1}/*",
            f"bytes {2 * PART_SIZE}-{self.BIG - 1}/{self.BIG}",
        ]
        assert server.objects()["big"] == [data]

    @pytest.mark.parametrize("size", [0, 1, 5_000_000, 5_000_001, PART_SIZE, PART_SIZE + 1, 2 * PART_SIZE])
    def test_every_edge(self, store: GoogleDriveConnector, server: GoogleDriveServer, size: int) -> None:
        data = secrets.token_bytes(size)
        store.put("edge", iter([data[: size // 3], b"", data[size // 3 :]]))
        store.put("edge", iter([data[::-1]]), if_absent=False)
        assert server.objects()["edge"] == [data[::-1]]
        assert bool(server.asked("PUT /upload")) == (size > 5_000_000)

    @pytest.mark.parametrize("dropped", [[0], [1000], [3 * GRANULE + 5], [PART_SIZE - 1], [GRANULE, 0, 2 * GRANULE, 5]])
    @pytest.mark.parametrize("if_absent", [True, False])
    def test_a_broken_connection_is_taken_up_again(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, dropped: list[int], if_absent: bool
    ) -> None:
        if not if_absent:
            store.put("big", [b"old"])
        data = secrets.token_bytes(self.BIG)
        server.drop_after = list(dropped)
        store.put("big", [data], if_absent=if_absent)
        assert server.objects()["big"] == [data]
        asked = [request for request in server.asked("PUT /upload") if request.headers["Content-Range"].startswith("bytes */")]
        assert asked
        assert not server.drop_after

    @pytest.mark.parametrize("kept", [[0], [GRANULE], [GRANULE, GRANULE], [PART_SIZE, PART_SIZE, GRANULE]])
    def test_drive_may_keep_less_than_was_sent(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, kept: list[int]
    ) -> None:
        data = secrets.token_bytes(self.BIG)
        server.persist_at_most = list(kept)
        store.put("big", [data])
        assert server.objects()["big"] == [data]

    @pytest.mark.parametrize("size", [10, BIG])
    def test_errors_of_the_server_are_sat_out(self, store: GoogleDriveConnector, server: GoogleDriveServer, size: int) -> None:
        data = secrets.token_bytes(size)
        server.fail(2, 503, on="PUT /upload")
        server.fail(2, 500, on="POST /upload")
        server.fail(1, 429, on="PUT /upload")
        store.put("a", [data])
        assert server.objects()["a"] == [data]

    @pytest.mark.parametrize("size", [10, BIG])
    def test_a_lost_answer_makes_no_second_file(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, size: int
    ) -> None:
        data = secrets.token_bytes(size)
        server.lose_answers = 1
        store.put("a", [data])
        assert server.objects()["a"] == [data]

    @pytest.mark.parametrize("on", ["POST /upload", "PUT /upload"])
    def test_patience_ends(self, store: GoogleDriveConnector, server: GoogleDriveServer, on: str) -> None:
        server.fail(100, 503, on=on)
        with pytest.raises(TransientError):
            store.put("a", [secrets.token_bytes(self.BIG)])
        assert len(server.asked(on)) == len(google_drive._PAUSES) + 1
        server.failures.clear()
        assert not server.objects()
        assert not [session for session in server.sessions.values() if not session.done]

    def test_a_drive_that_takes_nothing(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        server.persist_at_most = [0] * 100
        with pytest.raises(TransientError, match="takes no more"):
            store.put("a", [secrets.token_bytes(self.BIG)])
        assert not server.objects()

    def test_a_long_pause_is_left_to_the_caller(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        server.fail(1, 429, "rateLimitExceeded", on="PUT /upload", Retry_After="3600")
        with pytest.raises(ThrottledError) as caught:
            store.put("a", [secrets.token_bytes(self.BIG)])
        assert caught.value.retry_after == 3600
        assert not server.objects()

    def test_a_dropped_session(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        def source() -> Iterator[bytes]:
            yield bytes(2 * PART_SIZE + 1)
            server.sessions.clear()
            yield bytes(PART_SIZE)

        with pytest.raises(TransientError, match="session"):
            store.put("a", source())
        assert not server.objects()

    def test_a_drive_that_forgets_a_part(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        def source() -> Iterator[bytes]:
            yield bytes(2 * PART_SIZE + 1)
            (session,) = server.sessions.values()
            session.data.clear()
            server.drop_after = [0]
            yield bytes(PART_SIZE)

        with pytest.raises(TransientError, match="lost a part"):
            store.put("a", source())
        assert not server.objects()

    @pytest.mark.parametrize("size", [10, BIG])
    def test_what_drive_alters_is_noticed_and_removed(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, size: int
    ) -> None:
        server.alter_uploads = True
        with pytest.raises(IntegrityError):
            store.put("a", [secrets.token_bytes(size)])
        assert not server.objects()
        server.alter_uploads = False
        store.put("a", [b"old"])
        server.alter_uploads = True
        with pytest.raises(IntegrityError):
            store.put("a", [secrets.token_bytes(size)], if_absent=False)
        assert server.objects() == {"a": [b"old"]}

    def test_who_may_not_delete_replaces_nothing(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        store.put("a", [b"old"])
        server.fail(1, 403, "insufficientFilePermissions", on="DELETE /drive")
        with pytest.raises(CredentialsError):
            store.put("a", [b"new"], if_absent=False)
        assert server.objects()["a"] == [b"old"]

    def test_a_replacement_that_is_cut_off_at_its_end(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        """Whether the old one is gone nobody can tell, so the new one stays; the next put settles it."""
        store.put("a", [b"old"])
        server.fail(100, 503, on="DELETE /drive")
        with pytest.raises(TransientError):
            store.put("a", [b"new"], if_absent=False)
        server.failures.clear()
        assert server.objects()["a"] == [b"old", b"new"]
        assert read(store, "a") == b"old"
        store.put("a", [b"newest"], if_absent=False)
        assert server.objects()["a"] == [b"newest"]

    def test_an_old_one_that_goes_meanwhile_need_not_be_removed(
        self, store: GoogleDriveConnector, server: GoogleDriveServer
    ) -> None:
        store.put("a", [b"old"])
        old = store._written["a"]

        def old_goes(drive: GoogleDriveServer, metadata: dict) -> None:
            drive.before_commit = lambda _drive, _metadata: None
            del drive.files[old]

        server.before_commit = old_goes
        store.put("a", [b"new"], if_absent=False)
        assert server.objects()["a"] == [b"new"]

    @pytest.mark.parametrize("old", [None, b"old"])
    def test_a_wrong_digest_stops_before_the_last_part(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, old: bytes | None
    ) -> None:
        if old is not None:
            store.put("a", [old])
        with pytest.raises(IntegrityError):
            store.put("a", [bytes(self.BIG)], digests={"sha256": "0" * 64}, if_absent=False)
        assert len(server.asked("PUT /upload")) == 2
        assert not server.sessions
        assert server.objects() == ({} if old is None else {"a": [old]})

    @pytest.mark.parametrize("error", [ValueError, MissingError, TransientError, OSError, KeyboardInterrupt])
    def test_an_error_of_the_source_comes_through(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, error: type[BaseException]
    ) -> None:
        def source() -> Iterator[bytes]:
            yield bytes(PART_SIZE + 1)
            raise error("mine")

        with pytest.raises(error, match="mine"):
            store.put("a", source())
        assert not server.sessions
        assert not server.objects()

    def test_a_full_drive(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        server.quota_full = True
        for size in (10, self.BIG):
            with pytest.raises(NoSpaceError):
                store.put("a", [bytes(size)])
        assert not server.objects()

    def test_a_session_elsewhere_gets_no_token(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with GoogleDriveServer(tmp_path) as elsewhere:
            monkeypatch.setattr(server, "url", elsewhere.url)  # what the server puts into Location
            with pytest.raises(TransientError, match="no upload session"):
                store.put("a", [bytes(self.BIG)])
            assert not elsewhere.requests

    def test_a_folder_in_the_trash(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        store.put("a", [b"1"])
        server.folders("smp")[0].trashed = True
        with pytest.raises(TransientError, match="trash"):
            store.put("b", [b"1"])
        assert "b" not in server.objects()
        store.put("b", [b"1"])
        assert [info.key for info in store.list()] == ["b"]

    def test_a_deleted_folder(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        store.put("a", [b"1"])
        server.files.clear()
        with pytest.raises(TransientError, match="folder"):
            store.put("b", [b"1"])
        store.put("b", [b"1"])

        def folder_goes(drive: GoogleDriveServer, metadata: dict) -> None:
            drive.files.clear()

        server.before_commit = folder_goes
        with pytest.raises(TransientError, match="deleted"):
            store.put("c", [b"1"])

    def test_memory_stays_the_same(self, store: GoogleDriveConnector) -> None:
        """The server of the test keeps all it gets, so what counts is what the client holds: it is asked in the source."""
        block, held = bytes(1 << 20), []

        def source() -> Iterator[bytes]:
            for _ in range(48):
                yield block
                ours = tracemalloc.take_snapshot().filter_traces(
                    [tracemalloc.Filter(inclusive=True, filename_pattern=google_drive.__file__)]
                )
                held.append(sum(stat.size for stat in ours.statistics("filename")))

        tracemalloc.start()
        try:
            store.put("big", source())
        finally:
            tracemalloc.stop()
        assert max(held) < 3.5 * PART_SIZE


class Upload:
    """An upload with a record, of three parts and some more. It replaces what is there if `old` is not None."""

    SENT = 2 * PART_SIZE

    def __init__(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        self.store, self.server, self.record = store, server, Record()
        self.data = secrets.token_bytes(self.SENT + PART_SIZE + 3 * GRANULE + 17)
        self.old: bytes | None = None

    def put_first(self, old: bytes | None) -> None:
        """Let there be an object already, to be replaced, unless `old` is None."""
        if old is not None:
            self.store.put("a", [old])
        self.old = old

    def put(self, source: Iterable[bytes], **options) -> ObjectInfo:
        return self.store.put("a", source, **{"if_absent": self.old is None, "resume": self.record} | options)

    def source(self, error: BaseException) -> Iterator[bytes]:
        """Three parts, of which two are sent before the error: the third could be the last."""
        yield self.data[: self.SENT + PART_SIZE]
        raise error

    def cut_off(self) -> None:
        """Leave two parts in a session that stands in the record."""
        with pytest.raises(ProcessDied):
            self.put(self.source(ProcessDied()))
        assert self.record.load()
        assert self.received() == self.SENT

    def finish_unheard(self) -> None:
        """Put all, but for the last answer."""

        def go_down(drive: GoogleDriveServer, metadata: dict) -> None:
            if metadata.get("mimeType") != FOLDER:
                drive.before_commit = lambda _drive, _metadata: None
                drive.lose_answers = 1
                drive.fail(1000, 503)

        self.server.before_commit = go_down
        with pytest.raises(TransientError):
            self.put([self.data])
        self.server.failures.clear()
        assert self.data in self.server.objects()["a"]
        assert self.record.load()

    def received(self) -> int:
        return sum(len(request.body) for request in self.server.asked("PUT /upload"))

    def sent_by_another_put(self) -> int:
        """Put all, which works, and return how many bytes were sent for that."""
        before = self.received()
        assert self.put([self.data]).size == len(self.data)
        assert self.server.objects()["a"] == [self.data]
        self.assert_nothing_is_left()
        return self.received() - before

    def assert_nothing_is_left(self) -> None:
        assert self.record.load() == {}
        assert not [session for session in self.server.sessions.values() if not session.done]


class TestResumedUploads:
    """With a record, what was cut off is taken up again by a later put."""

    @pytest.fixture
    def upload(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> Upload:
        return Upload(store, server)

    @pytest.mark.parametrize("old", [None, b"old"])
    @pytest.mark.parametrize("error", [TransientError("mine"), OSError(), KeyboardInterrupt(), ProcessDied()], ids=repr)
    def test_only_what_is_missing_is_sent(
        self, upload: Upload, connect: Connect, server: GoogleDriveServer, error: BaseException, old: bytes | None
    ) -> None:
        upload.put_first(old)
        with pytest.raises(type(error)):
            upload.put(upload.source(error))
        assert server.objects() == ({} if old is None else {"a": [old]})
        assert upload.received() == upload.SENT
        upload.store = connect()  # another process
        assert upload.sent_by_another_put() == len(upload.data) - upload.SENT
        if old is None:
            assert upload.record.saved[1]["id"] in server.files

    @pytest.mark.parametrize("kept", [0, GRANULE, PART_SIZE, PART_SIZE + 3 * GRANULE])
    def test_drive_says_where_to_go_on(self, upload: Upload, server: GoogleDriveServer, kept: int) -> None:
        upload.cut_off()
        (session,) = server.sessions.values()
        del session.data[kept:]
        assert upload.sent_by_another_put() == len(upload.data) - kept

    def test_all_was_there_but_not_the_end(self, upload: Upload, server: GoogleDriveServer) -> None:
        """The last bytes had come, but not that they were the last."""
        upload.cut_off()
        (session,) = server.sessions.values()
        session.data[:] = upload.data
        assert upload.sent_by_another_put() == 0

    def test_an_outage_between_parts(self, upload: Upload, server: GoogleDriveServer) -> None:
        def source() -> Iterator[bytes]:
            yield upload.data[: upload.SENT + PART_SIZE]
            server.fail(1000, 503, on="PUT /upload")
            yield upload.data[upload.SENT + PART_SIZE :]

        with pytest.raises(TransientError):
            upload.put(source())
        for _ in range(2):  # the outage goes on
            with pytest.raises(TransientError):
                upload.put([upload.data])
        server.failures.clear()
        assert upload.sent_by_another_put() == len(upload.data) - upload.SENT

    @pytest.mark.parametrize("status", [400, 404, 410, 499])
    @pytest.mark.parametrize("old", [None, b"old"])
    def test_a_session_that_is_gone_is_begun_anew(
        self, upload: Upload, server: GoogleDriveServer, status: int, old: bytes | None
    ) -> None:
        upload.put_first(old)
        upload.cut_off()
        if status == 404:
            server.sessions.clear()
        else:
            server.fail(1, status, on="PUT /upload")
        assert upload.sent_by_another_put() == len(upload.data)

    @pytest.mark.parametrize("forgotten", [False, True])
    @pytest.mark.parametrize("search_lag", [0, 1000])
    def test_a_file_that_was_made_without_an_answer_counts_as_stored(
        self, upload: Upload, connect: Connect, server: GoogleDriveServer, search_lag: int, forgotten: bool
    ) -> None:
        upload.store.put("other", [b"1"])
        server.search_lag = search_lag
        upload.finish_unheard()
        if forgotten:
            server.sessions.clear()
        upload.store = connect()
        assert upload.sent_by_another_put() == 0

    @pytest.mark.parametrize("forgotten", [False, True])
    def test_a_replacement_without_an_answer(self, upload: Upload, server: GoogleDriveServer, forgotten: bool) -> None:
        """The new file is there, beside the old one, which goes now."""
        upload.put_first(b"old")
        upload.finish_unheard()
        if forgotten:
            server.sessions.clear()
        assert upload.sent_by_another_put() == 0

    @pytest.mark.parametrize("trashed", [False, True])
    def test_a_file_that_was_made_and_deleted_is_made_anew(
        self, upload: Upload, server: GoogleDriveServer, trashed: bool
    ) -> None:
        upload.finish_unheard()
        made = upload.record.load()["id"]
        if trashed:
            server.files[made].trashed = True
        else:
            del server.files[made]
        assert upload.sent_by_another_put() == len(upload.data)

    @pytest.mark.parametrize("is_made", [False, True])
    def test_a_key_that_was_taken_before(self, upload: Upload, server: GoogleDriveServer, is_made: bool) -> None:
        upload.store.put("other", [b"1"])
        rival = server.add("a", b"rival", [server.folders("smp")[0].id], smpKey="a")
        rival.trashed = True
        if is_made:
            upload.finish_unheard()
        else:
            upload.cut_off()
        rival.trashed = False
        with pytest.raises(ExistsError):
            upload.put([upload.data])
        assert server.objects()["a"] == [b"rival"]
        upload.assert_nothing_is_left()

    def test_a_key_that_was_taken_after_the_file_was_made(self, upload: Upload, server: GoogleDriveServer) -> None:
        """By one who will see that it came second, and withdraw."""
        upload.finish_unheard()
        rival = server.add("a", b"rival", [server.folders("smp")[0].id], smpKey="a")
        upload.put([upload.data])
        upload.assert_nothing_is_left()
        assert server.objects()["a"] == [upload.data, rival.content]

    def test_a_key_that_was_taken_is_replaced(self, upload: Upload) -> None:
        upload.old = b"none yet, but it would be replaced"
        upload.cut_off()
        upload.store.put("a", [b"rival"])
        assert upload.sent_by_another_put() == len(upload.data) - upload.SENT

    def test_what_was_to_be_replaced_was_deleted(self, upload: Upload) -> None:
        upload.put_first(b"old")
        upload.cut_off()
        upload.store.delete("a")
        assert upload.sent_by_another_put() == len(upload.data) - upload.SENT

    @pytest.mark.parametrize("trashed", [False, True])
    def test_a_folder_that_went_meanwhile(
        self, upload: Upload, connect: Connect, server: GoogleDriveServer, trashed: bool
    ) -> None:
        upload.cut_off()
        (folder,) = server.folders("smp")
        if trashed:
            folder.trashed = True
        else:
            del server.files[folder.id]
        upload.store = connect()
        assert upload.sent_by_another_put() == len(upload.data)

    @pytest.mark.parametrize("old", [None, b"old"])
    @pytest.mark.parametrize("fault", ["digests", "full", "account"])
    def test_a_permanent_error_leaves_nothing(
        self, upload: Upload, server: GoogleDriveServer, fault: str, old: bytes | None
    ) -> None:
        upload.put_first(old)
        upload.cut_off()
        server.quota_full = fault == "full"
        if fault == "account":
            server.fail(1, 403, "insufficientPermissions", on="GET /drive")
        with pytest.raises(SmpError) as caught:
            upload.put([upload.data], digests={"sha256": "0" * 64} if fault == "digests" else None)
        assert not caught.value.retryable
        assert server.objects() == ({} if old is None else {"a": [old]})
        upload.assert_nothing_is_left()

    @pytest.mark.parametrize("size", [None, PART_SIZE + 5, 5])
    @pytest.mark.parametrize("old", [None, b"old"])
    def test_bytes_that_changed_meanwhile(
        self, upload: Upload, server: GoogleDriveServer, old: bytes | None, size: int | None
    ) -> None:
        upload.put_first(old)
        upload.cut_off()
        with pytest.raises(IntegrityError):
            upload.put([(b"changed" + upload.data[7:])[:size]])
        assert server.objects() == ({} if old is None else {"a": [old]})
        upload.assert_nothing_is_left()

    def test_nothing_is_sent_before_the_record_is_safe(self, upload: Upload, server: GoogleDriveServer) -> None:
        class FullDisk(Record):
            def save(self, state: Mapping[str, str]) -> None:
                raise OSError

        with pytest.raises(OSError):  # noqa: PT011 - it has no text
            upload.put([upload.data], resume=FullDisk())
        assert not upload.received()
        assert not server.sessions

    def test_small_objects_need_no_record(self, upload: Upload, server: GoogleDriveServer) -> None:
        upload.store.put("other", [b"1"], resume=upload.record)
        server.lose_answers = 1
        server.fail(100, 503, on="GET /drive/v3/files/")
        with pytest.raises(TransientError):
            upload.put([b"1"])
        assert "a" not in server.objects()
        assert upload.record.saved == [{}]

    def test_a_session_elsewhere_gets_no_token(self, upload: Upload, server: GoogleDriveServer, tmp_path: Path) -> None:
        upload.cut_off()
        begun = upload.record.load()
        with GoogleDriveServer(tmp_path) as elsewhere:
            upload.record.save({**begun, "session": begun["session"].replace(server.url, elsewhere.url)})
            upload.put([upload.data])
            assert not elsewhere.requests
        assert server.objects() == {"a": [upload.data]}


class TestDownloads:
    def test_a_flipped_byte_is_for_the_caller_to_notice(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, tmp_path: Path
    ) -> None:
        data = secrets.token_bytes(100_000)
        store.put("a", [data])
        server.flip_download_at = 50_000
        with pytest.raises(IntegrityError):
            store.download_file("a", tmp_path / "out", digests={"sha256": sha256(data).hexdigest()})
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("cut", [0, 1, 999_999])
    def test_a_cut_download_is_an_error(self, store: GoogleDriveConnector, server: GoogleDriveServer, cut: int) -> None:
        store.put("a", [secrets.token_bytes(1_000_000)])
        server.cut_download_at = cut
        with pytest.raises(TransientError):
            read(store, "a")

    def test_it_comes_as_a_stream(self, store: GoogleDriveConnector) -> None:
        data = secrets.token_bytes(3_000_000)
        store.put("a", [data])
        blocks = store.get("a")
        assert next(blocks) == data[: 256 * 1024]
        blocks.close()  # type: ignore[attr-defined]
        assert read(store, "a") == data

    def test_a_range_is_asked_for_as_one(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        store.put("a", [b"0123456789"])
        assert b"".join(store.get("a", offset=2, length=3)) == b"234"
        assert server.requests[-1].headers["Range"] == "bytes=2-4"

    def test_replaced_while_it_is_read(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        store.put("a", [secrets.token_bytes(1000)])
        find = store._existing

        def find_then_replace(key: str) -> object:
            found = find(key)
            server.files[found.id].content = b"shorter"
            return found

        store._existing = find_then_replace  # type: ignore[method-assign]
        with pytest.raises(TransientError, match="replaced"):
            read(store, "a")

    def test_digests_are_drives_own(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        store.put("a", [b"data"])
        assert set(store.native_digest("a")) == {"sha256", "md5"}
        (file,) = [file for file in server.files.values() if file.content]
        file.content = b"rotten"
        assert store.native_digest("a")["sha256"] == sha256(b"rotten").hexdigest()


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "reason", "error"),
        [
            (400, "badRequest", SmpError),
            (401, "authError", CredentialsError),
            (403, "insufficientPermissions", CredentialsError),
            (403, "insufficientFilePermissions", CredentialsError),
            (403, "accessNotConfigured", CredentialsError),
            (403, "rateLimitExceeded", ThrottledError),
            (403, "userRateLimitExceeded", ThrottledError),
            (403, "storageQuotaExceeded", NoSpaceError),
            (403, "teamDriveFileLimitExceeded", NoSpaceError),
            (429, "rateLimitExceeded", ThrottledError),
            (408, "requestTimeout", TransientError),
            (500, "internalError", TransientError),
            (503, "backendError", TransientError),
        ],
    )
    def test_each_answer_has_its_error(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, status: int, reason: str, error: type[SmpError]
    ) -> None:
        store.put("a", [b"1"])
        server.fail(1000, status, reason)
        for act in (
            store.stat,
            store.delete,
            store.native_digest,
            lambda key: list(store.get(key)),
            lambda _: list(store.list()),
        ):
            with pytest.raises(SmpError) as caught:
                act("a")
            assert type(caught.value) is error
        with pytest.raises(error):
            store.put("b", [b"1"])

    def test_one_failure_is_one_error(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        """Repeating is the business of a wrapper."""
        store.put("a", [b"1"])
        server.fail(1, 503)
        with pytest.raises(TransientError):
            store.stat("a")
        assert store.stat("a").size == 1

    def test_the_pause_that_drive_asks_for(self, store: GoogleDriveConnector, server: GoogleDriveServer) -> None:
        for status, reason in ((429, "tooMany"), (403, "userRateLimitExceeded")):
            server.fail(1, status, reason, Retry_After="17")
            with pytest.raises(ThrottledError) as caught:
                store.stat("a")
            assert caught.value.retry_after == 17
        server.fail(1, 429, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT")
        with pytest.raises(ThrottledError) as caught:
            store.stat("a")
        assert caught.value.retry_after is None

    def test_a_server_that_hangs(self, connect: Connect, server: GoogleDriveServer) -> None:
        store = connect(timeout=0.2)
        server.hang_on = "GET /drive"
        with pytest.raises(TransientError, match="no answer"):
            store.stat("a")

    def test_no_server(self, server: GoogleDriveServer) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            endpoint = f"https://127.0.0.1:{unused.getsockname()[1]}"
            with (
                GoogleDriveConnector(Credentials("x"), endpoint=endpoint, timeout=2) as store,
                pytest.raises(TransientError, match="no answer"),
            ):
                store.stat("a")

    def test_a_stranger_in_the_middle(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(TransientError, match="SSLError"):
            store.stat("a")
        assert not server.requests

    @pytest.mark.parametrize(
        "answer",
        [
            b"", b"<html>sign in</html>", [], {}, {"files": []}, {"kind": "drive#fileList", "files": [{"id": "1"}]},
            {"kind": "drive#fileList", "files": [{"id": "1", "name": "smp", "createdTime": "", "trashed": 0, "size": None}]},
        ],
    )  # fmt: skip
    def test_an_answer_that_is_none(
        self, store: GoogleDriveConnector, server: GoogleDriveServer, monkeypatch: pytest.MonkeyPatch, answer: object
    ) -> None:
        """Such as a hotel's network gives. It must not look like an empty store."""
        monkeypatch.setattr(server, "search", lambda _query: answer)
        for act in (lambda: list(store.list()), lambda: store.put("a", [b""]), lambda: store.stat("a")):
            with pytest.raises(TransientError):
                act()

    def test_a_closed_connector(self, connect: Connect, server: GoogleDriveServer) -> None:
        with connect() as store:
            store.put("a", [b"1"])
        before = len(server.requests)
        with pytest.raises(UsageError, match="closed"):
            store.stat("a")
        assert len(server.requests) == before
        assert store._http._account._credentials is None

    def test_closed_while_it_reads(self, connect: Connect) -> None:
        store = connect()
        store.put("a", [bytes(1_000_000)])
        blocks = store.get("a")
        next(blocks)
        store.close()
        blocks.close()  # type: ignore[attr-defined]
        assert not store._http._idle


class TestCredentials:
    def test_a_user(self, connect: Connect, server: GoogleDriveServer) -> None:
        store = connect(refreshable(server))
        store.put("a", [b"1"])
        assert len(server.asked("POST /token")) == 1

    def test_a_service_account_talks_to_nobody_else(
        self, connect: Connect, server: GoogleDriveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hosts, look_up, threads = set(), socket.getaddrinfo, threading.active_count()

        def look_up_and_note(host: str, *args, **kwargs):
            hosts.add(host)
            return look_up(host, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", look_up_and_note)
        store = connect(load_credentials(service_account(server, tmp_path / "robot.json")))
        assert not list(store.list())
        assert hosts == {"127.0.0.1"}
        assert threading.active_count() <= threads + 2  # those of the server
        assert len(server.asked("POST /token")) == 1

    def test_a_withdrawn_token_is_renewed_once(self, connect: Connect, server: GoogleDriveServer) -> None:
        store = connect(refreshable(server))
        store.put("a", [b"1"])
        server.tokens.clear()
        assert store.stat("a").size == 1
        assert len(server.asked("POST /token")) == 2

    def test_many_threads_renew_once(self, connect: Connect, server: GoogleDriveServer) -> None:
        store = connect(refreshable(server))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: list(store.list()), range(8)))
        assert len(server.asked("POST /token")) == 1

    def test_many_threads_renew_a_withdrawn_token_once(self, connect: Connect, server: GoogleDriveServer) -> None:
        together, waiting = threading.Barrier(8), []

        def wait_for_the_others() -> None:
            if waiting:
                waiting.pop()
                together.wait(10)  # so that each has a token in hand, the same one

        store = connect(refreshable(server), before_request=wait_for_the_others)
        store.put("a", [b"1"])
        server.tokens.clear()
        waiting.extend(range(8))
        with ThreadPoolExecutor(8) as pool:
            assert [info.size for info in pool.map(store.stat, "a" * 8)] == [1] * 8
        assert len(server.asked("POST /token")) == 2

    def test_a_token_that_cannot_be_renewed(self, connect: Connect) -> None:
        with pytest.raises(CredentialsError) as caught:
            connect(Credentials("expired")).stat("a")
        assert caught.value.hint

    @pytest.mark.parametrize("change", [{"refresh_token": "revoked"}, {"client_secret": "another"}])
    def test_a_refused_refresh(self, connect: Connect, server: GoogleDriveServer, change: dict[str, str]) -> None:
        with pytest.raises(CredentialsError, match="does not accept"):
            connect(refreshable(server, **change)).stat("a")

    def test_a_token_server_that_does_not_answer(
        self, connect: Connect, server: GoogleDriveServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.hang_on = "POST /token"
        with pytest.raises(TransientError, match="token server"):
            connect(refreshable(server), timeout=0.2).stat("a")
        server.hang_on = ""
        monkeypatch.setattr("time.sleep", lambda _seconds: None)  # google-auth tries three times by itself
        server.fail(3, 503, on="POST /token")
        with pytest.raises(TransientError, match="token server"):
            connect(refreshable(server)).stat("a")

    def test_netrc_does_not_take_the_place_of_the_token(self, store: GoogleDriveConnector, home: Path) -> None:
        (home / ".netrc").touch(mode=0o600)
        (home / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
        assert not list(store.list())

    def test_files(self, tmp_path: Path, server: GoogleDriveServer) -> None:
        path = tmp_path / "token.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({"refresh_token": "r", "client_id": "c", "client_secret": "s", "type": "authorized_user"}))
        assert load_credentials(path).scopes == (DRIVE_FILE_SCOPE,)
        assert load_credentials(str(path), scopes=["other"]).scopes == ["other"]
        robot = load_credentials(service_account(server, tmp_path / "robot.json"))
        assert robot.scopes == (DRIVE_FILE_SCOPE,)

    @pytest.mark.parametrize(
        "text",
        [
            "", "{", "[]", "{}", "\x00", '{"installed": {"client_secret": "hush"}}', '{"refresh_token": "hush"}',
            '{"type": "service_account"}',
            '{"type": "service_account", "private_key": "hush", "client_email": "a", "token_uri": "b"}',
            '{"refresh_token": "hush", "client_id": "a", "client_secret": "hush", "expiry": "hush"}',
            '{"refresh_token": "hush", "client_id": "a", "client_secret": "hush", "expiry": 5}',
        ],
    )  # fmt: skip
    def test_damaged_files(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "token.json"
        path.touch(mode=0o600)
        path.write_text(text)
        with pytest.raises(CredentialsError) as caught:
            load_credentials(path)
        assert "hush" not in "".join(traceback.format_exception(caught.value)).replace("test_google", "")

    def test_files_that_are_not_there_or_open_to_others(self, tmp_path: Path) -> None:
        with pytest.raises(CredentialsError, match="no credentials file"):
            load_credentials(tmp_path / "absent")
        path = tmp_path / "token.json"
        path.write_text("{}")
        path.chmod(0o640)
        with pytest.raises(KeyExposedError):
            load_credentials(path)

    @pytest.mark.parametrize("name", ["google.auth", "requests"])
    def test_the_libraries_may_be_missing(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
        monkeypatch.setitem(sys.modules, name, None)
        for act in (lambda: load_credentials(tmp_path / "x"), lambda: GoogleDriveConnector(Credentials("x"))):
            with pytest.raises(MissingExtraError) as caught:
                act()
            assert caught.value.hint == "pip install 'secure-media-processor[gdrive]'"

    def test_the_module_loads_neither_google_nor_requests(self) -> None:
        code = (
            "import sys, secure_media_processor.cloud.connectors.google_drive\n"
            "assert not {'google.auth', 'requests', 'httplib2'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestBeforeRequest:
    def test_it_is_called_before_every_request(self, connect: Connect, server: GoogleDriveServer) -> None:
        asked = []
        store = connect(refreshable(server), before_request=lambda: asked.append(len(server.requests)))
        server.fail(2, 503, on="PUT /upload")
        server.drop_after = [GRANULE]
        store.put("big", [secrets.token_bytes(PART_SIZE + 1)])
        server.tokens.clear()
        store.put("small", [b"1"])
        read(store, "big")
        list(store.list())
        with pytest.raises(MissingError):
            store.stat("absent")
        store.delete("big")
        assert asked == list(range(len(server.requests)))
        assert len(server.asked("POST /token")) == 2

    def test_a_limiter_holds_the_rate(self, connect: Connect, server: GoogleDriveServer) -> None:
        slept = []
        limiter = RateLimiter(10, 2, clock=lambda: sum(slept), sleep=slept.append)
        store = connect(before_request=limiter.acquire)
        store.put("a", [secrets.token_bytes(PART_SIZE + 1)])
        assert sum(slept) == pytest.approx((len(server.requests) - 2) / 10)

    def test_a_limiter_that_gives_up_is_obeyed(self, connect: Connect, server: GoogleDriveServer) -> None:
        calls = 0

        def give_up() -> None:
            nonlocal calls
            calls += 1
            if calls > 6:
                raise RateLimitError("enough")

        with pytest.raises(RateLimitError):
            connect(before_request=give_up).put("a", [bytes(3 * PART_SIZE)])
        assert len(server.requests) == 6
        assert calls == 6 + 1 + 2  # the upload asked once, and then its two steps of cleaning up


class TestSecrets:
    def test_no_error_or_log_holds_one(
        self,
        connect: Connect,
        server: GoogleDriveServer,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setattr("time.sleep", lambda _seconds: None)  # google-auth tries three times by itself
        caplog.set_level(logging.DEBUG)
        for name in ("google", "google.auth", "requests", "urllib3"):
            caplog.set_level(logging.DEBUG, name)  # the first of them keeps quiet unless it is asked
        hidden = {server.token, server.refresh_token, CLIENT_SECRET}
        said = []

        def provoke(store: GoogleDriveConnector) -> None:
            for act in (
                lambda: store.put("a", [secrets.token_bytes(PART_SIZE + 1)]),
                lambda: store.put("a", [b"1"], if_absent=False),
                lambda: read(store, "a"),
                lambda: list(store.list()),
            ):
                try:
                    act()
                except SmpError as error:
                    said.extend((str(error), repr(error), error.hint, *traceback.format_exception(error)))

        revoked = f"refresh-{secrets.token_hex(16)}"
        robot = load_credentials(service_account(server, tmp_path / "robot.json"))
        for credentials in (
            Credentials(server.token),
            refreshable(server),
            refreshable(server, refresh_token=revoked),
            robot,
        ):
            store = connect(credentials, timeout=0.3)
            said.append(repr(store))
            provoke(store)
            for status, reason in ((401, "authError"), (403, server.token), (403, "forbidden"), (500, "backendError")):
                server.fail(1000, status, reason)
                provoke(store)
                server.failures.clear()
            server.drop_after = [1000] * 20
            provoke(store)
            server.drop_after = []
            server.hang_on = "GET /drive"
            provoke(store)
            server.hang_on = ""
        assertions = [re.search(rb"assertion=([^&]+)", request.body) for request in server.asked("POST /token")]
        hidden |= server.tokens | {revoked} | {found[1].decode() for found in assertions if found}
        assert len(hidden) > 5
        everything = "\n".join((*said, caplog.text, *map(repr, (record.__dict__ for record in caplog.records))))
        assert len(said) > 50
        assert not [secret for secret in hidden if secret in everything]
        assert not [request for request in server.requests if any(secret in request.target for secret in hidden)]


class TestTheServer:
    """The server of these tests keeps the rules by which the connector is judged."""

    def ask(self, server: GoogleDriveServer, method: str, path: str, **options) -> requests.Response:
        headers = {"Authorization": f"Bearer {server.token}"} | options.pop("headers", {})
        return requests.request(method, server.url + path, headers=headers, timeout=5, **options)

    def test_googles_own_client_gets_along_with_it(self, server: GoogleDriveServer) -> None:
        """An independent witness that the rules are Google's and not ours."""
        data = secrets.token_bytes(3 * GRANULE + 5)
        description = json.loads(get_static_doc("drive", "v3"))
        description["rootUrl"] = description["mtlsRootUrl"] = f"{server.url}/"
        description["baseUrl"] = f"{server.url}/{description['servicePath']}"
        plain = httplib2.Http(ca_certs=str(server.ca_file), timeout=5)
        plain.redirect_codes -= {308}  # as Google's own build_http does
        http = AuthorizedHttp(Credentials(server.token), http=plain)
        with build_from_document(description, http=http) as drive:
            for file_id, size in zip(drive.files().generateIds(count=2).execute()["ids"], (len(data), 10), strict=True):
                media = MediaIoBaseUpload(io.BytesIO(data[:size]), "application/octet-stream", GRANULE, resumable=size > 10)
                body = {"id": file_id, "name": f"it's {size}", "appProperties": {"k": "v"}}
                made = drive.files().create(body=body, media_body=media, fields="id,size,sha256Checksum").execute()
                assert made == {"id": file_id, "size": str(size), "sha256Checksum": sha256(data[:size]).hexdigest()}
            query = f"name='it\\'s {len(data)}' and appProperties has {{ key='k' and value='v' }} and trashed=false"
            (found,) = drive.files().list(q=query).execute()["files"]
            got = io.BytesIO()
            download = MediaIoBaseDownload(got, drive.files().get_media(fileId=found["id"]), chunksize=GRANULE)
            while not download.next_chunk()[1]:
                pass
            assert got.getvalue() == data
            drive.files().update(fileId=found["id"], media_body=MediaIoBaseUpload(io.BytesIO(b"new"), "x/y")).execute()
            assert drive.files().get_media(fileId=found["id"]).execute() == b"new"
            drive.files().delete(fileId=found["id"]).execute()
            assert [file["name"] for file in drive.files().list().execute()["files"]] == ["it's 10"]

    def test_tokens_are_checked(self, server: GoogleDriveServer) -> None:
        assert self.ask(server, "GET", "/drive/v3/files", headers={"Authorization": "Bearer x"}).status_code == 401

    def test_about(self, server: GoogleDriveServer) -> None:
        server.add("a", b"123", ["root"])
        assert self.ask(server, "GET", "/drive/v3/about").status_code == 400
        assert self.ask(server, "GET", "/drive/v3/about?fields=storageQuota").json()["storageQuota"]["usage"] == "3"

    @pytest.mark.parametrize(
        ("q", "names"),
        [
            ("name='it\\'s'", {"it's"}),
            ("name='a' and trashed=false", {"a"}),
            ("name='a' and trashed=true", set()),
            ("mimeType='application/vnd.google-apps.folder'", {"folder"}),
            ("'root' in parents", {"a", "it's", "folder"}),
            ("appProperties has { key='k' and value='v' }", {"it's"}),
        ],
    )
    def test_queries(self, server: GoogleDriveServer, q: str, names: set[str]) -> None:
        server.page_size = 10
        server.add("a", b"", ["root"])
        server.add("it's", b"", ["root"], k="v")
        server.add("folder", None, ["root"])
        found = self.ask(server, "GET", "/drive/v3/files", params={"q": q}).json()["files"]
        assert {file["name"] for file in found} == names
        assert all("createdTime" not in file for file in found)

    @pytest.mark.parametrize("q", ["name='a", "name='a'b'", "name='a' or name='b'", "nonsense"])
    def test_bad_queries(self, server: GoogleDriveServer, q: str) -> None:
        assert self.ask(server, "GET", "/drive/v3/files", params={"q": q}).status_code == 400

    def test_ids_are_given_once(self, server: GoogleDriveServer) -> None:
        (given,) = self.ask(server, "GET", "/drive/v3/files/generateIds?count=1").json()["ids"]
        for file_id, status in (("invented", 400), (given, 200), (given, 409)):
            metadata = {"id": file_id, "name": "a"}
            assert self.ask(server, "POST", "/drive/v3/files", json=metadata).status_code == status

    def test_parts_have_whole_granules(self, server: GoogleDriveServer) -> None:
        begun = self.ask(server, "POST", "/upload/drive/v3/files?uploadType=resumable", json={"name": "a"})
        path = begun.headers["Location"].removeprefix(server.url)
        for content_range, size, status in (
            ("bytes 0-9/*", 10, 400),
            (f"bytes 0-{GRANULE - 1}/*", GRANULE, 308),
            (f"bytes {GRANULE + 5}-{GRANULE + 9}/*", 5, 400),
            ("bytes */*", 0, 308),
            ("nonsense", 0, 400),
            (f"bytes {GRANULE}-{GRANULE + 9}/{GRANULE + 10}", 10, 200),
            ("bytes */*", 0, 200),
        ):
            answer = self.ask(server, "PUT", path, headers={"Content-Range": content_range}, data=bytes(size))
            assert answer.status_code == status, content_range
        assert len(server.objects()["a"][0]) == GRANULE + 10

    def test_a_cancelled_session_is_gone(self, server: GoogleDriveServer) -> None:
        begun = self.ask(server, "POST", "/upload/drive/v3/files?uploadType=resumable", json={"name": "a"})
        path = begun.headers["Location"].removeprefix(server.url)
        assert self.ask(server, "DELETE", path).status_code == 499
        assert self.ask(server, "PUT", path, headers={"Content-Range": "bytes */*"}).status_code == 404

    def test_deleted_is_gone(self, server: GoogleDriveServer) -> None:
        file = server.add("a", b"1", ["root"])
        assert self.ask(server, "DELETE", f"/drive/v3/files/{file.id}").status_code == 204
        assert self.ask(server, "DELETE", f"/drive/v3/files/{file.id}").status_code == 404
        assert self.ask(server, "PATCH", f"/upload/drive/v3/files/{file.id}?uploadType=media", data=b"2").status_code == 404

    def test_new_content_for_a_file(self, server: GoogleDriveServer) -> None:
        file = server.add("a", b"1", ["root"])
        self.ask(server, "PATCH", f"/upload/drive/v3/files/{file.id}?uploadType=media", data=b"2")
        assert server.objects() == {"a": [b"2"]}
