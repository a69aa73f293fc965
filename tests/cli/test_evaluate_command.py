"""smp medical evaluate: pairs, tables, and what is refused or listed."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from conftest import Ran, left_in
from secure_media_processor.core.encryption import encrypt_file
from secure_media_processor.core.keys import SymmetricKey

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def label_map(moved: int = 0, *, shape: tuple[int, ...] = (12, 11, 10), labels: tuple[int, ...] = (1, 2)) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    for at, label in enumerate(labels):
        array[2 + moved : 6 + moved, 2 + 4 * at : 5 + 4 * at, 3:7] = label
    return array


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(array, affine).to_filename(path)
    return path


@pytest.fixture
def folders(work: Path) -> tuple[Path, Path]:
    for number, moved in enumerate((0, 1, 2)):
        save(work / "truth" / f"case{number}.nii.gz", label_map())
        save(work / "pred" / f"case{number}.nii", label_map(moved))
    return work / "pred", work / "truth"


def figures(ran: Ran) -> dict[tuple[int | None, str], dict]:
    return {(one["label"], one["metric"]): one for one in json.loads(ran.out)["summary"]}


def test_two_files(work: Path, smp: Callable[..., Ran]) -> None:
    one, other = save(work / "a.nii.gz", label_map(1)), save(work / "b.nii.gz", label_map())
    before = left_in(work)
    ran = smp("medical", "evaluate", one, other, "--surface-metrics", "--lesions", "--names", "1=left,2=right side")
    assert ran.code == 0, ran.err
    lines = [line.split() for line in ran.text.splitlines()]
    assert lines[0] == ["LABEL", "METRIC", "VALUE"]
    assert ["1", "left", "Dice", "0.7500"] in lines
    assert ["2", "right", "side", "HD95", "(mm)", "1.000"] in lines
    assert ["mean", "lesion", "F1", "1.0000"] in lines
    assert "voxel surfaces" in ran.err
    assert left_in(work) == before


def test_folders_are_paired_by_name(folders: tuple[Path, Path], smp: Callable[..., Ran]) -> None:
    ran = smp("medical", "evaluate", *folders, "--json", "--surface-metrics")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert [one["case"] for one in found["cases"]] == ["case0", "case1", "case2"]
    dice = figures(ran)[1, "dice"]
    assert (dice["n"], dice["mean"], dice["median"]) == (3, pytest.approx(0.75), 0.75)
    assert dice["low"] < 0.75 < dice["high"]
    assert [(one["case"], one["value"]) for one in dice["worst"]] == [("case2", 0.5), ("case1", 0.75)]
    assert figures(ran)[None, "dice"]["mean"] == pytest.approx(0.75)
    assert figures(ran)[2, "hd95"]["worst"][0] == {"case": "case2", "value": 2.0}
    text = smp("medical", "evaluate", *folders).text
    assert "case2 0.5000, case1 0.7500\n" in text
    assert "95% INTERVAL" in text
    assert smp("medical", "evaluate", *folders).text == text


def test_a_label_that_is_missing_in_a_case(folders: tuple[Path, Path], smp: Callable[..., Ran]) -> None:
    pred, truth = folders
    save(pred / "case0.nii", label_map(labels=(1,)))
    save(truth / "case0.nii.gz", label_map(labels=(1,)))
    save(pred / "case1.nii", label_map(labels=(1,)))
    ran = smp("medical", "evaluate", pred, truth, "--surface-metrics", "--json")
    assert ran.code == 0
    cases = json.loads(ran.out)["cases"]
    neither, missed = cases[0]["labels"][1]["values"], cases[1]["labels"][1]["values"]
    assert (neither["dice"], neither["hd95"], neither["surface_dice"]) == (1, None, 1)
    assert (missed["dice"], missed["hd95"], missed["precision"]) == (0, "inf", None)
    hd95 = figures(ran)[2, "hd95"]
    assert (hd95["n"], hd95["undefined"], hd95["infinite"], hd95["mean"], hd95["high"]) == (2, 1, 1, "inf", "inf")
    shown = smp("medical", "evaluate", pred, truth, "--surface-metrics")
    assert "inf" in shown.text
    assert "undefined" in shown.err
    chosen = smp("medical", "evaluate", pred, truth, "--labels", "2,7", "--json")
    assert [one["label"] for one in json.loads(chosen.out)["cases"][0]["labels"]] == [2, 7]


def test_what_has_no_partner_or_lies_elsewhere_is_listed(folders: tuple[Path, Path], smp: Callable[..., Ran]) -> None:
    pred, truth = folders
    save(pred / "alone.nii.gz", label_map())
    save(truth / "other.nii.gz", label_map())
    moved = AFFINE.copy()
    moved[0, 3] = 1
    save(pred / "case1.nii", label_map(), moved)
    (pred / "notes.txt").write_text("no image")
    (pred / "case2.nii").write_bytes((pred / "case2.nii").read_bytes()[:500])
    ran = smp("medical", "evaluate", pred, truth, "--json")
    assert ran.code == 3
    found = json.loads(ran.out)
    assert found["missing"] == [str(pred / "alone.nii.gz"), str(truth / "other.nii.gz")]
    assert [one["path"] for one in found["failed"]] == [str(pred / "case1.nii"), str(pred / "case2.nii")]
    assert "centres are 1 mm apart" in found["failed"][0]["reason"]
    assert [one["case"] for one in found["cases"]] == ["case0"]
    assert "alone.nii.gz has no partner" in ran.err


@pytest.mark.parametrize(
    ("affine", "shape", "said"),
    [
        (np.diag([1.0, 2.0, 3.5, 1.0]), (12, 11, 10), "voxels of 1 by 2 by 3.5 mm against"),
        (AFFINE, (12, 11, 9), "12 by 11 by 9 voxels against"),
        (np.diag([-1.0, 2.0, 3.0, 1.0]), (12, 11, 10), "run to LAS and to RAS"),
    ],
)
def test_a_pair_on_two_grids_is_an_error(work: Path, smp: Callable[..., Ran], affine, shape, said) -> None:
    one, other = save(work / "a.nii.gz", label_map(shape=shape), affine), save(work / "b.nii.gz", label_map())
    ran = smp("medical", "evaluate", one, other, "--csv", work / "out.csv")
    assert (ran.code, ran.out) == (1, b"")
    assert said in ran.err
    assert not (work / "out.csv").exists()


def test_what_is_no_label_map_is_refused(work: Path, smp: Callable[..., Ran]) -> None:
    truth = save(work / "b.nii.gz", label_map())
    for array in (label_map().astype(np.float32) + 0.5, label_map().astype(np.int32) - 1, label_map().astype(np.int32) * 70000):
        ran = smp("medical", "evaluate", save(work / "a.nii.gz", array), truth)
        assert (ran.code, ran.out) == (1, b"")
        assert "SMP-IMAGE" in ran.err


def test_a_table_of_cases(folders: tuple[Path, Path], work: Path, smp: Callable[..., Ran]) -> None:
    args = ("medical", "evaluate", *folders, "--surface-metrics", "--csv", work / "cases.csv", "--names", "2=right")
    assert smp(*args).code == 0
    with (work / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["label"], row["name"]) for row in rows[:2]] == [("case0", "1", ""), ("case0", "2", "right")]
    assert float(rows[2]["dice"]) == 0.75
    assert int(rows[2]["tp"]) == 36
    kept = (work / "cases.csv").read_bytes()
    again = smp(*args)
    assert (again.code, again.out) == (8, b"")
    assert (work / "cases.csv").read_bytes() == kept
    assert smp(*args, "--force").code == 0
    assert (work / "cases.csv").read_bytes() == kept


def test_encrypted_files(work: Path, smp: Callable[..., Ran], key: SymmetricKey, key_file: Path) -> None:
    save(work / "pred" / "a.nii.gz", label_map(1))
    plain = save(work / "a.nii.gz", label_map())
    (work / "truth").mkdir()
    encrypt_file(plain, work / "truth" / "a.nii.gz.smp", [key])
    plain.unlink()
    ran = smp("medical", "evaluate", work / "pred", work / "truth", "--key", key_file, "--json")
    assert ran.code == 0, ran.err
    assert figures(ran)[1, "dice"]["mean"] == 0.75
    assert smp("medical", "evaluate", work / "pred", work / "truth").code == 3
    assert left_in(work) == {"pred/a.nii.gz", "truth/a.nii.gz.smp"} | {one for one in left_in(work) if one.startswith("keys")}


def test_nothing_but_background(work: Path, smp: Callable[..., Ran]) -> None:
    one = save(work / "a.nii.gz", np.zeros((3, 3, 3), np.uint8))
    ran = smp("medical", "evaluate", one, one)
    assert (ran.code, ran.out) == (0, b"")
    assert "no label but the background" in ran.err


def test_what_makes_no_sense(folders: tuple[Path, Path], work: Path, smp: Callable[..., Ran]) -> None:
    pred, truth = folders
    image, table = pred / "case0.nii", work / "a.csv"
    table.write_text("id,probability\na,0.5\n")
    (work / "empty").mkdir()
    for args, code in [
        ((pred, image), 2),
        ((image, table), 2),
        ((table, table, "--lesions"), 2),
        ((table, table, "--csv", work / "b.csv"), 2),
        ((pred, truth, "--threshold", "0.5"), 2),
        ((pred, truth, "--tolerance", "2"), 2),
        ((pred, truth, "--lesion-iou", "0.5"), 2),
        ((pred, truth, "--labels", "1,1"), 2),
        ((pred, truth, "--labels", "0"), 2),
        ((pred, truth, "--labels", "liver"), 2),
        ((pred, truth, "--names", "liver"), 2),
        ((pred, truth, "--names", "1=a,1=b"), 2),
        ((pred, work / "nowhere"), 7),
        ((pred, work / "empty"), 7),
    ]:
        ran = smp("medical", "evaluate", *args)
        assert (ran.code, ran.out) == (code, b""), (args, ran.err)
    save(pred / "case0.nii.gz", label_map())
    assert "one name" in smp("medical", "evaluate", pred, truth).err
    assert not (work / "b.csv").exists()


WITHOUT_SCIPY = """
import sys
sys.modules["scipy"] = None
from secure_media_processor.cli.main import main
main(sys.argv[1:])
"""


def test_without_scipy_the_extra_is_named(work: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SCIPY, "medical", "evaluate", "a.nii", "b.nii"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 10
    assert "pip install 'secure-media-processor[medical]'" in done.stderr


# --------------------------------------------------------------------------------------------------------------- tables


@pytest.fixture
def tables(work: Path) -> tuple[Path, Path]:
    random.seed(1)
    truth = {f"P{number}": number % 3 == 0 for number in range(60)}
    given = {name: min(1, max(0, random.gauss(0.6 if label else 0.4, 0.2))) for name, label in truth.items()}
    (work / "p.csv").write_text("ID,model,Probability\n" + "".join(f"{name},m,{value}\n" for name, value in given.items()))
    (work / "t.csv").write_text(
        "\ufeffid,label\r\n" + "".join(f"{name},{label:d}\r\n" for name, label in reversed(truth.items()))
    )
    return work / "p.csv", work / "t.csv"


def test_probabilities(tables: tuple[Path, Path], smp: Callable[..., Ran]) -> None:
    ran = smp("medical", "evaluate", *tables, "--threshold", "0.5", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)["predictions"]
    assert (found["n"], found["positives"], found["threshold"]) == (60, 20, 0.5)
    assert 0.6 < found["auc"]["low"] < found["auc"]["value"] < found["auc"]["high"] <= 1
    assert sum(one["n"] for one in found["reliability"]) == 60
    text = smp("medical", "evaluate", *tables).text
    assert "sensitivity at 0.5" in text
    assert "0.9 to 1.0" in text
    assert "P1" not in text


def test_ids_without_a_partner(tables: tuple[Path, Path], smp: Callable[..., Ran]) -> None:
    with tables[0].open("a") as file:
        file.write("SECRET^NAME,m,0.5\n")
    ran = smp("medical", "evaluate", *tables, "--json")
    assert ran.code == 3
    assert json.loads(ran.out)["missing"] == [f"{tables[0]}, line 62"]
    assert json.loads(ran.out)["predictions"]["n"] == 60
    assert "SECRET" not in ran.err + ran.text
    tables[1].write_text("id,label\nx,1\n")
    ran = smp("medical", "evaluate", *tables)
    assert (ran.code, ran.out) == (3, b"")
    assert "more" in ran.err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "id,probability\n",
        "id,prob\nSECRET,0.5\n",
        "id,id,probability\nSECRET,a,0.5\n",
        "id,probability\nSECRET,nan\n",
        "id,probability\nSECRET,1.01\n",
        "id,probability\nSECRET,\n",
        "id,probability\nSECRET,inf\n",
        "id,probability\nSECRET\n",
        "id,probability\nSECRET,0.5,3\n",
        "id,probability\nSECRET,0.5\nSECRET,0.5\n",
        "id,probability\n,0.5\n",
        'id,probability\n"SECRET"x,0.5\n',
        'id,probability\n"SECRET,0.5\n',
        "id,probability\n" + "SECRET" * 1000 + ",0.5\n",
        "id,probability\n\0SECRET\udcff,0.5\n",
    ],
)
def test_tables_that_are_none(tables: tuple[Path, Path], smp: Callable[..., Ran], text: str) -> None:
    tables[0].write_bytes(text.encode("utf-8", "surrogateescape"))
    ran = smp("medical", "evaluate", *tables)
    assert (ran.code, ran.out) == (1, b""), ran.err
    assert "SMP-IMAGE" in ran.err
    assert "SECRET" not in ran.err


def test_labels_are_0_or_1(tables: tuple[Path, Path], smp: Callable[..., Ran]) -> None:
    tables[1].write_text("id,label\nP1,0.5\n")
    assert "label is not 0 or 1" in smp("medical", "evaluate", *tables).err
