"""What training makes small: how far logits are from the labels.

Each loss is called with logits (B, K, [D,] H, W), of any floating dtype, and labels (B, [D,] H, W), int64 from 0 (background)
to K - 1; it returns a scalar in float32. All is computed in float32, also where autocast is on: sums over many voxels
do not fit into bfloat16. The definitions, and with them the figures, are those of MONAI 1.6 with the settings that each class
names.

A class that is neither in the labels nor in the prediction costs nothing; one that is predicted where it is not at all costs
up to 1 and pushes the prediction down. The background counts in no overlap (Dice, Tversky): it would hide the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch.nn import functional

from secure_media_processor.errors import ImageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SMOOTH: Final = 1e-5
"""Added to numerators and denominators of overlaps, in voxels: what makes empty / empty 1."""


class Loss(Protocol):
    """What all losses are."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return a scalar in float32 for logits (B, K, [D,] H, W) and labels (B, [D,] H, W)."""


@dataclass(frozen=True, slots=True)
class DiceLoss:
    """1 - Dice of the softmax, squared nowhere, mean over images and classes without the background.

    Milletari 2016, arXiv:1606.04797, with the denominator of Drozdzal 2016. MONAI: DiceLoss(softmax=True,
    include_background=False).
    """

    over_batch: bool = False
    """Whether voxels of all images of a batch are counted together: steadier where a class is missing in many of them."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, 0 to 1."""
        return _in_float32(self._loss, logits, labels)

    def _loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        return _dice_loss(logits.softmax(dim=1), truth, over_batch=self.over_batch)


@dataclass(frozen=True, slots=True)
class DiceCrossEntropyLoss:
    """Dice loss and cross-entropy, one to one: the loss of nnU-Net (Isensee 2021). MONAI: DiceCELoss(softmax=True, ...)."""

    over_batch: bool = False
    """As for DiceLoss."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, from 0."""
        return _in_float32(self._loss, logits, labels)

    def _loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        logarithms = logits.log_softmax(dim=1)
        cross_entropy = -(truth * logarithms).sum(dim=1).mean()
        return _dice_loss(logarithms.exp(), truth, over_batch=self.over_batch) + cross_entropy


@dataclass(frozen=True, slots=True)
class BceDiceLoss:
    """Binary cross-entropy and Dice loss of each class against the rest, with a sigmoid for each.

    The background takes part in the cross-entropy, so that the largest logit still names the class; but a softmax of such
    logits is no calibrated probability. MONAI: DiceLoss(sigmoid=True) + torch's BCEWithLogitsLoss.
    """

    over_batch: bool = False
    """As for DiceLoss."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, from 0."""
        return _in_float32(self._loss, logits, labels)

    def _loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        dice = _dice_loss(logits.sigmoid(), truth, over_batch=self.over_batch)
        return dice + functional.binary_cross_entropy_with_logits(logits, truth)


@dataclass(frozen=True, slots=True)
class FocalLoss:
    """Cross-entropy in which voxels that are right already count little: -(1 - p)^gamma log p (Lin 2017, arXiv:1708.02002).

    Its mean is over voxels and classes, the background included, as MONAI's: FocalLoss(use_softmax=True).
    """

    gamma: float = 2.0
    """How little they count; 0 is cross-entropy over the number of classes."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, from 0."""
        return _in_float32(self._loss, logits, labels)

    def _loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        logarithm = (truth * logits.log_softmax(dim=1)).sum(dim=1)  # of the probability of the right class
        # 1 - p, kept off 0: the power has no finite slope there if gamma is below 1.
        wrong = (-torch.expm1(logarithm)).clamp_min(torch.finfo(torch.float32).tiny)
        return -(wrong**self.gamma * logarithm).mean() / logits.shape[1]


@dataclass(frozen=True, slots=True)
class TverskyLoss:
    """As the Dice loss, with false positives and false negatives weighed apart (Salehi 2017, arXiv:1706.05721).

    MONAI: TverskyLoss(softmax=True, include_background=False, alpha=0.3, beta=0.7).
    """

    false_positives: float = 0.3
    """alpha of the paper."""
    false_negatives: float = 0.7
    """beta of the paper: above alpha for small things that must not be missed. 0.5 and 0.5 is the Dice loss."""
    over_batch: bool = False
    """As for DiceLoss."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, 0 to 1."""
        return _in_float32(self._loss, logits, labels)

    def _loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        hit, predicted, present = _overlaps(logits.softmax(dim=1), truth, over_batch=self.over_batch)
        cost = self.false_positives * (predicted - hit) + self.false_negatives * (present - hit)
        return (1 - (hit + SMOOTH) / (hit + cost + SMOOTH)).mean()


LOSSES: Final[dict[str, type[Loss]]] = {
    "dice": DiceLoss,
    "dice-ce": DiceCrossEntropyLoss,
    "bce-dice": BceDiceLoss,
    "focal": FocalLoss,
    "tversky": TverskyLoss,
}


def loss_named(name: str) -> Loss:
    """Return the loss of that name, with its usual settings.

    Raises:
        UsageError: there is none.
    """
    if name not in LOSSES:
        raise UsageError(f"there is no loss {name!r}", hint=f"choose one of {', '.join(LOSSES)}")
    return LOSSES[name]()


def _in_float32(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    """Return a loss of logits (B, K, ...) and one-hot labels (B, K, ...), both in float32.

    Raises:
        UsageError: the shapes do not fit each other.
        ImageError: the labels name a class that the network does not have.
    """
    classes = logits.shape[1]
    if (logits.shape[0], *logits.shape[2:]) != tuple(labels.shape):
        raise UsageError(f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}")
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < 0 or high >= classes:
        raise ImageError(f"the labels go from {low} to {high}, but the network has the classes 0 to {classes - 1}")
    with torch.autocast(logits.device.type, enabled=False):
        truth = torch.zeros_like(logits, dtype=torch.float32).scatter_(1, labels[:, None], 1.0)
        return loss(logits.to(torch.float32), truth)


def _overlaps(probabilities: Tensor, truth: Tensor, *, over_batch: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is in both, in the prediction, and in the truth: voxels of each image and class but the background."""
    axes = [0] * over_batch + list(range(2, truth.dim()))
    probabilities, truth = probabilities[:, 1:], truth[:, 1:]
    return (probabilities * truth).sum(dim=axes), probabilities.sum(dim=axes), truth.sum(dim=axes)


def _dice_loss(probabilities: Tensor, truth: Tensor, *, over_batch: bool) -> Tensor:
    hit, predicted, present = _overlaps(probabilities, truth, over_batch=over_batch)
    return (1 - (2 * hit + SMOOTH) / (predicted + present + SMOOTH)).mean()
