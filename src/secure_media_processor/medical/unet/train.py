"""Training a U-Net from images and label maps, or a classifier from images and classes, on a CPU or a GPU, within a budget.

The recipe is that of nnU-Net (Isensee 2021, doi:10.1038/s41592-020-01008-z) made small: whole cases in a window of their median
size, strong augmentation, Dice and cross-entropy, a learning rate that falls to 0 over the budget (poly, power 0.9); AdamW
(Loshchilov 2019, arXiv:1711.05101) instead of SGD, and bfloat16 where the device computes with it.

What a step does depends on the seed and its number alone, so a run that was cut off and goes on from a checkpoint ends with
the same weights as one that was not, as far as the device repeats its sums: a CPU with one thread does, bit by bit. That holds
for a budget of steps; with one of time the learning rate follows the clock.
"""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import torch
from torch.nn.utils import clip_grad_norm_

from secure_media_processor.errors import ModelError, UsageError
from secure_media_processor.medical.unet.augmentation import Augmentation
from secure_media_processor.medical.unet.checkpoint import read_checkpoint, write_checkpoint
from secure_media_processor.medical.unet.tasks import PLAIN, task_of
from secure_media_processor.medical.unet.training_norm import keep_channels_last

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from secure_media_processor.medical.inference.classifier import ClassifierConfig
    from secure_media_processor.medical.unet.dataset import Case, Cases, Split
    from secure_media_processor.medical.unet.models import UNetConfig
    from secure_media_processor.medical.unet.tasks import Task

BudgetKind: TypeAlias = Literal["steps", "seconds", "cpu-seconds"]
Precision: TypeAlias = Literal["float32", "bfloat16"]
DeviceName: TypeAlias = Literal["cpu", "cuda"]

_POINTS: Final = 100  # of the curve
_LOOKS: Final = 20  # at the validation cases on the way
_MODEL, _FIRST, _SECOND = "model.", "first.", "second."


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to train."""

    kind: BudgetKind
    """cpu-seconds are those of all threads together, as the system counts them for the process."""
    amount: float

    def share(self, steps: int, seconds: float, cpu_seconds: float) -> float:
        """Return how much of it is spent, from 0; 1 and above is all."""
        spent = {"steps": float(steps), "seconds": seconds, "cpu-seconds": cpu_seconds}[self.kind]
        return spent / self.amount


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides what comes out, besides the cases and the budget."""

    network: UNetConfig | ClassifierConfig
    window: tuple[int, ...]
    """Voxels; 2 or 3."""
    loss: str = "dice-ce"
    """As loss_named has it; of a classifier "cross-entropy"."""
    batch: int = 2
    """Samples a step."""
    learning_rate: float = 3e-3
    """The highest."""
    weight_decay: float = 1e-4
    warm_up: float = 0.02
    """Share of the budget in which the learning rate rises."""
    power: float = 0.9
    """Of the fall of the learning rate."""
    clip: float = 5.0
    """Greatest norm of the gradient."""
    precision: Precision = "float32"
    """In which the network computes; weights and sums are kept in float32."""
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def rate(self, share: float) -> float:
        """Return the learning rate when so much of the budget is spent."""
        rise = min(1.0, (share + 1e-3) / self.warm_up) if self.warm_up else 1.0
        return float(self.learning_rate * rise * max(0.0, 1 - share) ** self.power)


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the curve."""

    step: int
    share: float
    """Of the budget that is spent."""
    loss: float
    """Mean of the training loss since the point before."""
    score: float | None
    """Of some validation cases, 0 to 1: the mean Dice of the labels on the network's grid, or of a classifier the mean over
    classes of the share that is right; None if it was not looked at."""


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What came out."""

    state: dict[str, Tensor]
    """Name → weight, float32, on the CPU."""
    steps: int
    seconds: float
    cpu_seconds: float
    """Of all calls that worked on it together."""
    points: tuple[Point, ...]


@dataclass(slots=True)
class Place:
    """Where checkpoints go, and how often."""

    path: Path
    every: float = 60.0
    """Seconds between two of them; 0 for each step."""


