"""smp medical model verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.medical.named_models import package_path
from secure_media_processor.cli.options import PATH, output_options
from secure_media_processor.cli.schemas import ModelVerified
from secure_media_processor.cli.ui import current
from secure_media_processor.errors import IntegrityError

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("package", metavar="PACKAGE", type=PATH)
@click.option(
    "--engine",
    type=click.Choice(["auto", "torch", "openvino", "onnx"]),
    default="auto",
    help="What computes.  [default: as in `smp medical segment`]",
)
@output_options
def verify(package: Path, *, engine: Literal["auto", "torch", "openvino", "onnx"]) -> None:
    """Check a model package and run its self-test.

    Every file must be the one that the package names, the weights must be numbers and fit the network, and for an input that is
    made of a seed the network must give what it gave to its maker. This does not say who made it, or that it is any good.

    \b
    Example:
      smp medical model verify hippocampus/
    """
    ui = current()
    with recorded("medical.model.verify"):
        from secure_media_processor.medical.inference.packages import read_package
        from secure_media_processor.medical.inference.vectors import verify_vector
        from secure_media_processor.medical.unet.engines import choose

        read = read_package(package_path(package))
        choice = choose(read, engine=engine, precision="float32", device="cpu")
        found = verify_vector(read, choice)
        if found is not None and not found.passed:
            reason = f"{package}: the network does not compute what it did when the package was made"
            hint = f"its results differ by {found.largest_difference:.2g} with {choice.engine}; try another --engine"
            raise IntegrityError(reason, hint=hint)
    if found is None:
        ui.warn("the package has no self-test: its files are intact, and the network was not run")
    shown = ModelVerified(
        path=str(package),
        name=read.card.name,
        version=read.card.version,
        sha256=read.sha256,
        files=len(read.files) + 1,
        engine=None if found is None else choice.engine,
        largest_difference=None if found is None else found.largest_difference,
        tolerance=None if found is None else found.tolerance,
    )
    ui.result(shown, "")
    ui.say(f"{package} is intact{'' if found is None else ', and its network computes what it should'}")
