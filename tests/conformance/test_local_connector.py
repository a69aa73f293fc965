"""The folder store against the contract, and what only a folder can do wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import left_in
from secure_media_processor import LocalConnector
from secure_media_processor.cloud.testing import ConnectorConformance
from secure_media_processor.errors import FileAccessError, TransientError


class TestLocalConnector(ConnectorConformance):
    @pytest.fixture
    def connector(self, tmp_path: Path) -> LocalConnector:
        return LocalConnector.create(tmp_path / "store")


def test_a_folder_that_is_no_store_is_not_an_empty_one(work: Path) -> None:
    """A disk that is not mounted must not look like a store without objects."""
    (work / "mountpoint").mkdir()
    for store in (LocalConnector(work / "mountpoint"), LocalConnector(work / "absent")):
        for act in (store.stat, store.delete, store.native_digest, lambda key, s=store: list(s.get(key)), store.list):
            with pytest.raises(TransientError):
                act("key")
        with pytest.raises(TransientError):
            store.put("key", [b""])
    assert left_in(work) == set()


def test_a_store_is_made_once(work: Path) -> None:
    LocalConnector.create(work / "store").put("a", [b"1"])
    assert [info.key for info in LocalConnector.create(work / "store").list()] == ["a"]
    assert (work / "store").stat().st_mode & 0o777 == 0o700


def test_links_do_not_lead_out(work: Path) -> None:
    store = LocalConnector.create(work / "store")
    (work / "outside").mkdir()
    (work / "outside" / "secret").write_bytes(b"secret")
    (work / "store" / "way").symlink_to(work / "outside")
    (work / "store" / "file").symlink_to(work / "outside" / "secret")
    for key in ("way/secret", "file"):
        with pytest.raises(FileAccessError):
            list(store.get(key))
        with pytest.raises(FileAccessError):
            store.put(key, [b"x"], if_absent=False)
    with pytest.raises(FileAccessError):
        store.put("way/new", [b"x"])
    assert left_in(work / "outside") == {"secret"}
    assert (work / "outside" / "secret").read_bytes() == b"secret"
