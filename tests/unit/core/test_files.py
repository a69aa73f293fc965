"""Atomic writing: what is there after every kind of failure. Both ways of making a temporary file are tested."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import left_in
from secure_media_processor.core import files
from secure_media_processor.core.files import atomic_write, open_source, refuse_same_file, smp_error_from, write_file
from secure_media_processor.errors import (
    ExistsError,
    FileAccessError,
    MissingError,
    NoSpaceError,
    SameFileError,
    SmpError,
)


@pytest.fixture(params=["nameless", "named", "named, no links"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs as on a good file system, as on one without O_TMPFILE, and as on one without hard links too."""
    if request.param != "nameless":
        real_open = os.open

        def refuse_tmpfile(path: str, flags: int, *args: int, **kwargs: int) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE")
            return real_open(path, flags, *args, **kwargs)

        monkeypatch.setattr(files.os, "open", refuse_tmpfile)
    if request.param == "named, no links":

        def refuse_link(*args: object, **kwargs: object) -> None:
            raise OSError(errno.EPERM, "no links")

        monkeypatch.setattr(files.os, "link", refuse_link)
    return str(request.param)


def test_a_new_file_is_private_and_complete(work: Path, way: str) -> None:
    with atomic_write(work / "new") as file:
        file.write(b"data")
        assert not (work / "new").exists()
    assert (work / "new").read_bytes() == b"data"
    assert (work / "new").stat().st_mode & 0o777 == 0o600
    assert left_in(work) == {"new"}


def test_an_existing_file_is_kept_or_replaced_as_asked(work: Path, way: str) -> None:
    (work / "old").write_bytes(b"old")
    with pytest.raises(ExistsError):
        write_file(work / "old", b"new")
    assert (work / "old").read_bytes() == b"old"
    with atomic_write(work / "old", overwrite=True) as file:
        file.write(b"new")
        assert (work / "old").read_bytes() == b"old"
    assert (work / "old").read_bytes() == b"new"
    assert left_in(work) == {"old"}


def test_a_file_that_appears_meanwhile_is_kept(work: Path, way: str) -> None:
    with pytest.raises(ExistsError), atomic_write(work / "late") as file:
        file.write(b"mine")
        (work / "late").write_bytes(b"theirs")
    assert (work / "late").read_bytes() == b"theirs"
    assert left_in(work) == {"late"}


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), FileAccessError("x")])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_error_leaves_nothing(work: Path, way: str, error: BaseException, overwrite: bool) -> None:
    if overwrite:
        (work / "file").write_bytes(b"old")
    with pytest.raises(type(error)), atomic_write(work / "file", overwrite=overwrite) as file:
        file.write(b"part")
        raise error
    assert left_in(work) == ({"file"} if overwrite else set())
    assert not overwrite or (work / "file").read_bytes() == b"old"


def test_links_are_not_followed(work: Path, way: str) -> None:
    (work / "precious").write_bytes(b"precious")
    (work / "link").symlink_to("precious")
    (work / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        with pytest.raises(ExistsError):
            write_file(work / name, b"x")
    write_file(work / "link", b"x", overwrite=True)
    assert (work / "precious").read_bytes() == b"precious"
    assert not (work / "link").is_symlink()


def test_places_that_cannot_be_written(work: Path, way: str) -> None:
    (work / "folder").mkdir()
    (work / "file").write_bytes(b"")
    with pytest.raises(FileAccessError):
        write_file(work / "folder", b"", overwrite=True)
    with pytest.raises(MissingError):
        write_file(work / "absent" / "file", b"")
    with pytest.raises(MissingError):
        write_file(work / "file" / "file", b"")
    with pytest.raises(FileAccessError):
        write_file(work / ("x" * 300), b"")
    assert left_in(work) == {"file"}


def test_sources(work: Path) -> None:
    (work / "file").write_bytes(b"data")
    with open_source(work / "file") as file:
        assert file.read() == b"data"
    for path, kind in ((work, FileAccessError), (work / "absent", MissingError), (Path("/dev/zero"), FileAccessError)):
        with pytest.raises(kind):
            open_source(path)


@pytest.mark.parametrize("name", ["same", "./same", "sub/../same", "soft", "hard"])
def test_the_same_file_by_any_name(work: Path, name: str) -> None:
    (work / "same").write_bytes(b"")
    (work / "sub").mkdir()
    (work / "soft").symlink_to("same")
    (work / "hard").hardlink_to("same")
    with pytest.raises(SameFileError):
        refuse_same_file(Path("same"), Path(name))
    refuse_same_file(Path("same"), Path("other"))
    refuse_same_file(Path("same"), work / "sub" / "same")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, MissingError), (errno.EEXIST, ExistsError), (errno.EACCES, FileAccessError),
        (errno.EROFS, FileAccessError),
        (errno.ENOSPC, NoSpaceError), (errno.EDQUOT, NoSpaceError), (errno.EIO, FileAccessError), (None, FileAccessError),
    ],
)  # fmt: skip
def test_errors_of_the_system_have_their_place(code: int | None, kind: type[SmpError]) -> None:
    error = smp_error_from(OSError(code, "x") if code else OSError("x"), "read a")
    assert type(error) is kind
    assert str(error).startswith("cannot read a: ")


WRITER = """
import sys, time
from pathlib import Path
from secure_media_processor.core.files import atomic_write
with atomic_write(Path(sys.argv[1]), overwrite=True) as file:
    for i in range(1000):
        file.write(bytes(1 << 16))
        print(i, flush=True)
        time.sleep(0.001)
"""


@pytest.mark.parametrize("number", range(10))
def test_a_killed_writer_leaves_nothing(work: Path, number: int) -> None:
    """kill -9 in the middle: the old file stays, and no temporary file remains, since it never had a name."""
    (work / "target").write_bytes(b"old")
    with subprocess.Popen([sys.executable, "-c", WRITER, str(work / "target")], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        time.sleep(number * 0.007)
        process.send_signal(signal.SIGKILL)
    assert left_in(work) == {"target"}
    assert (work / "target").read_bytes() == b"old"
