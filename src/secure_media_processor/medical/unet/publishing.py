"""From trained weights to a model package: its card with figures that were measured, and the record of how it was made."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import torch
from pydantic import ValidationError

from secure_media_processor import __version__
from secure_media_processor.errors import UsageError
from secure_media_processor.medical.inference.card import (
    WEIGHTS,
    ClassifierArchitecture,
    Metrics,
    ModelCard,
    Outputs,
    UNetArchitecture,
)
from secure_media_processor.medical.inference.classifier import ClassifierConfig
from secure_media_processor.medical.inference.packages import Package, save_weights, write_package
from secure_media_processor.medical.inference.vectors import make_vector, vector_shape
from secure_media_processor.medical.unet.classification import THRESHOLD, Classified, class_metrics, validate_classes
from secure_media_processor.medical.unet.engines import TorchEngines, network_of
from secure_media_processor.medical.unet.inference import Options
from secure_media_processor.medical.unet.tasks import task_of
from secure_media_processor.medical.unet.validation import Validated, metrics_of, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from secure_media_processor.medical.unet.dataset import Case
    from secure_media_processor.medical.unet.models import UNetConfig
    from secure_media_processor.medical.unet.train import Budget, DeviceName, Trained
    from secure_media_processor.medical.unet.training_plan import Plan

RECORD: Final = "TRAINING.md"
_FIRST_VERSION: Final = "1"
_HASH: Final = 16  # hexadecimal digits
LIMITATIONS: Final = (
    "Research use only: not for diagnosis or treatment. Trained and validated on one set of images; on images of other "
    "scanners, protocols, patients or diseases it may fail without a sign."
)


@dataclass(frozen=True, slots=True)
class Description:
    """What people say of the model."""

    name: str
    licence: str
    """Under which the weights may be used; the data's licence may bind it."""
    labels: Mapping[int, str]
    """Label → name; those that are missing are called "label 1" and so on. Classes of images have the names of the plan."""
    intended_use: str = ""
    training_data: str = ""
    """What the images are and where they come from."""
    name_cases: bool = False
    """Whether the record names the validation cases; their hashes stand there otherwise."""


@dataclass(frozen=True, slots=True)
class Published:
    """What was written."""

    package: Package
    validated: tuple[Validated, ...] | tuple[Classified, ...]


@dataclass(frozen=True, slots=True)
class _Measured:
    """What was found in the validation cases."""

    cases: tuple[Validated, ...] | tuple[Classified, ...]
    metrics: Metrics
    heading: tuple[str, ...]
    """Of the table of the cases, after their names."""
    rows: tuple[tuple[str, ...], ...]
    """As many as cases, each with its name first."""


def draft_card(plan: Plan, description: Description) -> ModelCard:
    """Return a card without figures. Raises UsageError if a text or a name is not fit for one."""
    names, network = _names(plan, description), plan.recipe.network
    classifies = isinstance(network, ClassifierConfig)
    try:
        return ModelCard(
            name=description.name,
            version=_FIRST_VERSION,
            task="classify" if classifies else "segment",
            architecture=_architecture(network),
            inputs=plan.inputs,
            outputs=Outputs(labels=names),
            intended_use=description.intended_use or _use(names, classifies=classifies),
            limitations=LIMITATIONS,
            training_data=description.training_data or "not described",
            licence=description.licence,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))} of the model is not accepted: {first['msg']}") from None


