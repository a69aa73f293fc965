"""smp encrypt, decrypt and verify as a user runs them, and what is left behind after each failure."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import Ran, left_in
from secure_media_processor import SymmetricKey


@pytest.fixture
def box(work: Path, smp: Callable[..., Ran]) -> Path:
    """A working folder with a file in it, and a key in the keystore."""
    assert smp("key", "generate").code == 0
    (work / "scan.dcm").write_bytes(b"pixels" * 50_000)
    return work


def small_disk(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    yield from small_disk(tmp_path / "disk", "size=64k")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from small_disk(tmp_path / "disk", "ro")


def test_there_and_back(box: Path, smp_process: Callable[..., Ran]) -> None:
    ran = smp_process("encrypt", "scan.dcm")
    assert (ran.code, ran.out, ran.err) == (0, b"", "smp: scan.dcm -> scan.dcm.smp (293.0 KiB)\n")
    ran = smp_process("verify", "scan.dcm.smp")
    assert ran.code == 0
    assert ran.text.startswith("scan.dcm.smp: intact, 293.0 KiB, SHA-256 of the original ")
    ran = smp_process("decrypt", "scan.dcm.smp", "copy.dcm")
    assert (ran.code, ran.err) == (0, "smp: scan.dcm.smp -> copy.dcm (293.0 KiB)\n")
    assert (box / "copy.dcm").read_bytes() == (box / "scan.dcm").read_bytes()
    assert smp_process("decrypt", "scan.dcm.smp", "-q", "--force").err == ""


def test_pipes(box: Path, smp_process: Callable[..., Ran]) -> None:
    data = os.urandom(700_000)
    sealed = smp_process("encrypt", "-", stdin=data)
    assert (sealed.code, sealed.err) == (0, "")
    opened = smp_process("decrypt", "-", "-o", "-", stdin=sealed.out)
    assert (opened.code, opened.out, opened.err) == (0, data, "")
    assert smp_process("verify", "-", stdin=sealed.out).code == 0
    (box / "a.smp").write_bytes(sealed.out)
    assert smp_process("decrypt", "a.smp", "-o", "-").out == data
    assert smp_process("decrypt", "-", "-o", "b", stdin=sealed.out).code == 0
    assert (box / "b").read_bytes() == data
    assert smp_process("encrypt", "-", "c.smp", stdin=data).code == 0
    assert smp_process("decrypt", "c.smp").code == 0
    assert (box / "c").read_bytes() == data


def test_a_damaged_pipe_ends_with_6_and_leaves_no_file(box: Path, smp_process: Callable[..., Ran]) -> None:
    sealed = smp_process("encrypt", "scan.dcm", "-o", "-").out
    for raw in (sealed[:-1], sealed[:100_000], sealed + b"x", sealed[:200_000], b""):
        ran = smp_process("decrypt", "-", "-o", "out", stdin=raw)
        assert ran.code == 6
        assert left_in(box) == {"scan.dcm"}


def test_json(box: Path, smp: Callable[..., Ran]) -> None:
    encrypted = json.loads(smp("encrypt", "scan.dcm", "--json").out)
    assert encrypted["schema"] == "smp.encrypt/1"
    assert (encrypted["input"], encrypted["output"]) == ("scan.dcm", "scan.dcm.smp")
    verified = json.loads(smp("verify", "scan.dcm.smp", "--json").out)
    assert verified["schema"] == "smp.verify/1"
    decrypted = json.loads(smp("decrypt", "scan.dcm.smp", "copy", "--json").out)
    assert decrypted["schema"] == "smp.decrypt/1"
    assert encrypted["original"] == verified["original"] == decrypted["original"]
    assert encrypted["original"]["media_type"] == "application/dicom"
    assert encrypted["file_id"] == decrypted["file_id"]


@pytest.mark.parametrize("name", ["scan.dcm", "./scan.dcm", "sub/../scan.dcm", "soft", "hard"])
@pytest.mark.parametrize("force", [False, True])
def test_input_and_output_are_never_the_same_file(box: Path, smp: Callable[..., Ran], name: str, force: bool) -> None:
    (box / "sub").mkdir()
    (box / "soft").symlink_to("scan.dcm")
    (box / "hard").hardlink_to("scan.dcm")
    before, data = left_in(box), (box / "scan.dcm").read_bytes()
    ran = smp("encrypt", "scan.dcm", "-o", name, *(["--force"] if force else []))
    assert ran.code == 2
    assert "SMP-SAME-FILE" in ran.err
    assert left_in(box) == before
    assert (box / "scan.dcm").read_bytes() == data


def test_an_output_that_exists_is_kept(box: Path, smp: Callable[..., Ran]) -> None:
    (box / "scan.dcm.smp").write_bytes(b"precious")
    ran = smp("encrypt", "scan.dcm")
    assert (ran.code, "--force" in ran.err) == (8, True)
    assert (box / "scan.dcm.smp").read_bytes() == b"precious"
    assert smp("encrypt", "scan.dcm", "--force").code == 0
    (box / "scan.dcm").write_bytes(b"newer")
    assert smp("decrypt", "scan.dcm.smp").code == 8
    assert (box / "scan.dcm").read_bytes() == b"newer"
    assert smp("decrypt", "scan.dcm.smp", "--force").code == 0


def test_force_keeps_the_old_output_until_the_new_one_is_verified(box: Path, smp: Callable[..., Ran]) -> None:
    smp("encrypt", "scan.dcm", "x.smp")
    raw = (box / "x.smp").read_bytes()
    (box / "x.smp").write_bytes(raw[:-1])
    (box / "out").write_bytes(b"old")
    assert smp("decrypt", "x.smp", "out", "--force").code == 6
    assert (box / "out").read_bytes() == b"old"
    assert left_in(box) == {"scan.dcm", "x.smp", "out"}


@pytest.mark.parametrize(
    ("args", "code", "name"),
    [
        (["encrypt", "absent"], 7, "SMP-NOT-FOUND"),
        (["encrypt", "folder"], 1, "SMP-FILE-ACCESS"),
        (["encrypt", "/dev/zero", "-o", "x"], 1, "SMP-FILE-ACCESS"),
        (["encrypt", "scan.dcm", "-o", "folder"], 1, "SMP-FILE-ACCESS"),
        (["encrypt", "scan.dcm", "-o", "absent/x"], 7, "SMP-NOT-FOUND"),
        (["encrypt", "scan.dcm", "-o", "scan.dcm/x"], 7, "SMP-NOT-FOUND"),
        (["encrypt", "scan.dcm", "a", "-o", "b"], 2, "SMP-USAGE"),
        (["encrypt", "scan.dcm", "--key", "absent.key"], 4, "SMP-KEY-MISSING"),
        (["encrypt", "scan.dcm", "--key", "scan.dcm"], 4, "SMP-KEY-EXPOSED"),
        (["encrypt", "scan.dcm", "--key", "private"], 4, "SMP-KEY-DAMAGED"),
        (["-c", "keystore=empty", "encrypt", "scan.dcm"], 4, "SMP-KEY-MISSING"),
        (["-c", "keystore=empty", "decrypt", "good.smp", "x"], 4, "SMP-KEY-MISSING"),
        (["decrypt", "good.smp", "x", "--key", "other.key"], 6, "SMP-WRONG-KEY"),
        (["decrypt", "scan.dcm", "x"], 6, "SMP-NOT-ENCRYPTED"),
        (["decrypt", "private"], 2, "SMP-USAGE"),
        (["decrypt", ".smp"], 2, "SMP-USAGE"),
        (["verify", "scan.dcm"], 6, "SMP-NOT-ENCRYPTED"),
        (["verify", "folder"], 1, "SMP-FILE-ACCESS"),
    ],
)
def test_bad_input_leaves_everything_as_it_was(
    box: Path, smp: Callable[..., Ran], args: list[str], code: int, name: str
) -> None:
    (box / "folder").mkdir()
    (box / "private").write_bytes(b"no key")
    (box / "private").chmod(0o600)
    (box / "scan.dcm").chmod(0o644)
    SymmetricKey.generate().save("other.key")
    smp("encrypt", "scan.dcm", "good.smp")
    before = {path: (box / path).read_bytes() for path in left_in(box)}
    ran = smp(*args)
    assert (ran.code, ran.out) == (code, b"")
    assert f"[{name}]" in ran.err
    assert len(ran.err.splitlines()) <= 2
    assert {path: (box / path).read_bytes() for path in left_in(box)} == before


def test_the_right_key_is_named_when_the_wrong_one_is_given(box: Path, smp: Callable[..., Ran]) -> None:
    smp("encrypt", "scan.dcm")
    key_id = smp("key", "list").text.splitlines()[1].split()[0]
    SymmetricKey.generate().save("other.key")
    assert key_id in smp("decrypt", "scan.dcm.smp", "x", "--key", "other.key").err


def test_every_key_of_the_keystore_reads_and_the_primary_one_writes(box: Path, smp: Callable[..., Ran]) -> None:
    first = smp("key", "list").text.splitlines()[1].split()[0]
    smp("encrypt", "scan.dcm", "one.smp")
    second = smp("key", "generate", "--primary").text.strip()
    assert second != first
    smp("encrypt", "scan.dcm", "two.smp")
    assert smp("verify", "one.smp").code == smp("verify", "two.smp").code == 0
    assert f"encrypted for key {second}" in smp("encrypt", "scan.dcm", "three.smp", "-v").err


def test_a_full_disk(box: Path, full_disk: Path, smp_process: Callable[..., Ran]) -> None:
    ran = smp_process("encrypt", "scan.dcm", "-o", full_disk / "x.smp")
    assert (ran.code, ran.out) == (12, b"")
    assert "no space left on device [SMP-NO-SPACE]" in ran.err
    assert len(ran.err.splitlines()) == 2
    assert left_in(full_disk) == set()
    smp_process("encrypt", "scan.dcm")
    (full_disk / "out").write_bytes(b"old")
    ran = smp_process("decrypt", "scan.dcm.smp", "-o", full_disk / "out", "--force")
    assert ran.code == 12
    assert (full_disk / "out").read_bytes() == b"old"
    assert left_in(full_disk) == {"out"}
    usage = shutil.disk_usage(full_disk)
    assert usage.free >= usage.total - 8192


def test_a_full_disk_under_standard_output(box: Path, smp_process: Callable[..., Ran]) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "secure_media_processor", "encrypt", "scan.dcm", "-o", "-"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == 12
    assert b"SMP-NO-SPACE" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_read_only_folder(box: Path, read_only_disk: Path, smp_process: Callable[..., Ran]) -> None:
    ran = smp_process("encrypt", "scan.dcm", "-o", read_only_disk / "x.smp")
    assert ran.code == 1
    assert "read-only file system [SMP-FILE-ACCESS]" in ran.err
    assert left_in(read_only_disk) == set()


def start(*args: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "secure_media_processor", *map(str, args)]
    # Under nohup SIGHUP is ignored, which children inherit.
    listen = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: E731 - for the child alone
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=listen)  # noqa: PLW1509 - no threads here


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_being_stopped_leaves_nothing(box: Path, number: signal.Signals) -> None:
    """In the middle of a file, with a mebibyte written already."""
    with start("encrypt", "-", "-o", "out.smp") as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(bytes(1 << 20))
        process.stdin.flush()
        time.sleep(0.5)
        process.send_signal(number)
        errors = process.stderr.read()
        code = process.wait(timeout=30)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert errors.strip() == (b"" if number == signal.SIGKILL else b"smp: interrupted")
    assert left_in(box) == {"scan.dcm"}


def test_a_reader_that_goes_away_is_no_mistake(box: Path, smp: Callable[..., Ran]) -> None:
    (box / "scan.dcm").write_bytes(bytes(5 << 20))
    smp("encrypt", "scan.dcm")
    with start("decrypt", "scan.dcm.smp", "-o", "-") as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(10)
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=30) != 0
    assert b"Traceback" not in errors
    assert b"Exception" not in errors


def on_terminal(*args: str) -> tuple[int, bytes]:
    """Run smp with a terminal for standard output and error; return its exit code and what was shown."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "secure_media_processor", *args]
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower) as process:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 4096):
                shown += part
        except OSError:  # Linux says so when the last writer of a terminal is gone
            pass
        os.close(leader)
        return process.wait(timeout=30), shown


