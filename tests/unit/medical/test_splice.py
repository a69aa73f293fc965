"""The quick way through a header gives the same bytes as the thorough one, or gives way to it."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file, get_testdata_files
from pydicom.sequence import Sequence

from dicom_canaries import write_canaries
from secure_media_processor.medical.deid.engine import Deidentifier, _Made
from secure_media_processor.medical.deid.profile import Option, Profile
from secure_media_processor.medical.dicom.reader import Unreadable

KEY = bytes(range(32))
OPTIONS = [frozenset(), frozenset(set(Option) - {Option.RETAIN_DATES, Option.CLEAN_PIXELS})]


def whole(made: _Made, source: Path) -> bytes:
    tail = source.read_bytes()[made.tail.offset :] if made.tail else b""
    return made.header + tail


def compare(deidentifier: Deidentifier, path: Path) -> bool:
    """Return whether the quick way was taken."""
    quick = deidentifier._make_quickly(path)
    if quick is None:
        return False
    thorough = deidentifier._make(path)
    assert type(quick) is type(thorough)
    if isinstance(quick, _Made):
        assert isinstance(thorough, _Made)
        assert whole(quick, path) == whole(thorough, path)
        assert (quick.name, quick.done) == (thorough.name, thorough.done)
    else:
        assert quick == thorough
    return True


@pytest.mark.parametrize("options", OPTIONS, ids=["basic", "all options"])
def test_files_of_every_kind(options: frozenset[Option], tmp_path: Path) -> None:
    deidentifier = Deidentifier(KEY, Profile(options))
    paths = [Path(path) for path in get_testdata_files() if Path(path).is_file()]
    taken = sum(compare(deidentifier, path) for path in paths)
    assert taken > 60
    write_canaries(tmp_path)
    taken = sum(compare(deidentifier, path) for path in sorted(tmp_path.rglob("*")) if path.is_file())
    assert taken >= 1


def image(path: Path) -> Path:
    dataset = dcmread(get_testdata_file("CT_small.dcm"))
    del dataset[0xFFFCFFFC]
    inner, outer = Dataset(), Dataset()
    inner.PatientName = "Halvorsen-Quist^Rowena"
    outer.RequestAttributesSequence = Sequence([inner])
    dataset.SourceImageSequence = Sequence([outer, Dataset()])
    dataset["SourceImageSequence"].is_undefined_length = True
    dataset.add_new(0x00281201, "OW", bytes(70_000))  # the header is longer than what is read first
    dataset.save_as(path)
    return path


def test_a_long_header_with_nested_items(tmp_path: Path) -> None:
    assert compare(Deidentifier(KEY), image(tmp_path / "in"))


@pytest.mark.parametrize("seed", range(8))
def test_damage_is_seen_or_means_the_same(seed: int, tmp_path: Path) -> None:
    """Whatever the quick way makes of a damaged file, the thorough one makes as well."""
    random, deidentifier, path = Random(seed), Deidentifier(KEY), tmp_path / "damaged"
    dataset = dcmread(get_testdata_file("CT_small.dcm"))
    del dataset[0xFFFCFFFC]
    if seed % 2:
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
        dataset.save_as(tmp_path / "in", implicit_vr=True, little_endian=True)
    else:
        dataset.save_as(tmp_path / "in")
    data = (tmp_path / "in").read_bytes()
    start, end = data.index(b"\x08\x00\x05\x00"), data.index(b"\xe0\x7f\x10\x00")
    taken = 0
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(random.choice((1, 1, 3))):
            damaged[random.randrange(start, end + 12)] = random.choice(
                (0, 1, 2, 8, 0x20, 0x41, 0x5C, 0xFF, random.randrange(256))
            )
        if random.random() < 0.2:
            del damaged[random.randrange(start, len(damaged)) :]
        path.write_bytes(damaged)
        taken += compare(deidentifier, path)
    assert taken > 10


@pytest.mark.parametrize("change", ["cut", "longer", "no mark", "big endian", "no pixels"])
def test_what_is_not_plain_is_left_to_the_thorough_way(change: str, tmp_path: Path) -> None:
    path = image(tmp_path / "in")
    data = path.read_bytes()
    if change == "cut":
        path.write_bytes(data[:-100])
    elif change == "longer":
        path.write_bytes(data + bytes(8))
    elif change == "no mark":
        path.write_bytes(data[:128] + b"DICK" + data[132:])
    elif change == "big endian":
        path = Path(str(get_testdata_file("MR_small_bigendian.dcm")))
    else:
        path.write_bytes(data[: data.index(b"\xe0\x7f\x10\x00")])
    deidentifier = Deidentifier(KEY)
    taken = compare(deidentifier, path)
    assert taken == (change == "no pixels")
    if change in {"cut", "no mark"}:
        assert isinstance(deidentifier._make(path), Unreadable)
