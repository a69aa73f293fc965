"""Training a classifier of whole images: the network, the table, the split, and that it learns and goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import nibabel as nib  # noqa: E402 - torch first, or the test is skipped
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from secure_media_processor.errors import ImageError, ModelError, UsageError  # noqa: E402
from secure_media_processor.medical.inference.card import CARD, Inputs, Normalization  # noqa: E402
from secure_media_processor.medical.inference.classifier import ClassifierConfig, build_classifier  # noqa: E402
from secure_media_processor.medical.inference.packages import read_package, write_package  # noqa: E402
from secure_media_processor.medical.inference.vectors import verify_vector  # noqa: E402
from secure_media_processor.medical.unet.class_table import ClassTable, read_classes  # noqa: E402
from secure_media_processor.medical.unet.classification import (  # noqa: E402
    Classified,
    class_metrics,
    probabilities,
    validate_classes,
    whole_input,
)
from secure_media_processor.medical.unet.dataset import (  # noqa: E402
    Case,
    Split,
    find_classified,
    read_case,
    split_by_names,
    split_cases,
)
from secure_media_processor.medical.unet.engines import Choice, TorchEngines, network_of  # noqa: E402
from secure_media_processor.medical.unet.inference import Options, segment  # noqa: E402
from secure_media_processor.medical.unet.publishing import Description, Published, publish  # noqa: E402
from secure_media_processor.medical.unet.tasks import CROSS_ENTROPY, Classification  # noqa: E402
from secure_media_processor.medical.unet.train import Budget, Place, Trained, train  # noqa: E402
from secure_media_processor.medical.unet.training_plan import Plan, Wishes, make_plan  # noqa: E402
from secure_media_processor.medical.volume import read_volume  # noqa: E402

CLASSES = ("plain", "blob")
WISHES = Wishes(classes=CLASSES, channels=(4, 8), batch=4)
BUDGET = Budget("steps", 60)


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in one order only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scan(class_: int, seed: int, shape: tuple[int, int, int] = (12, 13, 11)) -> np.ndarray:
    """Return noise, with a bright blob somewhere in it for class 1."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"), axis=-1)
    centre = [rng.uniform(min(3, side / 2), max(side - 4, side / 2)) for side in shape]
    far = np.linalg.norm(grid - centre, axis=-1)
    return (rng.normal(100, 20, shape) + 100 * class_ * (far < 2.5)).astype(np.float32)


def written(count: int = 20, shape: tuple[int, int, int] = (12, 13, 11)) -> tuple[Case, ...]:
    Path("images").mkdir(exist_ok=True)
    for number in range(count):
        nib.save(nib.Nifti1Image(scan(number % 2, number, shape), np.eye(4)), f"images/scan{number}.nii.gz")
    table = ClassTable(Path("truth.csv"), {f"scan{number}": number % 2 for number in range(count)}, CLASSES)
    return find_classified(Path("images"), table)


def planned(cases: tuple[Case, ...], **wishes: object) -> Plan:
    return make_plan(split_cases(cases, 0.4, 0), replace(WISHES, **wishes), memory=10**9)


def trained(plan: Plan, budget: Budget = BUDGET, **options: object) -> Trained:
    return train(plan.recipe, budget, plan.split, plan.cases, **options)


def published(target: Path, plan: Plan, done: Trained) -> Published:
    return publish(target, plan, done, BUDGET, Description("toy", "CC0-1.0", {}))


# ---------------------------------------------------------------------------------------------------------------- network


@settings(max_examples=15, deadline=None)
@given(
    sides=st.lists(st.integers(1, 17), min_size=2, max_size=3),
    levels=st.integers(2, 4),
    classes=st.integers(2, 4),
)
def test_any_size_gives_one_logit_a_class(sides: list[int], levels: int, classes: int) -> None:
    network = build_classifier(ClassifierConfig(3 if len(sides) == 3 else 2, 2, classes, (3,) * levels)).eval()
    with torch.no_grad():
        found = network(torch.randn(2, 2, *sides))
    assert found.shape == (2, classes)
    assert bool(torch.isfinite(found).all())


def test_a_logit_is_the_mean_of_what_each_place_adds() -> None:
    network = build_classifier(ClassifierConfig(3, 1, 2, (4, 6))).eval()
    images = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        places = torch.einsum("bcxyz,kc->bkxyz", network.features(images), network.head.weight)
        assert torch.allclose(network(images), places.mean(dim=(2, 3, 4)) + network.head.bias, atol=1e-6)


def test_a_configuration_goes_to_json_and_back() -> None:
    config = ClassifierConfig(2, 1, 3, (4, 8, 16))
    assert ClassifierConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.factor == 4


