"""A picture of a segmentation, to see at a glance whether it is where it should be."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageDraw

from secure_media_processor.medical.volume import Volume, reoriented

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIZE: Final = 320  # pixels of the longest side of a plane
_STRENGTH: Final = 0.45  # of a label's colour over the image
_BORDER: Final = 6
_TEXT: Final = 16
_WINDOW: Final = (1.0, 99.0)  # percentiles that become black and white


def label_colours(count: int = 256) -> NDArray[np.uint8]:
    """Return a colour for each label, (count, 3); that of 0 is black. Hues are a golden angle apart, so neighbours differ."""
    hue = (np.arange(count) * 0.618034) % 1.0
    tone = np.stack([np.clip(np.abs(((hue + shift) % 1.0) * 6 - 3) - 1, 0, 1) for shift in (0.0, 2 / 3, 1 / 3)], axis=1)
    colours = (55 + 200 * tone).astype(np.uint8)
    colours[0] = 0
    return colours


def preview(image: Volume, labels: Volume, notice: str) -> bytes:
    """Return a PNG with three planes through the middle of what is labelled, the labels in colour over the image.

    Planes are, from the left: axial, coronal, sagittal; the patient's right is to the left, and up is to the head or the front.

    Args:
        image: What was segmented.
        labels: On the same grid.
        notice: A line of text below.
    """
    upright, mask = reoriented(image, "RAS"), reoriented(labels, "RAS")
    places = _middle(mask.array)
    low, high = np.percentile(upright.array[::2, ::2, ::2], _WINDOW)
    colours = label_colours()
    planes = []
    for axis in (2, 1, 0):
        across, up = (one for one in range(3) if one != axis)
        gray = np.take(upright.array, places[axis], axis).astype(np.float32)
        found = np.take(mask.array, places[axis], axis)
        shown = np.repeat(np.clip((gray - low) / max(high - low, 1e-6), 0, 1)[..., None] * 255, 3, axis=2)
        inside = found > 0
        shown[inside] = (1 - _STRENGTH) * shown[inside] + _STRENGTH * colours[found[inside]]
        pixels = shown.astype(np.uint8).transpose(1, 0, 2)[::-1]
        if axis != 0:  # the patient's right to the left of who looks
            pixels = pixels[:, ::-1]
        lengths = (gray.shape[0] * upright.grid.spacing[across], gray.shape[1] * upright.grid.spacing[up])
        scale = _SIZE / max(lengths)
        size = (max(1, round(lengths[0] * scale)), max(1, round(lengths[1] * scale)))
        planes.append(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR))
    return _framed(planes, notice)


def _middle(labels: NDArray[np.integer[Any]]) -> list[int]:
    """Return the plane along each axis that holds the most of what is labelled; the middle if there is nothing."""
    inside = labels > 0
    counts = [inside.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    return [int(count.argmax()) if count.any() else len(count) // 2 for count in counts]


def _framed(planes: list[Image.Image], notice: str) -> bytes:
    width = sum(plane.width for plane in planes) + _BORDER * (len(planes) + 1)
    height = max(plane.height for plane in planes) + 2 * _BORDER + _TEXT
    whole = Image.new("RGB", (width, height))
    left = _BORDER
    for plane in planes:
        whole.paste(plane, (left, _BORDER + (height - 2 * _BORDER - _TEXT - plane.height) // 2))
        left += plane.width + _BORDER
    ImageDraw.Draw(whole).text((_BORDER, height - _TEXT), notice, fill=(200, 200, 200))
    file = BytesIO()
    whole.save(file, "PNG")
    return file.getvalue()
