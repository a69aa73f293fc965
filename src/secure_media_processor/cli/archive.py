"""smp upload, download, ls, rm, sync."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.chosen_keys import decryption_keys, encryption_key
from secure_media_processor.cli.options import force_option, key_option, output_options
from secure_media_processor.cli.ui import Ui, current, human_size, one_line, table
from secure_media_processor.cloud.archive import Archive, Keys
from secure_media_processor.cloud.outcome import Action, Done
from secure_media_processor.cloud.paths import check_key
from secure_media_processor.cloud.stores import StoreBook
from secure_media_processor.cloud.uploading import Source
from secure_media_processor.cloud.wrappers import Patience
from secure_media_processor.core.config import get_settings
from secure_media_processor.core.files import os_errors, smp_error_from
from secure_media_processor.core.keystore import Keystore
from secure_media_processor.errors import (
    CredentialsError,
    DegradedError,
    ExistsError,
    FileAccessError,
    MissingError,
    PartialError,
    SmpError,
    ThrottledError,
    TransientError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from secure_media_processor.cloud.index import Index, IndexedFile
    from secure_media_processor.core.keys import SymmetricKey

_F = TypeVar("_F", bound="Callable[..., Any]")

# With several stores one that does not answer is passed over soon: the others have everything, and repair is for the rest.
_ONE_OF_SEVERAL = Patience(deadline=10.0)
_ONLY_ONE = Patience(deadline=120.0)
_NOTHING = "there is nothing in your stores that the keys at hand can read"
# What cannot be read is told when it is its turn, and holds up nothing else: click would refuse the whole command.
_PATH = click.Path(path_type=Path, readable=False)


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
@click.argument("paths", metavar="PATH...", type=_PATH, nargs=-1, required=True)
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
        remote_key = _checked("--remote-key", remote_key, paths[0])
    if bucket is not None:
        if targets or require or dry_run:
            raise UsageError("--bucket stores one file by itself: --to, --require and --dry-run do not go with it")
        from secure_media_processor.cli.bucket import upload_to_bucket

        upload_to_bucket(_only(paths), bucket, remote_key, key_file, force=force)
        return
    if force:
        message = "--force goes with --bucket: in your stores what is uploaded takes the place of what has its name"
        raise UsageError(message, hint="`smp upload --dry-run` says what would be done")
    found = _Found()
    for path in paths:
        found.take(path, remote_key or _name_of(path))
    _bring_in("upload", found, _Opened(targets, require, key_file), dry_run=dry_run)


@click.command()
@click.argument("folder", type=_PATH)
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
    name = _checked("NAME", _name_of(folder) if name is None else name, folder)
    found = _Found()
    found.take(folder, name)
    if delete and not found.sources:
        hint = f"is a disk not mounted? `smp rm -r {name}` removes everything"
        raise UsageError(f"there is no file in {folder}, and --delete would remove all that the stores have of it", hint=hint)
    _bring_in("sync", found, _Opened(targets, require, key_file), dry_run=dry_run, only_these_below=name if delete else None)


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
    wanted = [""] if everything else _stored_names(names)
    ui = current()
    with _recorded("download", wanted), _Opened((), None, key_file).archive() as archive:
        index = archive.read_index()
        root, files = _targets(index, wanted, output)
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
        files = list(archive.read_index().files(_stored_name(name)))
        if _stored_name(name) and not files:
            raise MissingError(f"there is no file or folder {name} in your stores", hint="`smp ls` lists all")
    fields = [{"name": f.name, "size": f.size, "mtime_ns": f.mtime_ns} for f in files]
    rows = [(human_size(f.size), _when(f.mtime_ns), one_line(f.name)) for f in files]
    ui.result(
        "smp.ls/1", {"files": fields, "degraded": archive.degraded}, table(("size", "modified", "name"), rows) if rows else ""
    )
    if not files:
        ui.say(_NOTHING)
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
    wanted = _stored_names(names)
    with _recorded("rm", wanted, dry_run=dry_run), _Opened((), None, key_file).archive() as archive:
        index = archive.read_index()
        chosen: dict[str, None] = {}
        for name in wanted:
            below = [file.name for file in index.files(name)]
            if not below:
                raise MissingError(f"there is no file {name} in your stores", hint="`smp ls` shows the names")
            if below != [name] and not recursive:
                raise UsageError(f"{name} is a folder of {counted(len(below), 'file')}", hint="remove it with -r")
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
        targets = tuple(dict.fromkeys(self.targets))
        there = len(targets or stores)
        if self.require is not None and self.require > there:
            raise UsageError(f"--require {self.require}: the files are to go to {counted(there, 'store')}")
        key = encryption_key(self.key_file)
        older = _older_content_keys(key) if self.key_file is None else []
        keys = Keys([key], [key, *decryption_keys(self.key_file)], key.content_key, older)
        quorum = there if self.require == -1 else self.require
        with ExitStack() as stack:
            patience = _ONE_OF_SEVERAL if len(stores) > 1 else _ONLY_ONE
            connectors = {store.name: stack.enter_context(store.open(patience)) for store in stores}
            labels = {store.name: store.label for store in stores}
            yield Archive(connectors, keys, settings.cloud_state, labels=labels, targets=targets, quorum=quorum)


def _older_content_keys(primary: SymmetricKey) -> list[bytes]:
    """Return the content keys of the other keys in the keystore: what was stored for these is to be found by their means."""
    settings = get_settings()
    if settings.key_file:
        return []
    keystore, found = Keystore(settings.keystore), []
    for entry in keystore.entries():
        with suppress(CredentialsError):  # a key that is damaged opens nothing either, and `smp doctor` tells of it
            if entry.id != primary.id:
                found.append(keystore.load(entry.id).content_key)
    return found


def open_archive(key_file: Path | None) -> AbstractContextManager[Archive]:
    """Open the archive in all the user's stores; they are closed at the end of the block."""
    return _Opened((), None, key_file).archive()


