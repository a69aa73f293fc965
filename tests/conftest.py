"""What tests share: a home of their own, the program in this process or in one of its own, and keys."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import settings
from pydantic import TypeAdapter

from secure_media_processor.cli.main import main
from secure_media_processor.cli.schemas import Result, every_result
from secure_media_processor.core.config import set_flags
from secure_media_processor.core.keys import SymmetricKey

NO_SKIP = "SMP_TEST_NO_SKIP"
MAY_SKIP = "SMP_TEST_MAY_SKIP"
SCHEMAS = {kind.schema: kind for kind in every_result()}
# A busy machine must not turn a slow example into a failure: no test here is about time.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
# Whoever runs the tests in the background of a script has SIGINT ignored, and with it every program that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With SMP_TEST_NO_SKIP set, as in CI, a test that is skipped has failed, unless for the one thing in SMP_TEST_MAY_SKIP."""
    report = yield
    may_skip = os.environ.get(MAY_SKIP)
    excused = may_skip is not None and may_skip in str(report.longrepr)
    if report.skipped and os.environ.get(NO_SKIP) and not excused and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which {NO_SKIP} forbids: {report.longrepr}"
    return report


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home: no test reads or changes anything of the person who runs it."""
    folder = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(("SMP_", "XDG_")) and name not in {NO_SKIP, MAY_SKIP}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    set_flags({})
    yield folder
    set_flags({})


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def smp() -> Callable[..., Ran]:
    """Run the program in this process: quick, for the many cases."""
    runner = CliRunner()

    def run(*args: str | Path, stdin: bytes = b"") -> Ran:
        set_flags({})
        result = runner.invoke(main, [str(arg) for arg in args], input=stdin, prog_name="smp")
        if "--json" in args and result.stdout_bytes:
            refuse_what_is_not_documented(result.stdout_bytes)
        return Ran(result.exit_code, result.stdout_bytes, result.stderr)

    return run


@pytest.fixture
def smp_process() -> Callable[..., Ran]:
    """Run the program as a user does, in a process of its own."""

    def run(*args: str | Path, stdin: bytes = b"", **options: object) -> Ran:
        command = [sys.executable, "-m", "secure_media_processor", *map(str, args)]
        done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=120, **options)
        return Ran(done.returncode, done.stdout, done.stderr.decode())

    return run


@pytest.fixture
def key() -> SymmetricKey:
    return SymmetricKey.generate()


@pytest.fixture
def key_file(tmp_path: Path, key: SymmetricKey) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    key.save(folder / "test.key")
    return folder / "test.key"


def refuse_what_is_not_documented(printed: bytes) -> None:
    """Raise unless this is JSON as the class of its schema says, without a field more or less."""
    fields = json.loads(printed)
    schema = SCHEMAS[fields.pop("schema")]
    text = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")  # pydantic takes no names that are no Unicode
    result: Result = TypeAdapter(schema).validate_json(text, strict=True)
    assert json.loads(json.dumps(asdict(result))) == json.loads(text)


def left_in(folder: Path) -> set[str]:
    """Return the names of all files below `folder`, hidden ones too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
