"""How much memory a segmentation will need, told before it starts.

The figures of the networks are upper bounds that were measured (peak resident memory of one window, less that of the
libraries), in multiples of the features of the uppermost level. What an ONNX graph needs is not known; it is taken to be like a
U-Net of 32 features.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Final

from secure_media_processor.core.device import available_memory
from secure_media_processor.errors import UsageError
from secure_media_processor.medical.inference.card import UNetArchitecture

if TYPE_CHECKING:
    from collections.abc import Iterable

    from secure_media_processor.medical.inference.packages import Package
    from secure_media_processor.medical.unet.engines import Choice
    from secure_media_processor.medical.unet.windows import Plan

# Arrays as large as the uppermost features that are there at once: skip connection, its concatenation, an engine's copies.
_COPIES: Final = {"standard": 9.0, "attention": 10.0, "residual": 8.0}
_COPIES_OPENVINO: Final = 7.0  # it reuses memory
_UNKNOWN_FEATURES: Final = 32
# What engines load and compile besides what checking a package has loaded already, bytes.
_LIBRARIES: Final = {"torch": 80 << 20, "openvino": 200 << 20, "onnx": 120 << 20}
# How many times the weights are in memory: as they are stored, as numbers, and as the engine orders them.
_WEIGHTS: Final = 4
# Windows are not made larger than this, in bytes of what is kept of one and of its logits, however much memory there is.
COMFORTABLE: Final = 640 << 20
_COMFORTABLE_LOGITS: Final = 96 << 20


@dataclass(frozen=True, slots=True)
class Needs:
    """What a segmentation takes, bytes, besides what the process has already."""

    fixed: int
    """Labels, copies of the images, libraries, weights."""
    a_voxel: float
    """Of a window, for what the network keeps of it and for its logits."""
    a_carried_voxel: int
    """Of the overlap that is carried from window to window."""

    def of(self, plan: Plan, batch: int = 1) -> int:
        """Return the bytes that this plan takes."""
        return int(self.fixed + self.a_voxel * prod(plan.size) * batch + self.a_carried_voxel * plan.carried)

    @property
    def comfortable(self) -> int:
        """The most voxels of a window for which there is no reason to hesitate."""
        return max(int(min(COMFORTABLE / self.a_voxel, _COMFORTABLE_LOGITS / self.a_carried_voxel)), 1)


def needs(package: Package, choice: Choice, *, voxels: int, fixed: int, network: bool = True) -> Needs:
    """Return what a segmentation takes.

    Args:
        package: The model.
        choice: What computes.
        voxels: Of the grid on which the network works.
        fixed: Bytes that the caller knows of.
        network: Whether the network runs in the memory of this process, not on a GPU.
    """
    architecture = package.card.architecture
    classes = len(package.card.outputs.labels)
    features, copies = _UNKNOWN_FEATURES, _COPIES["attention"]
    if isinstance(architecture, UNetArchitecture):
        features, copies = architecture.channels[0], _COPIES[architecture.variant]
    if choice.engine == "openvino":
        copies = min(copies, _COPIES_OPENVINO)
    number = 2 if choice.precision == "bfloat16" else 4
    weights = sum(len(data) for data in package.files.values()) * _WEIGHTS
    kept = features * copies * number if network else 0
    # Logits as the engine has them, as they are blended, and one more for mirrored windows.
    return Needs(fixed + voxels + weights + _LIBRARIES[choice.engine], kept + 12 * classes + 8, 4 * classes)


def chosen(plans: Iterable[Plan], need: Needs, *, most: int | None) -> tuple[Plan, int]:
    """Return the first plan that fits, and the peak of the process with it, bytes.

    Args:
        plans: From the one with the least work to the one with the least memory.
        need: What they take.
        most: Bytes that the process may have at its peak; None for what the system has.

    Raises:
        UsageError: none fits; the figure is told.
    """
    now = resident()
    limit = most if most is not None else now + available_memory()
    peak, source = 0, "allowed by --max-memory" if most is not None else "free"
    for plan in plans:
        peak = now + need.of(plan)
        if peak <= limit:
            return plan, peak
    raise UsageError(
        f"this needs about {gigabytes(peak)}, and {gigabytes(limit)} is {source}",
        hint="allow more with --max-memory, resample the image more coarsely first, or use a machine with more memory",
    )


def resident() -> int:
    """Return the bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def gigabytes(size: int) -> str:
    """Return a size as people say it, such as 1.4 GB (10⁹ bytes)."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"  # noqa: PLR2004 - from where on the one reads better
