"""smp medical evaluate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.chosen_keys import keys_at_hand
from secure_media_processor.cli.options import FILE, PATH, force_option, key_option, output_options
from secure_media_processor.cli.schemas import (
    Evaluated,
    EvaluatedCase,
    EvaluatedLabel,
    EvaluatedMetric,
    EvaluationSettings,
    FailedFile,
    PredictionsScored,
    Proportion,
    ReliabilityBin,
    WorstCase,
)
from secure_media_processor.cli.ui import Ui, counted, current, table
from secure_media_processor.errors import ExistsError, PartialError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Literal

    from secure_media_processor.cli.schemas import Figure
    from secure_media_processor.medical.evaluation import Evaluation, Summary
    from secure_media_processor.medical.prediction_scores import Estimate, Scores
    from secure_media_processor.medical.unet.metrics import Options

_RESAMPLES = 2000
_SEED = 0
_HIGHEST_LABEL = 65535
_SHOWN = 20  # lines of tables without a partner; --json has all
# Options that mean nothing for tables of probabilities, or for segmentations.
_OF_SEGMENTATIONS = (
    "surface_metrics",
    "surface",
    "tolerance",
    "lesions",
    "lesion_iou",
    "labels",
    "names",
    "csv_file",
    "key_file",
)
_OF_TABLES = ("threshold",)


class _Labels(click.ParamType[tuple[int, ...]]):
    """Different labels, separated by commas."""

    name = "labels"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            labels = tuple(int(one) for one in str(value).split(","))
        except ValueError:
            self.fail("labels are numbers, such as 1,2", param, ctx)
        if len(set(labels)) != len(labels) or not all(1 <= label <= _HIGHEST_LABEL for label in labels):
            self.fail(f"labels are different numbers from 1 to {_HIGHEST_LABEL}", param, ctx)
        return labels


class _Names(click.ParamType[dict[int, str]]):
    """Names of labels, separated by commas."""

    name = "names"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[int, str]:
        if isinstance(value, dict):
            return value
        names: dict[int, str] = {}
        for one in str(value).split(","):
            label, sign, name = one.partition("=")
            if not sign or not name.strip() or not label.strip().isdecimal() or int(label) in names:
                self.fail("names are written as 1=liver,2=spleen", param, ctx)
            names[int(label)] = name.strip()
        return names


@click.command()
@click.argument("prediction", metavar="PRED", type=PATH)
@click.argument("truth", metavar="TRUTH", type=PATH)
@click.option("--surface-metrics", is_flag=True, help="Measure HD, HD95, ASSD and surface Dice, too.")
@click.option("--surface", type=click.Choice(["voxel", "area"]), default="voxel", help="Which surface they are of.")
@click.option("--tolerance", type=click.FloatRange(0), default=1.0, help="mm, of the surface Dice.  [default: 1]")
@click.option("--lesions", is_flag=True, help="Count which connected things were found, too.")
@click.option(
    "--lesion-iou", type=click.FloatRange(0, 1), default=0.0, help="IoU from which one is found.  [default: any voxel]"
)
@click.option("--labels", type=_Labels(), help="Which labels, such as 1,2.  [default: all but 0]")
@click.option("--names", type=_Names(), help="What they are called, such as 1=liver,2=spleen.")
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.5, help="Of probabilities.  [default: 0.5]")
@click.option("--csv", "csv_file", metavar="FILE", type=FILE, help="Write a line for each case and label to a table.")
@force_option
@key_option
@output_options
@click.pass_context
def evaluate(
    context: click.Context,
    prediction: Path,
    truth: Path,
    *,
    surface_metrics: bool,
    surface: Literal["voxel", "area"],
    tolerance: float,
    lesions: bool,
    lesion_iou: float,
    labels: tuple[int, ...] | None,
    names: dict[int, str] | None,
    threshold: float,
    csv_file: Path | None,
    force: bool,
    key_file: Path | None,
) -> None:
    """Measure segmentations, or predicted probabilities, against the truth.

    PRED and TRUTH are two label maps in NIfTI, or two folders of such, paired by their names without .nii, .nii.gz and .smp. A
    pair must lie on one grid. What has no partner or cannot be measured is listed, and the exit code is 3.

    Or they are two tables, PRED.csv with the columns id and probability and TRUTH.csv with id and label (0 or 1).

    \b
    Examples:
      smp medical evaluate mask.nii.gz truth.nii.gz --surface-metrics
      smp medical evaluate predicted/ truth/ --labels 1,2 --names 1=liver,2=spleen --csv cases.csv
      smp medical evaluate predictions.csv labels.csv --threshold 0.3
    """
    import secure_media_processor.medical.unet  # noqa: F401 - says which extra is missing

    ui = current()
    tables = [path.suffix.lower() == ".csv" for path in (prediction, truth)]
    if any(tables) and not all(tables):
        raise UsageError("one is a table and the other is not", hint="name two CSV files, or two images or folders")
    _refuse_foreign_options(context, tables=all(tables))
    if csv_file is not None and csv_file.exists() and not force:
        raise ExistsError(f"{csv_file} exists")  # before the work, not after it
    with recorded("medical.evaluate"):
        if all(tables):
            _score(ui, prediction, truth, threshold)
            return
        from secure_media_processor.medical.unet.metrics import Options

        options = Options(surface if surface_metrics else None, tolerance, lesions, lesion_iou)
        _measure(ui, prediction, truth, options, labels, names or {}, csv_file, key_file, overwrite=force)


def _refuse_foreign_options(context: click.Context, *, tables: bool) -> None:
    """Raise UsageError if an option is given that means nothing for these inputs, or without another one."""

    def given(name: str) -> bool:
        return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE

    for name in _OF_SEGMENTATIONS if tables else _OF_TABLES:
        if given(name):
            option = {"csv_file": "csv", "key_file": "key"}.get(name, name.replace("_", "-"))
            raise UsageError(f"--{option} is not for {'tables' if tables else 'segmentations'}")
    for name, needs in (("surface", "surface_metrics"), ("tolerance", "surface_metrics"), ("lesion_iou", "lesions")):
        if given(name) and not context.params[needs]:
            raise UsageError(f"--{name.replace('_', '-')} means nothing without --{needs.replace('_', '-')}")


# ------------------------------------------------------------------------------------------------------- segmentations


def _measure(  # noqa: PLR0917 - what the user chose
    ui: Ui,
    prediction: Path,
    truth: Path,
    options: Options,
    labels: tuple[int, ...] | None,
    names: Mapping[int, str],
    csv_file: Path | None,
    key_file: Path | None,
    *,
    overwrite: bool,
) -> None:
    from secure_media_processor.core.files import write_file
    from secure_media_processor.medical.evaluation import evaluate as evaluate_cases
    from secure_media_processor.medical.evaluation import paired, summed_up, table_of_cases

    cases, alone = paired(prediction, truth)
    keys = keys_at_hand(key_file)
    with ui.counting("measuring") as progress:
        found = evaluate_cases(cases, labels, options, identities=keys, progress=progress)
    if found.failed and not prediction.is_dir():
        raise found.failed[0].error
    for one in alone:
        ui.warn(f"{one.path} has no partner")
    for failed in found.failed:
        ui.warn(str(failed.error))
    summaries = summed_up(found, resamples=_RESAMPLES, seed=_SEED)
    if csv_file is not None and found.measured:
        write_file(csv_file, table_of_cases(found, names).encode(), overwrite=overwrite)
    settings = EvaluationSettings(
        options.surface, options.tolerance, options.least_iou if options.lesions else None, _RESAMPLES, _SEED
    )
    result = Evaluated(
        settings,
        _cases(found),
        [_metric(label, names, metric, summary) for label, metrics in summaries.items() for metric, summary in metrics.items()],
        None,
        [str(one.path) for one in alone],
        [FailedFile(str(one.case.prediction), str(one.error)) for one in found.failed],
    )
    ui.result(result, _shown(summaries, names, alone=len(found.measured) == 1))
    _explain(ui, found, options)
    if alone or found.failed:
        raise PartialError(
            f"{counted(len(found.measured), 'case')} measured, {len(found.failed)} failed, "
            f"{counted(len(alone), 'file')} without a partner",
            hint="see the warnings above",
        )


def _explain(ui: Ui, found: Evaluation, options: Options) -> None:
    """Say what the figures mean, as far as the names of columns do not."""
    if not found.measured:
        return
    if not found.labels:
        ui.say("there is no label but the background in any of the files")
        return
    if options.surface is not None:
        ui.say(f"distances are of {options.surface} surfaces; the tolerance of the surface Dice is {options.tolerance:g} mm")
    ui.say("where both masks are empty, overlaps are 1 and distances undefined; where one is, overlaps are 0 and distances inf")
    if len(found.measured) > 1:
        ui.say(f"intervals: 95 %, bootstrap of the mean over cases, {_RESAMPLES} draws, seed {_SEED}")


def _shown(summaries: Mapping[int | None, Mapping[str, Summary]], names: Mapping[int, str], *, alone: bool) -> str:
    """Return a table for people."""
    from secure_media_processor.medical.unet.metrics import METRICS

    rows: list[list[object]] = []
    for label, metrics in summaries.items():
        called = "mean" if label is None else f"{label} {names.get(label, '')}".rstrip()
        for name, summary in metrics.items():
            if name == "f1":  # of voxels, another name for Dice
                continue
            metric = METRICS[name]
            title = f"{metric.title} ({metric.unit})" if metric.unit else metric.title
            digits = 4 if metric.unit != "mm" else 3
            if alone:
                rows.append([called, title, _number(summary.mean, digits)])
                continue
            interval = "-" if math.isnan(summary.low) else f"{_number(summary.low, digits)} to {_number(summary.high, digits)}"
            worst = ", ".join(f"{case} {_number(value, digits)}" for case, value in summary.worst)
            numbers = [_number(value, digits) for value in (summary.mean, summary.median)]
            rows.append([called, title, summary.n, summary.undefined, numbers[0], interval, numbers[1], worst])
    if not rows:
        return ""
    if alone:
        return table(["label", "metric", "value"], rows, right={"value"})
    header = ["label", "metric", "n", "undefined", "mean", "95% interval", "median", "worst"]
    return table(header, rows, right={"mean", "median", "95% interval"})


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _figure(value: float) -> Figure:
    return None if math.isnan(value) else "inf" if math.isinf(value) else value


def _cases(found: Evaluation) -> list[EvaluatedCase]:
    return [
        EvaluatedCase(
            one.case.name,
            str(one.case.prediction),
            str(one.case.truth),
            [
                EvaluatedLabel(
                    label.label,
                    label.confusion.tp,
                    label.confusion.fp,
                    label.confusion.fn,
                    label.confusion.tn,
                    {name: _figure(value) for name, value in label.values.items()},
                )
                for label in one.labels
            ],
        )
        for one in found.measured
    ]


def _metric(label: int | None, names: Mapping[int, str], metric: str, summary: Summary) -> EvaluatedMetric:
    return EvaluatedMetric(
        label,
        None if label is None else names.get(label),
        metric,
        summary.n,
        summary.undefined,
        summary.infinite,
        _figure(summary.mean),
        _figure(summary.low),
        _figure(summary.high),
        _figure(summary.median),
        [WorstCase(case, _figure(value)) for case, value in summary.worst],
    )


# ------------------------------------------------------------------------------------------------------- probabilities


def _score(ui: Ui, prediction: Path, truth: Path, threshold: float) -> None:
    from secure_media_processor.medical.prediction_scores import joined, read_labels, read_predictions, scored

    probabilities, labels, alone = joined(read_predictions(prediction), read_labels(truth))
    for path, line in alone[:_SHOWN]:
        ui.warn(f"{path}, line {line}, has no partner")
    if len(alone) > _SHOWN:
        ui.warn(f"and {len(alone) - _SHOWN} more")
    missing = [f"{path}, line {line}" for path, line in alone]
    if not len(probabilities):
        ui.result(Evaluated(None, [], [], None, missing, []), "")
        raise PartialError("no id is in both tables", hint="compare their columns id")
    scores = scored(probabilities, labels, threshold=threshold)
    ui.result(Evaluated(None, [], [], _scores(scores), missing, []), _shown_scores(scores))
    ui.say("intervals: 95 %, of the AUC by DeLong, of sensitivity and specificity by Wilson; ECE of the ten bins in the table")
    if alone:
        raise PartialError(f"{counted(scores.n, 'case')} measured, {counted(len(alone), 'line')} without a partner")


def _scores(scores: Scores) -> PredictionsScored:
    return PredictionsScored(
        scores.n,
        scores.positives,
        scores.threshold,
        _proportion(scores.auc),
        _proportion(scores.sensitivity),
        _proportion(scores.specificity),
        scores.brier,
        scores.ece,
        [
            ReliabilityBin(one.low, one.high, one.n, _defined(one.probability), _defined(one.observed))
            for one in scores.reliability
        ],
    )


def _proportion(estimate: Estimate) -> Proportion:
    return Proportion(_defined(estimate.value), _defined(estimate.low), _defined(estimate.high))


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _shown_scores(scores: Scores) -> str:
    estimates = (
        ("AUC", scores.auc),
        (f"sensitivity at {scores.threshold:g}", scores.sensitivity),
        (f"specificity at {scores.threshold:g}", scores.specificity),
    )
    rows: list[Sequence[object]] = [["cases", scores.n, ""], ["with label 1", scores.positives, ""]]
    for title, one in estimates:
        interval = "-" if math.isnan(one.low) else f"{one.low:.4f} to {one.high:.4f}"
        rows.append([title, _number(one.value, 4), interval])
    rows += [["Brier score", f"{scores.brier:.4f}", ""], ["ECE", f"{scores.ece:.4f}", ""]]
    bins = [
        [f"{one.low:.1f} to {one.high:.1f}", one.n, _number(one.probability, 4), _number(one.observed, 4)]
        for one in scores.reliability
    ]
    figures = table(["figure", "value", "95% interval"], rows, right={"value"})
    return f"{figures}\n\n{table(['probability', 'cases', 'mean', 'observed'], bins, right={'mean', 'observed'})}"