def publish(
    target: Path,
    plan: Plan,
    trained: Trained,
    budget: Budget,
    description: Description,
    *,
    device: DeviceName = "cpu",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Published:
    """Validate what was trained, and write the package.

    Weights are stored as float16 where they fit, and the figures are measured with the stored ones, in float32, by the
    program's own inference.

    Raises:
        UsageError: a text is not fit for a card.
        ExistsError, NoSpaceError, FileAccessError: as write_package.
    """
    weights = half(trained.state)
    card = draft_card(plan, description)
    package = Package(target, card, "", {WEIGHTS: save_weights(weights)})
    found = _measured(package, plan, device, progress)
    engine = TorchEngines(network_of(package)).open(vector_shape(package), "cpu")
    card = card.model_copy(
        update={
            "training_data": f"{card.training_data.rstrip('.')}. {_summary(plan, trained)}",
            "metrics": found.metrics,
            "test_vector": make_vector(engine, 1, vector_shape(package)),
        }
    )
    record = _record(plan, trained, budget, description, found)
    written = write_package(target, card, weights=weights, texts={RECORD: record}, overwrite=overwrite)
    return Published(written, found.cases)


def _names(plan: Plan, description: Description) -> dict[str, str]:
    """Return label or class → name."""
    if plan.class_names:
        return {str(class_): name for class_, name in enumerate(plan.class_names)}
    unknown = sorted(label for label in description.labels if not 0 <= label < plan.classes)
    if unknown:
        raise UsageError(f"there is no label {unknown[0]} in the data: they are 1 to {plan.classes - 1}")
    names = {"0": "background"} | {str(label): f"label {label}" for label in range(1, plan.classes)}
    names |= {str(label): name for label, name in description.labels.items()}
    if len(set(names.values())) < len(names):
        raise UsageError("two labels have one name", hint="give each --label a name of its own")
    return names


def _architecture(network: UNetConfig | ClassifierConfig) -> UNetArchitecture | ClassifierArchitecture:
    if isinstance(network, ClassifierConfig):
        return ClassifierArchitecture.of(network)
    return UNetArchitecture.of(network)


def _use(names: Mapping[str, str], *, classifies: bool) -> str:
    if classifies:
        return f"Classification of images as {', '.join(names.values())}; research."
    return f"Segmentation of {', '.join(list(names.values())[1:])}; research."


def _measured(package: Package, plan: Plan, device: DeviceName, progress: Callable[[int, int], None] | None) -> _Measured:
    """Try the network on the validation cases."""
    card, validation, identities = package.card, plan.split.validation, plan.cases.identities
    every = len(validation) + len(plan.split.training)
    split = f"{len(validation)} of {every} cases, kept from training; {RECORD} tells which"
    if plan.class_names:
        split = f"{split}. Classes are those with a probability of {THRESHOLD} and above"
        classified = validate_classes(package, validation, device=device, identities=identities, progress=progress)
        return _Measured(
            tuple(classified),
            class_metrics(classified, card.labels, dataset=card.training_data, split=split),
            ("class", *(f"probability of {name}" for name in plan.class_names)),
            tuple(
                (one.name, plan.class_names[one.truth], *(f"{value:.4f}" for value in one.probabilities)) for one in classified
            ),
        )
    options = Options(engine="torch", precision="float32", device=device)
    found = validate(package, validation, options, identities=identities, progress=progress)
    labels = sorted(plan.voxels)
    return _Measured(
        tuple(found),
        metrics_of(found, card.labels, dataset=card.training_data, split=split),
        tuple(map(str, labels)),
        tuple((one.name, *(f"{one.values[label]['dice']:.4f}" for label in labels)) for one in found),
    )


def half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as float16; as they are if one of them does not fit."""
    small = {name: value.to(torch.float16) for name, value in state.items()}
    return small if all(bool(torch.isfinite(value).all()) for value in small.values()) else dict(state)


def hashed(name: str) -> str:
    """Return what stands for the name of a case in a record: 16 digits of SHA-256. Who guesses a name can check it."""
    return sha256(name.encode()).hexdigest()[:_HASH]


def _summary(plan: Plan, trained: Trained) -> str:
    return (
        f"{len(plan.split.training)} cases for training, {len(plan.split.validation)} for validation; {trained.steps} steps of "
        f"{plan.recipe.batch} samples, loss {plan.recipe.loss}, seed {plan.recipe.seed}; {trained.cpu_seconds:.0f} CPU seconds."
    )


def _record(plan: Plan, trained: Trained, budget: Budget, description: Description, found: _Measured) -> str:
    """Return the record of the training, in Markdown."""

    def names(cases: Sequence[Case]) -> str:
        return "\n".join(f"- {case.name if description.name_cases else hashed(case.name)}" for case in cases)

    recipe = asdict(plan.recipe)
    settings = [
        f"| {key} | {value} |" for key, value in {**recipe.pop("network"), **recipe.pop("augmentation"), **recipe}.items()
    ]
    rows = [_row(name if description.name_cases else hashed(name), *values) for name, *values in found.rows]
    if plan.class_names:
        contents = ["| class | cases |", "|---|---|"]
        contents += [_row(plan.class_names[class_], str(count)) for class_, count in plan.members.items()]
        what_of = "the probability of each class"
    else:
        contents = ["| label | voxels in all cases |", "|---|---|"]
        contents += [_row(str(label), str(plan.voxels[label])) for label in sorted(plan.voxels)]
        what_of = "the Dice of each label"
    score = task_of(plan.recipe.network).score
    grid = "" if plan.class_names else ", on the network's grid"
    spent = f"{trained.steps} steps in {trained.seconds:.0f} s, {trained.cpu_seconds:.0f} CPU seconds"
    spent += f"; budget {budget.amount:g} {budget.kind}."
    what = "names" if description.name_cases else "the first 16 hexadecimal digits of SHA-256 of names"
    return "\n".join(
        [
            f"# How {description.name} was trained",
            "",
            f"secure-media-processor {__version__}, torch {torch.__version__}, Python {platform.python_version()}.",
            spent,
            "",
            "| setting | value |",
            "|---|---|",
            *settings,
            "",
            *contents,
            "",
            f"| step | training loss | {score} of some validation cases{grid} |",
            "|---|---|---|",
            *(
                f"| {point.step} | {point.loss:.4f} | {'' if point.score is None else f'{point.score:.4f}'} |"
                for point in trained.points
            ),
            "",
            f"Cases are given as {what} (file names without suffixes). Validation cases with {what_of}:",
            "",
            _row("case", *found.heading),
            "|---" * (len(found.heading) + 1) + "|",
            *rows,
            "",
            "Training cases:",
            "",
            names(plan.split.training),
            "",
        ]
    )


def _row(*cells: str) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
