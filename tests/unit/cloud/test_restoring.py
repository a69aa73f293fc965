"""Files out of the stores: going on where a download was cut off, whole or not at all, and never where they do not belong."""

from __future__ import annotations

import fcntl
import hmac
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Ran, left_in
from secure_media_processor import LocalConnector, SymmetricKey
from secure_media_processor.cloud import restoring
from secure_media_processor.cloud.digests import Digester
from secure_media_processor.cloud.index import IndexedFile
from secure_media_processor.cloud.objects import StoredObject
from secure_media_processor.cloud.packs import LARGEST_IN_PACK, PACK_SIZE, Pack
from secure_media_processor.cloud.reading import Replicas
from secure_media_processor.cloud.restoring import Restorer, Wanted, restore_container
from secure_media_processor.core import files
from secure_media_processor.core.encryption import decrypt_stream, encrypt_stream
from secure_media_processor.core.files import resumable_write
from secure_media_processor.core.payload import CHUNK
from secure_media_processor.errors import (
    ExistsError,
    FileAccessError,
    IntegrityError,
    ObjectLostError,
    SmpError,
    TransientError,
    WrongKeyError,
)

KEY = SymmetricKey.generate()
WORK_ID = "0123456789abcdef"
PARTIAL = f".{WORK_ID}.smp-part"
MTIME = 1_600_000_000_123_456_789


class Line(LocalConnector):
    """A store on a line that breaks after so many bytes, and that can be told what to say."""

    breaks_after: int | None = None
    error: SmpError = TransientError("the line broke")
    flip: bool = False
    given: int = 0

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        for block in super().get(key, offset=offset, length=length):
            if self.breaks_after is not None and self.given + len(block) > self.breaks_after:
                raise self.error
            self.given += len(block)
            yield bytes([block[0] ^ 1]) + block[1:] if self.flip else block


class Case:
    """One object in two stores, and a folder to restore to."""

    def __init__(self, folder: Path) -> None:
        self.stores = {name: Line.create(folder / "stores" / name) for name in ("one", "two")}
        self.root = folder / "out"
        self.root.mkdir()

    def put(self, raw: bytes, key: str = "object") -> StoredObject:
        digester = Digester({"sha256"})
        digester.update(raw)
        for store in self.stores.values():
            store.put(key, [raw])
        return StoredObject(key, len(raw), digester.hexdigests())

    def restorer(self, *, overwrite: bool = False, stores: Sequence[str] = ("one", "two")) -> Restorer:
        return Restorer({name: self.stores[name] for name in stores}, [KEY], lambda digest: [content(digest)], overwrite)

    def restore(self, *wanted: Wanted, **options: object) -> list[SmpError | None]:
        return [error for _, error in self.restorer(**options).restore(wanted, self.root)]  # type: ignore[arg-type]


def content(digest: bytes) -> str:
    return hmac.digest(b"k", digest, sha256).hex()


def encrypted(data: bytes) -> bytes:
    out = BytesIO()
    encrypt_stream(BytesIO(data), out, [KEY])
    return out.getvalue()


@pytest.fixture
def case(work: Path) -> Case:
    return Case(work)


