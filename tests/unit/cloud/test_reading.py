"""Reading from several stores: any range, in any order of failures, and never a byte that is not authentic."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from random import Random

import pytest
from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_media_processor import SymmetricKey
from secure_media_processor.cloud import reading
from secure_media_processor.cloud.connectors.base import Capabilities, CloudConnector, ObjectInfo, ResumeRecord
from secure_media_processor.cloud.digests import Digests
from secure_media_processor.cloud.objects import StoredObject
from secure_media_processor.cloud.reading import Replicas, SealedObject, read_container, read_raw
from secure_media_processor.core.container import Original
from secure_media_processor.core.encryption import Sealing, decrypt_stream, encrypt_stream, seal_stream
from secure_media_processor.core.payload import CHUNK, HEAD_SIZE, SEALED_CHUNK, ChunkCipher
from secure_media_processor.errors import (
    ChecksumError,
    CredentialsError,
    IntegrityError,
    KeyMissingError,
    MissingError,
    ObjectLostError,
    SmpError,
    TransientError,
    WrongKeyError,
)

KEY = SymmetricKey.generate()
Change = Callable[[int, bytes], bytes]


class Copy(CloudConnector):
    """A store of one object, which can be any bytes, and lies as told."""

    def __init__(self, data: bytes, *, error: SmpError | None = None, fails_after: int = 10**9) -> None:
        self.data, self.error, self.fails_after = data, error, fails_after
        self.asked: list[tuple[int, int | None]] = []
        self.given = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(frozenset({"sha256"}), atomic_create=True, digests_are_stored=True)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self.asked.append((offset, length))
        if self.error is not None and self.given >= self.fails_after:
            raise self.error
        data = self.data[offset : None if length is None else offset + length]
        self.given += len(data)
        for start in range(0, len(data), 60_000):
            yield data[start : start + 60_000]

    def put(
        self,
        key: str,
        source: Iterable[bytes],
        *,
        digests: Mapping[str, str] | None = None,
        if_absent: bool = True,
        resume: ResumeRecord | None = None,
    ) -> ObjectInfo:
        raise NotImplementedError

    def stat(self, key: str) -> ObjectInfo:
        raise NotImplementedError

    def delete(self, key: str) -> None:
        raise NotImplementedError

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        raise NotImplementedError

    def native_digest(self, key: str) -> Digests:
        raise NotImplementedError


def sealed(data: bytes, keys: Sequence[SymmetricKey] = (KEY,), facts: Original | None = None) -> bytes:
    out = BytesIO()
    if facts is None:
        encrypt_stream(BytesIO(data), out, list(keys))
    else:
        seal_stream(BytesIO(data), out, Sealing.new(list(keys)), facts)
    return out.getvalue()


def file_id(raw: bytes) -> str:
    return raw[12:28].hex()


def replicas(raw: bytes, stores: Mapping[str, Copy]) -> Replicas:
    return Replicas(stores, StoredObject("key", len(raw), {"sha256": sha256(raw).hexdigest()}))


def read(raw: bytes, stores: Mapping[str, Copy], *, start: int = 0, known: bytes = b"") -> bytes:
    """Return the data of the object from `start` on, as a download reads it."""
    sink = BytesIO()
    copy = SealedObject.open(replicas(raw, stores), [KEY], file_id=file_id(raw))
    read_container(copy, sink, start=start, known=sha256(known))
    return sink.getvalue()


def flipped(raw: bytes, *positions: int) -> bytes:
    data = bytearray(raw)
    for position in positions:
        data[position] ^= 1
    return bytes(data)


@pytest.fixture(autouse=True)
def ranges_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four chunks, so that an object of a megabyte has as many as one of 128."""
    monkeypatch.setattr(reading, "_RANGE", 4 * SEALED_CHUNK)


LARGE = Random(1).randbytes(30 * CHUNK + 777)
RAW = sealed(LARGE)


# --- ranges -----------------------------------------------------------------------------------------------------------------

SIZES = [0, 1, CHUNK - 513, CHUNK - 512, CHUNK - 511, CHUNK, CHUNK + 1, 4 * CHUNK, 9 * CHUNK - 512, 9 * CHUNK + 5]
TEXTS = {size: Random(size).randbytes(size) for size in SIZES}
OBJECTS = {size: sealed(text) for size, text in TEXTS.items()}


