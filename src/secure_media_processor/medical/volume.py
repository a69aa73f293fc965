"""A volume in memory: values, and where each of them lies in the patient.

An array has the shape (i, j, k), i fastest in memory as in NIfTI, and its values are measured ones: slope and intercept are
applied. Coordinates are millimetres, RAS; DICOM's LPS is turned round on reading. Nothing here writes a decrypted file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.orientations import apply_orientation

from secure_media_processor.core.files import atomic_write, os_errors
from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.convert.gzipping import write_gzip
from secure_media_processor.medical.convert.outcome import SliceError
from secure_media_processor.medical.convert.volume import LONGEST_AXIS, measured_slices, nifti_header, volumes_of
from secure_media_processor.medical.dicom.geometry import lps_to_ras
from secure_media_processor.medical.dicom.reader import Unreadable, open_dicom, read_folder, read_instance
from secure_media_processor.medical.dicom.series import group_into_series
from secure_media_processor.medical.grid import (
    MAX_VOXELS,
    ORIENTATIONS,
    SAME_GRID,
    Grid,
    same_grid,
    slabs_of,
    turn_to,
    turned_grid,
)
from secure_media_processor.medical.nifti import DICM_AT, is_nifti, open_nifti, put_values, read_voxels, refuse_bad_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.dicom.reader import Instance
    from secure_media_processor.medical.dicom.series import Stack
    from secure_media_processor.medical.grid import Array
    from secure_media_processor.medical.resampling import Interpolation

__all__ = [
    "MAX_VOXELS",
    "ORIENTATIONS",
    "SAME_GRID",
    "Grid",
    "Volume",
    "read_grid",
    "read_slices",
    "read_stack",
    "read_volume",
    "refuse_other_names",
    "reoriented",
    "resampled",
    "same_grid",
    "stack_grid",
    "write_volume",
]

_ALIGNED = 2  # NIfTI code


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """Values on a grid."""

    array: Array = field(repr=False)
    """(i, j, k), any real type; measured values, in the unit of the source (CT: HU)."""
    grid: Grid
    frame_of_reference_uid: str | None = None
    """DICOM FrameOfReferenceUID (0020,0052) where it is known: coordinates can be compared where it is the same."""
    modality: str | None = None
    """DICOM Modality (0008,0060), such as "MR", where it is known."""
    notes: tuple[str, ...] = ()
    """What whoever uses the volume should be told of how it was read, without anything of the patient's."""

    def __post_init__(self) -> None:
        """Raise ImageError if the array is not of the shape of the grid."""
        if self.array.shape != self.grid.shape:
            raise ImageError(f"an array of shape {self.array.shape} does not lie on a grid of {self.grid.shape}")


# ----------------------------------------------------------------------------------------------------------------- reading


def read_volume(path: Path, *, identities: Sequence[Identity] = (), dtype: DTypeLike = np.float32) -> Volume:
    """Read one volume: a NIfTI file (.nii, .nii.gz), or a DICOM file or folder that holds one regular volume.

    Files may be encrypted (SMP1); they are decrypted in memory, piece by piece. Where a NIfTI file names no space, its voxels
    are placed along the axes by their spacing alone, and `notes` say so.

    Args:
        path: The file or folder; what it is is seen from its content, not from its name.
        identities: Keys that open encrypted files.
        dtype: Of the array. float32 loses nothing of integers up to 24 bits; with a type of integers, such as for labels,
            values that are not whole or do not fit are refused.

    Raises:
        ImageError: it is damaged, no volume (four axes, colours), larger than MAX_VOXELS, or holds values that are no numbers
            (NaN, infinity; how many is said).
        KeyMissingError, IntegrityError: it is encrypted, and cannot be opened.
        MissingError, FileAccessError: it cannot be read.
    """
    if not is_nifti(path, identities):
        return read_stack(path, _one_stack(path, identities)[0], identities=identities, dtype=dtype)
    with open_nifti(path, identities) as (file, header):
        array = read_voxels(path, file, header, np.dtype(dtype))
        return Volume(array, header.grid, notes=header.notes)


def read_grid(path: Path, *, identities: Sequence[Identity] = ()) -> Grid:
    """Return the grid of the volume that read_volume would read, by headers alone. Raises as that does."""
    if not is_nifti(path, identities):
        return _one_stack(path, identities)[1]
    with open_nifti(path, identities) as (_, header):
        return header.grid


