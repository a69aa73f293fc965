"""Azure Blob Storage against Azurite, and the faults that only it can have."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import logging
import os
import secrets
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from azure.storage.blob import BlobBlock, BlobServiceClient, ContainerSasPermissions, ContentSettings, generate_container_sas

from conftest import Ran
from secure_media_processor.cloud.connectors import azure as azure_module
from secure_media_processor.cloud.connectors.azure import AzureBlobConnector
from secure_media_processor.cloud.connectors.azure_access import AzureAccess, load_access
from secure_media_processor.cloud.digests import PART_SIZE, Part, PartSource
from secure_media_processor.cloud.testing import ConnectorConformance
from secure_media_processor.cloud.wrappers import Patience, Retrying
from secure_media_processor.errors import (
    CredentialsError,
    ExistsError,
    IntegrityError,
    KeyExposedError,
    MissingError,
    MissingExtraError,
    SmpError,
    ThrottledError,
    TransientError,
    UsageError,
)
from servers import azurite
from servers.azurite import ACCOUNT, Azurite
from servers.fault_proxy import FaultProxy, proxying

KEY = "c2VjcmV0LW9mLW5vYm9keS1hdC1hbGw="  # of nobody


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    if azurite.program() is None:
        pytest.skip("Azurite (npm install azurite) is not installed")
    with azurite.running(tmp_path_factory.mktemp("azurite")) as running:
        yield running


@pytest.fixture(scope="module")
def account(server: Azurite) -> Any:
    with BlobServiceClient(server.url, credential={"account_name": ACCOUNT, "account_key": server.key}) as client:
        yield client


@pytest.fixture(scope="module")
def container(account: Any) -> str:
    name = f"container-{secrets.token_hex(6)}"
    account.create_container(name)
    return name


@pytest.fixture
def access(server: Azurite) -> AzureAccess:
    return AzureAccess(endpoint=server.url, key=server.key)


@pytest.fixture
def store(container: str, access: AzureAccess) -> Iterator[AzureBlobConnector]:
    """An empty part of the container."""
    with AzureBlobConnector(container, access, prefix=f"{secrets.token_hex(6)}/") as connector:
        yield connector


class TestAzureBlobConnector(ConnectorConformance):
    @pytest.fixture
    def connector(self, store: AzureBlobConnector) -> AzureBlobConnector:
        return store


@pytest.fixture
def sas_token(server: Azurite, container: str) -> str:
    rights = ContainerSasPermissions(read=True, write=True, delete=True, list=True, create=True)
    end = datetime.now(UTC) + timedelta(hours=1)
    return generate_container_sas(ACCOUNT, container, account_key=server.key, permission=rights, expiry=end)


class Record:
    """A ResumeRecord that nothing needs to be written into."""

    def load(self) -> dict[str, str]:
        return {}

    def save(self, state: object) -> None:
        assert state == {}


def cut_off(data: bytes, error: BaseException) -> Iterator[bytes]:
    yield data
    raise error


def uncommitted(store: AzureBlobConnector, key: str) -> int:
    return len(store._blob(key).get_block_list("uncommitted")[1])


# --- what is stored --------------------------------------------------------------------------------------------------------


def test_a_whole_container_and_a_part_of_it(account: Any, access: AzureAccess) -> None:
    name = f"whole-{secrets.token_hex(6)}"
    account.create_container(name)
    with AzureBlobConnector(name, access) as whole, AzureBlobConnector(name, access, prefix="a/b/") as part:
        whole.put("outside", [b"1"])
        part.put("inside", [b"2"])
        assert [info.key for info in whole.list()] == ["a/b/inside", "outside"]
        assert [info.key for info in part.list()] == ["inside"]
        with pytest.raises(MissingError):
            part.stat("outside")


@pytest.mark.parametrize("size", [0, 100, 1 << 20, (1 << 20) + 1, PART_SIZE, PART_SIZE + 1, 20_000_000])
def test_blocks_and_the_md5_for_other_programs(store: AzureBlobConnector, size: int) -> None:
    data = secrets.token_bytes(size)
    store.put("object", [data])
    found = store._blob("object").get_blob_properties()
    assert bytes(found.content_settings.content_md5) == hashlib.md5(data).digest()  # noqa: S324 - no protection
    committed, _ = store._blob("object").get_block_list("all")
    assert len(committed) == (0 if size <= 1 << 20 else -(-size // PART_SIZE))
    assert store.native_digest("object") == {"sha256": hashlib.sha256(data).hexdigest()}


def test_a_claimed_md5_proves_nothing(store: AzureBlobConnector) -> None:
    """Another writer stores other bytes with the old MD5: Azure shows that MD5, and native_digest does not fall for it."""
    data, other = secrets.token_bytes(3_000_000), secrets.token_bytes(3_000_000)
    store.put("object", [data])
    blob = store._blob("object")
    claimed = blob.get_blob_properties().content_settings.content_md5
    blob.stage_block("other", other)
    blob.commit_block_list([BlobBlock("other")], content_settings=ContentSettings(content_md5=claimed))
    assert blob.get_blob_properties().content_settings.content_md5 == claimed
    assert store.native_digest("object") == {"sha256": hashlib.sha256(other).hexdigest()}


def test_bytes_that_change_on_the_way_are_refused(store: AzureBlobConnector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service compares the MD5 of each block; here the block changes after it was hashed."""
    monkeypatch.setattr(azure_module._Body, "seek", change_and_seek)
    with pytest.raises(IntegrityError):
        store.put("changed", [bytes(2 * PART_SIZE + 5)])
    monkeypatch.undo()
    with pytest.raises(MissingError):
        store.stat("changed")


