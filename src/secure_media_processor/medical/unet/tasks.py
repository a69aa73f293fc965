"""What training for voxels and training for whole images do differently: samples, loss, and how good the network is so far."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch.nn import functional

from secure_media_processor.errors import UsageError
from secure_media_processor.medical.inference.classifier import ClassifierConfig, build_classifier
from secure_media_processor.medical.unet.augmentation import Augmentation, sample, sample_image
from secure_media_processor.medical.unet.losses import loss_named
from secure_media_processor.medical.unet.models import UNetConfig, build_unet

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn

    from secure_media_processor.medical.unet.dataset import Case, Sample

CROSS_ENTROPY: Final = "cross-entropy"
_LOOKED_AT: Final = 8  # validation cases, or of each class
# A sample as it is, around a voxel with a label where the case is larger than the window.
PLAIN: Final = Augmentation(
    rotation=0, scale=0, stretch=0, shift=0, bend=0, gain=0, offset=0, gamma_share=0, noise_share=0, foreground=1
)


class Task(Protocol):
    """What a network learns."""

    score: str
    """What `scored` returns, for people."""

    def network(self) -> nn.Module:
        """Return the network with random weights, drawn from torch's global generator."""

    def check(self, loss: str) -> None:
        """Raise UsageError if there is no loss of this name."""

    def sample(
        self, found: Sample, window: Sequence[int], seed: int, options: Augmentation, device: str
    ) -> tuple[Tensor, Tensor]:
        """Return a piece of a case, (C, *window), and what is to be learnt of it, int64."""

    def loss(self, name: str, logits: Tensor, wanted: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar."""

    def looked_at(self, validation: Sequence[Case]) -> Sequence[Case]:
        """Return the validation cases that are looked at on the way."""

    def scored(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Return how good predictions are, 0 to 1: pairs of what was found in a piece, classes, and what is there."""


class Segmentation:
    """A label for each voxel."""

    score = "Dice"

    def __init__(self, config: UNetConfig) -> None:
        self.config = config

    def network(self) -> nn.Module:
        """Return the network with random weights."""
        return build_unet(self.config)

    def check(self, loss: str) -> None:
        """Raise UsageError if there is no loss of this name."""
        loss_named(loss)

    def sample(
        self, found: Sample, window: Sequence[int], seed: int, options: Augmentation, device: str
    ) -> tuple[Tensor, Tensor]:
        """Return a piece, (C, *window), and its labels, (*window)."""
        image, labels = torch.from_numpy(found.image), torch.from_numpy(found.labels)
        if len(window) == 2:  # noqa: PLR2004 - slices of a volume
            chosen = _slice_of(labels, seed, options)
            image, labels = image[..., chosen], labels[..., chosen]
        return sample(image.to(device), labels.to(device), window, seed, options)

    def loss(self, name: str, logits: Tensor, wanted: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return loss_named(name)(logits, wanted)

    def looked_at(self, validation: Sequence[Case]) -> Sequence[Case]:
        """Return the first cases."""
        return validation[:_LOOKED_AT]

    def scored(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Return the mean over labels of the Dice of all pieces together."""
        classes = self.config.out_channels
        hits, sizes = torch.zeros(classes - 1), torch.zeros(classes - 1)
        for found, truth in pairs:
            for label in range(1, classes):
                hits[label - 1] += int(((found == label) & (truth == label)).sum())
                sizes[label - 1] += int((found == label).sum()) + int((truth == label).sum())
        return float(torch.where(sizes > 0, 2 * hits / sizes.clamp_min(1), 1.0).mean())


class Classification:
    """A class for each image."""

    score = "accuracy"

    def __init__(self, config: ClassifierConfig) -> None:
        self.config = config

    def network(self) -> nn.Module:
        """Return the network with random weights."""
        return build_classifier(self.config)

    def check(self, loss: str) -> None:
        """Raise UsageError unless the loss is cross-entropy."""
        if loss != CROSS_ENTROPY:
            raise UsageError(f"a classifier does not learn with the loss {loss!r}", hint=f"it takes {CROSS_ENTROPY}")

    def sample(
        self, found: Sample, window: Sequence[int], seed: int, options: Augmentation, device: str
    ) -> tuple[Tensor, Tensor]:
        """Return a piece, (C, *window), and its class, ()."""
        image = torch.from_numpy(found.image)
        if len(window) == 2:  # noqa: PLR2004 - of one slice
            image = image[..., 0]
        return sample_image(image.to(device), window, seed, options), torch.tensor(int(found.labels), device=device)

    def loss(self, name: str, logits: Tensor, wanted: Tensor) -> Tensor:
        """Return the cross-entropy of a batch."""
        self.check(name)
        return functional.cross_entropy(logits.float(), wanted)

    def looked_at(self, validation: Sequence[Case]) -> Sequence[Case]:
        """Return the first cases of each class."""
        return [
            case
            for class_ in range(self.config.out_channels)
            for case in [case for case in validation if case.class_ == class_][:_LOOKED_AT]
        ]

    def scored(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Return the mean over classes of the share of images that are right."""
        right: dict[int, list[bool]] = {}
        for found, truth in pairs:
            right.setdefault(int(truth), []).append(int(found) == int(truth))
        return sum(sum(each) / len(each) for each in right.values()) / len(right)


def task_of(config: UNetConfig | ClassifierConfig) -> Task:
    """Return what a network with this configuration learns."""
    return Classification(config) if isinstance(config, ClassifierConfig) else Segmentation(config)


def _slice_of(labels: Tensor, seed: int, options: Augmentation) -> int:
    """Return the slice of a volume that a 2D sample is made of: the middle one of those with labels, or a random one."""
    dice = random.Random(seed)  # noqa: S311 - a choice, not a secret
    filled = labels.flatten(0, 1).any(dim=0).nonzero().flatten().tolist()
    if options.foreground >= 1 and filled:
        return int(filled[len(filled) // 2])
    if filled and dice.random() < options.foreground:
        return int(dice.choice(filled))
    return dice.randrange(labels.shape[-1])
