"""Reading small JSON objects that hold secrets: from files that nobody but their owner can read."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from secure_media_processor.core.files import open_source, os_errors, read_full
from secure_media_processor.core.keys import refuse_exposed
from secure_media_processor.errors import CredentialsError, MissingError

if TYPE_CHECKING:
    from pathlib import Path

    from secure_media_processor.core.files import Source

_MAX_SIZE = 64 * 1024


def read_private_json(path: Path, *, hint: str) -> dict[str, object]:
    """Return the JSON object in the file `path`. No message holds anything of it; `hint` says how to get another.

    Raises:
        KeyExposedError: other users of this machine can read the file.
        CredentialsError: there is none, or it is no JSON object.
        FileAccessError: the file cannot be read.
    """
    try:
        file = open_source(path)
    except MissingError:
        raise CredentialsError(f"there is no credentials file {path}", hint=hint) from None
    with file, os_errors(f"read {path}"):
        refuse_exposed(path, os.fstat(file.fileno()).st_mode)
        return read_json(file, str(path), hint=hint)


def read_json(source: Source, what: str, *, hint: str) -> dict[str, object]:
    """Return the JSON object that `source` gives. Raises CredentialsError, with a text about `what`, if it is none."""
    buffer = bytearray(_MAX_SIZE + 1)
    return json_object(buffer[: read_full(source, memoryview(buffer))], what, hint)


def json_object(data: bytes | bytearray, what: str, hint: str) -> dict[str, object]:
    """Return the JSON object in `data`. Raises as read_json."""
    try:
        found = json.loads(data) if len(data) <= _MAX_SIZE else None
    except (ValueError, RecursionError):  # its text is not repeated, nor is it chained: it holds what was read
        found = None
    if not isinstance(found, dict):
        raise CredentialsError(f"{what} is not a JSON file of credentials", hint=hint)
    return found
