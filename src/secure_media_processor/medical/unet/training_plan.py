"""From two folders and a few wishes to everything that training needs: the split, what the network sees, its shape, the recipe.

All cases are read once before the first step, so that what is wrong with one of them is told at once and not after an hour.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.inference.card import Inputs, Normalization
from secure_media_processor.medical.inference.classifier import ClassifierConfig
from secure_media_processor.medical.unet.dataset import Cases, common_spacing, covering_window, window_for
from secure_media_processor.medical.unet.losses import loss_named
from secure_media_processor.medical.unet.models import UNetConfig
from secure_media_processor.medical.unet.tasks import CROSS_ENTROPY
from secure_media_processor.medical.unet.train import Precision, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.unet.dataset import Split
    from secure_media_processor.medical.unet.models import Variant

CHANNELS: Final = (16, 32, 64, 128)
"""Features a level, if nothing else is asked for: 1.4 to 1.5 million parameters in 3D."""
MOST_VOXELS: Final = {2: 512**2, 3: 96**3}
"""Of a window that is chosen here, by its dimensions."""
MOST_CLASSIFIED: Final = {2: 1024**2, 3: 128**3}
"""The same of a classifier, which sees all of an image and half of a U-Net's layers."""
_ORIENTATION: Final = "RAS"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What may be asked for."""

    classes: tuple[str, ...] = ()
    """Names of the classes of whole images; empty for labels of voxels."""
    variant: Variant = "residual"
    """Of a U-Net, as the loss is."""
    dimensions: Literal[2, 3] = 3
    channels: tuple[int, ...] = CHANNELS
    loss: str = "dice-ce"
    batch: int = 2
    learning_rate: float | None = None
    """None for that of Recipe."""
    window: tuple[int, ...] | None = None
    """Voxels; None for the median shape, or of a classifier for what holds each case."""
    spacing: tuple[float, float, float] | None = None
    """mm along the axes in RAS; None for the median of the training cases."""
    modality: str | None = None
    """Such as MR: inference warns where it gets something else."""
    mirror: bool = False
    precision: Precision = "float32"
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What will be done."""

    split: Split
    cases: Cases
    recipe: Recipe
    inputs: Inputs
    voxels: dict[int, int] = field(default_factory=dict)
    """Label → voxels of it in all cases, in the spacing of the network; empty for a classifier."""
    class_names: tuple[str, ...] = ()
    """Of a classifier, in order."""

    @property
    def classes(self) -> int:
        """Labels and the background, or classes of images."""
        return self.recipe.network.out_channels

    @property
    def members(self) -> dict[int, int]:
        """Class of images → cases of it; empty for labels of voxels."""
        cases = [*self.split.training, *self.split.validation]
        return {class_: sum(case.class_ == class_ for case in cases) for class_ in range(len(self.class_names))}


