"""smp upload, download, ls, rm, sync."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.chosen_keys import decryption_keys, encryption_key
from secure_media_processor.cli.options import FILE, force_option, key_option, output_options
from secure_media_processor.cli.ui import Ui, current, human_size, table
from secure_media_processor.cloud.archive import Action, Archive, Done, Keys, Source
from secure_media_processor.cloud.stores import StoreBook
from secure_media_processor.cloud.wrappers import Patience
from secure_media_processor.core.config import get_settings
from secure_media_processor.core.files import os_errors
from secure_media_processor.errors import DegradedError, MissingError, PartialError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from secure_media_processor.cloud.index import Index, IndexedFile

_F = TypeVar("_F", bound="Callable[..., Any]")

# With several stores one that does not answer is passed over soon: the others have everything, and repair is for the rest.
_ONE_OF_SEVERAL = Patience(deadline=10.0)
_ONLY_ONE = Patience(deadline=120.0)


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


def dry_run_option(command: _F) -> _F:
    """Add --dry-run."""
    return click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")(command)


@click.command()
@click.argument("paths", metavar="PATH...", type=FILE, nargs=-1, required=True)
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
    if remote_key is not None and len(paths) > 1:
        raise UsageError("--remote-key names one file or folder, and several were given")
    if bucket is not None:
        if targets or require or dry_run:
            raise UsageError("--bucket stores one file by itself: --to, --require and --dry-run do not go with it")
        from secure_media_processor.cli.bucket import upload_to_bucket

        upload_to_bucket(_only(paths), bucket, remote_key, key_file, force=force)
        return
    if force:
        raise UsageError("--force goes with --bucket: in your stores a newer file takes the place of the older by itself")
    sources = [source for path in paths for source in _sources(path, remote_key or _name_of(path))]
    _bring_in("upload", sources, _Opened(targets, require, key_file), dry_run=dry_run)


@click.command()
@click.argument("folder", type=FILE)
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
    name = name or _name_of(folder)
    sources = list(_sources(folder, name))
    _bring_in("sync", sources, _Opened(targets, require, key_file), dry_run=dry_run, only_these_below=name if delete else None)


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All files there are.")
@click.option("-o", "--output", type=FILE, help="File, or folder, to write to.")
@click.option("--bucket", help="Fetch the object of --remote-key from this S3 bucket.")
@click.option("--remote-key", metavar="KEY", help="With --bucket: the object.")
@key_option
@force_option
@output_options
def download(
    names: tuple[str, ...],
    output: Path | None,
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
    if bucket is not None:
        if names or everything or remote_key is None:
            raise UsageError("--bucket needs --remote-key, and nothing else names what to fetch")
        from secure_media_processor.cli.bucket import download_from_bucket

        download_from_bucket(bucket, remote_key, output, key_file, force=force)
        return
    if remote_key is not None:
        raise UsageError("--remote-key goes with --bucket", hint="name the file: smp download NAME")
    if bool(names) == everything:
        raise UsageError("name what to fetch, or say --all", hint="`smp ls` shows the names")
    ui = current()
    with recorded("download") as operation, _Opened((), None, key_file).archive() as archive:
        operation.object = _object_of(names)
        index = archive.read_index()
        root, files = _targets(index, ("",) if everything else names, output)
        total = sum(file.size for file, _ in files)
        with ui.progress("downloading", total) as progress:
            done = list(archive.restore(files, root, index, overwrite=force, progress=summed(progress)))
    _finish(ui, "download", done, archive)


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
    with _Opened((), None, key_file).archive() as archive:
        files = list(archive.read_index().files(name.strip("/")))
        if name and not files:
            raise MissingError(f"there is no file or folder {name} in your stores", hint="`smp ls` lists all")
    fields = [{"name": f.name, "size": f.size, "mtime_ns": f.mtime_ns} for f in files]
    rows = [(human_size(f.size), _when(f.mtime_ns), f.name) for f in files]
    ui.result(
        "smp.ls/1", {"files": fields, "degraded": archive.degraded}, table(("size", "modified", "name"), rows) if rows else ""
    )
    _warn_of_silent(ui, archive)


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
    with recorded("rm") as operation, _Opened((), None, key_file).archive() as archive:
        operation.object = _object_of(names)
        index = archive.read_index()
        chosen: dict[str, None] = {}
        for name in (name.strip("/") for name in names):
            below = [file.name for file in index.files(name)]
            if not below:
                raise MissingError(f"there is no file {name} in your stores", hint="`smp ls` shows the names")
            if below != [name] and not recursive:
                raise UsageError(f"{name} is a folder of {len(below)} files", hint="remove it with -r")
            chosen |= dict.fromkeys(below)
        done = archive.remove(list(chosen), dry_run=dry_run)
    _finish(ui, "rm", done, archive, dry_run=dry_run)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What an archive is opened with."""

    targets: Sequence[str]
    require: int | None
    key_file: Path | None

    @contextmanager
    def archive(self) -> Iterator[Archive]:
        """Open the archive in the user's stores, and close the stores at the end."""
        settings = get_settings()
        stores = StoreBook(settings.stores).stores()
        if not stores:
            raise UsageError(
                "there is no store yet", hint="`smp cloud add` names one, such as: smp cloud add nas local folder=/mnt/nas"
            )
        key = encryption_key(self.key_file)
        keys = Keys([key], [key, *decryption_keys(self.key_file)], key.content_key)
        quorum = self.require
        if quorum == -1:
            quorum = len(self.targets) or len(stores)
        with ExitStack() as stack:
            patience = _ONE_OF_SEVERAL if len(stores) > 1 else _ONLY_ONE
            connectors = {store.name: stack.enter_context(store.open(patience)) for store in stores}
            labels = {store.name: store.label for store in stores}
            yield Archive(connectors, keys, settings.cloud_state, labels=labels, targets=self.targets, quorum=quorum)


