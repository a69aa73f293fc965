"""Options that several commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from secure_media_processor.cli.ui import Ui
from secure_media_processor.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem

    from secure_media_processor.core.files import Source

_F = TypeVar("_F", bound="Callable[..., Any]")

# Standard input or output, written as a single hyphen. The file of that name is ./-
PIPE = Path("-")


class _FileOrPipe(click.ParamType[Path]):
    """A path, or PIPE for a hyphen."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ARG002 - see click
        path = Path(value)
        return PIPE if value == "-" else path.absolute() if path == PIPE else path

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return FILE.shell_complete(ctx, param, incomplete)


FILE = click.Path(path_type=Path)
# What cannot be read is told when it is its turn, and holds up nothing else: click would refuse the whole command.
PATH = click.Path(path_type=Path, readable=False)
FILE_OR_PIPE = _FileOrPipe()


def standard_input() -> Source:
    """Return standard input as a source of bytes."""
    return cast("Source", sys.stdin.buffer)  # a buffered reader has readinto, which the type BinaryIO does not know


def refuse_terminal(what: str) -> None:
    """Raise UsageError if standard output is a terminal."""
    if sys.stdout.isatty():
        raise UsageError(f"{what} would go to the terminal", hint="name a file, or send standard output somewhere else")


def _root_ui(context: click.Context) -> Ui:
    root = context.find_root()
    ui = root.obj if isinstance(root.obj, Ui) else Ui()
    root.obj = ui
    return ui


def _set_quiet(context: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value:
        _root_ui(context).verbosity = -1


def _set_verbose(context: click.Context, _option: click.Parameter, value: int) -> None:
    if value:
        _root_ui(context).verbosity = value


def _set_json(context: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value:
        _root_ui(context).json = True


def talk_options(command: _F) -> _F:
    """Add -q and -v."""
    quiet = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_set_quiet,
        help="Say errors only; results are still printed.",
    )
    verbose = click.option("-v", "--verbose", count=True, expose_value=False, callback=_set_verbose, help="Say more.")
    return quiet(verbose(command))


def output_options(command: _F) -> _F:
    """Add --json, -q and -v."""
    as_json = click.option(
        "--json", is_flag=True, expose_value=False, is_eager=True, callback=_set_json, help="Print the result as JSON."
    )
    return as_json(talk_options(command))


def key_option(command: _F) -> _F:
    """Add --key, handed over as `key_file`."""
    option = click.option("--key", "key_file", type=FILE, help="Key file to use instead of the keystore.")
    return option(command)


def force_option(command: _F) -> _F:
    """Add --force."""
    return click.option("--force", is_flag=True, help="Replace the output if it exists.")(command)


def dry_run_option(command: _F) -> _F:
    """Add --dry-run."""
    return click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")(command)
