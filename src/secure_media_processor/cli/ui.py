"""How the program talks. These rules hold for every command.

* stdout carries the result: text, data, or with ``--json`` one JSON object (JSON lines for long jobs), and nothing else.
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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from secure_media_processor.core.files import os_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from secure_media_processor.errors import SmpError

# Less than this takes about a tenth of a second: nobody wants to see a bar for it.
_WORTH_A_BAR = 64 * 1024 * 1024


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

    def result(self, schema: str, fields: dict[str, Any], text: str) -> None:
        """Print the result: `fields` under `schema` with --json, `text` (if any) otherwise."""
        shown = json.dumps({"schema": schema, **fields}) if self.json else "\n".join(map(one_line, text.splitlines()))
        if shown:
            with os_errors("write to standard output"):
                print(shown, flush=True)

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Callable[[int], None] | None]:
        """Yield a function to call with the bytes done so far; None where no bar is wanted.

        Args:
            what: A word or two, such as "encrypting".
            total: Bytes to be done; None if unknown.
        """
        on_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        if not on_terminal or self.verbosity < 0 or self.json or (total is not None and total < _WORTH_A_BAR):
            yield None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)


def _talk(message: str) -> None:
    with suppress(OSError):  # whoever closed standard error does not want to hear
        print(f"smp: {one_line(message)}", file=sys.stderr)


def current() -> Ui:
    """Return the Ui of the running command."""
    ui = click.get_current_context().find_root().obj
    return ui if isinstance(ui, Ui) else Ui()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as text in aligned columns; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        aligned = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True))
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
