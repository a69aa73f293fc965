"""How the program talks. These rules hold for every command.

* stdout carries the result: text, data, or with ``--json`` one JSON object (its fields stand in schemas.py), and nothing else.
* stderr carries the talk, each line beginning with ``smp:``, in lower case and without a full stop.
* An error is one line with cause and reason, then one ``smp: hint:`` line with the next step where there is one.
* ``-q`` and ``--json`` silence all talk but warnings and errors; ``-v`` adds detail.
* A progress bar is drawn on a terminal only, and only for work that takes a while. NO_COLOR and TERM=dumb are obeyed.
* Binary data goes to a terminal only if ``-o -`` says so.
* No secret, no patient data and no traceback is ever printed; names of files are, since the user gave them.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from threading import Timer
from typing import TYPE_CHECKING

import click

from secure_media_processor.core.files import os_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from rich.progress import Progress, TaskID

    from secure_media_processor.cli.schemas import Result
    from secure_media_processor.errors import SmpError

# Nobody wants to see a bar for what is done sooner.
_WORTH_A_BAR = 0.5  # seconds


@dataclass(slots=True)
class Ui:
    """How much to say, and in which form."""

    verbosity: int = 0
    """-1 quiet, 0 usual, 1 and more detailed."""
    json: bool = False

    def say(self, message: str) -> None:
        """Tell the user something on stderr, unless quiet."""
        if self.verbosity >= 0 and not self.json:
            _talk(message)

    def detail(self, message: str) -> None:
        """Tell the user something that only -v wants to know."""
        if self.verbosity > 0:
            _talk(message)

    def warn(self, message: str) -> None:
        """Tell the user what may go wrong later, even if quiet."""
        _talk(f"warning: {message}")

    def stopped(self) -> None:
        """Say that the user, or the system, ended the command."""
        _talk("interrupted")

    def fail(self, error: SmpError) -> None:
        """Report the error that ends the command."""
        if self.json:
            fields = {"code": error.code, "exit_code": error.exit_code, "message": str(error), "hint": error.hint}
            with suppress(OSError):  # as _talk
                print(json.dumps({"schema": "smp.error/1", **fields}), file=sys.stderr)
            return
        _talk(f"error: {error} [{error.code}]")
        if error.hint:
            _talk(f"hint: {error.hint}")

    def result(self, result: Result, text: str) -> None:
        """Print the result: the fields of `result` under the name of its schema with --json, `text` (if any) otherwise."""
        if self.json:
            shown = json.dumps({"schema": result.schema, **asdict(result)})
        else:
            shown = "\n".join(map(one_line, text.splitlines()))
        if shown:
            with os_errors("write to standard output"):
                print(shown, flush=True)

    @property
    def _draws(self) -> bool:
        """Whether bars are drawn at all."""
        on_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        return on_terminal and self.verbosity >= 0 and not self.json

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Callable[[int], None] | None]:
        """Yield a function to call with the bytes done so far; None where no bar is wanted.

        Args:
            what: A word or two, such as "encrypting".
            total: Bytes to be done; None if unknown.
        """
        if not self._draws:
            yield None
            return
        with self._bar(_Bar(what, total)) as bar:
            yield bar.update

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None] | None]:
        """As progress, for things that are counted: yield a function to call with how many are done, and how many there are."""
        if not self._draws:
            yield None
            return
        with self._bar(_Bar(what, None, counts=True)) as bar:

            def update(done: int, total: int) -> None:
                bar.total = total
                bar.update(done)

            yield update

    @contextmanager
    def _bar(self, bar: _Bar) -> Iterator[_Bar]:
        timer = Timer(_WORTH_A_BAR, bar.draw)
        timer.start()
        try:
            yield bar
        finally:
            timer.cancel()
            timer.join()
            bar.erase()


@dataclass(slots=True)
class _Bar:
    """A progress bar, once it is drawn."""

    what: str
    total: int | None
    done: int = 0
    """Bytes, or things."""
    counts: bool = False
    """Whether things are counted, not bytes."""
    drawn: Progress | None = None
    task: TaskID | None = None

    def draw(self) -> None:
        """Draw it. What takes long may be small, and wait for a slow store."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        amount = (MofNCompleteColumn(),) if self.counts else (DownloadColumn(), TransferSpeedColumn())
        columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn())
        drawn = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = drawn.add_task(self.what, total=self.total)
        drawn.start()
        self.drawn = drawn
        self.update(self.done)

    def update(self, done: int) -> None:
        """Show that `done` bytes are done."""
        self.done = done
        if self.drawn is not None and self.task is not None:
            # What is read is not yet stored: a full bar that stands still would look like a program that hangs.
            what = "finishing" if self.total is not None and done >= self.total > 0 else self.what
            self.drawn.update(self.task, completed=done, total=self.total, description=what)

    def erase(self) -> None:
        """Take it away."""
        if self.drawn is not None:
            self.drawn.stop()


def _talk(message: str) -> None:
    with suppress(OSError):  # whoever closed standard error does not want to hear
        print(f"smp: {one_line(message)}", file=sys.stderr)


def current() -> Ui:
    """Return the Ui of the running command."""
    ui = click.get_current_context().find_root().obj
    return ui if isinstance(ui, Ui) else Ui()


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, right: Collection[str] = ()) -> str:
    """Return rows as text in aligned columns; numbers, and the columns named in `right`, to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    numbers = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    to_right = [number or name in right for number, name in zip(numbers, header, strict=True)]

    def line(row: Sequence[str]) -> str:
        aligned = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, to_right, strict=True))
        return "  ".join(aligned).rstrip()

    return "\n".join(line(row) for row in ([name.upper() for name in header], *cells))


def human_size(size: int) -> str:
    """Return a number of bytes with a unit, powers of 1024: 1.5 MiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:  # noqa: PLR2004 - the step between two units
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def one_line(text: str) -> str:
    """Return `text` with line breaks and control characters shown, not obeyed: a file name may hold them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, thing: str) -> str:
    """Return "1 file", "2 files"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def summed(progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
    """Return a function that takes differences and passes on their sum; None for None."""
    if progress is None:
        return None
    total = 0

    def add(size: int) -> None:
        nonlocal total
        total += size
        progress(total)

    return add
