"""Making one case into many: turned, scaled, bent, brighter, noisier. All of it in torch, on the device of the network.

Image and labels are sampled once, on a grid that holds the whole geometry, so that nothing is blurred twice. Every random
number of a sample comes from one seed: the same seed gives the same sample, whatever came before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import exp
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How much samples differ from the cases they are made of. Standard deviations unless it says otherwise."""

    rotation: float = 0.15
    """Radians, around each axis."""
    scale: float = 0.12
    """Natural logarithm of the factor, all axes together."""
    stretch: float = 0.05
    """The same for each axis apart."""
    shift: float = 2.0
    """Most voxels along each axis, beyond what brings all of a larger case into the window."""
    bend: float = 0.04
    """Of the control points of the elastic deformation, as a share of half the case's sides."""
    points: int = 5
    """Control points along each axis."""
    gain: float = 0.2
    """Most of the change of contrast, as a share."""
    offset: float = 0.2
    """Most of what is added, as a share of the standard deviation of the sample."""
    gamma: float = 0.35
    """Most of the natural logarithm of the exponent."""
    gamma_share: float = 0.3
    """Of the samples whose gray levels go through a power."""
    noise: float = 0.15
    """Most of the standard deviation of Gaussian noise, as a share of that of the sample."""
    noise_share: float = 0.5
    """Of the samples with noise."""
    mirror: bool = False
    """Whether half of the samples have left and right exchanged. Not where labels are sided."""
    foreground: float = 0.33
    """Share of the windows, of cases larger than they, that are laid around a voxel with a label."""


def sample(image: Tensor, labels: Tensor, window: Sequence[int], seed: int, options: Augmentation) -> tuple[Tensor, Tensor]:
    """Return a changed piece of a case.

    Outside of the case the values at its border go on, as they do where the network pads; the background does too.

    Args:
        image: (C, *sides), float32, scaled.
        labels: (*sides), uint8.
        window: Sides of the piece, voxels; 2 or 3 as those of the image.
        seed: 0 to 2⁶³ - 1.
        options: How much.

    Returns:
        (C, *window), float32, and (*window), int64, on the same device.
    """
    dice = _Dice(torch.Generator().manual_seed(seed))
    grid = _grid(labels, window, dice, options)
    moved = _moved(image, grid)
    truth = functional.grid_sample(labels[None, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    return _repainted(moved, dice, options), truth[0, 0].round().long()


def sample_image(image: Tensor, window: Sequence[int], seed: int, options: Augmentation) -> Tensor:
    """Return a changed piece of an image without labels, as `sample` does."""
    dice = _Dice(torch.Generator().manual_seed(seed))
    nothing = torch.zeros((), dtype=torch.uint8, device=image.device).expand(image.shape[1:])
    return _repainted(_moved(image, _grid(nothing, window, dice, options)), dice, options)


@dataclass(frozen=True, slots=True)
class _Dice:
    """Random numbers."""

    generator: torch.Generator
    """On the CPU, so that all devices get the same ones."""

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def happens(self, share: float) -> bool:
        return self.between(0, 1) < share


def _grid(labels: Tensor, window: Sequence[int], dice: _Dice, options: Augmentation) -> Tensor:
    """Return the places of a piece as grid_sample takes them: (1, *window, axes)."""
    places = _places(labels, window, dice, options)
    sides = torch.tensor(labels.shape, dtype=torch.float32, device=labels.device)
    return (places * (2 / sides)).flip(-1)[None]


def _moved(image: Tensor, grid: Tensor) -> Tensor:
    """Return the image at the places of a grid: (C, *window)."""
    return functional.grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def _places(labels: Tensor, window: Sequence[int], dice: _Dice, options: Augmentation) -> Tensor:
    """Return where in the case each voxel of the piece comes from: (*window, axes), voxels from the middle of the case."""
    device, axes = labels.device, len(window)
    matrix = _turned(axes, dice, options)
    centre = _centre(labels, window, dice, options)
    ranges = [torch.arange(side, dtype=torch.float32) - (side - 1) / 2 for side in window]
    # A sum of three vectors by broadcasting: the points of a grid that was turned and stretched lie evenly along its sides.
    places = centre.to(device)
    for axis, steps in enumerate(ranges):
        line = steps[:, None] * matrix[:, axis]
        places = places + line.view(*(-1 if at == axis else 1 for at in range(axes)), axes).to(device)
    if options.bend:
        bent = dice.normal(1, axes, *[options.points] * axes) * options.bend
        bent *= torch.tensor(labels.shape, dtype=torch.float32).view(1, -1, *[1] * axes) / 2
        mode = "bilinear" if axes == 2 else "trilinear"  # noqa: PLR2004 - 2D or 3D
        smooth = functional.interpolate(bent.to(device), size=tuple(window), mode=mode, align_corners=True)
        places = places + smooth[0].movedim(0, -1)
    return places


def _turned(axes: int, dice: _Dice, options: Augmentation) -> Tensor:
    """Return the matrix that leads from voxels of the piece to those of the case."""
    matrix = torch.eye(axes)
    for first, second in combinations(range(axes), 2):
        angle = dice.normal(1) * options.rotation
        turn = torch.eye(axes)
        turn[first, first] = turn[second, second] = torch.cos(angle)
        turn[first, second] = torch.sin(angle)
        turn[second, first] = -torch.sin(angle)
        matrix = matrix @ turn
    factors = torch.exp(dice.normal(1) * options.scale + dice.normal(axes) * options.stretch)
    if dice.happens(0.5) and options.mirror:
        matrix[0] *= -1  # the first axis leads to the right
    return matrix * factors


def _centre(labels: Tensor, window: Sequence[int], dice: _Dice, options: Augmentation) -> Tensor:
    """Return where the middle of the piece lies: voxels from the middle of the case."""
    axes = len(window)
    spare = torch.tensor([max(side - part, 0) / 2 for side, part in zip(labels.shape, window, strict=True)])
    pick, jitter = dice.between(0, 1), torch.rand(axes, generator=dice.generator) * 2 - 1
    if dice.happens(options.foreground) and bool(spare.any()):
        found = labels.nonzero()
        if len(found):
            voxel = found[int(pick * len(found))].cpu()
            around = voxel - (torch.tensor(labels.shape, dtype=torch.float32) - 1) / 2
            return torch.maximum(torch.minimum(around, spare), -spare) + jitter * options.shift
    return jitter * (spare + options.shift)


def _repainted(image: Tensor, dice: _Dice, options: Augmentation) -> Tensor:
    """Return the image with other gray levels: (C, *sides)."""
    if dice.happens(options.gamma_share):
        axes = tuple(range(1, image.dim()))
        low = image.amin(dim=axes, keepdim=True)
        extent = (image.amax(dim=axes, keepdim=True) - low).clamp_min(1e-6)
        image = ((image - low) / extent) ** exp(dice.between(-options.gamma, options.gamma)) * extent + low
    unit = image.std()
    image = image * (1 + dice.between(-options.gain, options.gain)) + unit * dice.between(-options.offset, options.offset)
    if dice.happens(options.noise_share):
        deviation = unit * dice.between(0, options.noise)
        image = image + dice.normal(*image.shape).to(image.device) * deviation
    return image
