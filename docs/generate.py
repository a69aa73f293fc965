"""Write docs/reference from the program itself: commands, what they print as JSON, errors, settings.

    python docs/generate.py [--check]

With --check nothing is written; the exit code is 1 if a page is not what it would be.
"""

from __future__ import annotations

import argparse
import ast
import csv
import dataclasses
import enum
import inspect
import sys
import types
import typing
from importlib.resources import files
from pathlib import Path

import click
from pydantic_core import PydanticUndefined
from pydicom.datadict import keyword_for_tag

from secure_media_processor import errors
from secure_media_processor.cli import demo as demo_command
from secure_media_processor.cli import main as command_line
from secure_media_processor.cli import schemas
from secure_media_processor.core.config import Settings
from secure_media_processor.medical.deid.profile import Option
from secure_media_processor.medical.deid.table import EDITION, read_table

if typing.TYPE_CHECKING:
    from collections.abc import Iterator

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


def meanings(kind: type) -> dict[str, str]:
    """Return what stands below each field of a dataclass, with those that it has from others."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            (tree,) = ast.parse(inspect.getsource(base)).body
            statements = tree.body if isinstance(tree, ast.ClassDef) else []
            for field, below in zip(statements, [*statements[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    text = below.value if isinstance(below, ast.Expr) else None
                    found[field.target.id] = " ".join(str(text.value).split()) if isinstance(text, ast.Constant) else ""
    return found


def described(kind: object) -> str:
    """Return a type in words, without what is inside objects."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return f"list of {described(inner[0])}s"
    if origin is dict:
        return f"object: {described(inner[0])} → {described(inner[1])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(described(one) for one in inner)
    if origin is typing.Literal:
        return " or ".join(f"`{one}`" for one in inner)
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        return " or ".join(f"`{one}`" for one in kind)
    if dataclasses.is_dataclass(kind):
        return "object"
    names = {str: "text", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}
    return names[typing.cast("type", kind)]


def fields_of(kind: type, path: str = "") -> Iterator[str]:
    """Yield the fields of a dataclass as rows of a table, each followed by those of the objects in it."""
    hints, texts = typing.get_type_hints(kind), meanings(kind)
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], f"{path}{field.name}"
        yield f"| `{name}` | {described(hint)} | {texts[field.name]} |"
        while typing.get_origin(hint) in (list, dict):
            name += "[]" if typing.get_origin(hint) is list else ".*"
            hint = typing.get_args(hint)[-1]
        if typing.get_origin(hint) is types.UnionType and typing.get_args(hint)[1:] == (types.NoneType,):
            hint = typing.get_args(hint)[0]
        if dataclasses.is_dataclass(hint) and inspect.isclass(hint):
            yield from fields_of(hint, f"{name}.")


def json_page() -> str:
    """Return the page of what commands print with --json."""
    page = [NOTE, "# JSON\n"]
    page.append(
        "With `--json` a command prints one JSON object on standard output. `schema` is the name of its form, with a version: "
        "fields may be added to a version, and what is there keeps its name and meaning. All fields are always there; one that "
        "does not apply is null. `files[].name` is the field `name` of each object in the list `files`, and `settings.*.value` "
        "that of each object in the object `settings`. Texts for people may change. A command that fails prints the object "
        "`smp.error/1` on standard error ([errors](errors.md)), and may have printed what it did before.\n"
    )
    for kind in schemas.every_result():
        summary = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
        page.append(f"## {kind.schema}\n\n{summary}\n\n| field | type | what it is |\n|---|---|---|")
        page += [*fields_of(kind), ""]
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


def deidentification_page() -> str:
    """Return the page of what is done with each attribute."""
    page = [NOTE, "# De-identification, attribute by attribute\n"]
    page.append(
        f"{EDITION}, as `smp medical anonymize` applies it ([how](../how-to/deidentify.md)). Where the standard leaves a "
        "choice, the one that is taken is shown: X the attribute is removed, Z emptied, D its value is replaced by one without "
        "meaning, U it is a UID and is replaced consistently. The option in the last column keeps (K) or cleans (C) it. "
        "Attributes that edition 2026c added have no options here. `x` stands for any digit.\n"
    )
    page.append("| tag | keyword | basic | options |\n|---|---|---|---|")
    flags = {option.column: f"--{option.value}" for option in Option if option.column}
    text = files("secure_media_processor.medical.deid").joinpath("basic_profile.csv").read_text("ascii")
    for row in csv.DictReader(text.splitlines()):
        tag, table = row["tag"], read_table()
        plain = tag != "private" and "x" not in tag
        found = table.row(int(tag, 16)) if plain else table.private
        basic = found.basic.value if found and (plain or tag == "private") else row["basic"]
        options = ", ".join(f"{row[column]} `{flag}`" for column, flag in flags.items() if row[column])
        name = keyword_for_tag(int(tag, 16)) if plain else "every private attribute" if tag == "private" else ""
        shown = f"({tag[:4]},{tag[4:]})" if tag != "private" else "odd groups"
        page.append(f"| {shown} | {name} | {basic} | {options} |")
    return "\n".join(page) + "\n"


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    pages = {
        "commands.md": commands(),
        "deidentification.md": deidentification_page(),
        "errors.md": error_page(),
        "json.md": json_page(),
        "settings.md": settings_page(),
    }
    for name, text in pages.items():
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