@pytest.mark.parametrize(
    "change",
    [{"dimensions": 4}, {"in_channels": 0}, {"out_channels": 1}, {"channels": [4]}, {"channels": "48"}, {"more": 1}],
)
def test_a_configuration_out_of_bounds_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ClassifierConfig.from_json({**ClassifierConfig(2, 1, 3, (4, 8)).to_json(), **change})


def test_an_input_of_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match="1 channels"):
        build_classifier(ClassifierConfig(3, 1, 2, (4, 6)))(torch.zeros(1, 2, 8, 8, 8))


# ------------------------------------------------------------------------------------------------------------------ table


@pytest.mark.parametrize(
    ("lines", "names", "classes", "shown"),
    [
        (["a,0", "b,1"], {}, {"a": 0, "b": 1}, ("class 0", "class 1")),
        (["a,0", "b,1"], {1: "lesion"}, {"a": 0, "b": 1}, ("class 0", "lesion")),
        (["a,malignant", "b,benign", "", "c,benign"], {}, {"a": 1, "b": 0, "c": 0}, ("benign", "malignant")),
        (["a,cancer", "b,normal"], {0: "normal", 1: "cancer"}, {"a": 1, "b": 0}, ("normal", "cancer")),
        (["a,2", "b,1", "c,0"], {}, {"a": 2, "b": 1, "c": 0}, ("class 0", "class 1", "class 2")),
    ],
)
def test_classes_are_read(
    work: Path, lines: list[str], names: dict[int, str], classes: dict[str, int], shown: tuple[str, ...]
) -> None:
    Path("t.csv").write_text("\n".join(["id,label", *lines]) + "\n")
    found = read_classes(Path("t.csv"), names)
    assert (found.classes, found.names) == (classes, shown)


@pytest.mark.parametrize(
    ("text", "names", "reason"),
    [
        ("id,label\na,0\nb,0\n", {}, "1 class"),
        ("id,label\n", {}, "0 class"),
        ("id,label\na,0\na,1\n", {}, "line 3: the id of line 2 again"),
        ("id,label\na,0\nb,nan\n", {}, "line 3: it has no label"),
        ("id,label\na,0\nb,\n", {}, "line 3: it has no label"),
        ("id,label\na,0\n,1\n", {}, "line 3: it has no id"),
        ("id,label\na,0\nb,2\n", {}, "without gaps"),
        ("id,label\na,0\nb,1,5\n", {}, "line 3"),
        ("id,class\na,0\nb,1\n", {}, "one column label"),
        ("id,label\na,0\nb,1\n", {2: "x"}, "no class 2"),
        ("id,label\na,x\nb,y\n", {0: "x"}, "are not those in the table"),
        ("id,label\na,x\nb,y\n", {0: "x", 1: "z"}, "are not those in the table"),
    ],
)
def test_tables_that_are_refused(work: Path, text: str, names: dict[int, str], reason: str) -> None:
    Path("t.csv").write_text(text)
    with pytest.raises((ImageError, UsageError), match=reason):
        read_classes(Path("t.csv"), names)


def test_images_and_the_table_have_to_fit(work: Path) -> None:
    written(3)
    for classes, reason in (
        ({"scan0": 0, "scan1": 1}, "1 of 3 images are not in"),
        ({"scan0": 0, "scan1": 1, "scan2": 0, "x": 1}, "have no image"),
        ({"scan0": 0, "scan1": 1, "scan2": 0, "scan0.nii.gz": 1}, "two ids"),
    ):
        with pytest.raises(UsageError, match=reason):
            find_classified(Path("images"), ClassTable(Path("t.csv"), classes, CLASSES))
    names = {"scan0.nii.gz": 0, "scan1.nii": 1, "scan2": 0}  # file names count as names
    found = find_classified(Path("images"), ClassTable(Path("t.csv"), names, CLASSES))
    assert [(case.name, case.labels, case.class_) for case in found] == [
        ("scan0", None, 0),
        ("scan1", None, 1),
        ("scan2", None, 0),
    ]
    with pytest.raises(UsageError, match="no label map"):
        read_case(found[0])


# ------------------------------------------------------------------------------------------------------------------ split


def case(name: str, class_: int) -> Case:
    return Case(name, Path(name), None, class_)


@given(
    counts=st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(2, 4)),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_each_class_is_split_by_itself(counts: tuple[int, ...], fraction: float, seed: int) -> None:
    cases = [case(f"{class_}-{number}", class_) for class_, count in enumerate(counts) for number in range(count)]
    split = split_cases(cases, fraction, seed)
    assert sorted(one.name for one in (*split.training, *split.validation)) == sorted(one.name for one in cases)
    for class_, count in enumerate(counts):
        held_out = sum(one.class_ == class_ for one in split.validation)
        assert held_out == min(max(round(fraction * count), 1), count - 1)
    assert split_cases(cases[::-1], fraction, seed) == split


