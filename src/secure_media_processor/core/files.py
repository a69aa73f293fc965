"""Reading and writing files so that nothing half-written is ever seen.

A new file is written without a name (``O_TMPFILE``), synced, and only then linked into its folder: a kill at any moment, even
``kill -9`` or a power cut, leaves the target absent or as it was, and no temporary file. (When an existing file is replaced
there is an instant, between two system calls, in which the complete new file has a hidden name.) Where a file system cannot
do that, as NFS and FAT, a hidden file in the same folder takes its place; it is removed on every error and signal but ``kill
-9``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Protocol

from secure_media_processor.errors import (
    ExistsError,
    FileAccessError,
    MissingError,
    NoSpaceError,
    SameFileError,
    SmpError,
    TransientError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
# Reads and writes of this size are fastest: the buffers stay in the second-level cache.
COPY_BLOCK = 256 * 1024

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What open(O_TMPFILE) says where it is not supported; EISDIR comes from kernels older than 3.11.
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}
_NO_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class Source(Protocol):
    """What can be read from: a file, a pipe, a buffer in memory."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill `buffer` from its start and return the number of bytes, 0 at the end."""


class Sink(Protocol):
    """What can be written to. It takes everything it is given, or raises."""

    def write(self, data: memoryview | bytes, /) -> object:
        """Write all of `data`."""


def smp_error_from(error: OSError, what: str) -> SmpError:
    """Return the error of our tree for `error`, which happened while trying to `what` (such as "read scan.dcm")."""
    reason = os.strerror(error.errno) if error.errno else "input/output error"
    message = f"cannot {what}: {reason[:1].lower()}{reason[1:]}"
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return MissingError(message, hint="check the path")
        case errno.EEXIST:
            return ExistsError(message)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return FileAccessError(message, hint="check the permissions of the file and of its folder")
        case errno.EISDIR:
            return FileAccessError(message, hint="name a file, not a folder")
        case code if code in _FULL:
            return NoSpaceError(message)
        case _:
            return FileAccessError(message)


@contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Turn an OSError of the block into an error of our tree that says `what` could not be done.

    BrokenPipeError comes through: that the reader of our output went away is no error to report.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise smp_error_from(error, what) from error


def open_source(path: Path) -> FileIO:
    """Open `path` for reading, unbuffered. A regular file or a pipe; a folder or a device is refused.

    Raises:
        MissingError: there is no such file.
        FileAccessError: it may not be read, or is neither a file nor a pipe.
    """
    with os_errors(f"read {path}"):
        handle = path.open("rb", buffering=0)
        mode = os.fstat(handle.fileno()).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        handle.close()
        raise FileAccessError(f"cannot read {path}: it is a device", hint="name a file")
    return handle


def read_full(source: Source, buffer: memoryview) -> int:
    """Fill `buffer` from `source` and return the number of bytes: fewer than its length only at the end."""
    filled = 0
    while filled < len(buffer):
        count = source.readinto(buffer[filled:])
        if count is None:  # a non-blocking source with nothing to give is not at its end
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if count == 0:
            break
        filled += count
    return filled


def refuse_same_file(source: Path, target: Path) -> None:
    """Raise SameFileError if `target` is `source`: by another spelling, a symbolic link or a hard link."""
    with os_errors(f"write {target}"):
        try:
            same = source.resolve() == target.resolve() or source.samefile(target)
        except (FileNotFoundError, NotADirectoryError):
            same = False
        except RuntimeError:  # what Python 3.11 says of a loop of links
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
    if same:
        raise SameFileError(f"input and output are the same file: {target}")


