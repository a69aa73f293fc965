"""The average of many T1-weighted heads, and what of it is face. Both are data of the package pydeface (MIT licence).

Nothing of that package runs; its two files are read, and only if they are the very ones that were tried.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nibabel.nifti1 import Nifti1Image

from secure_media_processor.core.files import open_source, os_errors
from secure_media_processor.errors import IntegrityError, MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# File in the package → its SHA-256 in version 2.1.0.
_HEAD = ("pydeface/data/mean_reg2mean.nii.gz", "fdc13571d66293f9919648cd8de9a7b3491b12175e09336353d2c9ce0466ecb6")
_FACE = ("pydeface/data/facemask.nii.gz", "8cba52c32c02e0cc28dd47606f6ef581b9c9804f1ae9d412da5a4addc57f0068")
_MOST_BYTES = 1 << 24
_INSTALL = "pip install --no-deps pydeface==2.1.0 (its data alone are used), and 'secure-media-processor[medical]'"


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """A head of which it is known where its face is."""

    head: NDArray[np.float32]
    """T1-weighted intensities, shape (i, j, k), to the right, front and top."""
    face: NDArray[np.bool_]
    """Shape as `head`: what is to be painted over."""
    affine: NDArray[np.float64]
    """(4, 4): voxel (i, j, k) → mm, LPS as DICOM has it."""


@cache
def read_template() -> Template:
    """Return the template.

    Raises:
        MissingExtraError: pydeface is not installed.
        IntegrityError: its data are others than those that were tried.
    """
    head, face = (Nifti1Image.from_bytes(gzip.decompress(_data(*one))) for one in (_HEAD, _FACE))
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    return Template(
        np.asarray(head.dataobj, dtype=np.float32),
        np.asarray(face.dataobj) == 0,  # the file marks what is to be kept
        to_lps @ np.asarray(head.affine, dtype=np.float64),
    )


def _data(name: str, digest: str) -> bytes:
    try:
        path = Path(str(distribution("pydeface").locate_file(name)))
    except PackageNotFoundError:
        raise MissingExtraError("the head template of pydeface is not installed", hint=_INSTALL) from None
    with os_errors(f"read {path}"), open_source(path) as file:
        data = file.read(_MOST_BYTES)
    if sha256(data).hexdigest() != digest:
        raise IntegrityError("the head template of pydeface is not the one that was tried", hint=_INSTALL)
    return data