def open_archive(key_file: Path | None) -> AbstractContextManager[Archive]:
    """Open the archive in all the user's stores; they are closed at the end of the block."""
    return _Opened((), None, key_file).archive()


def _bring_in(
    command: str, sources: Sequence[Source], opened: _Opened, *, dry_run: bool, only_these_below: str | None = None
) -> None:
    """Store `sources`, and with `only_these_below` remove the other files in that folder."""
    ui = current()
    total = sum(_size(source.path) for source in sources)
    with recorded(command) as operation, opened.archive() as archive:
        operation.object = _object_of([source.name for source in sources[:1]])
        with ui.progress("uploading", total) as progress:
            done = list(archive.upload(sources, progress=summed(progress), dry_run=dry_run))
        if only_these_below is not None:
            names = {one.name for one in done}
            gone = [file.name for file in archive.read_index().files(only_these_below) if file.name not in names]
            done += archive.remove(gone, dry_run=dry_run)
    _finish(ui, command, done, archive, dry_run=dry_run)


def _finish(ui: Ui, command: str, done: Sequence[Done], archive: Archive, *, dry_run: bool = False) -> None:
    """Report what was done. Raises if something failed or is left to be repaired."""
    failed = [one for one in done if one.error is not None]
    for one in failed:
        ui.warn(f"{one.name}: {one.error}")
    for one in done:
        ui.detail(f"{'would be ' if dry_run else ''}{one.action}: {one.name}")
    fields = [
        {"name": one.name, "action": str(one.action), "size": one.size} | ({"error": one.error.code} if one.error else {})
        for one in done
    ]
    ui.result(
        f"smp.{command}/1", {"dry_run": dry_run, "files": fields, "degraded": archive.degraded}, _plan(done) if dry_run else ""
    )
    if not dry_run:
        ui.say(_summary(done))
    if failed:
        if len(done) == 1 and failed[0].error is not None:
            raise failed[0].error
        raise PartialError(f"{len(failed)} of {len(done)} files failed", hint="see the warnings above")
    if archive.degraded and not dry_run and command != "download":
        reasons = "; ".join(f"{name}: {reason}" for name, reason in archive.degraded.items())
        raise DegradedError(f"done, but not in every store ({reasons})", hint="run `smp cloud repair` when they are back")
    _warn_of_silent(ui, archive)


