"""From images and a model package to labels on the images' own grid.

The network works at the model's spacing and in its orientation, on windows that are fitted to the volume (windows.py); labels
are taken from the blended logits block by block, so memory does not grow with the number of classes times the volume. Labels
are then brought back label by label (label_maps.py), and turned back. The same input gives the same output, bit for bit, on
the same machine with the same engine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import combinations, islice, permutations
from math import ceil, log, prod
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from secure_media_processor.core.device import available_memory
from secure_media_processor.errors import ModelError, UsageError
from secure_media_processor.medical.inference.card import LinkNetArchitecture
from secure_media_processor.medical.unet.engines import Choice, OutOfMemoryError, choose, engines_of, network_of
from secure_media_processor.medical.unet.label_maps import resampled_labels
from secure_media_processor.medical.unet.memory import chosen, gigabytes, needs, resident
from secure_media_processor.medical.unet.postprocessing import postprocessed
from secure_media_processor.medical.unet.preparation import prepared
from secure_media_processor.medical.unet.windows import Plan, blend, cut, fit, in_slices
from secure_media_processor.medical.volume import Volume, reoriented, resampled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from secure_media_processor.medical.inference.card import ModelCard
    from secure_media_processor.medical.inference.packages import Package
    from secure_media_processor.medical.unet.engines import DeviceName, Engine, Engines
    from secure_media_processor.medical.unet.preparation import Prepared, Scaling
    from secure_media_processor.medical.unet.windows import Floats, Place
    from secure_media_processor.medical.volume import Grid

Progress: TypeAlias = "Callable[[int, int], None]"
"""Gets how many windows are done, and how many there are."""

NOTICE: Final = "research use only: not for diagnosis or treatment"
_GPU_BATCH: Final = 4
_SLICES: Final = 8  # of a 2D network at a time
_LINKNET_BYTES: Final = 1_200_000_000  # at 256³ in float32, libraries included: 1.1 GB were seen
_LEAST: Final = 2  # windows are not made smaller than this many times what they are a multiple of


@dataclass(frozen=True, slots=True)
class Options:
    """How a segmentation is made."""

    engine: Literal["auto", "torch", "openvino", "onnx"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tile: int | None = None
    """Size of the windows along each axis, voxels; None to fit them to the volume."""
    overlap: float = 0.25
    """Share of a window that the next one has in common with it, at least."""
    tta: bool = False
    """Whether the mean is taken over all mirrored windows (8 in 3D, 4 in 2D)."""
    uncertainty: bool = False
    """Whether to keep how undecided the network is at each voxel."""
    max_memory: int | None = None
    """Bytes that the process may have at its peak; None for what the system has."""


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """Labels, and how they came about."""

    labels: Volume
    """uint8, on the grid of the (first) image."""
    uncertainty: Volume | None
    """Entropy of the softmax of the blended logits, over its greatest possible value: 0 (sure) to 1; float32, same grid."""
    choice: Choice
    """What computed, in the end."""
    window: tuple[int, int, int]
    """Size, voxels of the model's grid, along its axes; of a 2D network the last one is how many slices went in together."""
    windows: int
    work: float
    """Voxels in all windows, as a multiple of those of the volume."""
    model_shape: tuple[int, int, int]
    """Voxels of the model's grid."""
    peak_memory: int
    """Bytes that the process was expected to have at its peak."""
    seconds: float
    warnings: tuple[str, ...]


@dataclass(slots=True)
class _Attempt:
    """What is tried; after running out of memory something smaller is."""

    plan: Plan
    order: tuple[int, int, int]
    """Which axis of the model's array is the first, second and third of the plan."""
    device: DeviceName


