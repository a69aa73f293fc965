"""The probabilities of the classes of an image, and how good they are on cases that a classifier was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Final

import numpy as np

from secure_media_processor.errors import ImageError, ModelError
from secure_media_processor.medical.inference.card import ClassifierArchitecture, Metrics
from secure_media_processor.medical.inference.card import Estimate as Figure
from secure_media_processor.medical.prediction_scores import Estimate, scored
from secure_media_processor.medical.unet.engines import TorchEngines, network_of
from secure_media_processor.medical.unet.preparation import prepared
from secure_media_processor.medical.volume import read_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.inference.card import Inputs
    from secure_media_processor.medical.inference.packages import Package
    from secure_media_processor.medical.unet.dataset import Case
    from secure_media_processor.medical.unet.engines import DeviceName, Engine
    from secure_media_processor.medical.volume import Volume

THRESHOLD: Final = 0.5
_DIGITS: Final = 5


@dataclass(frozen=True, slots=True)
class Classified:
    """What was found in one case."""

    name: str
    truth: int
    """Class."""
    probabilities: tuple[float, ...]
    """Of each class; their sum is 1."""


def whole_input(volumes: Sequence[Volume], inputs: Inputs) -> NDArray[np.float32]:
    """Return images as a classifier sees them: (1, C, *sizes), float32.

    They are prepared as `inputs` says. What is smaller than the window of the training along an axis is put into its middle,
    and the values at its border go on; what is larger stays as large as it is.

    Raises:
        ModelError: there are not as many images as the model has channels.
        ImageError: they do not lie on one grid, cannot be scaled, or have several slices where the network takes one.
    """
    seen = prepared(volumes, inputs).scaled()
    if len(inputs.roi) == 2:  # noqa: PLR2004 - 2D or 3D
        if seen.shape[3] != 1:
            raise ImageError(f"the image has {seen.shape[3]} slices, and the model takes one")
        seen = seen[..., 0]
    lacking = [max(side - size, 0) for side, size in zip(inputs.roi, seen.shape[1:], strict=True)]
    padding = [(0, 0), *((lack // 2, lack - lack // 2) for lack in lacking)]
    return np.ascontiguousarray(np.pad(seen, padding, mode="edge")[None])


def probabilities(engine: Engine, volumes: Sequence[Volume], inputs: Inputs) -> tuple[float, ...]:
    """Return the probability of each class, the softmax of the logits.

    Raises:
        ModelError: the network does not give numbers, or as whole_input.
        ImageError: as whole_input.
    """
    logits = engine.logits(whole_input(volumes, inputs))[0].astype(np.float64)
    if not np.isfinite(logits).all():
        raise ModelError("the network does not give numbers")
    powers = np.exp(logits - logits.max())
    return tuple(float(value) for value in powers / powers.sum())


def validate_classes(
    package: Package,
    cases: Sequence[Case],
    *,
    device: DeviceName = "cpu",
    identities: Sequence[Identity] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Classified]:
    """Classify cases, in float32.

    Raises:
        ModelError: the package is no classifier, or as probabilities.
        ImageError, FileAccessError, MissingError: a case cannot be read or used.
    """
    if not isinstance(package.card.architecture, ClassifierArchitecture):
        raise ModelError(f"{package.card.name} is no classifier")
    inputs = package.card.inputs
    engine = TorchEngines(network_of(package)).open(inputs.roi, device)
    found = []
    for number, case in enumerate(cases, start=1):
        if case.class_ is None:
            raise ImageError(f"{case.image} has no class")
        given = probabilities(engine, [read_volume(case.image, identities=identities)], inputs)
        found.append(Classified(case.name, case.class_, given))
        if progress is not None:
            progress(number, len(cases))
    return found


def class_metrics(found: Sequence[Classified], names: Mapping[int, str], *, dataset: str, split: str) -> Metrics:
    """Return figures for a card, each of a class against the others: of two classes of the second only.

    auc has the interval of DeLong; sensitivity and specificity are those of probabilities of 0.5 and above, with the interval
    of Wilson (prediction_scores.py). A figure that is not defined is left out.
    """
    values: dict[str, dict[str, Figure]] = {}
    for class_ in sorted(names)[1 if len(names) == 2 else 0 :]:  # noqa: PLR2004 - one of them says all
        scores = scored(
            [one.probabilities[class_] for one in found], [float(one.truth == class_) for one in found], threshold=THRESHOLD
        )
        given = {"auc": scores.auc, "sensitivity": scores.sensitivity, "specificity": scores.specificity}
        values[names[class_]] = {metric: _figure(one) for metric, one in given.items() if isfinite(one.value)}
    return Metrics(dataset=dataset, n=len(found), split=split, values=values)


def _figure(estimate: Estimate) -> Figure:
    low, high = (round(end, _DIGITS) if isfinite(end) else None for end in (estimate.low, estimate.high))
    return Figure(mean=round(estimate.value, _DIGITS), low=low, high=high)
