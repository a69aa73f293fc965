"""Training: which cases, what becomes of them, and that a run that was cut off ends as one that was not."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import nibabel as nib  # noqa: E402 - torch first, or the test is skipped
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from PIL import Image  # noqa: E402

from secure_media_processor.core.encryption import encrypt_file  # noqa: E402
from secure_media_processor.errors import (  # noqa: E402
    ImageError,
    IntegrityError,
    MissingError,
    ModelError,
    NoSpaceError,
    UnsupportedError,
    UsageError,
)
from secure_media_processor.medical.inference.card import Inputs, Normalization  # noqa: E402
from secure_media_processor.medical.inference.packages import read_package  # noqa: E402
from secure_media_processor.medical.inference.vectors import verify_vector  # noqa: E402
from secure_media_processor.medical.unet import tasks  # noqa: E402
from secure_media_processor.medical.unet import train as training  # noqa: E402
from secure_media_processor.medical.unet.augmentation import Augmentation, sample  # noqa: E402
from secure_media_processor.medical.unet.checkpoint import read_checkpoint, write_checkpoint  # noqa: E402
from secure_media_processor.medical.unet.curve import curve_picture  # noqa: E402
from secure_media_processor.medical.unet.dataset import (  # noqa: E402
    Case,
    Cases,
    Split,
    find_cases,
    prepare,
    read_case,
    read_names,
    split_by_names,
    split_cases,
    window_for,
)
from secure_media_processor.medical.unet.engines import Choice  # noqa: E402
from secure_media_processor.medical.unet.models import UNetConfig, build_unet  # noqa: E402
from secure_media_processor.medical.unet.publishing import Description, half, hashed, publish  # noqa: E402
from secure_media_processor.medical.unet.tasks import PLAIN  # noqa: E402
from secure_media_processor.medical.unet.train import Budget, Place, Point, Recipe, Trained, train  # noqa: E402
from secure_media_processor.medical.unet.training_norm import keep_channels_last  # noqa: E402
from secure_media_processor.medical.unet.training_plan import Wishes, make_plan  # noqa: E402
from secure_media_processor.medical.unet.validation import MEAN, Validated, metrics_of  # noqa: E402
from secure_media_processor.medical.volume import read_volume  # noqa: E402

INPUTS = Inputs(channels=("image",), spacing=(1.0, 1.0, 1.0), roi=(8, 8, 8), normalization=Normalization(method="percentile"))
STILL = replace(PLAIN, foreground=0.0)
TINY = Recipe(UNetConfig("residual", 3, 1, 3, (4, 6)), (8, 8, 8))


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in one order only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write(path: str | Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return Path(path)


def ball(shape: tuple[int, int, int] = (10, 12, 9), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of a ball within a ball, and the labels 1 and 2 of both."""
    rng = np.random.default_rng(seed)
    centre = np.array(shape) / 2 - 0.5 + rng.uniform(-1, 1, 3)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    far = np.linalg.norm(grid - centre, axis=-1)
    labels = (far < 4).astype(np.uint8) + (far < 2)
    return (labels * 60 + rng.normal(100, 5, shape)).astype(np.float32), labels.astype(np.uint8)


def written_cases(count: int = 4, shape: tuple[int, int, int] = (10, 12, 9)) -> tuple[Case, ...]:
    for number in range(count):
        image, labels = ball(shape, seed=number)
        write(f"images/case{number}.nii.gz", image)
        write(f"labels/case{number}.nii.gz", labels)
    return find_cases(Path("images"), Path("labels"))


@pytest.fixture
def cases(work: Path) -> tuple[Case, ...]:
    return written_cases()


# ------------------------------------------------------------------------------------------------------------------ cases


