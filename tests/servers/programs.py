"""Programs that tests run: those that came with the test environment first, then those of the machine."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def installed(name: str) -> str | None:
    """Return the path of a program, None if it is not installed.

    Wheels put programs beside the interpreter, and that folder is on nobody's PATH unless the environment was activated.
    """
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]))
