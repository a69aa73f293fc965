"""SFTP against OpenSSH's own server, and the faults that only a line and a file system can have."""

from __future__ import annotations

import getpass
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import asyncssh
import pytest

from conftest import Ran, left_in
from secure_media_processor.cloud.connectors import sftp
from secure_media_processor.cloud.connectors.sftp import SFTPConnector
from secure_media_processor.cloud.testing import ConnectorConformance
from secure_media_processor.cloud.wrappers import Patience, Retrying
from secure_media_processor.errors import (
    CredentialsError,
    ExistsError,
    KeyExposedError,
    MissingError,
    NoSpaceError,
    SmpError,
    StoreAbsentError,
    TransientError,
    UsageError,
)
from servers import sshd
from servers.fault_proxy import FaultProxy, proxying
from servers.sshd import Sshd, make_key

pytestmark = pytest.mark.skipif(sshd.program() is None, reason="sshd (openssh-server) is not installed")
DATA = bytes(range(256)) * 80_000  # 20 MB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd.running(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the objects lie, at the server."""
    return tmp_path / "served" / "store"


def connector_to(server: Sshd, folder: Path, **options: object) -> SFTPConnector:
    settings: dict[str, object] = {"port": server.port, "user": getpass.getuser(), "identity": server.identity, "timeout": 20}
    settings["known_hosts"] = server.known_hosts(folder.parents[1] / "known_hosts")
    return SFTPConnector("127.0.0.1", str(folder), **(settings | options))


@pytest.fixture
def store(server: Sshd, folder: Path) -> Iterator[SFTPConnector]:
    with connector_to(server, folder) as connector:
        connector.create()
        yield connector


class TestSFTPConnector(ConnectorConformance):
    @pytest.fixture
    def connector(self, store: SFTPConnector) -> SFTPConnector:
        return store


def calls(store: SFTPConnector) -> list[Callable[[], object]]:
    return [
        lambda: store.stat("key"),
        lambda: store.put("key", [b"x"]),
        lambda: list(store.get("key")),
        lambda: list(store.list()),
        lambda: store.delete("key"),
        lambda: store.native_digest("key"),
    ]


# --- who is who ------------------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_known_is_not_spoken_to(server: Sshd, folder: Path, tmp_path: Path) -> None:
    """Nor is its key written down by anybody."""
    (tmp_path / "empty").write_text("")
    for known_hosts in (tmp_path / "empty", tmp_path / "absent"):
        with connector_to(server, folder, known_hosts=known_hosts) as store:
            for act in (store.create, *calls(store)):
                with pytest.raises(CredentialsError, match="host key") as caught:
                    act()
                assert "fingerprint" in caught.value.hint
    assert (tmp_path / "empty").read_text() == ""
    assert not (tmp_path / "absent").exists()
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_a_host_key_that_changed_is_refused(server: Sshd, folder: Path, tmp_path: Path, kind: str) -> None:
    """Of the same kind or another: somebody may stand in between."""
    other = make_key(tmp_path / "other", "-t", kind)
    known_hosts = server.known_hosts(tmp_path / "changed", key=other)
    with connector_to(server, folder, known_hosts=known_hosts) as store:
        for act in (store.create, *calls(store)):
            with pytest.raises(CredentialsError, match="host key"):
                act()


