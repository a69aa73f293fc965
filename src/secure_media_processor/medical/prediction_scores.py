"""How good probabilities are, of whoever gave them: a table of predictions against a table of what was the case.

A label is 1 (what the probability is of) or 0. The threshold is given, never sought: one that was chosen on the same cases
would make the figures look better than they are.

- AUC: the part of all pairs of a 1 and a 0 in which the 1 has the higher probability, half for equal ones (Mann and Whitney).
  Its interval is that of DeLong (Biometrics 1988), a normal one cut at 0 and 1: of width 0 where the classes are separated
  completely, and too narrow near that.
- Sensitivity and specificity: of probabilities at or above the threshold; intervals of Wilson (1927).
- Brier score: mean squared difference of probability and label; lower is better, 0.25 is what 0.5 everywhere gives.
- ECE: the expected calibration error. The range 0 to 1 is cut into 10 bins of equal width, each with its lower end, the last
  with both; the mean over cases of the distance, bin by bin, of mean probability and part of ones.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from secure_media_processor.core.files import os_errors
from secure_media_processor.errors import ImageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Numbers: TypeAlias = "NDArray[np.float64]"

MAX_BYTES: Final = 64 * 1024**2
MAX_ROWS: Final = 1_000_000
LONGEST_FIELD: Final = 1024
BINS: Final = 10
NAN: Final = float("nan")


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file with an id and a number a line."""

    path: Path
    values: dict[str, float]
    """Id → number, in the order of the file."""
    lines: dict[str, int]
    """Id → line of the file, from 1."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its confidence interval of 95 %; nan where it is undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bin:
    """A line of the reliability table."""

    low: float
    """Probabilities from here."""
    high: float
    """To below here; in the last one, including it."""
    n: int
    probability: float
    """Mean; nan if there is none."""
    observed: float
    """Part of ones."""


@dataclass(frozen=True, slots=True)
class Scores:
    """All figures."""

    n: int
    positives: int
    threshold: float
    auc: Estimate
    """nan if there are no ones or no zeros."""
    sensitivity: Estimate
    specificity: Estimate
    brier: float
    ece: float
    reliability: list[Bin]


def read_predictions(path: Path) -> Table:
    """Read a CSV file with the columns `id` and `probability` (0 to 1); others are left alone.

    Raises:
        ImageError: it is no such table; the line is named, not what stands in it.
        MissingError, FileAccessError: it cannot be read.
    """
    return _table(path, "probability", "a number from 0 to 1")


def read_labels(path: Path) -> Table:
    """Read a CSV file with the columns `id` and `label` (0 or 1); others are left alone. Raises as read_predictions."""
    table = _table(path, "label", "0 or 1")
    for id_, value in table.values.items():
        if value not in {0.0, 1.0}:
            raise ImageError(f"{path}, line {table.lines[id_]}: label is not 0 or 1")
    return table


def _table(path: Path, column: str, meaning: str) -> Table:
    values: dict[str, float] = {}
    lines: dict[str, int] = {}
    for line, (id_, text) in csv_lines(path, column):
        try:
            value = float(text)
        except ValueError:
            value = NAN
        if not 0 <= value <= 1:
            raise ImageError(f"{path}, line {line}: {column} is not {meaning}")
        if not id_:
            raise ImageError(f"{path}, line {line}: it has no id")
        if id_ in values:
            raise ImageError(f"{path}, line {line}: the id of line {lines[id_]} again", hint="keep one line a case")
        values[id_], lines[id_] = value, line
    if not values:
        raise ImageError(f"{path} has no cases")
    return Table(path, values, lines)


def csv_lines(path: Path, column: str) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield the number of each line, and what it has in the columns `id` and `column`. Raises as read_predictions."""
    with os_errors(f"read {path}"), path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ImageError(f"{path} is larger than {MAX_BYTES // 1024**2} MiB, the most that is read as a table")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImageError(f"{path} is not a CSV file in UTF-8") from error
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if header.count("id") != 1 or header.count(column) != 1:
            raise ImageError(f"{path} does not have one column id and one column {column} in its first line")
        wanted = header.index("id"), header.index(column)
        for count, row in enumerate(reader):
            if not row:
                continue
            if count >= MAX_ROWS:
                raise ImageError(f"{path} has more than {MAX_ROWS} lines")
            if len(row) != len(header) or max(map(len, row)) > LONGEST_FIELD:
                raise ImageError(
                    f"{path}, line {reader.line_num}: not as many fields as the first line has, or a very long one"
                )
            yield reader.line_num, (row[wanted[0]].strip(), row[wanted[1]].strip())
    except csv.Error as error:
        raise ImageError(f"{path}, line {reader.line_num}: this is no CSV") from error


