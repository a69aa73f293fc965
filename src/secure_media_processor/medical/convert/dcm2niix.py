"""Running dcm2niix, which knows the ways of the scanners: mosaics, gradients, tilted gantries, private headers.

It gets links to the files in a private folder, and writes into another one. What it writes holds more than it should: a time in
`descrip`, a comment in `aux_file`, names in the JSON. All of that is taken out before a file gets its final name.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from secure_media_processor.core.container import MAGIC
from secure_media_processor.core.files import os_errors
from secure_media_processor.errors import ImageError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path
    from types import TracebackType

_MARK_AT, _MARK = 128, b"DICM"  # PS3.10 section 7.1
_HEADER_SIZE = 348
_EXTENDED_AT = 352
# Fields of the NIfTI-1 header in which text may stand: data_type and db_name, descrip and aux_file, intent_name.
_TEXTS = ((4, 32), (148, 252), (328, 344))
_DIM_AT, _BITPIX_AT, _OFFSET_AT = 40, 72, 108
# What dcm2niix appends to a name, as far as it tells of the image. A coil's name is free text and not among them.
_SUFFIX = re.compile(
    r"(?:_(?:e\d{1,3}|ph|real|imaginary|magnitude|phMag|Eq|Tilt|MoCo|ADC|ROI\d{1,4}|i\d{1,6}|t\d{1,6}|\d{1,4}))*[a-z]{0,2}"
)


@dataclass(frozen=True, slots=True)
class Produced:
    """A volume that dcm2niix has written, without what could identify anybody."""

    volume: Path
    """NIfTI file, not compressed."""
    series_instance_uid: str
    suffix: str
    """What it has appended to the name, such as "_e2" for the second echo; empty for the first volume."""
    fields: dict[str, object]
    """For the sidecar."""
    gradients: tuple[Path, ...]
    """The files .bval (s/mm²) and .bvec (unit vectors in the axes of the image), or none."""


def dcm2niix_path() -> str | None:
    """Return the path of the program that the Python package brings along; None if that is not installed."""
    try:
        import dcm2niix  # type: ignore[import-untyped]  # noqa: PLC0415 - an optional part
    except ImportError:
        return None
    return str(dcm2niix.bin)


class Dcm2niix:
    """One run over some files, beside which the caller can do something else."""

    def __init__(self, private: Path) -> None:
        """Make a run that works in `private`, an empty folder of mode 0700."""
        program = dcm2niix_path()
        if program is None:
            raise MissingExtraError("dcm2niix is not installed", hint="pip install 'secure-media-processor[medical]'")
        self._program = program
        private = private.resolve()  # it is started in another folder
        self._home, self._input, self._output = private / "home", private / "in", private / "out"
        self._process: subprocess.Popen[bytes] | None = None
        self._links: dict[Path, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def start(self, files: Iterable[Path]) -> None:
        """Start it on those of the files that have the mark of DICOM, and are not encrypted."""
        with os_errors("prepare dcm2niix"):
            for folder in (self._home, self._input, self._output):
                folder.mkdir(mode=0o700)
            folders: dict[Path, Path] = {}
            for number, path in enumerate(path for path in files if _marked(path)):
                folder = folders.get(path.parent) or folders.setdefault(path.parent, path.parent.resolve())
                link = self._input / f"{number:07d}.dcm"
                link.symlink_to(folder / path.name)
                self._links[path] = link
            self._run()

    def leave_out(self, files: Collection[Path]) -> None:
        """Start again without `files`, if it has any of them."""
        bad = [path for path in files if path in self._links]
        if not bad:
            return
        self._stop()
        with os_errors("prepare dcm2niix"):
            for path in bad:
                self._links.pop(path).unlink()
            for path in self._output.iterdir():
                path.unlink()
            self._run()

    def finish(self, uids: Collection[str]) -> list[Produced]:
        """Wait for its end, and return what it has made of the series with these SeriesInstanceUIDs, in order of the names.

        Returns:
            Nothing if it crashed: what it was writing cannot be told from what it had finished.
        """
        if self._process is None or self._process.wait() < 0:
            return []
        found = []
        # A UID may be the beginning of another one.
        by_length = sorted(uids, key=len, reverse=True)
        with os_errors("read what dcm2niix wrote"):
            for path in sorted(self._output.glob("*.nii")):
                uid = next((uid for uid in by_length if path.name.startswith(uid)), None)
                if uid is not None:
                    found.append(self._cleaned(path, uid))
        return found

    def _cleaned(self, path: Path, uid: str) -> Produced:
        from secure_media_processor.medical.convert.sidecar import read_fields  # noqa: PLC0415 - needs pydicom; see nifti.py

        _clean_header(path)
        sidecar = path.with_suffix(".json")
        gradients = [path.with_suffix(kind) for kind in (".bval", ".bvec")]
        fields = read_fields(sidecar) if sidecar.exists() else {}
        suffix = path.name.removeprefix(uid).removesuffix(".nii")
        known = suffix if _SUFFIX.fullmatch(suffix) else "_other"
        return Produced(path, uid, known, fields, tuple(gradients) if all(one.exists() for one in gradients) else ())

    def _run(self) -> None:
        options = ["-b", "y", "-ba", "y", "-c", "", "-z", "n", "-f", "%j", "-o", str(self._output)]
        # Its own home: settings that somebody has left in theirs do not count.
        self._process = subprocess.Popen(  # noqa: S603 - a program of the package, a list of arguments, no shell
            [self._program, *options, str(self._input)],
            env={"HOME": str(self._home), "PATH": os.defpath, "LC_ALL": "C"},
            cwd=self._home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # it tells names
            stderr=subprocess.DEVNULL,
            umask=0o077,
        )

    def _stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _marked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            begin = file.read(_MARK_AT + len(_MARK))
    except OSError:  # whoever reads the headers reports it
        return False
    return begin[_MARK_AT:] == _MARK and not begin.startswith(MAGIC)


def _clean_header(path: Path) -> None:
    """Empty all texts of a NIfTI-1 file, and what is between header and voxels. Raises ImageError if it is not complete."""
    with path.open("r+b") as file:
        header = bytearray(file.read(_EXTENDED_AT))
        if len(header) < _EXTENDED_AT or struct.unpack_from("<i", header)[0] != _HEADER_SIZE:
            raise ImageError("dcm2niix has written something else than a NIfTI-1 file")
        count, *sizes = struct.unpack_from("<8h", header, _DIM_AT)
        voxels = 1
        for size in sizes[:count]:
            voxels *= max(size, 1)
        offset = max(int(struct.unpack_from("<f", header, _OFFSET_AT)[0]), _EXTENDED_AT)
        (bits,) = struct.unpack_from("<h", header, _BITPIX_AT)
        if path.stat().st_size < offset + voxels * bits // 8:
            raise ImageError("dcm2niix has not written all of a volume; the disk may be full")
        for start, end in _TEXTS:
            header[start:end] = bytes(end - start)
        header[_HEADER_SIZE:_EXTENDED_AT] = bytes(_EXTENDED_AT - _HEADER_SIZE)
        struct.pack_into("<f", header, _OFFSET_AT, float(offset))
        file.seek(0)
        file.write(header + bytes(offset - _EXTENDED_AT))