def _one_stack(path: Path, identities: Sequence[Identity]) -> tuple[Stack, Grid]:
    """Return the one volume in a DICOM file or folder. Raises ImageError if there is none, several, or an irregular one."""
    volumes = [
        volume
        for series in group_into_series(read_slices(path, identities=identities))
        for volume in volumes_of(series)
        if volume[0].rows is not None
    ]
    if not volumes:
        raise ImageError(f"{path} holds no DICOM images")
    if len(volumes) > 1:
        hint = "name the folder of one series; `smp medical dicom-info` lists them"
        raise ImageError(f"{path} holds {len(volumes)} volumes, and one is wanted", hint=hint)
    stacks = volumes[0]
    if len(stacks) > 1:
        hint = "`smp medical convert --format nifti` keeps all of them; take one of these"
        raise ImageError(f"{path} holds a volume at {len(stacks)} points in time, and one volume is wanted", hint=hint)
    return stacks[0], stack_grid(path, stacks[0])


def read_slices(path: Path, *, identities: Sequence[Identity] = ()) -> tuple[Instance, ...]:
    """Return the headers of a DICOM file, or of all in a folder, for volumes in which no slice may be missing.

    What is plainly no image may lie beside them: a DICOMDIR, a text, a program (Unreadable.beside), and files that are not
    empty and have no mark of DICOM.

    Raises:
        ImageError, KeyMissingError, IntegrityError: a file that may be a slice cannot be read, or a folder among them.
        MissingError, FileAccessError: `path` itself cannot be read.
    """
    if not path.is_dir():
        found = read_instance(path, identities=identities)
        if isinstance(found, Unreadable):
            raise ImageError(f"{path}: {found.reason}")
        return (found,)
    contents = read_folder(path, identities=identities)
    for one in contents.unreadable:
        if not one.beside:
            _refuse_lost_slice(one, identities)
    return contents.instances


def _refuse_lost_slice(one: Unreadable, identities: Sequence[Identity]) -> None:
    """Raise if what cannot be read may be a slice: without it the volume would be shorter, and nobody would know."""
    with os_errors(f"read {one.path}"):
        if one.path.is_file():
            with open_dicom(one.path, identities) as file:
                head = file.read(DICM_AT + 4)
            if head and head[DICM_AT:] != b"DICM":
                return
    raise ImageError(f"{one.path}: {one.reason}", hint="a volume is made only if all of its slices can be read")


def stack_grid(path: Path, stack: Stack) -> Grid:
    """Return where the voxels of a stack of images lie. Raises ImageError if they are no regular grid, naming `path`."""
    if stack.problems or stack.affine is None:
        reasons = "; ".join(problem.text for problem in stack.problems) or "its geometry is not known"
        raise ImageError(f"{path}: no regular volume: {reasons}")
    return Grid((stack.columns or 0, stack.rows or 0, len(stack.slices)), np.array(lps_to_ras(stack.affine)))


def read_stack(path: Path, stack: Stack, *, identities: Sequence[Identity] = (), dtype: DTypeLike = np.float32) -> Volume:
    """Read the voxels of a stack of images. Arguments and what is raised are those of read_volume; `path` is for messages."""
    wanted = np.dtype(dtype)
    grid = stack_grid(path, stack)
    array = np.empty(grid.shape, wanted, order="F")
    exact = np.float64 if wanted != np.float32 else np.float32
    bad = 0
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is counted
            for k, pixels in enumerate(measured_slices(stack, exact, identities=identities)):
                bad += put_values(array[:, :, k], pixels.T, path)
    except SliceError as error:
        raise ImageError(f"{error.path}: {error}", hint=error.hint) from error
    refuse_bad_values(path, bad, array.size)
    first = stack.slices[0].instance
    return Volume(array, grid, first.frame_of_reference_uid or None, first.modality or None)


# ----------------------------------------------------------------------------------------------------------------- writing


