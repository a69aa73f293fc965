"""Windows that are fitted to a volume, and their results blended in one pass that never holds all classes of the whole volume.

A network sees a volume through windows that overlap. Here their size is not fixed: it is chosen, between the window of the
training and twice that, so that whole numbers of windows cover the volume with the overlap that is asked for and the least
work. On 256 x 256 x 160 voxels windows of 96 with half of them shared are 75 windows and 6.3 times the voxels; fitted ones with
a quarter shared are 9 windows and 1.7 times the voxels.

Results are blended with Gaussian weights (as Isensee 2021, doi:10.1038/s41592-020-01008-z). The weights are products of one
factor an axis and are scaled beforehand so that at each voxel they add up to 1, so no map of their sum is kept. Of a window
only what later windows overlap is carried on: along the first axis the full cross-section of the overlap, along the second one
a strip of it, along the third one a piece. All else is final as soon as it is there, and is handed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil, prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from secure_media_processor.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

Floats: TypeAlias = "NDArray[np.float32]"
Place: TypeAlias = tuple[slice, slice, slice]

MAX_OVERLAP = 0.75
# Of the window's size, as in nnU-Net and MONAI.
_SIGMA = 1 / 8
# Windows may grow to this multiple of the one that the network was trained with: statistics of larger ones would be new to it.
_GROWTH = 2


@dataclass(frozen=True, slots=True)
class Axis:
    """The windows along an axis. Positions count from the start of the padding."""

    length: int
    """Of the volume, voxels."""
    size: int
    """Of each window, voxels."""
    starts: tuple[int, ...]
    before: int = 0
    """Voxels of padding in front; there is as much, or one voxel more, behind."""

    @property
    def padded(self) -> int:
        """Length with padding, voxels."""
        return self.starts[-1] + self.size

    @property
    def work(self) -> int:
        """Voxels that all windows have along this axis."""
        return self.size * len(self.starts)

    @property
    def carried(self) -> int:
        """The most voxels that a window shares with the next one."""
        return max((self.size - (after - before) for before, after in pairwise(self.starts)), default=0)

    def step(self, number: int) -> int:
        """Voxels that are final when the window with this number is done, from its start."""
        return self.starts[number + 1] - self.starts[number] if number + 1 < len(self.starts) else self.size

    def shared(self, number: int) -> int:
        """Voxels that the window has in common with those before."""
        return self.starts[number - 1] + self.size - self.starts[number] if number else 0

    def weights(self) -> NDArray[np.float32]:
        """Return the factor of each window at each of its voxels, (windows, size); at each place they add up to 1."""
        x = np.arange(self.size) - (self.size - 1) / 2
        bell = np.exp(-0.5 * (x / (_SIGMA * self.size)) ** 2)
        total = np.zeros(self.padded)
        for start in self.starts:
            total[start : start + self.size] += bell
        return np.stack([bell / total[start : start + self.size] for start in self.starts]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Plan:
    """All windows on a volume: each combination of those along the three axes, the last axis fastest."""

    axes: tuple[Axis, Axis, Axis]

    @property
    def count(self) -> int:
        """How many windows there are."""
        return prod(len(axis.starts) for axis in self.axes)

    @property
    def size(self) -> tuple[int, int, int]:
        """Of a window, voxels."""
        i, j, k = (axis.size for axis in self.axes)
        return (i, j, k)

    @property
    def work(self) -> int:
        """Voxels in all windows."""
        return prod(axis.work for axis in self.axes)

    @property
    def carried(self) -> int:
        """Voxels whose logits are kept between windows."""
        first, second, third = self.axes
        return (
            first.carried * second.padded * third.padded
            + first.size * second.carried * third.padded
            + first.size * second.size * third.carried
        )

    def windows(self) -> Iterator[tuple[int, int, int]]:
        """Yield the number of each window along the axes, in the order in which they are done."""
        first, second, third = (range(len(axis.starts)) for axis in self.axes)
        return product(first, second, third)


def fitted_axis(
    length: int, trained: int, *, multiple: int, overlap: float, fixed: bool = False, growth: float = _GROWTH
) -> list[Axis]:
    """Return what windows there can be along an axis, none of them both larger and more work than another.

    Args:
        length: Of the volume, voxels.
        trained: Window of the training, voxels: the least size, also of a window that is larger than the volume.
        multiple: What sizes are a multiple of.
        overlap: Share of a window that the next one has in common with it at least, up to one voxel; 0 to MAX_OVERLAP.
        fixed: Whether all windows have the least size.
        growth: How many times the least size they may have else.
    """
    least = _up(trained, multiple)
    found: list[Axis] = []
    count = 0
    while not found or found[-1].size > least:
        count += 1
        size = max(least, _up(ceil(length / (1 + (count - 1) * (1 - overlap)) - 1e-9), multiple))
        if size > least and (fixed or size > growth * least):
            continue
        axis = _spread(length, size, count)
        if not found or axis.work < found[-1].work or axis.size < found[-1].size:
            found.append(axis)
    return found


def fit(
    shape: Sequence[int],
    trained: Sequence[int],
    *,
    multiple: int,
    overlap: float,
    most: int | None = None,
    tile: int | None = None,
) -> Plan:
    """Return the windows with the least work whose size is at most `most` voxels; the smallest ones if none is.

    Args:
        shape: Of the volume, three axes, voxels.
        trained: Window of the training, voxels.
        multiple: What sizes are a multiple of.
        overlap: See fitted_axis.
        most: Voxels that a window may have; None for any number.
        tile: Size of all windows along all axes; None to fit them.

    Raises:
        UsageError: the overlap or the size is out of bounds.
    """
    if not 0 <= overlap <= MAX_OVERLAP:
        raise UsageError(f"the overlap of windows is a share from 0 to {MAX_OVERLAP:g}")
    if tile is not None and not multiple <= tile <= 1024:  # noqa: PLR2004 - larger than any window that is of use
        raise UsageError(f"the size of a window is from {multiple} to 1024 voxels for this model")
    choices = [
        fitted_axis(length, tile or size, multiple=multiple, overlap=overlap, fixed=tile is not None)
        for length, size in zip(shape, trained, strict=True)
    ]
    plans = [Plan((i, j, k)) for i, j, k in product(*choices)]
    fitting = [plan for plan in plans if most is None or prod(plan.size) <= most]
    if fitting:
        return min(fitting, key=lambda plan: (plan.work, prod(plan.size), plan.size))
    return min(plans, key=lambda plan: (prod(plan.size), plan.work, plan.size))


def in_slices(shape: Sequence[int], plane: Sequence[Axis], slices: int) -> Plan:
    """Return a plan for a 2D network: `slices` slices along the first axis at a time, windows along the other two."""
    count = ceil(shape[0] / slices)
    return Plan((Axis(shape[0], slices, tuple(range(0, count * slices, slices))), plane[0], plane[1]))


def weights_of(plan: Plan) -> list[NDArray[np.float32]]:
    """Return the weights along each axis. Windows that share nothing have the weight 1."""
    return [axis.weights() if axis.carried else np.ones((len(axis.starts), axis.size), np.float32) for axis in plan.axes]


def cut(array: Floats, plan: Plan, window: tuple[int, int, int]) -> Floats:
    """Return a window of an array (C, i, j, k). Beyond the border the values at the border go on."""
    for axis, (along, number) in enumerate(zip(plan.axes, window, strict=True), start=1):
        first = along.starts[number] - along.before
        if first >= 0 and first + along.size <= along.length:
            array = array[(slice(None),) * axis + (slice(first, first + along.size),)]
        else:
            array = np.take(array, np.clip(np.arange(first, first + along.size), 0, along.length - 1), axis)
    return array


def blend(
    plan: Plan,
    results: Iterable[Floats],
    done: Callable[[Floats, Place], None],
    *,
    empty: Callable[[tuple[int, ...]], Floats] = lambda shape: np.empty(shape, np.float32),
) -> None:
    """Blend the results of all windows.

    Args:
        plan: The windows.
        results: Of each window, in the order of `plan.windows()`, (K, *plan.size); it is changed.
        done: Gets each block that is final, (K, …), and where it lies in the volume, without padding. The blocks cover each
            voxel once. It may keep none of them.
        empty: Makes an array of this shape; one whose axes lie in memory as those of the results is quicker.
    """
    first, second, third = plan.axes
    weights = weights_of(plan)
    along: list[Floats] = []
    for (a, b, c), result in zip(plan.windows(), results, strict=True):
        block = result
        if not along:
            classes = len(block)
            along = [
                empty((classes, first.carried, second.padded, third.padded)),
                empty((classes, first.size, second.carried, third.padded)),
                empty((classes, first.size, second.size, third.carried)),
            ]
        if plan.count > 1:
            block *= weights[0][a][:, None, None]
            block *= weights[1][b][:, None]
            block *= weights[2][c]
        start = [axis.starts[number] for axis, number in zip(plan.axes, (a, b, c), strict=True)]
        step = [axis.step(number) for axis, number in zip(plan.axes, (a, b, c), strict=True)]
        at_c = slice(start[2], start[2] + step[2])
        at_b = slice(start[1], start[1] + step[1])
        final = _handed_on(block, along[2], 3, third.shared(c), step[2])
        final = _handed_on(final, along[1][:, :, :, at_c], 2, second.shared(b), step[1])
        final = _handed_on(final, along[0][:, :, at_b, at_c], 1, first.shared(a), step[0])
        _emit(final, start, plan, done)


def _handed_on(block: Floats, carried: Floats, axis: int, shared: int, step: int) -> Floats:
    """Add what earlier windows left along an axis, keep what later ones will add to, and return what is final."""
    before = (slice(None),) * axis
    if shared:
        block[(*before, slice(shared))] += carried[(*before, slice(shared))]
    rest = block.shape[axis] - step
    if rest:
        carried[(*before, slice(rest))] = block[(*before, slice(step, None))]
    return block[(*before, slice(step))]


def _emit(final: Floats, start: Sequence[int], plan: Plan, done: Callable[[Floats, Place], None]) -> None:
    """Hand on a block without what lies in the padding."""
    inside, place = [], []
    for axis, begin, size in zip(plan.axes, start, final.shape[1:], strict=True):
        low, high = max(begin - axis.before, 0), min(begin - axis.before + size, axis.length)
        if low >= high:
            return
        inside.append(slice(low - begin + axis.before, high - begin + axis.before))
        place.append(slice(low, high))
    done(final[(slice(None), *inside)], (place[0], place[1], place[2]))


def _spread(length: int, size: int, count: int) -> Axis:
    """Return windows that are spread evenly, the same seen from both ends wherever whole voxels allow it."""
    if size * count < length:
        raise ValueError("the windows do not cover the axis")
    room = max(length - size, 0)
    half = [(2 * room * number + count - 1) // (2 * (count - 1)) for number in range(count // 2)]  # rounded
    middle = [room // 2] if count % 2 else []
    starts = [*half, *middle, *(room - start for start in half)]
    return Axis(length, size, tuple(sorted(set(starts))), max(size - length, 0) // 2)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
