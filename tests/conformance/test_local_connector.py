"""The folder store against the contract, and what only a folder can do wrong."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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
        for act in (
            store.stat,
            store.delete,
            store.native_digest,
            lambda key, s=store: list(s.get(key)),
            lambda key, s=store: list(s.list(key)),
        ):
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


def test_strangers_in_the_folder_do_not_spoil_the_list(work: Path) -> None:
    store = LocalConnector.create(work / "store")
    store.put("ours", [b"x"])
    (work / "store" / "stray.").write_bytes(b"")
    (work / "store" / ".0123456789abcdef.smp-part").write_bytes(b"")
    (work / "store" / "link").symlink_to("ours")
    assert [info.key for info in store.list()] == ["ours"]
    store.put("a.smp-part", [b"x"])
    assert [info.key for info in store.list()] == ["a.smp-part", "ours"]


def test_putting_and_deleting_in_one_folder_at_the_same_time(work: Path) -> None:
    store = LocalConnector.create(work / "store")

    def churn(number: int) -> None:
        for turn in range(50):
            store.put(f"shared/{number}-{turn}", [b"x"])
            store.delete(f"shared/{number}-{turn}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(churn, range(6)))
    assert list(store.list()) == []


def test_a_folder_left_empty_is_in_nobodys_way(work: Path) -> None:
    store = LocalConnector.create(work / "store")
    store.put("a/b", [b"x"])
    store.delete("a/b")
    store.put("a", [b"y"])
    assert [info.key for info in store.list()] == ["a"]
