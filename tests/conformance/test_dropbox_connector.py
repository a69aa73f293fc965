"""Dropbox against the contract, with a Dropbox of our own that can fail on demand."""

from __future__ import annotations

import logging
import secrets
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from secure_media_processor.cloud.connectors.dropbox import DropboxAccess, DropboxConnector
from secure_media_processor.cloud.digests import PART_SIZE
from secure_media_processor.cloud.testing import ConnectorConformance
from secure_media_processor.errors import (
    CredentialsError,
    ExistsError,
    IntegrityError,
    MissingError,
    MissingExtraError,
    NoSpaceError,
    RateLimitError,
    SmpError,
    ThrottledError,
    TransientError,
    UsageError,
)
from servers import dropbox_server
from servers.dropbox_server import ACCESS_TOKEN, APP_KEY, APP_SECRET, REFRESH_TOKEN, SECRETS, DropboxServer

pytest.importorskip("dropbox", reason="the Dropbox SDK is not installed")

BY_TOKEN = DropboxAccess(access_token=ACCESS_TOKEN)
BY_REFRESH = DropboxAccess(refresh_token=REFRESH_TOKEN, app_key=APP_KEY, app_secret=APP_SECRET)
WRONG = "wrong-0a7b5c"
APPEND, FINISH = "files/upload_session/append_v2", "files/upload_session/finish"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.LeafCert, Path]:
    return dropbox_server.certificates(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def server(certificates: tuple[trustme.LeafCert, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[DropboxServer]:
    certificate, authority = certificates
    with dropbox_server.running(certificate) as running:
        dropbox_server.take_the_place_of_dropbox(running, authority, monkeypatch)
        yield running
    assert running.errors == []


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the SDK would have slept, in seconds."""
    slept: list[float] = []
    monkeypatch.setattr("dropbox.dropbox_client.time", SimpleNamespace(sleep=slept.append))
    return slept


@pytest.fixture
def store(server: DropboxServer) -> Iterator[DropboxConnector]:
    with DropboxConnector(BY_TOKEN) as connector:
        yield connector


def calls_of(store: DropboxConnector) -> list[Callable[[], object]]:
    """Every way to make a request, on the object `key` of two bytes."""
    return [
        lambda: store.put("key", [b"ab"], if_absent=False),
        lambda: list(store.get("key")),
        lambda: store.stat("key"),
        lambda: store.native_digest("key"),
        lambda: list(store.list()),
        lambda: store.delete("key"),
    ]


def large(parts: float = 2.5) -> bytes:
    return secrets.token_bytes(int(parts * PART_SIZE))


def put_large(store: DropboxConnector, data: bytes, **options: Any) -> None:
    store.put("large", [data], **options)


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


def cut_off(data: bytes, error: BaseException) -> Iterator[bytes]:
    """Three parts, of which two are sent before the error: the third could be the last."""
    yield data[: 3 * PART_SIZE]
    raise error


def cut_a_put(server: DropboxServer, store: DropboxConnector, data: bytes, record: Record, **options: Any) -> None:
    """Leave two parts of `data` in a session that stands in `record`."""
    with pytest.raises(ProcessDied):
        store.put("large", cut_off(data, ProcessDied()), resume=record, **options)
    assert record.load()
    server.requests.clear()


def received(server: DropboxServer) -> int:
    return sum(len(request.body) for request in server.requests if request.route.startswith("files/upload"))


class TestDropboxConnector(ConnectorConformance):
    @pytest.fixture
    def connector(self, server: DropboxServer) -> Iterator[DropboxConnector]:
        with DropboxConnector(BY_REFRESH) as connector:
            yield connector


class TestDropboxConnectorInAFolder(ConnectorConformance):
    @pytest.fixture
    def connector(self, server: DropboxServer) -> Iterator[DropboxConnector]:
        # The folder is there already, in other letters, and something else lies beside it.
        server.save({"path": "/Backup/other"}, b"other")
        with DropboxConnector(BY_TOKEN, folder="/backup/Smp/") as connector:
            yield connector


# Access


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"refresh_token": REFRESH_TOKEN},
        {"refresh_token": REFRESH_TOKEN, "app_key": APP_KEY, "access_token": ACCESS_TOKEN},
        {"access_token": f"{ACCESS_TOKEN}\n"},
        {"access_token": f" {ACCESS_TOKEN}"},
        {"access_token": f"{ACCESS_TOKEN}é"},
    ],
    ids=range(6),
)
def test_access_that_cannot_work_is_refused(parts: dict[str, str]) -> None:
    with pytest.raises(CredentialsError) as caught:
        DropboxAccess(**parts)
    assert caught.value.hint
    assert ACCESS_TOKEN not in str(caught.value)


def test_a_refresh_token_is_used_once_for_many_requests(server: DropboxServer) -> None:
    with DropboxConnector(BY_REFRESH) as store:
        store.put("a", [b"1"])
        store.stat("a")
    assert [request.path for request in server.requests].count("/oauth2/token") == 1


@pytest.mark.parametrize(
    "access",
    [
        DropboxAccess(access_token=WRONG),
        DropboxAccess(refresh_token=WRONG, app_key=APP_KEY, app_secret=APP_SECRET),
        DropboxAccess(refresh_token=REFRESH_TOKEN, app_key=WRONG),
        DropboxAccess(refresh_token=REFRESH_TOKEN, app_key=APP_KEY, app_secret=WRONG),
    ],
    ids=["access token", "refresh token", "app", "secret"],
)
def test_access_that_is_not_accepted(server: DropboxServer, access: DropboxAccess) -> None:
    with DropboxConnector(access) as store:
        for call in calls_of(store):
            with pytest.raises(CredentialsError) as caught:
                call()
            assert "dropbox.md" in caught.value.hint


def test_an_expired_token_is_told(server: DropboxServer, store: DropboxConnector) -> None:
    server.expired_tokens.add(ACCESS_TOKEN)
    with pytest.raises(CredentialsError, match="expired") as caught:
        store.stat("key")
    assert "refresh token" in caught.value.hint


def test_a_missing_permission_is_named(server: DropboxServer, store: DropboxConnector) -> None:
    server.scopes.remove("files.content.write")
    with pytest.raises(CredentialsError) as caught:
        store.put("key", [b"x"])
    assert "files.content.write" in caught.value.hint


def test_netrc_does_not_replace_the_token(server: DropboxServer, store: DropboxConnector, home: Path) -> None:
    (home / ".netrc").write_text("default login somebody password else\n")
    (home / ".netrc").chmod(0o600)
    store.put("key", [b"x"])
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {ACCESS_TOKEN}"}


# What is sent


def test_keys_and_tokens_go_where_they_belong_only(server: DropboxServer) -> None:
    key = "folder-8f/name-3a"
    with DropboxConnector(BY_REFRESH, folder="base-c0") as store:
        store.put(key, [b"small"])
        store.put(key, [large(1.5)], if_absent=False)
        list(store.get(key, offset=3))
        store.native_digest(key)
        list(store.list("folder-8f/"))
        store.delete(key)
    for request in server.requests:
        arguments = f"{request.headers.get('dropbox-api-arg')}"
        visible = f"{request.path} { {k: v for k, v in request.headers.items() if k != 'dropbox-api-arg'} }"
        assert "name-3a" not in visible
        assert "folder-8f" not in visible
        if request.path == "/oauth2/token":
            assert ACCESS_TOKEN not in f"{visible}{request.body!r}"
            continue
        argument = request.arg
        paths = {argument.get("path"), argument.get("commit", {}).get("path")} - {None}
        assert paths <= {f"/base-c0/{key}", "/base-c0/folder-8f"}
        assert not any(secret in arguments for secret in SECRETS)
        assert request.headers["authorization"] == f"Bearer {ACCESS_TOKEN}"
        assert not any(secret.encode() in request.body for secret in (*SECRETS, APP_KEY))


def test_small_objects_take_one_request_and_large_ones_sessions(server: DropboxServer, store: DropboxConnector) -> None:
    small = large(1)
    store.put("small", [small])
    assert server.routes_asked() == ["files/upload"]
    server.requests.clear()
    data = large(2.5)
    put_large(store, data)
    assert server.routes_asked() == ["files/upload_session/start", APPEND, APPEND, FINISH]
    assert [len(request.body) for request in server.requests] == [PART_SIZE, PART_SIZE, PART_SIZE // 2, 0]
    hashes = [request.arg.get("content_hash") for request in server.requests[:3]]
    assert hashes == [dropbox_server.content_hash(request.body) for request in server.requests[:3]]
    assert server.files["/large"].data == data
    assert store.native_digest("large") == {"dropbox": dropbox_server.content_hash(data)}


@pytest.mark.parametrize("fault", ["none", "throttle", "unavailable"])
def test_each_request_is_announced(server: DropboxServer, fault: str) -> None:
    """Repeated ones and the one for a token included; a request is announced before it is sent."""
    announced: list[int] = []
    with DropboxConnector(BY_REFRESH, before_request=lambda: announced.append(len(server.requests))) as store:
        put_large(store, large(2.5))
        setattr(server.faults, fault, 2)
        for call in calls_of(store):
            call()
    assert announced == list(range(len(server.requests)))


def test_the_rate_limiter_can_stop_a_request(server: DropboxServer) -> None:
    def refuse() -> None:
        raise RateLimitError("too much")

    with DropboxConnector(BY_TOKEN, before_request=refuse) as store:
        for call in calls_of(store):
            with pytest.raises(RateLimitError, match="too much"):
                call()
    assert not server.requests


def test_a_bad_key_sends_nothing(server: DropboxServer, store: DropboxConnector) -> None:
    with pytest.raises(UsageError):
        store.put("../key", [b"x"])
    with pytest.raises(UsageError):
        DropboxConnector(BY_TOKEN, folder="a/../b")
    assert not list(store.list("../"))
    assert not server.requests


# Throttling and outages


def test_a_short_throttle_is_waited_for(server: DropboxServer, store: DropboxConnector, pauses: list[float]) -> None:
    server.faults.throttle, server.faults.retry_after = 2, 7
    store.put("key", [b"x"])
    assert pauses == [7, 7]
    assert server.files["/key"].data == b"x"


def test_a_long_throttle_is_told(server: DropboxServer, store: DropboxConnector) -> None:
    store.put("key", [b"ab"])
    for call in calls_of(store):
        server.requests.clear()
        server.faults.throttle, server.faults.retry_after = 1000, 7
        with pytest.raises(ThrottledError) as caught:
            call()
        assert caught.value.retry_after == 7
        assert len(server.requests) == 3


def test_a_busy_account_is_a_throttle(server: DropboxServer, store: DropboxConnector) -> None:
    server.faults.busy = True
    with pytest.raises(ThrottledError):
        store.put("key", [b"x"])
    with pytest.raises(ThrottledError):
        put_large(store, large(1.5))
    assert not server.files


def test_a_short_outage_is_outlived(server: DropboxServer, store: DropboxConnector) -> None:
    for call in calls_of(store):
        server.faults.unavailable = 2
        call()


@pytest.mark.parametrize(
    "fault",
    [{"unavailable": 1000}, {"login_page": True}, {"drop_at": "files/upload"}, {"hang": True}],
    ids=lambda fault: next(iter(fault)),
)
def test_a_dead_dropbox_is_transient(server: DropboxServer, fault: dict[str, Any]) -> None:
    with DropboxConnector(BY_TOKEN, timeout=0.3) as store:
        for name, value in fault.items():
            setattr(server.faults, name, value)
        with pytest.raises(TransientError):
            store.put("key", [b"x"])
        if "drop_at" not in fault:
            for call in calls_of(store):
                with pytest.raises(TransientError):
                    call()
    assert len(server.requests) <= 3 * 7
    assert not server.files


def test_no_connection_at_all(server: DropboxServer, certificates: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")  # the certificate is not trusted then
    with DropboxConnector(BY_REFRESH) as store:
        for call in calls_of(store):
            with pytest.raises(TransientError):
                call()
    assert not server.requests


# Storing


@pytest.mark.parametrize("place", ["files/upload", "files/upload_session/start", APPEND, FINISH])
def test_a_connection_cut_in_an_upload_leaves_nothing(server: DropboxServer, store: DropboxConnector, place: str) -> None:
    server.faults.drop_at = place
    with pytest.raises(TransientError):
        store.put("key", [b"x"] if place == "files/upload" else [large()])
    assert not server.files


def test_a_source_that_fails_late_leaves_nothing(server: DropboxServer, store: DropboxConnector) -> None:
    def source() -> Iterable[bytes]:
        yield large()
        raise ValueError("of the source")

    with pytest.raises(ValueError, match="of the source"):
        store.put("key", source())
    assert FINISH not in server.routes_asked()
    assert not server.files


def test_wrong_digests_of_a_large_object_are_seen_before_the_commit(server: DropboxServer, store: DropboxConnector) -> None:
    with pytest.raises(IntegrityError):
        put_large(store, large(), digests={"sha256": sha256(b"other").hexdigest()})
    assert FINISH not in server.routes_asked()
    assert not server.files


def test_a_part_that_arrived_without_an_answer_is_not_sent_twice(server: DropboxServer, store: DropboxConnector) -> None:
    data = large()
    server.faults.lose_answer_to = APPEND
    put_large(store, data)
    assert server.files["/large"].data == data


@pytest.mark.parametrize("fault", [{"wrong_offset": 5}, {"forget_sessions": True}], ids=["offset", "session"])
def test_a_broken_upload_session_fails_cleanly(server: DropboxServer, store: DropboxConnector, fault: dict[str, Any]) -> None:
    for name, value in fault.items():
        setattr(server.faults, name, value)
    with pytest.raises(TransientError):
        put_large(store, large(2.5))
    with pytest.raises(TransientError):
        put_large(store, large(1.5))
    assert not server.files


def test_a_commit_without_an_answer_is_no_success(server: DropboxServer, store: DropboxConnector) -> None:
    """The object is there, and the digest says that it is ours; the module's docstring says why the put cannot know."""
    server.faults.lose_answer_to = FINISH
    data = large(1.5)
    with pytest.raises(TransientError):
        put_large(store, data)
    server.faults.lose_answer_to = "files/upload"
    with pytest.raises(ExistsError):
        store.put("small", [b"x"])
    assert store.native_digest("large") == {"dropbox": dropbox_server.content_hash(data)}
    assert store.native_digest("small") == {"dropbox": dropbox_server.content_hash(b"x")}


def test_a_full_account(server: DropboxServer, store: DropboxConnector) -> None:
    server.faults.full = True
    for data in (b"x", large(1.5)):
        with pytest.raises(NoSpaceError) as caught:
            store.put("key", [data])
        assert not caught.value.retryable
    assert not server.files


@pytest.mark.parametrize("size", [1000, int(1.5 * PART_SIZE)])
def test_what_dropbox_stored_is_compared_and_withdrawn(server: DropboxServer, store: DropboxConnector, size: int) -> None:
    server.faults.damage_upload = True
    with pytest.raises(IntegrityError):
        store.put("key", [bytes(size)])
    assert not server.files
    server.faults.damage_upload = False
    store.put("key", [b"old"])
    server.faults.damage_upload = True
    with pytest.raises(IntegrityError):
        store.put("key", [bytes(size)], if_absent=False)
    assert b"".join(store.get("key")) == b"old"


def test_damage_on_the_way_is_refused(server: DropboxServer, store: DropboxConnector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropbox_server, "content_hash", lambda data: sha256(data + b"damaged").hexdigest())
    for data in (b"x", large(1.5)):
        with pytest.raises(IntegrityError):
            store.put("key", [data])
    assert not server.files


def test_the_same_bytes_do_not_make_a_taken_key_free(server: DropboxServer, store: DropboxConnector) -> None:
    for data in ([b"x"], [large(1.5)]):
        store.put(f"key{len(data[0])}", data)
        with pytest.raises(ExistsError):
            store.put(f"key{len(data[0])}", data)
        store.put(f"key{len(data[0])}", data, if_absent=False)


def test_case_is_kept_and_does_not_distinguish(server: DropboxServer, store: DropboxConnector) -> None:
    store.put("Folder/Name", [b"x"])
    assert [info.key for info in store.list()] == ["Folder/Name"]
    with pytest.raises(ExistsError) as caught:
        store.put("folder/NAME", [b"y"])
    assert "case" in caught.value.hint


def test_a_key_is_no_folder_and_a_folder_no_key(server: DropboxServer, store: DropboxConnector) -> None:
    store.put("a/b", [b"x"])
    for key in ("a", "a/b/c"):
        for if_absent in (True, False):
            with pytest.raises(ExistsError):
                store.put(key, [b"y"], if_absent=if_absent)
    for act in (store.stat, store.delete, store.native_digest, lambda key: list(store.get(key))):
        with pytest.raises(MissingError):
            act("a")
    assert not list(store.list("a/b/"))
    assert set(server.files) == {"/a/b"}


def test_names_that_dropbox_keeps_for_itself(server: DropboxServer, store: DropboxConnector) -> None:
    with pytest.raises(UsageError, match="disallowed_name"):
        store.put("folder/desktop.ini", [b"x"])


# Taking up an upload that was cut off


@pytest.mark.parametrize("error", [TransientError("the line broke"), OSError(), KeyboardInterrupt(), ProcessDied()], ids=repr)
def test_only_what_is_missing_is_sent(server: DropboxServer, store: DropboxConnector, error: BaseException) -> None:
    data, record = large(3.5), Record()
    with pytest.raises(type(error)):
        store.put("large", cut_off(data, error), resume=record)
    assert not server.files
    assert server.routes_asked() == ["files/upload_session/start", APPEND, APPEND]
    server.requests.clear()
    info = store.put("large", [data], resume=record)
    assert info.size == len(data)
    assert server.routes_asked() == [APPEND, APPEND, APPEND, FINISH]
    assert received(server) == len(data) - 2 * PART_SIZE
    assert server.files["/large"].data == data
    assert record.load() == {}


@pytest.mark.parametrize("end", [0, 1, PART_SIZE - 1, PART_SIZE, PART_SIZE + 12345])
def test_dropbox_says_where_to_go_on(server: DropboxServer, store: DropboxConnector, end: int) -> None:
    data, record = large(3.5), Record()
    cut_a_put(server, store, data, record)
    server.cut_sessions(end)
    put_large(store, data, resume=record)
    assert received(server) == len(data) - end
    assert server.files["/large"].data == data


def test_an_outage_between_parts(server: DropboxServer, store: DropboxConnector) -> None:
    data, record = large(3.5), Record()

    def source() -> Iterator[bytes]:
        yield data[: 3 * PART_SIZE]
        server.faults.drop_at = APPEND
        yield data[3 * PART_SIZE :]

    with pytest.raises(TransientError):
        store.put("large", source(), resume=record)
    for _ in range(2):  # the outage goes on
        with pytest.raises(TransientError):
            put_large(store, data, resume=record)
    server.faults.drop_at = ""
    server.requests.clear()
    put_large(store, data, resume=record)
    assert received(server) == len(data) - 2 * PART_SIZE
    assert server.files["/large"].data == data


def test_a_session_that_expired_is_begun_anew(server: DropboxServer, store: DropboxConnector) -> None:
    data, record = large(3.5), Record()
    cut_a_put(server, store, data, record)
    begun = record.load()
    server.expire_sessions()
    put_large(store, data, resume=record)
    assert received(server) == len(data)
    assert server.files["/large"].data == data
    assert record.saved[-2] != begun
    assert record.load() == {}


def finish_unheard(server: DropboxServer, store: DropboxConnector, data: bytes, record: Record, *, expired: bool) -> None:
    """Put `data`, but for the last answer."""
    server.faults.lose_answer_to = FINISH
    with pytest.raises(TransientError):
        put_large(store, data, resume=record)
    assert record.load()
    assert server.files["/large"].data == data
    if expired:
        server.expire_sessions()
    server.requests.clear()


@pytest.mark.parametrize("expired", [False, True])
def test_a_commit_without_an_answer_counts_as_stored(server: DropboxServer, store: DropboxConnector, expired: bool) -> None:
    data, record = large(2.5), Record()
    finish_unheard(server, store, data, record, expired=expired)
    info = store.put("large", [data], resume=record)
    assert info.size == len(data)
    assert received(server) == 0
    assert record.load() == {}
    assert server.files["/large"].data == data


@pytest.mark.parametrize("expired", [False, True])
def test_a_commit_without_an_answer_that_somebody_replaced(
    server: DropboxServer, store: DropboxConnector, expired: bool
) -> None:
    data, record = large(2.5), Record()
    finish_unheard(server, store, data, record, expired=expired)
    store.put("large", [b"new"], if_absent=False)
    with pytest.raises(ExistsError):
        put_large(store, data, resume=record)
    assert record.load() == {}
    assert server.files["/large"].data == b"new"


def test_a_commit_without_an_answer_is_made_again_where_it_may(server: DropboxServer, store: DropboxConnector) -> None:
    data, record = large(2.5), Record()
    finish_unheard(server, store, data, record, expired=False)
    store.put("large", [b"new"], if_absent=False)
    put_large(store, data, resume=record, if_absent=False)
    assert server.files["/large"].data == data
    assert record.load() == {}


def test_a_key_that_was_taken_meanwhile(server: DropboxServer, store: DropboxConnector) -> None:
    data, record = large(3.5), Record()
    cut_a_put(server, store, data, record)
    store.put("large", [b"other"])
    with pytest.raises(ExistsError):
        put_large(store, data, resume=record)
    assert record.load() == {}
    assert server.files["/large"].data == b"other"


def test_replacing_can_be_taken_up(server: DropboxServer, store: DropboxConnector) -> None:
    data, record = large(3.5), Record()
    store.put("large", [b"old"])
    cut_a_put(server, store, data, record, if_absent=False)
    assert server.files["/large"].data == b"old"
    put_large(store, data, resume=record, if_absent=False)
    assert received(server) == len(data) - 2 * PART_SIZE
    assert server.files["/large"].data == data


@pytest.mark.parametrize("fault", ["digests", "full", "tokens"])
def test_a_permanent_error_empties_the_record(server: DropboxServer, store: DropboxConnector, fault: str) -> None:
    data, record = large(3.5), Record()
    cut_a_put(server, store, data, record)
    wrong = {"sha256": sha256(b"other").hexdigest()} if fault == "digests" else None
    if fault == "tokens":
        server.access_tokens.clear()
    server.faults.full = fault == "full"
    with pytest.raises(SmpError) as caught:
        put_large(store, data, digests=wrong, resume=record)
    assert not caught.value.retryable
    assert record.load() == {}
    assert not server.files


@pytest.mark.parametrize(
    "change", [lambda data: b"changed" + data[7:], lambda data: data[: PART_SIZE + 5]], ids=["other", "fewer"]
)
def test_bytes_that_changed_meanwhile(server: DropboxServer, store: DropboxConnector, change: Callable[[bytes], bytes]) -> None:
    data, record = large(3.5), Record()
    cut_a_put(server, store, data, record)
    with pytest.raises(IntegrityError):
        put_large(store, change(data), resume=record)
    assert record.load() == {}
    assert not server.files


def test_nothing_is_sent_before_the_record_is_safe(server: DropboxServer, store: DropboxConnector) -> None:
    class FullDisk(Record):
        def save(self, state: Mapping[str, str]) -> None:
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - it has no text
        put_large(store, large(2.5), resume=FullDisk())
    assert received(server) == 0


def test_small_objects_need_no_record(server: DropboxServer, store: DropboxConnector) -> None:
    record = Record()
    store.put("small", [b"x"], resume=record)
    with pytest.raises(ExistsError):
        store.put("small", [b"x"], resume=record)
    assert record.saved == [{}]
    assert server.routes_asked() == ["files/upload", "files/upload"]


# Reading


@pytest.mark.parametrize("cut", [0, 1, 70_000])
def test_a_download_that_is_cut_is_no_whole_one(server: DropboxServer, store: DropboxConnector, cut: int) -> None:
    store.put("key", [bytes(200_000)])
    server.faults.cut_download_after = cut
    for options in ({}, {"offset": 100}, {"offset": 100, "length": 150_000}):
        with pytest.raises(TransientError):
            list(store.get("key", **options))


def test_a_flipped_byte_reaches_no_file(server: DropboxServer, store: DropboxConnector, tmp_path: Path) -> None:
    data = secrets.token_bytes(100_000)
    store.put("key", [data])
    server.faults.flip_download_at = 50_000
    with pytest.raises(IntegrityError):
        store.download_file("key", tmp_path / "out", digests={"sha256": sha256(data).hexdigest()})
    assert not list(tmp_path.glob("out*"))


def test_a_range_that_is_ignored_is_noticed(server: DropboxServer, store: DropboxConnector) -> None:
    store.put("key", [b"0123456789"])
    server.faults.ignore_range = True
    with pytest.raises(TransientError):
        list(store.get("key", offset=5))
    assert b"".join(store.get("key")) == b"0123456789"


def test_only_the_range_is_asked_for(server: DropboxServer, store: DropboxConnector) -> None:
    store.put("key", [b"0123456789"])
    assert b"".join(store.get("key", offset=2, length=3)) == b"234"
    assert server.requests[-1].headers["range"] == "bytes=2-4"
    assert b"".join(store.get("key", offset=10)) == b""
    assert b"".join(store.get("key", length=0)) == b""
    with pytest.raises(MissingError):
        list(store.get("absent", length=0))


def test_a_download_may_be_left_off(server: DropboxServer, store: DropboxConnector) -> None:
    store.put("key", [bytes(5_000_000)])
    for _ in range(20):  # more than the connections in the pool
        blocks = store.get("key")
        assert next(blocks)
        blocks.close()
    assert store.stat("key").size == 5_000_000


# Listing


def test_pages_are_put_in_order(server: DropboxServer, store: DropboxConnector) -> None:
    keys = [f"{letter}/{number}" for letter in "cab" for number in (3, 1, 2)] + ["a.b"]
    for key in keys:
        store.put(key, [b"x"])
    server.requests.clear()
    assert [info.key for info in store.list()] == sorted(keys)
    assert len(server.requests) == 5  # 10 files and 3 folders, 3 to a page
    server.requests.clear()
    assert [info.key for info in store.list("b/")] == ["b/1", "b/2", "b/3"]
    assert len(server.requests) == 1


def test_nothing_is_asked_before_the_first_step(server: DropboxServer, store: DropboxConnector) -> None:
    store.list()
    assert not server.requests


def test_a_store_whose_folder_is_not_there_yet_is_empty(server: DropboxServer) -> None:
    with DropboxConnector(BY_TOKEN, folder="new") as store:
        assert not list(store.list())


def test_a_file_in_place_of_the_folder_is_no_empty_store(server: DropboxServer) -> None:
    server.save({"path": "/store"}, b"a file")
    with DropboxConnector(BY_TOKEN, folder="store") as store, pytest.raises(UsageError):
        list(store.list())


def test_what_changes_while_listing(server: DropboxServer, store: DropboxConnector) -> None:
    """Dropbox tells at the end of a listing what it no longer holds of the pages before."""
    for key in ("a/1", "a/2", "ab", "c", "d"):
        store.put(key, [b"x"])

    def change() -> None:
        server.trap = None
        for path in ("/a", "/c"):
            server.tell_in_listings({".tag": "deleted", "name": path[1:], "path_lower": path, "path_display": path})
        server.tell_in_listings({**server.files["/d"].metadata(), "size": 7})

    server.trap = change
    assert {info.key: info.size for info in store.list()} == {"ab": 1, "d": 7}


def test_an_outage_between_pages(server: DropboxServer, store: DropboxConnector) -> None:
    """The listing goes on, or fails: it is never short."""
    keys = [f"{number}" for number in range(5)]
    for key in keys:
        store.put(key, [b"x"])
    server.faults.lose_answer_to = "files/list_folder/continue"
    assert [info.key for info in store.list()] == keys
    server.trap = server.forget_cursors
    with pytest.raises(TransientError):
        list(store.list())


# Deleting


def test_an_object_that_is_replaced_meanwhile_is_not_deleted(server: DropboxServer) -> None:
    def replace() -> None:
        if server.routes_asked()[-1:] == ["files/get_metadata"]:
            server.save({"path": "/key", "mode": "overwrite"}, b"new")

    with DropboxConnector(BY_TOKEN, before_request=replace) as store:
        store.put("key", [b"old"])
        with pytest.raises(TransientError):
            store.delete("key")
    assert server.files["/key"].data == b"new"


# Secrets


def test_no_error_tells_a_token(server: DropboxServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts = [repr(BY_TOKEN), repr(BY_REFRESH), str(BY_REFRESH)]
    for access in (BY_TOKEN, BY_REFRESH, DropboxAccess(refresh_token=REFRESH_TOKEN, app_key=APP_KEY, app_secret=WRONG)):
        with DropboxConnector(access, timeout=0.3) as store:
            texts.append(repr(store))
            texts += _told_by_failures(server, store)
    assert len(texts) > 100
    told = "\n".join(texts) + caplog.text
    assert not [secret for secret in (*SECRETS, WRONG) if secret in told]


def _told_by_failures(server: DropboxServer, store: DropboxConnector) -> list[str]:
    refusal = f'Invalid authorization value in HTTP header "Authorization": "Bearer {ACCESS_TOKEN}"'
    faults: list[dict[str, Any]] = [
        {"throttle": 9},
        {"unavailable": 9},
        {"login_page": True},
        {"drop_at": "files/get_metadata"},
        {"refuse": 400, "refusal": refusal},
        {"refuse": 400, "refusal": f"something else, {ACCESS_TOKEN}"},
        {"refuse": 403, "refusal": refusal},
        {"refuse": 418, "refusal": refusal},
        {"refuse": 422, "refusal": refusal},
        {"refuse": 500, "refusal": refusal},
    ]
    texts = []
    for fault in faults:
        for call in calls_of(store):
            server.faults = dropbox_server.Faults(**fault)
            try:
                call()
            except SmpError as error:
                texts += [str(error), repr(error), error.hint, "".join(traceback.format_exception(error))]
    server.faults = dropbox_server.Faults()
    return texts


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "The given OAuth 2 access token is malformed.", CredentialsError),
        (400, "Error in call to API function: something", UsageError),
        (418, "", UsageError),
        (502, "", TransientError),
    ],
)
def test_answers_of_no_route(server: DropboxServer, store: DropboxConnector, status: int, text: str, kind: type) -> None:
    server.faults.refuse, server.faults.refusal = status, text
    with pytest.raises(kind):
        store.stat("key")


def test_closing_forgets_the_tokens(server: DropboxServer) -> None:
    store = DropboxConnector(BY_TOKEN)
    store.put("key", [b"x"])
    store.close()
    store.close()
    assert not any(isinstance(value, str) and ACCESS_TOKEN in value for value in vars(store).values())
    assert store._client is None
    for call in calls_of(store):
        with pytest.raises(UsageError):
            call()


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dropbox", None)
    with pytest.raises(MissingExtraError) as caught:
        DropboxConnector(BY_TOKEN)
    assert caught.value.hint == "pip install 'secure-media-processor[dropbox]'"