def change_and_seek(body: Any, offset: int, whence: int = 0) -> int:
    """What the SDK does after hashing, and something that it does not."""
    body.getbuffer()[5] = 1
    return super(azure_module._Body, body).seek(offset, whence)


# --- a put that is cut off -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [TransientError("the line broke"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_upload_that_was_cut_off_sends_only_what_is_missing(
    container: str, access: AzureAccess, error: BaseException
) -> None:
    data, requests = secrets.token_bytes(6 * PART_SIZE + 5), []
    with AzureBlobConnector(
        container, access, prefix=f"{secrets.token_hex(6)}/", before_request=lambda: requests.append(1)
    ) as store:
        with pytest.raises(type(error)):
            store.put("cut", cut_off(data[: 4 * PART_SIZE], error), resume=Record())
        there = uncommitted(store, "cut")
        assert there >= 3  # the newest is held back until it is known whether it is the last
        assert list(store.list()) == []
        requests.clear()
        store.put("cut", [data], resume=Record())
        assert len(requests) == 1 + (7 - there) + 1  # what is there, the missing blocks, the commit
        assert b"".join(store.get("cut")) == data
        assert uncommitted(store, "cut") == 0


def test_blocks_of_other_bytes_are_not_taken_for_ours(store: AzureBlobConnector) -> None:
    """What lies there from another object under the same key, of the same size, goes into nothing."""
    with pytest.raises(RuntimeError):
        store.put("key", cut_off(secrets.token_bytes(3 * PART_SIZE), RuntimeError()))
    data = secrets.token_bytes(3 * PART_SIZE)
    store.put("key", [data], resume=Record())
    assert b"".join(store.get("key")) == data


def test_two_writers_of_large_objects_never_mix(store: AzureBlobConnector) -> None:
    """Each commit is one writer's blocks and no others; who finds his blocks taken away may try again."""
    objects = [bytes([number]) * (3 * PART_SIZE) for number in range(3)]
    errors: list[SmpError] = []

    def write(data: bytes) -> None:
        try:
            store.put("contested", [data], if_absent=False)
        except TransientError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(data,)) for data in objects]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) < len(objects)
    assert b"".join(store.get("contested")) in objects


def test_an_object_replaced_while_it_is_read(store: AzureBlobConnector) -> None:
    store.put("key", [bytes(2 * PART_SIZE)])
    reading = store.get("key")
    next(reading)
    store.put("key", [bytes([1]) * (2 * PART_SIZE)], if_absent=False)
    with pytest.raises(IntegrityError, match="replaced"):
        list(reading)


@pytest.mark.parametrize("after", [0, 2 * PART_SIZE])
def test_an_error_of_the_source_comes_through(store: AzureBlobConnector, after: int) -> None:
    """It is not taken for an answer of Azure that makes no sense."""
    with pytest.raises(ValueError, match="of the source"):
        store.put("key", cut_off(bytes(after), ValueError("of the source")))
    assert list(store.list()) == []


def test_an_object_that_claims_to_be_compressed_comes_as_it_is(store: AzureBlobConnector) -> None:
    """A cloud could answer with a few bytes that unpack to more than fits into memory."""
    packed = gzip.compress(bytes(1_000_000))
    store.put("key", [packed])
    store._blob("key").set_http_headers(ContentSettings(content_encoding="gzip"))
    assert b"".join(store.get("key")) == packed


