"""Write docs/reference from the program itself: commands, errors, settings.

    python docs/generate.py [--check]

With --check nothing is written; the exit code is 1 if a page is not what it would be.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path

import click
from pydantic_core import PydanticUndefined

from secure_media_processor import errors
from secure_media_processor.cli import demo as demo_command
from secure_media_processor.cli import main as command_line
from secure_media_processor.core.config import Settings

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Made by `make docs` from the program. Changes belong there. -->\n"
EXIT_CODES = {
    0: "done",
    1: "error",
    2: "the command or a setting makes no sense",
    3: "partial: some items failed",
    4: "a key or credentials are missing or refused",
    5: "a licence is missing (not used by this version)",
    6: "an integrity check or decryption failed",
    7: "not found",
    8: "exists, and was not replaced",
    9: "degraded: enough stores have it, a repair is pending",
    10: "an extra or a device is missing",
    11: "a transient failure: try again",
    12: "disk or quota is full",
    130: "interrupted",
}


def commands() -> str:
    """Return the page of all commands: their help, word for word."""
    page = [NOTE, "# Commands\n", "What `smp COMMAND --help` prints.\n"]

    def add(command: click.Command, name: str, parent: click.Context | None) -> None:
        context = click.Context(
            command, info_name=name, parent=parent, terminal_width=100, max_content_width=100, **command.context_settings
        )
        page.append(f"{'#' * (2 if parent else 1)}# {context.command_path}\n")
        page.append(f"```text\n{command.get_help(context)}\n```\n")
        if isinstance(command, click.Group):
            for child in command.list_commands(context):
                found = command.get_command(context, child)
                if found is not None:
                    add(found, child, context)

    add(command_line.main, "smp", None)
    return "\n".join(page)


def every_error() -> list[type[errors.SmpError]]:
    """Return the classes of the tree in the order in which they stand in the code, then those of the command line."""
    tree = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.SmpError)]
    return [*tree, demo_command.DemoFailedError, command_line.InternalError]


def error_page() -> str:
    """Return the page of error codes and exit codes."""
    page = [NOTE, "# Errors and exit codes\n"]
    page.append(
        "Every error is one line with a code, `smp: error: … [SMP-…]`, and where possible a second one with the next step. "
        "Codes and exit codes are stable. A script should treat every exit code that it does not know as a failure. With "
        "`--json` the error is one JSON object on standard error: "
        '`{"schema": "smp.error/1", "code", "exit_code", "message", "hint"}`.\n'
    )
    page.append("| exit code | meaning |\n|---|---|")
    page += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    page.append("")
    for kind in every_error():
        summary = inspect.cleandoc(kind.__doc__ or "").split("\n\n", maxsplit=1)[0].replace("\n", " ")
        page.append(f"## {kind.code}\n\n{summary}\n")
        retry = " The same command may succeed later." if kind.retryable else ""
        page.append(f"Exit code {kind.exit_code}.{retry} In the library: `{kind.__name__}`.\n")
        if kind.default_hint:
            page.append(f"Next step: {kind.default_hint}.\n")
    return "\n".join(page)


def settings_page() -> str:
    """Return the page of settings."""
    page = [NOTE, "# Settings\n"]
    page.append(
        "A value is taken from the first of these that has it: `smp -c NAME=VALUE`, the environment variable, `smp.toml` in "
        "the working directory, the user's `config.toml`, the default. `smp config show` tells which it was. `smp.toml` is "
        "read only after `smp config trust`, and once more after each change; relative paths in a file count from its folder. "
        "An empty variable counts as none.\n"
    )
    page.append("| setting | environment | default | what it is |\n|---|---|---|---|")
    for name, field in Settings.model_fields.items():
        default = "the user's own folder" if field.default is PydanticUndefined else f"`{field.default}`"
        page.append(f"| `{name}` | `SMP_{name.upper()}` | {default} | {field.description} |")
    page.append('\n```toml\n# smp.toml\nkeystore = "keys"\naudit_on_failure = "stop"\n```\n')
    return "\n".join(page)


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, text in {"commands.md": commands(), "errors.md": error_page(), "settings.md": settings_page()}.items():
        path = REFERENCE / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.write_text(text)
                print(f"wrote docs/reference/{name}")
    if check and stale:
        print(f"not up to date, run `make docs`: {', '.join(stale)}", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