def train(
    recipe: Recipe,
    budget: Budget,
    split: Split,
    cases: Cases,
    *,
    device: DeviceName = "cpu",
    place: Place | None = None,
    resume: bool = False,
    progress: Callable[[Sequence[Point]], None] | None = None,
) -> Trained:
    """Train a network.

    Args:
        recipe: How.
        budget: How long.
        split: The cases. Those for validation are looked at on the way, and nothing is decided by it.
        cases: Where they are prepared.
        device: What computes.
        place: Where checkpoints go; None for none.
        resume: Whether to go on from the checkpoint that is there.
        progress: Gets the points of the curve so far, each time there is a new one.

    Raises:
        UsageError: the checkpoint belongs to another recipe or other cases.
        ModelError: the loss is no number any more, or the memory is too small for a step.
        ImageError, IntegrityError, NoSpaceError, FileAccessError, MissingError: a case cannot be read, or a checkpoint not be
            read or written.
    """
    run = _Run.new(recipe, split, cases, device)
    if resume:
        if place is None:
            raise UsageError("there is no place to resume from")
        run.restore(place.path)
    try:
        _run(run, budget, place, progress)
    except (torch.OutOfMemoryError, MemoryError) as error:
        where = "GPU" if device == "cuda" else "machine"
        raise ModelError(f"the {where} has not the memory for a step", hint="try a smaller --batch or --window") from error
    return run.finished()