def test_binary_data_goes_to_a_terminal_only_if_asked(box: Path, smp: Callable[..., Ran]) -> None:
    code, shown = on_terminal("encrypt", "-")
    assert code == 2
    assert b"-o -" in shown
    (box / "hello").write_bytes(b"hello there")
    smp("encrypt", "hello")
    code, shown = on_terminal("decrypt", "hello.smp", "-o", "-")
    assert (code, shown) == (0, b"hello there")


def test_progress_is_drawn_on_a_terminal_for_long_work_only(box: Path, smp_process: Callable[..., Ran]) -> None:
    """What takes long may be small: it may come from a slow pipe, or go to a slow store."""
    os.mkfifo("slow")

    def trickle() -> None:
        with Path("slow").open("wb") as pipe:
            pipe.write(b"data")
            pipe.flush()
            time.sleep(2)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(trickle)
        code, shown = on_terminal("encrypt", "slow")
        writing.result()
        assert (code, b"encrypting" in shown) == (0, True)
        assert shown.endswith(b"smp: slow -> slow.smp (4 B)\r\n")
        _, shown = on_terminal("encrypt", "scan.dcm")
        assert b"encrypting" not in shown
        writing = pool.submit(trickle)
        assert smp_process("encrypt", "slow", "again.smp").err == "smp: slow -> again.smp (4 B)\n"
        writing.result()