def test_known_hosts_that_are_none(server: Sshd, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00 nonsense\n" * 3)
    with connector_to(server, folder, known_hosts=tmp_path / "binary") as store, pytest.raises(CredentialsError):
        store.create()


def test_a_key_that_is_not_let_in(server: Sshd, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No error, log or repr shows anything of it."""
    caplog.set_level("DEBUG")
    stranger = make_key(tmp_path / "stranger")
    with connector_to(server, folder, identity=stranger) as store:
        for act in calls(store):
            with pytest.raises(CredentialsError, match="none of the keys") as caught:
                act()
            text = f"{caught.value} {caught.value.hint} {caught.value!r} {store!r} {caplog.text}"
            assert not any(line in text for line in stranger.read_text().splitlines())


def test_keys_that_cannot_be_used(server: Sshd, folder: Path, tmp_path: Path) -> None:
    """One with a passphrase, none at all, one that others can read, one that is absent."""
    locked, exposed = make_key(tmp_path / "locked", "-N", "passphrase"), make_key(tmp_path / "exposed")
    (tmp_path / "text").write_text("no key")
    (tmp_path / "text").chmod(0o600)
    exposed.chmod(0o644)
    for identity, error in (
        (locked, CredentialsError),
        (tmp_path / "text", CredentialsError),
        (exposed, KeyExposedError),
        (tmp_path / "absent", MissingError),
    ):
        with connector_to(server, folder, identity=identity) as store, pytest.raises(error):
            store.create()


def test_keys_of_the_agent_and_of_the_home_are_used(
    server: Sshd, folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ssh does."""
    (home / ".ssh").mkdir(mode=0o700)
    server.known_hosts(home / ".ssh" / "known_hosts")
    options = {"port": server.port, "user": getpass.getuser(), "timeout": 20}
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with SFTPConnector("127.0.0.1", str(folder), **options) as store, pytest.raises(CredentialsError):
        store.create()
    with (
        TemporaryDirectory() as short,  # the name of a socket has 107 bytes at most
        subprocess.Popen(["ssh-agent", "-D", "-a", f"{short}/agent"], stdout=subprocess.DEVNULL) as agent,
    ):
        socket = Path(short, "agent")
        try:
            while not socket.exists():
                assert agent.poll() is None
                time.sleep(0.01)
            monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
            subprocess.run(["ssh-add", "-q", server.identity], check=True, timeout=30)
            with SFTPConnector("127.0.0.1", str(folder), **options) as store:
                store.create()
        finally:
            agent.terminate()
    monkeypatch.delenv("SSH_AUTH_SOCK")
    (home / ".ssh" / "id_ed25519").write_bytes(server.identity.read_bytes())
    (home / ".ssh" / "id_ed25519").chmod(0o600)
    with SFTPConnector("127.0.0.1", str(folder), **options) as store:
        assert list(store.list()) == []


# --- the folder ------------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_store_is_not_an_empty_one(server: Sshd, folder: Path) -> None:
    """A disk that the server has not mounted must not look like a store without objects."""
    folder.mkdir(parents=True)
    for place in (folder, folder / "absent"):
        with connector_to(server, place, known_hosts=server.known_hosts(folder / "known_hosts")) as store:
            for act in calls(store):
                with pytest.raises(StoreAbsentError):
                    act()
    assert left_in(folder) == {"known_hosts"}


def test_a_store_is_made_once_and_is_private(store: SFTPConnector, folder: Path) -> None:
    store.put("a/b", [b"1"])
    store.create()
    assert [info.key for info in store.list()] == ["a/b"]
    assert {path.stat().st_mode & 0o777 for path in (folder.parent, folder, folder / "a")} == {0o700}
    assert (folder / "a/b").stat().st_mode & 0o777 == 0o600


def test_a_folder_in_the_home() -> None:
    """Relative to where the server puts us: asked, not tried, because that home is not ours to write to."""
    for given, root in (("smp", "smp"), ("~/a/b/", "a/b"), ("~", "."), (".", "."), ("/", ""), ("/srv/x/", "/srv/x")):
        assert SFTPConnector("127.0.0.1", given)._path("key") == f"{root}/key"
    with pytest.raises(UsageError):
        SFTPConnector("127.0.0.1", "")


def test_what_is_no_object_is_not_listed(store: SFTPConnector, folder: Path, tmp_path: Path) -> None:
    """Links, folders, what a put left behind, names that are no key."""
    (tmp_path / "secret").write_bytes(b"secret")
    store.put("ours/one", [b"x"])
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "way").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder)
    (folder / ".0123456789abcdef.smp-part").write_bytes(b"")
    (folder / "stray.").write_bytes(b"")
    (folder / os.fsdecode(b"latin-\xe9")).write_bytes(b"")
    (folder / "bad.").mkdir()
    (folder / "bad." / "file").write_bytes(b"")
    os.mkfifo(folder / "pipe")
    (folder / "empty").mkdir()
    assert [info.key for info in store.list()] == ["ours/one"]
    for key in ("link", "pipe", "ours"):
        for act in (store.stat, store.delete, store.native_digest, lambda key: list(store.get(key))):
            with pytest.raises(MissingError):
                act(key)
    store.put("link", [b"y"], if_absent=False)  # the link makes way; what it led to stays
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert [info.key for info in store.list("l")] == ["link"]


