"""Intensities of volumes made comparable. MR has no unit: the same tissue has another value in each scan.

All methods find their numbers inside a mask and apply them to every voxel, outside of it too. Work goes slab by slab: besides
the array and the result there is at most a copy of the values inside the mask.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from secure_media_processor.core.files import os_errors, write_file
from secure_media_processor.errors import ImageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

Method: TypeAlias = Literal["zscore", "minmax", "percentile", "nyul"]
Mask: TypeAlias = "NDArray[np.bool_] | None"
Floats: TypeAlias = "NDArray[np.float32]"
_Change: TypeAlias = "Callable[[NDArray[np.float64]], NDArray[np.float64]]"

NYUL_PERCENTILES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)
"""Where landmarks are taken: the deciles, and the ends that outliers do not reach."""
NYUL_SCALE = (0.0, 100.0)
"""What the first and the last landmark become on the standard scale."""
_SCHEMA = "smp.landmarks/1"
_MAX_FILE = 64 * 1024
_PERCENT = 100.0
_PART = 1 << 18  # values worked on at a time


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Percentiles of intensity, and what each of them is on the standard scale (Nyúl, Udupa, Zhang 2000)."""

    percentiles: tuple[float, ...]
    """Rising, 0 to 100."""
    standard: tuple[float, ...]
    """As many values of the standard scale, rising."""
    volumes: int = 1
    """How many volumes they were learned from."""

    def __post_init__(self) -> None:
        """Raise UsageError if the numbers are no landmarks."""
        both = (np.asarray(self.percentiles, np.float64), np.asarray(self.standard, np.float64))
        fits = both[0].size == both[1].size >= 2 and all(np.isfinite(one).all() and (np.diff(one) > 0).all() for one in both)  # noqa: PLR2004 - a line
        if not fits or both[0][0] < 0 or both[0][-1] > _PERCENT or self.volumes < 1:
            raise UsageError("landmarks are two rising lists of as many numbers, percentiles from 0 to 100 and their values")


def normalized(
    array: NDArray[Any],
    method: Method,
    mask: Mask = None,
    *,
    low: float = 0.5,
    high: float = 99.5,
    landmarks: Landmarks | None = None,
) -> Floats:
    """Return the array with its intensities made comparable, float32, same shape.

    - zscore: mean 0 and standard deviation 1 inside the mask.
    - minmax: from the least to the greatest value inside the mask becomes 0 to 1; what lies beyond is cut off.
    - percentile: as minmax, between the percentiles `low` and `high` of the values inside the mask.
    - nyul: percentiles inside the mask become those of the standard scale, straight lines between them, and the first and the
      last line goes on beyond. Nyúl, Udupa, Zhang: "New variants of a method of MRI scale standardization", IEEE Trans. Med.
      Imaging 19(2), 2000.

    Args:
        array: Any shape and real type, finite.
        method: One of the above.
        mask: Same shape; None takes all voxels.
        low: Percentile, 0 to 100.
        high: Percentile, above `low`.
        landmarks: For nyul.

    Raises:
        ImageError: the mask is empty or of another shape, or the values inside are all the same or not finite.
        UsageError: the numbers make no sense, or nyul has no landmarks.
    """
    return _mapped(array, _change(_inside(array, mask), method, low, high, landmarks))


def _change(inside: NDArray[Any], method: Method, low: float, high: float, landmarks: Landmarks | None) -> _Change:
    """Return what becomes of intensities, found from the values inside the mask, which are not kept."""
    if method == "zscore":
        mean, deviation = _mean_and_deviation(inside)
        _refuse_flat(deviation > 0)
        return lambda slab: (slab - mean) / deviation
    if method == "nyul":
        return _onto_scale(inside, landmarks)
    bottom, top = _range(inside, method, low, high)
    _refuse_flat(top > bottom)
    return lambda slab: np.clip((slab - bottom) / (top - bottom), 0, 1)


def _inside(array: NDArray[Any], mask: Mask) -> NDArray[Any]:
    """Return the values inside the mask, in one row."""
    if mask is None:
        inside = array.ravel(order="K")
    else:
        if mask.shape != array.shape:
            raise ImageError(f"a mask of shape {mask.shape} does not fit an array of {array.shape}")
        inside = array[mask]
    if not inside.size:
        raise ImageError("the mask is empty: there is nothing to take intensities from", hint="leave out --mask")
    return inside


def _mean_and_deviation(values: NDArray[Any]) -> tuple[float, float]:
    mean = float(values.mean(dtype=np.float64))
    squares = sum(float(np.square(part.astype(np.float64) - mean).sum()) for part in _parts(values))
    return mean, float(np.sqrt(squares / values.size))


def _range(values: NDArray[Any], method: Method, low: float, high: float) -> tuple[float, float]:
    if method == "minmax":
        return float(values.min()), float(values.max())
    if not 0 <= low < high <= _PERCENT:
        raise UsageError("percentiles go from 0 to 100, the lower one first")
    bottom, top = _percentiles(values, (low, high))
    return float(bottom), float(top)


