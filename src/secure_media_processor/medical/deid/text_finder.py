"""Finding written words in pictures, with the text recognition of rapidocr (extra `ocr`), offline.

The models are files of the rapidocr package and are named one by one: with a path given, rapidocr never looks for a download.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from secure_media_processor.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Picture: TypeAlias = NDArray[np.uint8]

_MODELS = {"Det.model_path": "PP-OCRv6_det_small.onnx", "Rec.model_path": "PP-OCRv6_rec_small.onnx"}
# The network sees at least this many pixels in each direction: narrow pictures would be blown up beyond any memory.
_SMALLEST = 320
# A larger picture is read in parts: the network needs about 1 GB for one of this size, and would shrink small letters.
_LARGEST = 1536
# Parts overlap by more than a line of small letters is high; lines that are cut are found in two pieces.
_OVERLAP = 192
# The detector takes round outlines of the size of the picture, such as the fan of an ultrasound image, for one letter. What is
# larger than this counts only if words are read in it.
_LARGE_PIXELS, _LARGE_PART, _LARGEST_PART = 72, 8, 3
_WORD_LETTERS, _WORD_SCORE, _SURE_SCORE = 3, 0.6, 0.8
_MARGIN, _MARGIN_PART = 3, 4
_WHITE = 255


@dataclass(frozen=True, slots=True)
class TextBox:
    """A place in a picture where something is written, with a margin."""

    left: int
    """Column, from 0."""
    top: int
    """Row, from 0."""
    right: int
    """First column beyond it."""
    bottom: int
    """First row beyond it."""
    text: str
    """What was read there; empty if nothing could be. Never shown: it may be a name."""
    score: float
    """How sure the reading is, 0 to 1."""

    @property
    def has_words(self) -> bool:
        """Whether letters or digits were read with some certainty."""
        return sum(map(str.isalnum, self.text)) >= _WORD_LETTERS and self.score >= _WORD_SCORE

    @property
    def is_sure(self) -> bool:
        """Whether the reading is certain enough to rely on it."""
        return self.score >= _SURE_SCORE

    def within(self, other: TextBox) -> bool:
        """Return whether nine tenths of it or more lie in `other`."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        area = (self.right - self.left) * (self.bottom - self.top)
        return width > 0 and height > 0 and width * height >= 0.9 * area