def test_splits_that_leave_a_class_out() -> None:
    cases = [case("a", 0), case("b", 0), case("c", 1)]
    with pytest.raises(UsageError, match="1 case of class 1"):
        split_cases(cases, 0.2, 0)
    with pytest.raises(UsageError, match="of each class"):
        split_by_names(cases, ["a"])
    assert len(split_by_names([*cases, case("d", 1)], ["a", "c"]).validation) == 2


# --------------------------------------------------------------------------------------------------------------- training


def test_it_learns_and_its_package_says_how_well(work: Path) -> None:
    plan = planned(written(28))
    assert (plan.recipe.loss, plan.recipe.window, plan.members) == (CROSS_ENTROPY, (12, 14, 12), {0: 14, 1: 14})
    done = trained(plan)
    assert done.points[-1].score > 0.8
    made = published(Path("model"), plan, done)
    card = made.package.card
    assert (card.task, card.architecture.kind, card.labels) == ("classify", "classifier", {0: "plain", 1: "blob"})
    figures = card.metrics.values["blob"]
    assert list(card.metrics.values) == ["blob"]
    assert set(figures) == {"auc", "sensitivity", "specificity"}
    assert card.metrics.n == 12
    assert figures["auc"].mean > 0.9
    assert figures["auc"].low <= figures["auc"].mean <= figures["auc"].high
    assert figures["sensitivity"].low < figures["sensitivity"].mean
    engines = ("torch", "openvino") if pytest.importorskip("openvino") else ()
    for engine in engines:
        assert verify_vector(read_package(Path("model")), Choice(engine, "float32", "cpu")).passed
    # On scans that nobody has seen, of another size.
    engine = TorchEngines(network_of(made.package)).open((), "cpu")
    found = []
    for number in range(8):
        nib.save(nib.Nifti1Image(scan(number % 2, 100 + number, (14, 11, 12)), np.eye(4)), "new.nii.gz")
        found.append(probabilities(engine, [read_volume(Path("new.nii.gz"))], card.inputs))
    assert all(abs(sum(one) - 1) < 1e-9 for one in found)
    assert min(one[1] for one in found[1::2]) > max(one[1] for one in found[::2])
    with pytest.raises(ModelError, match="its task is classify"):
        segment(read_volume(Path("new.nii.gz")), made.package, Options())
    record = Path("model/TRAINING.md").read_text()
    assert "probability of blob" in record
    assert "| plain | 14 |" in record
    assert "scan" not in record.split("Cases are given")[1]


