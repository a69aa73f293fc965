"""Golden files, the second reader, and what the header and trailer refuse."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

import independent_reader
from secure_media_processor import SmpError, SymmetricKey, decrypt_stream, encrypt_stream
from secure_media_processor.core.container import MAX_TRAILER, Original, Stanza, build_header, new_prefix, parse_header
from secure_media_processor.errors import HeaderDamagedError, PayloadDamagedError

VECTORS = Path(__file__).parents[2] / "vectors"
INDEX = json.loads((VECTORS / "index.json").read_text())
KEY_TEXT = (VECTORS / "vectors.key").read_text()
GOOD = sorted(name for name, entry in INDEX.items() if "sha256" in entry)
BAD = sorted(name for name, entry in INDEX.items() if "code" in entry)


def test_every_golden_file_is_listed() -> None:
    assert {path.stem for path in VECTORS.glob("*.smp")} == set(INDEX)


@pytest.mark.parametrize("name", GOOD)
def test_golden_files_open_in_both_readers(name: str) -> None:
    raw = (VECTORS / f"{name}.smp").read_bytes()
    output = io.BytesIO()
    container = decrypt_stream(io.BytesIO(raw), output, [SymmetricKey.from_text(KEY_TEXT)])
    original, facts = independent_reader.read(raw, independent_reader.read_key_file(KEY_TEXT))
    assert output.getvalue() == original
    assert container.original.sha256 == facts["sha256"] == INDEX[name]["sha256"]
    assert container.original.size == len(original) == INDEX[name]["size"]
    assert container.original.name == facts.get("name")
    assert container.original.mtime_ns == facts.get("mtime_ns")
    assert container.original.media_type == facts.get("media_type")


@pytest.mark.parametrize("name", BAD)
def test_bad_golden_files_are_refused_by_both_readers(name: str) -> None:
    raw = (VECTORS / f"{name}.smp").read_bytes()
    with pytest.raises(SmpError) as caught:
        decrypt_stream(io.BytesIO(raw), None, [SymmetricKey.from_text(KEY_TEXT)])
    assert caught.value.code == INDEX[name]["code"]
    with pytest.raises(Exception):  # noqa: B017, PT011 - the second reader fails in its own ways
        independent_reader.read(raw, independent_reader.read_key_file(KEY_TEXT))


def test_the_second_reader_is_short_and_on_its_own() -> None:
    text = Path(independent_reader.__file__).read_text()
    assert len(text.splitlines()) <= 150
    assert "secure_media_processor" not in text


@pytest.mark.parametrize("size", [0, 1, 15_872, 15_873, 16_384, 262_144 - 512, 262_144, 600_000])
def test_the_second_reader_opens_what_we_write(key: SymmetricKey, size: int) -> None:
    data, output = bytes(range(256)) * (size // 256 + 1), io.BytesIO()
    encrypt_stream(io.BytesIO(data[:size]), output, [key])
    assert independent_reader.read(output.getvalue(), key.secret)[0] == data[:size]


def test_sizes_are_those_the_format_page_gives(key: SymmetricKey) -> None:
    for size in (0, 1, 16_384, 100_000):
        output = io.BytesIO()
        encrypt_stream(io.BytesIO(bytes(size)), output, [key])
        assert len(output.getvalue()) == 512 + 56 + size + 512 + 16 * ((size + 512) // 16_384 + 1)


def test_headers_grow_in_steps_and_keep_every_recipient() -> None:
    prefix, file_key = new_prefix(), bytes(32)
    for count, length in ((1, 512), (3, 512), (4, 1024), (64, 7680)):
        stanzas = [Stanza(200, bytes([i]) * 112 + b"\1") for i in range(count)]
        header = parse_header(build_header(prefix, stanzas, file_key))
        assert (header.prefix, list(header.stanzas), len(header.raw)) == (prefix, stanzas, length)
        header.authenticate(file_key)
        with pytest.raises(HeaderDamagedError):
            header.authenticate(bytes([1]) * 32)


@pytest.mark.parametrize("count", [0, 65])
def test_too_few_or_many_recipients(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 64"):
        build_header(new_prefix(), [Stanza(1, b"")] * count, bytes(32))


def trailer(text: bytes, *, size: int = 512, text_size: int | None = None, fill: bytes = b"\0", mark: bytes = b"SMT1") -> bytes:
    text_size = len(text) if text_size is None else text_size
    end = text_size.to_bytes(4, "big") + size.to_bytes(4, "big") + mark
    return text + fill * (512 - len(text) - len(end)) + end


GOOD_TEXT = b'{"sha256":"' + b"0" * 64 + b'","size":0}'


def test_trailers_that_a_newer_version_wrote_are_read() -> None:
    original, size = Original.from_trailer(b"data" + trailer(GOOD_TEXT[:-1] + b',"new":[1]}'))
    assert (original.size, size) == (0, 512)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"x",
        trailer(GOOD_TEXT, mark=b"SMT2"),
        trailer(GOOD_TEXT, size=0),
        trailer(GOOD_TEXT, size=513),
        trailer(GOOD_TEXT, size=1024),
        trailer(GOOD_TEXT, size=MAX_TRAILER + 512),
        trailer(GOOD_TEXT, text_size=501),
        trailer(GOOD_TEXT, text_size=2**32 - 1),
        trailer(GOOD_TEXT, text_size=len(GOOD_TEXT) - 1),
        trailer(GOOD_TEXT, fill=b"x"),
        trailer(b"[]"),
        trailer(b"{}"),
        trailer(b"\xff"),
        trailer(b"[" * 400),
        trailer(b'{"size":0}'),
        trailer(b'{"sha256":"","size":"0"}'),
        trailer(b'{"sha256":"","size":true}'),
        trailer(b'{"sha256":"","size":-1}'),
        trailer(b'{"sha256":0,"size":0}'),
    ],
)
def test_trailers_that_break_the_format(block: bytes) -> None:
    with pytest.raises(PayloadDamagedError):
        Original.from_trailer(block)


@pytest.mark.parametrize("field", [b'"name":1', b'"mtime_ns":1e9', b'"mtime_ns":99999999999999999999999', b'"mtime_ns":-1'])
def test_a_fact_that_cannot_be_used_does_not_cost_the_data(field: bytes) -> None:
    original, _ = Original.from_trailer(trailer(GOOD_TEXT[:-1] + b"," + field + b"}"))
    assert (original.size, original.name, original.mtime_ns) == (0, None, None)


@pytest.mark.parametrize("name", ["", "x" * 5000, "\x00\x01" * 2000, "é" * 700, "bad \udcff surrogate"])
def test_any_name_fits_the_trailer(name: str) -> None:
    block = Original(1, "0" * 64, name=name, media_type="application/dicom").to_trailer()
    assert len(block) % 512 == 0
    assert len(block) <= MAX_TRAILER
    original, size = Original.from_trailer(block)
    assert size == len(block)
    assert original.name is not None
    assert name.startswith(original.name) or "?" in original.name
