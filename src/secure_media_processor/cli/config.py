"""smp config."""

from __future__ import annotations

import click

from secure_media_processor.cli.options import output_options
from secure_media_processor.cli.schemas import ConfigShown, ConfigTrusted, Setting
from secure_media_processor.cli.ui import current, table
from secure_media_processor.core.config import get_loaded, project_file
from secure_media_processor.core.config import trust as trust_file


@click.group()
def config() -> None:
    """Show the settings and where they come from."""


@config.command()
@output_options
def trust() -> None:
    """Trust the file smp.toml in the working directory, as it is now.

    It is read only after this, and again after each change: it could name keys of somebody else. Look into it first.

    \b
    Example:
      cat smp.toml
      smp config trust
    """
    path = project_file()
    trust_file(path)
    ui = current()
    ui.result(ConfigTrusted(str(path)), "")
    ui.say(f"{path} is trusted until it changes")


@config.command()
@output_options
def show() -> None:
    """Show each setting, its value and where that came from.

    Strongest first: `smp -c NAME=VALUE`, the environment (SMP_NAME), smp.toml in the working directory, the user's own file,
    the default.
    """
    loaded = get_loaded()
    values = loaded.settings.model_dump(mode="json")
    rows = [(name, "" if value is None else value, loaded.origins[name]) for name, value in values.items()]
    settings = {name: Setting(value, loaded.origins[name]) for name, value in values.items()}
    current().result(ConfigShown(settings), table(("setting", "value", "origin"), rows))
