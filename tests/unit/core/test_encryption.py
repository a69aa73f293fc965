"""Files and streams: round trips, what is written down about the original, and what happens to time and mode."""

from __future__ import annotations

import io
import os
import random
import stat
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import left_in
from secure_media_processor import SymmetricKey, decrypt_file, decrypt_stream, encrypt_file, encrypt_stream, verify_file
from secure_media_processor.core.container import Original, build_header, new_prefix
from secure_media_processor.core.encryption import read_file_id
from secure_media_processor.core.files import open_source
from secure_media_processor.core.payload import Progress, begin_payload, encrypt_payload
from secure_media_processor.errors import ChecksumError, KeyMissingError, WrongKeyError

BLOCK = 262_144
EDGES = [0, 1, 511, 16_383, 16_384, BLOCK - 513, BLOCK - 512, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 300, 7 * BLOCK + 17]


@pytest.mark.parametrize("size", EDGES)
def test_files_come_back(work: Path, key: SymmetricKey, size: int) -> None:
    data = random.Random(size).randbytes(size)
    Path("in").write_bytes(data)
    written = encrypt_file("in", "in.smp", [key])
    assert verify_file("in.smp", [key]) == written
    assert decrypt_file("in.smp", "out", [key]) == written
    assert Path("out").read_bytes() == data
    assert left_in(work) == {"in", "in.smp", "out"}


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=40_000), piece=st.integers(1, 30_000))
def test_streams_come_back_however_they_are_cut(data: bytes, piece: int) -> None:
    """A pipe hands over what it has, not what was asked for."""

    class Pipe(io.RawIOBase):
        def __init__(self, content: bytes) -> None:
            self.content = io.BytesIO(content)

        def readinto(self, buffer: memoryview) -> int:
            return self.content.readinto(memoryview(buffer)[:piece])

    key = SymmetricKey(bytes(32))
    sealed, opened = io.BytesIO(), io.BytesIO()
    encrypt_stream(Pipe(data), sealed, [key])
    container = decrypt_stream(Pipe(sealed.getvalue()), opened, [key])
    assert opened.getvalue() == data
    assert (container.original.name, container.original.mtime_ns) == (None, None)


def test_the_trailer_tells_of_the_original_and_the_copy_gets_its_time(work: Path, key: SymmetricKey) -> None:
    Path("scan.dcm").write_bytes(b"data")
    os.utime("scan.dcm", ns=(1, 1_600_000_000_123_456_789))
    original = encrypt_file("scan.dcm", "x.smp", [key]).original
    assert (original.name, original.mtime_ns, original.media_type) == (
        "scan.dcm",
        1_600_000_000_123_456_789,
        "application/dicom",
    )
    decrypt_file("x.smp", "copy", [key])
    status = Path("copy").stat()
    assert status.st_mtime_ns == 1_600_000_000_123_456_789
    assert stat.S_IMODE(status.st_mode) == stat.S_IMODE(Path("x.smp").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("a.nii.gz", "application/x-nifti"), ("a.NII", "application/x-nifti"), ("a.JPG", "image/jpeg"), ("a", None)],
)
def test_media_types(work: Path, key: SymmetricKey, name: str, media_type: str | None) -> None:
    Path(name).write_bytes(b"")
    assert encrypt_file(name, "out.smp", [key]).original.media_type == media_type


@pytest.mark.parametrize("seconds", [-1, 0, 2**33, 13_569_465_600])
def test_files_from_any_time_come_back(work: Path, key: SymmetricKey, seconds: int) -> None:
    """A time that the format cannot hold is left out, never the file."""
    Path("in").write_bytes(b"data")
    os.utime("in", (seconds, seconds))
    if Path("in").stat().st_mtime != seconds:
        pytest.fail("this file system cannot hold the time; run the tests elsewhere")
    recorded = encrypt_file("in", "in.smp", [key]).original.mtime_ns
    assert recorded == (seconds * 10**9 if 0 <= seconds * 10**9 < 2**63 else None)
    decrypt_file("in.smp", "out", [key])
    assert Path("out").read_bytes() == b"data"