def joined(predictions: Table, labels: Table) -> tuple[Numbers, Numbers, list[tuple[Path, int]]]:
    """Return the probabilities and labels of ids that both have, and the lines of those that only one has."""
    both = [id_ for id_ in predictions.values if id_ in labels.values]
    alone = [
        (one.path, line)
        for one, other in ((predictions, labels), (labels, predictions))
        for id_, line in one.lines.items()
        if id_ not in other.values
    ]
    return np.array([predictions.values[id_] for id_ in both]), np.array([labels.values[id_] for id_ in both]), alone


def scored(probabilities: Sequence[float] | Numbers, labels: Sequence[float] | Numbers, *, threshold: float = 0.5) -> Scores:
    """Compare probabilities with labels.

    Args:
        probabilities: Of label 1, 0 to 1.
        labels: 0 or 1, as many.
        threshold: Probabilities at or above it count as 1.

    Raises:
        UsageError: there are none, or they do not belong together.
    """
    given, true = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if given.shape != true.shape or given.ndim != 1 or not len(given):
        raise UsageError("there must be as many probabilities as labels, and at least one")
    if not ((given >= 0) & (given <= 1) & np.isin(true, (0, 1))).all():
        raise UsageError("probabilities are numbers from 0 to 1, labels 0 or 1")
    positive, said = true == 1, given >= threshold
    table = _reliability(given, true)
    return Scores(
        n=len(given),
        positives=int(positive.sum()),
        threshold=threshold,
        auc=_auc(given[positive], given[~positive]),
        sensitivity=_share(int((said & positive).sum()), int(positive.sum())),
        specificity=_share(int((~said & ~positive).sum()), int((~positive).sum())),
        brier=float(((given - true) ** 2).mean()),
        ece=sum(one.n * abs(one.probability - one.observed) for one in table if one.n) / len(given),
        reliability=table,
    )


def _auc(ones: Numbers, zeros: Numbers) -> Estimate:
    """Return the area under the ROC curve with DeLong's variance, by ranks as Sun and Xu (2014)."""
    if not len(ones) or not len(zeros):
        return Estimate(NAN, NAN, NAN)
    ranks = _midranks(np.concatenate([ones, zeros]))
    above = (ranks[: len(ones)] - _midranks(ones)) / len(zeros)  # for each 1, the part of the 0s below it
    below = 1 - (ranks[len(ones) :] - _midranks(zeros)) / len(ones)  # for each 0, the part of the 1s above it
    value = float(above.mean())
    if min(len(ones), len(zeros)) < 2:  # noqa: PLR2004 - a single one has no variance
        return Estimate(value, NAN, NAN)
    half = _quantile() * math.sqrt(above.var(ddof=1) / len(ones) + below.var(ddof=1) / len(zeros))
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def _share(part: int, whole: int) -> Estimate:
    """Return a proportion with Wilson's interval."""
    if not whole:
        return Estimate(NAN, NAN, NAN)
    share, z = part / whole, _quantile()
    middle = (share + z * z / (2 * whole)) / (1 + z * z / whole)
    half = z / (1 + z * z / whole) * math.sqrt(share * (1 - share) / whole + z * z / (4 * whole * whole))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


def _quantile() -> float:
    """Return how many standard deviations hold 95 % of a normal distribution."""
    return NormalDist().inv_cdf(0.975)


def _midranks(values: Numbers) -> Numbers:
    """Return the rank of each value, from 1; equal ones share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _reliability(given: Numbers, true: Numbers) -> list[Bin]:
    ends = np.arange(BINS + 1) / BINS
    bins = np.clip(np.searchsorted(ends, given, side="right") - 1, 0, BINS - 1)
    table = []
    for at in range(BINS):
        here = bins == at
        n = int(here.sum())
        means = (float(given[here].mean()), float(true[here].mean())) if n else (NAN, NAN)
        table.append(Bin(float(ends[at]), float(ends[at + 1]), n, *means))
    return table
