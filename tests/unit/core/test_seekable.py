"""Reading encrypted files from anywhere: as the original reads, and never a byte that is not authentic."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import left_in
from secure_media_processor import SymmetricKey, encrypt_file
from secure_media_processor.core.container import Original, build_header, new_prefix
from secure_media_processor.core.payload import Progress, begin_payload, encrypt_payload
from secure_media_processor.core.seekable import EncryptedFile, open_encrypted
from secure_media_processor.errors import (
    ChecksumError,
    FileAccessError,
    IntegrityError,
    KeyMissingError,
    MissingError,
    NotEncryptedError,
    PayloadDamagedError,
    TrailingDataError,
    TruncatedError,
    WrongKeyError,
)

CHUNK, SEALED = 16_384, 16_400
# Around these the trailer of 512 bytes, or the data, ends with a chunk.
EDGES = [0, 1, CHUNK - 513, CHUNK - 512, CHUNK - 511, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 512, 5 * CHUNK + 7]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("seek"), st.integers(-20_000, 120_000), st.sampled_from([0, 1, 2])),
        st.tuples(st.just("read"), st.integers(-1, 50_000), st.just(0)),
        st.tuples(st.just("readinto"), st.integers(0, 40_000), st.just(0)),
        st.tuples(st.just("readline"), st.integers(-1, 3_000), st.just(0)),
        st.tuples(st.just("tell"), st.just(0), st.just(0)),
    ),
    max_size=30,
)


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def sealed(size: int, key: SymmetricKey) -> Path:
    Path("in").write_bytes(data_of(size))
    encrypt_file("in", "in.smp", [key], overwrite=True)
    Path("in").unlink()
    return Path("in.smp")


def do(file: io.BufferedIOBase, name: str, number: int, whence: int) -> object:
    match name:
        case "seek":
            try:
                return file.seek(number, whence)
            except (ValueError, OSError):  # they differ in which of the two it is
                return "refused"
        case "read":
            return file.read(number)
        case "readinto":
            buffer = bytearray(number)
            return file.readinto(buffer), bytes(buffer)
        case "readline":
            return file.readline(number)
        case _:
            return file.tell()


@pytest.mark.parametrize("size", EDGES)
def test_it_reads_as_the_original(work: Path, key: SymmetricKey, size: int) -> None:
    with open_encrypted(sealed(size, key), [key]) as file:
        assert file.read() == data_of(size)
        assert file.read(1) == b""
        assert file.seek(0, io.SEEK_END) == size
        for start in {0, size // 2, max(0, size - 1), max(0, size - CHUNK)}:
            file.seek(start)
            assert file.read(300) == data_of(size)[start : start + 300]
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
    assert left_in(work) == {"in.smp"}


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.sampled_from([*EDGES, 70_001, 100_000]), steps=STEPS, raw=st.booleans())
def test_any_steps_give_what_memory_gives(work: Path, key: SymmetricKey, size: int, steps: list, raw: bool) -> None:
    with open_encrypted(sealed(size, key), [key]) as file:
        here = file.raw if raw else file
        memory = io.BytesIO(data_of(size))
        for name, number, whence in steps:
            if name == "seek" and whence and (memory.tell() if whence == 1 else size) + number < 0:
                continue  # a BytesIO stops at 0 where a file raises
            assert do(here, name, number, whence) == do(memory, name, number, whence)


def test_what_it_tells_of_the_original(work: Path, key: SymmetricKey) -> None:
    with open_encrypted(sealed(10, key), [key]) as file:
        assert isinstance(file.raw, EncryptedFile)
        assert (file.raw.original.name, file.raw.original.size) == ("in", 10)
        assert len(file.raw.file_id) == 32


def test_every_flipped_byte_is_noticed_where_it_is_read(work: Path, key: SymmetricKey) -> None:
    whole = sealed(3 * CHUNK, key).read_bytes()
    payload = len(whole) - 3 * SEALED - 528 - 56
    ends = [payload + 56 + SEALED * n + d for n in range(4) for d in (-1, 0, 1, 16)]
    for place in {*range(0, 600, 7), *ends, *random.Random(1).sample(range(len(whole)), 60)}:
        if not 0 <= place < len(whole):
            continue
        Path("bad.smp").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(IntegrityError), open_encrypted("bad.smp", [key]) as file:
            # It was opened, so it is one chunk that is damaged: the others are still read, and this one never.
            damaged = (place - payload - 56) // SEALED
            assert 0 <= damaged < 3
            for n in {0, 1, 2} - {damaged}:
                file.seek(n * CHUNK)
                assert file.raw.read(CHUNK) == data_of(3 * CHUNK)[n * CHUNK :][:CHUNK]
            file.seek(damaged * CHUNK)
            with pytest.raises(PayloadDamagedError, match=r"bad\.smp: the file is damaged between byte"):
                file.raw.readinto(bytearray(CHUNK))
            file.seek(damaged * CHUNK)
            file.read(1)


@pytest.mark.parametrize("size", [100, 40_000, 3 * CHUNK - 512])
def test_a_cut_file_is_refused_before_any_byte(work: Path, key: SymmetricKey, size: int) -> None:
    whole = sealed(size, key).read_bytes()
    lengths = {*range(0, len(whole), 997), *(len(whole) - n for n in (1, 2, 15, 16, 17, 512, SEALED))}
    lengths |= {568 + SEALED * n + d for n in range(3) for d in (-1, 0, 1, 15, 16, 17)}
    for length in sorted(n for n in lengths if 0 < n < len(whole)):
        Path("cut.smp").write_bytes(whole[:length])
        with pytest.raises(TruncatedError):
            open_encrypted("cut.smp", [key])


def test_other_damage_has_its_name(work: Path, key: SymmetricKey) -> None:
    path = sealed(50_000, key)
    whole = path.read_bytes()
    for junk in (b"x", bytes(40_000), whole):
        Path("long.smp").write_bytes(whole + junk)
        with pytest.raises(TrailingDataError):
            open_encrypted("long.smp", [key])
    chunks = [whole[568 + n * SEALED :][:SEALED] for n in range(3)]
    Path("swapped.smp").write_bytes(whole[:568] + chunks[1] + chunks[0] + whole[568 + 2 * SEALED :])
    with open_encrypted("swapped.smp", [key]) as file, pytest.raises(PayloadDamagedError):
        file.read()
    with pytest.raises(WrongKeyError):
        open_encrypted(path, [SymmetricKey.generate()])
    with pytest.raises(KeyMissingError):
        open_encrypted(path, [])
    Path("plain").write_bytes(b"hello")
    with pytest.raises(NotEncryptedError):
        open_encrypted("plain", [key])
    with pytest.raises(MissingError):
        open_encrypted("absent", [key])
    with pytest.raises(FileAccessError):
        open_encrypted(".", [key])


def test_a_trailer_that_lies_about_the_size(work: Path, key: SymmetricKey) -> None:
    class Liar(Original):
        def with_content(self, size: int, sha256: str) -> Original:
            return Original(size + 1, sha256)

    file_key, prefix = bytes(32), new_prefix()
    out = io.BytesIO(build_header(prefix, [key.wrap(file_key, prefix)], file_key))
    out.seek(0, io.SEEK_END)
    encrypt_payload(io.BytesIO(b"data"), out, begin_payload(file_key, prefix), facts=Liar(0, ""), progress=Progress(None))
    Path("lie.smp").write_bytes(out.getvalue())
    with pytest.raises(ChecksumError):
        open_encrypted("lie.smp", [key])


def test_a_file_that_shrinks_while_it_is_open(work: Path, key: SymmetricKey) -> None:
    path = sealed(100_000, key)
    with open_encrypted(path, [key]) as file:
        os.truncate(path, 30_000)
        assert file.raw.read(CHUNK) == data_of(100_000)[:CHUNK]
        with pytest.raises(IntegrityError):
            file.raw.read(CHUNK)


def test_a_closed_file_is_closed(work: Path, key: SymmetricKey) -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    file = open_encrypted(sealed(10, key), [key])
    raw = file.raw
    file.close()
    for use in (raw.tell, lambda: raw.seek(0), lambda: raw.readinto(bytearray(1))):
        with pytest.raises(ValueError, match="closed"):
            use()
    with pytest.raises(WrongKeyError):
        open_encrypted("in.smp", [SymmetricKey.generate()])
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_memory_does_not_grow_with_the_file(work: Path, key: SymmetricKey) -> None:
    with open_encrypted(sealed(2_000_000, key), [key]) as file:
        while file.read(100_000):
            assert len(file.raw._chunks) <= 4