def test_images_and_labels_are_paired_by_name(work: Path) -> None:
    for name in ("images/b.nii.gz", "images/a.nii", "labels/a.nii.gz", "labels/b.nii"):
        write(name, np.zeros((2, 2, 2), np.uint8))
    Path("images/readme.txt").write_text("not an image")
    Path("images/.hidden.nii").write_bytes(b"")
    assert [(c.name, c.image.name, c.labels.name) for c in find_cases(Path("images"), Path("labels"))] == [
        ("a", "a.nii", "a.nii.gz"),
        ("b", "b.nii.gz", "b.nii"),
    ]
    write("images/alone.nii", np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(UsageError, match="1 of 3 files have no label map of the same name: alone"):
        find_cases(Path("images"), Path("labels"))
    with pytest.raises(UsageError, match="no image of the same name: alone"):
        find_cases(Path("labels"), Path("images"))
    write("images/alone.nii.gz", np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(UsageError, match="have one name"):
        find_cases(Path("images"), Path("labels"))
    Path("empty").mkdir()
    with pytest.raises(MissingError, match="no NIfTI"):
        find_cases(Path("empty"), Path("labels"))
    with pytest.raises(MissingError):
        find_cases(Path("nowhere"), Path("labels"))


def named(names: set[str]) -> list[Case]:
    return [Case(name, Path(name), Path(name)) for name in names]


@given(st.sets(st.text(min_size=1, max_size=6), min_size=2, max_size=30), st.floats(0.05, 0.95), st.integers(0, 3), st.data())
def test_a_split_hangs_on_names_alone(names: set[str], fraction: float, seed: int, data: st.DataObject) -> None:
    split = split_cases(named(names), fraction, seed)
    held_out = {case.name for case in split.validation}
    assert {case.name for case in split.training} == names - held_out
    assert len(held_out) == min(max(round(fraction * len(names)), 1), len(names) - 1)
    shuffled = named(names)
    random.Random(1).shuffle(shuffled)
    assert split_cases(shuffled, fraction, seed) == split
    added = data.draw(st.text(min_size=7, max_size=8))
    more = {case.name for case in split_cases(named(names | {added}), fraction, seed).validation}
    assert len((held_out ^ more) - {added}) <= 1


def test_a_split_by_a_list(work: Path) -> None:
    cases = named({"a", "b", "c"})
    Path("list.txt").write_text("b\n\n a.nii.gz \n")
    assert [case.name for case in split_by_names(cases, read_names(Path("list.txt"))).validation] == ["a", "b"]
    with pytest.raises(UsageError, match="1 of the validation cases are not there: z"):
        split_by_names(cases, ["a", "z"])
    for names in ([], ["a", "b", "c"]):
        with pytest.raises(UsageError, match="at least one case each"):
            split_by_names(cases, names)
    Path("list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a text"):
        read_names(Path("list.txt"))
    with pytest.raises(UsageError, match="1 case cannot be split"):
        split_cases(cases[:1], 0.2, 0)


@pytest.mark.parametrize(
    ("image", "labels", "reason"),
    [
        (ball()[0], ball((10, 12, 8))[1], "does not lie on the grid"),
        (ball()[0], ball()[1] + 0.5, "whole"),
        (ball()[0], ball()[1].astype(np.int16) * 200, "0 to 400; labels are 0 to 255"),
        (ball()[0], ball()[1].astype(np.int16) - 1, "values from -1"),
        (np.where(ball()[1] == 1, np.nan, ball()[0]), ball()[1], "no numbers|NaN|not finite"),
    ],
)
def test_cases_that_cannot_be_used(work: Path, image: np.ndarray, labels: np.ndarray, reason: str) -> None:
    case = Case("a", write("images/a.nii", image), write("labels/a.nii", labels))
    with pytest.raises(ImageError, match=reason):
        read_case(case)


def test_a_flat_image_is_named(work: Path) -> None:
    case = Case("a", write("a.nii", np.ones((4, 4, 4), np.float32)), write("b.nii", np.ones((4, 4, 4), np.uint8)))
    with pytest.raises(ImageError, match=r"a\.nii: .*the same"):
        Cases(INPUTS).get(case)


def test_another_orientation_is_the_same_to_the_network(work: Path) -> None:
    image, labels = ball()
    case = Case("a", write("a.nii", image), write("b.nii", labels))
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 9
    turned = Case("a", write("c.nii", image[::-1], flipped), write("d.nii", labels[::-1], flipped))
    one, other = Cases(INPUTS).get(case), Cases(INPUTS).get(turned)
    assert (one.image == other.image).all()
    assert (one.labels == other.labels).all()


def test_images_and_labels_are_put_on_one_spacing(work: Path) -> None:
    image, labels = ball((12, 12, 12))
    affine = np.diag([0.5, 1, 1, 1.0])
    case = Case("a", write("a.nii", image, affine), write("b.nii", labels, affine))
    found = prepare(*read_case(case), INPUTS)
    assert found.image.shape == (1, 6, 12, 12)
    assert found.labels.shape == (6, 12, 12)
    assert found.image.min() >= 0
    assert found.image.max() <= 1
    inside = found.image[0][found.labels == 2].mean() - found.image[0][found.labels == 0].mean()
    assert inside > 0.5


def test_encrypted_cases_are_read_in_place(cases: tuple[Case, ...], key, key_file: Path) -> None:
    for case in cases:
        for path in (case.image, case.labels):
            encrypt_file(path, path.with_name(path.name + ".smp"), [key])
            path.unlink()
    found = find_cases(Path("images"), Path("labels"))
    assert [case.name for case in found] == [case.name for case in cases]
    assert Cases(INPUTS, [key]).get(found[0]).labels.max() == 2


def test_what_fits_is_kept(cases: tuple[Case, ...]) -> None:
    one = Cases(INPUTS).get(cases[0])
    kept = Cases(INPUTS, limit=one.size)
    assert kept.get(cases[0]) is kept.get(cases[0])
    assert kept.get(cases[1]) is not kept.get(cases[1])
    assert kept.get(cases[0]) is kept.get(cases[0])


def test_windows() -> None:
    assert window_for([(35, 51, 36), (31, 40, 30), (43, 59, 47)], 8, 10**6) == (40, 56, 40)
    assert window_for([(512, 512, 400)], 16, 96**3) == (96, 96, 96)
    assert window_for([(3, 3)], 8, 4) == (8, 8)


# ----------------------------------------------------------------------------------------------------------- augmentation


def tensors(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, shape, generator=generator, dtype=torch.uint8)
    return torch.rand(1, *shape, generator=generator), labels


@pytest.mark.parametrize("shape", [(9, 7), (6, 9, 7)])
def test_without_augmentation_a_sample_is_the_case(shape: tuple[int, ...]) -> None:
    image, labels = tensors(shape)
    found, truth = sample(image, labels, shape, 3, STILL)
    assert torch.allclose(found, image, atol=1e-5)
    assert (truth == labels).all()
    larger = tuple(side + 4 for side in shape)
    found, truth = sample(image, labels, larger, 3, STILL)
    padded = torch.nn.functional.pad(image[None], (2, 2) * len(shape), mode="replicate")[0]
    assert torch.allclose(found, padded, atol=1e-5)
    assert (truth[(slice(2, -2),) * len(shape)] == labels).all()


@pytest.mark.parametrize("shape", [(16, 18), (12, 10, 14)])
@given(seed=st.integers(0, 2**63 - 1), mirror=st.booleans())
@settings(max_examples=20)
def test_a_seed_makes_a_sample_and_labels_follow_the_image(shape: tuple[int, ...], seed: int, mirror: bool) -> None:
    centre = torch.tensor([side / 2 - 0.5 for side in shape])
    places = torch.stack(torch.meshgrid(*(torch.arange(side) for side in shape), indexing="ij"), dim=-1)
    labels = ((places - centre).norm(dim=-1) < 3.5).to(torch.uint8)
    options = Augmentation(gain=0, offset=0, gamma_share=0, noise_share=0, mirror=mirror)
    window = (12,) * len(shape)
    image, truth = sample(labels[None].float(), labels, window, seed, options)
    again, _ = sample(labels[None].float(), labels, window, seed, options)
    assert image.shape == (1, *window)
    assert truth.shape == window
    assert truth.dtype == torch.int64
    assert (image == again).all()
    # Linear interpolation of a mask and its nearest voxel differ at the surface only.
    assert ((image[0] > 0.5) == (truth == 1)).float().mean() > 0.95
    assert ((image[0] < 0.01) <= (truth == 0)).all()


def test_every_kind_of_change_changes_something() -> None:
    image, labels = tensors((12, 12, 12))
    for name, value in {
        "rotation": 0.2,
        "scale": 0.2,
        "stretch": 0.2,
        "shift": 3,
        "bend": 0.1,
        "gain": 0.3,
        "offset": 0.3,
        "gamma_share": 1,
        "noise_share": 1,
    }.items():
        found, truth = sample(image, labels, (12, 12, 12), 5, replace(STILL, **{name: value}))
        assert not torch.allclose(found, image, atol=1e-3), name
        assert found.isfinite().all()
        assert set(truth.unique().tolist()) <= {0, 1, 2}


def test_mirrored_samples_have_left_and_right_exchanged() -> None:
    image, labels = tensors((8, 6, 7))
    kinds = set()
    for seed in range(20):
        found, truth = sample(image, labels, (8, 6, 7), seed, replace(STILL, mirror=True))
        flipped = not torch.allclose(found, image, atol=1e-5)
        kinds.add(flipped)
        assert torch.allclose(found, image.flip(1) if flipped else image, atol=1e-5)
        assert (truth == (labels.flip(0) if flipped else labels)).all()
    assert kinds == {True, False}


@given(st.integers(0, 1000))
@settings(max_examples=25)
def test_windows_around_labels(seed: int) -> None:
    labels = torch.zeros(30, 30, 30, dtype=torch.uint8)
    labels[3, 27, 14] = 1
    _, truth = sample(torch.rand(1, 30, 30, 30), labels, (8, 8, 8), seed, replace(STILL, foreground=1.0))
    assert (truth == 1).any()


# ------------------------------------------------------------------------------------------------------------ checkpoints


def test_a_checkpoint_comes_back_as_it_was(work: Path) -> None:
    path = Path("c.safetensors")
    made = {"a": torch.randn(2, 3, 4).transpose(0, 2), "b": torch.tensor(1.5)}
    write_checkpoint(path, made, {"step": 7, "nested": {"x": [1.5, "y"]}})
    assert path.stat().st_mode & 0o777 == 0o600
    found = read_checkpoint(path)
    assert found.state["step"] == 7
    assert found.state["nested"] == {"x": [1.5, "y"]}
    assert all((found.tensors[name] == value).all() for name, value in made.items())


def test_what_is_no_checkpoint_is_refused(work: Path) -> None:
    path = Path("c.safetensors")
    with pytest.raises(MissingError):
        read_checkpoint(path)
    for data in (b"", b"junk" * 100, b"\xff" * 8):
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="not a checkpoint"):
            read_checkpoint(path)
    write_checkpoint(path, {"a": torch.zeros(3)}, {"schema": "smp.training/99"})
    with pytest.raises(UnsupportedError):
        read_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(IntegrityError):
        read_checkpoint(path)


# -------------------------------------------------------------------------------------------------------------- training


def trained(
    cases: tuple[Case, ...],
    recipe: Recipe = TINY,
    steps: int = 5,
    *,
    resume: bool = False,
    stop: int | None = None,
    **more: object,
) -> Trained:
    """Train; with `stop`, be interrupted after so many steps."""
    place = Place(Path("c.safetensors"), 0.0)

    def hear(points: tuple[Point, ...]) -> None:
        if stop is not None and points[-1].step > stop:  # the checkpoint of this step is not written yet
            raise KeyboardInterrupt

    split = Split(cases[1:], cases[:1])
    return train(recipe, Budget("steps", steps), split, Cases(INPUTS), place=place, resume=resume, progress=hear, **more)


def same(one: Trained, other: Trained) -> bool:
    return one.points == other.points and all((one.state[name] == other.state[name]).all() for name in one.state)


@given(
    stops=st.lists(st.integers(1, 4), min_size=1, max_size=2, unique=True).map(sorted),
    batch=st.integers(1, 2),
    seed=st.integers(0, 5),
)
@settings(max_examples=4)
def test_a_run_cut_off_anywhere_ends_as_one_that_was_not(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], batch: int, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        cases = written_cases(3)
        recipe = replace(TINY, batch=batch, seed=seed)
        whole = trained(cases, recipe)
        Path("c.safetensors").unlink()
        for number, stop in enumerate(stops):
            with pytest.raises(KeyboardInterrupt):
                trained(cases, recipe, resume=number > 0, stop=stop)
            assert read_checkpoint(Path("c.safetensors")).state["step"] == stop
        assert same(trained(cases, recipe, resume=True), whole)
        assert whole.steps == 5
        assert not same(trained(cases, replace(recipe, seed=seed + 1)), whole)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(cases)
    Path("c.safetensors").unlink()
    kept, calls = training.write_checkpoint, []

    def full(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, object]) -> None:
        calls.append(state["step"])
        if len(calls) > 2:
            raise NoSpaceError("no space left on device")
        kept(path, tensors, state)

    monkeypatch.setattr(training, "write_checkpoint", full)
    with pytest.raises(NoSpaceError):
        trained(cases)
    monkeypatch.setattr(training, "write_checkpoint", kept)
    assert read_checkpoint(Path("c.safetensors")).state["step"] == 2
    assert same(trained(cases, resume=True), whole)


