"""Key files: their text, their mode, and the keystore."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import independent_reader
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
    assert SymmetricKey.load("k", exposed=True).secret == key.secret


def test_key_files_that_are_none(work: Path) -> None:
    with pytest.raises(KeyMissingError):
        SymmetricKey.load("absent")
    for data in (b"", b"\xff\xfe\x00", b"#" * 5000):
        Path("k").write_bytes(data)
        Path("k").chmod(0o600)
        with pytest.raises(KeyDamagedError, match="k: "):
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
    with pytest.raises(KeyMissingError, match="there is no key"):
        store.primary()
    first = store.generate()
    assert (work / "store").stat().st_mode & 0o777 == 0o700
    assert first.primary
    second = store.generate()
    assert not second.primary
    third = store.generate(primary=True)
    assert store.primary().id == third.id
    assert [entry.id for entry in store.entries()] == sorted([first.id, second.id, third.id])
    assert store.make_primary(second.id).primary
    assert [entry.id for entry in store.entries() if entry.primary] == [second.id]


def test_a_keystore_whose_primary_is_lost_says_how_to_choose_one(work: Path) -> None:
    store = Keystore(work / "store")
    entry = store.generate()
    for text in ("", "../../x", "0" * 16):
        (work / "store" / "primary").write_text(text)
        with pytest.raises(KeyMissingError, match="none of the keys") as caught:
            store.primary()
        assert "smp key primary ID" in caught.value.hint
    (work / "store" / "primary").unlink()
    assert not store.entries()[0].primary
    assert store.make_primary(entry.id).primary


def test_keys_are_found_by_the_beginning_of_their_id(work: Path) -> None:
    store = Keystore(work / "store")
    ids = [store.generate().id for _ in range(20)]
    assert store.find(ids[0]).id == ids[0]
    assert store.find(ids[0][:12]).id == ids[0]
    for wrong in ("", "x", "0" * 17, "../"):
        with pytest.raises(KeyMissingError):
            store.find(wrong)
    shared = next(digit for digit in "0123456789abcdef" if sum(i.startswith(digit) for i in ids) > 1)
    with pytest.raises(KeyMissingError, match="several"):
        store.find(shared)


def test_a_keystore_opens_what_its_keys_open_and_reads_no_other(work: Path) -> None:
    store = Keystore(work / "store")
    first, second = store.generate(), store.generate()
    stanza = store.load(first.id).wrap(bytes(32), bytes(28))
    second.path.write_bytes(b"")
    assert store.unwrap(stanza, bytes(28)) == bytes(32)
    assert store.unwrap(SymmetricKey.generate().wrap(bytes(32), bytes(28)), bytes(28)) is None
    assert store.unwrap(Stanza(9, stanza.body), bytes(28)) is None
    with pytest.raises(KeyDamagedError, match=second.id):
        store.load(second.id)


def test_other_files_in_a_keystore_do_not_matter(work: Path) -> None:
    store = Keystore(work / "store")
    entry = store.generate()
    for name in ("backup.key", "zero.key", "notes", f"{entry.id}.key~", "exported.json"):
        (work / "store" / name).write_bytes(b"[" * 5000)
    (work / "store" / "folder.key").mkdir()
    assert [(e.id, e.exported) for e in store.entries()] == [(entry.id, None)]


def test_a_key_that_is_there_is_not_added_again(work: Path) -> None:
    store = Keystore(work / "store")
    key = SymmetricKey.generate()
    store.add(key)
    with pytest.raises(ExistsError):
        store.add(key)


def _note(folder: Path, key_id: str) -> None:
    Keystore(folder).note_export(key_id)


def test_exports_noted_at_the_same_time_are_all_noted(work: Path) -> None:
    store = Keystore(work / "store")
    ids = [store.generate().id for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key_id: _note(work / "store", key_id), ids))
    assert all(entry.exported for entry in store.entries())


def test_keystores_that_cannot_be_trusted(work: Path) -> None:
    store = Keystore(work / "store")
    first, second = store.generate(), store.generate()
    first.path.write_bytes(second.path.read_bytes())
    with pytest.raises(KeyDamagedError, match="not the one"):
        store.load(first.id)
    (work / "store").chmod(0o755)
    for act in (store.entries, store.primary, store.generate):
        with pytest.raises(KeyExposedError):
            act()
    (work / "file").write_bytes(b"")
    with pytest.raises(SmpError):
        Keystore(work / "file").entries()
    with pytest.raises(SmpError):
        Keystore(work / ("x" * 300)).generate()