def sample_seed(seed: int, step: int, number: int) -> int:
    """Return the seed of one sample of a step: 0 to 2⁶³ - 1."""
    digest = sha256(f"{seed}\0{step}\0{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(slots=True)
class _Run:
    """Training under way."""

    recipe: Recipe
    split: Split
    cases: Cases
    device: DeviceName
    task: Task
    network: nn.Module
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0
    """Before this call."""
    cpu_seconds: float = 0.0
    pending: list[float] = field(default_factory=list)
    """Losses since the last point."""
    points: list[Point] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    cpu_began: float = field(default_factory=time.process_time)

    @classmethod
    def new(cls, recipe: Recipe, split: Split, cases: Cases, device: DeviceName) -> _Run:
        task = task_of(recipe.network)
        with _seeded(recipe.seed):
            network = task.network()
        keep_channels_last(network)
        network.to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        return cls(recipe, split, cases, device, task, network, optimizer)

    # --------------------------------------------------------------------------------------------------------- a step

    def advance(self, share: float) -> float:
        """Take a step; return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(share)
        images, wanted = self.batch()
        with self.computing():
            logits = self.network(images)
        loss = self.task.loss(self.recipe.loss, logits, wanted)
        value = float(loss.detach())
        if not isfinite(value):
            raise ModelError(f"the loss is no number any more after {self.step} steps", hint="try a lower --learning-rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.step += 1
        return value

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return the samples of the next step, (B, C, *window), and their labels (B, *window) or classes (B)."""
        size = self.recipe.batch
        made = []
        for number in range(size):
            case = self.case_at(self.step * size + number)
            made.append(self.sample_of(case, sample_seed(self.recipe.seed, self.step, number), self.recipe.augmentation))
        images = torch.stack([image for image, _ in made])
        layout = torch.channels_last if images.dim() == 4 else torch.channels_last_3d  # noqa: PLR2004 - 2D or 3D
        return images.contiguous(memory_format=layout), torch.stack([labels for _, labels in made])

    def case_at(self, number: int) -> Case:
        """Return the training case of the sample with this number: all of them in random order, then in another one."""
        training = self.split.training
        lap, place = divmod(number, len(training))
        order = list(range(len(training)))
        random.Random(f"{self.recipe.seed} {lap}").shuffle(order)  # noqa: S311 - an order, not a secret
        return training[order[place]]

    def sample_of(self, case: Case, seed: int, options: Augmentation) -> tuple[Tensor, Tensor]:
        return self.task.sample(self.cases.get(case), self.recipe.window, seed, options, self.device)

    def computing(self) -> Any:
        """Return the context in which the network computes."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")

    # ------------------------------------------------------------------------------------------------- on the way

    def look(self) -> float:
        """Return how good the network is on some validation cases, windows as they are: see Point.score."""
        with torch.no_grad():
            return self.task.scored(self._seen(case) for case in self.task.looked_at(self.split.validation))

    def _seen(self, case: Case) -> tuple[Tensor, Tensor]:
        """Return what the network finds in a case, (*window) or (), and what is there."""
        image, truth = self.sample_of(case, 0, PLAIN)
        with self.computing():
            return self.network(image[None]).float().argmax(dim=1)[0], truth

    def spent(self) -> tuple[float, float]:
        """Return seconds and CPU seconds, those of earlier calls included."""
        return self.seconds + time.monotonic() - self.began, self.cpu_seconds + time.process_time() - self.cpu_began

    def finished(self) -> Trained:
        state = {name: value.detach().cpu().contiguous().clone() for name, value in self.network.named_parameters()}
        return Trained(state, self.step, *self.spent(), tuple(self.points))

    # ------------------------------------------------------------------------------------------------- checkpoints

    def identity(self) -> dict[str, Any]:
        """Return what has to be the same for a checkpoint to be of use."""
        names = "\0".join([*map(_named, self.split.training), "", *map(_named, self.split.validation)])
        return {
            "recipe": sha256(repr(sorted(asdict(self.recipe).items())).encode()).hexdigest(),
            "cases": sha256(names.encode()).hexdigest(),
            "inputs": sha256(self.cases.inputs.model_dump_json().encode()).hexdigest(),
        }

    def save(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for name, value in self.network.named_parameters():
            tensors[_MODEL + name] = value
            known = self.optimizer.state.get(value)
            if known:
                tensors[_FIRST + name], tensors[_SECOND + name] = known["exp_avg"], known["exp_avg_sq"]
        seconds, cpu_seconds = self.spent()
        state = {
            "identity": self.identity(),
            "step": self.step,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "pending": self.pending,
            "points": [asdict(point) for point in self.points],
        }
        write_checkpoint(path, tensors, state)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint."""
        found = read_checkpoint(path)
        state = found.state
        if state["identity"] != self.identity():
            changed = [name for name, value in self.identity().items() if state["identity"].get(name) != value]
            raise UsageError(
                f"the checkpoint was written with {' and '.join(changed)} other than now",
                hint="give the same options and folders as before, or start again with --force instead of --resume",
            )
        self.step, self.seconds, self.cpu_seconds = state["step"], state["seconds"], state["cpu_seconds"]
        self.pending, self.points = state["pending"], [Point(**point) for point in state["points"]]
        with torch.no_grad():
            for name, value in self.network.named_parameters():
                value.copy_(found.tensors[_MODEL + name])
                if _FIRST + name in found.tensors:
                    self.optimizer.state[value] = {
                        "step": torch.tensor(float(self.step)),
                        "exp_avg": torch.empty_like(value).copy_(found.tensors[_FIRST + name]),
                        "exp_avg_sq": torch.empty_like(value).copy_(found.tensors[_SECOND + name]),
                    }


def _run(run: _Run, budget: Budget, place: Place | None, progress: Callable[[Sequence[Point]], None] | None) -> None:
    """Take steps until the budget is spent."""
    saved = time.monotonic()
    while (share := budget.share(run.step, *run.spent())) < 1:
        run.pending.append(run.advance(share))
        share = min(budget.share(run.step, *run.spent()), 1.0)
        before = run.points[-1].share if run.points else 0.0
        if int(share * _POINTS) > int(before * _POINTS) or share >= 1:
            looks = int(share * _LOOKS) > int(before * _LOOKS)
            point = Point(run.step, share, sum(run.pending) / len(run.pending), run.look() if looks else None)
            run.points.append(point)
            run.pending.clear()
            if progress is not None:
                progress(tuple(run.points))
        if place is not None and time.monotonic() - saved >= place.every:
            run.save(place.path)
            saved = time.monotonic()
    if place is not None:
        run.save(place.path)


def _named(case: Case) -> str:
    """Return the name of a case, and its class if it has one."""
    return case.name if case.class_ is None else f"{case.name}={case.class_}"


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from torch's global generator as after `manual_seed(seed)` within the block, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