def segment(
    images: Volume | Sequence[Volume],
    package: Package,
    options: Options = Options(),
    *,
    progress: Progress | None = None,
    engines: Engines | None = None,
) -> Segmentation:
    """Segment an image.

    Args:
        images: One image, or one for each channel of the model, on one grid.
        package: The model.
        options: How.
        progress: Gets how far it is.
        engines: What computes instead of that which `options` choose.

    Raises:
        ModelError: the model is for something else, such as another number of images.
        ImageError: the images do not lie on one grid, or hold nothing but one value.
        UsageError: the options do not go together, or it would need more memory than there is; the figure is told.
        MissingExtraError: an engine or a GPU is asked for that is not there.
    """
    began = time.perf_counter()
    volumes = [images] if isinstance(images, Volume) else list(images)
    card = package.card
    if card.task != "segment":
        raise ModelError(f"{card.name} does not segment: its task is {card.task}", hint="use `smp medical predict`")
    choice = choose(package, engine=options.engine, precision=options.precision, device=options.device)
    if isinstance(card.architecture, LinkNetArchitecture):
        return _segment_brain(volumes, package, choice, options, progress)
    seen = prepared(volumes, card.inputs)
    warnings = _doubts(volumes, seen, card)
    attempt, peak = _first_attempt(seen, package, choice, options)
    maps = _Maps.of(seen, keep=options.uncertainty)
    run = _Run(seen, card, options, engines or engines_of(package, choice), maps, progress)
    attempt = run.go(attempt, warnings)
    labels, uncertainty = _on_input_grid(maps, seen, volumes[0], card)
    return Segmentation(
        labels=labels,
        uncertainty=uncertainty,
        choice=Choice(choice.engine, choice.precision, attempt.device),
        window=_in_model_order(attempt.plan.size, attempt.order),
        windows=attempt.plan.count,
        work=attempt.plan.work / prod(axis.length for axis in attempt.plan.axes),
        model_shape=seen.grid.shape,
        peak_memory=peak,
        seconds=time.perf_counter() - began,
        warnings=tuple(warnings),
    )


def _segment_brain(
    volumes: Sequence[Volume], package: Package, choice: Choice, options: Options, progress: Progress | None
) -> Segmentation:
    """Segment with two passes over the whole volume, without windows."""
    from secure_media_processor.medical.inference.brain import PASSES, brain_mask  # noqa: PLC0415 - brings torch

    began = time.perf_counter()
    if options.tta or options.uncertainty or options.tile is not None:
        raise UsageError("this model has no windows and no uncertainty", hint="leave out --tta, --uncertainty and --tile")
    if len(volumes) != 1:
        raise ModelError(f"{package.card.name} takes one image, not {len(volumes)}")
    turned = reoriented(volumes[0], package.card.inputs.orientation)
    peak = resident() + _LINKNET_BYTES + 6 * turned.grid.size
    limit = options.max_memory or resident() + available_memory()
    if choice.device == "cpu" and peak > limit:
        raise UsageError(f"this needs about {gigabytes(peak)}, and {gigabytes(limit)} is there", hint="free some memory")
    mask = brain_mask(turned.array.astype(np.float32, copy=False), network_of(package).to(choice.device), progress=progress)
    return Segmentation(
        labels=_turned_back(mask.astype(np.uint8), turned.grid, volumes[0]),
        uncertainty=None,
        choice=choice,
        window=PASSES[-1],
        windows=len(PASSES),
        work=sum(map(prod, PASSES)) / turned.grid.size,
        model_shape=turned.grid.shape,
        peak_memory=peak,
        seconds=time.perf_counter() - began,
        warnings=tuple(_notes(volumes, package.card)),
    )


def _notes(volumes: Sequence[Volume], card: ModelCard) -> list[str]:
    """Return what is doubtful about the images themselves."""
    found = [note for volume in volumes for note in volume.notes]
    wanted, given = card.inputs.modality, {volume.modality for volume in volumes} - {None}
    if wanted is not None and given - {wanted}:
        found.append(f"the model was made for {wanted}, and this is {', '.join(sorted(map(str, given)))}")
    return list(dict.fromkeys(found))


