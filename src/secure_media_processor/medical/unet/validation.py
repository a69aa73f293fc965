"""How good a model is on cases it was not trained on: segmented by the program's own inference, compared in their own grid."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, isnan
from typing import TYPE_CHECKING, Final

import numpy as np

from secure_media_processor.medical.inference.card import Estimate, Metrics
from secure_media_processor.medical.unet.dataset import read_case
from secure_media_processor.medical.unet.inference import Options, segment
from secure_media_processor.medical.unet.metrics import Options as MetricOptions
from secure_media_processor.medical.unet.metrics import bootstrap_interval, report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.inference.packages import Package
    from secure_media_processor.medical.unet.dataset import Case

KEPT: Final = ("dice", "iou", "precision", "recall", "hd95", "assd")
"""What goes into a card, of metrics.METRICS. Surfaces are those of voxels."""
MEAN: Final = "mean of the labels"
_DIGITS: Final = 5


@dataclass(frozen=True, slots=True)
class Validated:
    """The figures of one case."""

    name: str
    values: dict[int, dict[str, float]]
    """Label → metric → value, as metrics.report has them."""


def validate(
    package: Package,
    cases: Sequence[Case],
    options: Options,
    *,
    identities: Sequence[Identity] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Validated]:
    """Segment cases and compare, in the grid of each image.

    Raises:
        As read_case and segment.
    """
    found = []
    labels = [label for label in package.card.labels if label]
    for number, case in enumerate(cases, start=1):
        image, truth = read_case(case, identities)
        made = segment(image, package, options).labels
        reports = report(made.array, truth.array, image.grid.spacing, labels, MetricOptions(surface="voxel"))
        found.append(Validated(case.name, {one.label: one.values for one in reports}))
        if progress is not None:
            progress(number, len(cases))
    return found


def metrics_of(found: Sequence[Validated], names: dict[int, str], *, dataset: str, split: str) -> Metrics:
    """Return means and intervals for a card: over cases for each label, and of the mean over labels of each case.

    A figure that is not defined for a case is left out of its mean. One that is infinite, as a distance is where nothing was
    found, makes the mean infinite, which a card cannot hold: that figure is left out of the card.
    """
    labels = [label for label in names if label]
    values: dict[str, dict[str, Estimate]] = {}
    for label in labels:
        columns = {metric: [one.values[label][metric] for one in found] for metric in KEPT}
        values[names[label]] = _estimates(columns)
    means = [float(np.mean([one.values[label]["dice"] for label in labels])) for one in found]
    values[MEAN] = _estimates({"dice": means})
    return Metrics(dataset=dataset, n=len(found), split=split, values=values)


def _estimates(columns: dict[str, list[float]]) -> dict[str, Estimate]:
    found = {}
    for metric, column in columns.items():
        defined = [value for value in column if not isnan(value)]
        if defined and all(isfinite(value) for value in defined):
            low, high = bootstrap_interval(defined)
            ends = (None, None) if isnan(low) else (round(low, _DIGITS), round(high, _DIGITS))
            found[metric] = Estimate(mean=round(float(np.mean(defined)), _DIGITS), low=ends[0], high=ends[1])
    return found