def make_plan(
    split: Split,
    wishes: Wishes,
    *,
    identities: Sequence[Identity] = (),
    memory: int,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Read all cases and decide what is open.

    Args:
        split: The cases.
        wishes: What is asked for.
        identities: Keys that open encrypted cases.
        memory: Bytes in which cases may be kept.
        progress: Gets how many cases have been read, and how many there are.

    Raises:
        UsageError: the wishes do not go together.
        ImageError: a case cannot be used, or the labels have gaps.
    """
    if not wishes.classes:
        loss_named(wishes.loss)
    spacing = wishes.spacing or common_spacing(split.training, identities)
    inputs = Inputs(
        channels=(wishes.modality or "image",),
        modality=wishes.modality,
        orientation=_ORIENTATION,
        spacing=spacing,
        roi=(1,) * wishes.dimensions,
        normalization=Normalization(method="percentile"),
    )
    cases = Cases(inputs, identities, memory)
    every = [*split.training, *split.validation]
    shapes, voxels = [], np.zeros(256, np.int64)
    for number, case in enumerate(every, start=1):
        found = cases.get(case)
        shapes.append(found.image.shape[1 : 1 + wishes.dimensions])
        voxels += np.bincount(found.labels.ravel(), minlength=256)
        if progress is not None:
            progress(number, len(every))
    network: UNetConfig | ClassifierConfig
    if wishes.classes:
        counts = {}
        network = ClassifierConfig(wishes.dimensions, 1, len(wishes.classes), wishes.channels)
        window = _whole_window(wishes, network, shapes)
    else:
        classes = _classes(voxels)
        counts = {label: int(voxels[label]) for label in range(1, classes)}
        network = UNetConfig(wishes.variant, wishes.dimensions, 1, classes, wishes.channels)
        window = _window(wishes, network, shapes[: len(split.training)])
    cases.inputs = inputs.model_copy(update={"roi": window})
    return Plan(split, cases, _recipe(wishes, network, window), cases.inputs, counts, wishes.classes)


def _recipe(wishes: Wishes, network: UNetConfig | ClassifierConfig, window: tuple[int, ...]) -> Recipe:
    loss = CROSS_ENTROPY if wishes.classes else wishes.loss
    recipe = Recipe(network, window, loss=loss, batch=wishes.batch, precision=wishes.precision, seed=wishes.seed)
    if wishes.learning_rate is not None:
        recipe = replace(recipe, learning_rate=wishes.learning_rate)
    if wishes.mirror:
        recipe = replace(recipe, augmentation=replace(recipe.augmentation, mirror=True))
    return recipe


def _classes(voxels: np.ndarray[tuple[int], np.dtype[np.int64]]) -> int:
    """Return how many classes there are, the background included. Raises ImageError if labels are missing between others."""
    present = np.flatnonzero(voxels[1:]) + 1
    if not len(present):
        raise ImageError(
            "the label maps are empty: there is nothing to learn", hint="labels are 1, 2 and so on, 0 is background"
        )
    missing = sorted(set(range(1, int(present[-1]))) - set(present.tolist()))
    if missing:
        raise ImageError(
            f"there are labels up to {present[-1]}, but no voxel of {missing[0]}", hint="number the labels 1, 2, 3 without gaps"
        )
    return int(present[-1]) + 1


def _window(wishes: Wishes, network: UNetConfig, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    if wishes.window is None:
        return window_for(shapes, network.factor, MOST_VOXELS[wishes.dimensions])
    return _asked_window(wishes.window, wishes, network)


def _whole_window(wishes: Wishes, network: ClassifierConfig, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return a window that holds all of each case: what is cut off could be what makes the class."""
    whole = covering_window(shapes, network.factor)
    if wishes.window is not None:
        window = _asked_window(wishes.window, wishes, network)
        if any(side < needed for side, needed in zip(window, np.max(np.array(shapes), axis=0), strict=True)):
            raise UsageError(
                f"a window of {_by(window)} voxels does not hold all of each image, which a class is of",
                hint=f"leave out --window, for {_by(whole)}, or give a coarser --spacing",
            )
        return window
    if prod(whole) > MOST_CLASSIFIED[wishes.dimensions]:
        raise UsageError(
            f"the images are large: a window that holds each of them has {_by(whole)} voxels",
            hint=f"give a coarser --spacing, or --window {','.join(map(str, whole))} to do it nevertheless",
        )
    return whole


def _asked_window(window: tuple[int, ...], wishes: Wishes, network: UNetConfig | ClassifierConfig) -> tuple[int, ...]:
    if len(window) != wishes.dimensions:
        raise UsageError(f"a window of {len(window)} sides is not one of {wishes.dimensions} dimensions")
    if min(window) < 2 * network.factor:
        raise UsageError(
            f"a window of {_by(window)} voxels is too small for {len(network.channels)} levels",
            hint=f"make each side {2 * network.factor} or more",
        )
    return window


def _by(window: Sequence[int]) -> str:
    return " by ".join(map(str, window))
