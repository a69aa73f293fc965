"""Reading NIfTI files under limits: headers are checked before anything is allocated, and voxels come slab by slab.

A file may be compressed and encrypted; it is inflated and decrypted in memory, piece by piece.
"""

from __future__ import annotations

import gzip
import stat
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from nibabel import Nifti1Header, Nifti2Header

from secure_media_processor.core.files import os_errors
from secure_media_processor.errors import ImageError, MissingError, UsageError
from secure_media_processor.medical.convert.decoding import foreign_data
from secure_media_processor.medical.dicom.reader import open_dicom
from secure_media_processor.medical.grid import MAX_VOXELS, Grid, slabs_of, usable_affine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.grid import Affine, Array, Shape

DICM_AT = 128
"""Where a DICOM file has its mark."""
_AXES = 3
_ENDINGS = (".nii.gz", ".nii")
_ENCRYPTED = ".smp"
_GZIP_MAGIC = b"\x1f\x8b"
_NIFTI_SIZES = {348: (Nifti1Header, b"n+1\0", b"ni1\0"), 540: (Nifti2Header, b"n+2\0", b"ni2\0")}
_MAGIC_AT = {348: 344, 540: 4}
_MAX_EXTENSIONS = 64 * 1024**2  # bytes between header and voxels
_MAX_TRAILING = 1024**2
# A byte of deflated data stands for at most 1,032 bytes (RFC 1951: 258 bytes for two bits).
_MOST_INFLATED = 1032
_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown, m, mm, µm
_UNKNOWN_SPACE = 0  # NIfTI code


@dataclass(frozen=True, slots=True)
class NiftiHeader:
    """What is needed of a NIfTI header."""

    grid: Grid
    dtype: np.dtype[Any]
    """Of the stored voxels."""
    slope: float
    intercept: float
    notes: tuple[str, ...]


def is_nifti(path: Path, identities: Sequence[Identity]) -> bool:
    """Return whether it is a NIfTI file, not a folder or a file of DICOM. Raises what keeps it from being read."""
    with os_errors(f"read {path}"):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return False
        if not stat.S_ISREG(mode):
            raise ImageError(f"{path} is not a file")
        with open_dicom(path, identities) as file:
            head = file.read(DICM_AT + 4)
    if head[DICM_AT:] == b"DICM":
        return False
    if head[:2] == _GZIP_MAGIC or _size_in(head) is not None:
        return True
    raise ImageError(f"{path} is neither NIfTI nor DICOM")


def case_name(path: Path) -> str | None:
    """Return the name of a NIfTI file without .nii, .nii.gz and .smp; None for other files, and for those that are hidden."""
    name = path.name.removesuffix(_ENCRYPTED)
    if name.startswith("."):
        return None
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), None)


def files_by_name(folder: Path) -> dict[str, Path]:
    """Return the NIfTI files of a folder by their case_name, in order of their file names; other files are left alone.

    Raises:
        UsageError: two files have one name.
        MissingError: there are none, or no folder.
        FileAccessError: it cannot be read.
    """
    found: dict[str, Path] = {}
    with os_errors(f"read {folder}"):
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    for path in paths:
        name = case_name(path)
        if name is None:
            continue
        if name in found:
            raise UsageError(f"{found[name]} and {path} have one name", hint="keep one of them, or give it another name")
        found[name] = path
    if not found:
        hint = "check the path; names end in .nii or .nii.gz, those of encrypted ones in .smp after that"
        raise MissingError(f"there is no NIfTI file in {folder}", hint=hint)
    return found


