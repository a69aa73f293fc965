"""smp ls and smp rm."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.archive import open_archive, recorded_for
from secure_media_processor.cli.names import NOTHING, stored_name, stored_names
from secure_media_processor.cli.options import dry_run_option, key_option, output_options
from secure_media_processor.cli.outcomes import finish, warn_of_stores
from secure_media_processor.cli.schemas import ListedFile, Listing, Removed
from secure_media_processor.cli.ui import counted, current, human_size, one_line, table
from secure_media_processor.errors import MissingError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


@click.command("ls")
@click.argument("name", required=False, default="")
@key_option
@output_options
def list_files(name: str, key_file: Path | None) -> None:
    """List the files in your stores; with NAME, that file or those in that folder.

    \b
    Example:
      smp ls study
    """
    ui = current()
    with open_archive(key_file) as archive:
        files = list(archive.read_index().files(stored_name(name)))
        if stored_name(name) and not files:
            raise MissingError(f"there is no file or folder {name} in your stores", hint="`smp ls` lists all")
    rows = [(human_size(f.size), _when(f.mtime_ns), one_line(f.name)) for f in files]
    text = table(("size", "modified (UTC)", "name"), rows, right={"size"}) if rows else ""
    ui.result(Listing([ListedFile(f.name, f.size, f.mtime_ns) for f in files], archive.degraded), text)
    ui.say(f"{counted(len(files), 'file')}; {human_size(sum(f.size for f in files))}" if files else NOTHING)
    warn_of_stores(ui, archive)


@click.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Remove folders, with all that is in them.")
@dry_run_option
@key_option
@output_options
def remove_files(names: tuple[str, ...], key_file: Path | None, *, recursive: bool, dry_run: bool) -> None:
    """Remove files from all your stores.

    A store that does not answer now loses them with `smp cloud repair`: it does not bring them back. What shares an object with
    files that stay leaves it, encrypted, when the last of them goes.

    \b
    Example:
      smp rm -r study
    """
    ui = current()
    wanted = stored_names(names)
    with recorded_for("rm", wanted, dry_run=dry_run), open_archive(key_file) as archive:
        index = archive.read_index()
        chosen: dict[str, None] = {}
        for name in wanted:
            below = [file.name for file in index.files(name)]
            if not below:
                raise MissingError(f"there is no file {name} in your stores", hint="`smp ls` shows the names")
            if name in below and not recursive:  # two machines may have stored a folder of this name beside it
                below = [name]
            elif not recursive:
                raise UsageError(f"{name} is a folder of {counted(len(below), 'file')}", hint="remove it with -r")
            chosen |= dict.fromkeys(below)
        done = archive.remove(list(chosen), dry_run=dry_run)
        finish(ui, Removed, done, archive, dry_run=dry_run)


def _when(mtime_ns: int | None) -> str:
    return "" if mtime_ns is None else f"{datetime.fromtimestamp(mtime_ns // 10**9, UTC):%Y-%m-%d %H:%M}"
