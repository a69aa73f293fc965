"""DICOM series as NIfTI volumes: where they go, and the start of dcm2niix.

This module is quick to import: dcm2niix works while the parser of DICOM and the rest of nifti_files.py are still being loaded.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from secure_media_processor.core.files import make_private_folder, os_errors
from secure_media_processor.medical.convert.dcm2niix import Dcm2niix, dcm2niix_path
from secure_media_processor.medical.convert.outcome import prepare_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.convert.outcome import Conversion, Progress

Engine: TypeAlias = Literal["auto", "dcm2niix", "own"]
"""What makes NIfTI volumes: dcm2niix, our own geometry, or dcm2niix where it is installed and makes something of a series."""


def convert_to_nifti(
    source: Path,
    target: Path,
    *,
    engine: Engine = "auto",
    gzip: bool = True,
    overwrite: bool = False,
    identities: Sequence[Identity] = (),
    progress: Progress | None = None,
) -> Conversion:
    """Write DICOM series as NIfTI volumes, each with a JSON file (see sidecar), and .bval and .bvec where there are gradients.

    Args:
        source: A DICOM file, or a folder; files may be encrypted.
        target: A folder, which is made if it is missing; or, for what is a single volume, a name that ends in .nii or .nii.gz.
            In a folder the volumes are ``series-001.nii.gz`` and so on; further ones of a series have what dcm2niix appends,
            such as ``series-001_e2.nii.gz``, or a number.
        engine: See Engine. dcm2niix reads from the disk, so it gets no encrypted files: with "auto" a series that has any goes
            to the own engine, with "dcm2niix" it is refused.
        gzip: Whether volumes in a folder are compressed.
        overwrite: Whether files that exist are replaced.
        identities: Keys that open encrypted files, in memory only.
        progress: See Progress.

    Raises:
        MissingExtraError: dcm2niix is asked for and not installed.
        SmpError: nothing can be done at all; what is wrong with single files and series stands in the result.
    """
    naming = _naming(source, target, gzip=gzip, overwrite=overwrite)
    with _private_folder(target.parent if naming.single else target) as private:
        own = engine == "own" or (engine == "auto" and dcm2niix_path() is None)
        with nullcontext() if own else Dcm2niix(private) as run:
            if run is not None:
                run.start(_files_below(source))
            from secure_media_processor.medical.convert.nifti_files import write_volumes  # noqa: PLC0415 - see above

            return write_volumes(source, naming, run, engine=engine, identities=identities, progress=progress)


@dataclass(slots=True)
class Naming:
    """Where volumes go."""

    target: Path
    single: bool
    gzip: bool
    overwrite: bool
    used: Counter[str] = field(default_factory=Counter)

    def stem(self, number: int, suffix: str) -> Path:
        """Return the path of a volume without .nii or .nii.gz; no two are the same."""
        if self.single:
            return self.target.with_name(self.target.name.removesuffix(".gz").removesuffix(".nii"))
        name = f"series-{number:03d}{suffix}"
        self.used[name] += 1
        return self.target / (name if self.used[name] == 1 else f"{name}-{self.used[name]}")

    def volume(self, stem: Path) -> Path:
        """Return the path of the volume itself."""
        return stem.with_name(f"{stem.name}.nii{'.gz' if self.gzip else ''}")


def _naming(source: Path, target: Path, *, gzip: bool, overwrite: bool) -> Naming:
    """Return where volumes go, and make the folder for them."""
    single = target.name.endswith((".nii", ".nii.gz")) and not target.is_dir()
    folder = target.parent if single else target
    if source.is_dir():
        prepare_folder(source, folder)
    elif not single:
        make_private_folder(folder)
    return Naming(target, single=single, gzip=target.name.endswith(".gz") if single else gzip, overwrite=overwrite)


def _files_below(source: Path) -> list[Path]:
    """Return the regular files, and links to such, that read_folder would read, in any order."""
    if not source.is_dir():
        return [source]
    return [path for folder, _, names in os.walk(source) for name in names if (path := Path(folder, name)).is_file()]


@contextmanager
def _private_folder(folder: Path) -> Iterator[Path]:
    """Yield a new hidden folder in `folder`, mode 0700, that is removed with all that is in it."""
    with os_errors(f"write into {folder}"):
        path = Path(tempfile.mkdtemp(prefix=".smp-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path)