def test_a_checkpoint_of_something_else_is_refused(cases: tuple[Case, ...]) -> None:
    trained(cases)
    for other, what in (
        ({"recipe": replace(TINY, loss="dice")}, "recipe"),
        ({"recipe": replace(TINY, seed=1)}, "recipe"),
        ({"cases": cases[:-1]}, "cases"),
    ):
        with pytest.raises(UsageError, match=f"with {what} other than now"):
            trained(**{"cases": cases, "resume": True, **other})


def test_a_longer_budget_goes_on(cases: tuple[Case, ...]) -> None:
    trained(cases, steps=3)
    assert trained(cases, steps=5, resume=True).steps == 5
    assert trained(cases, steps=5, resume=True).steps == 5


@pytest.mark.parametrize("variant", ["standard", "attention", "residual"])
def test_all_variants_and_both_precisions(cases: tuple[Case, ...], variant: str) -> None:
    channels = (4, 4, 6) if variant == "attention" else (4, 6)
    recipe = replace(TINY, network=UNetConfig(variant, 3, 1, 3, channels), precision="bfloat16")
    found = trained(cases, recipe, steps=2)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in found.state.values())
    flat = replace(TINY, network=UNetConfig(variant, 2, 1, 3, channels), window=(8, 8))
    assert trained(cases, flat, steps=2).points[-1].score is not None


