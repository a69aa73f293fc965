"""Records and what they amount to: the same in whatever order, and as often as, they are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_media_processor import SymmetricKey
from secure_media_processor.cloud import index as module
from secure_media_processor.cloud.index import Index, IndexedFile, IndexedObject, Record, Version, key_of
from secure_media_processor.core.container import Original
from secure_media_processor.core.encryption import Sealing, decrypt_stream, encrypt_stream, seal_stream
from secure_media_processor.errors import IntegrityError, SmpError, WrongKeyError

KEY = SymmetricKey.generate()
ID = "0123456789abcdef" * 2


def file(name: str, key: str = "o", **more: int) -> IndexedFile:
    return IndexedFile(name, 10, 1_700_000_000_000_000_000, "c" * 64, key, **more)


def item(key: str, size: int = 100) -> IndexedObject:
    return IndexedObject(key, size, {"sha256": "d" * 64}, "e" * 32, ("one", "two"))


def merged(*records: Record) -> Index:
    index = Index()
    for record in records:
        index.merge(record)
    return index


# --- merging ----------------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b"])
KEYS = st.sampled_from(["k1", "k2"])


@st.composite
def histories(draw: st.DrawFn) -> list[Record]:
    """Records as some machines write them, each having seen any of those before."""
    records: list[Record] = []
    for _ in range(draw(st.integers(1, 7))):
        seen = merged(*draw(st.lists(st.sampled_from(records), max_size=4))) if records else Index()
        if records and draw(st.integers(0, 4)) == 0:
            records.append(seen.summary())
            continue
        records.append(
            seen.tell(
                [file(name, draw(KEYS)) for name in draw(st.sets(NAMES, max_size=2))],
                [item(key, draw(st.integers(1, 9))) for key in draw(st.sets(KEYS, max_size=2))],
                removed_files=draw(st.sets(NAMES, max_size=1)),
                removed_objects=draw(st.sets(KEYS, max_size=1)),
            )
        )
    return records


def told(index: Index) -> tuple[object, ...]:
    return index.counter, list(index.files()), list(index.objects()), index.removed, index.in_use(), index.to_remove()


@given(histories(), st.data())
def test_order_and_repetition_do_not_matter(records: Sequence[Record], data: st.DataObject) -> None:
    expected = merged(*records)
    shuffled = data.draw(st.permutations(records))
    again = data.draw(st.lists(st.sampled_from(records), max_size=5))
    found = merged(*shuffled, *again)
    assert told(found) == told(expected)
    assert not any(found.merge(record) for record in records)


@settings(max_examples=250)
@given(histories(), st.data())
def test_it_does_not_matter_how_they_are_grouped(records: Sequence[Record], data: st.DataObject) -> None:
    """A summary of some stands for them: alone, with those that it stands for, and in another summary."""
    cut = data.draw(st.integers(0, len(records)))
    expected = told(merged(*records))[1:]
    first, second = merged(*records[:cut]).summary(), merged(*records[cut:]).summary()
    assert told(merged(first, second))[1:] == expected
    assert told(merged(second, *records[:cut], first))[1:] == expected
    assert told(merged(merged(first, *records[cut:]).summary()))[1:] == expected


@given(histories())
def test_what_was_told_last_counts(records: Sequence[Record]) -> None:
    """Of a file, over all that is known and in every order of reading."""
    index = merged(*records)
    removing = index.tell(removed_files=["a"])
    assert merged(removing, *records).file("a") is None
    index.merge(removing)
    back = index.tell([file("a", "new")], [item("new")])
    found = merged(back, removing, *records)
    assert found.file("a") == file("a", "new")
    assert found.object("new") == item("new")


def test_an_object_that_is_to_go_stays_while_a_file_lies_in_it() -> None:
    """Whoever said that it is to go had not seen the file yet."""
    stored = Index().tell([file("a", "k")], [item("k")])
    gone = merged(stored).tell(removed_files=["a"], removed_objects=["k"])
    link = merged(stored).tell([file("b", "k")])
    for order in permutations((stored, gone, link)):
        index = merged(*order)
        assert index.object("k") == item("k")
        assert list(index.objects()) == [item("k")]
        assert (index.to_remove(), index.unused(), index.removed) == (set(), set(), {"k"})
    without = merged(stored, gone)
    assert without.object("k") is None
    assert (without.to_remove(), without.unused()) == ({"k"}, set())
    index.merge(index.tell(removed_files=["b"]))
    assert index.to_remove() == {"k"}


def test_an_object_in_which_no_file_lies_any_more_is_unused() -> None:
    index = merged(Index().tell([file("a", "old")], [item("old")]))
    assert index.unused() == set()
    index.merge(index.tell([file("a", "new")], [item("new")]))
    assert index.unused() == {"old"}
    assert index.to_remove() == set()


@given(histories())
def test_records_come_back_from_their_objects_as_they_were(records: Sequence[Record]) -> None:
    for record in records[:2]:
        assert Record.open(record.id, record.seal([KEY]), [KEY]) == record


def test_of_two_at_the_same_moment_one_wins_for_all() -> None:
    base = Index()
    mine, theirs = base.tell([file("a", "mine")]), base.tell([file("a", "theirs")])
    assert mine.counter == theirs.counter
    winner = max((mine, theirs), key=lambda record: record.id)
    for order in ((mine, theirs), (theirs, mine)):
        assert merged(*order).file("a") == winner.files["a"][1]


def test_news_are_told_from_what_is_known() -> None:
    index = Index()
    record = index.tell([file("a")], [item("o")])
    assert index.merge(record)
    assert not index.merge(record)
    assert not index.merge(merged(record).summary())
    assert index.merge(index.tell(removed_objects=["o"]))


def test_files_below_a_folder() -> None:
    index = merged(Index().tell([file(name) for name in ("a/b", "a/c/d", "ab", "a.b", "a/", "z") if name != "a/"]))
    assert [one.name for one in index.files()] == ["a.b", "a/b", "a/c/d", "ab", "z"]
    assert [one.name for one in index.files("a")] == ["a/b", "a/c/d"]
    assert [one.name for one in index.files("a/c/d")] == ["a/c/d"]
    assert list(index.files("a/c/")) == []


# --- as objects -------------------------------------------------------------------------------------------------------------


def test_a_record_is_an_ordinary_container() -> None:
    """Whoever has the key can read it without this module."""
    record = Index().tell([file("späť/é.dcm", offset=512)], [item("o")])
    text = BytesIO()
    container = decrypt_stream(BytesIO(record.seal([KEY])), text, [KEY])
    assert container.original.media_type == "application/vnd.smp.index+json"
    fields = json.loads(text.getvalue())
    assert fields["id"] == record.id
    assert fields["files"][0]["name"] == "späť/é.dcm"
    assert fields["files"][0]["offset"] == 512


def test_small_records_all_have_one_size_and_large_ones_tell_little() -> None:
    sizes = {len(Index().tell([file("a" * length)]).seal([KEY])) for length in (1, 50, 250)}
    assert len(sizes) == 1
    sizes = {len(Index().tell([file(f"folder/{n:06}") for n in range(count)]).seal([KEY])) for count in range(500, 520)}
    assert len(sizes) <= 3
    for count in (30, 300, 3000):
        record = Index().tell([file(f"folder/{n:06}") for n in range(count)])
        text = BytesIO()
        decrypt_stream(BytesIO(record.seal([KEY])), text, [KEY])
        assert len(text.getvalue()) <= max(4096, 1.12 * len(text.getvalue().rstrip()))


def sealed(fields: object, media_type: str | None = "application/vnd.smp.index+json", raw: bytes | None = None) -> bytes:
    out = BytesIO()
    text = json.dumps(fields).encode() if raw is None else raw
    seal_stream(BytesIO(text), out, Sealing.new([KEY]), Original(0, "", media_type=media_type))
    return out.getvalue()


GOOD_FILE = {"name": "a", "version": [1, ID], "size": 1, "content": "c", "object": "o"}
GOOD_OBJECT = {"key": "o", "version": [1, ID], "size": 1, "digests": {"sha256": "d"}, "stores": []}
GOOD = {"format": 1, "id": ID, "counter": 1, "files": [GOOD_FILE], "objects": [GOOD_OBJECT], "removed": ["x"]}


def test_the_smallest_record_that_can_be() -> None:
    """The tests below change one thing in it; as it is, it is read."""
    record = Record.open(ID, sealed(GOOD), [KEY])
    assert record.files["a"][1] == IndexedFile("a", 1, None, "c", "o")
    assert record.objects["o"][1] == IndexedObject("o", 1, {"sha256": "d"}, None)
    assert record.removed == {"x"}


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "..", "", "a//b", "a/", "a\x00b", "a\\b", "C:x", "con", "e\u0301", "x" * 300, 5, None]
)
def test_names_that_would_leave_their_folder_cannot_be(name: object) -> None:
    """Not even in a record that somebody with the key has made by hand."""
    for fields in (
        GOOD | {"files": [GOOD_FILE | {"name": name}]},
        GOOD | {"files": [GOOD_FILE | {"object": name}]},
        GOOD | {"objects": [GOOD_OBJECT | {"key": name}]},
        GOOD | {"removed": [name]},
    ):
        with pytest.raises(IntegrityError):
            Record.open(ID, sealed(fields), [KEY])


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"id": "f" * 32},
        {"counter": "many"},
        {"removed": 1},
        {"removed": None},
        {"files": None},
        {"files": [1]},
        {"files": [{}]},
        {"files": [GOOD_FILE | {"size": -1}]},
        {"files": [GOOD_FILE | {"size": True}]},
        {"files": [GOOD_FILE | {"size": 1 << 63}]},
        {"files": [GOOD_FILE | {"size": 1.5}]},
        {"files": [GOOD_FILE | {"mtime_ns": -1}]},
        {"files": [GOOD_FILE | {"offset": "0"}]},
        {"files": [GOOD_FILE | {"version": [1]}]},
        {"files": [GOOD_FILE | {"version": ["1", ID]}]},
        {"files": [GOOD_FILE | {"version": [1, 2]}]},
        {"objects": [GOOD_OBJECT | {"digests": []}]},
        {"objects": [GOOD_OBJECT | {"digests": {"sha256": 1}}]},
        {"objects": [GOOD_OBJECT | {"stores": 1}]},
        {"objects": [GOOD_OBJECT | {"stores": [1]}]},
        {"objects": [GOOD_OBJECT | {"file_id": 1}]},
    ],
)
def test_what_does_not_keep_to_the_format_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        Record.open(ID, sealed(GOOD | change), [KEY])


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"null"])
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError):
        Record.open(ID, sealed(None, raw=raw), [KEY])


def test_a_stored_file_is_never_a_record() -> None:
    """Whatever is in it: that it is a record is authenticated, and no file of a user is stored so."""
    for media_type in (None, "application/json", "application/x-tar"):
        with pytest.raises(IntegrityError, match="no record"):
            Record.open(ID, sealed(GOOD, media_type), [KEY])
    stored = BytesIO()
    encrypt_stream(BytesIO(json.dumps(GOOD).encode()), stored, [KEY])
    with pytest.raises(IntegrityError, match="no record"):
        Record.open(ID, stored.getvalue(), [KEY])


def test_a_record_in_the_place_of_another_is_refused() -> None:
    one, two = Index().tell([file("a")]), Index().tell([file("b")])
    with pytest.raises(IntegrityError, match="not where it was put"):
        Record.open(two.id, one.seal([KEY]), [KEY])


def test_damage_and_other_keys_are_named() -> None:
    record = Index().tell([file("a")])
    good = record.seal([KEY])
    with pytest.raises(WrongKeyError):
        Record.open(record.id, good, [SymmetricKey.generate()])
    for position in range(0, len(good), 97):
        bad = bytearray(good)
        bad[position] ^= 1
        with pytest.raises(SmpError):
            Record.open(record.id, bytes(bad), [KEY])
    for bad in (b"", good[:-1], good + b"x", bytes(len(good))):
        with pytest.raises(IntegrityError):
            Record.open(record.id, bad, [KEY])


def test_keys_of_records() -> None:
    record = Index().tell()
    assert record.key == key_of(record.id) == f"index/{record.id}"
    assert record.key.startswith(module.PREFIX)
    assert len({Index().tell().id for _ in range(100)}) == 100


def test_a_version_is_compared_by_its_counter_first() -> None:
    assert Version(2, "0") > Version(1, "f")
    assert Version(1, "f") > Version(1, "0")
    older = replace(file("a"), size=1)
    low = Record("f" * 32, 1, {"a": (Version(1, "f" * 32), older)}, {}, frozenset())
    high = Record("0" * 32, 2, {"a": (Version(2, "0" * 32), file("a"))}, {}, frozenset())
    for order in ((low, high), (high, low)):
        assert merged(*order).file("a") == file("a")