def make_private_folder(path: Path) -> None:
    """Create the folder `path`, and those above it that are missing, readable by their owner only."""
    with os_errors(f"make the folder {path}"):
        if path.is_dir():
            return
        missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
        for folder in reversed(missing):
            try:
                folder.mkdir(mode=PRIVATE_FOLDER)
            except FileExistsError:
                if not folder.is_dir():  # else another process was quicker
                    raise FileAccessError(f"cannot make the folder {folder}: a file stands in its place") from None


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Within the block no other process is in such a block for the same folder. Raises MissingError or FileAccessError."""
    with os_errors(f"lock {folder}"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(target: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write to that becomes `target`, mode 0600, when the block ends without an error.

    The new file is synced to disk before it gets its name, and so is the folder after. If the block raises, or the process
    dies, `target` stays as it was.

    Raises:
        ExistsError: `target` exists and `overwrite` is false (also if it comes to exist meanwhile).
        NoSpaceError, FileAccessError, MissingError: as the system says.
    """
    with open_folder(target) as folder, os_errors(f"write {target}"):
        _refuse_unwritable(folder, target, overwrite=overwrite)
        yield from _write_into(folder, target.name, overwrite=overwrite)


def move_into_place(source: Path, target: Path, *, overwrite: bool = False) -> None:
    """Give `source`, a finished file on the same file system, the name `target`, mode 0600. Raises as atomic_write.

    For files that another program has written, and that are too large to be copied.
    """
    with open_folder(target) as folder, os_errors(f"write {target}"):
        _refuse_unwritable(folder, target, overwrite=overwrite)
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, PRIVATE_FILE)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if overwrite:
            os.replace(source, target.name, dst_dir_fd=folder)
        else:
            try:
                os.link(source, target.name, dst_dir_fd=folder)  # fails if `target` exists; rename would replace it
                source.unlink()
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                _refuse_existing(target.name, folder)
                os.rename(source, target.name, dst_dir_fd=folder)
        _sync_folder(folder)


@contextmanager
def resumable_write(target: Path, token: str, *, overwrite: bool = False, root: Path | None = None) -> Iterator[BinaryIO]:
    """As atomic_write, for work that is worth taking up again after it was cut off.

    Yields a file that stands at the end of what an earlier call with the same `token` has written; it is hidden beside `target`
    meanwhile, mode 0600. It stays after a retryable error, an interrupt or a kill, and is removed after any other error.

    Args:
        target: As in atomic_write.
        token: 16 hexadecimal digits that stand for the very data that is being written.
        overwrite: As in atomic_write.
        root: If given, no symbolic link below this folder is followed on the way to `target`.

    Raises:
        TransientError: another process is at it.
        ExistsError, NoSpaceError, FileAccessError, MissingError: as atomic_write.
    """
    temporary = f".{token}.smp-part"
    with open_folder(target, root) as folder, os_errors(f"write {target}"):
        _refuse_unwritable(folder, target, overwrite=overwrite)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with open(os.open(temporary, flags, PRIVATE_FILE, dir_fd=folder), "r+b") as file:  # noqa: PTH123 - as above
            _refuse_foreign(file, folder, temporary, target)
            file.seek(0, os.SEEK_END)
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                _rename(temporary, target.name, folder, overwrite=overwrite)
                _sync_folder(folder)
            except BaseException as error:
                worth_keeping = file.tell() > 0 and not (isinstance(error, SmpError | OSError) and not _retryable(error))
                if not worth_keeping:
                    with suppress(FileNotFoundError):
                        os.unlink(temporary, dir_fd=folder)
                raise
            with suppress(FileNotFoundError):  # if it was linked, not renamed
                os.unlink(temporary, dir_fd=folder)