def test_it_learns(cases: tuple[Case, ...]) -> None:
    recipe = replace(TINY, network=UNetConfig("residual", 3, 1, 3, (8, 12)), window=(12, 12, 12), learning_rate=0.02)
    found = trained(cases, recipe, steps=60)
    assert found.points[-1].score > 0.8
    assert found.points[-1].loss < 0.5 * found.points[0].loss
    assert found.cpu_seconds > 0


def test_a_loss_that_is_no_number_ends_it(cases: tuple[Case, ...]) -> None:
    with pytest.raises(ModelError, match="no number"):
        trained(cases, replace(TINY, learning_rate=1e30, warm_up=0))


def test_memory_that_is_too_small(cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(tasks, "sample", too_much)
    with pytest.raises(ModelError, match="memory") as caught:
        trained(cases)
    assert "--batch" in caught.value.hint


def test_budgets_and_rates() -> None:
    assert Budget("steps", 8).share(2, 100, 100) == 0.25
    assert Budget("seconds", 8).share(100, 2, 100) == 0.25
    assert Budget("cpu-seconds", 8).share(100, 100, 2) == 0.25
    rates = [TINY.rate(share / 100) for share in range(101)]
    assert max(rates) <= TINY.learning_rate
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[0] < rates[1] < rates[2]
    assert rates[-1] == 0


def test_all_cases_come_in_each_lap(cases: tuple[Case, ...]) -> None:
    run = training._Run.new(TINY, Split(cases, cases[:1]), Cases(INPUTS), "cpu")
    laps = [[run.case_at(lap * len(cases) + place).name for place in range(len(cases))] for lap in range(5)]
    assert all(sorted(lap) == sorted(case.name for case in cases) for lap in laps)
    assert len({tuple(lap) for lap in laps}) > 1


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_quick_norm_is_the_norm(dimensions: int) -> None:
    kind = torch.nn.InstanceNorm2d if dimensions == 2 else torch.nn.InstanceNorm3d
    conv = torch.nn.Conv2d if dimensions == 2 else torch.nn.Conv3d
    torch.manual_seed(0)
    net, quick = (torch.nn.Sequential(conv(2, 5, 3, bias=False), kind(5, affine=True)) for _ in range(2))
    torch.nn.init.normal_(net[1].weight)
    quick.load_state_dict(net.state_dict())
    keep_channels_last(quick)
    assert list(quick.state_dict()) == list(net.state_dict())
    images = torch.randn(3, 2, *[7] * dimensions)
    wanted, found = net(images), quick(images)
    assert torch.allclose(wanted, found, atol=1e-5)
    for result in (wanted, found):
        (result**3).sum().backward()
    assert all(
        torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-3) for a, b in zip(net.parameters(), quick.parameters(), strict=True)
    )


