"""Where slices lie in space: how evenly, and the matrix from voxels to the patient. Plain Python, no arrays.

Coordinates are those of DICOM: millimetres, LPS (x grows to the patient's left, y to the back, z to the head). A voxel is
named (i, j, k) = (column, row, slice), each from 0, and its coordinates are those of its centre. An array of a stack has the
shape (slices, rows, columns): its axes are k, j, i.

Source: PS3.3 C.7.6.2.1.1 (Image Position and Image Orientation), equation C.7.6.2.1-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from statistics import median_low
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Vector: TypeAlias = tuple[float, float, float]
"""x, y, z in mm, or a direction."""
Orientation: TypeAlias = tuple[float, float, float, float, float, float]
"""ImageOrientationPatient (0020,0037): the direction in which the column index grows along a row, then that in which the row
index grows along a column."""
Spacing: TypeAlias = tuple[float, float]
"""PixelSpacing (0028,0030), in its order: mm between the centres of rows, then of columns. Not (x, y)."""
Row: TypeAlias = tuple[float, float, float, float]
Affine: TypeAlias = tuple[Row, Row, Row, Row]
"""A matrix of 4 by 4, row by row. Its last column is the centre of voxel (0, 0, 0), in mm."""

SAME_DIRECTION = 1e-3
"""Direction cosines are written with few digits: slices whose cosines differ by no more have one orientation (0.06 degrees)."""
SAME_PLACE = 1e-3
"""Slices that lie no further apart, in mm along the normal, are at one place."""
OFF_GRID = 0.1
"""A slice this far from its place on an even grid, in mm, still counts as on it: positions are often rounded to one decimal."""
OFF_GRID_PART = 0.1
"""As OFF_GRID, as a part of the distance between slices; the smaller of the two holds."""
TILT = 0.1
"""Degrees between the normal and the way from slice to slice from which on it is a tilt."""

_NOT_PERPENDICULAR = 1e-2
_STRAIGHT = math.cos(math.radians(5))
# More missing slices than this in one place are not told apart from a second block far away; the number is only shown.
_MAX_PLACES = 10_000


class ProblemKind(StrEnum):
    """What can keep slices from being a regular grid."""

    NO_GEOMETRY = "no-geometry"
    """Position, orientation or pixel spacing is missing or makes no sense."""
    MOSAIC = "mosaic"
    """Each image holds many slices side by side (Siemens): what is said of its position is not that of one slice."""
    MIXED_ORIENTATION = "mixed-orientation"
    """The slices are not parallel, as in a series that turns about an axis."""
    DUPLICATES = "duplicates"
    """Several slices lie at one place, and nothing tells which of them belong together."""
    GAPS = "gaps"
    """Slices are missing: some steps are a multiple of the others."""
    UNEVEN_SPACING = "uneven-spacing"
    """The distance between slices changes."""
    TILT = "tilt"
    """The slices are parallel and evenly spaced, but shifted against each other as by a tilted gantry: a sheared grid."""
    SHIFT = "shift"
    """Slices are shifted against each other within their planes, not evenly."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why a stack is not a regular grid."""

    kind: ProblemKind
    text: str
    """For people, without any value that could be a patient's."""
    amount: float | None = None
    """TILT: degrees. UNEVEN_SPACING, SHIFT: the largest deviation in mm. MIXED_ORIENTATION: the largest angle in degrees. GAPS:
    how many slices are missing. DUPLICATES: how many slices are too many. None for the others."""
    slices: tuple[int, ...] = ()
    """Indices in the stack, from 0. GAPS: those after which slices are missing. DUPLICATES: those at the place of the one
    before. UNEVEN_SPACING, SHIFT: the one that is furthest from its place."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How parallel slices lie."""

    spacing: float | None
    """mm between neighbouring slices along the normal; None for a single slice or where there is no even spacing."""
    step: Vector | None
    """mm from a slice to the next. Not parallel to the normal if there is a tilt. None as for `spacing`."""
    problems: tuple[Problem, ...]