def _doubts(volumes: Sequence[Volume], seen: Prepared, card: ModelCard) -> list[str]:
    """Return why the result may be worth less than the model promises."""
    found = _notes(volumes, card)
    ratio = max(max(old / new, new / old) for old, new in zip(seen.turned.spacing, seen.grid.spacing, strict=True))
    if ratio > 3:  # noqa: PLR2004 - a factor at which resampling alone changes what can be seen
        found.append(f"the voxels of the image differ from those of the model {ratio:.1f}-fold along an axis")
    return found


# ------------------------------------------------------------------------------------------------------------ planning


def _first_attempt(seen: Prepared, package: Package, choice: Choice, options: Options) -> tuple[_Attempt, int]:
    """Return the windows with the least work that memory allows, and the peak that is expected, bytes."""
    card = package.card
    voxels = seen.grid.size
    turned = seen.turned.size
    # Labels at both grids, a slab of them on the way back, and the map of uncertainty.
    fixed = turned * (1 if seen.grid is seen.turned else 3) + (4 * (voxels + turned) if options.uncertainty else 0)
    need = needs(package, choice, voxels=voxels, fixed=fixed, network=choice.device == "cpu")
    batch = _GPU_BATCH if choice.device == "cuda" else 1
    orders = [_plan(seen, card, options, most) for most in _shrinking(need.comfortable // batch)]
    plan, peak = chosen([plan for plan, _ in orders], need, most=options.max_memory)
    order = next(order for one, order in orders if one is plan)
    return _Attempt(plan, order, choice.device), peak


def _shrinking(most: int) -> Iterator[int]:
    while most >= 1:
        yield most
        most //= 2


def _plan(
    seen: Prepared, card: ModelCard, options: Options, most: int, *, trained: Sequence[int] | None = None
) -> tuple[Plan, tuple[int, int, int]]:
    """Return the plan, and which axis of the model's array its axes are: the order in which the least is carried."""
    shape = [part.stop - part.start for part in seen.box]
    roi = list(trained or card.inputs.roi)
    multiple = card.architecture.multiple
    if card.dimensions == 2:  # noqa: PLR2004 - slices lie across the last axis
        plane = fit([*shape[:2], 1], [*roi, 1], multiple=multiple, overlap=options.overlap, tile=options.tile).axes[:2]
        together = max(1, min(_SLICES, most // prod(axis.size for axis in plane)))
        slices = ceil(shape[2] / ceil(shape[2] / together))  # as many each time
        return in_slices([shape[2], *shape[:2]], plane, slices), (2, 0, 1)
    fitted = fit(shape, roi, multiple=multiple, overlap=options.overlap, most=most, tile=options.tile)
    plans = [(Plan((fitted.axes[a], fitted.axes[b], fitted.axes[c])), (a, b, c)) for a, b, c in permutations(range(3))]
    return min(plans, key=lambda one: one[0].carried)


def _in_model_order(sizes: tuple[int, int, int], order: tuple[int, int, int]) -> tuple[int, int, int]:
    i, j, k = (sizes[order.index(axis)] for axis in range(3))
    return (i, j, k)


# ------------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True, slots=True, eq=False)
class _Maps:
    """What is made, on the model's grid."""

    labels: NDArray[np.uint8]
    uncertainty: NDArray[np.float32] | None

    @classmethod
    def of(cls, seen: Prepared, *, keep: bool) -> _Maps:
        shape = seen.grid.shape
        return cls(np.zeros(shape, np.uint8, order="F"), np.zeros(shape, np.float32, order="F") if keep else None)


@dataclass(slots=True)
class _Run:
    """A segmentation under way."""

    seen: Prepared
    card: ModelCard
    options: Options
    engines: Engines
    maps: _Maps
    progress: Progress | None
    engine: Engine = field(init=False)
    batch: int = field(default=1, init=False)
    """How many windows go in together."""

    def go(self, attempt: _Attempt, warnings: list[str]) -> _Attempt:
        """Fill the maps. Where memory runs out: fewer windows at a time, smaller windows, the CPU; `warnings` tell of it.

        Raises:
            UsageError: there is nothing smaller to try.
        """
        while True:
            try:
                self._go(attempt)
            except OutOfMemoryError:
                following = self._smaller(attempt)
                if following is None:
                    reason = "there is not enough memory, even for the smallest windows"
                    raise UsageError(reason, hint="use a machine with more memory") from None
                size = " x ".join(map(str, _in_model_order(following.plan.size, following.order)))
                where = "on the CPU" if following.device != attempt.device else f"with windows of {size}"
                warnings.append(f"the {_called(attempt.device)} ran out of memory; it was done {where}")
                attempt = following
            else:
                return attempt

    def _smaller(self, attempt: _Attempt) -> _Attempt | None:
        """Return what to try when one window at a time is too much."""
        multiple = self.card.architecture.multiple
        sizes = _in_model_order(attempt.plan.size, attempt.order)[: self.card.dimensions]
        least = _LEAST * multiple
        if max(sizes) > least and self.options.tile is None:
            halves = [max(least, size // 2) if size == max(sizes) else size for size in sizes]
            plan, order = _plan(self.seen, self.card, self.options, prod(halves), trained=halves)
            if prod(plan.size) < prod(attempt.plan.size):
                return _Attempt(plan, order, attempt.device)
        if attempt.device == "cpu":
            return None
        plan, order = _plan(self.seen, self.card, self.options, prod(self.card.inputs.roi))
        return _Attempt(plan, order, "cpu")

    def _go(self, attempt: _Attempt) -> None:
        plan, order = attempt.plan, attempt.order
        size = _in_model_order(plan.size, order)
        self.engine = self.engines.open(size[: self.card.dimensions], attempt.device)
        self.batch = _GPU_BATCH if attempt.device == "cuda" else 1
        arrays = [array[self.seen.box].transpose(order) for array in self.seen.arrays]
        labels = self.maps.labels[self.seen.box].transpose(order)
        unsure = None if self.maps.uncertainty is None else self.maps.uncertainty[self.seen.box].transpose(order)
        back = tuple(order.index(axis) for axis in range(3))  # axes of the plan that are those of the model, in its order

        def empty(shape: tuple[int, ...]) -> Floats:
            inside = np.empty((shape[0], *(shape[1 + axis] for axis in back)), np.float32)
            return inside.transpose(0, *(1 + axis for axis in order))

        def done(logits: Floats, place: Place) -> None:
            winner(logits, labels[place])
            if unsure is not None:
                unsure[place] = entropy(logits)

        windows = self._windows(arrays, plan)
        results = self._results(windows, order, back) if self.card.dimensions == 3 else self._slices(windows)  # noqa: PLR2004
        blend(plan, self._counted(results, plan.count), done, empty=empty)

    def _counted(self, results: Iterator[Floats], count: int) -> Iterator[Floats]:
        for number, result in enumerate(results, start=1):
            if self.progress is not None:
                self.progress(number, count)
            yield result

    def _windows(self, arrays: list[Floats], plan: Plan) -> Iterator[Floats]:
        """Yield the scaled windows in the order of the plan and with its axes, (C, …)."""
        scalings: tuple[Scaling, ...] = self.seen.scalings
        for window in plan.windows():
            pieces = (cut(array[None], plan, window)[0] for array in arrays)
            yield np.stack([scaling(piece) for scaling, piece in zip(scalings, pieces, strict=True)])

    def _results(self, windows: Iterator[Floats], order: tuple[int, ...], back: tuple[int, ...]) -> Iterator[Floats]:
        """Yield the logits of windows (C, …) as (K, …), both with the axes of the plan."""
        to_model, to_plan = (0, *(1 + axis for axis in back)), (0, *(1 + axis for axis in order))
        while group := list(islice(windows, self.batch)):
            logits = self._mirrored(np.stack([window.transpose(to_model) for window in group]))
            yield from (one.transpose(to_plan) for one in logits)

    def _slices(self, windows: Iterator[Floats]) -> Iterator[Floats]:
        """Yield the logits of windows (C, slices, i, j) as (K, slices, i, j), of a 2D network."""
        for window in windows:
            yield self._mirrored(np.ascontiguousarray(window.swapaxes(0, 1))).swapaxes(0, 1)

    def _mirrored(self, windows: Floats) -> Floats:
        """Return the logits of windows (B, C, …); the mean over all their mirror images if that is wanted."""
        if not self.options.tta:
            return self._logits(windows)
        axes = range(2, windows.ndim)
        total = self._logits(windows).copy()
        for count in range(1, len(axes) + 1):
            for flipped in combinations(axes, count):
                total += np.flip(self._logits(np.flip(windows, flipped)), flipped)
        total /= 2 ** len(axes)
        return total

    def _logits(self, windows: Floats) -> Floats:
        """Return the logits of windows, fewer of them at a time if the device has not the memory."""
        try:
            logits = self.engine.logits(np.ascontiguousarray(windows))
        except OutOfMemoryError:
            if len(windows) == 1:
                raise
            half = len(windows) // 2
            self.batch = max(1, min(self.batch, half))
            return np.concatenate([self._logits(windows[:half]), self._logits(windows[half:])])
        wanted = (len(windows), len(self.card.outputs.labels), *windows.shape[2:])
        if logits.shape != wanted:
            raise ModelError(f"the network gives {list(logits.shape)}, not {list(wanted)}")
        return logits


def winner(logits: Floats, labels: NDArray[np.uint8]) -> None:
    """Write the class with the greatest logit into `labels`; the first one if several are equal. (K, …) and (…)."""
    best = logits[0].copy()
    labels[...] = 0
    for number in range(1, len(logits)):
        more = logits[number] > best
        np.copyto(labels, np.uint8(number), where=more)
        np.copyto(best, logits[number], where=more)


def entropy(logits: Floats) -> Floats:
    """Return the entropy of the softmax, divided by its greatest possible value: 0 to 1. (K, …) to (…)."""
    shifted = logits - logits.max(axis=0)
    total = np.exp(shifted).sum(axis=0)
    mean = (np.exp(shifted) * shifted).sum(axis=0) / total
    found: Floats = ((np.log(total) - mean) / np.float32(log(len(logits)))).clip(0, 1).astype(np.float32)
    return found


def _called(device: DeviceName) -> str:
    return "GPU" if device == "cuda" else "machine"


# --------------------------------------------------------------------------------------------------------- coming back


def _on_input_grid(maps: _Maps, seen: Prepared, image: Volume, card: ModelCard) -> tuple[Volume, Volume | None]:
    """Return labels and uncertainty as they lie on the image."""
    labels = maps.labels
    if card.outputs.postprocessing:
        steps = [step.model_dump() for step in card.outputs.postprocessing]
        labels = postprocessed(labels, seen.grid.spacing, steps).astype(np.uint8, copy=False)
    if seen.grid is not seen.turned:
        labels = resampled_labels(labels, seen.grid, seen.turned)
    unsure = None
    if maps.uncertainty is not None:
        unsure = _turned_back(resampled(Volume(maps.uncertainty, seen.grid), seen.turned).array, seen.turned, image)
    return _turned_back(labels, seen.turned, image), unsure


def _turned_back(array: NDArray[np.generic], turned: Grid, image: Volume) -> Volume:
    back = reoriented(Volume(array, turned), image.grid.orientation)
    return Volume(back.array, image.grid, image.frame_of_reference_uid, image.modality)
