"""Whether a network still computes what it did when its package was made: an input from a seed, and some logits for it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from secure_media_processor.errors import ModelError
from secure_media_processor.medical.inference.card import ONNX, OnnxArchitecture, TestVector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from secure_media_processor.medical.inference.packages import Package
    from secure_media_processor.medical.unet.engines import Choice, Engine

_VALUES: Final = 64
_SEED: Final = 20_261_122
_LEAST: Final = 16  # voxels along an axis
# Sums in another order, as other processors have them, differ by this at most, in units of the greatest logit.
_RELATIVE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of the test vector of a package."""

    engine: str
    largest_difference: float
    """Between a logit that came out and the one in the card."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether all of them are the same within the tolerance."""
        return self.largest_difference <= self.tolerance


def vector_input(seed: int, channels: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Return the input (1, channels, *shape) that belongs to a seed: values k / 2²³ - 1 with whole k from 0 to 2²⁴ - 1.

    k is the upper 24 bits of the next 64-bit number of PCG64 (XSL-RR 128/64, numpy's seeding), one for each value in C order.
    Neither that stream nor these fractions depend on the version or the machine.
    """
    numbers = np.random.PCG64(seed).random_raw(channels * prod(shape))
    values = (numbers >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    return values.astype(np.float32).reshape(1, channels, *shape)


def sampled(logits: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """Return `count` values at the places floor(n (size - 1) / (count - 1)) of the flattened array; of one, the first."""
    flat = logits.reshape(-1)
    places = [number * (flat.size - 1) // (count - 1) if count > 1 else 0 for number in range(count)]
    return flat[places].astype(np.float64)


def make_vector(engine: Engine, channels: int, shape: Sequence[int], *, seed: int = _SEED) -> TestVector:
    """Return the vector of a network, computed in float32."""
    logits = engine.logits(vector_input(seed, channels, shape))
    if not np.isfinite(logits).all():
        raise ModelError("the network does not give numbers")
    values = sampled(logits, min(_VALUES, logits.size))
    tolerance = float(min(1.0, max(1e-5, _RELATIVE * float(np.abs(logits).max()))))
    return TestVector(
        seed=seed, shape=tuple(shape), values=tuple(float(f"{value:.9g}") for value in values), tolerance=tolerance
    )


def vector_of(package: Package) -> TestVector:
    """Return the vector of a package that has none yet. Raises ModelError if its network does not give finite numbers."""
    from secure_media_processor.medical.unet.engines import Choice, engines_of  # noqa: PLC0415 - as below

    choice = Choice("onnx" if ONNX in package.files else "torch", "float32", "cpu")
    shape = vector_shape(package)
    return make_vector(engines_of(package, choice).open(shape, "cpu"), len(package.card.inputs.channels), shape)


def vector_shape(package: Package) -> tuple[int, ...]:
    """Return the smallest window with which the network can be tried: no level of it is left with a single voxel."""
    architecture, roi = package.card.architecture, package.card.inputs.roi
    if isinstance(architecture, OnnxArchitecture):
        return tuple(roi)
    return tuple(max(_LEAST, 2 * architecture.multiple) for _ in roi)


def verify_vector(package: Package, choice: Choice) -> Verified | None:
    """Run the test vector of a package; None if it has none.

    Raises:
        ModelError: the network does not give numbers, or its weights are not finite.
    """
    from secure_media_processor.medical.unet.engines import engines_of  # noqa: PLC0415 - it needs this package

    vector = package.card.test_vector
    if vector is None:
        return None
    engine = engines_of(package, choice).open(vector.shape, choice.device)
    logits = engine.logits(vector_input(vector.seed, len(package.card.inputs.channels), vector.shape))
    found = sampled(logits, len(vector.values))
    if not np.isfinite(found).all():
        raise ModelError(f"{package.path}: the network does not give numbers")
    return Verified(choice.engine, float(np.abs(found - np.array(vector.values)).max()), vector.tolerance)
