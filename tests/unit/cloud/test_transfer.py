"""Uploads that are cut off and taken up again: what a store ever saw under one key and nonce is one text, whatever happens.

The parts are made small, so that a file of some 400 kB has as many as one of 50 MB.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any, NamedTuple
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import left_in
from secure_media_processor import SymmetricKey, encrypt_file
from secure_media_processor.cloud import digests, transfer
from secure_media_processor.cloud.connectors.base import Capabilities, CloudConnector, ObjectInfo, ResumeRecord
from secure_media_processor.cloud.digests import Digests, Part, cut_into_parts
from secure_media_processor.cloud.manager import ConnectorManager
from secure_media_processor.cloud.objects import ObjectState, StoredObject
from secure_media_processor.cloud.transfer import PartSink, Uploaded, Uploader, is_encrypted
from secure_media_processor.core.encryption import decrypt_stream, encrypt_stream
from secure_media_processor.errors import (
    CredentialsError,
    ExistsError,
    FileAccessError,
    IntegrityError,
    MissingError,
    NoSpaceError,
    QuorumError,
    SmpError,
    SourceChangedError,
    TransientError,
)

PART = 64 * 1024
KEY = SymmetricKey.generate()


class KilledError(BaseException):
    """Stands for the death of the process: nothing of ours handles it."""


@contextmanager
def small_parts() -> Iterator[None]:
    with ExitStack() as stack:
        for module, name, value in (
            (digests, "PART_SIZE", PART),
            (transfer, "PART_SIZE", PART),
            (transfer, "_WORTH_A_JOURNAL", 2 * PART),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


@pytest.fixture(autouse=True)
def parts_are_small() -> Iterator[None]:
    with small_parts():
        yield


class Sent(NamedTuple):
    """A part that a store was sent."""

    key: str
    header: bytes
    """What the object begins with: it stands for the file key, and so for all nonces."""
    number: int
    data: bytes


class Forgotten:
    """A ResumeRecord that keeps nothing."""

    def load(self) -> Mapping[str, str]:
        return {}

    def save(self, state: Mapping[str, str]) -> None:
        pass


class Memory(CloudConnector):
    """A store that takes uploads up again, and never forgets what it was sent, not even of objects that never came to be."""

    def __init__(self, *, resumes: bool = True) -> None:
        self.objects: dict[str, bytes] = {}
        self.begun: dict[str, dict[int, bytes]] = {}
        self.received: list[Sent] = []
        self.budget: int | None = None
        """How many parts it takes before the line breaks, for good."""
        self.error: SmpError | None = None
        self._resumes = resumes

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(frozenset({"sha256"}), atomic_create=True, digests_are_stored=True)

    def put(
        self,
        key: str,
        source: Iterable[bytes],
        *,
        digests: Mapping[str, str] | None = None,
        if_absent: bool = True,
        resume: ResumeRecord | None = None,
    ) -> ObjectInfo:
        if self.error is not None:
            raise self.error
        if if_absent and key in self.objects:
            raise ExistsError("taken")
        record = resume if resume is not None and self._resumes else Forgotten()
        upload = record.load().get("upload", "")
        if upload not in self.begun:
            upload = secrets.token_hex(4)
            self.begun[upload] = {}
            record.save({"upload": upload})
        parts = self.begun[upload]
        try:
            for number, part in enumerate(cut_into_parts(source)):
                self._take(key, parts, number, bytes(part))
        except BaseException as error:
            if isinstance(record, Forgotten) or (isinstance(error, SmpError) and not error.retryable):
                del self.begun[upload]
                record.save({})
            raise
        self.objects[key] = b"".join(parts[number] for number in sorted(parts))
        del self.begun[upload]
        record.save({})
        return ObjectInfo(key, len(self.objects[key]))

    def _take(self, key: str, parts: dict[int, bytes], number: int, data: bytes) -> None:
        if number in parts:
            assert parts[number] == data, "other bytes for a part that is there"
            return
        if self.budget == 0:
            raise TransientError("the line broke")
        if self.budget is not None:
            self.budget -= 1
        parts[number] = data
        self.received.append(Sent(key, parts[0][:512], number, data))

    def discard(self, key: str, resume: ResumeRecord) -> None:
        self.begun.pop(resume.load().get("upload", ""), None)
        resume.save({})

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        yield self._object(key)[offset : None if length is None else offset + length]

    def stat(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, len(self._object(key)))

    def delete(self, key: str) -> None:
        self._object(key)
        del self.objects[key]

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        yield from (ObjectInfo(key, len(data)) for key, data in sorted(self.objects.items()) if key.startswith(prefix))

    def native_digest(self, key: str) -> Digests:
        digester = digests.Digester({"sha256"})
        digester.update(self._object(key))
        return digester.hexdigests()

    def _object(self, key: str) -> bytes:
        if key not in self.objects:
            raise MissingError(f"there is no object {key}")
        return self.objects[key]


@contextmanager
def times_show_nothing() -> Iterator[None]:
    """As on a file system with coarse times, or for whoever sets the clock back: only the digests of the parts tell."""

    def same(_cls: type, path: Path, _file: object) -> transfer._Identity:
        return transfer._Identity([], is_encrypted(path))

    with mock.patch.object(transfer._Identity, "of", classmethod(same)):
        yield


@pytest.fixture(params=[False, True], ids=["times show it", "times do not show it"])
def blind(request: pytest.FixtureRequest) -> Iterator[bool]:
    with times_show_nothing() if request.param else nullcontext():
        yield request.param


@dataclass
class Desk:
    """A file, the stores it goes to, and the journals; every upload is a process of its own."""

    folder: Path
    stores: dict[str, Memory]
    key: SymmetricKey = KEY
    object_key: str | None = None
    quorum: int | None = None
    rounds: int = 0
    overwrite: bool = False
    seen: list[Uploaded] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "scan.nii"

    @property
    def journals(self) -> list[Path]:
        return sorted((self.folder / "journals").glob("*"))

    def upload(self, *, killed_at: int | None = None, progress: Callable[[int], None] | None = None) -> Uploaded:
        def watch(done: int) -> None:
            if progress is not None:
                progress(done)
            if killed_at is not None and done >= killed_at:
                raise KilledError

        manager = ConnectorManager(self.stores, quorum=self.quorum, stall_timeout=5, pauses=(0.0,) * self.rounds)
        uploader = Uploader(manager, [self.key], [self.key], self.folder / "journals", b"k" * 32)
        with uploader.upload(self.file, "scan.nii", key=self.object_key, overwrite=self.overwrite, progress=watch) as uploaded:
            self.seen.append(uploaded)
        return uploaded

    def kill(self, at: int) -> None:
        with suppress(KilledError):
            self.upload(killed_at=at)
            raise AssertionError("the upload came to its end before it was killed")

    def change_byte(self, position: int) -> None:
        """Change a byte and nothing else that can be seen from outside."""
        change(self.file, lambda data: data.__setitem__(position, data[position] ^ 1))

    def received(self) -> list[Sent]:
        return [one for store in self.stores.values() for one in store.received]

    def check_no_nonce_met_two_texts(self) -> None:
        one_text_each(self.received())

    def check_stored(self) -> None:
        """The last upload is right, in all stores, and nothing else is anywhere."""
        uploaded = self.seen[-1]
        key = uploaded.status.object.key
        for store in self.stores.values():
            assert set(store.objects) == {key}
            assert store.begun == {}
            plain = BytesIO()
            decrypt_stream(BytesIO(store.objects[key]), plain, [self.key])
            assert plain.getvalue() == self.file.read_bytes()
        assert self.journals == []
        self.check_no_nonce_met_two_texts()


def one_text_each(received: Sequence[Sent]) -> None:
    """Check that whatever came under one header is one text, and belongs to one object."""
    texts: dict[tuple[bytes, int], bytes] = {}
    keys: dict[bytes, str] = {}
    for sent in received:
        assert texts.setdefault((sent.header, sent.number), sent.data) == sent.data, f"two texts for part {sent.number}"
        assert keys.setdefault(sent.header, sent.key) == sent.key, "two objects under one file key"


def keys_of(desk: Desk) -> set[str]:
    return {sent.key for sent in desk.received()}


def change(path: Path, how: Callable[[bytearray], object]) -> None:
    """Change a file; its modification time stays."""
    status, data = path.stat(), bytearray(path.read_bytes())
    how(data)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def desk(work: Path) -> Desk:
    (work / "scan.nii").write_bytes(Random(1).randbytes(6 * PART + 1000))
    return Desk(work, {name: Memory() for name in ("one", "two")})


# --- going on ---------------------------------------------------------------------------------------------------------------


def test_an_upload_that_was_killed_sends_only_what_is_missing(desk: Desk) -> None:
    desk.kill(4 * PART)
    assert len(desk.journals) == 1
    assert desk.journals[0].stat().st_mode & 0o777 == 0o600
    there = {name: len(store.received) for name, store in desk.stores.items()}
    assert all(count >= 1 for count in there.values())
    uploaded = desk.upload()
    assert uploaded.status.state is ObjectState.FULL
    assert uploaded.size == desk.file.stat().st_size
    for store in desk.stores.values():
        assert sorted(sent.number for sent in store.received) == list(range(7))  # none twice
    desk.check_stored()


def test_it_goes_on_as_often_as_it_must(desk: Desk) -> None:
    for at in range(PART, 6 * PART, PART):
        desk.kill(at)
    desk.upload()
    assert len(keys_of(desk)) == 1
    assert len(desk.received()) == 2 * 7
    desk.check_stored()


def test_what_a_store_has_already_is_not_sent_to_it_again(desk: Desk) -> None:
    """Killed when all was stored and nobody had written that down."""
    with pytest.raises(KilledError), mock.patch.object(transfer.Journal, "remove", side_effect=KilledError):
        desk.upload()
    sent = len(desk.received())
    again = desk.upload()
    assert again.status.state is ObjectState.FULL
    assert len(desk.received()) == sent
    assert again.sha256 == desk.seen[0].sha256
    desk.check_stored()


def test_what_the_stores_have_is_known_also_when_the_last_of_them_is_away(desk: Desk) -> None:
    """Killed while it waited for a store that is dead, which it is still when the command is run again."""
    desk.stores["three"] = Memory()
    desk.stores["three"].error = TransientError("dead")
    with pytest.raises(KilledError), mock.patch.object(transfer.Journal, "remove", side_effect=KilledError):
        desk.upload()
    sent = len(desk.received())
    uploaded = desk.upload()
    assert len(desk.received()) == sent
    item = uploaded.status.object
    assert item.size == len(desk.stores["one"].objects[item.key])
    assert item.digests == desk.stores["one"].native_digest(item.key)
    assert (uploaded.size, uploaded.sha256) == (desk.file.stat().st_size, sha256(desk.file.read_bytes()).hexdigest())


def test_an_upload_for_another_key_begins_anew(desk: Desk) -> None:
    """The first key is gone, and with it the file key in the journal."""
    desk.kill(4 * PART)
    desk.key = SymmetricKey.generate()
    desk.upload()
    assert len(keys_of(desk)) == 2
    desk.check_no_nonce_met_two_texts()
    plain = BytesIO()
    decrypt_stream(BytesIO(desk.stores["one"].objects[desk.seen[-1].status.object.key]), plain, [desk.key])
    assert plain.getvalue() == desk.file.read_bytes()


def test_a_journal_of_another_version_is_not_gone_on_with(desk: Desk) -> None:
    desk.kill(4 * PART)
    [journal] = desk.journals
    journal.write_bytes(journal.read_bytes().replace(b'"format":1', b'"format":2', 1))
    desk.upload()
    assert len(keys_of(desk)) == 2
    desk.check_no_nonce_met_two_texts()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_journal_that_a_crash_cut_short_is_gone_on_with(desk: Desk, cut: int) -> None:
    """The parts of the lines that are gone were not sent: each line is on disk before its part leaves."""
    desk.kill(4 * PART)
    [journal] = desk.journals
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:-cut])
    desk.upload()
    desk.check_no_nonce_met_two_texts()
    desk.check_stored()


def test_small_files_have_no_journal(desk: Desk) -> None:
    desk.file.write_bytes(b"x" * (2 * PART - 1))
    desk.kill(PART)
    assert desk.journals == []
    desk.upload()
    desk.check_stored()


@pytest.mark.parametrize("size", [2 * PART, 3 * PART - 1, 5 * PART - 512])
def test_sizes_around_the_edges(desk: Desk, size: int) -> None:
    desk.file.write_bytes(Random(size).randbytes(size))
    desk.kill(size // 2)
    desk.upload()
    desk.check_stored()


def test_an_encrypted_file_is_stored_as_it_is_and_taken_up_too(desk: Desk) -> None:
    plain, sealed = desk.file, desk.folder / "scan.smp"
    encrypt_file(plain, sealed, [SymmetricKey.generate()])
    with mock.patch.object(Desk, "file", sealed):
        desk.kill(4 * PART)
        uploaded = desk.upload()
        assert uploaded.file_id is None
        for store in desk.stores.values():
            assert store.objects == {uploaded.status.object.key: sealed.read_bytes()}
            assert len(store.received) == 7


AGE = b"age-encryption.org/v1\n-> X25519 " + b"A" * 43 + b"\n" + b"B" * 43 + b"\n--- " + b"C" * 43 + b"\n" + bytes(100)


def test_which_files_are_encrypted(work: Path) -> None:
    """By name and header both: what only looks like it on the outside would go out in clear."""
    out = BytesIO()
    encrypt_stream(BytesIO(b"a patient"), out, [KEY])
    smp = out.getvalue()
    cases = {
        "a.smp": (smp, True),
        "A.SMP": (smp, True),
        "a.age": (AGE, True),
        "b.smp": (b"a patient", False),
        "c.smp": (b"", False),
        "d.smp": (b"SMPENC", False),
        "e.smp": (b"SMPENC\x00\x01" + b"a patient" * 100, False),
        "f.smp": (smp[:500], False),
        "g.smp": (AGE, False),
        "h.age": (smp, False),
        "i.age": (b"age-encryption.org/v1\na patient\n", False),
        "j.age": (b"age-encryption.org/v1\n--- " + b"C" * 43 + b"\n", False),
        "k.dcm": (smp, False),
    }
    for name, (data, expected) in cases.items():
        (work / name).write_bytes(data)
        assert is_encrypted(work / name) is expected, name


def test_an_encrypted_file_that_is_none_any_more_when_it_is_read(desk: Desk) -> None:
    """Between the look at it and the reading: nothing of it leaves this machine."""
    sealed = desk.folder / "scan.smp"
    encrypt_file(desk.file, sealed, [KEY])
    plain = b"a patient" * 100_000
    real = transfer.is_encrypted

    def swapped(path: Path) -> bool:
        found = real(path)
        with path.open("r+b") as file:
            file.write(plain)
        return found

    with mock.patch.object(Desk, "file", sealed), mock.patch.object(transfer, "is_encrypted", swapped):
        with pytest.raises(SourceChangedError):
            desk.upload()
        assert desk.received() == []


# --- a file that changes ----------------------------------------------------------------------------------------------------


def test_a_byte_changed_in_a_part_that_was_sent(desk: Desk, blind: bool) -> None:
    """Size and modification time are as before."""
    desk.kill(4 * PART)
    before = keys_of(desk)
    assert len(before) == 1
    desk.change_byte(100)
    desk.upload()
    assert keys_of(desk) > before
    desk.check_stored()


def test_a_byte_changed_in_a_part_that_was_sealed_and_not_sent(desk: Desk, blind: bool) -> None:
    for store in desk.stores.values():
        store.budget = 1
    with pytest.raises(QuorumError):
        desk.upload()
    [journal] = desk.journals
    assert journal.read_bytes().count(b'"part"') > max(sent.number for sent in desk.received()) + 1
    desk.change_byte(PART + 5)
    for store in desk.stores.values():
        store.budget = None
    desk.upload()
    assert len(keys_of(desk)) == 2
    desk.check_stored()


def test_a_byte_changed_in_a_part_that_was_never_sealed(desk: Desk, blind: bool) -> None:
    """No text has met that nonce: either way what is stored is the file as it is now."""
    desk.kill(2 * PART)
    desk.change_byte(6 * PART)
    desk.upload()
    assert len(keys_of(desk)) == (1 if blind else 2)
    desk.check_stored()


@pytest.mark.parametrize("size", [100, 2 * PART, 3 * PART + 17, 6 * PART + 999, 6 * PART + 1001, 9 * PART])
@pytest.mark.parametrize("at", [2 * PART, 6 * PART + 1])
def test_a_file_that_was_cut_or_has_grown(desk: Desk, size: int, at: int, blind: bool) -> None:
    desk.kill(at)

    def resize(data: bytearray) -> None:
        del data[size:]
        data.extend(bytes(size - len(data)))

    change(desk.file, resize)
    desk.upload()
    desk.check_no_nonce_met_two_texts()
    assert desk.seen[-1].size == size
    key = desk.seen[-1].status.object.key
    plain = BytesIO()
    decrypt_stream(BytesIO(desk.stores["two"].objects[key]), plain, [KEY])
    assert plain.getvalue() == desk.file.read_bytes()


@pytest.mark.parametrize("at", [4 * PART, 6 * PART + 1000])
def test_a_file_that_was_only_touched(desk: Desk, blind: bool, at: int) -> None:
    """Its time stands in the trailer, in the last part."""
    desk.kill(at)
    sealed = desk.journals[0].read_bytes().count(b'"part"')
    os.utime(desk.file, ns=(1, time.time_ns()))
    desk.upload()
    assert len(keys_of(desk)) == (1 if blind and sealed < 7 else 2)
    desk.check_stored()


def test_another_file_in_its_place(desk: Desk) -> None:
    """Of the same size and time, by the same name, and even the same bytes: it is another file."""
    desk.kill(4 * PART)
    other = desk.folder / "other"
    shutil.copy2(desk.file, other)
    other.rename(desk.file)
    desk.upload()
    assert len(keys_of(desk)) == 2
    desk.check_stored()


@pytest.mark.parametrize("how", ["grows", "shrinks", "is rewritten"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_file_that_changes_while_it_is_read(desk: Desk, how: str, begun: bool, blind: bool) -> None:
    """It may be half old and half new: nothing of it is kept, neither in the stores nor here."""
    if begun:
        desk.kill(2 * PART)
    times = iter(range(1, 10**6))

    def change_now(done: int) -> None:
        if done < 3 * PART:
            return
        with desk.file.open("r+b") as file:
            if how == "shrinks":
                file.truncate(desk.file.stat().st_size - 1)
            else:
                file.seek(0, os.SEEK_END if how == "grows" else os.SEEK_SET)
                file.write(b"!")
        os.utime(desk.file, ns=(0, next(times)))

    with pytest.raises(SourceChangedError) as caught:
        desk.upload(progress=change_now)
    assert caught.value.exit_code == 1
    assert not caught.value.retryable
    for store in desk.stores.values():
        assert (store.objects, store.begun) == ({}, {})
    assert left_in(desk.folder) == {"scan.nii"}
    desk.check_no_nonce_met_two_texts()


@pytest.mark.parametrize("position", [100, 3 * PART, 6 * PART + 999])
@pytest.mark.parametrize("size", [6 * PART + 1000, PART + 500])
def test_a_file_that_is_swapped_between_two_tries(desk: Desk, position: int, size: int, blind: bool) -> None:
    """In one process, when a store broke off and is given the parts again; small files have no journal."""
    change(desk.file, lambda data: data.__delitem__(slice(size, None)))
    desk.rounds = 1
    broken = desk.stores["two"]
    real = broken.put
    tries = 0

    def put(key: str, source: Iterable[bytes], **options: object) -> ObjectInfo:
        nonlocal tries
        tries += 1
        if tries == 1:
            for _ in source:  # all of it came, and the answer was lost
                pass
            desk.change_byte(min(position, size - 1))
            raise TransientError("no answer")
        return real(key, source, **options)  # type: ignore[arg-type]

    broken.put = put  # type: ignore[method-assign, assignment]
    with pytest.raises(SourceChangedError):
        desk.upload()
    assert tries == 2
    for store in desk.stores.values():
        assert (store.objects, store.begun) == ({}, {})
    assert left_in(desk.folder) == {"scan.nii"}
    desk.check_no_nonce_met_two_texts()


def test_the_same_file_can_be_given_again_in_one_process(desk: Desk) -> None:
    """What the test above would not notice: that a second try always fails."""
    desk.rounds = 2
    desk.stores["two"].budget = 3
    real = desk.stores["two"].put

    def put(*args: object, **options: object) -> ObjectInfo:
        try:
            return real(*args, **options)  # type: ignore[arg-type]
        finally:
            desk.stores["two"].budget = None

    desk.stores["two"].put = put  # type: ignore[method-assign, assignment]
    assert desk.upload().status.state is ObjectState.FULL
    assert sorted(sent.number for sent in desk.stores["two"].received) == list(range(7))
    desk.check_stored()


# --- errors -----------------------------------------------------------------------------------------------------------------


def test_an_error_that_no_retry_helps_leaves_nothing(desk: Desk) -> None:
    for store in desk.stores.values():
        store.error = NoSpaceError("full")
    with pytest.raises(NoSpaceError):
        desk.upload()
    assert left_in(desk.folder) == {"scan.nii"}


def test_with_new_credentials_it_goes_on(desk: Desk) -> None:
    """They expire in the middle of a large upload."""
    desk.kill(4 * PART)
    for store in desk.stores.values():
        store.error = CredentialsError("expired")
    with pytest.raises(CredentialsError):
        desk.upload()
    for store in desk.stores.values():
        store.error = None
    desk.upload()
    assert len(desk.received()) == 2 * 7
    desk.check_stored()


def test_what_broke_off_is_kept_for_later_and_named(desk: Desk) -> None:
    for store in desk.stores.values():
        store.budget = 4
    with pytest.raises(QuorumError):
        desk.upload()
    assert len(desk.journals) == 1
    assert all(len(store.received) == 4 and not store.objects for store in desk.stores.values())
    for store in desk.stores.values():
        store.budget = None
    desk.upload()
    assert all(len(store.received) == 7 for store in desk.stores.values())
    desk.check_stored()


def test_a_store_that_cannot_go_on_gets_everything_and_the_other_only_the_rest(desk: Desk) -> None:
    desk.stores["two"] = Memory(resumes=False)
    desk.kill(4 * PART)
    desk.upload()
    assert len(desk.stores["one"].received) == 7
    assert len(desk.stores["two"].received) > 7
    desk.check_stored()


def test_two_processes_do_not_upload_one_file(desk: Desk) -> None:
    with ExitStack() as stack:
        manager = ConnectorManager(desk.stores)
        uploader = Uploader(manager, [KEY], [KEY], desk.folder / "journals", b"k" * 32)
        stack.enter_context(uploader.upload(desk.file, "scan.nii"))
        with pytest.raises(TransientError, match="another process"):
            desk.upload()
    assert desk.journals == []


def test_one_file_under_two_names_or_into_other_stores_is_two_uploads(desk: Desk) -> None:
    manager = ConnectorManager({"one": desk.stores["one"]})
    uploaders = [
        Uploader(ConnectorManager(desk.stores), [KEY], [KEY], desk.folder / "journals", b"k" * 32),
        Uploader(manager, [KEY], [KEY], desk.folder / "journals", b"k" * 32),
    ]
    with ExitStack() as stack:
        done = [stack.enter_context(uploader.upload(desk.file, name)) for uploader in uploaders for name in ("a.nii", "b.nii")]
        assert len(desk.journals) == 4
        names = b"".join(path.name.encode() + path.read_bytes() for path in desk.journals)
        assert b"nii" not in names
    assert len({one.status.object.key for one in done}) == 4
    desk.check_no_nonce_met_two_texts()


def test_a_key_that_was_given_is_not_ours_alone(desk: Desk) -> None:
    """Whatever is under it stays, also when the file changed."""
    desk.object_key, desk.quorum = "study/scan.smp", 1
    desk.stores["one"].objects["study/scan.smp"] = b"somebody's"
    desk.kill(4 * PART)
    desk.change_byte(0)
    desk.upload()
    assert desk.stores["one"].objects == {"study/scan.smp": b"somebody's"}
    assert len(desk.stores["two"].objects) == 1
    desk.check_no_nonce_met_two_texts()
    desk.quorum = 2
    with pytest.raises(ExistsError):
        desk.upload()
    assert len(desk.stores["two"].objects) == 1


def test_a_key_that_is_taken_everywhere(desk: Desk) -> None:
    """Nothing was stored, and nobody is told that it was."""
    desk.object_key = "study/scan.smp"
    for store in desk.stores.values():
        store.objects["study/scan.smp"] = b"somebody's"
    for size in (100, 6 * PART):
        desk.file.write_bytes(bytes(size))
        with pytest.raises(ExistsError):
            desk.upload()
        assert all(store.objects == {"study/scan.smp": b"somebody's"} for store in desk.stores.values())
        assert desk.journals == []


def test_with_overwrite_it_is_replaced(desk: Desk) -> None:
    desk.object_key, desk.overwrite = "study/scan.smp", True
    for store in desk.stores.values():
        store.objects["study/scan.smp"] = b"old"
    desk.upload()
    desk.check_stored()


def test_a_pipe_is_refused(desk: Desk) -> None:
    """What comes through it could not be given again."""
    desk.file.unlink()
    os.mkfifo(desk.file)

    def write() -> None:
        with suppress(BrokenPipeError):
            desk.file.write_bytes(b"from a pipe")

    writer = Thread(target=write)
    writer.start()
    with pytest.raises(FileAccessError, match=r"scan\.nii"):
        desk.upload()
    writer.join(timeout=20)
    assert all(not store.received for store in desk.stores.values())


# --- all of it at random ----------------------------------------------------------------------------------------------------

CHANGES = st.one_of(
    st.just(("nothing", 0)),
    st.tuples(st.just("byte"), st.integers(0, 10**6)),
    st.tuples(st.just("cut"), st.integers(1, 200_000)),
    st.tuples(st.just("grow"), st.integers(1, 200_000)),
    st.tuples(st.just("touch"), st.integers(1, 10**6)),
)
CUTS = st.one_of(
    st.tuples(st.just("killed"), st.integers(0, 400_000)),
    st.tuples(st.just("broken"), st.lists(st.integers(0, 6), min_size=2, max_size=2)),
    st.tuples(st.just("torn journal"), st.integers(1, 80)),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(CUTS, CHANGES), min_size=1, max_size=5),
    st.integers(2 * PART, 6 * PART),
    st.integers(0, 99),
    st.booleans(),
)
def test_whatever_is_cut_off_and_changed(
    steps: Sequence[tuple[tuple[str, object], tuple[str, int]]], size: int, seed: int, blind: bool
) -> None:
    """No key and nonce meet two texts; the last upload is right, and leaves no trace of those before."""
    random = Random(seed)
    with tempfile.TemporaryDirectory() as folder, small_parts(), times_show_nothing() if blind else nullcontext():
        desk = Desk(Path(folder), {name: Memory(resumes=random.random() < 0.8) for name in ("one", "two")})
        desk.file.write_bytes(random.randbytes(size))
        for (kind, where), (what, amount) in steps:
            cut_off(desk, kind, where)
            desk.check_no_nonce_met_two_texts()
            if what != "nothing":
                change(desk.file, lambda data, what=what, amount=amount: mutate(data, what, amount, random))
            if what == "touch":
                os.utime(desk.file, ns=(0, amount))
        # Of uploads that came to their end, and somebody has written them down, or of one that will be taken up.
        known = {one.status.object.key for one in desk.seen}
        known |= {json.loads(journal.read_bytes().splitlines()[0])["object"] for journal in desk.journals}
        for store in desk.stores.values():
            assert set(store.objects) <= known
            store.objects.clear()
        desk.upload()
        if any(kind == "broken" for (kind, _), _ in steps):
            for store in desk.stores.values():  # one that fails at the moment when a change is noticed keeps what it has
                store.begun.clear()
        desk.check_stored()


def cut_off(desk: Desk, kind: str, where: Any) -> None:
    """Upload as far as it goes."""
    if kind == "broken":
        for store, budget in zip(desk.stores.values(), where, strict=True):
            store.budget = budget
    with suppress(KilledError, QuorumError):
        desk.upload(killed_at=where if kind == "killed" else None)
    for store in desk.stores.values():
        store.budget = None
    if kind == "torn journal":
        for journal in desk.journals:
            tear(journal, where)


def tear(journal: Path, cut: int) -> None:
    """Cut into the last line of a journal, as a crash may: a line that was acknowledged is never lost."""
    data = journal.read_bytes()
    journal.write_bytes(data + b'{"part":99,"sha256":"' + b"0" * cut)


def mutate(data: bytearray, what: str, amount: int, random: Random) -> None:
    match what:
        case "byte":
            if data:
                data[amount % len(data)] ^= 1
        case "cut":
            del data[max(2 * PART, len(data) - amount) :]  # what is smaller has no journal any more
        case "grow":
            data.extend(random.randbytes(amount))


# --- the pieces -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3 * PART), max_size=6))
def test_a_sink_cuts_what_comes_into_parts(sizes: Sequence[int]) -> None:
    with small_parts():
        parts: list[bytes] = []
        sink = PartSink(lambda part: parts.append(part.data))
        blocks = [Random(n).randbytes(size) for n, size in enumerate(sizes)]
        for block in blocks:
            sink.write(memoryview(block))
        sink.flush()
        sink.flush()  # nothing is left
    assert b"".join(parts) == b"".join(blocks)
    assert all(len(part) == PART for part in parts[:-1])
    assert all(parts)


def test_parts_do_not_change_when_the_sink_goes_on() -> None:
    parts: list[Part] = []
    sink = PartSink(parts.append)
    sink.write(b"a" * PART)
    sink.write(b"b" * PART)
    sink.flush()
    assert parts == [Part.of(b"a" * PART), Part.of(b"b" * PART)]
    assert parts[0].sha256 == sha256(b"a" * PART).digest()


def test_an_object_is_found_by_its_digest(desk: Desk) -> None:
    uploaded = desk.upload()
    item = uploaded.status.object
    assert isinstance(item, StoredObject)
    assert item.digests == desk.stores["one"].native_digest(item.key)
    assert item.size == len(desk.stores["one"].objects[item.key])


def test_it_is_the_container_that_encrypting_makes(desk: Desk) -> None:
    """Same name, time and media type in the trailer, whether a file goes through `encrypt_stream` or to the stores."""
    uploaded = desk.upload()
    sealed = BytesIO()
    with desk.file.open("rb", buffering=0) as file:
        expected = encrypt_stream(file, sealed, [KEY]).original
    found = decrypt_stream(BytesIO(desk.stores["one"].objects[uploaded.status.object.key]), None, [KEY])
    assert found.original == expected
    assert found.file_id == uploaded.file_id
    with pytest.raises(IntegrityError):
        decrypt_stream(BytesIO(desk.stores["one"].objects[uploaded.status.object.key][:-1]), None, [KEY])


def test_what_cannot_be_read_is_named(desk: Desk) -> None:
    desk.file.unlink()
    with pytest.raises(MissingError, match=r"scan\.nii"):
        desk.upload()
    desk.file.mkdir()
    with pytest.raises(FileAccessError):
        desk.upload()
    assert all(not store.received for store in desk.stores.values())


BLOCKS = st.lists(st.integers(0, 3 * PART), max_size=6)


def blocks_of(sizes: Sequence[int]) -> list[bytes]:
    return [Random(number).randbytes(size) for number, size in enumerate(sizes)]


def parts_of(data: bytes) -> list[bytes]:
    return [data[start : start + PART] for start in range(0, len(data), PART)]


@given(BLOCKS)
def test_blocks_of_any_size_are_cut_into_parts(sizes: Sequence[int]) -> None:
    with small_parts():
        blocks = blocks_of(sizes)
        assert list(cut_into_parts(blocks)) == parts_of(b"".join(blocks))


def test_parts_that_come_as_parts_are_not_copied() -> None:
    parts = [bytes(PART), b"x" * PART, b"y"]
    cut = list(cut_into_parts(parts))
    assert cut == parts
    assert cut[0] is parts[0]
    assert cut[1] is parts[1]


@given(BLOCKS)
def test_the_digest_over_parts_is_what_the_formats_say(sizes: Sequence[int]) -> None:
    """However the bytes come: in blocks of any size, or in parts that were hashed before."""
    with small_parts():
        blocks = blocks_of(sizes)
        data = b"".join(blocks)
        expected = sha256(b"".join(sha256(part).digest() for part in parts_of(data))).hexdigest()
        by_blocks, by_parts = digests.Digester({"sha256-8m", "sha256", "md5"}), digests.Digester({"sha256-8m", "sha256", "md5"})
        for block in blocks:
            by_blocks.update(block)
        for part in parts_of(data):
            by_parts.add_part(Part.of(part))
        assert by_blocks.hexdigests() == by_parts.hexdigests()
        assert by_blocks.hexdigests()["sha256-8m"] == expected
        assert by_blocks.hexdigests()["sha256"] == sha256(data).hexdigest()


@given(st.lists(st.integers(0, 300), max_size=8), st.integers(1, 100))
def test_a_hash_over_blocks_can_be_looked_at_in_between(sizes: Sequence[int], block: int) -> None:
    hasher, so_far = digests.BlockHash(block), b""
    for data in blocks_of(sizes):
        hasher.update(data)
        so_far += data
        pieces = [so_far[start : start + block] for start in range(0, len(so_far), block)]
        assert hasher.hexdigest() == sha256(b"".join(sha256(piece).digest() for piece in pieces)).hexdigest()


@given(BLOCKS)
def test_the_last_part_waits_for_the_digest(sizes: Sequence[int]) -> None:
    """A store that has not got it keeps nothing."""
    with small_parts():
        blocks = blocks_of(sizes)
        data = b"".join(blocks)
        right, wrong = {"sha256": sha256(data).hexdigest()}, {"sha256": "0" * 64}
        found = list(digests.checked_parts(blocks, digests.Digester(right), right))
        assert [part for part, _ in found] == (parts_of(data) or [b""])
        assert [last for _, last in found] == [False] * (len(found) - 1) + [True]
        got: list[bytes] = []
        with pytest.raises(IntegrityError):
            for part, _ in digests.checked_parts(blocks, digests.Digester(wrong), wrong):
                got.append(part)
        assert got == parts_of(data)[:-1]
