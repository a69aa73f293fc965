"""What networks are built of, in 2D and 3D: convolution, instance normalisation and LeakyReLU, and residual blocks of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional

from secure_media_processor.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_SLOPE = 0.01


class ConvNormAct(nn.Module):
    """Convolution, normalisation, activation."""

    def __init__(self, dimensions: int, before: int, after: int, *, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = conv(dimensions, before, after, size, stride=stride)
        self.norm = norm(dimensions, after)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, after, ...)."""
        return functional.leaky_relu(self.norm(self.conv(features)), _SLOPE, inplace=True)


class Residual(nn.Module):
    """Convolutions of 3 whose result is added to what went in, before the last activation (He 2016, arXiv:1512.03385)."""

    def __init__(self, dimensions: int, features: int, *, convolutions: int) -> None:
        super().__init__()
        self.before = nn.Sequential(*(ConvNormAct(dimensions, features, features) for _ in range(convolutions - 1)))
        self.conv = conv(dimensions, features, features, 3)
        self.norm = norm(dimensions, features)

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        return functional.leaky_relu(features + self.norm(self.conv(self.before(features))), _SLOPE, inplace=True)


def conv(dimensions: int, before: int, after: int, size: int, *, stride: int = 1, bias: bool = False) -> nn.Module:
    """Return a convolution that keeps sizes, apart from the stride."""
    kind = nn.Conv2d if dimensions == 2 else nn.Conv3d  # noqa: PLR2004 - 2D or 3D
    return kind(before, after, size, stride=stride, padding=(size - 1) // 2, bias=bias)


def norm(dimensions: int, features: int) -> nn.Module:
    """Return the normalisation of each instance, with weight and bias."""
    kind = nn.InstanceNorm2d if dimensions == 2 else nn.InstanceNorm3d  # noqa: PLR2004 - 2D or 3D
    return kind(features, affine=True)


def initialise(module: nn.Module) -> None:
    """Draw the weights of a convolution from torch's global generator (He 2015)."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def padding_of(sizes: Sequence[int], factor: int) -> list[tuple[int, int]]:
    """Return how many voxels go before and after each axis so that all sizes are multiples of `factor`, as evenly as can be."""
    found = []
    for axis, size in enumerate(sizes):
        total = -size % factor
        if axis == 0 and all(one <= factor for one in sizes):
            # On the lowest level a single voxel would be left, of which there are no statistics.
            total += factor
        found.append((total // 2, total - total // 2))
    return found


def padded(images: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    """Return images (B, C, ...) with the values at the border going on for so many voxels."""
    return functional.pad(images, [side for pair in reversed(padding) for side in pair], mode="replicate")


def check_bounds(name: str, value: object, low: int, high: int) -> None:
    """Raise UsageError unless the value is a whole number within the bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
