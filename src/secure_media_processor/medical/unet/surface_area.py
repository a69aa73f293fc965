"""The surface between the voxels of a mask, piece by piece, and how large each piece is.

Marching cubes (Lorensen 1987) looks at each cube whose corners are the centres of 2 by 2 by 2 voxels and draws a surface
through the middles of its edges that have one end in the mask. Here only its area is of interest. Where two corners lie across
a face from each other, the corners of whichever side has fewer of them in the cube are kept apart, as in the original table;
polygons of more than three corners are cut into triangles from the corner that gives the largest area in a cube of unit length.
With that, areas are those of DeepMind's `surface-distance` and of MONAI, whose tables have other origins. In a flat image the
cubes are squares and the pieces lines.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Corner: TypeAlias = tuple[int, ...]
Point: TypeAlias = tuple[float, ...]

_ENOUGH = 1e-9  # areas that differ by less are the same


def element_sizes(mask: NDArray[np.bool_], spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much surface lies between voxels.

    Args:
        mask: With 1 to 3 axes. What is outside of it counts as outside of the mask.
        spacing: mm along each axis.

    Returns:
        An array with one more element along each axis: element n lies half a voxel before voxel n. Its value is the area of the
        surface there in mm² (a length in mm in two dimensions, 1 in one), 0 where there is none.
    """
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([size + 1 for size in mask.shape], dtype=np.uint8)
    for bit, corner in enumerate(_corners(mask.ndim)):
        part = padded[tuple(slice(at, at + size + 1) for at, size in zip(corner, mask.shape, strict=True))]
        codes |= part << np.uint8(bit)
    return _sizes_by_code(spacing)[codes]


def _sizes_by_code(spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the size of the surface for each way in which the corners of a cube can be in the mask (bit n: corner n)."""
    axes = len(spacing)
    sizes = np.zeros(1 << (1 << axes))
    if axes == 1:
        sizes[1:-1] = 1.0
        return sizes
    codes, simplices = _simplices(axes)
    places = simplices * spacing
    edges = places[:, 1:] - places[:, :1]
    measured = np.sqrt(np.linalg.det(edges @ edges.transpose(0, 2, 1))) / (1 if axes == 2 else 2)  # noqa: PLR2004 - lines
    np.add.at(sizes, codes, measured)
    return sizes


def _corners(axes: int) -> list[Corner]:
    return list(product((0, 1), repeat=axes))


@cache
def _simplices(axes: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return triangles (or lines) in a unit cube (or square): the code of each, and its corners (n, axes, axes)."""
    codes, found = [], []
    corners = _corners(axes)
    for code in range(1, (1 << len(corners)) - 1):
        inside = {corner: bool(code >> bit & 1) for bit, corner in enumerate(corners)}
        few = code.bit_count() <= len(corners) // 2
        for piece in _pieces(inside, few):
            codes.append(code)
            found.append(piece)
    return np.array(codes, dtype=np.intp), np.array(found)


def _pieces(inside: dict[Corner, bool], few: bool) -> list[list[Point]]:  # noqa: FBT001 - as named
    axes = len(next(iter(inside)))
    if axes == 2:  # noqa: PLR2004 - a square is its own face
        return [list(line) for line in _lines_in_face([(0, 0), (1, 0), (1, 1), (0, 1)], inside, few)]
    lines = []
    for axis, side in product(range(axes), (0, 1)):
        face = [(one, other) for one, other in ((0, 0), (1, 0), (1, 1), (0, 1))]
        lines += _lines_in_face([(*corner[:axis], side, *corner[axis:]) for corner in face], inside, few)
    return [triangle for polygon in _polygons(lines) for triangle in _triangles(polygon)]


def _lines_in_face(face: list[Corner], inside: dict[Corner, bool], few: bool) -> list[tuple[Point, Point]]:  # noqa: FBT001 - as named
    """Return where the surface meets a face, whose corners are given going round."""
    middles = [
        tuple((a + b) / 2 for a, b in zip(one, other, strict=True)) for one, other in pairwise([*face, face[0]])
    ]  # middle n follows corner n
    crossed = [at for at in range(4) if inside[face[at]] != inside[face[(at + 1) % 4]]]
    if len(crossed) < 4:  # noqa: PLR2004 - a face has four edges
        return [(middles[crossed[0]], middles[crossed[1]])] if crossed else []
    return [(middles[at - 1], middles[at]) for at in range(4) if inside[face[at]] == few]


def _polygons(lines: list[tuple[Point, Point]]) -> list[list[Point]]:
    """Return the closed ways that lines make. Each point belongs to two lines: an edge of the cube lies in two faces."""
    neighbours: dict[Point, list[Point]] = {}
    for one, other in lines:
        neighbours.setdefault(one, []).append(other)
        neighbours.setdefault(other, []).append(one)
    polygons = []
    while neighbours:
        at: Point | None = next(iter(neighbours))
        polygon = []
        while at is not None:
            polygon.append(at)
            at = next((point for point in neighbours.pop(at) if point in neighbours), None)
        polygons.append(polygon)
    return polygons


def _triangles(polygon: list[Point]) -> list[list[Point]]:
    fans = [
        [[turned[0], one, other] for one, other in pairwise(turned[1:])]
        for turned in (polygon[start:] + polygon[:start] for start in range(len(polygon)))
    ]
    areas = [_area(fan) for fan in fans]
    return next(fan for fan, area in zip(fans, areas, strict=True) if area > max(areas) - _ENOUGH)


def _area(triangles: list[list[Point]]) -> Any:
    corners = np.array(triangles)
    return np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum()
