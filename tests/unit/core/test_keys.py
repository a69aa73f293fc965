"""Key files: their text, their mode, and the keystore."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import independent_reader
from conftest import left_in
from secure_media_processor import Keystore, SymmetricKey
from secure_media_processor.core import bech32
from secure_media_processor.core.container import Stanza
from secure_media_processor.errors import (
    ExistsError,
    HeaderDamagedError,
    KeyDamagedError,
    KeyExposedError,
    KeyMissingError,
    SmpError,
)

SECRET = bytes(range(32))
TEXT = "SMP-SECRET-KEY-1QQQSYQCYQ5RQWZQFPG9SCRGWPUGPZYSNZS23V9CCRYDPK8QARC0S4YST53"


@pytest.mark.parametrize(
    "text",
    [
        # Valid test vectors of BIP 173, "Test vectors".
        "A12UEL5L",
        "a12uel5l",
        "an83characterlonghumanreadablepartthatcontainsthenumber1andtheexcludedcharactersbio1tt5tgs",
        "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw",
        "split1checkupstagehandshakeupstreamerranterredcaperred2y9e3w",
        "?1ezyfcl",
    ],
)
def test_bech32_checksums_of_bip_173(text: str) -> None:
    try:
        hrp, _ = bech32.decode(text)
    except ValueError as error:
        # A good checksum over a number of digits that is not whole bytes.
        problem = str(error)
    else:
        problem = "" if text.lower().startswith(hrp) else "another human-readable part"
    assert problem in ("", "bits left over")


@pytest.mark.parametrize(
    "text", ["", "1", "a1", "A12uEL5L", "x1b4n0q5v", "li1dgmt3", "A1G7SGD8", "10a06t8", "1qzzfhee", "\x201nwldj5"]
)
def test_bech32_that_bip_173_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"case|separator|character|checksum"):
        bech32.decode(text)


@given(st.binary(max_size=100))
def test_bech32_comes_back(data: bytes) -> None:
    assert bech32.decode(bech32.encode("smp-", data)) == ("smp-", data)
    assert bech32.decode(bech32.encode("smp-", data).upper()) == ("smp-", data)


@given(st.integers(0, len(TEXT) - 1), st.sampled_from("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7LBIO1-"))
def test_a_changed_letter_is_noticed(position: int, letter: str) -> None:
    changed = TEXT[:position] + letter + TEXT[position + 1 :]
    if changed == TEXT:
        return
    with pytest.raises(KeyDamagedError) as caught:
        SymmetricKey.from_text(changed)
    assert changed not in str(caught.value)


def test_the_text_of_a_key() -> None:
    key = SymmetricKey(SECRET)
    assert key.to_text().splitlines()[-1] == TEXT
    assert SymmetricKey.from_text(f"# comment\n\n  {TEXT.lower()}  \n").secret == SECRET
    assert re.fullmatch("[0-9a-f]{16}", key.id)
    assert independent_reader.read_key_file(TEXT) == SECRET
    assert "secret" not in repr(key)
    assert str(SECRET) not in repr(key)


@pytest.mark.parametrize(
    "text", ["", "# only a comment", f"{TEXT}\n{TEXT}", "hello", TEXT[:-1], bech32.encode("age-secret-key-", SECRET)]
)
def test_texts_that_hold_no_key(text: str) -> None:
    with pytest.raises(KeyDamagedError):
        SymmetricKey.from_text(text)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_keys_of_another_size(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SymmetricKey(bytes(size))
    with pytest.raises(KeyDamagedError):
        SymmetricKey.from_text(bech32.encode("smp-secret-key-", bytes(size)))


def test_key_files_are_private_and_never_replaced(work: Path, key: SymmetricKey) -> None:
    key.save("k")
    assert Path("k").stat().st_mode & 0o777 == 0o600
    assert SymmetricKey.load("k").secret == key.secret
    with pytest.raises(ExistsError):
        SymmetricKey.generate().save("k")
    assert SymmetricKey.load("k").secret == key.secret


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_exposed_key_files_are_refused(work: Path, key: SymmetricKey, mode: int) -> None:
    key.save("k")
    Path("k").chmod(mode)
    with pytest.raises(KeyExposedError) as caught:
        SymmetricKey.load("k")
    assert caught.value.hint == "chmod 600 k"


def test_key_files_that_are_none(work: Path) -> None:
    with pytest.raises(KeyMissingError):
        SymmetricKey.load("absent")
    for data in (b"", b"\xff\xfe\x00", b"#" * 5000):
        Path("k").write_bytes(data)
        Path("k").chmod(0o600)
        with pytest.raises(KeyDamagedError):
            SymmetricKey.load("k")
    with pytest.raises(SmpError):
        SymmetricKey.load(work)


def test_stanzas_are_bound_to_key_and_file(key: SymmetricKey) -> None:
    file_key, prefix = bytes(32), bytes(28)
    stanza = key.wrap(file_key, prefix)
    assert key.unwrap(stanza, prefix) == file_key
    assert SymmetricKey.generate().unwrap(stanza, prefix) is None
    assert key.unwrap(Stanza(2, stanza.body), prefix) is None
    for body in (stanza.body[:-1], stanza.body + b"x", stanza.body[:8], stanza.body[:8] + bytes(104)):
        with pytest.raises(HeaderDamagedError):
            key.unwrap(Stanza(1, body), prefix)
    with pytest.raises(HeaderDamagedError):
        key.unwrap(stanza, b"x" + prefix[1:])


def test_keystore_has_one_primary_and_keeps_the_rest(work: Path) -> None:
    store = Keystore(work / "store")
    assert store.entries() == []
    with pytest.raises(KeyMissingError):
        store.primary()
    first = store.generate()
    assert (work / "store").stat().st_mode & 0o777 == 0o700
    assert first.primary
    second = store.generate()
    assert not second.primary
    third = store.generate(primary=True)
    assert store.primary().id == third.id
    readable = store.keys()
    assert {key.id for key in readable} == {first.id, second.id, third.id}
    assert sum(entry.primary for entry in store.entries()) == 1


def test_keystore_exports_and_remembers(work: Path) -> None:
    store = Keystore(work / "store")
    entry = store.generate()
    assert entry.exported is None
    store.export(entry.id, work / "copy.key")
    assert SymmetricKey.load(work / "copy.key").secret == store.primary().secret
    assert (store.entries()[0].exported or "").startswith("20")
    with pytest.raises(ExistsError):
        store.export(entry.id, work / "copy.key")
    with pytest.raises(KeyMissingError):
        store.export("0" * 16, work / "other.key")
    assert "other.key" not in left_in(work)


def test_keystores_that_cannot_be_trusted(work: Path) -> None:
    store = Keystore(work / "store")
    first, second = store.generate(), store.generate()
    first.path.write_bytes(second.path.read_bytes())
    with pytest.raises(KeyDamagedError):
        store.keys()
    (work / "store" / "exported.json").write_text("[")
    with pytest.raises(KeyDamagedError):
        store.entries()
    (work / "store").chmod(0o755)
    with pytest.raises(KeyExposedError):
        store.entries()