def text_of(sealed: SealedObject, start: int, end: int) -> bytes:
    return b"".join(bytes(block) for block in sealed.blocks(start, end))  # each is good until the next is asked for


@settings(max_examples=300)
@given(st.sampled_from(SIZES), st.data())
def test_any_range_is_that_of_the_text(size: int, data: st.DataObject) -> None:
    raw = OBJECTS[size]
    copy = SealedObject.open(replicas(raw, {"one": Copy(raw)}), [KEY])
    whole = BytesIO()
    container = decrypt_stream(BytesIO(raw), whole, [KEY])
    text = whole.getvalue() + container.original.to_trailer()
    assert copy.plain_size == len(text)
    edges = [n for n in (0, CHUNK - 1, CHUNK, CHUNK + 1, size, len(text)) if n <= len(text)]
    place = st.one_of(st.sampled_from(edges), st.integers(0, len(text)))
    start, end = sorted((data.draw(place), data.draw(place)))
    assert text_of(copy, start, end) == text[start:end]


@settings(max_examples=150)
@given(st.lists(st.lists(st.integers(0, len(RAW) - 1), max_size=3), min_size=1, max_size=4), st.integers(0, len(LARGE)))
def test_whatever_the_stores_change_what_comes_is_right_or_nothing(places: Sequence[Sequence[int]], start: int) -> None:
    """Each chunk that some store has intact, when it is asked, comes from there."""
    stores = {f"{n}": Copy(flipped(RAW, *damage)) for n, damage in enumerate(places)}
    stores["last"] = Copy(RAW)
    start -= start % CHUNK
    assert read(RAW, stores, start=start, known=LARGE[:start]) == LARGE[start:]
    del stores["last"]
    if any(sum(position >= 0 for position in damage) == 0 for damage in places):
        assert read(RAW, stores) == LARGE
        return
    sink = BytesIO()
    try:
        read_container(SealedObject.open(replicas(RAW, stores), [KEY]), sink)
    except IntegrityError:
        assert LARGE.startswith(sink.getvalue())
    else:
        assert sink.getvalue() == LARGE


@pytest.mark.parametrize("size", SIZES)
def test_every_size_comes_out(size: int) -> None:
    raw = OBJECTS[size]
    assert read(raw, {"one": Copy(raw)}) == TEXTS[size]


def test_only_what_is_wanted_is_fetched() -> None:
    store = Copy(RAW)
    copy = SealedObject.open(replicas(RAW, {"one": store}), [KEY])
    store.given = 0
    assert text_of(copy, 20 * CHUNK + 5, 20 * CHUNK + 10) == LARGE[20 * CHUNK + 5 : 20 * CHUNK + 10]
    assert store.given == SEALED_CHUNK
    assert text_of(copy, 5, 5) == b""
    assert store.given == SEALED_CHUNK


def test_whoever_turns_away_ends_the_fetching() -> None:
    store = Copy(RAW)
    copy = SealedObject.open(replicas(RAW, {"one": store}), [KEY])
    blocks = copy.blocks(0, copy.plain_size)
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    assert len(store.asked) <= 1 + 4 + 1


# --- stores that fail and lie -----------------------------------------------------------------------------------------------


def test_a_store_that_changes_a_byte_in_the_middle_is_left_in_the_middle() -> None:
    """What it gave before is kept, and the next gives the rest, not all."""
    bad, good, idle = Copy(flipped(RAW, 15 * SEALED_CHUNK)), Copy(RAW), Copy(RAW)
    assert read(RAW, {"bad": bad, "good": good, "idle": idle}) == LARGE
    assert good.given <= len(RAW) - 14 * SEALED_CHUNK
    assert bad.given <= 15 * SEALED_CHUNK + 6 * 4 * SEALED_CHUNK  # with what was on its way meanwhile
    assert idle.given == 0


@pytest.mark.parametrize("error", [TransientError("dead"), MissingError("gone"), CredentialsError("expired")])
@pytest.mark.parametrize("fails_after", [0, 1, 15 * SEALED_CHUNK])
def test_a_store_that_fails_is_left_at_any_moment(error: SmpError, fails_after: int) -> None:
    stores = {"bad": Copy(RAW, error=error, fails_after=fails_after), "good": Copy(RAW)}
    assert read(RAW, stores) == LARGE


