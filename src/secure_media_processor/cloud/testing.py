"""The exam of a connector: what the contract in connectors/base.py promises, as tests.

Inherit from ConnectorConformance in a test module, give it a fixture ``connector``, and run pytest::

    class TestMyConnector(ConnectorConformance):
        @pytest.fixture
        def connector(self, tmp_path):
            return MyConnector(...)
"""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from secure_media_processor.cloud.digests import Digester
from secure_media_processor.errors import ExistsError, IntegrityError, MissingError, SmpError, TransientError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from secure_media_processor.cloud.connectors.base import CloudConnector

_BAD_KEYS = (
    "", "/", "/etc/passwd", "a//b", "a/", "..", "../a", "a/../b", "./a", "a\\b", "C:/a", "a\x00b", "a\nb", "con", "a/NUL.txt",
    "a.", "a ", ".smp-store", "x" * 300, "a/" * 600, "e\u0301", "\ud800",
)  # fmt: skip
_GOOD_KEYS = ("a", "a/b/c", "a..b", "..a", "%2e%2e/a", "späť/é.smp", "a b", "-rf", "x" * 255, "con1/auxiliary")


class ConnectorConformance:
    """Tests that every connector passes. The store of the fixture ``connector`` is empty."""

    def test_what_was_put_can_be_read(self, connector: CloudConnector) -> None:
        """Empty, small and large objects come back byte for byte."""
        for size in (0, 1, 1000, 3_000_000, 17 * 1024 * 1024 + 5):  # the last takes three parts
            data = secrets.token_bytes(size)
            info = connector.put(f"size/{size}", _blocks(data))
            assert (info.key, info.size) == (f"size/{size}", size)
            assert connector.stat(f"size/{size}") == info
            assert b"".join(connector.get(f"size/{size}")) == data

    def test_ranges(self, connector: CloudConnector) -> None:
        """Offset and length cut as slices do, past the end as well."""
        data = secrets.token_bytes(700_000)
        connector.put("range", _blocks(data))
        for offset, length in (
            (0, 0),
            (0, 1),
            (5, None),
            (300_000, 300_000),
            (699_999, 10),
            (700_000, None),
            (800_000, 5),
        ):
            expected = data[offset:] if length is None else data[offset : offset + length]
            assert b"".join(connector.get("range", offset=offset, length=length)) == expected

    def test_a_taken_key_is_refused_and_kept(self, connector: CloudConnector) -> None:
        """if_absent never replaces."""
        connector.put("taken", [b"first"])
        with pytest.raises(ExistsError):
            connector.put("taken", [b"second"])
        assert b"".join(connector.get("taken")) == b"first"

    def test_replacing(self, connector: CloudConnector) -> None:
        """Without if_absent the new object takes the place of the old."""
        connector.put("replaced", [b"first"])
        connector.put("replaced", [b"second"], if_absent=False)
        assert b"".join(connector.get("replaced")) == b"second"

    def test_wrong_digests_store_nothing(self, connector: CloudConnector) -> None:
        """An object that does not hash to what it should is refused, and the old one kept."""
        wrong = {"sha256": sha256(b"other").hexdigest()}
        with pytest.raises(IntegrityError):
            connector.put("digest", [b"data"], digests=wrong)
        with pytest.raises(MissingError):
            connector.stat("digest")
        connector.put("digest", [b"old"])
        with pytest.raises(IntegrityError):
            connector.put("digest", [b"data"], digests=wrong, if_absent=False)
        assert b"".join(connector.get("digest")) == b"old"

    def test_wrong_digests_replace_nothing_that_takes_several_parts(self, connector: CloudConnector) -> None:
        """Nor does an upload that was cut off and goes on so."""
        data = secrets.token_bytes(17 * 1024 * 1024 + 5)
        wrong = {"sha256": sha256(b"other").hexdigest()}
        connector.put("digest", [b"old"])
        with pytest.raises(IntegrityError):
            connector.put("digest", _blocks(data), digests=wrong, if_absent=False)
        record = _Record()
        with pytest.raises(TransientError):
            connector.put("digest", _cut_off(data, 16_900_000, TransientError("cut")), if_absent=False, resume=record)
        with pytest.raises(IntegrityError):
            connector.put("digest", _blocks(data), digests=wrong, if_absent=False, resume=record)
        assert record.load() == {}
        assert [info.key for info in connector.list()] == ["digest"]
        assert b"".join(connector.get("digest")) == b"old"

    def test_right_digests_are_accepted(self, connector: CloudConnector) -> None:
        """And given back."""
        digester = Digester(connector.capabilities.native_digests | {"sha256"})
        digester.update(b"data")
        digests = digester.hexdigests()
        connector.put("digest", [b"da", b"ta"], digests=digests)
        found = connector.native_digest("digest")
        assert found
        assert set(found) <= connector.capabilities.native_digests
        assert all(found[name] == digests[name] for name in found.keys() & digests.keys())

    def test_a_source_that_fails_stores_nothing(self, connector: CloudConnector) -> None:
        """The error comes through, and the key stays free."""
        with pytest.raises(_SourceError):
            connector.put("broken", _failing())
        with pytest.raises(MissingError):
            connector.stat("broken")
        assert not list(connector.list())

    def test_an_upload_that_was_cut_off_can_be_taken_up_again(self, connector: CloudConnector) -> None:
        """With a record: nothing under the key after the cut, the whole object after the second put, and an empty record."""
        data = secrets.token_bytes(33 * 1024 * 1024 + 5)
        record = _Record()
        for cut in (_SourceError(), TransientError("the line broke")):
            with pytest.raises(type(cut)):
                connector.put("resumed", _cut_off(data, 25_000_000, cut), resume=record)
            assert not list(connector.list())
        info = connector.put("resumed", _blocks(data), resume=record)
        assert (info.size, record.load()) == (len(data), {})
        assert b"".join(connector.get("resumed")) == data

    def test_absent_objects(self, connector: CloudConnector) -> None:
        """Every method says that it is not there."""
        for act in (connector.stat, connector.delete, connector.native_digest, lambda key: list(connector.get(key))):
            with pytest.raises(MissingError) as caught:
                act("absent")
            assert not caught.value.retryable

    def test_deleting(self, connector: CloudConnector) -> None:
        """A deleted object is gone, its neighbour is not."""
        connector.put("folder/one", [b"1"])
        connector.put("folder/two", [b"2"])
        connector.delete("folder/one")
        assert [info.key for info in connector.list()] == ["folder/two"]
        connector.delete("folder/two")
        assert not list(connector.list())

    def test_listing(self, connector: CloudConnector) -> None:
        """By prefix of the key, in order."""
        for key in ("b/2", "a", "b/1", "bc"):
            connector.put(key, [key.encode()])
        assert [info.key for info in connector.list()] == ["a", "b/1", "b/2", "bc"]
        assert [info.key for info in connector.list("b/")] == ["b/1", "b/2"]
        assert [info.key for info in connector.list("b")] == ["b/1", "b/2", "bc"]
        assert not list(connector.list("zzz"))

    @pytest.mark.parametrize("key", _BAD_KEYS, ids=range(len(_BAD_KEYS)))
    def test_bad_keys_are_refused(self, connector: CloudConnector, key: str) -> None:
        """By every method, before anything happens."""
        for act in (connector.stat, connector.delete, connector.native_digest, lambda key: list(connector.get(key))):
            with pytest.raises(UsageError):
                act(key)
        with pytest.raises(UsageError):
            connector.put(key, [b"x"])
        assert not list(connector.list())

    @pytest.mark.parametrize("key", _GOOD_KEYS, ids=range(len(_GOOD_KEYS)))
    def test_good_keys_are_kept_as_they_are(self, connector: CloudConnector, key: str) -> None:
        """Nothing is decoded, folded or escaped."""
        connector.put(key, [b"x"])
        assert [info.key for info in connector.list()] == [key]
        assert b"".join(connector.get(key)) == b"x"

    def test_one_of_many_writers_wins(self, connector: CloudConnector) -> None:
        """With atomic_create, exactly one put of the same key succeeds, and its bytes are the ones there."""
        if not connector.capabilities.atomic_create:
            pytest.skip("the store has no atomic create")

        def write(number: int) -> int | None:
            try:
                connector.put("contested", [bytes([number]) * 100_000])
            except ExistsError:
                return None
            return number

        with ThreadPoolExecutor(8) as pool:
            winners = [number for number in pool.map(write, range(8)) if number is not None]
        assert len(winners) == 1
        assert b"".join(connector.get("contested")) == bytes(winners) * 100_000

    def test_files(self, connector: CloudConnector, tmp_path: Path) -> None:
        """The four methods for files do what the four for streams do."""
        original, copy = tmp_path / "original", tmp_path / "copy"
        original.write_bytes(secrets.token_bytes(300_000))
        connector.upload_file(original, "file")
        assert [info.key for info in connector.list_files()] == ["file"]
        connector.download_file("file", copy, digests={"sha256": sha256(original.read_bytes()).hexdigest()})
        assert copy.read_bytes() == original.read_bytes()
        connector.delete_file("file")
        assert not list(connector.list_files())

    def test_a_bad_download_leaves_no_file(self, connector: CloudConnector, tmp_path: Path) -> None:
        """Neither a missing object nor a wrong digest leaves anything behind."""
        connector.put("object", [b"data"])
        for key, digests in (("absent", None), ("object", {"sha256": "0" * 64})):
            with pytest.raises(SmpError):
                connector.download_file(key, tmp_path / "out", digests=digests)
            assert not list(tmp_path.glob("out*"))


class _SourceError(Exception):
    pass


def _blocks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 65_537):  # a block size that fits nobody's
        yield data[start : start + 65_537]


def _cut_off(data: bytes, after: int, error: Exception) -> Iterator[bytes]:
    yield from _blocks(data[:after])
    raise error


class _Record:
    """A ResumeRecord in memory."""

    def __init__(self) -> None:
        self._state: Mapping[str, str] = {}

    def load(self) -> Mapping[str, str]:
        return self._state

    def save(self, state: Mapping[str, str]) -> None:
        self._state = dict(state)


def _failing() -> Iterator[bytes]:
    yield b"some"
    raise _SourceError
