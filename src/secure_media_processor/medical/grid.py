"""Where voxels lie: matrices from voxels to the patient, how axes run, and whether two grids are one.

Coordinates are millimetres, RAS (x grows to the patient's right, y to the front, z to the head), those of the centres of
voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from nibabel.orientations import aff2axcodes, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.convert.volume import LONGEST_AXIS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"
Affine: TypeAlias = "NDArray[np.float64]"
Shape: TypeAlias = tuple[int, int, int]
Spacing: TypeAlias = tuple[float, float, float]
Turn: TypeAlias = "NDArray[np.float64]"
"""nibabel's description of how axes are permuted and flipped."""

MAX_VOXELS = 1 << 31
"""What claims more is not read: 2,048 slices of 1,024 by 1,024 voxels, 8 GiB as float32."""
SAME_GRID = 1e-3
"""mm by which two grids may differ anywhere in their field of view and still be one."""
ORIENTATIONS = tuple("".join(ends) for axes in permutations(("LR", "PA", "IS")) for ends in product(*axes))
"""The 48 ways in which axes can run, each named by the ends to which the indices i, j, k grow."""

_AXES = 3
_SLAB_VOXELS = 1 << 18  # worked on at a time
_SINGULAR = 1e-9  # of the product of spacings


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Where the voxels of an array lie. Compared with same_grid."""

    shape: Shape
    """Voxels along i, j, k."""
    affine: Affine
    """(4, 4), float64: voxel (i, j, k) to mm, RAS, centre of the voxel. Not to be written to."""
    code: int = 1
    """What coordinates are, as NIfTI counts: 0 unknown, 1 of the scanner, 2 aligned to something, 3 Talairach, 4 MNI 152."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ImageError: they are no grid.
        """
        shape = tuple(int(size) for size in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != _AXES or min(shape) < 1:
            raise ImageError(f"{' by '.join(map(str, shape))} voxels are no volume")
        if np.prod(shape, dtype=np.float64) > MAX_VOXELS:
            raise ImageError(f"{' by '.join(map(str, shape))} voxels are more than what is worked on ({MAX_VOXELS})")
        if not usable_affine(affine):
            raise ImageError("the affine does not lead from voxels to places")
        affine[3] = (0, 0, 0, 1)
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> Spacing:
        """Mm between the centres of voxels along i, j, k."""
        x, y, z = (float(size) for size in np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)))
        return (x, y, z)

    @property
    def orientation(self) -> str:
        """The ends of the patient to which i, j, k grow, such as "RAS"; for oblique axes the nearest ones."""
        return "".join(aff2axcodes(self.affine))

    @property
    def size(self) -> int:
        """The number of voxels."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def voxel_volume(self) -> float:
        """mm³ of a voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def with_spacing(self, spacing: Sequence[float]) -> Grid:
        """Return a grid over the same field of view with another spacing.

        The centre stays, and so do the outer faces as nearly as whole voxels allow: to half a new voxel.

        Args:
            spacing: mm along i, j, k.

        Raises:
            UsageError: these are no spacings.
            ImageError: there would be too many voxels.
        """
        wanted = np.asarray(spacing, dtype=np.float64)
        if wanted.shape != (_AXES,) or not np.isfinite(wanted).all() or (wanted <= 0).any():
            raise UsageError("a spacing is three numbers above 0, in mm", hint="for example --spacing 1,1,1")
        lengths = np.array(self.shape) * self.spacing
        sizes = np.maximum(1, np.rint(lengths / wanted))
        if sizes.max() > LONGEST_AXIS or sizes.prod() > MAX_VOXELS:
            raise ImageError(f"a spacing of {' by '.join(f'{size:g}' for size in wanted)} mm makes too many voxels")
        affine = np.array(self.affine)
        affine[:3, :3] *= wanted / self.spacing
        affine[:3, 3] += self.affine[:3, :3] @ ((np.array(self.shape) - 1) / 2) - affine[:3, :3] @ ((sizes - 1) / 2)
        i, j, k = (int(size) for size in sizes)
        return Grid((i, j, k), affine, self.code)


def usable_affine(affine: Affine) -> bool:
    """Return whether a matrix leads from voxels to places: finite, and no axis lies in the plane of the others."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return False
    sides = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if not ((sides > 1e-6) & (sides < 1e6)).all():  # noqa: PLR2004 - mm; a nanometre and a kilometre
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / sides)) > _SINGULAR)


def same_grid(a: Grid, b: Grid) -> bool:
    """Return whether voxel for voxel both lie at one place, to SAME_GRID (mm) over the whole field of view."""
    if a.shape != b.shape:
        return False
    off = (a.affine - b.affine) @ np.array([[*corner, 1.0] for corner in corners(a.shape)]).T
    return bool(np.sqrt((off[:3] ** 2).sum(axis=0)).max() <= SAME_GRID)


def corners(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the indices of the eight outermost voxels."""
    return product(*((0, size - 1) for size in shape))


def turn_to(grid: Grid, orientation: str) -> Turn | None:
    """Return how an array is turned so that its axes run as `orientation` says; None for nothing. Raises UsageError."""
    if orientation not in ORIENTATIONS:
        hint = "it has one letter of each of R/L, A/P and S/I, such as RAS"
        raise UsageError(f"{orientation!r} is no orientation", hint=hint)
    turn: Turn = ornt_transform(io_orientation(grid.affine), axcodes2ornt(tuple(orientation)))
    return None if (turn == [[0, 1], [1, 1], [2, 1]]).all() else turn


def turned_grid(grid: Grid, turn: Turn) -> Grid:
    """Return the grid of an array after the turn."""
    shape = [0, 0, 0]
    for axis, (new, _) in enumerate(turn):
        shape[int(new)] = grid.shape[axis]
    return Grid((shape[0], shape[1], shape[2]), grid.affine @ inv_ornt_aff(turn, grid.shape), grid.code)


def slabs_of(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield from and to of ranges of the last axis, each of about _SLAB_VOXELS voxels."""
    thick = max(1, _SLAB_VOXELS // max(1, shape[0] * shape[1]))
    for first in range(0, shape[2], thick):
        yield first, min(first + thick, shape[2])
