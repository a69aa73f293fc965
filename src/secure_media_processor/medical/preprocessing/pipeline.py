"""Preprocessing as data: which steps, with which settings, in which order; run, and told step by step.

The order is fixed: orient, bias, denoise, mask, clahe, spacing, normalize, and last what lies outside of the mask becomes 0.
The same steps on the same volume give the same voxels.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from secure_media_processor.core.files import os_errors, write_file
from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.preprocessing.contrast import clahe
from secure_media_processor.medical.preprocessing.mask import foreground_mask
from secure_media_processor.medical.preprocessing.normalize import (
    Landmarks,
    Method,
    landmarks_fields,
    landmarks_from,
    normalized,
)
from secure_media_processor.medical.volume import ORIENTATIONS, Grid, Volume, reoriented, resampled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from secure_media_processor.medical.preprocessing.bias import BiasField

Bias: TypeAlias = Literal["none", "n4"]
Denoise: TypeAlias = Literal["none", "nlm", "anisotropic", "median"]
Parameter: TypeAlias = str | float | list[float]

SCHEMA = "smp.preprocessing/1"
_MAX_FILE = 64 * 1024
_FLOAT = 4  # bytes
_BASE = 200 * 1024**2
"""Bytes that the program and its libraries take."""


@dataclass(frozen=True, slots=True)
class PreprocessingSteps:
    """What is done to a volume. Everything is off unless it is asked for."""

    orient: str | None = None
    """How the axes run in the result, such as "RAS"; None leaves them."""
    bias: Bias = "none"
    """"n4": the slow change of brightness that coils make is taken away."""
    shrink: int = 4
    """n4: the field is fitted to every n-th voxel. 4 is as good as 1 and much quicker."""
    denoise: Denoise = "none"
    """"nlm": non-local means, the best, for Rician noise, or for Gaussian where there are values below 0; "anisotropic":
    diffusion; "median": of 3 by 3 by 3 voxels."""
    mask: bool = False
    """Whether head or body are told from air (see foreground_mask): intensities are normalised by what is inside, and what is
    outside becomes 0 at the end."""
    clahe: bool = False
    """Whether local contrast is raised, for people who look."""
    spacing: tuple[float, float, float] | None = None
    """mm along i, j, k of the result; None leaves the grid."""
    normalize: Literal["none"] | Method = "none"
    """See normalized."""
    low: float = 0.5
    """normalize "percentile": what becomes 0."""
    high: float = 99.5
    """normalize "percentile": what becomes 1."""
    landmarks: Landmarks | None = None
    """normalize "nyul": the standard scale. It is kept here, not the name of a file: the steps are complete."""

    def __post_init__(self) -> None:
        """Raise UsageError if the settings make no sense."""
        for name, value, kind in (("bias", self.bias, Bias), ("denoise", self.denoise, Denoise)):
            if value not in get_args(kind):
                raise UsageError(f"{name} is one of {', '.join(get_args(kind))}")
        if self.normalize not in ("none", *get_args(Method)):
            raise UsageError(f"normalize is one of none, {', '.join(get_args(Method))}")
        if self.orient is not None and self.orient not in ORIENTATIONS:
            raise UsageError("that is no orientation", hint="it has one letter of each of R/L, A/P and S/I, such as RAS")
        if self.spacing is not None and not all(np.isfinite(size) and size > 0 for size in self.spacing):
            raise UsageError("a spacing is three numbers above 0, in mm", hint="for example --spacing 1,1,1")
        if not 1 <= self.shrink <= 16:  # noqa: PLR2004 - what is left would be too small to fit anything to
            raise UsageError("shrink is 1 to 16")
        if not 0 <= self.low < self.high <= 100:  # noqa: PLR2004 - percent
            raise UsageError("percentiles go from 0 to 100, the lower one first")
        if (self.normalize == "nyul") != (self.landmarks is not None):
            raise UsageError("landmarks and --normalize nyul belong together", hint="name them with --landmarks FILE.json")

    @property
    def names(self) -> tuple[str, ...]:
        """The steps that will be run, in order."""
        return tuple(name for name, _ in _chosen(self))


@dataclass(frozen=True, slots=True)
class StepRun:
    """What a step has done."""

    name: str
    parameters: dict[str, Parameter]
    cpu_seconds: float
    """Of all threads together."""
    least: float
    """Least value of the volume after the step."""
    greatest: float
    mean: float


@dataclass(frozen=True, slots=True, eq=False)
class FoundBias:
    """The bias field of a volume; on a coarse grid, so that keeping it costs nothing."""

    field: BiasField
    grid: Grid
    """Of the volume in which it was found."""

    def volume(self) -> Volume:
        """Return the factor by which each voxel was too bright, float32."""
        array = np.empty(self.grid.shape, np.float32, order="F")
        for part, values in self.field.slabs():
            np.exp(values, out=array[part])
        return Volume(array, self.grid)


@dataclass(frozen=True, slots=True, eq=False)
class Preprocessed:
    """A volume after all steps."""

    volume: Volume
    """float32."""
    runs: tuple[StepRun, ...]
    bias: FoundBias | None = None
    """If n4 was run."""
    mask: Volume | None = None
    """bool, on the grid of the result, if one was asked for."""


# ------------------------------------------------------------------------------------------------------------------ JSON


def steps_to_json(steps: PreprocessingSteps) -> str:
    """Return the steps as JSON, every field named."""
    found: dict[str, object] = {"schema": SCHEMA}
    for field in fields(steps):
        value = getattr(steps, field.name)
        found[field.name] = landmarks_fields(value) if isinstance(value, Landmarks) else value
    return json.dumps(found, indent=1) + "\n"


def steps_from_json(text: str | bytes) -> PreprocessingSteps:
    """Return the steps in a JSON text. What is left out is off; what is not known is refused.

    Raises:
        UsageError: it holds something else.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError("the pipeline is not JSON") from error
    if not isinstance(found, dict) or found.pop("schema", None) != SCHEMA:
        raise UsageError(f"that is no pipeline ({SCHEMA})", hint="--save-pipeline FILE.json writes one")
    unknown = sorted(set(found) - {field.name for field in fields(PreprocessingSteps)})
    if unknown:
        raise UsageError(f"the pipeline has {len(unknown)} unknown fields, the first is {unknown[0][:40]!r}")
    for name, value in found.items():
        if not _fits(name, value):
            raise UsageError(f"the field {name} of the pipeline has a value that it cannot have")
    if found.get("spacing") is not None:
        found["spacing"] = tuple(map(float, found["spacing"]))
    if found.get("landmarks") is not None:
        found["landmarks"] = landmarks_from(found["landmarks"])
    return PreprocessingSteps(**found)


