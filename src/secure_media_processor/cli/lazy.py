"""Groups of commands that import nothing before a command is chosen."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

Sections: TypeAlias = "Mapping[str, Mapping[str, tuple[str, str, str]]]"
"""Section of the help → command → (module below cli, attribute, help line). A test holds each line against the command's own
help."""
_HERE = __name__.rpartition(".")[0]


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is run or its own help is asked for."""

    def __init__(self, *args: Any, sections: Sections, **options: Any) -> None:
        """Make a group of the commands in `sections`."""
        super().__init__(*args, **options)
        self.sections = sections

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of all commands, as the help shows them."""
        return [name for section in self.sections.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """Import and return the command `cmd_name`."""
        for section in self.sections.values():
            if cmd_name in section:
                module, attribute, _ = section[cmd_name]
                command: click.Command = getattr(import_module(f"{_HERE}.{module}"), attribute)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        """Write the list of commands from the table, by section, without importing any."""
        for title, section in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, line) for name, (_, _, line) in section.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        """Complete names of commands from the table, without importing any."""
        from click.shell_completion import CompletionItem

        rows = [(name, line) for section in self.sections.values() for name, (_, _, line) in section.items()]
        commands = [CompletionItem(name, help=line) for name, line in rows if name.startswith(incomplete)]
        return commands + click.Command.shell_complete(self, ctx, incomplete)