def write_volume(volume: Volume, target: Path, *, overwrite: bool, description: str = "") -> None:
    """Write a volume as NIfTI-1, mode 0600, all or nothing; nothing of the patient's stands in the header.

    Booleans become uint8, and integers of 64 bits the smallest type that holds them. A volume whose space is not known is
    written as "aligned to something" (code 2), since its affine would be ignored otherwise.

    Args:
        volume: The volume.
        target: A name that ends in .nii, or in .nii.gz for a compressed file.
        overwrite: Whether a file that exists is replaced.
        description: For the header's field of that name, at most 79 characters of ASCII.

    Raises:
        UsageError: the name ends in something else.
        ImageError: an axis is longer than NIfTI-1 allows.
        ExistsError, NoSpaceError, FileAccessError, MissingError: as the system says.
    """
    refuse_other_names(target)
    dtype = _written_type(volume.array)
    if max(volume.grid.shape) > LONGEST_AXIS:
        raise ImageError(f"an axis has more than {LONGEST_AXIS} voxels, which NIfTI-1 cannot hold")
    code = volume.grid.code if volume.grid.code > 0 else _ALIGNED
    header = nifti_header(volume.grid.shape, volume.grid.affine, dtype, code=code, description=description)
    with atomic_write(target, overwrite=overwrite) as file:
        chunks = _file(header, volume.array, dtype)
        if target.name.lower().endswith(".gz"):
            write_gzip(chunks, file)
        else:
            for chunk in chunks:
                file.write(chunk)


def refuse_other_names(target: Path) -> None:
    """Raise UsageError unless the name is that of a NIfTI file."""
    if not target.name.lower().endswith((".nii", ".nii.gz")):
        raise UsageError(f"{target}: a volume is written as NIfTI", hint="end the name in .nii.gz or .nii")


def _written_type(array: Array) -> np.dtype[Any]:
    if array.dtype == np.bool_:
        return np.dtype(np.uint8)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:  # noqa: PLR2004 - bytes
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        names = (name for name in ("u1", "<i2", "<u2", "<i4", "<u4") if _fits(low, high, np.dtype(name)))
        return np.dtype(next(names, "<i8" if array.dtype.kind == "i" else "<u8"))
    if array.dtype == np.float16:
        return np.dtype("<f4")
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:  # noqa: PLR2004 - as above
        raise ImageError(f"values of type {array.dtype.name} cannot be written")
    return array.dtype.newbyteorder("<")


def _fits(low: int, high: int, dtype: np.dtype[Any]) -> bool:
    return bool(np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max)


def _file(header: bytes, array: Array, dtype: np.dtype[Any]) -> Iterator[bytes]:
    yield header
    for first, last in slabs_of(array.shape):
        yield array[:, :, first:last].astype(dtype).tobytes(order="F")


# ------------------------------------------------------------------------------------------------------- turning, resampling


def reoriented(volume: Volume, orientation: str = "RAS") -> Volume:
    """Turn a volume so that its axes run as `orientation` says, by flips and permutations only: no value changes.

    ``reoriented(turned, volume.grid.orientation)`` undoes it, bit by bit.

    Args:
        volume: The volume.
        orientation: One of ORIENTATIONS, such as "RAS" or "LPS".

    Returns:
        A volume with an array of its own, i fastest; the same one if there is nothing to turn.

    Raises:
        UsageError: that is no orientation.
    """
    turn = turn_to(volume.grid, orientation)
    if turn is None:
        return volume
    array = np.asfortranarray(apply_orientation(volume.array, turn))
    return replace(volume, array=array, grid=turned_grid(volume.grid, turn))


def resampled(volume: Volume, grid: Grid, *, interpolation: Interpolation = "linear", fill: float = 0.0) -> Volume:
    """Return the volume on another grid: the value at each place is the same, as far as both grids can tell.

    Interpolation is scipy's spline of order 0, 1 or 3, with values mirrored at the outer faces. Where the new grid is coarser
    an image is smoothed first by the Gaussian of Cardoso et al., "Scale factor point spread function matching: beyond aliasing
    in image resampling" (MICCAI 2015), the rule of torchio: sigma = sqrt((r² - 1) / (8 ln 2)) voxels along an axis on which the
    new voxels are r times as large. "nearest" smooths nothing and invents no value: it is for labels. In what order a file
    keeps its axes has no influence on the result.

    Memory: besides both arrays, a copy of the first one as float32 if it is smoothed or the interpolation is cubic.

    Args:
        volume: The volume.
        grid: Where values are wanted.
        interpolation: How they are found between voxels.
        fill: The value outside of the field of view.

    Returns:
        An array of the type of `volume` for "nearest", else of float32.
    """
    if same_grid(volume.grid, grid):
        return replace(volume, grid=grid)
    from secure_media_processor.medical.resampling import resampled_array  # noqa: PLC0415 - scipy loads half a second

    return replace(volume, array=resampled_array(volume.array, volume.grid, grid, interpolation, fill), grid=grid)