def _fits(name: str, value: Any) -> bool:
    """Return whether a value from JSON is of the type of its field; its range is looked at later."""
    match name:
        case "mask" | "clahe":
            return isinstance(value, bool)
        case "shrink":
            return type(value) is int
        case "low" | "high":
            return type(value) in (int, float)
        case "spacing":
            sides = value if isinstance(value, list) else []
            return value is None or (len(sides) == 3 and all(type(size) in (int, float) for size in sides))  # noqa: PLR2004 - axes
        case "orient":
            return value is None or isinstance(value, str)
        case "landmarks":
            return value is None or isinstance(value, dict)
        case _:
            return isinstance(value, str)


def read_steps(path: Path) -> PreprocessingSteps:
    """Read steps from a JSON file. Raises UsageError, MissingError, FileAccessError."""
    with os_errors(f"read {path}"), path.open("rb") as file:
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise UsageError(f"{path} is too large to be a pipeline")
    return steps_from_json(data)


def write_steps(steps: PreprocessingSteps, target: Path, *, overwrite: bool = False) -> None:
    """Write steps as a JSON file, for read_steps."""
    write_file(target, steps_to_json(steps).encode(), overwrite=overwrite)


# --------------------------------------------------------------------------------------------------------------- running


@dataclass(slots=True)
class _State:
    """What goes from step to step."""

    volume: Volume
    bias: FoundBias | None = None
    mask: Volume | None = None

    def set_array(self, array: NDArray[Any]) -> None:
        """Put other values onto the same grid."""
        self.volume = replace(self.volume, array=array)


_Step: TypeAlias = "Callable[[_State, PreprocessingSteps], dict[str, Parameter]]"


def preprocess(volume: Volume, steps: PreprocessingSteps, *, progress: Callable[[str], None] | None = None) -> Preprocessed:
    """Run the steps.

    Memory: the caller should keep no reference to `volume`; then about three times its size as float32 is in use at most, but
    for a result with more voxels than the input.

    Args:
        volume: Finite values.
        steps: What is done.
        progress: Called with the name of each step before it is run.

    Raises:
        ImageError: the volume cannot be treated so: no foreground, no contrast, too many voxels.
    """
    state = _State(volume if volume.array.dtype == np.float32 else replace(volume, array=volume.array.astype(np.float32)))
    del volume
    runs = []
    for name, step in _chosen(steps):
        if progress is not None:
            progress(name)
        start = time.process_time()
        parameters = step(state, steps)
        spent = time.process_time() - start
        runs.append(StepRun(name, parameters, round(spent, 3), *_extent(state.volume.array)))
    return Preprocessed(state.volume, tuple(runs), state.bias, state.mask)