def test_a_large_object_finds_its_key_taken(store: AzureBlobConnector) -> None:
    store.put("taken", [b"first"])
    with pytest.raises(ExistsError):
        store.put("taken", [bytes(2 * PART_SIZE)])
    assert b"".join(store.get("taken")) == b"first"


def test_many_threads_share_a_connector(store: AzureBlobConnector) -> None:
    objects = {f"thread/{number}": secrets.token_bytes(1_500_000) for number in range(12)}
    failed: list[BaseException] = []

    def there_and_back(key: str) -> None:
        try:
            store.put(key, [objects[key]])
            assert b"".join(store.get(key)) == objects[key]
        except BaseException as error:  # noqa: BLE001 - reported below
            failed.append(error)

    threads = [threading.Thread(target=there_and_back, args=(key,)) for key in objects]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert {info.key for info in store.list("thread/")} == set(objects)


def test_every_request_is_counted(container: str, access: AzureAccess) -> None:
    counted: list[int] = []
    with AzureBlobConnector(container, access, prefix="counted/", before_request=lambda: counted.append(1)) as store:
        store.put("small", [b"x"])
        assert len(counted) == 1
        store.put("large", [bytes(3 * PART_SIZE)])
        assert len(counted) == 1 + 3 + 1  # three blocks and the commit
        list(store.get("large"))
        assert len(counted) == 5 + 3
        store.delete("small")
        assert len(counted) == 8 + 1


def test_pages_of_a_list_are_fetched_as_they_are_asked_for(container: str, access: AzureAccess) -> None:
    counted: list[int] = []
    with AzureBlobConnector(container, access, prefix="paged/", before_request=lambda: counted.append(1)) as store:
        for number in range(5):
            store.put(f"{number}", [b"x"])
        whole, client = store._container.list_blobs, store._container
        client.list_blobs = lambda **options: whole(**options, results_per_page=2)
        counted.clear()
        found = store.list()
        assert not counted
        next(found)
        assert len(counted) == 1
        assert [info.key for info in found] == ["1", "2", "3", "4"]
        assert len(counted) == 3


def test_sending_tells_that_it_goes_on(store: AzureBlobConnector) -> None:
    """Otherwise a slow line would be taken for a dead one."""
    moved: list[int] = []
    data = secrets.token_bytes(PART_SIZE + 5)
    parts = [Part.of(data[:PART_SIZE]), Part.of(data[PART_SIZE:])]
    store.put("key", PartSource(iter(parts), lambda: moved.append(1)))
    assert len(moved) > PART_SIZE >> 20
    assert b"".join(store.get("key")) == data


# --- who may, and who may not ----------------------------------------------------------------------------------------------


