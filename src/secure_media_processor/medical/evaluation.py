"""Segmentations against a reference: cases paired by name, each measured, and all of them summed up, label by label.

A case is a pair of NIfTI files with one name, but for .nii, .nii.gz and .smp. Both must lie on one grid: nothing is resampled
behind the user's back. What cannot be measured is listed and never left out in silence.

Of a label that only some cases have, the others are measured too: a case in which it is neither in the prediction nor in the
truth counts as the metrics define it (Dice 1, distances undefined).
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from secure_media_processor.core.files import os_errors
from secure_media_processor.errors import ImageError, SmpError, UsageError
from secure_media_processor.medical.nifti import case_name, files_by_name
from secure_media_processor.medical.unet.metrics import METRICS, NAN, absent, bootstrap_interval, report
from secure_media_processor.medical.volume import read_grid, read_volume, same_grid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.unet.metrics import LabelReport, Options
    from secure_media_processor.medical.volume import Grid

Side: TypeAlias = Literal["prediction", "truth"]
MEAN: None = None
"""Stands for the mean of all labels of a case where a label is expected."""

_WORST = 3
_COUNTS = ("tp", "fp", "fn", "tn")


@dataclass(frozen=True, slots=True)
class Case:
    """A prediction and the truth that belongs to it."""

    name: str
    prediction: Path
    truth: Path


@dataclass(frozen=True, slots=True)
class Alone:
    """A file without a partner."""

    path: Path
    side: Side
    """What it is."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A case that could not be measured."""

    case: Case
    error: SmpError


@dataclass(frozen=True, slots=True)
class Measured:
    """A case that was."""

    case: Case
    grid: Grid
    labels: list[LabelReport]
    """Of all labels of the evaluation, in their order."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out."""

    labels: tuple[int, ...]
    """Those that were measured."""
    measured: list[Measured]
    failed: list[Failed]


@dataclass(frozen=True, slots=True)
class Summary:
    """A figure over all cases."""

    n: int
    """Cases in which it is defined: those that the rest is about."""
    undefined: int
    """Cases in which it is not."""
    infinite: int
    """Cases in which it is infinite; the mean is, too, then."""
    mean: float
    low: float
    """Of the confidence interval of the mean; nan for fewer than two cases."""
    high: float
    median: float
    worst: list[tuple[str, float]]
    """Name and value of up to three cases that are furthest from the best value, worst first; not those that have it."""


def paired(prediction: Path, truth: Path) -> tuple[list[Case], list[Alone]]:
    """Pair files by name.

    Args:
        prediction: A file, or a folder of NIfTI files; what lies in folders below, or has a name that begins with a dot, is
            not looked at.
        truth: The same.

    Returns:
        Cases in the order of their names, and files without a partner.

    Raises:
        MissingError: there is no such file or folder, or no NIfTI file in it.
        UsageError: one is a file and the other a folder, or two files of a folder have one name.
    """
    with os_errors(f"read {prediction}"):
        predictions_are_many = _is_folder(prediction)
    with os_errors(f"read {truth}"):
        truths_are_many = _is_folder(truth)
    if predictions_are_many != truths_are_many:
        raise UsageError("one is a folder and the other a file", hint="name two files, or two folders")
    if not predictions_are_many:
        return [Case(case_name(truth) or truth.name, prediction, truth)], []
    predictions, truths = files_by_name(prediction), files_by_name(truth)
    cases = [Case(name, path, truths[name]) for name, path in sorted(predictions.items()) if name in truths]
    alone = [Alone(path, "prediction") for name, path in sorted(predictions.items()) if name not in truths]
    return cases, alone + [Alone(path, "truth") for name, path in sorted(truths.items()) if name not in predictions]


def _is_folder(path: Path) -> bool:
    path.stat()  # raises if there is nothing
    return path.is_dir()


