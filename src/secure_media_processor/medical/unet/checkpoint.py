"""Where training stands, in one file that a kill or a full disk never leaves half-written.

The tensors are those of a safetensors file, and its header carries everything else as JSON: nothing in it can be executed. The
new file takes the place of the old one in one step, so there is always one that is complete.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from secure_media_processor.core.files import os_errors, write_file
from secure_media_processor.errors import IntegrityError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

SCHEMA: Final = "smp.training/2"
_KEY: Final = "state"
_AGAIN: Final = "start again with --force instead of --resume"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What was read."""

    tensors: dict[str, Tensor]
    """Name → tensor, on the CPU."""
    state: dict[str, Any]
    """Plain values, as JSON has them."""


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint in the place of the one before, mode 0600.

    Raises:
        NoSpaceError, FileAccessError, MissingError: as atomic_write; the checkpoint before stays.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps({"schema": SCHEMA, **state}, allow_nan=False)
    write_file(path, save(plain, metadata={_KEY: text}), overwrite=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        MissingError, FileAccessError: as the system says.
        UnsupportedError: it was written by another version.
        IntegrityError: it is none, or damaged.
    """
    with os_errors(f"read {path}"):
        path.stat()
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads((file.metadata() or {})[_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (SafetensorError, KeyError, ValueError, RecursionError):
            raise IntegrityError(f"{path} is not a checkpoint, or damaged", hint=_AGAIN) from None
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise UnsupportedError(f"{path} was written by another version", hint=_AGAIN)
    return Checkpoint(tensors, state)
