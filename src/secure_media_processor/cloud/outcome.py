"""What became of a file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secure_media_processor.errors import SmpError


class Action(StrEnum):
    """What was done, or is to be done, with a file."""

    STORED = "stored"
    LINKED = "linked"
    """Its contents were there already, under another name or an earlier one."""
    UNCHANGED = "unchanged"
    """It is there, of the same size and time."""
    REMOVED = "removed"
    RESTORED = "restored"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one file."""

    name: str
    action: Action
    size: int = 0
    """Bytes."""
    error: SmpError | None = None
