"""From stored values to what a screen shows: modality, VOI and presentation transformation (PS3.4 annex N, PS3.3 C.11)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import numpy as np

from secure_media_processor.errors import ImageError
from secure_media_processor.medical.convert.decoding import PixelForm, foreign_data

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom import Dataset

Function: TypeAlias = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
"""VOILUTFunction (0028,1056)."""
Values: TypeAlias = "NDArray[np.float64]"
Stored: TypeAlias = "NDArray[np.generic]"

WHITE = 255
_TABLE_BITS = 16  # for images up to this depth all stored values are transformed once, and pixels are looked up


@dataclass(frozen=True, slots=True)
class Lut:
    """A lookup table of PS3.3 C.11.1 (modality) or C.11.2 (VOI)."""

    first: int
    """Input value of the first entry; what is below or above the table gets its first or last entry."""
    bits: int
    """Entries are from 0 to 2^bits - 1."""
    entries: tuple[int, ...]

    @property
    def top(self) -> int:
        """The greatest value that an entry may have."""
        return (1 << self.bits) - 1

    def apply(self, values: Values) -> Values:
        """Return the entry for each value."""
        index = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.intp)
        entries: Values = np.asarray(self.entries, dtype=np.float64)
        return cast("Values", entries[index])


@dataclass(frozen=True, slots=True)
class Window:
    """A window of PS3.3 C.11.2.1.2 and C.11.2.1.3."""

    center: float
    """WindowCenter (0028,1050), in the units that the modality transformation gives."""
    width: float
    """WindowWidth (0028,1051), in the same units."""
    function: Function

    @property
    def usable(self) -> bool:
        """Whether center and width are numbers that make a window."""
        least = 1 if self.function == "LINEAR" else 0
        return bool(np.isfinite([self.center, self.width]).all()) and self.width >= least and self.width > 0

    def apply(self, values: Values) -> Values:
        """Return values from 0 to 1, the range of the window's output."""
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):  # e^∞ makes 0, as it should
                sigmoid: Values = 1 / (1 + np.exp(-4 * (values - self.center) / self.width))
                return sigmoid
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.center) / self.width + 0.5, 0, 1)
        center, width = self.center - 0.5, self.width - 1
        if width == 0:
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0, 1)


@dataclass(frozen=True, slots=True)
class Grayscale:
    """What one frame says of how its stored values become gray levels."""

    modality: Lut | None
    """ModalityLUTSequence (0028,3000); slope and intercept do not count if there is one."""
    slope: float
    """RescaleSlope (0028,1053)."""
    intercept: float
    """RescaleIntercept (0028,1052)."""
    views: tuple[Lut | Window, ...]
    """The VOI LUTs (0028,3010), then the windows, each in order. They are alternatives."""
    padding: tuple[float, float] | None
    """Stored values, from and to, that are no part of the picture: PixelPaddingValue (0028,0120) and its range limit."""
    inverted: bool
    """Whether small values are bright: MONOCHROME1, or PresentationLUTShape (2050,0020) INVERSE."""

    def rescaled(self, stored: Stored) -> Values:
        """Return `stored` after the modality transformation: Hounsfield units for CT, for example."""
        values = stored.astype(np.float64)
        if self.modality is not None:
            return self.modality.apply(values)
        if (self.slope, self.intercept) != (1, 0):
            values *= self.slope
            values += self.intercept
        return values

    def rescaled_range(self, form: PixelForm) -> tuple[float, float]:
        """Return the least and the greatest value that an image of this form can have after the modality transformation."""
        if self.modality is not None:
            return 0, self.modality.top
        ends = [end * self.slope + self.intercept for end in form.stored_range]
        return min(ends), max(ends)

    def shown(self, stored: Stored, view: Lut | Window | tuple[float, float]) -> NDArray[np.uint8]:
        """Return gray levels from 0 (black) to 255 (white), over the range that the view can give.

        Args:
            stored: Stored values, shape (rows, columns).
            view: One of `views`, or the rescaled values that become black and white.
        """
        if stored.dtype.kind in "iu" and stored.dtype.itemsize * 8 <= _TABLE_BITS:
            table = _level_table(self, view, stored.dtype.str)
            unsigned = stored.view(stored.dtype.str.replace("i", "u"))
            return cast("NDArray[np.uint8]", np.take(table, unsigned))
        return self._levels(stored, view)

    def _levels(self, stored: Stored, view: Lut | Window | tuple[float, float]) -> NDArray[np.uint8]:
        values = self.rescaled(stored)
        if isinstance(view, Window):
            level = view.apply(values)
        elif isinstance(view, Lut):
            level = view.apply(values) / view.top
        else:
            low, high = view
            level = np.clip((values - low) / ((high - low) or 1), 0, 1)
        level = np.nan_to_num(level)
        if self.inverted:
            level = 1 - level
        return cast("NDArray[np.uint8]", np.rint(level * WHITE).astype(np.uint8))

    def extent(self, stored: Stored) -> tuple[float, float] | None:
        """Return the least and the greatest rescaled value in `stored`, padding left out; None if there is none."""
        kept = stored
        if self.padding is not None:
            low, high = self.padding
            inside = stored[(stored < np.float64(low)) | (stored > np.float64(high))]
            kept = inside if inside.size else stored
        values = self.rescaled(kept)
        values = values[np.isfinite(values)]
        return (float(values.min()), float(values.max())) if values.size else None


