"""Reading credentials from files that only their owner can read."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from secure_media_processor.core.files import open_source, os_errors, read_full
from secure_media_processor.core.keys import refuse_exposed
from secure_media_processor.errors import CredentialsError, MissingError

if TYPE_CHECKING:
    from pathlib import Path

_MAX_SIZE = 64 * 1024


def read_private_json(path: Path, *, hint: str) -> dict[str, object]:
    """Return the object in the JSON file `path`. No message holds anything of it; `hint` says how to get another.

    Raises:
        KeyExposedError: other users of this machine can read the file.
        CredentialsError: there is no such file, or it is not a JSON object.
        FileAccessError: it cannot be read.
    """
    try:
        file = open_source(path)
    except MissingError:
        raise CredentialsError(f"there is no credentials file {path}", hint=hint) from None
    with file, os_errors(f"read {path}"):
        refuse_exposed(path, os.fstat(file.fileno()).st_mode)
        buffer = bytearray(_MAX_SIZE)
        size = read_full(file, memoryview(buffer))
    try:
        found = json.loads(buffer[:size])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CredentialsError(f"{path} is not a JSON file of credentials", hint=hint)
    return found
