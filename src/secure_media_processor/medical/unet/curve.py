"""The course of training as a picture: loss, and a score of some validation cases, over the steps."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Final, TypeAlias

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

    from secure_media_processor.medical.unet.train import Point

Colour: TypeAlias = tuple[int, int, int]
_SIZE: Final = (900, 480)
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 40, 830, 420
_LOSS: Final = (200, 80, 30)
_SCORE: Final = (20, 90, 170)
_INK: Final = (40, 40, 40)
_GRID: Final = (225, 225, 225)
_TICKS: Final = 5
_PERCENTILE: Final = 0.98


def curve_picture(points: Sequence[Point], score: str = "Dice") -> bytes:
    """Return a PNG of 900 by 480 pixels: the loss in red with its scale on the left, the score in blue on the right, 0 to 1."""
    image = Image.new("RGB", _SIZE, (255, 255, 255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    losses = sorted(point.loss for point in points)
    # The first steps are far above all others, and would press the rest flat.
    top = losses[int(_PERCENTILE * (len(losses) - 1))] * 1.1 if losses else 1.0
    last = points[-1].step if points else 1
    for tick in range(_TICKS + 1):
        share = tick / _TICKS
        y, x = _BOTTOM - share * (_BOTTOM - _TOP), _LEFT + share * (_RIGHT - _LEFT)
        draw.line([(_LEFT, y), (_RIGHT, y)], fill=_GRID)
        draw.text((_LEFT - 8, y), f"{share * top:.2f}", fill=_LOSS, font=font, anchor="rm")
        draw.text((_RIGHT + 8, y), f"{share:.1f}", fill=_SCORE, font=font, anchor="lm")
        draw.text((x, _BOTTOM + 8), f"{share * last:.0f}", fill=_INK, font=font, anchor="mt")
    draw.rectangle([(_LEFT, _TOP), (_RIGHT, _BOTTOM)], outline=_INK)
    draw.text((_LEFT, _TOP - 10), "training loss", fill=_LOSS, font=font, anchor="lb")
    draw.text((_RIGHT, _TOP - 10), f"{score}, some validation cases", fill=_SCORE, font=font, anchor="rb")
    draw.text(((_LEFT + _RIGHT) / 2, _BOTTOM + 28), "steps", fill=_INK, font=font, anchor="mt")
    _line(draw, [(point.step / last, point.loss / top) for point in points], _LOSS)
    _line(draw, [(point.step / last, point.score) for point in points if point.score is not None], _SCORE)
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _line(draw: ImageDraw.ImageDraw, places: Sequence[tuple[float, float]], colour: Colour) -> None:
    """Draw a line through places, each 0 to 1 from the lower left; what is higher is cut off at the edge."""
    across, up = _RIGHT - _LEFT, _BOTTOM - _TOP
    corners = [(_LEFT + x * across, _BOTTOM - min(max(y, 0.0), 1.0) * up) for x, y in places]
    if len(corners) > 1:
        draw.line(corners, fill=colour, width=2)
    for x, y in corners if len(corners) == 1 else []:
        draw.ellipse([(x - 2, y - 2), (x + 2, y + 2)], fill=colour)
