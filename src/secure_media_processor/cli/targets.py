"""Where files that come out of the stores are written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from secure_media_processor.cli.names import NOTHING
from secure_media_processor.cloud.outcome import Action, Done
from secure_media_processor.core.files import os_errors
from secure_media_processor.errors import ExistsError, MissingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from secure_media_processor.cloud.index import Index, IndexedFile


def targets_of(
    index: Index, names: Sequence[str], output: str | None
) -> tuple[Path, list[tuple[IndexedFile, Path]], list[Done]]:
    """Return where the files that are meant by `names` are to go.

    Returns:
        An existing folder, the files with a path below that folder for each, and those that cannot be written: a file whose
        name is that of a folder, too, which two machines may have stored at once.
    """
    chosen = {name: list(index.files(name)) for name in names}
    for name, files in chosen.items():
        if not files:
            what = f"there is no file or folder {name} in your stores" if name else NOTHING
            raise MissingError(what, hint="`smp ls` shows the names" if name else "`smp cloud verify` tells more")
        if len(chosen) == 1 and [file.name for file in files] == [name]:
            target = target_in(output, name.rpartition("/")[2])
            return target.parent, [(files[0], target)], []
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
    folders = {folder for target in targets for folder in target.parents}
    wanted = [(file, target) for target, file in targets.items() if target not in folders]
    return root, wanted, [_blocked(file, target) for target, file in targets.items() if target in folders]


def _blocked(file: IndexedFile, target: Path) -> Done:
    message = f"{file.name} cannot be written to {target}: other files go into a folder of this name"
    hint = f"`smp download {file.name} -o FOLDER` fetches it beside what is in that folder"
    return Done(file.name, Action.FAILED, file.size, UsageError(message, hint=hint))


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