@pytest.fixture
def resumes_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a megabyte is worth what one of 16 is."""
    monkeypatch.setattr(restoring, "_WORTH_RESUMING", 100_000)
    monkeypatch.setattr("secure_media_processor.cloud.reading._RANGE", 4 * (CHUNK + 16))


DATA = Random(1).randbytes(60 * CHUNK + 777)
RAW = encrypted(DATA)


def whole(case: Case, name: str = "x", raw: bytes = RAW, data: bytes = DATA) -> Wanted:
    item = case.put(raw)
    file = IndexedFile(name, len(data), MTIME, content(sha256(data).digest()), item.key)
    return Wanted(file, item, raw[12:28].hex(), case.root / name)


# --- going on ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("resumes_early")
def test_a_download_that_was_cut_off_goes_on(case: Case) -> None:
    wanted = whole(case, "folder/x")
    case.stores["one"].breaks_after = 40 * CHUNK
    [error] = case.restore(wanted, stores=["one"])
    assert isinstance(error, TransientError)
    [left] = left_in(case.root)
    assert left.startswith("folder/.")
    there = (case.root / left).stat()
    assert there.st_mode & 0o777 == 0o600
    assert there.st_size >= 20 * CHUNK
    assert DATA.startswith((case.root / left).read_bytes())
    case.stores["one"].breaks_after, case.stores["one"].given = None, 0
    assert case.restore(wanted, stores=["one"]) == [None]
    assert case.stores["one"].given <= len(RAW) - there.st_size + 4 * CHUNK
    assert left_in(case.root) == {"folder/x"}
    assert (case.root / "folder" / "x").read_bytes() == DATA
    assert (case.root / "folder" / "x").stat().st_mtime_ns == MTIME
    assert (case.root / "folder" / "x").stat().st_mode & 0o777 == 0o600
    assert (case.root / "folder").stat().st_mode & 0o777 == 0o700


@settings(max_examples=80)
@given(st.integers(0, len(DATA) + 5000), st.lists(st.integers(0, len(DATA) - 1), max_size=2))
def test_whatever_an_unfinished_file_holds_the_right_one_comes_out(
    tmp_path_factory: pytest.TempPathFactory, there: int, wrong: Sequence[int]
) -> None:
    """A crash may leave in it less than was written, or blocks that were never written; more than the file has, even."""
    folder = tmp_path_factory.mktemp("case")
    case = Case(folder)
    held = bytearray((DATA + bytes(5000))[:there])
    for position in wrong:
        if position < there:
            held[position] ^= 1
    (case.root / PARTIAL).write_bytes(held)
    (case.root / PARTIAL).chmod(0o600)
    case.put(RAW)
    replicas = Replicas(case.stores, StoredObject("object", len(RAW), {}))
    restore_container(replicas, [KEY], case.root / "x", WORK_ID)
    assert (case.root / "x").read_bytes() == DATA
    assert left_in(case.root) == {"x"}


@pytest.mark.usefixtures("resumes_early")
def test_a_download_goes_on_from_another_store(case: Case) -> None:
    wanted = whole(case)
    case.stores["one"].breaks_after = 40 * CHUNK
    assert case.restore(wanted, stores=["one"]) != [None]
    assert case.restore(wanted, stores=["two"]) == [None]
    assert case.stores["two"].given < len(RAW) - 20 * CHUNK
    assert (case.root / "x").read_bytes() == DATA


@pytest.mark.usefixtures("resumes_early")
def test_an_interrupt_leaves_what_was_fetched_and_an_error_does_not(case: Case) -> None:
    wanted = whole(case)
    with pytest.raises(KeyboardInterrupt):
        interrupted = Restorer(case.stores, [KEY], lambda digest: [content(digest)])
        list(interrupted.restore([wanted], case.root, progress=interrupt_at(30 * CHUNK)))
    assert len(left_in(case.root)) == 1
    for store in case.stores.values():
        store.path = store._folder / "object"  # type: ignore[attr-defined]
        store.path.write_bytes(RAW[:-1])  # type: ignore[attr-defined]
    assert [type(error) for error in case.restore(wanted)] == [ObjectLostError]
    assert left_in(case.root) == set()


def interrupt_at(size: int) -> Callable[[int], None]:
    total = 0

    def progress(done: int) -> None:
        nonlocal total
        total += done
        if total >= size:
            raise KeyboardInterrupt

    return progress


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resumable", [False, True])
def test_a_store_that_gives_another_object_of_the_same_owner_and_size(
    case: Case, monkeypatch: pytest.MonkeyPatch, resumable: bool
) -> None:
    if resumable:
        monkeypatch.setattr(restoring, "_WORTH_RESUMING", 0)
    wanted = whole(case)
    other = encrypted(bytes(len(DATA)))
    assert len(other) == len(RAW)
    (case.stores["one"]._folder / "object").write_bytes(other)
    assert [type(error) for error in case.restore(wanted, stores=["one"])] == [ObjectLostError]
    assert left_in(case.root) == set()
    assert case.restore(wanted) == [None]
    assert (case.root / "x").read_bytes() == DATA


@pytest.mark.parametrize("resumable", [False, True])
def test_data_that_is_not_what_the_index_says(case: Case, monkeypatch: pytest.MonkeyPatch, resumable: bool) -> None:
    if resumable:
        monkeypatch.setattr(restoring, "_WORTH_RESUMING", 0)
    wanted = whole(case)
    wrong = replace(wanted, file=replace(wanted.file, content="0" * 64))
    [error] = case.restore(wrong)
    assert type(error) is IntegrityError
    assert error.exit_code == 6
    assert left_in(case.root) == set()


def test_an_object_for_other_keys(case: Case) -> None:
    wanted = whole(case)
    other = Restorer(case.stores, [SymmetricKey.generate()], lambda digest: [content(digest)])
    assert [type(error) for _, error in other.restore([wanted], case.root)] == [WrongKeyError]
    assert left_in(case.root) == set()


def test_a_file_that_was_encrypted_by_its_owner_comes_out_as_it_was(case: Case) -> None:
    item = case.put(RAW)
    wanted = Wanted(IndexedFile("x.smp", len(RAW), MTIME, "", item.key), item, None, case.root / "x.smp")
    case.stores["one"].flip = True
    assert case.restore(wanted) == [None]
    assert (case.root / "x.smp").read_bytes() == RAW
    assert (case.root / "x.smp").stat().st_mtime_ns == MTIME
    assert case.stores["two"].given == len(RAW)
    again = replace(wanted, target=case.root / "y")
    assert [type(error) for error in case.restore(again, stores=["one"])] == [ObjectLostError]
    case.stores["two"].breaks_after = 0
    assert [type(error) for error in case.restore(again)] == [TransientError]
    assert left_in(case.root) == {"x.smp"}


# --- where they go ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["small", "large"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written in two ways, by their size."""
    monkeypatch.setattr(restoring, "_WORTH_RESUMING", 0 if request.param == "large" else 1 << 40)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("at", ["a", "a/b", "a/b/c"])
