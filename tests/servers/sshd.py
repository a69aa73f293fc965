"""A real SSH server on loopback: OpenSSH's sshd with its own SFTP server, for one key of the tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from servers.seaweedfs import free_port


def program() -> str | None:
    """Return the path of sshd, None if it is not installed. It often lies where only root's PATH leads."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass
class Sshd:
    """A server that can be killed and started again, with the same port and host key."""

    folder: Path
    """For the host key, the user's key, and the log."""
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def identity(self) -> Path:
        """File of the private key that is let in."""
        return self.folder / "identity"

    def known_hosts(self, path: Path, *, port: int | None = None, key: Path | None = None) -> Path:
        """Write to `path` that the server at `port` has the host key `key`; both are ours unless given."""
        public = (key or self.folder / "host").with_suffix(".pub").read_text().split()
        path.write_text(f"[127.0.0.1]:{port or self.port} {public[0]} {public[1]}\n")
        return path

    def start(self) -> None:
        """Start, and wait until it answers."""
        if os.geteuid() == 0:  # then sshd wants the folder into which it locks what speaks to strangers
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        options = {
            "ListenAddress": "127.0.0.1",
            "HostKey": self.folder / "host",
            "AuthorizedKeysFile": self.folder / "identity.pub",
            "AuthenticationMethods": "publickey",
            "PermitRootLogin": "prohibit-password",
            "StrictModes": "no",
            "UsePAM": "no",
            "PidFile": "none",
            "MaxStartups": "100",
            "Subsystem": "sftp internal-sftp",
        }
        command = [str(program()), "-D", "-e", "-f", os.devnull, "-p", str(self.port)]
        command += [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=2).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"sshd did not start to serve: {(self.folder / 'log').read_text()}")

    def kill(self) -> None:
        """End the server and the processes of its connections, which would go on without it."""
        if self.process is not None:
            for pid in [*_below(self.process.pid), self.process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(timeout=10)
            self.process = None


def make_key(path: Path, *options: str) -> Path:
    """Make a key pair without a passphrase, unless `options` have one."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path, *options], check=True, timeout=30)
    return path


@contextmanager
def running(folder: Path) -> Iterator[Sshd]:
    """Run a server with new keys in `folder`."""
    make_key(folder / "host")
    make_key(folder / "identity")
    server = Sshd(folder, free_port())
    server.start()
    try:
        yield server
    finally:
        server.kill()


def _below(pid: int) -> list[int]:
    """Return the processes that `pid` started, those that they started, and so on."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]