def _warn_of_silent(ui: Ui, archive: Archive) -> None:
    for name, reason in archive.degraded.items():
        ui.warn(f"{name} does not answer: {reason}")


def _plan(done: Iterable[Done]) -> str:
    return "\n".join(f"{one.action:9}  {one.name}" for one in done if one.action is not Action.UNCHANGED)


def _summary(done: Sequence[Done]) -> str:
    counts = Counter(one.action for one in done)
    size = sum(one.size for one in done if one.action in (Action.STORED, Action.RESTORED))
    parts = [f"{counts[action]} {action}" for action in Action if counts[action]]
    return f"{', '.join(parts) or 'nothing to do'}; {human_size(size)}"


def _sources(path: Path, name: str) -> Iterator[Source]:
    """Yield the file `path`, or the files in the folder, with names to store them under. Links in a folder are passed over."""
    if not path.is_dir():
        yield Source(path, name)
        return
    ui = current()

    def fail(error: OSError) -> None:
        raise error

    with os_errors(f"read {path}"):
        for folder, folders, files in os.walk(path, onerror=fail):
            folders.sort()
            for file in sorted(files):
                found = Path(folder, file)
                if found.is_symlink() or not found.is_file():
                    ui.warn(f"{found} is passed over: it is not a file")
                    continue
                yield Source(found, f"{name}/{found.relative_to(path).as_posix()}")
            for link in (link for link in folders if Path(folder, link).is_symlink()):
                ui.warn(f"{Path(folder, link)} is passed over: it is a symbolic link")


def _targets(index: Index, names: Sequence[str], output: Path | None) -> tuple[Path, list[tuple[IndexedFile, Path]]]:
    """Return an existing folder, and the files that are meant by `names` with a path below that folder for each."""
    chosen = []
    for name in (name.strip("/") for name in names):
        files = list(index.files(name))
        if name and not files:
            raise MissingError(f"there is no file or folder {name} in your stores", hint="`smp ls` shows the names")
        chosen.append((name, files))
    if len(chosen) == 1 and [file.name for file in chosen[0][1]] == [chosen[0][0]]:
        file = chosen[0][1][0]
        own = file.name.rpartition("/")[2]
        target = Path(own) if output is None else output / own if output.is_dir() else output
        return target.parent, [(file, target)]
    root = output or Path()
    if not root.is_dir():
        with os_errors(f"make the folder {root}"):
            root.mkdir(mode=0o700)
    several = len(chosen) > 1 or output is None
    pairs = []
    for name, files in chosen:
        # `download a/b -o out` fills out with what is in a/b; without -o, or with more than one name, out gets a folder b.
        cut = len(name.rpartition("/")[0]) if several or [f.name for f in files] == [name] else len(name)
        pairs += [(file, root / file.name[cut:].lstrip("/")) for file in files]
    return root, pairs


def summed(progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
    """Return a function that takes differences and passes on their sum; None for None."""
    if progress is None:
        return None
    total = 0

    def add(size: int) -> None:
        nonlocal total
        total += size
        progress(total)

    return add


def _only(paths: Sequence[Path]) -> Path:
    if len(paths) > 1 or paths[0].is_dir():
        raise UsageError("--bucket takes one file")
    return paths[0]


def _name_of(path: Path) -> str:
    name = path.name or path.resolve().name
    return name if name not in ("", "..") else path.resolve().name


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # told when it is its turn
        return 0


def _object_of(names: Sequence[str]) -> bytes | None:
    return names[0].encode("utf-8", "surrogatepass") if len(names) == 1 else None


def _when(mtime_ns: int | None) -> str:
    return "" if mtime_ns is None else f"{datetime.fromtimestamp(mtime_ns // 10**9, UTC):%Y-%m-%d %H:%M}"
