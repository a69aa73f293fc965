"""The documentation is true: its snippets run, its links lead somewhere, its reference is what the program says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import secure_media_processor

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")
# What a reader does not type: output, diagrams, file contents, and the make targets (which CI and a fresh clone run anyway).
NOT_RUN = {"", "text", "toml", "mermaid", "sh"}


@dataclass(frozen=True)
class Snippet:
    kind: str
    text: str


def snippets(page: Path) -> list[Snippet]:
    return [Snippet(*match.groups()) for match in BLOCK.finditer(page.read_text())]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_known_kind(page: Path) -> None:
    assert {s.kind for s in snippets(page)} <= NOT_RUN | {"console", "python"}


def run_console(text: str, folder: Path, env: dict[str, str]) -> None:
    """Run each line that begins with `$ ` and compare what it shows; … stands for anything."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        pattern = re.escape(expected.strip()).replace("…", ".*")
        assert re.fullmatch(pattern, done.stdout.strip(), re.DOTALL), f"{command}\n{done.stdout}"


@pytest.mark.parametrize("page", [p for p in PAGES if {s.kind for s in snippets(p)} - NOT_RUN], ids=name_of)
def test_snippets_run(page: Path, work: Path, home: Path) -> None:
    """All snippets of a page run in one folder, in order, as a reader would type them."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = 0
    for snippet in snippets(page):
        if snippet.kind == "console":
            run_console(snippet.text, work, env)
            ran += 1
        elif snippet.kind == "python":
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", snippet.text],
                cwd=work,
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            ran += 1
    assert ran


def test_the_example_in_the_package_runs(work: Path) -> None:
    Path("study.nii.gz").write_bytes(b"data")
    doc = secure_media_processor.__doc__ or ""
    code = "\n".join(line[4:] for line in doc.splitlines() if line.startswith("    "))
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
    assert Path("copy.nii.gz").read_bytes() == b"data"


def test_the_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_can_be_imported() -> None:
    for name in secure_media_processor.__all__:
        assert getattr(secure_media_processor, name) is not None
    assert set(dir(secure_media_processor)) == set(secure_media_processor.__all__)
    with pytest.raises(AttributeError):
        _ = secure_media_processor.nonsense