def _percentiles(values: NDArray[Any], wanted: tuple[float, ...]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.percentile(values, wanted).astype(np.float64)
    return found


def _refuse_flat(varies: bool) -> None:  # noqa: FBT001 - what is asked stands where it is called
    if not varies:
        raise ImageError("its intensities cannot be normalised: all of them are the same, or not finite")


def _onto_scale(inside: NDArray[Any], landmarks: Landmarks | None) -> _Change:
    if landmarks is None:
        raise UsageError("nyul needs landmarks", hint="name them with --landmarks FILE.json; learn_landmarks makes them")
    places, first = np.unique(_percentiles(inside, landmarks.percentiles), return_index=True)
    _refuse_flat(bool(len(places) > 1 and np.isfinite(places).all()))
    values = np.asarray(landmarks.standard)[first]
    start, end = ((values[a + 1] - values[a]) / (places[a + 1] - places[a]) for a in (0, len(places) - 2))

    def onto(slab: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.interp(slab, places, values)
        found += np.minimum(slab - places[0], 0) * start + np.maximum(slab - places[-1], 0) * end
        return found

    return onto


def _mapped(array: NDArray[Any], change: _Change) -> Floats:
    """Return ``change(array)`` as float32, reckoned in float64 and slab by slab, in the memory order of `array`."""
    result = np.empty_like(array, dtype=np.float32)
    for source, target in zip(_parts(array), _parts(result), strict=True):
        target[...] = change(source.astype(np.float64))
    return result


def _parts(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield ranges of the last axis of an array."""
    thick = max(1, _PART // max(1, array.size // max(1, array.shape[-1])))
    for start in range(0, array.shape[-1], thick):
        yield array[..., start : start + thick]


# -------------------------------------------------------------------------------------------------------------- landmarks


def learn_landmarks(volumes: Iterable[tuple[NDArray[Any], Mask]]) -> Landmarks:
    """Return landmarks for normalized(…, "nyul"), learned from several volumes, one in memory at a time.

    The first and the last percentile of each volume is put onto NYUL_SCALE, the others follow in proportion, and of these the
    mean is taken.

    Args:
        volumes: Arrays with the masks inside which percentiles are taken (None: all voxels).

    Raises:
        UsageError: there are no volumes, or they do not have as many different intensities.
        ImageError: a mask is empty, or the values in it are all the same.
    """
    found = []
    for array, mask in volumes:
        places = _percentiles(_inside(array, mask), NYUL_PERCENTILES)
        _refuse_flat(bool(places[-1] > places[0]))
        found.append(np.interp(places, (places[0], places[-1]), NYUL_SCALE))
    if not found:
        raise UsageError("landmarks are learned from volumes, and there are none")
    mean = np.mean(found, axis=0)
    return Landmarks(NYUL_PERCENTILES, tuple(float(value) for value in mean), len(found))


def write_landmarks(landmarks: Landmarks, target: Path, *, overwrite: bool = False) -> None:
    """Write landmarks as JSON."""
    fields = {"schema": _SCHEMA, **landmarks_fields(landmarks)}
    write_file(target, (json.dumps(fields, indent=1) + "\n").encode(), overwrite=overwrite)


def read_landmarks(path: Path) -> Landmarks:
    """Read what write_landmarks has written.

    Raises:
        UsageError: the file holds something else.
        MissingError, FileAccessError: it cannot be read.
    """
    with os_errors(f"read {path}"), path.open("rb") as file:
        data = file.read(_MAX_FILE + 1)
    try:
        fields = json.loads(data) if len(data) <= _MAX_FILE else None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON") from error
    if not isinstance(fields, dict) or fields.pop("schema", None) != _SCHEMA:
        raise UsageError(f"{path} does not hold landmarks ({_SCHEMA})")
    return landmarks_from(fields)


def landmarks_fields(landmarks: Landmarks) -> dict[str, object]:
    """Return landmarks as plain values."""
    return {"percentiles": list(landmarks.percentiles), "standard": list(landmarks.standard), "volumes": landmarks.volumes}


def landmarks_from(fields: object) -> Landmarks:
    """Return landmarks from plain values. Raises UsageError."""
    if not isinstance(fields, dict) or set(fields) != {"percentiles", "standard", "volumes"}:
        raise UsageError("landmarks have percentiles, standard and volumes, and nothing else")
    lists = [fields["percentiles"], fields["standard"]]
    count = fields["volumes"]
    if not all(isinstance(one, list) and all(type(n) in (int, float) for n in one) for one in lists) or type(count) is not int:
        raise UsageError("landmarks are lists of numbers")
    percentiles, standard = (tuple(float(n) for n in one) for one in lists)
    return Landmarks(percentiles, standard, count)