def find_text(picture: Picture) -> list[TextBox]:
    """Find all places with text, horizontal, vertical or slanted.

    It takes about a second for 800 by 600 pixels on two cores, and up to 1 GB of memory.

    Args:
        picture: Gray levels, shape (rows, columns), or colours as RGB, shape (rows, columns, 3).

    Raises:
        MissingExtraError: the extra `ocr` is not installed.
    """
    if picture.ndim == 2:  # noqa: PLR2004 - one value a pixel
        picture = np.repeat(picture[:, :, np.newaxis], 3, axis=2)
    rows, columns = picture.shape[:2]
    boxes = [box for top, left, part in _parts(picture) for box in _find(part, top, left, (rows, columns))]
    longest = max(rows, columns)
    if longest > _LARGEST:  # letters larger than the overlap are whole only here
        step = -(-longest // _LARGEST)
        boxes += _find(picture[::step, ::step], 0, 0, (rows, columns), step)
    return boxes


def _parts(picture: Picture) -> Iterator[tuple[int, int, Picture]]:
    """Yield parts of the picture with the row and column where each begins."""
    for top in _starts(picture.shape[0]):
        for left in _starts(picture.shape[1]):
            yield top, left, picture[top : top + _LARGEST, left : left + _LARGEST]


def _starts(length: int) -> list[int]:
    """Return where overlapping parts of `length` pixels begin."""
    if length <= _LARGEST:
        return [0]
    count = -(-(length - _OVERLAP) // (_LARGEST - _OVERLAP))
    return [round(number * (length - _LARGEST) / (count - 1)) for number in range(count)]


def _find(part: Picture, top: int, left: int, whole: tuple[int, int], step: int = 1) -> Iterator[TextBox]:
    """Yield the boxes in a part that begins at `top`, `left`, has one of `step` pixels, and is of a picture of size `whole`."""
    shape = part.shape[:2]
    short = [(0, max(0, _SMALLEST - length)) for length in shape]
    padded = np.pad(part, (*short, (0, 0)))
    # Its call operator drops what it found but could not read, and the boxes are not less suspicious for that.
    found, _, read, _ = _engine().run_ocr_steps(np.ascontiguousarray(padded), {"preprocess": {"ratio_h": 1.0, "ratio_w": 1.0}})
    if found.boxes is None:
        return
    count = len(found.boxes)
    texts, scores = (read.txts, read.scores) if read.txts is not None else ([""] * count, [0.0] * count)
    side = min(shape)
    large = min(max(_LARGE_PIXELS, side // _LARGE_PART), side // _LARGEST_PART)
    for corners, text, score in zip(found.boxes, texts, scores, strict=True):
        height = min(float(np.linalg.norm(corners[1] - corners[0])), float(np.linalg.norm(corners[2] - corners[1])))
        margin = max(_MARGIN, int(height) // _MARGIN_PART)
        x0, y0 = (int(number) - margin for number in corners.min(axis=0))
        x1, y1 = (int(number) + margin + 1 for number in corners.max(axis=0))
        box = TextBox(
            left=max(0, left + x0 * step),
            top=max(0, top + y0 * step),
            right=min(whole[1], left + x1 * step),
            bottom=min(whole[0], top + y1 * step),
            text=str(text).strip(),
            score=float(score),
        )
        if box.left < box.right and box.top < box.bottom and (height <= large or box.has_words):
            yield box


@cache
def _engine() -> Any:
    """Return the one engine of this process; it takes a second to make."""
    for name in ("rapidocr", "onnxruntime"):
        if find_spec(name) is None:
            raise MissingExtraError(f"{name} is not installed", hint="pip install 'secure-media-processor[medical,ocr]'")
    import onnxruntime  # noqa: PLC0415 - heavy, and from an extra
    import rapidocr  # noqa: PLC0415

    onnxruntime.disable_telemetry_events()
    models = Path(rapidocr.__file__).parent / "models"
    paths = {option: models / name for option, name in _MODELS.items()}
    if not all(path.is_file() for path in paths.values()):
        raise MissingExtraError(
            "this version of rapidocr has other models", hint="pip install 'secure-media-processor[medical,ocr]'"
        )
    parameters: dict[str, object] = {
        "Global.log_level": "critical",  # its log would name what it reads
        "Global.use_cls": False,  # finds what stands on its head; here that is masked without being read
        "Det.max_candidates": 100_000,  # noise may have many outlines, and the text must not be among those left out
    }
    return rapidocr.RapidOCR(params=parameters | {option: str(path) for option, path in paths.items()})


def local_contrast(values: NDArray[np.generic]) -> Picture:
    """Return how much each pixel differs from what is around it, measured by how much the surroundings vary.

    Text of almost the brightness of its background, bright or dark, becomes plain to see, whatever window a viewer would use:
    80 * |v - mean| / (s + 3), cut at 255, with mean and standard deviation s over 41 by 41 pixels. The larger of two results
    counts: for the values as they are, and for their logarithm, in which dark letters on speckle stand out. Of colours the
    largest of the channels.

    Args:
        values: Stored values, shape (rows, columns), or colours, shape (rows, columns, 3).
    """
    exact = np.nan_to_num(values.astype(np.float32))
    low, high = float(exact.min()), float(exact.max())
    logarithm = np.log1p((exact - low) * (_WHITE / ((high - low) or 1))) * (_WHITE / np.log1p(_WHITE))
    contrast = np.maximum(_contrast(exact), _contrast(logarithm.astype(np.float32)))
    if contrast.ndim == 3:  # noqa: PLR2004 - colours
        contrast = contrast.max(axis=2)
    return np.asarray(contrast.clip(0, _WHITE), np.uint8)


def _contrast(values: NDArray[np.float32]) -> NDArray[np.float32]:
    import cv2  # noqa: PLC0415 - comes with rapidocr

    around, softening, gain = (41, 41), 3, 80
    mean = cv2.blur(values, around)
    variance = np.maximum(cv2.blur(values * values, around) - mean * mean, 0)
    return np.asarray(gain * np.abs(values - mean) / (np.sqrt(variance) + softening), np.float32)
