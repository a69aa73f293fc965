"""smp medical model: the group; each command has a module of its own."""

from __future__ import annotations

import click

from secure_media_processor.cli.lazy import LazyGroup, Sections

COMMANDS: Sections = {
    "Packages": {
        "install": ("medical.model_install", "install", "Make a model package from weights that are installed."),
        "info": ("medical.model_info", "info", "Show what a model package says of its model."),
        "verify": ("medical.model_verify", "verify", "Check a model package and run its self-test."),
    },
}


@click.group(cls=LazyGroup, sections=COMMANDS)
def model() -> None:
    """Look at model packages and check them."""
