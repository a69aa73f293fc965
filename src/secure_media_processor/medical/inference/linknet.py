"""LinkNet (Chaurasia and Culurciello 2017) in three dimensions, laid out as the weights of deepbet want it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class LinkNetPair(nn.Module):
    """The two networks of a package: `box` finds where the brain is, `brain` finds it there.

    Called as a whole, as the self-test of packages does, it gives the logits of both, (B, 4, D, H, W).
    """

    def __init__(self) -> None:
        super().__init__()
        self.box = LinkNet()
        self.brain = LinkNet()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of both networks for one input."""
        return torch.cat([self.box(x), self.brain(x)], dim=1)


class LinkNet(nn.Module):
    """A residual encoder and a light decoder, joined by addition; 2,126,258 weights.

    Takes (B, 1, D, H, W) with sizes that are multiples of 32, and gives logits (B, 2, D, H, W): of the rest and of the brain.
    """

    def __init__(self) -> None:
        super().__init__()
        self.init = nn.Sequential(
            nn.Conv3d(1, 16, 7, stride=2, padding=3, bias=False),
            nn.InstanceNorm3d(16),
            nn.ReLU(),
            nn.MaxPool3d(3, stride=2, padding=1),
        )
        self.down0 = _Down(16, 16, 1)
        self.down1 = _Down(16, 32, 2)
        self.down2 = _Down(32, 64, 2)
        self.down3 = _Down(64, 128, 2)
        self.up0 = _Up(128, 64, 2)
        self.up1 = _Up(64, 32, 2)
        self.up2 = _Up(32, 16, 2)
        self.up3 = _Up(16, 16, 1)
        self.tp_conv1 = nn.Sequential(
            nn.ConvTranspose3d(16, 8, 3, stride=2, padding=1, output_padding=1), nn.InstanceNorm3d(8), nn.ReLU()
        )
        self.conv = nn.Sequential(nn.Conv3d(8, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.ReLU())
        self.tp_conv2 = nn.ConvTranspose3d(8, 2, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        first = self.init(x)
        half = self.down0(first)
        quarter = self.down1(half)
        eighth = self.down2(quarter)
        deep = self.up0(self.down3(eighth)) + eighth
        deep = self.up1(deep) + quarter
        deep = self.up2(deep) + half
        deep = self.up3(deep) + first
        logits: Tensor = self.tp_conv2(self.conv(self.tp_conv1(deep)))
        return logits


class _Residual(nn.Module):
    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv3d(inward, outward, 3, stride=stride, padding=1, bias=False),
            nn.InstanceNorm3d(outward),
            nn.ReLU(),
            nn.Conv3d(outward, outward, 3, padding=1, bias=False),
            nn.InstanceNorm3d(outward),
        )
        self.downsample = (
            nn.Sequential(nn.Conv3d(inward, outward, 1, stride=stride, bias=False), nn.InstanceNorm3d(outward))
            if inward != outward
            else nn.Identity()
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.relu(self.double_conv(x) + self.downsample(x))
        return summed


class _Down(nn.Module):
    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.block1 = _Residual(inward, outward, stride)
        self.block2 = _Residual(outward, outward, 1)

    def forward(self, x: Tensor) -> Tensor:
        deeper: Tensor = self.block2(self.block1(x))
        return deeper


class _Up(nn.Module):
    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        middle = inward // 4
        self.conv1 = nn.Sequential(nn.Conv3d(inward, middle, 1, bias=False), nn.InstanceNorm3d(middle), nn.ReLU())
        self.tp_conv = nn.Sequential(
            nn.ConvTranspose3d(middle, middle, 3, stride=stride, padding=1, output_padding=stride - 1, bias=False),
            nn.InstanceNorm3d(middle),
            nn.ReLU(),
        )
        self.conv2 = nn.Sequential(nn.Conv3d(middle, outward, 1, bias=False), nn.InstanceNorm3d(outward), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        wider: Tensor = self.conv2(self.tp_conv(self.conv1(x)))
        return wider
