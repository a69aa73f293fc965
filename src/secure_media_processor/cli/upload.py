"""smp upload and smp sync."""

from __future__ import annotations

import stat
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from secure_media_processor.cli.archive import Opened, recorded_for
from secure_media_processor.cli.collecting import Found
from secure_media_processor.cli.names import checked, is_folder, name_of
from secure_media_processor.cli.options import PATH, dry_run_option, force_option, key_option, output_options
from secure_media_processor.cli.outcomes import finish
from secure_media_processor.cli.schemas import Synced, Uploaded
from secure_media_processor.cli.ui import current, summed
from secure_media_processor.core.files import os_errors
from secure_media_processor.errors import FileAccessError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_F = TypeVar("_F", bound="Callable[..., Any]")


class _Require(click.ParamType[int]):
    """How many stores must take a file: a number, or "all", which is -1."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "all":
            return -1
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail("it is a number of stores, or all", param, ctx)
        return number


def target_options(command: _F) -> _F:
    """Add --to and --require."""
    to = click.option(
        "--to", "targets", metavar="STORE", multiple=True, help="Store it there only; may be given several times."
    )
    require = click.option(
        "--require", type=_Require(), metavar="N|all", help="How many stores must take it; most of them unless given."
    )
    return to(require(command))


@click.command()
@click.argument("paths", metavar="PATH...", type=PATH, nargs=-1, required=True)
@click.option("--remote-key", metavar="NAME", help="Name to store it under; that of the file or folder unless given.")
@click.option("--bucket", help="Store it in this S3 bucket, under NAME and nowhere else, without an index.")
@target_options
@dry_run_option
@key_option
@force_option
@output_options
def upload(
    *,
    paths: tuple[Path, ...],
    remote_key: str | None,
    bucket: str | None,
    targets: tuple[str, ...],
    require: int | None,
    key_file: Path | None,
    dry_run: bool,
    force: bool,
) -> None:
    """Encrypt files and folders on their way into your stores.

    Nothing is written to this disk, and the stores see neither names nor contents. What is there already, of the same size and
    time, is not read; contents that are there under another name are not stored again. Files of smp and age stay as they
    are. A large upload that was cut off goes on where it was when the same command is run again.

    With --bucket one file goes to S3 by itself; credentials and endpoint are those of the AWS tools, and --force replaces an
    object.

    \b
    Examples:
      smp upload study/
      smp upload scan.nii.gz --remote-key 2026/scan.nii.gz --to clinic-nas --to aws
      smp upload scan.nii.gz --bucket my-bucket --remote-key scan.nii.gz.smp
    """
    if remote_key is not None:
        if len(paths) > 1:
            raise UsageError("--remote-key names one file or folder, and several were given", hint="upload them one at a time")
        remote_key = checked("--remote-key", remote_key, paths[0])
    if bucket is not None:
        if targets or require or dry_run:
            raise UsageError("--bucket stores one file by itself: --to, --require and --dry-run do not go with it")
        from secure_media_processor.cli.bucket import upload_to_bucket

        upload_to_bucket(_only(paths), bucket, remote_key, key_file, force=force)
        return
    if force:
        message = "--force goes with --bucket: in your stores what is uploaded takes the place of what has its name"
        raise UsageError(message, hint="`smp upload --dry-run` says what would be done")
    found = Found()
    for path in paths:
        found.take(path, remote_key or name_of(path))
    _bring_in(Uploaded, found, Opened(targets, require, key_file), dry_run=dry_run)


@click.command()
@click.argument("folder", type=PATH)
@click.argument("name", required=False)
@click.option("--delete", is_flag=True, help="Remove from the stores what is not in FOLDER any more.")
@target_options
@dry_run_option
@key_option
@output_options
def sync(
    folder: Path,
    name: str | None,
    targets: tuple[str, ...],
    require: int | None,
    key_file: Path | None,
    *,
    delete: bool,
    dry_run: bool,
) -> None:
    """Make your stores have what a folder has.

    New and changed files are uploaded. NAME is the folder in your stores, that of FOLDER unless given.

    \b
    Examples:
      smp sync study/ --dry-run
      smp sync study/ projects/study --delete
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", hint="`smp upload` takes single files")
    name = checked("NAME", name_of(folder) if name is None else name, folder)
    found = Found()
    found.take(folder, name)
    if delete and not found.sources:
        hint = f"is a disk not mounted? `smp rm -r {name}` removes everything"
        raise UsageError(f"there is no file in {folder}, and --delete would remove all that the stores have of it", hint=hint)
    _bring_in(Synced, found, Opened(targets, require, key_file), dry_run=dry_run, only_these_below=name if delete else None)


def _bring_in(
    kind: type[Uploaded], found: Found, opened: Opened, *, dry_run: bool, only_these_below: str | None = None
) -> None:
    """Store what was found, and with `only_these_below` remove the other files in that folder."""
    ui = current()
    sources = [*found.sources.values()]
    total = sum(_size(source.path) for source in sources)
    done = [*found.failed.values()]
    command = "sync" if kind is Synced else "upload"
    with recorded_for(command, [*found.sources], dry_run=dry_run), opened.archive() as archive:
        leaving = None if only_these_below is None or found.failed else f"{only_these_below}/"

        def is_leaving(name: str) -> bool:
            return leaving is not None and name.startswith(leaving) and name not in found.sources

        with ui.progress("uploading", total) as progress:
            done += archive.upload(sources, progress=summed(progress), dry_run=dry_run, is_leaving=is_leaving)
        if only_these_below is not None and found.failed:
            ui.warn("nothing is removed from the stores, since not all of the folder can be read")
        elif only_these_below is not None:
            names = {one.name for one in done}
            gone = [file.name for file in archive.read_index().files(only_these_below) if file.name not in names]
            done += archive.remove(gone, dry_run=dry_run)
        finish(ui, partial(kind, passed_over=found.passed_over), done, archive, dry_run=dry_run)


def _only(paths: Sequence[Path]) -> Path:
    if len(paths) > 1 or is_folder(paths[0]):
        raise UsageError("--bucket takes one file", hint="folders go into stores that `smp cloud add` names")
    with os_errors(f"read {paths[0]}"):
        regular = stat.S_ISREG(paths[0].stat().st_mode)
    if not regular:
        raise FileAccessError(f"cannot read {paths[0]}: it is a pipe or a device", hint="name a file")
    return paths[0]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # told when it is its turn
        return 0