def test_each_store_is_good_for_something() -> None:
    """Three stores, each damaged in another place: together they have everything."""
    stores = {f"{n}": Copy(flipped(RAW, (5 + 10 * n) * SEALED_CHUNK)) for n in range(3)}
    with pytest.raises(ObjectLostError) as caught:  # one that has lied is not asked again
        read(RAW, stores)
    assert caught.value.exit_code == 6
    assert all(f"{n}:" in str(caught.value) for n in range(3))


def test_the_error_says_whether_it_may_pass() -> None:
    bad = Copy(flipped(RAW, 20_000))
    with pytest.raises(ObjectLostError):
        read(RAW, {"bad": bad})
    with pytest.raises(TransientError):
        read(RAW, {"bad": bad, "away": Copy(RAW, error=TransientError("away"), fails_after=0)})
    with pytest.raises(ObjectLostError, match="there is no store"):
        read(RAW, {})


OTHERS: dict[str, bytes] = {
    "another object of the same size": sealed(bytes(len(LARGE))),
    "an older object": sealed(b"old"),
    "an object for somebody else": sealed(LARGE, [SymmetricKey.generate()]),
    "a header with the key id changed": flipped(RAW, 40),
    "a header with the wrapped key changed": flipped(RAW, 60),
    "a header with the padding changed": flipped(RAW, 400),
    "a header with the length changed": flipped(RAW, 29),
    "a header of another version": flipped(RAW, 7),
    "another salt": flipped(RAW, 512),
    "another commitment": flipped(RAW, 540),
    "no container": bytes(len(RAW)),
    "nothing": b"",
    "a part": RAW[:-1],
    "a little": RAW[:100],
    "only whole chunks": RAW[: 512 + HEAD_SIZE + 3 * SEALED_CHUNK],
    "its first part and another's rest": RAW[: 20 * SEALED_CHUNK] + sealed(LARGE)[20 * SEALED_CHUNK :],
    "two chunks swapped": RAW[:568]
    + RAW[568 + SEALED_CHUNK : 568 + 2 * SEALED_CHUNK]
    + RAW[568 : 568 + SEALED_CHUNK]
    + RAW[568 + 2 * SEALED_CHUNK :],
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_store_that_has_something_else_in_that_place(other: str) -> None:
    """The next one is asked; alone it is refused, and nothing false is written."""
    false = OTHERS[other]
    assert read(RAW, {"false": Copy(false), "good": Copy(RAW)}) == LARGE
    sink = BytesIO()
    with pytest.raises(IntegrityError) as caught:
        read_container(SealedObject.open(replicas(RAW, {"false": Copy(false)}), [KEY], file_id=file_id(RAW)), sink)
    assert caught.value.exit_code == 6
    assert LARGE.startswith(sink.getvalue())


def test_the_whole_of_an_object_is_wanted() -> None:
    """An object that was cut at the end of a chunk, by a store and by the index that believes it."""
    cut = RAW[: 512 + HEAD_SIZE + 3 * SEALED_CHUNK]
    for raw in (cut, cut + RAW[-100:], RAW[: 512 + HEAD_SIZE], RAW[:512]):
        with pytest.raises(IntegrityError):
            read(raw, {"one": Copy(raw)})


def test_an_object_for_other_keys_is_called_that() -> None:
    stores = {name: Copy(RAW) for name in ("one", "two")}
    with pytest.raises(WrongKeyError):
        SealedObject.open(replicas(RAW, stores), [SymmetricKey.generate()])
    with pytest.raises(KeyMissingError):
        SealedObject.open(replicas(RAW, stores), [])
    with pytest.raises(TransientError):
        SealedObject.open(
            replicas(RAW, {"one": Copy(RAW), "away": Copy(RAW, error=TransientError("away"), fails_after=0)}),
            [SymmetricKey.generate()],
        )


def test_a_trailer_that_tells_of_other_data_is_refused() -> None:
    """It is authentic: whoever wrote it had the key, and was wrong."""

    class Wrong(Original):
        def with_content(self, size: int, digest: str) -> Original:
            return replace(Original(0, ""), size=size, sha256="0" * 64)

    raw = sealed(LARGE, facts=Wrong(0, ""))
    with pytest.raises(ChecksumError):
        read(raw, {"one": Copy(raw)})


def test_wrong_data_before_the_start_is_noticed_at_the_end() -> None:
    with pytest.raises(ChecksumError):
        read(RAW, {"one": Copy(RAW)}, start=4 * CHUNK, known=bytes(4 * CHUNK))


def test_a_header_of_many_recipients_is_fetched_whole() -> None:
    keys = [SymmetricKey.generate() for _ in range(63)]
    raw = sealed(LARGE, [*keys, KEY])
    assert read(raw, {"one": Copy(raw)}) == LARGE
    sink = BytesIO()
    read_container(SealedObject.open(replicas(raw, {"one": Copy(raw)}), [keys[0]]), sink)
    assert sink.getvalue() == LARGE


def test_a_store_that_never_stops_does_not_fill_the_memory() -> None:
    class Endless(Copy):
        def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
            for _ in range(10_000):  # 10 GB
                yield bytes(1_000_000)
            raise AssertionError("all of it was read")

    tracemalloc.start()
    try:
        assert read(RAW, {"endless": Endless(b""), "good": Copy(RAW)}) == LARGE
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


# --- objects as they are ----------------------------------------------------------------------------------------------------


def test_an_object_that_is_not_decrypted_is_compared_with_its_digest() -> None:
    data = Random(2).randbytes(300_000)
    sink, seen = BytesIO(), []
    read_raw(replicas(data, {"one": Copy(data)}), sink, progress=seen.append)
    assert sink.getvalue() == data
    assert seen[-1] == len(data)
    assert seen == sorted(seen)
    for bad in (flipped(data, 0), flipped(data, len(data) - 1), data[:-1], b""):
        with pytest.raises(IntegrityError):
            read_raw(replicas(data, {"one": Copy(bad)}), BytesIO())
    read_raw(replicas(b"", {"one": Copy(b"")}), BytesIO())


# --- the cipher -------------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 5 * CHUNK), st.binary(min_size=28, max_size=28), st.integers(0, 99))
def test_chunk_by_chunk_it_is_the_librarys_cipher(size: int, prefix: bytes, seed: int) -> None:
    """The same bytes for the same salt, in both directions."""
    data, file_key = Random(seed).randbytes(size), Random(seed + 1).randbytes(32)
    encryptor = Cobblestone256Encryptor(file_key, b"smp.v1 payload\x00" + prefix)
    expected = encryptor.update(data) + encryptor.finalize()
    cipher = ChunkCipher.from_head(file_key, expected[:HEAD_SIZE], prefix)
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    if size % CHUNK == 0:
        chunks.append(b"")
    made = [cipher.seal(index, chunk) for index, chunk in enumerate(chunks)]
    assert cipher.head + b"".join(made) == expected
    assert [cipher.open(index, chunk) for index, chunk in enumerate(made)] == chunks
    assert cipher.open(1, made[0]) is None
    assert cipher.open(0, flipped(made[0], seed % len(made[0]))) is None
    decryptor = Cobblestone256Decryptor(file_key, b"smp.v1 payload\x00" + prefix)
    assert decryptor.update(cipher.head + b"".join(made)) + decryptor.finalize() == data


def test_a_head_for_another_key_is_refused() -> None:
    cipher = ChunkCipher.of(bytes(32), bytes(24), bytes(28))
    ChunkCipher.from_head(bytes(32), cipher.head, bytes(28))
    for file_key, head, prefix in (
        (b"x" * 32, cipher.head, bytes(28)),
        (bytes(32), cipher.head, b"x" * 28),
        (bytes(32), flipped(cipher.head, 0), bytes(28)),
        (bytes(32), flipped(cipher.head, 55), bytes(28)),
        (bytes(32), cipher.head[:-1], bytes(28)),
    ):
        with pytest.raises(IntegrityError):
            ChunkCipher.from_head(file_key, head, prefix)


@settings(max_examples=40)
@given(st.integers(0, 6 * CHUNK), st.integers(0, 99))
def test_a_sealing_gives_the_same_bytes_each_time_and_any_reader_opens_them(size: int, seed: int) -> None:
    data, sealing, facts = Random(seed).randbytes(size), Sealing.new([KEY]), Original(0, "", name="x")
    outs = [BytesIO(), BytesIO()]
    for out in outs:
        seal_stream(BytesIO(data), out, sealing, facts)
    assert outs[0].getvalue() == outs[1].getvalue()
    plain = BytesIO()
    assert decrypt_stream(BytesIO(outs[0].getvalue()), plain, [KEY]).original.name == "x"
    assert plain.getvalue() == data
    kept = Sealing.restore(sealing.header, sealing.salt, [KEY])
    again = BytesIO()
    seal_stream(BytesIO(data), again, kept, facts)
    assert again.getvalue() == outs[0].getvalue()