# ---------------------------------------------------------------------------------------------------------- plan, package


def planned(cases: tuple[Case, ...], **wishes: object):
    return make_plan(Split(cases[1:], cases[:1]), Wishes(channels=(4, 6), **wishes), memory=10**9)


def test_a_plan_is_made_of_the_cases(cases: tuple[Case, ...]) -> None:
    seen = []
    plan = make_plan(
        Split(cases[1:], cases[:1]), Wishes(), memory=10**9, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (4, 4)
    assert plan.recipe.window == (16, 16, 16)
    assert plan.inputs.spacing == (1.0, 1.0, 1.0)
    assert plan.classes == 3
    assert plan.voxels == {label: sum(int((ball(seed=n)[1] == label).sum()) for n in range(4)) for label in (1, 2)}
    flat = planned(cases, dimensions=2, mirror=True, learning_rate=0.01)
    assert flat.recipe.window == (10, 12)
    assert flat.recipe.augmentation.mirror
    assert flat.recipe.learning_rate == 0.01


def test_plans_that_make_no_sense(cases: tuple[Case, ...]) -> None:
    with pytest.raises(UsageError, match="2 sides"):
        planned(cases, window=(8, 8))
    with pytest.raises(UsageError, match="too small"):
        planned(cases, window=(8, 8, 2))
    with pytest.raises(UsageError, match="no loss"):
        planned(cases, loss="hinge")
    write(cases[0].labels, np.where(ball()[1] == 2, 5, 0).astype(np.uint8))
    with pytest.raises(ImageError, match="labels up to 5, but no voxel of 3"):
        planned(cases)
    for case in cases:
        write(case.labels, np.zeros((10, 12, 9), np.uint8))
    with pytest.raises(ImageError, match="empty"):
        planned(cases)


def test_a_package_with_figures_that_were_measured(work: Path) -> None:
    cases = written_cases(shape=(12, 12, 12))  # nothing has to be padded
    plan = planned(cases, window=(12, 12, 12), learning_rate=0.02)
    budget = Budget("steps", 25)
    result = train(plan.recipe, budget, plan.split, plan.cases)
    about = Description(name="balls", licence="CC0-1.0", labels={1: "shell"})
    done = publish(Path("model"), plan, result, budget, about)
    package = read_package(Path("model"))
    card = package.card
    assert card.labels == {0: "background", 1: "shell", 2: "label 2"}
    assert card.licence == "CC0-1.0"
    assert card.inputs.roi == (12, 12, 12)
    assert card.metrics.n == 1
    assert {value.dtype for value in package.state_dict().values()} == {torch.float16}
    assert verify_vector(package, Choice("torch", "float32", "cpu")).passed
    # The figure, by hand: the network as it is stored, on the case as it is.
    net = build_unet(plan.recipe.network)
    net.load_state_dict({name: value.float() for name, value in package.state_dict().items()})
    seen = plan.cases.get(cases[0])
    with torch.inference_mode():
        found = net(torch.from_numpy(seen.image)[None])[0].argmax(dim=0).numpy()
    truth = read_volume(cases[0].labels).array
    wanted = [2 * ((found == n) & (truth == n)).sum() / ((found == n).sum() + (truth == n).sum()) for n in (1, 2)]
    measured = [done.validated[0].values[label]["dice"] for label in (1, 2)]
    assert measured == pytest.approx(wanted, abs=0.01)
    assert min(measured) > 0.2
    assert card.metrics.values[MEAN]["dice"].mean == pytest.approx(np.mean(measured), abs=1e-4)
    record = Path("model/TRAINING.md").read_text()
    assert "case0" not in record
    assert hashed("case0") in record
    assert "25 steps" in record
    publish(Path("model"), plan, result, budget, replace(about, name_cases=True), overwrite=True)
    assert "- case1\n" in Path("model/TRAINING.md").read_text()
    for wrong, reason in (
        ({"labels": {7: "x"}}, "no label 7"),
        ({"labels": {1: "label 2"}}, "one name"),
        ({"name": "../x"}, "name of the model"),
        ({"labels": {1: "x" * 70}}, "of the model is not accepted"),
    ):
        with pytest.raises(UsageError, match=reason):
            publish(Path("other"), plan, result, budget, replace(about, **wrong))
    assert not Path("other").exists()


def test_weights_that_do_not_fit_into_16_bits_stay() -> None:
    assert half({"a": torch.tensor([1.0])})["a"].dtype == torch.float16
    assert half({"a": torch.tensor([1e6])})["a"].dtype == torch.float32


def test_figures_that_a_card_cannot_hold_are_left_out() -> None:
    values = dict.fromkeys(("dice", "iou", "precision", "recall", "assd"), 0.5)
    cases = [
        Validated("a", {1: {**values, "hd95": float("inf")}}),
        Validated("b", {1: {**values, "hd95": 1.0, "precision": float("nan")}}),
    ]
    found = metrics_of(cases, {0: "background", 1: "x"}, dataset="d", split="s")
    assert "hd95" not in found.values["x"]
    assert found.values["x"]["precision"].low is None
    assert found.values["x"]["dice"].low == 0.5


def test_the_curve_is_a_picture() -> None:
    for points in ([], [Point(1, 0.5, 2.0, 0.1)], [Point(n, n / 9, 9.0 / n, None if n % 2 else n / 10) for n in range(1, 10)]):
        found = Image.open(io.BytesIO(curve_picture(points)))
        assert found.size == (900, 480)
        assert not found.info
