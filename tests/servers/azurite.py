"""A blob service of Azure on loopback: Azurite, from the npm package azurite. It checks signatures, conditions and blocks."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from secure_media_processor.cli.local_s3 import find_program, free_port

ACCOUNT = "smptest"


@dataclass(frozen=True)
class Azurite:
    """A running server."""

    port: int
    key: str = field(repr=False)

    @property
    def url(self) -> str:
        return self.at(self.port)

    @staticmethod
    def at(port: int) -> str:
        """Return the address of the account behind `port`."""
        return f"http://127.0.0.1:{port}/{ACCOUNT}"


def program() -> str | None:
    """Return the path of azurite-blob, None if it is not installed. CI puts it into the virtual environment (.ci/run)."""
    own = Path(sys.prefix) / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    return str(own) if own.exists() else find_program("azurite-blob")


@contextmanager
def running(folder: Path) -> Iterator[Azurite]:
    """Serve an account with a key of its own, which keeps its blobs in memory."""
    server = Azurite(free_port(), base64.b64encode(secrets.token_bytes(32)).decode())
    command = [str(program()), "--blobHost", "127.0.0.1", "--blobPort", str(server.port), "--silent", "--inMemoryPersistence"]
    command += ["--skipApiVersionCheck", "--disableTelemetry"]
    # The interpreter of Node stands beside the others on PATH; nothing else of the environment is its business.
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "AZURITE_ACCOUNTS": f"{ACCOUNT}:{server.key}"}
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_until_ready(server.url, process)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - our own loopback address
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("Azurite did not start to serve")
