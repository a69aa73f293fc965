"""smp medical model install."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.options import FILE, force_option, output_options
from secure_media_processor.cli.schemas import ModelInstalled
from secure_media_processor.cli.ui import current
from secure_media_processor.core.config import get_settings

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("name", metavar="NAME", type=click.Choice(["brain-t1w"]))
@click.argument("target", metavar="[OUT]", type=FILE, required=False)
@force_option
@output_options
def install(name: str, target: Path | None, *, force: bool) -> None:
    """Make a model package from weights that are installed.

    brain-t1w finds the brain in T1-weighted MR images of heads. Its weights are in the Python package deepbet (MIT licence), of
    which nothing else is used: pip install --no-deps deepbet

    Without OUT the package goes to the folder of the setting `models`, and --model brain-t1w names it from then on.

    \b
    Examples:
      smp medical model install brain-t1w
      smp medical segment t1.nii.gz brain.nii.gz --model brain-t1w
    """
    ui = current()
    with recorded("medical.model.install"):
        from secure_media_processor.core.files import make_private_folder
        from secure_media_processor.medical.inference.installing import install_brain_t1w

        place = target
        if place is None:
            make_private_folder(get_settings().models)
            place = get_settings().models / name
        package = install_brain_t1w(place, overwrite=force)
    ui.result(ModelInstalled(str(place), package.card.name, package.card.version, package.sha256), "")
    ui.say(f"{name} installed: {place}")