def _bring_in(command: str, found: _Found, opened: _Opened, *, dry_run: bool, only_these_below: str | None = None) -> None:
    """Store what was found, and with `only_these_below` remove the other files in that folder."""
    ui = current()
    sources = [*found.sources.values()]
    total = sum(_size(source.path) for source in sources)
    done = [*found.failed.values()]
    with _recorded(command, [*found.sources], dry_run=dry_run), opened.archive() as archive:
        with ui.progress("uploading", total) as progress:
            done += archive.upload(sources, progress=summed(progress), dry_run=dry_run)
        if only_these_below is not None and found.failed:
            ui.warn("nothing is removed from the stores, since not all of the folder can be read")
        elif only_these_below is not None:
            names = {one.name for one in done}
            gone = [file.name for file in archive.read_index().files(only_these_below) if file.name not in names]
            done += archive.remove(gone, dry_run=dry_run)
        _finish(ui, command, done, archive, dry_run=dry_run)


def _finish(ui: Ui, command: str, done: Sequence[Done], archive: Archive, *, dry_run: bool = False) -> None:
    """Report what was done. Raises if something failed or is left to be repaired."""
    failed = [one for one in done if one.error is not None]
    if len(done) > 1:
        for one in failed:
            ui.warn(str(one.error) if one.name in str(one.error) else f"{one.name}: {one.error}")
    for one in done:
        ui.detail(f"{'would be ' if dry_run else ''}{one.action}: {one.name}")
    fields = [
        {"name": one.name, "action": str(one.action), "size": one.size} | ({"error": one.error.code} if one.error else {})
        for one in done
    ]
    ui.result(
        f"smp.{command}/1", {"dry_run": dry_run, "files": fields, "degraded": archive.degraded}, _plan(done) if dry_run else ""
    )
    if not (dry_run and _plan(done)) and (not failed or len(done) > 1):
        ui.say(_summary(done))
    pending = archive.degraded and not dry_run and command != "download"
    reasons = "; ".join(f"{name}: {reason}" for name, reason in archive.degraded.items())
    if failed:
        if pending:
            ui.warn(f"what is done is not in every store ({reasons}): run `smp cloud repair` when they are back")
        raise _failure([one.error for one in failed if one.error is not None], len(done))
    if pending:
        raise DegradedError(f"done, but not in every store ({reasons})", hint="run `smp cloud repair` when they are back")
    _warn_of_silent(ui, archive)


def _failure(errors: Sequence[SmpError], among: int) -> SmpError:
    """Return the error that ends a command in which `errors` kept some of its files, or all, from being done."""
    if among == 1:
        return errors[0]
    message, hint = f"{len(errors)} of {counted(among, 'file')} failed", "see the warnings above"
    kinds = {type(error) for error in errors}
    if len(errors) == among and len(kinds) == 1:
        # Nothing is done, and for one reason: whoever reads the exit code wants that reason.
        kind = kinds.pop()
        return kind(message, hint=hint) if kind is not ThrottledError else TransientError(message, hint=hint)
    return PartialError(message, hint=hint)


