"""Thousands of damaged files through the command itself: none is accepted, nothing is left, and the error is one line.

Each case checks the exit code, the form of the message, that neither output nor temporary file remains, and that the input was
not touched.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import Ran, left_in
from secure_media_processor import SymmetricKey, encrypt_file

INTEGRITY = 6
MESSAGE = re.compile(r"smp: error: [^\n]+ \[SMP-[A-Z-]+\]\n(smp: hint: [^\n]+\n)?")
SMALL, LARGE = 100, 40_000


@pytest.fixture
def box(work: Path, key_file: Path, key: SymmetricKey) -> Path:
    """A folder with a small and a large encrypted file, outside of which the damaged ones are made."""
    source = work / "source"
    source.mkdir()
    for name, size in (("small", SMALL), ("large", LARGE)):
        (source / name).write_bytes(random.Random(name).randbytes(size))
        encrypt_file(source / name, source / f"{name}.smp", [key])
    (work / "box").mkdir()
    return work / "box"


def refused(box: Path, smp: Callable[..., Ran], raw: bytes) -> str:
    """Give `raw` to smp decrypt, check that it is refused as it must be, and return the code."""
    damaged = box / "damaged.smp"
    damaged.write_bytes(raw)
    ran = smp("decrypt", "--key", box.parent / "keys" / "test.key", damaged)
    assert ran.code == INTEGRITY, ran.err
    assert MESSAGE.fullmatch(ran.err), ran.err
    assert ran.out == b""
    assert left_in(box) == {"damaged.smp"}
    assert damaged.read_bytes() == raw
    found = re.search(r"\[(SMP-[A-Z-]+)\]", ran.err)
    assert found
    return found[1]


def test_cut_at_every_length(box: Path, smp: Callable[..., Ran]) -> None:
    """1,196 lengths of the small file, and every tenth around the edges of the large one."""
    small = (box.parent / "source" / "small.smp").read_bytes()
    codes = [refused(box, smp, small[:length]) for length in range(len(small))]
    assert codes[0] == "SMP-NOT-ENCRYPTED"
    assert set(codes[1:]) == {"SMP-TRUNCATED"}
    large = (box.parent / "source" / "large.smp").read_bytes()
    edges = [512 + 56 + 16_400 * k + d for k in range(3) for d in range(-20, 21, 2)]
    assert {refused(box, smp, large[:length]) for length in edges} == {"SMP-TRUNCATED"}


def test_every_bit_of_the_header_counts(box: Path, smp: Callable[..., Ran]) -> None:
    """One bit of each byte of the first 600: header, salt, commitment."""
    small = (box.parent / "source" / "small.smp").read_bytes()
    for position in range(600):
        bit = 1 << (position % 8)
        raw = small[:position] + bytes([small[position] ^ bit]) + small[position + 1 :]
        refused(box, smp, raw)


def test_trailing_bytes_are_named_whatever_they_are(box: Path, smp: Callable[..., Ran]) -> None:
    small = (box.parent / "source" / "small.smp").read_bytes()
    large = (box.parent / "source" / "large.smp").read_bytes()
    for raw in (small, large):
        for junk in (b"\0", b"x" * 15, b"SMT1", b"SMT1" * 5, bytes(20_000), b"y" * 300_000, raw):
            assert refused(box, smp, raw + junk) == "SMP-TRAILING-DATA"


damages = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 10**9), st.integers(0, 7)),
    st.tuples(st.just("cut out"), st.integers(0, 10**9), st.integers(1, 20_000)),
    st.tuples(st.just("insert"), st.integers(0, 10**9), st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("overwrite"), st.integers(0, 10**9), st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("zero"), st.integers(0, 10**9), st.integers(16, 20_000)),
    st.tuples(st.just("swap"), st.integers(0, 1), st.integers(1, 2)),
    st.tuples(st.just("repeat"), st.integers(0, 2), st.integers(1, 3)),
)


def damage(raw: bytes, kind: str, where: int, what: int | bytes) -> bytes:
    at = where % len(raw)
    match kind, what:
        case "flip", int(bit):
            return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]
        case "cut out", int(size):
            return raw[:at] + raw[at + size :]
        case "insert", bytes(data):
            return raw[:at] + data + raw[at:]
        case "overwrite", bytes(data):
            return raw[:at] + data + raw[at + len(data) :]
        case "zero", int(size):
            return raw[:at] + bytes(min(size, len(raw) - at)) + raw[at + size :]
        case _:
            head, chunks = raw[:568], [raw[i : i + 16_400] for i in range(568, len(raw), 16_400)]
            if kind == "swap":
                chunks[where], chunks[int(what)] = chunks[int(what)], chunks[where]
            else:
                chunks[where : where + 1] = [chunks[where]] * (1 + int(what))
            return head + b"".join(chunks)


@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(case=damages)
def test_any_damage_is_refused(box: Path, smp: Callable[..., Ran], case: tuple[str, int, int | bytes]) -> None:
    large = (box.parent / "source" / "large.smp").read_bytes()
    raw = damage(large, *case)
    if raw == large:  # such as overwriting zeros with zeros
        return
    refused(box, smp, raw)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(raw=st.one_of(st.binary(max_size=2_000), st.binary(max_size=2_000).map(lambda tail: b"SMPENC\0\1\1\0\0\0" + tail)))
def test_foreign_bytes_are_refused(box: Path, smp: Callable[..., Ran], raw: bytes) -> None:
    refused(box, smp, raw)


def test_the_audit_log_counts_every_refusal(box: Path, smp: Callable[..., Ran]) -> None:
    small = (box.parent / "source" / "small.smp").read_bytes()
    for length in (0, 100, 1_000):
        refused(box, smp, small[:length])
    records = json.loads(smp("audit", "show", "--json").out)["records"]
    assert [record["outcome"] for record in records] == ["SMP-NOT-ENCRYPTED", "SMP-TRUNCATED", "SMP-TRUNCATED"]
