"""Model packages by their path, or by the name of one that was installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_media_processor.core.config import get_settings

if TYPE_CHECKING:
    from pathlib import Path


def package_path(given: Path) -> Path:
    """Return where a package is: `given` itself, or if there is no such path, the installed model of that name."""
    installed = get_settings().models / given
    return installed if given.name == str(given) and not given.exists() and installed.exists() else given
