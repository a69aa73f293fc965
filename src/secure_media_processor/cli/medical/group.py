"""smp medical: the group; each command has a module of its own, imported when it is chosen."""

from __future__ import annotations

import click

from secure_media_processor.cli.lazy import LazyGroup, Sections

COMMANDS: Sections = {
    "De-identification": {
        "anonymize": ("medical.anonymize", "anonymize", "Take the patient out of DICOM files."),
        "reidentify": ("medical.reidentify", "reidentify", "Tell who stands behind a pseudonym."),
    },
}


@click.group(cls=LazyGroup, sections=COMMANDS)
def medical() -> None:
    """Read, de-identify and convert DICOM."""
