"""The brain in a T1-weighted head: two passes of a LinkNet over the whole volume, as deepbet makes them (Fisch et al. 2024).

The first pass, at 128³, finds the box in which the brain is; the second, at 256³, looks only there. No windows are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import interpolate

from secure_media_processor.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from secure_media_processor.medical.inference.linknet import LinkNet, LinkNetPair

PASSES: Final = ((128, 128, 128), (256, 256, 256))
"""Sizes of what the two networks see, voxels."""
_COARSE, _FINE = PASSES
_QUANTILES = (0.005, 0.995)
_MARGIN = 0.1  # of the box, on each side
_LEAST_ROW = 0.02  # share of a plane that must be brain for the plane to count
# Mean and standard deviation, of ImageNet's green channel, with which the networks were trained.
_MEAN, _DEVIATION = 0.449, 0.226


def brain_mask(
    array: NDArray[np.float32],
    networks: LinkNetPair,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.bool_]:
    """Return what is brain.

    Args:
        array: T1-weighted head with its skull, shape (i, j, k), to the right, front and top (RAS), finite. Its voxels may have
            any size, but a field of view that is not about a head's makes the result worse.
        networks: With their weights, ready to infer, float32, on the device that is to compute.
        progress: Gets how many of the two passes are done, and 2.

    Raises:
        ImageError: there is nothing in the image that the network takes for a brain.
    """
    device = next(networks.parameters()).device
    whole = torch.from_numpy(np.ascontiguousarray(array)).to(device)
    coarse = _resized(whole, _COARSE)
    low, high = (float(value) for value in np.quantile(coarse.cpu().numpy(), _QUANTILES))
    if not low < high:
        raise ImageError("the image holds nothing but one value")
    box = _box(_largest(_pass(networks.box, coarse, low, high)), array.shape)
    if progress is not None:
        progress(1, 2)
    found = _pass(networks.brain, _resized(whole[box], _FINE), low, high)
    back = _resized(torch.from_numpy(found).to(torch.uint8), whole[box].shape).numpy().astype(bool)
    mask = np.zeros(array.shape, bool)
    mask[box] = ndimage.binary_fill_holes(_largest(back))
    if progress is not None:
        progress(2, 2)
    return mask


def _resized(volume: Tensor, shape: tuple[int, ...]) -> Tensor:
    return interpolate(volume[None, None], shape, mode="nearest-exact")[0, 0]


def _pass(network: LinkNet, volume: Tensor, low: float, high: float) -> NDArray[np.bool_]:
    """Return what the network takes for brain; `low` and `high` are the intensities that become its black and white."""
    scaled = ((volume - low) / (high - low)).clamp(0, 1)
    scaled = _DEVIATION * (scaled - scaled.mean()) / scaled.std() + _MEAN
    with torch.inference_mode():
        logits = network(scaled[None, None])[0]
        brain: NDArray[np.bool_] = (logits[1] > logits[0]).cpu().numpy()
    return brain


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest component, neighbours over corners counted. Raises ImageError if there is none."""
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if not count:
        raise ImageError("no brain was found in the image", hint="the model is for T1-weighted heads with their skull")
    largest: NDArray[np.bool_] = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return largest


def _box(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the box around a coarse mask in an array of `shape`, with its margin."""
    box = []
    for axis, size in enumerate(shape):
        share = mask.mean(axis=tuple(other for other in range(mask.ndim) if other != axis))
        rows = np.flatnonzero(share > _LEAST_ROW)
        if not len(rows):
            raise ImageError("no brain was found in the image", hint="the model is for T1-weighted heads with their skull")
        scale = size / mask.shape[axis]
        middle = round(scale * (int(rows[0]) + int(rows[-1]) + 1) / 2)
        extent = round(scale * (int(rows[-1]) + 1 - int(rows[0])) * (1 + 2 * _MARGIN))
        box.append(slice(max(0, int(middle - extent / 2)), min(size, int(middle + extent / 2))))
    return tuple(box)