def test_prefixes_that_are_no_folder(store: SFTPConnector) -> None:
    for key in ("a/b/c", "a/bc", "ab", "a.b"):
        store.put(key, [b"x"])
    for prefix in ("", "a", "a/", "a/b", "a/b/", "a/b/c", "a/b/c/", "../", "/", "x/y"):
        expected = sorted(key for key in ("a/b/c", "a/bc", "ab", "a.b") if key.startswith(prefix))
        assert [info.key for info in store.list(prefix)] == expected


def test_a_key_and_a_folder_of_one_name(store: SFTPConnector, folder: Path) -> None:
    store.put("a/b", [b"x"])
    store.put("c", [b"x"])
    for key, if_absent in (("a", True), ("a", False), ("c/d", True), ("c/d/e", False)):
        with pytest.raises(ExistsError):
            store.put(key, [b"y"], if_absent=if_absent)
    assert left_in(folder) == {".smp-store", "a/b", "c"}


def test_a_server_that_lists_without_end(store: SFTPConnector, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        store.put(f"f/{number}", [b"x"])
    monkeypatch.setattr(sftp, "_MAX_NAMES", 6)
    with pytest.raises(UsageError):
        list(store.list())


@pytest.mark.parametrize(
    "missing", [{"fsync"}, {"link"}, {"fsync", "link", "statvfs"}], ids=lambda missing: "-".join(sorted(missing))
)
def test_a_server_without_the_extensions_of_openssh(
    store: SFTPConnector, folder: Path, monkeypatch: pytest.MonkeyPatch, missing: set[str]
) -> None:
    """What version 3 of the protocol has is enough to store; to replace safely it is not."""
    for name in missing:
        monkeypatch.setattr(asyncssh.sftp.SFTPClientHandler, name, unsupported)
    store.put("key", [b"first"])
    with pytest.raises(ExistsError):
        store.put("key", [b"second"])
    monkeypatch.setattr(asyncssh.sftp.SFTPClientHandler, "posix_rename", unsupported)
    with pytest.raises(UsageError):
        store.put("key", [b"second"], if_absent=False)
    assert b"".join(store.get("key")) == b"first"
    assert left_in(folder) == {".smp-store", "key"}


async def unsupported(*_args: object) -> None:
    raise asyncssh.SFTPOpUnsupported("no")


def test_a_full_disk_is_told_from_other_failures(store: SFTPConnector, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gives no reason, so it is asked how much room there is."""

    async def fail(*_args: object) -> None:
        raise asyncssh.SFTPFailure("Failure")

    async def full(*_args: object) -> SimpleNamespace:
        return SimpleNamespace(bavail=1, frsize=4096)

    monkeypatch.setattr(asyncssh.sftp.SFTPClientHandler, "write", fail)
    with pytest.raises(TransientError):
        store.put("key", [DATA])
    monkeypatch.setattr(asyncssh.sftp.SFTPClientHandler, "statvfs", full)
    with pytest.raises(NoSpaceError):
        store.put("key", [DATA])
    assert left_in(folder) == {".smp-store"}


def test_a_folder_that_may_not_be_written_to(store: SFTPConnector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so the answer is made up."""

    async def deny(*_args: object) -> None:
        raise asyncssh.SFTPPermissionDenied("Permission denied")

    monkeypatch.setattr(asyncssh.sftp.SFTPClientHandler, "open", deny)
    with pytest.raises(CredentialsError):
        store.put("key", [b"x"])


# --- threads, lines, servers -----------------------------------------------------------------------------------------------


def test_many_threads_share_one_connection(server: Sshd, folder: Path) -> None:
    with proxying(server.port) as proxy:
        known_hosts = server.known_hosts(folder.parents[1] / "proxied", port=proxy.port)
        with connector_to(server, folder, port=proxy.port, known_hosts=known_hosts) as store:
            store.create()

            def churn(number: int) -> bool:
                data = secrets.token_bytes(300_000 + number)
                for turn in range(5):
                    store.put(f"shared/{number}-{turn}", [data])
                same = all(b"".join(store.get(f"shared/{number}-{turn}")) == data for turn in range(5))
                for turn in range(5):
                    store.delete(f"shared/{number}-{turn}")
                return same

            with ThreadPoolExecutor(8) as pool:
                assert all(pool.map(churn, range(8)))
            assert list(store.list()) == []
            assert proxy.connections == 1


def test_every_operation_is_counted(server: Sshd, folder: Path) -> None:
    counted: list[int] = []
    with connector_to(server, folder, before_request=lambda: counted.append(1)) as store:
        store.create()
        for act in calls(store)[:5]:
            with pytest.raises(MissingError) if len(counted) == 1 else nullcontext():
                act()
        assert len(counted) == 6


def test_a_closed_connector_says_so_and_leaves_no_thread(store: SFTPConnector) -> None:
    store.put("key", [DATA])
    blocks = store.get("key")
    next(blocks)
    store.close()
    store.close()
    for act in (lambda: list(blocks), *calls(store)):
        with pytest.raises((UsageError, TransientError)):
            act()
    assert not [thread for thread in threading.enumerate() if thread.name == "sftp"]


def test_a_download_that_is_given_up_leaves_nothing_open(store: SFTPConnector) -> None:
    store.put("key", [DATA])
    for _ in range(3):
        blocks = store.get("key")
        next(blocks)
        blocks.close()
    assert b"".join(store.get("key")) == DATA


@pytest.fixture
def proxy(server: Sshd) -> Iterator[FaultProxy]:
    with proxying(server.port) as running:
        yield running


@pytest.fixture
def far(store: SFTPConnector, server: Sshd, folder: Path, proxy: FaultProxy) -> Iterator[SFTPConnector]:
    """The same store, through the proxy."""
    known_hosts = server.known_hosts(folder.parents[1] / "proxied", port=proxy.port)
    with connector_to(server, folder, port=proxy.port, known_hosts=known_hosts, timeout=5) as connector:
        yield connector


@pytest.mark.parametrize("if_absent", [True, False])
def test_a_line_that_breaks_in_the_middle_of_a_put(
    store: SFTPConnector, far: SFTPConnector, proxy: FaultProxy, folder: Path, if_absent: bool
) -> None:
    """There is nothing under the key, or the old object, and the next call connects anew."""
    if not if_absent:
        store.put("key", [b"old"])
    proxy.direction, proxy.resets, proxy.after = "up", 1, 6_000_000
    with pytest.raises(TransientError) as caught:
        far.put("key", [DATA], if_absent=if_absent)
    assert caught.value.retryable
    assert [info.key for info in store.list()] == ([] if if_absent else ["key"])
    far.put("key", [DATA], if_absent=if_absent)
    assert b"".join(store.get("key")) == DATA
    assert {name for name in left_in(folder) if not name.endswith(".smp-part")} == {".smp-store", "key"}
    assert [info.key for info in far.list()] == ["key"]


def test_a_download_that_breaks_goes_on_with_patience(store: SFTPConnector, far: SFTPConnector, proxy: FaultProxy) -> None:
    store.put("key", [DATA])
    proxy.resets, proxy.after = 2, 4_000_000
    assert b"".join(Retrying(far, Patience(first=0.01, longest=0.05)).get("key")) == DATA
    assert proxy.resets == 0


def test_a_bit_flipped_on_the_way_ends_the_connection(store: SFTPConnector, far: SFTPConnector, proxy: FaultProxy) -> None:
    """SSH authenticates every packet."""
    store.put("key", [DATA])
    proxy.flip_at = 5_000_000
    with pytest.raises(TransientError):
        b"".join(far.get("key"))
    assert b"".join(far.get("key")) == DATA


def test_servers_that_are_silent_or_away(server: Sshd, far: SFTPConnector, proxy: FaultProxy, folder: Path) -> None:
    proxy.refuse = True
    with pytest.raises(TransientError):
        far.stat("key")
    proxy.refuse, proxy.hang = False, True
    known_hosts = server.known_hosts(folder.parents[1] / "silent", port=proxy.port)
    with connector_to(server, folder, port=proxy.port, known_hosts=known_hosts, timeout=1) as silent:
        for act in calls(silent)[:2]:
            with pytest.raises(TransientError):
                act()
    proxy.hang = False
    with pytest.raises(MissingError):
        far.stat("key")


def test_a_server_that_falls_silent_in_the_middle(store: SFTPConnector, server: Sshd, proxy: FaultProxy, folder: Path) -> None:
    store.put("key", [DATA])
    silence = threading.Event()
    known_hosts = server.known_hosts(folder.parents[1] / "silent", port=proxy.port)
    with connector_to(server, folder, port=proxy.port, known_hosts=known_hosts, timeout=1) as far:
        proxy.trap, proxy.trap_after = silence.wait, 2_000_000
        with pytest.raises(TransientError, match="TimeoutError"):
            b"".join(far.get("key"))
        silence.set()
        assert b"".join(far.get("key")) == DATA


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "own").mkdir()
    with sshd.running(tmp_path / "own") as server, connector_to(server, folder) as store:
        store.create()
        store.put("key", [DATA])
        blocks = store.get("key")
        next(blocks)
        server.kill()
        with pytest.raises(TransientError):
            list(blocks)
        for act in calls(store):
            with pytest.raises(TransientError) as caught:
                act()
            assert caught.value.retryable
        server.start()
        assert b"".join(store.get("key")) == DATA
        server.kill()
        server.start()
        patient = Retrying(store, Patience(first=0.01, longest=0.05))
        assert [info.key for info in patient.list()] == ["key"]


# --- the program -----------------------------------------------------------------------------------------------------------


def test_from_a_folder_to_the_server_and_back(server: Sshd, work: Path, folder: Path, smp_process: Callable[..., Ran]) -> None:
    known_hosts = server.known_hosts(work / "known_hosts")
    (work / "study").mkdir()
    originals = {f"study/{number}": secrets.token_bytes(100_000 * number) for number in range(4)}
    for name, data in originals.items():
        (work / name).write_bytes(data)
    options = [f"folder={folder}", f"port={server.port}", f"identity={server.identity}", f"known-hosts={known_hosts}"]
    steps = [
        ("key", "generate"),
        ("cloud", "add", "nas", "sftp", "host=127.0.0.1", f"user={getpass.getuser()}", *options),
        ("cloud", "status"),
        ("upload", "study/"),
        ("cloud", "verify"),
        ("download", "study", "-o", "copy"),
    ]
    for step in steps:
        done = smp_process(*step)
        assert done.code == 0, done.err
    assert {name: (work / "copy" / Path(name).name).read_bytes() for name in originals} == originals
    assert not any(
        data[:64] in path.read_bytes() for path in folder.rglob("*") if path.is_file() for data in [originals["study/3"]]
    )
    bad = smp_process("cloud", "add", "other", "sftp", "host=127.0.0.1", "folder=x", f"port={server.port}")
    assert bad.code == CredentialsError.exit_code
    assert "known_hosts" in bad.err
    for wrong in ("port=ssh", "port=0", "port=70000", "password=secret"):
        assert smp_process("cloud", "add", "other", "sftp", "host=127.0.0.1", "folder=x", wrong).code == UsageError.exit_code


def test_errors_hold_nothing_that_the_server_wrote(store: SFTPConnector, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_args: object) -> None:
        raise asyncssh.SFTPFailure("\x1b[31m name of a patient")

    monkeypatch.setattr(asyncssh.sftp.SFTPClientHandler, "lstat", fail)
    with pytest.raises(SmpError) as caught:
        store.stat("key")
    assert "patient" not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}"
