"""Names of files in the stores, as the user gives them."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from secure_media_processor.cloud.paths import check_key
from secure_media_processor.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NOTHING = "there is nothing in your stores that the keys at hand can read"


def stored_name(name: str) -> str:
    """Return a name as it stands in the index. macOS hands names over in another form of Unicode."""
    return unicodedata.normalize("NFC", name).strip("/")


def stored_names(names: Sequence[str]) -> list[str]:
    """Return names as they stand in the index, each once. Raises UsageError for an empty one: it would stand for everything."""
    found = list(dict.fromkeys(map(stored_name, names)))
    if "" in found:
        raise UsageError("a name is empty", hint="`smp ls` shows the names")
    return found


def checked(what: str, name: str, path: Path) -> str:
    """Return the name under which the user wants `path` to be stored. Raises UsageError if there can be no such name."""
    if name.endswith("/") and name.strip("/") and not is_folder(path):
        hint = f"give the whole name: {name}{path.name}"
        raise UsageError(f"{what} cannot be {name!r}: that is a folder, and {path} is a file", hint=hint)
    normal = unicodedata.normalize("NFC", name)
    try:
        return check_key(normal.rstrip("/") if is_folder(path) else normal)
    except UsageError as error:
        raise UsageError(f"{what} cannot be {name!r}: {reason(error)}", hint="names look like folder/name") from None


def reason(error: UsageError) -> str:
    """Return what is wrong with a name, by the error of check_key."""
    return str(error).removeprefix("the object key is not allowed: ")


def name_of(path: Path) -> str:
    """Return the name that `path` is stored under unless the user gives one."""
    name = path.name if path.name != ".." else ""
    return name or path.resolve().name


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder, as far as that can be seen."""
    try:
        return path.is_dir()
    except OSError:
        return False
