"""Three U-Nets in 2D and 3D: standard, with attention gates, and a cheap residual one. Weights travel as state dicts only.

Tensors are (B, C, H, W) or (B, C, D, H, W); the meaning of the spatial axes is the caller's. The normalisation is that of each
instance (Ulyanov 2016, with weight and bias), the activation a LeakyReLU with slope 0.01. A convolution before a normalisation
has no bias: it would be taken out again at once.

- standard: two convolutions of 3 a level, maximum of 2 on the way down, transposed convolution of 2 on the way up,
  concatenation (Ronneberger 2015, arXiv:1505.04597; Cicek 2016, arXiv:1606.06650). With features (a, a, 2a, 4a, 8a) it is,
  layer for layer, MONAI's `BasicUNet` without biases.
- attention: the same, with additive gates on all connections but the uppermost (Oktay 2018, arXiv:1804.03999).
- residual: strided convolutions on the way down, residual blocks, connections that are added instead of concatenated, and a
  single convolution before and after in full resolution (after Milletari 2016, arXiv:1606.04797): most of its work is done in
  half resolution and below, which makes it the one that a CPU can train.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

import torch
from torch import nn
from torch.nn import functional

from secure_media_processor.errors import UsageError
from secure_media_processor.medical.unet.blocks import (
    ConvNormAct,
    Residual,
    check_bounds,
    conv,
    initialise,
    padded,
    padding_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

Variant = Literal["standard", "attention", "residual"]
VARIANTS: Final[tuple[str, ...]] = get_args(Variant)

# Bounds on what a foreign description can ask for. They are far above what is of use.
_MAX_IN_CHANNELS = 64
_MAX_CLASSES = 256
_MAX_FEATURES = 1024
_MAX_LEVELS = 8


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """All that tells one network from another, apart from its weights.

    Raises:
        UsageError: a value is out of bounds.
    """

    variant: Variant
    dimensions: Literal[2, 3]
    in_channels: int
    """Images that go in together, 1 to 64."""
    out_channels: int
    """Classes including the background, 2 to 256: logits for a softmax."""
    channels: tuple[int, ...]
    """Features a level, such as (16, 32, 64, 128), 2 to 8 levels of 1 to 1024. Each level below the first halves the
    resolution."""

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise UsageError(f"there is no U-Net variant {self.variant!r}", hint=f"choose one of {', '.join(VARIANTS)}")
        if self.dimensions not in (2, 3):
            raise UsageError("a U-Net has 2 or 3 dimensions")
        check_bounds("in_channels of a U-Net", self.in_channels, 1, _MAX_IN_CHANNELS)
        check_bounds("out_channels of a U-Net", self.out_channels, 2, _MAX_CLASSES)
        least = 3 if self.variant == "attention" else 2
        check_bounds("the number of levels of a U-Net", len(self.channels), least, _MAX_LEVELS)
        for features in self.channels:
            check_bounds("features of a level of a U-Net", features, 1, _MAX_FEATURES)

    @property
    def factor(self) -> int:
        """What every size is padded to a multiple of."""
        return 1 << (len(self.channels) - 1)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, which `from_json` takes."""
        return asdict(self) | {"channels": list(self.channels)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the configuration that `to_json` wrote.

        Raises:
            UsageError: a value is missing, unknown, of another type or out of bounds.
        """
        expected = set(cls.__dataclass_fields__)
        if set(values) != expected:
            raise UsageError(f"a U-Net is described by {', '.join(sorted(expected))} and nothing else")
        if not isinstance(values["channels"], list | tuple):
            raise UsageError("the channels of a U-Net are a list of numbers")
        return cls(**{**values, "channels": tuple(values["channels"])})


def build_unet(config: UNetConfig) -> UNet | ResidualUNet:
    """Return a network with random weights (He 2015), drawn from torch's global generator.

    It takes (B, in_channels, [D,] H, W) in any size, as float, and returns logits (B, out_channels, [D,] H, W). Sizes that are
    no multiple of `config.factor` are padded with the values at the border, as evenly on both sides as can be, and the result
    is cut back.
    """
    net = ResidualUNet(config) if config.variant == "residual" else UNet(config)
    net.apply(initialise)
    return net


class _Padded(nn.Module, ABC):
    """A network that can take any size because it pads."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, out_channels, [D,] H, W) of images (B, in_channels, [D,] H, W).

        Raises:
            UsageError: the number of axes or channels is not that of the configuration.
        """
        config = self.config
        if images.dim() != config.dimensions + 2 or images.shape[1] != config.in_channels:
            axes = "(B, C, H, W)" if config.dimensions == 2 else "(B, C, D, H, W)"  # noqa: PLR2004 - 2D or 3D
            raise UsageError(f"the network takes {axes} with {config.in_channels} channels, not {tuple(images.shape)}")
        sizes = images.shape[2:]
        padding = padding_of(sizes, config.factor)
        if not any(side for pair in padding for side in pair):
            return self.logits(images)
        logits = self.logits(padded(images, padding))
        for axis, ((before, _), size) in enumerate(zip(padding, sizes, strict=True), start=2):
            logits = logits.narrow(axis, before, size)
        return logits

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of images whose sizes are multiples of the factor."""


class UNet(_Padded):
    """The standard U-Net and that with attention gates."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        dimensions, features = config.dimensions, config.channels
        self.encoder = nn.ModuleList(
            _Convolutions(dimensions, before, after)
            for before, after in zip((config.in_channels, *features[:-1]), features, strict=True)
        )
        steps = list(pairwise(features))
        self.up = nn.ModuleList(_up(dimensions, lower, upper) for upper, lower in steps)
        self.decoder = nn.ModuleList(_Convolutions(dimensions, 2 * upper, upper) for upper, _ in steps)
        # "The first skip connections are not used in the gating function": section 2 of the paper.
        self.gates = nn.ModuleList(
            _Gate(dimensions, upper, lower) for upper, lower in (steps[1:] if config.variant == "attention" else [])
        )
        self.head = conv(dimensions, features[0], config.out_channels, 1, bias=True)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of images whose sizes are multiples of the factor."""
        pool = functional.max_pool2d if self.config.dimensions == 2 else functional.max_pool3d  # noqa: PLR2004 - 2D or 3D
        kept: list[Tensor] = []
        out = images
        for level, block in enumerate(self.encoder):
            out = block(pool(out, 2) if level else out)
            kept.append(out)
        kept.pop()
        for level in reversed(range(len(self.decoder))):
            skip = kept.pop()
            if level and self.gates:
                skip = self.gates[level - 1](skip, out)
            out = self.decoder[level](torch.cat([skip, self.up[level](out)], dim=1))
        logits: Tensor = self.head(out)
        return logits


class ResidualUNet(_Padded):
    """The cheap one."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        dimensions, features = config.dimensions, config.channels
        steps = list(pairwise(features))
        self.stem = ConvNormAct(dimensions, config.in_channels, features[0])
        self.down = nn.ModuleList(ConvNormAct(dimensions, upper, lower, size=2, stride=2) for upper, lower in steps)
        self.encoder = nn.ModuleList(Residual(dimensions, lower, convolutions=2) for _, lower in steps)
        self.up = nn.ModuleList(_up(dimensions, lower, upper) for upper, lower in steps)
        self.decoder = nn.ModuleList(Residual(dimensions, upper, convolutions=1) for upper, _ in steps)
        self.head = conv(dimensions, features[0], config.out_channels, 1, bias=True)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of images whose sizes are multiples of the factor."""
        out = self.stem(images)
        kept: list[Tensor] = []
        for down, block in zip(self.down, self.encoder, strict=True):
            kept.append(out)
            out = block(down(out))
        for level in reversed(range(len(self.decoder))):
            out = self.decoder[level](kept.pop() + self.up[level](out))
        logits: Tensor = self.head(out)
        return logits


class _Convolutions(nn.Sequential):
    """Two convolutions of 3, each with normalisation and activation."""

    def __init__(self, dimensions: int, before: int, after: int) -> None:
        super().__init__(ConvNormAct(dimensions, before, after), ConvNormAct(dimensions, after, after))


class _Gate(nn.Module):
    """Additive attention: weighs what a connection carries by what the level below has found (figure 2 of the paper).

    x * sigmoid(psi(relu(W_x x + W_g g + b))), computed in the resolution of g and enlarged linearly. W_x steps by 2.
    """

    def __init__(self, dimensions: int, features: int, gating: int) -> None:
        super().__init__()
        inner = max(features // 2, 1)
        self.from_skip = conv(dimensions, features, inner, 2, stride=2)
        self.from_gating = conv(dimensions, gating, inner, 1, bias=True)
        self.psi = conv(dimensions, inner, 1, 1, bias=True)

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        weights = torch.sigmoid(self.psi(functional.relu(self.from_skip(skip) + self.from_gating(gating))))
        return skip * _doubled(weights)


def _doubled(features: Tensor) -> Tensor:
    """Return features in twice the resolution, interpolated linearly.

    The same as torch's interpolate with align_corners=False, whose gradient on a GPU is not the same from run to run.
    """
    for axis in range(2, features.dim()):
        size = features.shape[axis]
        before = torch.cat([features.narrow(axis, 0, 1), features.narrow(axis, 0, size - 1)], dim=axis)
        after = torch.cat([features.narrow(axis, 1, size - 1), features.narrow(axis, size - 1, 1)], dim=axis)
        features = torch.stack([0.75 * features + 0.25 * before, 0.75 * features + 0.25 * after], dim=axis + 1)
        features = features.flatten(axis, axis + 1)
    return features


def _up(dimensions: int, before: int, after: int) -> nn.Module:
    kind = nn.ConvTranspose2d if dimensions == 2 else nn.ConvTranspose3d  # noqa: PLR2004 - 2D or 3D
    return kind(before, after, 2, stride=2)
