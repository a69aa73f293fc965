"""Builds and runs s3_memory_server.rs, the S3 server of the benchmarks. It needs a Rust compiler and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).with_suffix(".rs")
STOP_TIMEOUT = 10  # seconds


def compiler_version() -> str:
    """Return what rustc says of itself; the program ends with a message if there is none."""
    return subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def serving() -> Iterator[str]:
    """Run the server and yield its address, such as http://127.0.0.1:40000. Its objects are gone afterwards."""
    with subprocess.Popen([Path(_built().name) / SOURCE.stem], stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().strip() if process.stdout else ""
            if not address:
                raise RuntimeError("the S3 server of the benchmarks did not start")
            yield address
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()


def _compiler() -> str:
    compiler = shutil.which("rustc")
    if not compiler:
        sys.exit("rustc is not installed, which builds the S3 server: apt-get install rustc, or see rustup.rs")
    return compiler


@cache
def _built() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with the program; it is removed when Python ends."""
    folder = tempfile.TemporaryDirectory(prefix="smp-bench-server-")
    command = [_compiler(), "-O", "--edition", "2021", "-o", str(Path(folder.name) / SOURCE.stem), str(SOURCE)]
    subprocess.run(command, check=True)
    return folder