def test_no_link_below_the_root_is_followed(case: Case, work: Path, at: str) -> None:
    wanted = whole(case, "a/b/c/x")
    (work / "elsewhere" / "b" / "c").mkdir(parents=True)
    link = case.root / at
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(work / "elsewhere")
    before = left_in(work)
    handles = open_handles()
    [error] = case.restore(wanted)
    assert type(error) is FileAccessError
    assert "symbolic link" in str(error)
    assert left_in(work) == before
    assert open_handles() == handles


@pytest.mark.usefixtures("either")
def test_a_file_in_the_way_of_a_folder(case: Case) -> None:
    wanted = whole(case, "a/b/x")
    (case.root / "a").write_bytes(b"mine")
    [error] = case.restore(wanted, overwrite=True)
    assert type(error) is FileAccessError
    assert (case.root / "a").read_bytes() == b"mine"


@pytest.mark.usefixtures("either")
def test_the_root_itself_may_be_a_link(case: Case, work: Path) -> None:
    wanted = whole(case)
    (work / "link").symlink_to(case.root)
    assert [e for _, e in case.restorer().restore([replace(wanted, target=work / "link" / "x")], work / "link")] == [None]
    assert (case.root / "x").read_bytes() == DATA


@pytest.mark.usefixtures("either")
def test_what_exists_is_kept_or_replaced_as_asked(case: Case, work: Path) -> None:
    wanted = whole(case)
    (work / "elsewhere").write_bytes(b"somebody's")
    for make in ((case.root / "x").write_bytes, lambda _: (case.root / "x").symlink_to(work / "elsewhere")):
        make(b"mine")
        assert [type(error) for error in case.restore(wanted)] == [ExistsError]
        assert (case.root / "x").read_bytes() != DATA
        assert case.restore(wanted, overwrite=True) == [None]
        assert (case.root / "x").read_bytes() == DATA
        assert not (case.root / "x").is_symlink()
        assert (case.root / "x").stat().st_mode & 0o777 == 0o600
        (case.root / "x").unlink()
    assert (work / "elsewhere").read_bytes() == b"somebody's"
    assert left_in(case.root) == set()


def open_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- resumable_write --------------------------------------------------------------------------------------------------------


def write(target: Path, data: bytes, **options: object) -> bytes:
    """Return what was there."""
    with resumable_write(target, WORK_ID, **options) as file:  # type: ignore[arg-type]
        file.seek(0)
        there = file.read()
        file.write(data)
    return there


def cut_off(target: Path, data: bytes, error: BaseException | None = None) -> None:
    error = error or KeyboardInterrupt()
    with pytest.raises(type(error)), resumable_write(target, WORK_ID) as file:
        file.write(data)
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TransientError("x"), GeneratorExit(), SystemExit(1)])
def test_what_was_cut_off_is_there_the_next_time(work: Path, error: BaseException) -> None:
    cut_off(work / "x", b"some", error)
    assert left_in(work) == {PARTIAL}
    assert write(work / "x", b" more") == b"some"
    assert left_in(work) == {"x"}
    assert (work / "x").read_bytes() == b"some more"


@pytest.mark.parametrize("error", [IntegrityError("x"), FileAccessError("x"), OSError(28, "full")])
def test_what_cannot_be_gone_on_with_is_removed(work: Path, error: Exception) -> None:
    cut_off(work / "x", b"some", KeyboardInterrupt())
    with pytest.raises(SmpError), resumable_write(work / "x", WORK_ID):
        raise error
    assert left_in(work) == set()


