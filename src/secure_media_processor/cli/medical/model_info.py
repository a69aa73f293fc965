"""smp medical model info."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.medical.named_models import package_path
from secure_media_processor.cli.options import PATH, output_options
from secure_media_processor.cli.schemas import ModelMetric, ModelShown
from secure_media_processor.cli.ui import current, table

if TYPE_CHECKING:
    from pathlib import Path

    from secure_media_processor.medical.inference.card import ModelCard
    from secure_media_processor.medical.inference.packages import Package


@click.command()
@click.argument("package", metavar="PACKAGE", type=PATH)
@output_options
def info(package: Path) -> None:
    """Show what a model package says of its model.

    PACKAGE is a folder or a .zip. Its files are checked against their hashes, and its weights against the architecture; nothing
    in it is run. What the package says of itself is not checked by that.

    \b
    Example:
      smp medical model info hippocampus/
    """
    from secure_media_processor.medical.inference.packages import read_package

    read = read_package(package_path(package))
    shown = _shown(read)
    current().result(shown, _text(read.card, shown))


def _shown(package: Package) -> ModelShown:
    card = package.card
    metrics = [
        ModelMetric(label, metric, figure.mean, figure.low, figure.high)
        for label, figures in (card.metrics.values.items() if card.metrics else ())
        for metric, figure in figures.items()
    ]
    return ModelShown(
        path=str(package.path),
        name=card.name,
        version=card.version,
        sha256=package.sha256,
        task=card.task,
        architecture=_architecture(card),
        channels=list(card.inputs.channels),
        modality=card.inputs.modality,
        orientation=card.inputs.orientation,
        spacing=None if card.inputs.spacing is None else list(card.inputs.spacing),
        window=list(card.inputs.roi),
        normalization=card.inputs.normalization.method,
        labels=dict(card.outputs.labels),
        intended_use=card.intended_use,
        limitations=card.limitations,
        training_data=card.training_data,
        licence=card.licence,
        validated_on=None if card.metrics is None else card.metrics.dataset,
        validation_cases=None if card.metrics is None else card.metrics.n,
        metrics=metrics,
        size=sum(map(len, package.files.values())),
        self_test=card.test_vector is not None,
    )


def _architecture(card: ModelCard) -> str:
    if card.architecture.kind == "onnx":
        return f"ONNX, {card.dimensions}D"
    if card.architecture.kind == "linknet":
        return "two LinkNets, 3D"
    features = ", ".join(map(str, card.architecture.channels))
    if card.architecture.kind == "classifier":
        return f"classifier, {card.dimensions}D, features {features}"
    return f"{card.architecture.variant} U-Net, {card.dimensions}D, features {features}"


def _text(card: ModelCard, shown: ModelShown) -> str:
    spacing = "that of the image" if shown.spacing is None else " x ".join(f"{size:g}" for size in shown.spacing) + " mm"
    lines = [
        f"{shown.name} {shown.version}",
        f"sha256        {shown.sha256}",
        f"task          {shown.task}: {', '.join(card.labels.values())}",
        f"network       {shown.architecture}",
        f"input         {', '.join(shown.channels)}; {shown.modality or 'any modality'}; {shown.orientation}; {spacing}",
        f"intended use  {shown.intended_use}",
        f"limitations   {shown.limitations}",
        f"training      {shown.training_data}",
        f"licence       {shown.licence}",
    ]
    if shown.metrics:
        rows = [
            [one.label, one.metric, _figure(one.mean), f"{_figure(one.low)} to {_figure(one.high)}"] for one in shown.metrics
        ]
        lines.append(f"validated on  {shown.validated_on}, n = {shown.validation_cases}")
        lines.append(table(["label", "metric", "mean", "95 %"], rows))
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"