def test_a_shell_pattern_does_not_name_an_output(box: Path, smp: Callable[..., Ran]) -> None:
    """`smp encrypt *.dcm --force` with two files in the folder must not write over the second."""
    (box / "two.dcm").write_bytes(b"precious")
    for force in ([], ["--force"]):
        assert smp("encrypt", "scan.dcm", "two.dcm", *force).code == 2
        assert (box / "two.dcm").read_bytes() == b"precious"
    smp("encrypt", "scan.dcm")
    smp("encrypt", "two.dcm")
    raw = (box / "two.dcm.smp").read_bytes()
    assert smp("decrypt", "scan.dcm.smp", "two.dcm.smp", "--force").code == 2
    assert (box / "two.dcm.smp").read_bytes() == raw
    assert smp("encrypt", "scan.dcm", "-o", "two.dcm", "--force").code == 0


def test_a_device_or_pipe_is_not_replaced(box: Path, smp: Callable[..., Ran]) -> None:
    os.mkfifo("pipe")
    for force in ([], ["--force"]):
        ran = smp("encrypt", "scan.dcm", "-o", "pipe", *force)
        assert (ran.code, "--force" in ran.err) == (1, False)
        assert stat.S_ISFIFO((box / "pipe").stat().st_mode)


def test_pipes_with_names(box: Path, smp: Callable[..., Ran]) -> None:
    smp("encrypt", "scan.dcm")
    os.mkfifo("pipe")
    for args in (["verify", "pipe"], ["decrypt", "pipe", "-o", "out"]):
        with subprocess.Popen(["sh", "-c", "cat scan.dcm.smp > pipe"]):
            assert smp(*args).code == 0
    assert (box / "out").read_bytes() == (box / "scan.dcm").read_bytes()