def test_a_wrong_key_is_named_and_not_repeated(server: Azurite, container: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with AzureBlobConnector(container, AzureAccess(endpoint=server.url, key=KEY)) as store:
        for act in (lambda: store.put("a", [b""]), lambda: list(store.get("a")), lambda: list(store.list())):
            with pytest.raises(CredentialsError) as caught:
                act()
            assert KEY not in shown(caught.value, store, caplog)


def test_a_sas_token_opens_a_container_and_is_shown_nowhere(
    server: Azurite, container: str, sas_token: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The token stands in each address, and addresses love to be logged."""
    caplog.set_level(logging.DEBUG)
    signature = sas_token.partition("sig=")[2].partition("&")[0]
    access = AzureAccess(endpoint=server.url, sas_token=f"?{sas_token}")
    with AzureBlobConnector(container, access, prefix="sas/") as store:
        store.put("key", [bytes(2 * PART_SIZE)])
        assert sum(map(len, store.get("key"))) == 2 * PART_SIZE
        assert [info.key for info in store.list()] == ["key"]
        with pytest.raises(MissingError) as missing:
            store.stat("absent")
        store.delete("key")
    wrong = AzureAccess(endpoint=server.url, sas_token=sas_token.replace("sp=", "sp=x"))
    with AzureBlobConnector(container, wrong) as store, pytest.raises(CredentialsError) as refused:
        store.stat("key")
    nobody = AzureAccess(endpoint=azurite.Azurite.at(azurite.free_port()), sas_token=sas_token)
    with AzureBlobConnector(container, nobody, timeout=2) as store, pytest.raises(TransientError) as absent:
        store.stat("key")
    assert "connectionpool" in caplog.text
    for error in (missing.value, refused.value, absent.value):
        text = shown(error, store, caplog) + repr(access)
        assert signature not in text
        assert sas_token not in text


def shown(error: SmpError, store: AzureBlobConnector, caplog: pytest.LogCaptureFixture) -> str:
    """Return all that anybody gets to see."""
    records = "".join(f"{record.getMessage()} {record.args}" for record in caplog.records)
    return f"{error} {error.hint} {error!r} {store!r} {caplog.text} {records}" + "".join(traceback.format_exception(error))


def test_a_missing_container(access: AzureAccess) -> None:
    with AzureBlobConnector("there-is-no-such-container", access) as store:
        acts: list[Callable[[], object]] = [lambda: store.stat("a"), lambda: list(store.list()), lambda: list(store.get("a"))]
        acts += [lambda: store.put("a", [b""]), lambda: store.put("a", [bytes(2 * PART_SIZE)], resume=Record())]
        for act in acts:
            with pytest.raises(MissingError) as caught:
                act()
            assert "ContainerNotFound" in str(caught.value)
            assert "container" in caught.value.hint


@pytest.mark.parametrize("name", ["", "ab", "Upper", "a--b", "-a", "a_b", "../x", "x" * 64])
def test_no_name_of_a_container(name: str) -> None:
    with pytest.raises(UsageError):
        AzureBlobConnector(name, AzureAccess(account="abc", key=KEY))


def test_a_netrc_does_not_take_the_place_of_the_key(store: AzureBlobConnector, home: Path) -> None:
    (home / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    (home / ".netrc").chmod(0o600)
    store.put("key", [b"data"])
    assert b"".join(store.get("key")) == b"data"


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.storage.blob", None)
    with pytest.raises(MissingExtraError) as caught:
        AzureBlobConnector("container", AzureAccess(account="abc", key=KEY))
    assert "[azure]" in caught.value.hint


def test_a_server_that_is_not_there() -> None:
    access = AzureAccess(endpoint=azurite.Azurite.at(azurite.free_port()), key=KEY)
    with AzureBlobConnector("container", access, timeout=2) as store:
        for act in (lambda: store.stat("a"), lambda: store.put("a", [b""]), lambda: list(store.list())):
            with pytest.raises(TransientError) as caught:
                act()
            assert caught.value.retryable


# --- where credentials are found -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AZURE_"):
            monkeypatch.delenv(name)


CONNECTION = f"DefaultEndpointsProtocol=https;AccountName=abc;AccountKey={KEY};EndpointSuffix=core.windows.net"


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        ({"KEY": KEY}, {"account": "abc"}, ("abc", "https://abc.blob.core.windows.net", KEY, "")),
        ({"KEY": KEY, "ACCOUNT": "abc"}, {}, ("abc", "https://abc.blob.core.windows.net", KEY, "")),
        ({"KEY": KEY, "SAS_TOKEN": "sig=s"}, {"account": "abc"}, ("abc", "https://abc.blob.core.windows.net", KEY, "")),
        ({"SAS_TOKEN": "?sig=s"}, {"endpoint": "https://abc.blob.x.org/"}, ("abc", "https://abc.blob.x.org", "", "sig=s")),
        ({"CONNECTION_STRING": CONNECTION}, {}, ("abc", "https://abc.blob.core.windows.net", KEY, "")),
        ({"CONNECTION_STRING": CONNECTION}, {"endpoint": "https://10.0.0.1/abc"}, ("abc", "https://10.0.0.1/abc", KEY, "")),
        (
            {"CONNECTION_STRING": "BlobEndpoint=https://b.example.org/;SharedAccessSignature=sv=1&sig=s", "KEY": KEY},
            {},
            ("", "https://b.example.org", "", "sv=1&sig=s"),
        ),
    ],
)  # fmt: skip
def test_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], options: dict[str, str], expected: tuple[str, ...]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    found = load_access(**options)
    assert (found.account, found.endpoint, found.key, found.sas_token) == expected


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", "bm90IHRoaXM=")
    path = tmp_path / "azure.json"
    path.write_text(json.dumps({"account": "abc", "key": KEY}))
    path.chmod(0o600)
    assert load_access(str(path)).key == KEY
    with pytest.raises(CredentialsError, match="another"):
        load_access(str(path), account="other")
    path.chmod(0o640)
    with pytest.raises(KeyExposedError):
        load_access(str(path))
    path.chmod(0o600)
    for text in ("[]", '{"key": 1}', '{"password": "x"}', "{}"):
        path.write_text(text)
        with pytest.raises(CredentialsError):
            load_access(str(path), account="abc")


@pytest.mark.parametrize(
    "options",
    [
        {"account": "abc"},
        {"account": "abc", "key": KEY, "sas_token": "sig=s"},
        {"key": KEY},
        {"account": "ABC", "key": KEY},
        {"account": "abc", "key": "notbase64!"},
        {"account": "abc", "key": f"{KEY}\n"},
        {"endpoint": "https://abc.example.org", "key": KEY},
        {"endpoint": "https://abc.blob.example.org?sig=geheim", "key": KEY},
        {"endpoint": "https://user:geheim@abc.blob.example.org", "key": KEY},
        {"endpoint": "file:///abc", "key": KEY},
        {"endpoint": "http://abc.blob.example.org", "sas_token": "sig=geheim"},
    ],
)
def test_what_cannot_be_an_access(options: dict[str, str]) -> None:
    with pytest.raises((CredentialsError, UsageError)) as caught:
        AzureAccess(**options)
    text = f"{caught.value} {caught.value.hint}"
    assert KEY not in text
    assert "geheim" not in text


# --- faults on the way -----------------------------------------------------------------------------------------------------

DATA = bytes(range(256)) * 80_000  # 20 MB, three blocks


@pytest.fixture
def proxy(server: Azurite) -> Iterator[FaultProxy]:
    with proxying(server.port) as running:
        yield running


@pytest.fixture
def far(store: AzureBlobConnector, container: str, server: Azurite, proxy: FaultProxy) -> Iterator[AzureBlobConnector]:
    """The same part of the same container, through the proxy."""
    access = AzureAccess(endpoint=Azurite.at(proxy.port), key=server.key)
    with AzureBlobConnector(container, access, prefix=store._prefix, timeout=5) as connector:
        yield connector


def test_an_upload_whose_connections_break_succeeds_or_leaves_nothing(
    store: AzureBlobConnector, far: AzureBlobConnector, proxy: FaultProxy
) -> None:
    proxy.direction = "up"
    proxy.resets, proxy.after = 2, 3_000_000
    far.put("object", [DATA])
    assert proxy.resets == 0
    assert b"".join(store.get("object")) == DATA
    proxy.resets = 1000
    with pytest.raises(TransientError):
        far.put("other", [DATA])
    proxy.resets = 0
    with pytest.raises(MissingError):
        store.stat("other")
    assert [info.key for info in store.list()] == ["object"]


def test_an_answer_that_is_lost_does_not_become_a_taken_key(
    store: AzureBlobConnector, far: AzureBlobConnector, proxy: FaultProxy
) -> None:
    """The object is there, the put says "try again", and whoever tries again finds by digest that it is his."""
    proxy.resets = 1  # the first answer
    with pytest.raises(TransientError):
        far.put("key", [b"data"])
    assert b"".join(store.get("key")) == b"data"
    store.delete("key")
    proxy.resets = 1
    assert Retrying(far, Patience(first=0.01, longest=0.05)).put("key", [b"data"]).size == 4


def test_a_download_that_breaks_goes_on_with_patience(
    store: AzureBlobConnector, far: AzureBlobConnector, proxy: FaultProxy
) -> None:
    store.put("object", [DATA])
    proxy.resets, proxy.after = 2, 4_000_000
    assert b"".join(Retrying(far, Patience(first=0.01, longest=0.05)).get("object")) == DATA
    assert proxy.resets == 0
    proxy.resets = 1000
    with pytest.raises(TransientError):
        b"".join(far.get("object"))
    proxy.resets = 0


def test_a_server_that_never_answers(far: AzureBlobConnector, proxy: FaultProxy) -> None:
    proxy.hang = True
    with pytest.raises(TransientError):
        far.stat("key")


class Answer:
    """An answer of a service as the SDK shows it."""

    def __init__(self, status: int, **headers: str) -> None:
        self.status_code = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(503, x_ms_error_code="ServerBusy", retry_after="7"), ThrottledError),
        (Answer(429, retry_after="7"), ThrottledError),
        (Answer(500, x_ms_error_code="InternalError"), TransientError),
        (Answer(400, x_ms_error_code="InvalidBlockList"), TransientError),
        (Answer(400, x_ms_error_code="Md5Mismatch"), IntegrityError),
        (Answer(403, x_ms_error_code="AuthorizationFailure"), CredentialsError),
        (Answer(307, location="https://elsewhere.example.org"), UsageError),
        (Answer(409, x_ms_error_code="BlobImmutableDueToPolicy"), UsageError),
        (None, TransientError),
    ],
)
def test_what_answers_mean(answer: Answer | None, kind: type[SmpError]) -> None:
    found = azure_module._from_answer(answer, "store key", reading=False)
    assert type(found) is kind
    if isinstance(found, ThrottledError):
        assert found.retry_after == 7.0


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could lead to anybody, and with a SAS token the token with it."""
    sent: list[str] = []

    def answer(session: object, method: str, url: str, **options: object) -> requests.Response:
        sent.append(url)
        response = requests.Response()
        response.status_code, response.headers["Location"] = 307, "https://elsewhere.example.org/"
        response.raw = type("Raw", (), {"read": lambda *_: b"", "close": lambda _: None, "stream": lambda *_, **__: iter(())})()
        response.url = url
        return response

    monkeypatch.setattr(requests.Session, "request", answer)
    with AzureBlobConnector("container", AzureAccess(account="abc", key=KEY)) as store, pytest.raises(SmpError):
        store.stat("key")
    assert len(sent) == 1


class Nonsense(http.server.BaseHTTPRequestHandler):
    """A server that says yes to everything, in HTML: a login page of a hotel."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "6")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"<html>")

    do_HEAD = do_PUT = do_DELETE = do_GET  # noqa: N815 - as http.server calls them

    def log_message(self, *_: object) -> None:
        pass


def test_answers_that_are_none() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nonsense) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        access = AzureAccess(endpoint=Azurite.at(server.server_port), key=KEY)
        with AzureBlobConnector("container", access, timeout=5) as store:
            acts: list[Callable[[], object]] = [lambda: list(store.get("a")), lambda: list(store.list())]
            acts += [lambda: store.put("a", [b"x"]), lambda: store.put("a", [bytes(2 << 20)]), lambda: store.delete("a")]
            for act in acts:
                with pytest.raises(TransientError):
                    act()
        server.shutdown()


# --- the program -----------------------------------------------------------------------------------------------------------

# Python imports this when it starts: whoever speaks to anybody but the endpoint is stopped.
HOOK = """
import os
import sys


def see(event, args):
    if event == "socket.getaddrinfo":
        target = f"{args[0]}:{args[1]}"
    elif event in ("socket.connect", "socket.sendto"):
        target = f"{args[1][0]}:{args[1][1]}" if isinstance(args[1], tuple) else str(args[1])
    else:
        return
    with open(os.environ["EGRESS_LOG"], "a") as log:
        log.write(target + "\\n")
    if target != os.environ["EGRESS_ALLOWED"]:
        os._exit(97)


sys.addaudithook(see)
"""


def test_the_program_from_the_first_upload_to_the_last_byte(
    server: Azurite, container: str, work: Path, smp_process: Callable[..., Ran]
) -> None:
    """And nobody is spoken to but the endpoint."""
    (work / "hook").mkdir()
    (work / "hook" / "sitecustomize.py").write_text(HOOK)
    env = {**os.environ, "PYTHONPATH": str(work / "hook"), "EGRESS_LOG": str(work / "egress")}
    env |= {"EGRESS_ALLOWED": f"127.0.0.1:{server.port}", "AZURE_STORAGE_KEY": server.key}
    data = secrets.token_bytes(20_000_000)
    (work / "study").mkdir()
    (work / "study" / "scan.nii").write_bytes(data)
    shown = ""
    for args in (
        ("key", "generate"),
        ("cloud", "add", "blue", "azure", f"container={container}", "prefix=program/", f"endpoint={server.url}"),
        ("upload", "study"),
        ("ls",),
        ("cloud", "verify"),
        ("cloud", "status"),
        ("download", "study", "-o", "copy"),
    ):
        done = smp_process(*args, env=env)
        assert done.code == 0, f"{args}: {done.err}"
        shown += done.text + done.err
    assert next((work / "copy").rglob("scan.nii")).read_bytes() == data
    assert set((work / "egress").read_text().splitlines()) == {f"127.0.0.1:{server.port}"}
    assert server.key not in shown
    written = [path for path in work.parent.rglob("*") if path.is_file() and path.stat().st_size < 1_000_000]
    assert not [path for path in written if server.key.encode() in path.read_bytes()]