@lru_cache(maxsize=16)  # the slices of a series mostly share one
def _level_table(gray: Grayscale, view: Lut | Window | tuple[float, float], dtype: str) -> NDArray[np.uint8]:
    """Return the gray level of every value that the type can hold, in the order of their unsigned bit patterns."""
    unsigned = np.dtype(dtype.replace("i", "u"))
    patterns = np.arange(np.iinfo(unsigned).max + 1, dtype=np.uint32).astype(unsigned)
    return gray._levels(patterns.view(dtype), view)  # noqa: SLF001 - the same module


def grayscale_of(dataset: Dataset, form: PixelForm, frame: int) -> Grayscale:
    """Return the transformations of one frame, from its functional groups (PS3.3 C.7.6.16) where it has them.

    Args:
        dataset: An image with monochrome pixel data.
        form: What pixel_form says of it.
        frame: Index of the frame, from 0.
    """
    with foreign_data("its grayscale transformation cannot be parsed"):
        rescale = functional_group(dataset, frame, "PixelValueTransformationSequence")
        window = functional_group(dataset, frame, "FrameVOILUTSequence")
        modality = [_lut(item) for item in dataset.get("ModalityLUTSequence") or []]
        slope = numbers(rescale, "RescaleSlope") or [1.0]
        intercept = numbers(rescale, "RescaleIntercept") or [0.0]
        views: list[Lut | Window] = [*(_lut(item) for item in window.get("VOILUTSequence") or []), *_windows(window)]
        shape = str(dataset.get("PresentationLUTShape") or "")
        if not modality and not (np.isfinite(slope[0]) and slope[0] != 0 and np.isfinite(intercept[0])):
            raise ImageError("its RescaleSlope and RescaleIntercept make no values")
        return Grayscale(
            modality=modality[0] if modality else None,
            slope=slope[0],
            intercept=intercept[0],
            views=tuple(views),
            padding=_padding(dataset, form),
            inverted=form.photometric == "MONOCHROME1" or shape == "INVERSE",
        )


def functional_group(dataset: Dataset, frame: int, keyword: str) -> Dataset:
    """Return the functional group `keyword` of a frame (PS3.3 C.7.6.16); `dataset` itself if there is none."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in (per_frame[frame] if frame < len(per_frame) else None, shared[0] if shared else None):
        items = groups.get(keyword) if groups is not None else None
        if items:
            return cast("Dataset", items[0])
    return dataset


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Return the numbers of an element; none if it is absent or empty.

    Raises:
        ImageError: what stands there is not a number.
    """
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    try:
        return [float(value)] if isinstance(value, str | int | float) else [float(one) for one in value]
    except (TypeError, ValueError, OverflowError):
        raise ImageError(f"its {keyword} is not a number") from None


def _windows(dataset: Dataset) -> list[Window]:
    pairs = zip(numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth"), strict=False)
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if function not in get_args(Function):
        raise ImageError("its VOILUTFunction is unknown")
    return [Window(center, width, cast("Function", function)) for center, width in pairs]


def _lut(item: Dataset) -> Lut:
    """Parse an item of ModalityLUTSequence or VOILUTSequence: LUTDescriptor (0028,3002) and LUTData (0028,3006)."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = (count & 0xFFFF) or 1 << 16  # 0 stands for 65,536
    data: Any = item.LUTData
    if isinstance(data, bytes):
        narrow = len(data) in (count, count + 1)  # one byte an entry, and a byte that makes the length even
        big = item.original_encoding[1] is False
        data = np.frombuffer(data, np.uint8 if narrow else ">u2" if big else "<u2").tolist()
    entries = tuple(int(entry) & 0xFFFF for entry in (data if isinstance(data, list) or hasattr(data, "__len__") else [data]))
    if len(entries) < count or not 1 <= bits <= _TABLE_BITS:
        raise ImageError("its lookup table is damaged")
    return Lut(first, bits, tuple(min(entry, (1 << bits) - 1) for entry in entries[:count]))


def _padding(dataset: Dataset, form: PixelForm) -> tuple[float, float] | None:
    keywords = ("FloatPixelPadding", "DoubleFloatPixelPadding") if form.floating else ("PixelPadding",)
    for keyword in keywords:
        value = numbers(dataset, f"{keyword}Value")
        limit = numbers(dataset, f"{keyword}RangeLimit")
        if value:
            ends = [_as_stored(end, form) for end in (value[0], (limit or value)[0])]
            return min(ends), max(ends)
    return None


def _as_stored(value: float, form: PixelForm) -> float:
    """Return a padding value as the pixels hold it: some writers put the bits of a negative number into an unsigned element."""
    top = 1 << (form.bits_allocated - 1)
    return value - 2 * top if form.signed and not form.floating and value >= top else value
