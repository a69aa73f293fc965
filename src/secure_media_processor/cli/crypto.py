"""smp encrypt, decrypt, verify."""

from __future__ import annotations

import stat
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.chosen_keys import decryption_keys, encryption_key
from secure_media_processor.cli.options import FILE_OR_PIPE, PIPE, force_option, key_option, output_options, standard_input
from secure_media_processor.cli.schemas import Decrypted, Encrypted, OriginalFile, Verified
from secure_media_processor.cli.ui import Ui, current, human_size
from secure_media_processor.core.encryption import (
    SUFFIX,
    Container,
    decrypt_file,
    decrypt_stream,
    encrypt_file,
    encrypt_stream,
    read_file_id,
    verify_file,
)
from secure_media_processor.core.files import atomic_write, open_source, os_errors
from secure_media_processor.errors import SmpError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from secure_media_processor.core.files import Sink, Source

_source = click.argument("source", metavar="IN", type=FILE_OR_PIPE)
_target = click.argument("target", metavar="[OUT]", type=FILE_OR_PIPE, required=False)
_output = click.option("-o", "--output", type=FILE_OR_PIPE, help="Where to write; - is standard output.")


# A shell turns `*.dcm` into two names or more: the second must not be taken for a place to write to.
_ONE_FILE = "one file at a time; to write to such a name all the same, give it with -o"


@click.command()
@_source
@_target
@_output
@key_option
@force_option
@output_options
def encrypt(source: Path, target: Path | None, output: Path | None, key_file: Path | None, *, force: bool) -> None:
    """Encrypt a file.

    IN is a file, or - for standard input. OUT is IN with .smp appended unless given; given without -o it must end in .smp. The
    key is --key, or the primary key of the keystore. The original stays as it is.

    \b
    Examples:
      smp encrypt scan.nii.gz
      tar c study/ | smp encrypt - -o study.tar.smp
    """
    ui = current()
    if target not in (None, PIPE) and target.suffix != SUFFIX:
        raise UsageError(f"{target} does not end in {SUFFIX}", hint=_ONE_FILE)
    destination = _destination(source, target, output, Path(f"{source}{SUFFIX}"))
    with recorded("encrypt") as operation:
        _warn_of_encrypting_twice(ui, source)
        key = encryption_key(key_file)
        with ui.progress("encrypting", _size(source)) as progress:
            if PIPE in (source, destination):
                with _streams(source, destination, force=force) as (data, sink):
                    container = encrypt_stream(data, sink, [key], progress=progress)
            else:
                container = encrypt_file(source, destination, [key], overwrite=force, progress=progress)
        operation.object = bytes.fromhex(container.file_id)
    ui.detail(f"encrypted for key {key.id}")
    _report(ui, Encrypted, source, destination, container)


@click.command()
@_source
@_target
@_output
@key_option
@force_option
@output_options
def decrypt(source: Path, target: Path | None, output: Path | None, key_file: Path | None, *, force: bool) -> None:
    """Decrypt a file.

    IN is a file, or - for standard input. OUT is IN without .smp unless given; given without -o it must not end in .smp. OUT
    appears only when every byte of it has been verified. With -o - verified bytes are written as they come: throw
    them away if the exit code is not 0.

    \b
    Examples:
      smp decrypt scan.nii.gz.smp
      smp decrypt study.tar.smp -o - | tar x
    """
    ui = current()
    if target is not None and target.suffix == SUFFIX:
        raise UsageError(f"{target} ends in {SUFFIX}, which a decrypted file should not", hint=_ONE_FILE)
    destination = _destination(source, target, output, _without_suffix(source))
    with recorded("decrypt") as operation:
        operation.object = read_file_id(source) if _is_regular(source) else None
        keys = decryption_keys(key_file)
        with ui.progress("decrypting", _size(source)) as progress:
            if PIPE in (source, destination):
                with _streams(source, destination, force=force) as (data, sink):
                    container = decrypt_stream(data, sink, keys, progress=progress)
            else:
                container = decrypt_file(source, destination, keys, overwrite=force, progress=progress)
        operation.object = bytes.fromhex(container.file_id)
    _report(ui, Decrypted, source, destination, container)