def _warn_of_silent(ui: Ui, archive: Archive) -> None:
    for name, reason in archive.degraded.items():
        ui.warn(f"{name} does not answer: {reason}")


def _plan(done: Iterable[Done]) -> str:
    return "\n".join(f"{one.action:9}  {one_line(one.name)}" for one in done if one.action is not Action.UNCHANGED)


def _summary(done: Sequence[Done]) -> str:
    counts = Counter(one.action for one in done)
    moved = [one.size for one in done if one.action in (Action.STORED, Action.RESTORED)]
    moved = moved or [one.size for one in done if one.action is Action.REMOVED]
    parts = [f"{counts[action]} {action}" for action in Action if counts[action]]
    return f"{', '.join(parts) or 'nothing to do'}{f'; {human_size(sum(moved))}' if moved else ''}"


@dataclass(slots=True)
class _Found:
    """Files to store, and what of them cannot be."""

    sources: dict[str, Source] = field(default_factory=dict)
    """Name in the stores → file."""
    failed: dict[str, Done] = field(default_factory=dict)

    def take(self, path: Path, name: str) -> None:
        """Take the file `path`, or the files in the folder, to be stored under `name`. Links in a folder are passed over."""
        name = unicodedata.normalize("NFC", name)
        if not _is_folder(path):
            self._take_named(path, name)
            return
        ui = current()

        def fail(error: OSError) -> None:
            place = Path(error.filename)
            self._fail(_below(name, path, place), smp_error_from(error, f"read {place}"))

        own = _own_folders()
        for folder, folders, files in os.walk(path, onerror=fail):
            for ours in [one for one in folders if Path(folder, one).resolve() in own]:
                ui.warn(f"{Path(folder, ours)} is passed over: it holds keys, records or a store of smp")
                folders.remove(ours)
            folders.sort()
            for found in (Path(folder, entry) for entry in (*sorted(files), *folders)):
                try:
                    mode = found.lstat().st_mode
                except OSError as error:
                    fail(error)
                    continue
                if stat.S_ISREG(mode):
                    self._add(Source(found, _below(name, path, found)))
                elif not stat.S_ISDIR(mode):
                    ui.warn(f"{found} is passed over: it is a {'symbolic link' if stat.S_ISLNK(mode) else 'pipe or a device'}")

    def _take_named(self, path: Path, name: str) -> None:
        """Take what the user has named, and what is no folder."""
        try:
            check_key(name)
            mode = path.stat().st_mode
        except UsageError as error:
            message = f"{path} cannot be stored as {name!r}: {_reason(error)}"
            self._fail(name, UsageError(message, hint="give it another name with --remote-key"))
        except OSError as error:
            self._fail(name, smp_error_from(error, f"read {path}"))
        else:
            if stat.S_ISREG(mode):
                self._add(Source(path, name))
            else:
                message = f"cannot read {path}: it is a pipe or a device"
                self._fail(name, FileAccessError(message, hint="`smp encrypt` takes pipes"))

    def _add(self, source: Source) -> None:
        other = self.sources.setdefault(source.name, source)
        if other is source:
            return
        with os_errors(f"read {source.path}"):
            same = source.path.samefile(other.path)
        if not same:
            message = f"{other.path} and {source.path} would both be stored as {source.name}: one would replace the other"
            raise UsageError(message, hint="upload them one at a time, with --remote-key, or the folder that they are in")

    def _fail(self, name: str, error: SmpError) -> None:
        self.failed.setdefault(name, Done(name, Action.FAILED, 0, error))


def _own_folders() -> set[Path]:
    """Return the folders that must never be uploaded: of the keys, of our records, and of stores in folders."""
    settings = get_settings()
    folders = {settings.keystore, settings.cloud_state, settings.audit_log.parent, settings.stores.parent}
    options = [store.options.get("folder", "") for store in StoreBook(settings.stores).stores() if store.kind == "local"]
    return {folder.resolve() for folder in (*folders, *map(Path, filter(None, options)))}


def _below(name: str, folder: Path, path: Path) -> str:
    """Return the name for `path`, which is `folder`, stored as `name`, or below it."""
    inner = path.relative_to(folder).as_posix()
    return name if inner == "." else unicodedata.normalize("NFC", f"{name}/{inner}")


def _stored_name(name: str) -> str:
    """Return a name as it stands in the index. macOS hands names over in another form of Unicode."""
    return unicodedata.normalize("NFC", name).strip("/")


