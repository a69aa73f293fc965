"""Which files this process writes, as Python itself reports them when they are opened, linked or moved."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_seen: list[Path] | None = None
_installed = False


def _see(event: str, args: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event == "open" and not isinstance(args[0], int) and args[2] & _WRITES:
        _seen.append(_absolute(args[0], -1))
    elif event in {"os.symlink", "os.link", "os.rename"}:
        _seen.append(_absolute(args[1], args[-1]))


def _absolute(path: str | bytes, folder: int) -> Path:
    """Return the path of what is about to be made, relative to the open folder if there is one (not -1)."""
    name = os.fsdecode(path)
    if name.startswith("/proc/self/fd/"):  # a file without a name shows the folder in which it is
        return Path(name).readlink()
    return (Path(f"/proc/self/fd/{folder}").readlink() if folder != -1 else Path.cwd()) / name


@contextmanager
def written_paths() -> Iterator[list[Path]]:
    """Yield a list to which each path is added that is written in the block."""
    global _seen, _installed  # noqa: PLW0603 - a hook of audit events cannot be taken away again
    if not _installed:
        sys.addaudithook(_see)
        _installed = True
    found: list[Path] = []
    _seen = found
    try:
        yield found
    finally:
        _seen = None
        found[:] = [path for path in found if path != Path(os.devnull) and "__pycache__" not in path.parts]