def test_a_pipe_has_no_name_and_a_file_has_one_even_on_its_way_into_a_pipe(work: Path, key: SymmetricKey) -> None:
    Path("in").write_bytes(b"data")
    sealed = io.BytesIO()
    with open_source(Path("in")) as source:
        assert encrypt_stream(source, sealed, [key]).original.name == "in"
    os.mkfifo("pipe")
    with subprocess.Popen(["sh", "-c", "cat in > pipe"]):
        assert encrypt_file("pipe", "out.smp", [key]).original == Original(4, sha256(b"data").hexdigest())


def test_nothing_is_shared_between_equal_files(work: Path, key: SymmetricKey) -> None:
    Path("in").write_bytes(b"the same" * 100)
    first, second = (encrypt_file("in", f"{i}.smp", [key]) for i in range(2))
    assert first.file_id != second.file_id
    one, two = Path("0.smp").read_bytes(), Path("1.smp").read_bytes()
    assert len(one) == len(two)
    common = sum(a == b for a, b in zip(one[512:], two[512:], strict=True))
    assert common < len(one[512:]) / 50  # 1/256 by chance
    assert b"the same" not in one
    assert bytes.fromhex(first.original.sha256) not in one
    assert first.original.sha256.encode() not in one


def test_any_of_several_keys_opens(work: Path) -> None:
    keys = [SymmetricKey.generate() for _ in range(3)]
    Path("in").write_bytes(b"data")
    encrypt_file("in", "in.smp", keys)
    for key in keys:
        verify_file("in.smp", [SymmetricKey.generate(), key])
    with pytest.raises(WrongKeyError) as caught:
        verify_file("in.smp", [SymmetricKey.generate()])
    assert all(key.id in str(caught.value) for key in keys)
    with pytest.raises(KeyMissingError):
        verify_file("in.smp", [])


def test_progress_counts_to_the_size(work: Path, key: SymmetricKey) -> None:
    Path("in").write_bytes(bytes(3 * BLOCK + 5))
    seen: list[int] = []
    encrypt_file("in", "in.smp", [key], progress=seen.append)
    assert seen[-1] == 3 * BLOCK + 5
    assert seen == sorted(seen)
    seen.clear()
    decrypt_file("in.smp", "out", [key], progress=seen.append)
    assert seen[-1] == Path("in.smp").stat().st_size


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size": 99}])
def test_a_trailer_that_tells_of_other_data_is_refused(work: Path, key: SymmetricKey, wrong: dict[str, object]) -> None:
    """Only a faulty writer makes such a file: everything authenticates."""

    class Liar(Original):
        __slots__ = ()

        def with_content(self, size: int, sha256: str) -> Original:
            return Original(**{"size": size, "sha256": sha256, **wrong})

    prefix, file_key, sealed = new_prefix(), bytes(32), io.BytesIO()
    sealed.write(build_header(prefix, [key.wrap(file_key, prefix)], file_key))
    encrypt_payload(io.BytesIO(b"data"), sealed, begin_payload(file_key, prefix), facts=Liar(0, ""), progress=Progress(None))
    Path("liar.smp").write_bytes(sealed.getvalue())
    with pytest.raises(ChecksumError):
        decrypt_file("liar.smp", "out", [key])
    assert left_in(work) == {"liar.smp"}


def test_a_pipe_without_data_is_not_the_end_of_a_file(key: SymmetricKey) -> None:
    class Waiting(io.RawIOBase):
        def readinto(self, buffer: memoryview) -> None:
            return None

    with pytest.raises(BlockingIOError):
        encrypt_stream(Waiting(), io.BytesIO(), [key])


def test_file_ids_are_read_without_a_key(work: Path, key: SymmetricKey) -> None:
    Path("in").write_bytes(b"")
    assert encrypt_file("in", "in.smp", [key]).file_id == read_file_id("in.smp").hex()