def _stored_names(names: Sequence[str]) -> list[str]:
    """Return names as they stand in the index, each once. Raises UsageError for an empty one: it would stand for everything."""
    found = list(dict.fromkeys(map(_stored_name, names)))
    if "" in found:
        raise UsageError("a name is empty", hint="`smp ls` shows the names")
    return found


def _checked(what: str, name: str, path: Path) -> str:
    """Return the name under which the user wants `path` to be stored. Raises UsageError if there can be no such name."""
    if name.endswith("/") and name.strip("/") and not _is_folder(path):
        hint = f"give the whole name: {name}{path.name}"
        raise UsageError(f"{what} cannot be {name!r}: that is a folder, and {path} is a file", hint=hint)
    normal = unicodedata.normalize("NFC", name)
    try:
        return check_key(normal.rstrip("/") if _is_folder(path) else normal)
    except UsageError as error:
        raise UsageError(f"{what} cannot be {name!r}: {_reason(error)}", hint="names look like folder/name") from None


def _reason(error: UsageError) -> str:
    return str(error).removeprefix("the object key is not allowed: ")


def _targets(index: Index, names: Sequence[str], output: str | None) -> tuple[Path, list[tuple[IndexedFile, Path]]]:
    """Return an existing folder, and the files that are meant by `names` with a path below that folder for each."""
    chosen = {name: list(index.files(name)) for name in names}
    for name, files in chosen.items():
        if not files:
            what = f"there is no file or folder {name} in your stores" if name else _NOTHING
            raise MissingError(what, hint="`smp ls` shows the names" if name else "`smp cloud verify` tells more")
        if len(chosen) == 1 and [file.name for file in files] == [name]:
            target = target_in(output, name.rpartition("/")[2])
            return target.parent, [(files[0], target)]
    root = Path(output or "")
    several = len(chosen) > 1 or output is None
    targets: dict[Path, IndexedFile] = {}
    for name, files in chosen.items():
        # `download a/b -o out` fills out with what is in a/b; without -o, or with more than one name, out gets a folder b.
        cut = len(name.rpartition("/")[0]) if several or [f.name for f in files] == [name] else len(name)
        for file in files:
            # A file may have the name of a folder: it goes beside what is in that.
            target = root / (file.name[cut:].lstrip("/") or file.name.rpartition("/")[2])
            other = targets.setdefault(target, file)
            if other != file:
                message = f"{other.name} and {file.name} would both be written to {target}"
                raise UsageError(message, hint="fetch them one at a time")
    _make_folder(root)
    return root, [(file, target) for target, file in targets.items()]


def target_in(output: str | None, name: str) -> Path:
    """Return where a file is to go: to `output`, or to `name` in that folder; it is made if its name ends in a slash."""
    target = Path(output or name)
    if output and output.endswith("/"):
        _make_folder(target)
    return target / name if output and target.is_dir() else target


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    if path.exists():
        message = f"cannot make the folder {path}: a file stands in its place"
        raise ExistsError(message, hint="name a folder with -o")
    with os_errors(f"make the folder {path}"):
        path.mkdir(mode=0o700)


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
    if len(paths) > 1 or _is_folder(paths[0]):
        raise UsageError("--bucket takes one file", hint="folders go into stores that `smp cloud add` names")
    with os_errors(f"read {paths[0]}"):
        regular = stat.S_ISREG(paths[0].stat().st_mode)
    if not regular:
        raise FileAccessError(f"cannot read {paths[0]}: it is a pipe or a device", hint="name a file")
    return paths[0]


def _name_of(path: Path) -> str:
    name = path.name if path.name != ".." else ""
    return name or path.resolve().name


def _is_folder(path: Path) -> bool:
    """Return whether `path` is a folder, as far as that can be seen."""
    try:
        return path.is_dir()
    except OSError:
        return False


def counted(number: int, thing: str) -> str:
    """Return "1 file", "2 files"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # told when it is its turn
        return 0


@contextmanager
def _recorded(action: str, names: Sequence[str], *, dry_run: bool = False) -> Iterator[None]:
    """Record what the block does with the files `names`, and how it ends. What only would be done is not recorded."""
    if dry_run:
        yield
        return
    with recorded(action) as operation:
        if len(names) == 1 and names[0]:
            operation.object = names[0].encode("utf-8", "surrogatepass")
        yield


def _when(mtime_ns: int | None) -> str:
    return "" if mtime_ns is None else f"{datetime.fromtimestamp(mtime_ns // 10**9, UTC):%Y-%m-%d %H:%M}"