def test_slices_are_learnt_too(work: Path) -> None:
    plan = planned(written(20, (16, 17, 1)), dimensions=2)
    assert plan.recipe.window == (16, 18)
    made = published(Path("model"), plan, trained(plan, Budget("steps", 5)))
    assert made.package.card.dimensions == 2
    assert verify_vector(made.package, Choice("torch", "float32", "cpu")).passed


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_run_cut_off_ends_as_one_that_was_not(work: Path, cut: int) -> None:
    plan = planned(written(8))
    whole = trained(plan, Budget("steps", 8))
    place = Place(Path("checkpoint"), 0)
    calls = 0

    def kill(_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > cut:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(plan, Budget("steps", 8), place=place, progress=kill)
    again = trained(plan, Budget("steps", 8), place=place, resume=True)
    assert all(torch.equal(again.state[name], value) for name, value in whole.state.items())
    assert [(point.step, point.loss, point.score) for point in again.points] == [
        (point.step, point.loss, point.score) for point in whole.points
    ]


def test_a_checkpoint_of_other_classes_is_refused(work: Path) -> None:
    plan = planned(written(8))
    place = Place(Path("checkpoint"), 0)
    trained(plan, Budget("steps", 2), place=place)
    turned = replace(plan.split.training[0], class_=1 - plan.split.training[0].class_)
    other = replace(plan, split=Split((turned, *plan.split.training[1:]), plan.split.validation))
    with pytest.raises(UsageError, match="with cases other than now"):
        trained(other, Budget("steps", 3), place=place, resume=True)


def test_plans_that_make_no_sense(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = written(4)
    with pytest.raises(UsageError, match="does not hold all"):
        planned(cases, window=(8, 16, 16))
    assert planned(cases, window=(16, 16, 16)).recipe.window == (16, 16, 16)
    with pytest.raises(ImageError, match="11 slices"):
        planned(cases, dimensions=2)
    monkeypatch.setattr("secure_media_processor.medical.unet.training_plan.MOST_CLASSIFIED", {3: 1000})
    with pytest.raises(UsageError, match="the images are large"):
        planned(cases)
    with pytest.raises(UsageError, match="loss 'dice'"):
        Classification(ClassifierConfig(3, 1, 2, (4, 8))).check("dice")


def test_the_score_is_a_mean_over_classes() -> None:
    task = Classification(ClassifierConfig(3, 1, 2, (4, 8)))
    pairs = [(torch.tensor(found), torch.tensor(truth)) for found, truth in ((0, 0), (0, 0), (0, 0), (0, 1))]
    assert task.scored(pairs) == 0.5
    cases = [case(f"{number:02}", number % 2) for number in range(40)]
    assert len(task.looked_at(cases)) == 16


# ---------------------------------------------------------------------------------------------------------------- figures


def test_figures_are_those_of_one_class_against_the_others() -> None:
    found = [
        Classified("a", 0, (0.7, 0.2, 0.1)),
        Classified("b", 1, (0.3, 0.6, 0.1)),
        Classified("c", 2, (0.1, 0.5, 0.4)),
        Classified("d", 2, (0.0, 0.1, 0.9)),
    ]
    values = class_metrics(found, {0: "x", 1: "y", 2: "z"}, dataset="d", split="s").values
    assert list(values) == ["x", "y", "z"]
    assert values["z"]["auc"].mean == 1
    assert values["z"]["sensitivity"].mean == 0.5
    assert values["y"]["specificity"].mean == pytest.approx(2 / 3, abs=1e-5)
    assert values["y"]["auc"].low is None  # a single case has no variance
    alone = class_metrics([Classified("a", 0, (0.7, 0.3))], {0: "x", 1: "y"}, dataset="d", split="s").values
    assert set(alone["y"]) == {"specificity"}


def test_small_images_are_put_into_the_window(work: Path) -> None:
    written(1, (6, 20, 9))
    inputs = Inputs(channels=("image",), roi=(8, 16, 12), normalization=Normalization(method="percentile"))
    volume = read_volume(Path("images/scan0.nii.gz"))
    seen = whole_input([volume], inputs)
    assert seen.shape == (1, 1, 8, 20, 12)
    assert np.array_equal(seen[0, 0, 0], seen[0, 0, 1])
    with pytest.raises(ImageError, match="9 slices"):
        whole_input([volume], inputs.model_copy(update={"roi": (8, 16)}))


# --------------------------------------------------------------------------------------------------------------- packages


def test_a_package_is_read_strictly(work: Path) -> None:
    plan = planned(written(4))
    made = published(Path("model"), plan, trained(plan, Budget("steps", 1))).package
    weights = made.state_dict()
    again = write_package(Path("again"), made.card.model_copy(update={"test_vector": None}), weights=weights)
    assert again.card.test_vector is not None
    wider = made.card.architecture.model_copy(update={"channels": (4, 9)})
    with pytest.raises(ModelError, match="shape"):
        write_package(Path("wider"), made.card.model_copy(update={"architecture": wider}), weights=weights)
    with pytest.raises(ModelError, match="missing"):
        write_package(Path("less"), made.card, weights={name: weights[name] for name in list(weights)[1:]})
    text = json.loads(Path("model", CARD).read_text())
    for change in (
        {"task": "segment"},
        {"architecture": {**text["architecture"], "variant": "residual"}},
        {"architecture": {**text["architecture"], "out_channels": 3}},
        {"architecture": {**text["architecture"], "dimensions": 2}},
        {"architecture": {**text["architecture"], "channels": [4, 5000]}},
        {"outputs": {**text["outputs"], "postprocessing": [{"step": "fill-holes", "labels": [1]}]}},
        {"inputs": {**text["inputs"], "crop": "foreground"}},
    ):
        Path("model", CARD).write_text(json.dumps({**text, **change}))
        with pytest.raises(ModelError):
            read_package(Path("model"))
    assert not Path("wider").exists()
    assert not Path("less").exists()


def test_validation_takes_classifiers_and_classes_only(work: Path) -> None:
    cases = written(4)
    plan = planned(cases)
    made = published(Path("model"), plan, trained(plan, Budget("steps", 1))).package
    with pytest.raises(ImageError, match="no class"):
        validate_classes(made, [replace(cases[0], class_=None)])
    with pytest.raises(ModelError, match="no classifier"):
        validate_classes(replace(made, card=made.card.model_copy(update={"architecture": None})), cases)
