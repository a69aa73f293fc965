"""smp medical convert, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Ran, left_in
from unit.medical.synthetic import CANARY, image, save, series

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
Smp = Callable[..., Ran]


def test_some_files_fail_and_the_others_go_on(work: Path, smp: Smp) -> None:
    series("in")
    Path("in/notes").write_text("hello")
    ran = smp("medical", "convert", "in", "out", "--format", "png", "--json")
    assert ran.code == 3
    shown = json.loads(ran.text)
    assert shown["schema"] == "smp.medical.convert/1"
    assert len(shown["written"]) == 6
    assert shown["failed"] == [{"path": "in/notes", "reason": "it is not a DICOM file"}]
    assert "in/notes: it is not a DICOM file" in ran.err
    assert CANARY not in ran.err + ran.text
    assert len(left_in(Path("out"))) == 6


def test_volumes(work: Path, smp: Smp) -> None:
    series("in")
    ran = smp("medical", "convert", "in", "out", "--format", "nifti", "--engine", "own", "-v")
    assert (ran.code, ran.out) == (0, b"")
    assert "1 volume written" in ran.err
    assert left_in(Path("out")) == {"series-001.nii.gz", "series-001.json"}
    assert smp("medical", "convert", "in", "out", "--format", "nifti").code == 3
    assert smp("medical", "convert", "in", "out", "--format", "nifti", "--force").code == 0


def test_a_missing_slice_is_told(work: Path, smp: Smp) -> None:
    series("in", leave_out=(2,))
    ran = smp("medical", "convert", "in", "out", "--format", "nifti")
    assert "1 slice is missing" in ran.err
    ran = smp("medical", "convert", "in", "own", "--format", "nifti", "--engine", "own")
    assert ran.code == 3
    assert not left_in(Path("own"))


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        (["in", "out"], 2, "--format"),
        (["in", "out", "--format", "png", "--engine", "own"], 2, "--engine is for --format nifti"),
        (["in", "out", "--format", "nifti", "--source", "in"], 2, "--source is for --format seg"),
        (["in", "out", "--format", "seg"], 2, "needs --source"),
        (["in", "in/out", "--format", "png"], 2, "written into in"),
        (["gone", "out", "--format", "png"], 7, "cannot read gone"),
        (["empty", "out", "--format", "nifti"], 7, "no files in empty"),
        (["in/notes", "out.png", "--format", "png"], 1, "in/notes: it is not a DICOM file"),
        (["in/notes", "out.dcm", "--format", "seg", "--source", "in", "--labels", "in/notes"], 2, "not JSON"),
    ],
)
def test_what_makes_no_sense(work: Path, smp: Smp, args: list[str], code: int, reason: str) -> None:
    Path("in").mkdir()
    Path("empty").mkdir()
    Path("in/notes").write_text("hello")
    ran = smp("medical", "convert", *args)
    assert ran.code == code, ran.err
    assert reason in ran.err
    assert left_in(work) == {"in/notes"}


def test_one_file(work: Path, smp: Smp) -> None:
    import numpy as np  # noqa: PLC0415 - nothing else here needs it

    save(image(np.arange(64, dtype=np.uint8).reshape(8, 8)), "scan.dcm")
    assert smp("medical", "convert", "scan.dcm", "scan.png", "--format", "png").code == 0
    assert smp("medical", "convert", "scan.dcm", "scan.png", "--format", "png").code == 8
    assert smp("medical", "convert", "scan.dcm", "scan.dcm", "--format", "nifti").code != 0
    assert Path("scan.dcm").is_file()
