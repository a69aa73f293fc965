"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from secure_media_processor.cli.ui import Ui

if TYPE_CHECKING:
    from collections.abc import Callable

_F = TypeVar("_F", bound="Callable[..., Any]")

FILE = click.Path(path_type=Path)


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
    quiet = click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_set_quiet, help="Say errors only.")
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