def evaluate(
    cases: Sequence[Case],
    labels: Sequence[int] | None,
    options: Options,
    *,
    identities: Sequence[Identity] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure cases one after the other, with two label maps in memory at a time.

    Args:
        cases: Which.
        labels: Labels that are measured; all that occur in any case but 0, ascending, if None.
        options: What is measured.
        identities: Keys that open encrypted files.
        progress: Called with how many are done, and how many there are.
    """
    reports: list[tuple[Case, Grid, dict[int, LabelReport]]] = []
    failed = []
    for done, case in enumerate(cases):
        if progress is not None:
            progress(done, len(cases))
        try:
            grid, found = _measure(case, labels, options, identities)
        except SmpError as error:
            failed.append(Failed(case, error))
            continue
        reports.append((case, grid, {one.label: one for one in found}))
    wanted = tuple(sorted({label for *_, found in reports for label in found}) if labels is None else labels)
    measured = [
        Measured(case, grid, [found.get(label) or absent(label, grid.shape, grid.spacing, options) for label in wanted])
        for case, grid, found in reports
    ]
    return Evaluation(wanted, measured, failed)


def _measure(
    case: Case, labels: Sequence[int] | None, options: Options, identities: Sequence[Identity]
) -> tuple[Grid, list[LabelReport]]:
    grids = [read_grid(path, identities=identities) for path in (case.prediction, case.truth)]
    if not same_grid(*grids):
        raise ImageError(
            f"{case.prediction} and {case.truth} do not lie on one grid: {_difference(*grids)}",
            hint="bring the prediction onto the grid of the truth, or segment the image that the truth belongs to",
        )
    # Labels beyond 16 bits, below 0 or with fractions are refused by who reads.
    prediction, truth = (
        read_volume(path, identities=identities, dtype=np.uint16).array for path in (case.prediction, case.truth)
    )
    return grids[1], report(prediction, truth, grids[1].spacing, labels, options)


def _difference(one: Grid, other: Grid) -> str:
    """Return for people in what two grids differ."""
    if one.shape != other.shape:
        return f"{_by(one.shape)} voxels against {_by(other.shape)}"
    if not np.allclose(one.spacing, other.spacing, rtol=0, atol=1e-4):
        return f"voxels of {_by(one.spacing)} mm against {_by(other.spacing)} mm"
    if one.orientation != other.orientation:
        return f"their axes run to {one.orientation} and to {other.orientation}"
    middle = np.append((np.array(one.shape) - 1) / 2, 1.0)
    apart = np.linalg.norm(((one.affine - other.affine) @ middle)[:3])
    return f"their centres are {apart:.3g} mm apart" if apart > 1e-3 else "they are turned against each other"  # noqa: PLR2004 - mm


def _by(numbers: Sequence[float]) -> str:
    return " by ".join(f"{number:.5g}" for number in numbers)


def summed_up(evaluation: Evaluation, *, resamples: int = 2000, seed: int = 0) -> dict[int | None, dict[str, Summary]]:
    """Return label → metric → figure over all cases.

    The last entry, of the label MEAN, is about the mean over labels of each case; it is there if there are several labels.
    """
    tables: dict[int | None, dict[str, list[float]]] = {}
    for at, label in enumerate(evaluation.labels):
        tables[label] = _columns([case.labels[at].values for case in evaluation.measured])
    if len(evaluation.labels) > 1:
        tables[MEAN] = _columns([_means([one.values for one in case.labels]) for case in evaluation.measured])
    names = [case.case.name for case in evaluation.measured]
    return {
        label: {metric: _summary(metric, values, names, resamples, seed) for metric, values in table.items()}
        for label, table in tables.items()
    }


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {metric: [row[metric] for row in rows] for metric in (rows[0] if rows else ())}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over labels, those left out in which it is undefined."""
    means = {}
    for metric in rows[0]:
        defined = [row[metric] for row in rows if not math.isnan(row[metric])]
        means[metric] = float(np.mean(defined)) if defined else NAN
    return means


def _summary(metric: str, values: Sequence[float], names: Sequence[str], resamples: int, seed: int) -> Summary:
    defined = [(name, value) for name, value in zip(names, values, strict=True) if not math.isnan(value)]
    numbers = np.array([value for _, value in defined])
    best = METRICS[metric].best
    worst = sorted((one for one in defined if one[1] != best), key=lambda one: -abs(one[1] - best))[:_WORST]
    low, high = bootstrap_interval(numbers, resamples=resamples, seed=seed)
    return Summary(
        n=len(defined),
        undefined=len(values) - len(defined),
        infinite=int(np.isinf(numbers).sum()),
        mean=float(numbers.mean()) if defined else NAN,
        low=low,
        high=high,
        median=_median(numbers),
        worst=worst,
    )


def _median(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """Return the median; infinite between a number and infinity."""
    if not len(values):
        return NAN
    ordered = np.sort(values)
    low, high = float(ordered[(len(ordered) - 1) // 2]), float(ordered[len(ordered) // 2])
    return low if low == high else (low + high) / 2


def table_of_cases(evaluation: Evaluation, names: Mapping[int, str]) -> str:
    """Return a CSV table, a line for each case and label. Undefined values are empty, infinite ones are "inf".

    Args:
        evaluation: What came out.
        names: Names of labels, where there are any.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics = list(evaluation.measured[0].labels[0].values) if evaluation.measured and evaluation.labels else []
    writer.writerow(["case", "label", "name", *_COUNTS, *metrics])
    writer.writerows(row for case in evaluation.measured for row in _rows(case, names))
    return text.getvalue()


def _rows(case: Measured, names: Mapping[int, str]) -> Iterator[list[object]]:
    for one in case.labels:
        counts = [getattr(one.confusion, name) for name in _COUNTS]
        values = ["" if math.isnan(value) else repr(value) for value in one.values.values()]
        yield [case.case.name, one.label, names.get(one.label, ""), *counts, *values]