@click.command()
@_source
@key_option
@output_options
def verify(source: Path, key_file: Path | None) -> None:
    """Check an encrypted file to its last byte and write nothing.

    IN is a file, or - for standard input. Everything that decrypt checks is checked: header, every chunk, size and SHA-256.

    \b
    Example:
      smp verify scan.nii.gz.smp
    """
    ui = current()
    with recorded("verify") as operation:
        operation.object = read_file_id(source) if _is_regular(source) else None
        keys = decryption_keys(key_file)
        with ui.progress("verifying", _size(source)) as progress:
            if source == PIPE:
                container = decrypt_stream(standard_input(), None, keys, progress=progress)
            else:
                container = verify_file(source, keys, progress=progress)
        operation.object = bytes.fromhex(container.file_id)
    size = human_size(container.original.size)
    text = f"{_called(source)}: intact, {size}, SHA-256 of the original {container.original.sha256}"
    ui.result(Verified(str(source), container.file_id, _original(container)), text)


class _Everything:
    """Writes all it is given. Standard output takes less at a time when Python runs unbuffered."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: memoryview | bytes, /) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]


def _warn_of_encrypting_twice(ui: Ui, source: Path) -> None:
    if _is_regular(source):
        with suppress(SmpError):  # usually it is not encrypted, which is no error here
            read_file_id(source)
            ui.warn(f"{source} is encrypted already")


def _destination(source: Path, target: Path | None, output: Path | None, default: Path | None) -> Path:
    if target is not None and output is not None:
        raise UsageError("the output is given twice", hint="give OUT or -o, not both")
    chosen = output or target
    if chosen is None:
        chosen = PIPE if source == PIPE else default
        if chosen == PIPE and sys.stdout.isatty():
            raise UsageError("the output would go to the terminal", hint="name a file with -o, or use -o - if you mean it")
    if chosen is None:
        raise UsageError(f"{source} does not end in {SUFFIX}, so the output needs a name", hint="name it with -o")
    return chosen


def _without_suffix(source: Path) -> Path | None:
    return source.with_suffix("") if source.suffix == SUFFIX and source.stem else None


@contextmanager
def _streams(source: Path, destination: Path, *, force: bool) -> Iterator[tuple[Source, Sink]]:
    """Open a pair of which at least one is a pipe."""
    with ExitStack() as stack:
        data = standard_input() if source == PIPE else stack.enter_context(open_source(source))
        if destination == PIPE:
            with os_errors("write to standard output"):
                yield data, _Everything(sys.stdout.buffer)
                sys.stdout.buffer.flush()
        else:
            yield data, stack.enter_context(atomic_write(destination, overwrite=force))


def _size(source: Path) -> int | None:
    return source.stat().st_size if _is_regular(source) else None


def _is_regular(source: Path) -> bool:
    """Return whether `source` is a file, which has a size and can be opened twice. Raises MissingError or FileAccessError."""
    with os_errors(f"read {source}"):
        return source != PIPE and stat.S_ISREG(source.stat().st_mode)


def _original(container: Container) -> OriginalFile:
    return OriginalFile(**asdict(container.original))


def _called(source: Path) -> str:
    return "standard input" if source == PIPE else str(source)


def _report(ui: Ui, kind: type[Encrypted], source: Path, destination: Path, container: Container) -> None:
    """Say what was done; on stdout only as JSON, and never where the data itself went."""
    message = f"{_called(source)} -> {destination} ({human_size(container.original.size)})"
    if destination == PIPE:
        ui.detail(message)
        return
    ui.result(kind(str(source), container.file_id, _original(container), str(destination)), "")
    if not ui.json:
        ui.say(message)
