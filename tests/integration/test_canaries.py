"""The engine against the verifier and against bare bytes: nothing planted survives, and no file becomes less conformant."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from dicom_canaries import SYNTAXES, write_canaries
from secure_media_processor.medical.deid.engine import Deidentifier
from secure_media_processor.medical.deid.profile import PRESETS, Option, Profile
from secure_media_processor.medical.deid.verify import verify_deidentified

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

KEY = bytes(range(32))


def test_the_canaries_are_where_they_should_be(work: Path) -> None:
    canaries = write_canaries(work / "in")
    found = set(canaries.left_in(work / "in"))
    assert [canary for canary in canaries.planted if canary not in found] == []
    assert len(found) > 8000
    assert len({canary.token for canary in found}) == len(found)


def test_no_canary_survives_the_basic_profile(work: Path) -> None:
    canaries = write_canaries(work / "in")
    report = Deidentifier(KEY).deidentify_folder(work / "in", work / "out")
    assert len(report.written) == 2 * len(SYNTAXES) + 2
    assert len(report.quarantined) == 3
    assert canaries.left_in(work / "out") == []
    found = verify_deidentified(work / "in", work / "out", options=())
    assert [(file.output.name, file.violations) for file in found.files] == []
    assert (found.pairs, len(found.missing), found.unreadable) == (len(report.written), 3, ())
    assert dict(found.lost) == {}


def test_real_files_are_clean_too(work: Path) -> None:
    root = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
    report = Deidentifier(KEY).deidentify_folder(root, work / "out")
    found = verify_deidentified(root, work / "out")
    assert len(report.written) > 60
    assert found.outputs == found.pairs
    assert [(file.original, file.violations) for file in found.files if file.violations] == []
    assert dict(found.lost) == {}


PROFILES = [Profile.named(name) for name in PRESETS] + [Profile(frozenset({option})) for option in Option]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: "+".join(sorted(o.value for o in profile.options)) or "basic")
def test_every_option_keeps_what_it_says_and_no_more(work: Path, profile: Profile) -> None:
    write_canaries(work / "in")
    report = Deidentifier(KEY, profile).deidentify_folder(work / "in", work / "out")
    # Without a head in them, slices in which there could be a face are held back; test_defacing.py has some with a head.
    assert len(report.written) >= (1 if Option.DEFACE in profile.options else 2 * len(SYNTAXES))
    found = verify_deidentified(work / "in", work / "out", options=[option.value for option in profile.options])
    assert [(file.output.name, file.violations) for file in found.files if file.violations] == []
    assert dict(found.lost) == {}


def dciodvfy_errors(path: Path) -> Counter[str]:
    """Return the errors of a file by dciodvfy, the validator of dicom3tools."""
    ran = subprocess.run(["dciodvfy", path], capture_output=True, check=False, timeout=60)
    lines = (ran.stdout + ran.stderr).decode("utf-8", "replace").splitlines()
    return Counter(line for line in lines if line.startswith("Error"))


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_no_file_becomes_less_conformant(work: Path) -> None:
    write_canaries(work / "in")
    root = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
    worse: dict[str, Counter[str]] = {}
    compared = 0
    for number, source in enumerate((root, work / "in")):
        report = Deidentifier(KEY).deidentify_folder(source, work / f"out{number}")
        for written in report.written:
            before, after = dciodvfy_errors(written.source), dciodvfy_errors(written.target)
            compared += 1
            if after.total() > before.total():
                worse[written.source.name] = after - before
    assert worse == {}
    assert compared > 70