def _size_in(head: bytes) -> int | None:
    """Return the size of the NIfTI header that begins with these bytes; None if it is none."""
    sizes = (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
    return next((size for size in sizes if size in _NIFTI_SIZES), None)


@contextmanager
def open_nifti(path: Path, identities: Sequence[Identity]) -> Iterator[tuple[BinaryIO, NiftiHeader]]:
    """Yield an open NIfTI file that stands at its voxels, and its header."""
    with os_errors(f"read {path}"), open_dicom(path, identities) as stored, foreign_data(f"{path} is a damaged NIfTI file"):
        packed = stored.read(2) == _GZIP_MAGIC
        size = stored.seek(0, 2)
        stored.seek(0)
        if not packed:
            yield stored, _nifti_header(path, stored, size)
            return
        with closing(gzip.GzipFile(fileobj=stored, mode="rb")) as unpacked:
            yield cast("BinaryIO", unpacked), _nifti_header(path, cast("BinaryIO", unpacked), size * _MOST_INFLATED)


def _nifti_header(path: Path, file: BinaryIO, most: int) -> NiftiHeader:
    """Read the header and go to the voxels. `most` is how many bytes the file can hold."""
    try:
        header, size = _raw_header(file)
        shape = _one_volume(tuple(int(length) for length in header.get_data_shape()))
        dtype = _stored_type(header)
        start = _start_of_voxels(header, size, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, most)
        slope, intercept = header.get_slope_inter()
        affine, code, notes = _placed(header, shape)
        _skip(file, start - size)
    except ImageError as error:
        raise ImageError(f"{path}: {error}", hint=error.hint) from error
    return NiftiHeader(Grid(shape, affine, code), dtype, 1.0 if slope is None else slope, intercept or 0.0, notes)


def _raw_header(file: BinaryIO) -> tuple[Any, int]:
    """Return nibabel's header, unchecked, and its size in bytes."""
    head = file.read(4)
    size = _size_in(head)
    if size is None:
        raise ImageError("it is not a NIfTI file")
    block = head + file.read(size - 4)
    if len(block) < size:
        raise ImageError("it is cut short")
    kind, single, pair = _NIFTI_SIZES[size]
    magic = block[_MAGIC_AT[size] : _MAGIC_AT[size] + 4]
    if magic == pair:
        raise ImageError("it is one of a pair of files (.hdr and .img), which are not read")
    if magic != single:
        raise ImageError("it has no NIfTI mark")
    made: Any = kind
    return made(block, check=False), size


def _start_of_voxels(header: Any, size: int, count: int, most: int) -> int:
    """Return where the voxels begin, of which there are `count` bytes in a file that can hold `most`."""
    offset = float(header["vox_offset"])
    if not size <= offset <= size + _MAX_EXTENSIONS or offset != int(offset):
        raise ImageError("it does not say where its voxels begin")
    if offset + count > most:
        raise ImageError("it is cut short: it cannot hold as many voxels as its header announces")
    return int(offset)


def _one_volume(shape: tuple[int, ...]) -> Shape:
    """Return the shape with axes of length 1 added or left out at its end. Raises ImageError if it is no volume."""
    if not shape or min(shape) < 1 or any(size != 1 for size in shape[_AXES:]):
        raise ImageError(f"it is not one volume: its shape is {' by '.join(map(str, shape))}")
    i, j, k = (*shape, 1, 1)[:_AXES]
    if float(i) * j * k > MAX_VOXELS:
        raise ImageError(f"it claims {i} by {j} by {k} voxels, more than what is read ({MAX_VOXELS})")
    return (i, j, k)


def _stored_type(header: Any) -> np.dtype[Any]:
    """Return the type of the stored voxels. Raises ImageError for colours, complex numbers and what is not known."""
    code = int(header["datatype"])
    known = header._data_type_codes.dtype  # noqa: SLF001 - get_data_dtype raises the same for many reasons
    dtype: np.dtype[Any] = np.dtype(known.get(code, np.void))
    if dtype.kind not in "iuf":
        raise ImageError("its voxels are not of a type of real numbers")
    return dtype.newbyteorder(header.endianness)


def _placed(header: Any, shape: Shape) -> tuple[Affine, int, tuple[str, ...]]:
    """Return the affine of a NIfTI header in mm, its code, and notes: the sform, else the qform, else the spacing alone.

    NIfTI-1.1, "method 3", "method 2" and "method 1" of orientation. The order is that of nibabel's get_best_affine.
    """
    units = _UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    scale = np.diag((units, units, units, 1.0))
    notes: list[str] = []
    for name, read in (("sform", header.get_sform), ("qform", lambda: header.get_qform(coded=False))):
        code = int(header[f"{name}_code"])
        if code <= 0:
            continue
        try:
            affine = scale @ np.asarray(read(), dtype=np.float64)
        except ValueError:  # a quaternion that is none
            affine = np.zeros((4, 4))
        if usable_affine(affine):
            return affine, code, tuple(notes)
        notes.append(f"its {name} does not lead from voxels to places and was passed over")
    zooms = [float(zoom) for zoom in header["pixdim"][1:4]]
    sides = [
        zoom if np.isfinite(zoom) and zoom > 0 else 1.0 if size == 1 else 0.0 for zoom, size in zip(zooms, shape, strict=True)
    ]
    affine = scale @ np.diag((*sides, 1.0))
    if not usable_affine(affine):
        raise ImageError("its header says neither where its voxels lie nor how large they are")
    notes.append("its header does not say where its voxels lie: its axes are taken for those of the patient (RAS)")
    return affine, _UNKNOWN_SPACE, tuple(notes)


def _skip(file: BinaryIO, count: int) -> None:
    while count > 0:
        read = len(file.read(min(count, _MAX_TRAILING)))
        if not read:
            raise ImageError("it is cut short")
        count -= read


def read_voxels(path: Path, file: BinaryIO, header: NiftiHeader, dtype: np.dtype[Any]) -> Array:
    """Read the voxels in slabs, each slice as it lies in the file."""
    shape = header.grid.shape
    array = np.empty(shape, dtype, order="F")
    slice_size = shape[0] * shape[1]
    bad = 0
    for first, last in slabs_of(shape):
        count = slice_size * (last - first)
        data = file.read(count * header.dtype.itemsize)
        if len(data) < count * header.dtype.itemsize:
            raise ImageError(f"{path}: it is cut short")
        stored = np.frombuffer(data, header.dtype).reshape((*shape[:2], last - first), order="F")
        bad += put_values(array[:, :, first:last], _rescaled(stored, header), path)
    # At the end of compressed data its checksum is compared.
    file.read(_MAX_TRAILING)
    refuse_bad_values(path, bad, array.size)
    return array


def _rescaled(stored: Array, header: NiftiHeader) -> Array:
    if (header.slope, header.intercept) == (1.0, 0.0):
        return stored
    return stored.astype(np.float64) * header.slope + header.intercept


def put_values(target: Array, values: Array, path: Path) -> int:
    """Write values into an array of another type; return how many of them are no numbers there."""
    if target.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what becomes infinite is counted
            target[...] = values
        return int(target.size - np.count_nonzero(np.isfinite(target)))
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            target[...] = 0
            return int(values.size - np.count_nonzero(finite))
        if (np.rint(values) != values).any():
            raise ImageError(f"{path}: its values are not whole numbers")
    if target.dtype.kind in "iu":
        limits = np.iinfo(target.dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise ImageError(f"{path}: its values do not fit into {target.dtype.name}")
    target[...] = values
    return 0


def refuse_bad_values(path: Path, bad: int, size: int) -> None:
    """Raise ImageError if `bad`, what put_values has counted, is not 0."""
    if bad:
        reason = f"{bad} of its {size} voxels are no numbers (NaN, infinity, or too large)"
        raise ImageError(f"{path}: {reason}", hint="find out what they stand for, and write a number in their place")
