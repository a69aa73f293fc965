"""smp medical train."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.chosen_keys import keys_at_hand
from secure_media_processor.cli.options import FILE, dry_run_option, force_option, key_option, output_options
from secure_media_processor.cli.schemas import MedicalTrained, TrainedFigure
from secure_media_processor.cli.ui import Ui, counted, current, table
from secure_media_processor.core.files import make_private_folder, os_errors, write_file
from secure_media_processor.errors import ExistsError, MissingError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.unet.dataset import Case, Split
    from secure_media_processor.medical.unet.publishing import Description, Published
    from secure_media_processor.medical.unet.train import Budget, DeviceName, Point, Trained
    from secure_media_processor.medical.unet.training_plan import Plan, Wishes

_MINUTES = 30.0
_SIDE_FOLDER = ".training"
_CHECKPOINT = "checkpoint.safetensors"
_CURVE = "curve.png"
_NO_LICENCE = "not stated; the terms of the training data may bind the weights"


class _Sizes(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            found = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            found = ()
        if not found or min(found) < 1:
            self.fail(f"{value!r} are not whole numbers with commas between them", param, ctx)
        return found


class _Millimetres(click.ParamType[tuple[float, float, float]]):
    """Three numbers above 0."""

    name = "mm"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float, float]:
        try:
            x, y, z = (float(part) for part in str(value).split(","))
        except ValueError:
            x = y = z = 0.0
        if not (0 < x <= 1000 and 0 < y <= 1000 and 0 < z <= 1000):  # noqa: PLR2004 - a metre
            self.fail(f"{value!r} are not three numbers of mm with commas between them", param, ctx)
        return x, y, z


class _Label(click.ParamType[tuple[int, str]]):
    """A label and its name."""

    name = "label"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, str]:
        number, equals, name = str(value).partition("=")
        if not (number.isascii() and number.isdigit() and equals and name.strip()):
            self.fail(f"{value!r} is not a label and its name, such as 1=liver", param, ctx)
        return int(number), name.strip()


@click.command()
@click.argument("target", metavar="OUT", type=FILE)
@click.option("--images", metavar="DIR", type=FILE, required=True, help="Folder of images, NIfTI.")
@click.option("--task", type=click.Choice(["segment", "classify"]), default="segment", help="Voxels, or whole images.")
@click.option("--labels", metavar="DIR", type=FILE, help="Folder of label maps with the same names; to segment.")
@click.option("--truth", metavar="FILE.csv", type=FILE, help="Columns id and label, the class of each image; to classify.")
@click.option("--variant", type=click.Choice(["standard", "attention", "residual"]), default="residual", help="Which U-Net.")
@click.option(
    "--loss",
    type=click.Choice(["dice", "dice-ce", "bce-dice", "focal", "tversky"]),
    default="dice-ce",
    help="What is made small.",
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="How long to train.  [default: 30]")
@click.option("--cpu-minutes", type=click.FloatRange(0, min_open=True), help="The same, of all threads together.")
@click.option("--steps", type=click.IntRange(1), help="How long, in steps: repeatable.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of OUT.")
@click.option(
    "--validation", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Share kept apart.  [default: 0.2]"
)
@click.option("--validation-list", metavar="FILE", type=FILE, help="Names of the cases to keep apart, one a line.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Of the split, the first weights and the samples.")
@click.option("--dimensions", type=click.Choice(["2", "3"]), default="3", help="2: slices across the last axis.")
@click.option("--channels", metavar="N,N,...", type=_Sizes(), default="16,32,64,128", help="Features a level.")
@click.option("--window", metavar="N,N,N", type=_Sizes(), help="Voxels of a sample.  [default: the median case]")
@click.option("--spacing", metavar="X,Y,Z", type=_Millimetres(), help="mm, along RAS.  [default: the median case]")
@click.option("--batch", type=click.IntRange(1, 256), default=2, help="Samples a step.")
@click.option("--learning-rate", type=click.FloatRange(0, 1, min_open=True), help="The highest.  [default: 0.003]")
@click.option("--mirror", is_flag=True, help="Exchange left and right at random; not where labels are sided.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", help="Of the network.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="What computes.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Of the CPU.  [default: one a core]")
@click.option("--name", metavar="TEXT", help="Of the model.  [default: the name of OUT]")
@click.option(
    "--label", "names", metavar="N=NAME", type=_Label(), multiple=True, help="What a label or class is called; repeatable."
)
@click.option("--modality", metavar="TEXT", help="Of the images, such as MR.")
@click.option("--data", metavar="TEXT", help="What the images are and where they come from, for the card.")
@click.option("--use", metavar="TEXT", help="What the model is for, for the card.")
@click.option("--license", "licence", metavar="TEXT", help="Of the model, for the card.")
@click.option("--name-cases", is_flag=True, help="Name the cases in the package; else their hashes stand there.")
@click.option("--checkpoint-seconds", type=click.IntRange(0), default=60, help="Between two checkpoints.")
@dry_run_option
@force_option
@key_option
@output_options
def train(target: Path, *, images: Path, force: bool, dry_run: bool, key_file: Path | None, **options: Any) -> None:
    """Train a U-Net from images and label maps, or a classifier from images and their classes.

    OUT is the folder of the model package that is written at the end, for `smp medical segment`. Each image in NIfTI has a
    label map of the same name, on the same grid: 0 is background, and labels are 1, 2, 3 without gaps. Files may be encrypted
    by `smp encrypt`; they are decrypted in memory only. A part of the cases is kept apart, and the figures in the package are
    measured on it.

    With --task classify there is a table instead of label maps: a CSV file with the columns id, the names of the images, and
    label, 0, 1 and so on or names of classes. Each class is split by itself.

    While it runs there is a folder OUT.training with a checkpoint and a picture of the course; after a kill, or a full disk,
    --resume goes on from there.

    \b
    Examples:
      smp medical train liver --images images/ --labels labels/ --minutes 30 --label 1=liver
      smp medical train liver --images images/ --labels labels/ --minutes 30 --label 1=liver --resume
      smp medical train quick --images images/ --labels labels/ --steps 200 --variant attention --loss dice
      smp medical train lesion --task classify --images images/ --truth classes.csv --label 0=none --label 1=lesion
    """
    ui = current()
    side = _Side.of(target)
    with recorded("medical.train"):
        _refuse_other_task(options)
        device = _device(options["device"])
        _refuse_bad_places(target, side, images, options["labels"], force=force, resume=options["resume"], dry_run=dry_run)
        budget = _budget(options)
        work = _Work(ui, target, side, budget, device, keys_at_hand(key_file), options)
        plan = work.plan(images)
        if dry_run:
            result = work.result(plan, None, None)
            ui.result(result, _as_text(result))
            return
        trained, published = work.go(plan, force=force)
        result = work.result(plan, trained, published)
        ui.result(result, _as_text(result))
        ui.say(f"{target} written: {counted(result.validation, 'validation case')}, {trained.cpu_seconds / 60:.1f} CPU minutes")


@dataclass(frozen=True, slots=True)
class _Side:
    """What lies beside the package."""

    folder: Path

    @classmethod
    def of(cls, target: Path) -> _Side:
        return cls(target.with_name(target.name + _SIDE_FOLDER))

    @property
    def checkpoint(self) -> Path:
        return self.folder / _CHECKPOINT

    @property
    def curve(self) -> Path:
        return self.folder / _CURVE


def _refuse_other_task(options: dict[str, Any]) -> None:
    """Raise UsageError if an option is missing that the task needs, or one is there that it does not take."""
    classifies = options["task"] == "classify"
    needed, others = ("truth", ("labels", "variant", "loss")) if classifies else ("labels", ("truth",))
    if options[needed] is None:
        raise UsageError(f"--task {options['task']} needs --{needed}")
    context = click.get_current_context()
    given = [name for name in others if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]
    if given:
        raise UsageError(f"--task {options['task']} does not take --{given[0]}")


def _refuse_bad_places(
    target: Path, side: _Side, images: Path, labels: Path | None, *, force: bool, resume: bool, dry_run: bool
) -> None:
    """Refuse at once what would be refused after an hour."""
    if not target.name:
        raise UsageError(f"{target} is not a name for a package", hint="name a new folder")
    with os_errors("use the names of the outputs"):
        place = target.resolve()
        if any(folder.resolve() in (place, *place.parents) for folder in (images, labels) if folder):
            raise UsageError(f"{target} would lie among the cases", hint="name a place outside of them")
    with os_errors(f"write {target}"):
        if not target.parent.is_dir():
            raise MissingError(f"there is no folder {target.parent}", hint="make it, or name another")
    if dry_run:
        return
    if (target.exists() or target.is_symlink()) and not force:
        raise ExistsError(f"{target} exists already", hint="name another, or pass --force to replace it in the end")
    if resume and not side.checkpoint.exists():
        raise MissingError(f"there is no checkpoint {side.checkpoint}", hint="leave out --resume")
    if not resume and side.checkpoint.exists() and not force:
        raise ExistsError(
            f"there is a checkpoint {side.checkpoint}", hint="go on from it with --resume, or begin again with --force"
        )


def _budget(options: dict[str, Any]) -> Budget:
    """Return how long to train. Raises UsageError if it is said twice."""
    from secure_media_processor.medical.unet.train import Budget

    given = [name for name in ("minutes", "cpu_minutes", "steps") if options[name] is not None]
    if len(given) > 1:
        raise UsageError(f"--{given[0].replace('_', '-')} and --{given[1].replace('_', '-')} both say how long to train")
    if options["steps"] is not None:
        return Budget("steps", options["steps"])
    if options["cpu_minutes"] is not None:
        return Budget("cpu-seconds", 60 * options["cpu_minutes"])
    return Budget("seconds", 60 * (options["minutes"] or _MINUTES))


def _device(wanted: str) -> DeviceName:
    """Return what computes. Raises MissingExtraError if there is no torch, or no GPU where one is asked for."""
    # Threads that wait for each other sleep: by default they spin, which costs several times the work on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded
    try:
        import safetensors.torch  # noqa: F401 - to know whether it is there
        import torch
    except ImportError as error:
        raise MissingExtraError(
            f"{error.name or 'torch'} is not installed", hint="pip install 'secure-media-processor[medical,ml]'"
        ) from None
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise MissingExtraError("torch sees no GPU", hint="use --device cpu")
    return "cuda" if there and wanted != "cpu" else "cpu"


@dataclass(frozen=True, slots=True)
class _Work:
    """One call."""

    ui: Ui
    target: Path
    side: _Side
    budget: Budget
    device: DeviceName
    keys: Sequence[Identity]
    options: dict[str, Any]

    def plan(self, images: Path) -> Plan:
        """Read all cases, and check what people say of the model."""
        from secure_media_processor.core.device import available_memory
        from secure_media_processor.medical.unet.publishing import draft_card
        from secure_media_processor.medical.unet.training_plan import make_plan

        split, classes = self._split(images)
        with self.ui.counting("reading") as drawn:
            plan = make_plan(split, self._wishes(classes), identities=self.keys, memory=available_memory() // 2, progress=drawn)
        draft_card(plan, self._description())
        return plan

    def go(self, plan: Plan, *, force: bool) -> tuple[Trained, Published]:
        """Train, validate, write."""
        import torch

        from secure_media_processor.core.device import usable_cores
        from secure_media_processor.medical.unet.publishing import publish
        from secure_media_processor.medical.unet.tasks import task_of
        from secure_media_processor.medical.unet.train import Place
        from secure_media_processor.medical.unet.train import train as fit

        torch.set_num_threads(self.options["threads"] or usable_cores())
        make_private_folder(self.side.folder)
        place = Place(self.side.checkpoint, self.options["checkpoint_seconds"])
        try:
            with self.ui.counting("training") as drawn:
                trained = fit(
                    plan.recipe,
                    self.budget,
                    plan.split,
                    plan.cases,
                    device=self.device,
                    place=place,
                    resume=self.options["resume"],
                    progress=self._told(drawn, task_of(plan.recipe.network).score),
                )
            with self.ui.counting("validating") as drawn:
                done = publish(
                    self.target,
                    plan,
                    trained,
                    self.budget,
                    self._description(),
                    device=self.device,
                    overwrite=force,
                    progress=drawn,
                )
        except KeyboardInterrupt:
            if self.side.checkpoint.exists():
                self.ui.say("the last checkpoint stays: the same command with --resume goes on from it")
            raise
        with os_errors(f"remove {self.side.checkpoint}"):
            self.side.checkpoint.unlink()
        return trained, done

    def result(self, plan: Plan, trained: Trained | None, published: Published | None) -> MedicalTrained:
        """Return what is printed."""
        from secure_media_processor.medical.unet.models import UNetConfig
        from secure_media_processor.medical.unet.publishing import draft_card

        recipe, network = plan.recipe, plan.recipe.network
        names = draft_card(plan, self._description()).outputs.labels
        metrics = None if published is None else published.package.card.metrics
        figures = [
            TrainedFigure(label, metric, value.mean, value.low, value.high)
            for label, values in ({} if metrics is None else metrics.values).items()
            for metric, value in values.items()
        ]
        return MedicalTrained(
            dry_run=trained is None,
            task=self.options["task"],
            package=str(self.target),
            curve=str(self.side.curve),
            training=len(plan.split.training),
            validation=len(plan.split.validation),
            labels=dict(names),
            voxels={str(label): count for label, count in plan.voxels.items()},
            cases={str(class_): count for class_, count in plan.members.items()},
            variant=network.variant if isinstance(network, UNetConfig) else None,
            dimensions=network.dimensions,
            channels=list(network.channels),
            parameters=_parameters(plan),
            window=list(recipe.window),
            spacing=list(plan.inputs.spacing or ()),
            loss=recipe.loss,
            seed=recipe.seed,
            device=self.device,
            precision=recipe.precision,
            steps=None if trained is None else trained.steps,
            seconds=None if trained is None else trained.seconds,
            cpu_seconds=None if trained is None else trained.cpu_seconds,
            figures=figures,
        )

    def _split(self, images: Path) -> tuple[Split, tuple[str, ...]]:
        """Return the cases, and the names of their classes if they have some."""
        from secure_media_processor.medical.unet.dataset import read_names, split_by_names, split_cases

        chosen = self.options["validation_list"]
        if chosen is not None and self.options["validation"] is not None:
            raise UsageError("--validation and --validation-list both say which cases are kept apart")
        cases, classes = self._cases(images)
        if chosen is not None:
            return split_by_names(cases, read_names(chosen)), classes
        return split_cases(cases, self.options["validation"] or 0.2, self.options["seed"]), classes

    def _cases(self, images: Path) -> tuple[tuple[Case, ...], tuple[str, ...]]:
        from secure_media_processor.medical.unet.class_table import read_classes
        from secure_media_processor.medical.unet.dataset import find_cases, find_classified

        if self.options["task"] == "segment":
            return find_cases(images, self.options["labels"]), ()
        truth = read_classes(self.options["truth"], dict(self.options["names"]))
        return find_classified(images, truth), truth.names

    def _wishes(self, classes: tuple[str, ...]) -> Wishes:
        from secure_media_processor.core.device import has_bfloat16
        from secure_media_processor.medical.unet.training_plan import Wishes

        options, precision = self.options, self.options["precision"]
        if precision == "auto":
            precision = "bfloat16" if self.device == "cuda" or has_bfloat16() else "float32"
        return Wishes(
            classes=classes,
            variant=options["variant"],
            dimensions=2 if options["dimensions"] == "2" else 3,
            channels=options["channels"],
            loss=options["loss"],
            batch=options["batch"],
            learning_rate=options["learning_rate"],
            window=options["window"],
            spacing=options["spacing"],
            modality=options["modality"],
            mirror=options["mirror"],
            precision=precision,
            seed=options["seed"],
        )

    def _description(self) -> Description:
        from secure_media_processor.medical.unet.publishing import Description

        return Description(
            name=self.options["name"] or self.target.name.removesuffix(".zip"),
            licence=self.options["licence"] or _NO_LICENCE,
            labels=dict(self.options["names"]),
            intended_use=self.options["use"] or "",
            training_data=self.options["data"] or "",
            name_cases=self.options["name_cases"],
        )

    def _told(self, drawn: Callable[[int, int], None] | None, score: str) -> Callable[[Sequence[Point]], None]:
        """Return what hears of each new point of the curve."""
        from secure_media_processor.medical.unet.curve import curve_picture

        def hear(points: Sequence[Point]) -> None:
            point = points[-1]
            if drawn is not None:
                drawn(round(100 * point.share), 100)
            if point.score is None:
                return
            if drawn is None:
                self.ui.detail(f"step {point.step}, {point.share:.0%}: loss {point.loss:.4f}, {score} {point.score:.4f}")
            write_file(self.side.curve, curve_picture(points, score), overwrite=True)

        return hear


def _parameters(plan: Plan) -> int:
    """Return how many numbers the network has to learn, without making them."""
    import torch

    from secure_media_processor.medical.unet.tasks import task_of

    with torch.device("meta"):
        return sum(value.numel() for value in task_of(plan.recipe.network).network().parameters())


def _as_text(result: MedicalTrained) -> str:
    if not result.dry_run:
        rows = [
            (one.label, one.metric, f"{one.mean:.4f}", "" if one.low is None else f"{one.low:.4f} to {one.high:.4f}")
            for one in result.figures
        ]
        return table(("label", "metric", "mean", "95 % interval"), rows, right=("mean",))
    window, spacing = " x ".join(map(str, result.window)), " x ".join(f"{size:g}" for size in result.spacing)
    counts = result.cases if result.task == "classify" else result.voxels
    found = ", ".join(f"{result.labels[label]} ({label}): {count}" for label, count in counts.items())
    kind = "classifier" if result.variant is None else f"{result.variant} U-Net"
    network = f"{kind} in {result.dimensions}D, channels {', '.join(map(str, result.channels))}"
    return "\n".join(
        [
            f"{counted(result.training, 'case')} for training, {result.validation} for validation",
            f"{'cases of each class' if result.task == 'classify' else 'voxels of each label'}: {found}",
            f"{network}, {result.parameters:,} parameters",
            f"window {window} voxels of {spacing} mm; loss {result.loss}; {result.precision} on {result.device}",
        ]
    )