def _chosen(steps: PreprocessingSteps) -> Iterator[tuple[str, _Step]]:
    """Yield the steps that are on, with their names, in order."""
    if steps.orient is not None:
        yield "orient", _orient
    if steps.bias != "none":
        yield "bias", _correct_bias
    if steps.denoise != "none":
        yield "denoise", _denoise
    if steps.mask:
        yield "mask", _find_mask
    if steps.clahe:
        yield "clahe", _raise_contrast
    if steps.spacing is not None:
        yield "spacing", _resample
    if steps.normalize != "none":
        yield "normalize", _normalize
    if steps.mask:
        yield "outside", _clear_outside


def _extent(array: NDArray[Any]) -> tuple[float, float, float]:
    found = (float(array.min()), float(array.max()), float(array.mean(dtype=np.float64)))
    if not np.isfinite(found).all():
        raise ImageError("a step has made values that are no numbers")
    return found


def _orient(state: _State, steps: PreprocessingSteps) -> dict[str, Parameter]:
    before = state.volume.grid.orientation
    state.volume = reoriented(state.volume, steps.orient or before)
    return {"from": before, "to": state.volume.grid.orientation}


def _correct_bias(state: _State, steps: PreprocessingSteps) -> dict[str, Parameter]:
    from secure_media_processor.medical.preprocessing.bias import bias_field, divided  # noqa: PLC0415 - SimpleITK takes a second

    array, grid = state.volume.array, state.volume.grid
    field = bias_field(array, foreground_mask(array), grid.spacing, shrink=steps.shrink)
    state.set_array(divided(array, field))
    state.bias = FoundBias(field, grid)
    return {"method": "n4", "shrink": steps.shrink, "mask": "foreground"}


def _denoise(state: _State, steps: PreprocessingSteps) -> dict[str, Parameter]:
    from secure_media_processor.medical.preprocessing import denoise  # noqa: PLC0415 - as above

    array = state.volume.array
    match steps.denoise:
        case "nlm":
            # Magnitudes have no values below 0, and Rician noise; what has them is no magnitude.
            noise: Literal["rician", "gaussian"] = "rician" if array.min() >= 0 else "gaussian"
            sigma = denoise.noise_sigma(array, noise=noise)
            state.set_array(denoise.non_local_means(array, sigma=sigma, noise=noise))
            return {"method": "nlm", "sigma": float(sigma), "noise": noise}
        case "anisotropic":
            state.set_array(denoise.anisotropic_diffusion(array, state.volume.grid.spacing))
        case _:
            state.set_array(denoise.median(array))
    return {"method": steps.denoise}


def _find_mask(state: _State, _: PreprocessingSteps) -> dict[str, Parameter]:
    found = foreground_mask(state.volume.array)
    state.mask = replace(state.volume, array=found)
    return {"method": "foreground", "part": round(float(found.mean()), 6)}


def _raise_contrast(state: _State, _: PreprocessingSteps) -> dict[str, Parameter]:
    state.set_array(clahe(state.volume.array, state.volume.grid.spacing))
    return {"clip_limit": 2.0, "tiles": 8}


def _resample(state: _State, steps: PreprocessingSteps) -> dict[str, Parameter]:
    before = state.volume.grid
    grid = before.with_spacing(steps.spacing or before.spacing)
    state.volume = resampled(state.volume, grid, interpolation="linear")
    if state.mask is not None:
        state.mask = resampled(state.mask, grid, interpolation="nearest")
    return {"from": list(before.spacing), "to": list(grid.spacing), "interpolation": "linear"}


def _normalize(state: _State, steps: PreprocessingSteps) -> dict[str, Parameter]:
    if steps.normalize == "none":
        return {}
    mask = None if state.mask is None else state.mask.array
    found = normalized(state.volume.array, steps.normalize, mask, low=steps.low, high=steps.high, landmarks=steps.landmarks)
    state.set_array(found)
    more: dict[str, Parameter] = {"low": steps.low, "high": steps.high} if steps.normalize == "percentile" else {}
    return {"method": steps.normalize, "mask": "none" if mask is None else "foreground", **more}


def _clear_outside(state: _State, _: PreprocessingSteps) -> dict[str, Parameter]:
    if state.mask is not None:
        state.set_array(np.multiply(state.volume.array, state.mask.array))
    return {"value": 0.0}


def memory_needed(grid: Grid, steps: PreprocessingSteps) -> int:
    """Return about how many bytes the program will use at most for a volume on this grid, itself included."""
    before = grid.size * _FLOAT
    after = before if steps.spacing is None else grid.with_spacing(steps.spacing).size * _FLOAT
    return _BASE + max(3 * before, 2 * before + after, 3 * after)