def test_an_interrupt_before_anything_was_written_leaves_nothing(work: Path) -> None:
    cut_off(work / "x", b"")
    assert left_in(work) == set()


def test_two_tokens_are_two_files(work: Path) -> None:
    cut_off(work / "x", b"some")
    with resumable_write(work / "x", "f" * 16) as file:
        file.write(b"other")
    assert (work / "x").read_bytes() == b"other"
    assert left_in(work) == {"x", PARTIAL}


FOREIGN: dict[str, Callable[[Path, Path], object]] = {
    "readable by others": lambda path, _: (path.write_bytes(b"x"), path.chmod(0o644)),
    "writable by others": lambda path, _: (path.write_bytes(b"x"), path.chmod(0o602)),
    "symbolic link": lambda path, other: path.symlink_to(other),
    "dangling link": lambda path, other: path.symlink_to(other.with_name("absent")),
    "hard link": lambda path, other: path.hardlink_to(other),
    "folder": lambda path, _: path.mkdir(),
    "pipe": lambda path, _: os.mkfifo(path),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_in_its_place_is_refused(work: Path, kind: str) -> None:
    other = work / "other"
    other.write_bytes(b"somebody's")
    other.chmod(0o600)
    FOREIGN[kind](work / PARTIAL, other)
    handles = open_handles()
    with pytest.raises(FileAccessError):
        write(work / "x", b"data")
    assert other.read_bytes() == b"somebody's"
    assert left_in(work) <= {"other", PARTIAL}
    assert open_handles() == handles


def test_what_belongs_to_another_user_is_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off(work / "x", b"theirs")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(FileAccessError, match="not ours"):
        write(work / "x", b"data")
    monkeypatch.undo()
    assert (work / PARTIAL).read_bytes() == b"theirs"


def test_two_processes_do_not_write_one_file(work: Path) -> None:
    with resumable_write(work / "x", WORK_ID) as file:
        file.write(b"mine")
        with pytest.raises(TransientError, match="another process"):
            write(work / "x", b"theirs")
    assert (work / "x").read_bytes() == b"mine"
    assert left_in(work) == {"x"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_whoever_comes_when_the_other_has_just_finished_leaves_its_file_alone(
    work: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """Opened before the other gave the file its name, locked after."""
    real = fcntl.flock

    def late(file: object, operation: int) -> None:
        monkeypatch.undo()
        with (work / PARTIAL).open("r+b") as other:
            other.write(b"complete")
        (work / PARTIAL).rename(work / "x")
        real(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(files.fcntl, "flock", late)
    with pytest.raises(SmpError), resumable_write(work / "x", WORK_ID, overwrite=overwrite) as file:
        file.truncate(0)
        file.write(b"half")
        raise TransientError("cut off")
    assert (work / "x").read_bytes() == b"complete"


def test_a_target_that_appears_meanwhile_is_kept(work: Path) -> None:
    with pytest.raises(ExistsError), resumable_write(work / "x", WORK_ID) as file:
        file.write(b"mine")
        (work / "x").write_bytes(b"theirs")
    assert (work / "x").read_bytes() == b"theirs"
    assert left_in(work) == {"x"}


# --- packs ------------------------------------------------------------------------------------------------------------------


def packed(sizes: Sequence[int]) -> tuple[Pack, dict[str, bytes], bytes]:
    """Return a pack of files of these sizes, their data, and the object."""
    pack, texts = Pack(), {}
    for number, size in enumerate(sizes):
        name = f"{number}/" + "n" * (number * 37 % 200) + "é"
        texts[name] = Random(number).randbytes(size)
        pack.add(name, texts[name], MTIME + number, sha256(texts[name]).hexdigest())
    _, parts = pack.seal([KEY])
    return pack, texts, b"".join(part.data for part in parts)


def members(case: Case, pack: Pack, raw: bytes) -> list[Wanted]:
    item = case.put(raw)
    return [
        Wanted(
            IndexedFile(one.name, one.size, one.mtime_ns, content(bytes.fromhex(one.sha256)), item.key, one.offset),
            item,
            raw[12:28].hex(),
            case.root / one.name,
        )
        for one in pack.files
    ]


SIZES = [0, 1, 511, 512, 513, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 0, 100_000, 7]


@settings(max_examples=30)
@given(st.sets(st.integers(0, len(SIZES) - 1), min_size=1), st.randoms())
def test_any_files_of_a_pack_come_out(tmp_path_factory: pytest.TempPathFactory, chosen: set[int], random: Random) -> None:
    """Wherever they lie, in any order, without the rest."""
    case = Case(tmp_path_factory.mktemp("case"))
    pack, texts, raw = packed(SIZES)
    wanted = [one for number, one in enumerate(members(case, pack, raw)) if number in chosen]
    random.shuffle(wanted)
    assert case.restore(*wanted) == [None] * len(wanted)
    assert left_in(case.root) == {one.file.name for one in wanted}
    for one in wanted:
        assert one.target.read_bytes() == texts[one.file.name]
        assert one.target.stat().st_mtime_ns == one.file.mtime_ns


def test_one_file_of_a_pack_costs_little(case: Case) -> None:
    pack, texts, raw = packed([900_000] * 8)
    one = members(case, pack, raw)[5]
    assert case.restore(one) == [None]
    assert one.target.read_bytes() == texts[one.file.name]
    assert case.stores["one"].given <= 900_000 + 5 * CHUNK


def test_files_far_apart_are_fetched_without_what_is_between(case: Case) -> None:
    pack, _, raw = packed([1000, *[900_000] * 8, 1000])
    first, *_, last = members(case, pack, raw)
    assert case.restore(first, last) == [None, None]
    assert case.stores["one"].given <= 8 * CHUNK


def test_damage_in_a_pack_costs_the_files_that_it_hits_and_no_others(case: Case) -> None:
    pack, texts, raw = packed([100_000] * 10)
    wanted = members(case, pack, raw)
    bad = bytearray(raw)
    bad[len(raw) // 2] ^= 1
    for store in case.stores.values():
        (store._folder / "object").write_bytes(bad)
    errors = {one.file.name: error for one, error in case.restorer().restore(wanted, case.root)}
    failed = {name for name, error in errors.items() if error is not None}
    assert 1 <= len(failed) <= 2
    assert all(isinstance(errors[name], ObjectLostError) for name in failed)
    assert left_in(case.root) == texts.keys() - failed
    (case.stores["two"]._folder / "object").write_bytes(raw)
    again = [one for one in wanted if one.file.name in failed]
    assert case.restore(*again) == [None] * len(again)


def test_a_place_in_a_pack_that_is_not_there(case: Case) -> None:
    pack, _, raw = packed([1000])
    [one] = members(case, pack, raw)
    for wrong in (replace(one.file, offset=10_000_000), replace(one.file, size=10_000_000), replace(one.file, offset=1)):
        [error] = case.restore(replace(one, file=wrong))
        assert isinstance(error, IntegrityError)
    assert left_in(case.root) == set()


def test_a_pack_opens_with_smp_decrypt_and_tar(work: Path, smp: Callable[..., Ran]) -> None:
    """Without any index, and with other people's tar."""
    pack, texts, raw = packed(SIZES)
    (work / "pack.smp").write_bytes(raw)
    KEY.save(work / "key")
    ran = smp("decrypt", "--key", work / "key", work / "pack.smp", "-o", work / "pack.tar")
    assert ran.code == 0, ran.err
    with tarfile.open(work / "pack.tar") as archive:
        found = {member.name: member for member in archive}
        assert {name: archive.extractfile(member).read() for name, member in found.items()} == texts  # type: ignore[union-attr]
        for one in pack.files:
            assert found[one.name].offset_data == one.offset
            assert (found[one.name].mode, found[one.name].mtime) == (0o600, one.mtime_ns // 10**9)  # type: ignore[operator]
    (work / "out").mkdir()
    subprocess.run(["tar", "-xf", work / "pack.tar", "-C", work / "out"], check=True, timeout=60)
    assert {name: (work / "out" / name).read_bytes() for name in left_in(work / "out")} == texts


def test_a_pack_is_full_before_it_is_too_large() -> None:
    pack = Pack()
    while not pack.full:
        pack.add(f"{len(pack.files)}", bytes(LARGEST_IN_PACK), MTIME, "0" * 64)
    _, parts = pack.seal([KEY])
    size = sum(len(part.data) for part in parts)
    assert PACK_SIZE - 2 * LARGEST_IN_PACK <= size <= PACK_SIZE + LARGEST_IN_PACK // 2
    assert len(parts) == 2


def test_the_names_in_a_pack_are_as_secret_as_the_data() -> None:
    _, texts, raw = packed(SIZES)
    assert all(name.encode() not in raw for name in texts)
    assert decrypt_stream(BytesIO(raw), None, [KEY]).original.name is None
