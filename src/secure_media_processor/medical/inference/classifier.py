"""A small network that tells classes of whole images apart, in 2D and 3D. Weights travel as state dicts only.

It is the encoder of the residual U-Net (medical/unet/models.py): a convolution in full resolution, then a strided convolution
and a residual block (He 2016, arXiv:1512.03385) for each halving; the mean of each feature over all places (Lin 2014,
arXiv:1312.4400) and a linear layer follow. As the layers after the last features are linear, the logit of a class is the mean
over places of what each of them adds to it, which is what a map of the class shows (Zhou 2016, arXiv:1512.04150).

The mean over places forgets where something is, and takes any size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

from torch import nn

from secure_media_processor.errors import UsageError
from secure_media_processor.medical.unet.blocks import ConvNormAct, Residual, check_bounds, initialise, padded, padding_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

# Bounds on what a foreign description can ask for.
_MAX_IN_CHANNELS = 64
_MAX_CLASSES = 256
_MAX_FEATURES = 1024
_MAX_LEVELS = 8


@dataclass(frozen=True, slots=True)
class ClassifierConfig:
    """All that tells one classifier from another, apart from its weights.

    Raises:
        UsageError: a value is out of bounds.
    """

    dimensions: Literal[2, 3]
    in_channels: int
    """Images that go in together, 1 to 64."""
    out_channels: int
    """Classes, 2 to 256: logits for a softmax."""
    channels: tuple[int, ...]
    """Features a level, such as (16, 32, 64, 128), 2 to 8 levels of 1 to 1024. Each level below the first halves the
    resolution."""

    def __post_init__(self) -> None:
        if self.dimensions not in (2, 3):
            raise UsageError("a classifier has 2 or 3 dimensions")
        check_bounds("in_channels of a classifier", self.in_channels, 1, _MAX_IN_CHANNELS)
        check_bounds("out_channels of a classifier", self.out_channels, 2, _MAX_CLASSES)
        check_bounds("the number of levels of a classifier", len(self.channels), 2, _MAX_LEVELS)
        for features in self.channels:
            check_bounds("features of a level of a classifier", features, 1, _MAX_FEATURES)

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
            raise UsageError(f"a classifier is described by {', '.join(sorted(expected))} and nothing else")
        if not isinstance(values["channels"], list | tuple):
            raise UsageError("the channels of a classifier are a list of numbers")
        return cls(**{**values, "channels": tuple(values["channels"])})


def build_classifier(config: ClassifierConfig) -> Classifier:
    """Return a network with random weights, drawn from torch's global generator.

    It takes (B, in_channels, [D,] H, W) in any size, as float, and returns logits (B, out_channels). Sizes that are no multiple
    of `config.factor` are padded with the values at the border, as evenly on both sides as can be.
    """
    net = Classifier(config)
    net.apply(initialise)
    return net


class Classifier(nn.Module):
    """The network."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        dimensions, features = config.dimensions, config.channels
        steps = list(pairwise(features))
        self.stem = ConvNormAct(dimensions, config.in_channels, features[0])
        self.down = nn.ModuleList(ConvNormAct(dimensions, upper, lower, size=2, stride=2) for upper, lower in steps)
        self.encoder = nn.ModuleList(Residual(dimensions, lower, convolutions=2) for _, lower in steps)
        self.head = nn.Linear(features[-1], config.out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, out_channels) of images (B, in_channels, [D,] H, W).

        Raises:
            UsageError: the number of axes or channels is not that of the configuration.
        """
        config = self.config
        if images.dim() != config.dimensions + 2 or images.shape[1] != config.in_channels:
            axes = "(B, C, H, W)" if config.dimensions == 2 else "(B, C, D, H, W)"  # noqa: PLR2004 - 2D or 3D
            raise UsageError(f"the network takes {axes} with {config.in_channels} channels, not {tuple(images.shape)}")
        return self.logits(padded(images, padding_of(images.shape[2:], config.factor)))

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of images whose sizes are multiples of the factor."""
        logits: Tensor = self.head(self.features(images).flatten(2).mean(dim=2))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return the last features, (B, channels[-1], ...), of images whose sizes are multiples of the factor."""
        out: Tensor = self.stem(images)
        for down, block in zip(self.down, self.encoder, strict=True):
            out = block(down(out))
        return out
