"""From what a card says of a network to the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_media_processor.medical.inference.card import ClassifierArchitecture, LinkNetArchitecture
from secure_media_processor.medical.inference.classifier import build_classifier
from secure_media_processor.medical.inference.linknet import LinkNetPair
from secure_media_processor.medical.unet.models import build_unet

if TYPE_CHECKING:
    from torch import nn

    from secure_media_processor.medical.inference.card import UNetArchitecture


def build(architecture: UNetArchitecture | LinkNetArchitecture | ClassifierArchitecture) -> nn.Module:
    """Return the network without trained weights."""
    if isinstance(architecture, LinkNetArchitecture):
        return LinkNetPair()
    if isinstance(architecture, ClassifierArchitecture):
        return build_classifier(architecture.config())
    return build_unet(architecture.config())