def test_a_file_called_hyphen_is_a_file(box: Path, smp: Callable[..., Ran]) -> None:
    (box / "-").write_bytes(b"data")
    assert smp("encrypt", "./-", "-o", "x.smp", stdin=b"not this").code == 0
    (box / "-").unlink()
    assert smp("decrypt", "x.smp", "./-").out == b""
    assert (box / "-").read_bytes() == b"data"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["encrypt", "."], 1),
        (["encrypt", "/"], 1),
        (["encrypt", ""], 1),
        (["encrypt", "x" * 300], 1),
        (["encrypt", "scan.dcm", "-o", "x" * 300], 1),
        (["encrypt", "y" * 253], 1),
        (["encrypt", "scan.dcm", "-o", "loop"], 1),
        (["encrypt", "loop"], 1),
        (["decrypt", "scan.dcm/x.smp"], 7),
        (["-c", f"keystore={'x' * 300}", "encrypt", "scan.dcm"], 1),
        (["-c", f"audit_log={'x' * 300}/a", "encrypt", "scan.dcm"], 1),
        (["-c", "keystore=scan.dcm", "key", "list"], 1),
        (["-c", "keystore=scan.dcm", "key", "generate"], 1),
    ],
)
def test_odd_names_are_ordinary_errors(box: Path, smp: Callable[..., Ran], args: list[str], code: int) -> None:
    (box / "loop").symlink_to("loop")
    (box / ("y" * 253)).write_bytes(b"")
    ran = smp(*args)
    assert "SMP-INTERNAL" not in ran.err
    assert ran.code == code


