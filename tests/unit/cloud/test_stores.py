"""The list of stores, and kinds of stores that others add."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from secure_media_processor.cloud.kinds import DROPBOX, GOOGLE_DRIVE, LOCAL, S3
from secure_media_processor.cloud.stores import Store, StoreBook, check_options, find_kind, kinds
from secure_media_processor.errors import (
    ConfigError,
    CredentialsError,
    KeyExposedError,
    MissingError,
    MissingExtraError,
    TransientError,
    UsageError,
)

PLUGIN = """
from secure_media_processor import LocalConnector
from secure_media_processor.cloud.stores import StoreKind

KIND = StoreKind(
    options={"place": "a folder"},
    required=frozenset({"place"}),
    open=lambda options, before_request: LocalConnector.create(options["place"]),
    requests_per_second=10,
)
NOT_A_KIND = 1
"""


@pytest.fixture
def plugin(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of somebody else's, installed as pip would leave it."""
    site = work / "site"
    (site / "acme_stores-1.0.dist-info").mkdir(parents=True)
    (site / "acme_stores.py").write_text(PLUGIN)
    (site / "acme_stores-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-stores\nVersion: 1.0\n")
    (site / "acme_stores-1.0.dist-info" / "entry_points.txt").write_text(
        "[smp.connectors]\nacme = acme_stores:KIND\nbroken = acme_stores:NOT_A_KIND\n"
    )
    monkeypatch.syspath_prepend(site)
    yield
    sys.modules.pop("acme_stores", None)


@pytest.fixture
def book(work: Path) -> StoreBook:
    return StoreBook(work / "config" / "stores.json")


def test_our_kinds_are_registered_as_anybodys_are() -> None:
    assert kinds() == ["azure", "dropbox", "gdrive", "local", "s3", "sftp"]
    for name, kind in (("local", LOCAL), ("s3", S3), ("dropbox", DROPBOX), ("gdrive", GOOGLE_DRIVE)):
        assert find_kind(name) is kind
        assert kind.required <= kind.options.keys()
        assert kind.paths <= kind.options.keys()


def test_a_kind_of_somebody_else(plugin: None, work: Path) -> None:
    assert "acme" in kinds()
    with Store("theirs", "acme", {"place": str(work / "place")}).open() as connector:
        connector.put("key", [b"data"])
        assert b"".join(connector.get("key")) == b"data"
    with pytest.raises(MissingExtraError, match="is not one"):
        find_kind("broken")
    with pytest.raises(MissingExtraError, match="no kind"):
        find_kind("nonsense")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "need the option bucket"),
        ({"bucket": "b", "secret": "x"}, "have no option secret"),
        ({"Bucket": "b"}, "no option Bucket"),
    ],
)
def test_options_are_checked(options: dict[str, str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        check_options("s3", S3, options)
    assert "bucket= its name" in caught.value.hint


def test_stores_are_kept_in_order(book: StoreBook) -> None:
    assert book.stores() == []
    two, one = Store("two", "s3", {"bucket": "b"}), Store("one", "local", {"folder": "/x"})
    book.add(two)
    book.add(one)
    assert book.stores() == [one, two]
    assert book.find("two") == two
    assert book.path.stat().st_mode & 0o777 == 0o600
    book.remove("two")
    assert book.stores() == [one]
    for act in (book.find, book.remove):
        with pytest.raises(MissingError):
            act("two")


@pytest.mark.parametrize("name", ["", "Two", "-x", "a b", "a/b", "x" * 33, "ü", "a\n"])
def test_names_that_are_none(book: StoreBook, name: str) -> None:
    with pytest.raises(UsageError):
        book.add(Store(name, "local", {}))
    assert not book.path.exists()


def test_a_name_is_taken_once(book: StoreBook) -> None:
    book.add(Store("one", "local", {"folder": "/x"}))
    with pytest.raises(UsageError, match="already"):
        book.add(Store("one", "local", {"folder": "/y"}))
    assert book.find("one").options == {"folder": "/x"}


def test_stores_added_at_the_same_time_are_all_kept(book: StoreBook) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: book.add(Store(f"store-{n}", "local", {"folder": "/x"})), range(20)))
    assert len(book.stores()) == 20


@pytest.mark.parametrize(
    "text",
    [
        "", "[", "[]", "{}", "1", '{"stores":[1]}', '{"stores":{"a":1}}', '{"stores":{"a":{"kind":"s3"}}}',
        '{"stores":{"a":{"kind":"s3","options":{"b":1}}}}', "[" * 9999,
    ],
)  # fmt: skip
def test_a_damaged_list_is_an_error_and_stays(book: StoreBook, text: str) -> None:
    book.path.parent.mkdir()
    book.path.write_text(text)
    for act in (book.stores, lambda: book.add(Store("one", "local", {})), lambda: book.remove("one")):
        with pytest.raises(ConfigError):
            act()
    assert book.path.read_text() == text


def test_a_store_that_is_gone_is_not_an_empty_one(work: Path) -> None:
    from secure_media_processor.cloud.wrappers import Patience  # noqa: PLC0415 - only here

    store = Store("nas", "local", {"folder": str(work / "gone")})
    with store.open(Patience(deadline=0)) as connector, pytest.raises(TransientError):
        list(connector.list())


@pytest.mark.parametrize("kind", ["dropbox", "gdrive", "s3"])
def test_credentials_come_from_private_files(work: Path, kind: str) -> None:
    path = work / "credentials.json"
    options = {"credentials": str(path)} | ({"bucket": "bucket"} if kind == "s3" else {})
    with pytest.raises(CredentialsError, match="there is no"):
        Store("x", kind, options).open()
    for text in ("", "[]", "{", "1", '{"nonsense": "s3cret-value"}', '{"refresh_token": 5}'):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(CredentialsError) as caught:
            Store("x", kind, options).open()
        assert "s3cret-value" not in str(caught.value)
    path.chmod(0o644)
    with pytest.raises(KeyExposedError):
        Store("x", kind, options).open()


def test_dropbox_opens_with_a_file(work: Path) -> None:
    path = work / "credentials.json"
    path.write_text(json.dumps({"refresh_token": "s3cret", "app_key": "public"}))
    path.chmod(0o600)
    with Store("x", "dropbox", {"credentials": str(path)}).open() as connector:
        assert connector.capabilities.native_digests == {"dropbox"}
        assert "s3cret" not in repr(connector)