def dot(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the scalar product."""
    return sum(a * b for a, b in zip(left, right, strict=True))


def length(vector: Sequence[float]) -> float:
    """Return the Euclidean norm."""
    return math.sqrt(dot(vector, vector))


def slice_normal(orientation: Orientation) -> Vector | None:
    """Return the unit vector across the slice, the cross product of row and column direction.

    None if these are no perpendicular unit vectors.
    """
    (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
    if any(abs(dot(v, v) - 1) > _NOT_PERPENDICULAR for v in ((a, b, c), (d, e, f))):
        return None
    if abs(a * d + b * e + c * f) > _NOT_PERPENDICULAR:
        return None
    x, y, z = b * f - c * e, c * d - a * f, a * e - b * d
    norm = length((x, y, z))
    return (x / norm, y / norm, z / norm)


def same_direction(left: Sequence[float], right: Sequence[float]) -> bool:
    """Return whether two orientations agree to SAME_DIRECTION in each cosine."""
    return all(abs(a - b) <= SAME_DIRECTION for a, b in zip(left, right, strict=True))


def angle_between(left: Orientation, right: Orientation) -> float:
    """Return the angle between the normals of two slices in degrees, 0 to 180; 180 if one of them has none."""
    one, other = slice_normal(left), slice_normal(right)
    return 180.0 if one is None or other is None else math.degrees(math.acos(max(-1.0, min(1.0, dot(one, other)))))


def plane_of(orientation: Orientation) -> str:
    """Return axial, coronal or sagittal, "oblique …" if it is more than 5 degrees off, "unknown" if there is no normal."""
    normal = slice_normal(orientation)
    if normal is None:
        return "unknown"
    axis = max(range(3), key=lambda n: abs(normal[n]))
    name = ("sagittal", "coronal", "axial")[axis]
    return name if abs(normal[axis]) >= _STRAIGHT else f"oblique {name}"


def measure(positions: Sequence[Vector], orientation: Orientation) -> Grid:
    """Find out how evenly parallel slices lie.

    Args:
        positions: ImagePositionPatient of each, mm, in order along the normal.
        orientation: Of all of them; it must have a normal (see slice_normal).

    Slices at one place count as one when the spacing is measured. Missing slices keep the spacing: `step` and `spacing` are
    those of the grid on which the present ones lie.
    """
    normal = slice_normal(orientation)
    if normal is None:
        raise ValueError("the orientation has no normal")
    along = [dot(position, normal) for position in positions]
    repeated = tuple(i for i in range(1, len(along)) if along[i] - along[i - 1] <= SAME_PLACE)
    problems = []
    if repeated:
        word = "slice lies" if len(repeated) == 1 else "slices lie"
        text = f"{len(repeated)} {word} where another one does"
        problems.append(Problem(ProblemKind.DUPLICATES, text, len(repeated), repeated))
    again = set(repeated)
    kept = [i for i in range(len(along)) if i not in again]
    if len(kept) < 2:  # noqa: PLR2004 - a distance needs two
        problems += _shifts(positions, along, kept, normal)
        return Grid(None, None, tuple(problems))
    spacing, places = _fit([along[i] for i in kept])
    first, last = positions[kept[0]], positions[kept[-1]]
    uneven = _unevenness(along, kept, spacing, places)
    problems += uneven or _gaps(kept, places)
    problems += _shifts(positions, along, kept, normal)
    if uneven:
        return Grid(None, None, tuple(problems))
    x, y, z = ((b - a) / places[-1] for a, b in zip(first, last, strict=True))
    return Grid(spacing, (x, y, z), tuple(problems))


def _fit(along: Sequence[float]) -> tuple[float, list[int]]:
    """Return the spacing of the even grid that fits `along` (rising) best, and the place of each on it, from 0.

    The usual step counts as one. If that leaves steps of a half, every other slice may be missing: the smallest step is tried.
    """
    steps = [b - a for a, b in pairwise(along)]
    usual = median_low(steps)
    candidates = [usual] if min(steps) < usual * 0.45 else [usual, min(steps)]
    fits = []
    for candidate in candidates:
        places = [0]
        for step in steps:
            places.append(places[-1] + max(1, min(_MAX_PLACES, round(step / candidate))))
        spacing = (along[-1] - along[0]) / places[-1]
        fits.append((spacing, places))
        if max(abs(a - along[0] - p * spacing) for a, p in zip(along, places, strict=True)) <= _allowed(spacing):
            return spacing, places
    return fits[0]


def _allowed(spacing: float) -> float:
    return min(OFF_GRID, OFF_GRID_PART * spacing)


def _unevenness(along: Sequence[float], kept: Sequence[int], spacing: float, places: Sequence[int]) -> list[Problem]:
    start = along[kept[0]]
    off = [abs(along[i] - start - place * spacing) for i, place in zip(kept, places, strict=True)]
    worst = max(range(len(off)), key=off.__getitem__)
    if off[worst] <= _allowed(spacing):
        return []
    steps = [along[b] - along[a] for a, b in pairwise(kept)]
    text = (
        f"slices are {min(steps):.3g} to {max(steps):.3g} mm apart; one is {off[worst]:.3g} mm from its place on an even grid"
    )
    return [Problem(ProblemKind.UNEVEN_SPACING, text, off[worst], (kept[worst],))]


def _gaps(kept: Sequence[int], places: Sequence[int]) -> list[Problem]:
    holes = {kept[n]: b - a - 1 for n, (a, b) in enumerate(pairwise(places)) if b - a > 1}
    if not holes:
        return []
    missing = sum(holes.values())
    where = ", ".join(str(index + 1) for index in list(holes)[:5]) + (", …" if len(holes) > 5 else "")  # noqa: PLR2004 - shown
    text = f"{missing} {'slice is' if missing == 1 else 'slices are'} missing, after slice {where}"
    return [Problem(ProblemKind.GAPS, text, missing, tuple(holes))]


def _shifts(positions: Sequence[Vector], along: Sequence[float], kept: Sequence[int], normal: Vector) -> list[Problem]:
    """Return how slices are shifted within their planes: evenly from slice to slice (a tilt), or otherwise."""
    origin = positions[kept[0]]
    first, last = along[kept[0]], along[kept[-1]]
    # The way from the first to the last slice, per mm along the normal.
    way = tuple((b - a) / (last - first) for a, b in zip(origin, positions[kept[-1]], strict=True)) if last > first else normal
    drift = length([w - n for w, n in zip(way, normal, strict=True)])
    problems = []
    degrees = math.degrees(math.atan(drift))
    # In a thin stack the rounding of positions alone makes an angle.
    if degrees > TILT and drift * (last - first) > OFF_GRID:
        problems.append(Problem(ProblemKind.TILT, f"tilted by {degrees:.1f} degrees", degrees))
    off = []
    for position, distance in zip(positions, along, strict=True):
        ideal = (o + (distance - first) * w for o, w in zip(origin, way, strict=True))
        off.append(length([p - i for p, i in zip(position, ideal, strict=True)]))
    worst = max(range(len(off)), key=off.__getitem__)
    if off[worst] > 2 * OFF_GRID:  # each of the three coordinates may be rounded
        text = f"a slice is shifted by {off[worst]:.3g} mm within its plane"
        problems.append(Problem(ProblemKind.SHIFT, text, off[worst], (worst,)))
    return problems


def affine_lps(position: Vector, orientation: Orientation, spacing: Spacing, step: Vector) -> Affine:
    """Return the matrix from voxel (i, j, k) = (column, row, slice), from 0, to the patient in mm, LPS.

    PS3.3 C.7.6.2.1.1: ``x = S + X·Δi·i + Y·Δj·j``, with the third column added that leads from slice to slice. With a tilt
    that column is not perpendicular to the others, and still each voxel has its true place.

    Args:
        position: ImagePositionPatient S of the first slice, mm.
        orientation: ImageOrientationPatient: X (along a row), then Y (along a column).
        spacing: PixelSpacing, mm: Δj between rows first, then Δi between columns.
        step: From a slice to the next, mm.
    """
    between_rows, between_columns = spacing
    rows = [(orientation[n] * between_columns, orientation[3 + n] * between_rows, step[n], position[n]) for n in range(3)]
    return (rows[0], rows[1], rows[2], (0.0, 0.0, 0.0, 1.0))


def lps_to_ras(affine: Affine) -> Affine:
    """Return the same matrix with x and y turned round: to RAS, mm, as NIfTI has it (x to the right, y to the front, z up)."""
    x, y, z, last = affine
    return (_negative(x), _negative(y), z, last)


def _negative(row: Row) -> Row:
    a, b, c, d = row
    return (-a, -b, -c, -d)


def apply(affine: Affine, voxel: Vector) -> Vector:
    """Return where `voxel` (i, j, k) lies, in mm, in the coordinates that `affine` leads to."""
    x, y, z = (dot(row, (*voxel, 1.0)) for row in affine[:3])
    return (x, y, z)