def test_names_cannot_forge_lines_or_colours(box: Path, smp: Callable[..., Ran]) -> None:
    name = "a\nsmp: fine\x1b[31m"
    (box / name).write_bytes(b"data")
    encrypted, verified = smp("encrypt", name), smp("verify", f"{name}.smp")
    assert (encrypted.code, verified.code) == (0, 0)
    assert len(encrypted.err.splitlines()) == 1
    assert "\x1b" not in encrypted.err + verified.text


def test_encrypting_twice_is_noticed(box: Path, smp: Callable[..., Ran]) -> None:
    smp("encrypt", "scan.dcm")
    ran = smp("encrypt", "scan.dcm.smp")
    assert (ran.code, "encrypted already" in ran.err) == (0, True)


def in_shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    program = f"{sys.executable} -m secure_media_processor"
    script = line.replace("smp", program, 1)
    return subprocess.run(
        ["bash", "-c", script], env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=60
    )


def test_output_that_is_cut_is_an_error_even_unbuffered(box: Path, smp: Callable[..., Ran]) -> None:
    """Without a buffer a write may take less than it was given."""
    smp("encrypt", "scan.dcm")
    for unbuffered in ("", "1"):
        ran = in_shell("ulimit -f 100; smp decrypt scan.dcm.smp -o - > out", PYTHONUNBUFFERED=unbuffered)
        assert ran.returncode == 12, ran.stderr
        assert "SMP-NO-SPACE" in ran.stderr


@pytest.mark.parametrize(
    "line",
    [
        "smp key list >&-", "smp encrypt scan.dcm -o x >&-", "smp encrypt scan.dcm -o x 2>&-",
        "smp encrypt scan.dcm -o x 2>/dev/full",
        "smp encrypt - -o x <&-", "smp encrypt scan.dcm -o x <&- >&- 2>&-",
    ],
)  # fmt: skip
def test_closed_streams_do_not_matter(box: Path, line: str) -> None:
    ran = in_shell(line)
    assert (ran.returncode, ran.stdout) == (0, "")
    assert "Traceback" not in ran.stderr
    assert "Exception" not in ran.stderr


@pytest.mark.parametrize("line", ["smp key list > /dev/full", "smp verify scan.dcm.smp > /dev/full", "smp --json > /dev/full"])
def test_results_that_cannot_be_written_are_an_error(box: Path, smp: Callable[..., Ran], line: str) -> None:
    smp("encrypt", "scan.dcm")
    ran = in_shell(line)
    assert ran.returncode == (2 if "--json" in line else 12)
    assert "Traceback" not in ran.stderr


def test_an_error_does_not_end_up_in_the_data(box: Path, smp: Callable[..., Ran]) -> None:
    smp("encrypt", "scan.dcm")
    raw = (box / "scan.dcm.smp").read_bytes()
    (box / "cut.smp").write_bytes(raw[:-1])
    assert in_shell("smp decrypt cut.smp -o - 2>&- > out").returncode == 6
    assert b"smp:" not in (box / "out").read_bytes()
