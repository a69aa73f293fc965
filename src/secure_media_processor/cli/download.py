"""smp download."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.archive import open_archive, recorded_for
from secure_media_processor.cli.names import stored_names
from secure_media_processor.cli.options import force_option, key_option, output_options
from secure_media_processor.cli.outcomes import finish
from secure_media_processor.cli.schemas import Downloaded
from secure_media_processor.cli.targets import targets_of
from secure_media_processor.cli.ui import current, summed
from secure_media_processor.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All files there are.")
@click.option("-o", "--output", type=click.Path(readable=False), help="File, or folder, to write to.")
@click.option("--bucket", help="Fetch the object of --remote-key from this S3 bucket.")
@click.option("--remote-key", metavar="KEY", help="With --bucket: the object.")
@key_option
@force_option
@output_options
def download(
    names: tuple[str, ...],
    output: str | None,
    bucket: str | None,
    remote_key: str | None,
    key_file: Path | None,
    *,
    everything: bool,
    force: bool,
) -> None:
    """Fetch files and folders from your stores and decrypt them.

    A file appears under its name when every byte of it has been verified. A store that fails, or gives wrong bytes, is passed
    over, also in the middle of a file. A file that is there already, with the same contents, is left alone, so that a large
    download goes on when the same command is run again.

    \b
    Examples:
      smp download study -o study-copy
      smp download 2026/scan.nii.gz
      smp download --bucket my-bucket --remote-key scan.nii.gz.smp -o scan.nii.gz
    """
    if output == "-":
        raise UsageError("what is fetched is written to files only, when it is verified", hint="a file of that name is ./-")
    if bucket is not None:
        if names or everything or remote_key is None:
            raise UsageError("with --bucket it is --remote-key alone that names what to fetch")
        from secure_media_processor.cli.bucket import download_from_bucket

        download_from_bucket(bucket, remote_key, output, key_file, force=force)
        return
    if remote_key is not None:
        raise UsageError("--remote-key goes with --bucket", hint="name the file: smp download NAME")
    if names and everything:
        raise UsageError("--all fetches everything: no names go with it")
    if not names and not everything:
        raise UsageError("name what to fetch, or say --all", hint="`smp ls` shows the names")
    wanted = [""] if everything else stored_names(names)
    ui = current()
    with recorded_for("download", wanted), open_archive(key_file) as archive:
        index = archive.read_index()
        root, files, blocked = targets_of(index, wanted, output)
        total = sum(file.size for file, _ in files)
        with ui.progress("downloading", total) as progress:
            done = [*blocked, *archive.restore(files, root, index, overwrite=force, progress=summed(progress))]
        finish(ui, Downloaded, done, archive, stores=False)