@contextmanager
def atomic_write_below(root: Path, target: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """As atomic_write, and no symbolic link is followed on the way from `root` to `target`, which lies below it."""
    with open_folder(target, root) as folder, os_errors(f"write {target}"):
        _refuse_unwritable(folder, target, overwrite=overwrite)
        yield from _write_into(folder, target.name, overwrite=overwrite)


@contextmanager
def open_folder(target: Path, root: Path | None = None) -> Iterator[int]:
    """Yield a descriptor of the folder that `target` is to lie in.

    With `root`, an existing folder above it, folders in between are made where they are missing, mode 0700, and one that is a
    symbolic link is refused.
    """
    with os_errors(f"write {target}"):
        start = target.parent if root is None else root
        folder = os.open(start, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for step in target.parent.relative_to(start).parts:
            outer, folder = folder, _step_into(folder, step, target)
            os.close(outer)
        yield folder
    finally:
        os.close(folder)


def _step_into(folder: int, step: str, target: Path) -> int:
    """Open the folder `step` in `folder`; make it if it is missing."""
    try:
        with os_errors(f"write {target}"):
            with suppress(FileExistsError):
                os.mkdir(step, PRIVATE_FOLDER, dir_fd=folder)
            return os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except (FileAccessError, MissingError) as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ELOOP, errno.ENOTDIR):
            message = f"cannot write {target}: {step} in its path is a symbolic link or a file"
            raise FileAccessError(message, hint="name another folder") from None
        raise


def _retryable(error: BaseException) -> bool:
    return isinstance(error, SmpError) and error.retryable


def _refuse_foreign(file: BinaryIO, folder: int, temporary: str, target: Path) -> None:
    """Refuse what lies in the place of our own unfinished file and is not that; hold it against other processes."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077 or status.st_nlink != 1:
        raise FileAccessError(f"cannot write {target}: a file that is not ours stands where its unfinished copy belongs")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Else whoever held it has just finished, and this is now the target.
        ours = os.path.samestat(os.stat(temporary, dir_fd=folder, follow_symlinks=False), status)
    except (BlockingIOError, FileNotFoundError):
        ours = False
    if not ours:
        raise TransientError(f"another process is writing {target}", hint="wait until it has ended")


def write_file(target: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write `data` as the file `target`, mode 0600, all or nothing. Raises as atomic_write."""
    with atomic_write(target, overwrite=overwrite) as file:
        file.write(data)


def _refuse_unwritable(folder: int, target: Path, *, overwrite: bool) -> None:
    """Refuse a folder, a device or a pipe, and what exists unless it may be replaced."""
    try:
        mode = os.stat(target.name or ".", dir_fd=folder, follow_symlinks=False).st_mode
        if not target.name or (stat.S_ISLNK(mode) and target.is_dir()):
            mode = stat.S_IFDIR
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise FileAccessError(f"cannot write {target}: it is a folder", hint="name a file with -o")
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise FileAccessError(f"cannot replace {target}: it is a device or a pipe", hint=f"use -o - > {target}")
    if not overwrite:
        raise ExistsError(f"{target} exists already")


def _write_into(folder: int, name: str, *, overwrite: bool) -> Iterator[BinaryIO]:
    # The name is chosen before it is used, so that whatever interrupts us finds it here and can remove the file.
    temporary = f".{secrets.token_hex(8)}.smp-part"
    try:
        descriptor, named = _create(folder, temporary)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor has no path
            yield file
            file.flush()
            os.fsync(descriptor)
            if not named:
                named = _give_name(descriptor, folder, name, temporary, overwrite=overwrite)
        if named:
            _rename(temporary, name, folder, overwrite=overwrite)
        _sync_folder(folder)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)


def _sync_folder(folder: int) -> None:
    """Sync the folder, so that the new name outlives a power cut. Some network file systems refuse, and sync by themselves."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise


def _create(folder: int, temporary: str) -> tuple[int, bool]:
    """Return a descriptor of a new file in `folder`, and whether it had to be given the name `temporary`."""
    try:
        # The descriptor's own path names its folder even if that is moved or replaced meanwhile.
        return os.open(f"/proc/self/fd/{folder}", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, PRIVATE_FILE), False
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(temporary, flags, PRIVATE_FILE, dir_fd=folder), True


def _give_name(descriptor: int, folder: int, name: str, temporary: str, *, overwrite: bool) -> bool:
    """Link the nameless file as `name`. If that exists and may be replaced, link it as `temporary` and return True."""
    path = f"/proc/self/fd/{descriptor}"
    try:
        # dir_fd makes Python call linkat with AT_SYMLINK_FOLLOW, which plain link() would not do.
        os.link(path, name, dst_dir_fd=folder, follow_symlinks=True)
    except FileExistsError:
        if not overwrite:
            raise
        os.link(path, temporary, dst_dir_fd=folder, follow_symlinks=True)
        return True
    return False


def _rename(temporary: str, name: str, folder: int, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        return
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)  # fails if `name` exists; rename would replace it
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _refuse_existing(name, folder)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)


def _refuse_existing(name: str, folder: int) -> None:
    """Raise FileExistsError if `name` is in `folder`: the nearest to a safe rename where there are no hard links."""
    with suppress(FileNotFoundError):
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
