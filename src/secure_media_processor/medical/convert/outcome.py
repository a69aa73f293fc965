"""What became of files that were converted, and where the results go. Nothing here needs more than Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from secure_media_processor.core.files import make_private_folder, os_errors
from secure_media_processor.errors import ImageError, NoSpaceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from secure_media_processor.errors import SmpError
    from secure_media_processor.medical.dicom.reader import Unreadable

Progress: TypeAlias = "Callable[[int], None]"
"""Called with how many files are done more than at the last call."""


@dataclass(frozen=True, slots=True)
class Written:
    """A picture or volume that was written."""

    path: Path
    source: Path
    """The file that it was made of; for a volume, the first one."""
    files: int
    """How many files it was made of."""
    engine: Literal["dcm2niix", "own"] = "own"
    problems: tuple[str, ...] = ()
    """For volumes: why the slices are not a regular grid, in words. dcm2niix may have resampled them all the same."""


@dataclass(slots=True)
class Conversion:
    """What became of a file or a folder."""

    written: list[Written] = field(default_factory=list)
    failed: list[Unreadable] = field(default_factory=list)
    """Files that could not be used, and why. For a volume that could not be made, its first file."""


class SliceError(ImageError):
    """A slice of a volume cannot be used, so the volume cannot be made."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


def prepare_folder(source: Path, target: Path) -> None:
    """Make the folder for outputs, unless it is in the folder of inputs, where it would become input of the next run."""
    with os_errors(f"use {target}"):
        inner, outer = target.resolve(), source.resolve()
    if inner == outer or outer in inner.parents:
        raise UsageError(f"the output would be written into {source}", hint="name a place outside of the input")
    make_private_folder(target)


def stop_if_hopeless(error: SmpError) -> None:
    """Raise an error that would befall every other file, too."""
    if isinstance(error, NoSpaceError):
        raise error
