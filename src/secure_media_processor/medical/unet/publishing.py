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
    ModelCard,
    Outputs,
    UNetArchitecture,
)
from secure_media_processor.medical.inference.packages import Package, save_weights, write_package
from secure_media_processor.medical.inference.vectors import make_vector, vector_shape
from secure_media_processor.medical.unet.engines import TorchEngines, network_of
from secure_media_processor.medical.unet.inference import Options
from secure_media_processor.medical.unet.validation import Validated, metrics_of, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from secure_media_processor.medical.unet.dataset import Case
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
    """Label → name; those that are missing are called "label 1" and so on."""
    intended_use: str = ""
    training_data: str = ""
    """What the images are and where they come from."""
    name_cases: bool = False
    """Whether the record names the validation cases; their hashes stand there otherwise."""


@dataclass(frozen=True, slots=True)
class Published:
    """What was written."""

    package: Package
    validated: tuple[Validated, ...]


def draft_card(plan: Plan, description: Description) -> ModelCard:
    """Return a card without figures. Raises UsageError if a text or a name is not fit for one."""
    unknown = sorted(label for label in description.labels if not 0 <= label < plan.classes)
    if unknown:
        raise UsageError(f"there is no label {unknown[0]} in the data: they are 1 to {plan.classes - 1}")
    names = {"0": "background"} | {str(label): f"label {label}" for label in range(1, plan.classes)}
    names |= {str(label): name for label, name in description.labels.items()}
    if len(set(names.values())) < len(names):
        raise UsageError("two labels have one name", hint="give each --label a name of its own")
    try:
        return ModelCard(
            name=description.name,
            version=_FIRST_VERSION,
            task="segment",
            architecture=UNetArchitecture.of(plan.recipe.network),
            inputs=plan.inputs,
            outputs=Outputs(labels=names),
            intended_use=description.intended_use or f"Segmentation of {', '.join(list(names.values())[1:])}; research.",
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
    found = validate(
        package,
        plan.split.validation,
        Options(engine="torch", precision="float32", device=device),
        identities=plan.cases.identities,
        progress=progress,
    )
    engine = TorchEngines(network_of(package)).open(vector_shape(package), "cpu")
    names = card.labels
    metrics = metrics_of(
        found,
        names,
        dataset=card.training_data,
        split=f"{len(found)} of {len(found) + len(plan.split.training)} cases, kept from training; {RECORD} tells which",
    )
    card = card.model_copy(
        update={
            "training_data": f"{card.training_data.rstrip('.')}. {_summary(plan, trained)}",
            "metrics": metrics,
            "test_vector": make_vector(engine, 1, vector_shape(package)),
        }
    )
    record = _record(plan, trained, budget, description, found)
    written = write_package(target, card, weights=weights, texts={RECORD: record}, overwrite=overwrite)
    return Published(written, tuple(found))


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


def _record(plan: Plan, trained: Trained, budget: Budget, description: Description, found: Sequence[Validated]) -> str:
    """Return the record of the training, in Markdown."""

    def names(cases: Sequence[Case]) -> str:
        return "\n".join(f"- {case.name if description.name_cases else hashed(case.name)}" for case in cases)

    recipe = asdict(plan.recipe)
    settings = [
        f"| {key} | {value} |" for key, value in {**recipe.pop("network"), **recipe.pop("augmentation"), **recipe}.items()
    ]
    labels = sorted(plan.voxels)
    rows = [
        "| "
        + " | ".join(
            [one.name if description.name_cases else hashed(one.name)]
            + [f"{one.values[label]['dice']:.4f}" for label in labels]
        )
        + " |"
        for one in found
    ]
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
            "| label | voxels in all cases |",
            "|---|---|",
            *(f"| {label} | {plan.voxels[label]} |" for label in labels),
            "",
            "| step | training loss | Dice of some validation cases, on the network's grid |",
            "|---|---|---|",
            *(
                f"| {point.step} | {point.loss:.4f} | {'' if point.dice is None else f'{point.dice:.4f}'} |"
                for point in trained.points
            ),
            "",
            f"Cases are given as {what} (file names without suffixes). Validation cases with the Dice of each label:",
            "",
            "| case | " + " | ".join(map(str, labels)) + " |",
            "|---" * (len(labels) + 1) + "|",
            *rows,
            "",
            "Training cases:",
            "",
            names(plan.split.training),
            "",
        ]
    )
