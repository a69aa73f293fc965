"""smp medical: the group; each command has a module of its own, imported when it is chosen."""

from __future__ import annotations

import click

from secure_media_processor.cli.lazy import LazyGroup, Sections

COMMANDS: Sections = {
    "Reading": {
        "dicom-info": ("medical.dicom_info", "dicom_info", "Show what is in a DICOM file, or which series a folder holds."),
    },
    "De-identification": {
        "anonymize": ("medical.anonymize", "anonymize", "Take the patient out of DICOM files."),
        "verify-anonymized": (
            "medical.verify_anonymized",
            "verify_anonymized",
            "Compare de-identified DICOM with its originals and say what is left.",
        ),
        "reidentify": ("medical.reidentify", "reidentify", "Tell who stands behind a pseudonym."),
    },
    "Conversion": {
        "convert": ("medical.convert", "convert", "Convert DICOM to PNG or NIfTI, and masks to DICOM SEG."),
    },
    "Analysis": {
        "preprocess": ("medical.preprocess", "preprocess", "Prepare MR volumes: bias field, noise, intensities, spacing."),
        "evaluate": ("medical.evaluate", "evaluate", "Measure segmentations, or predicted probabilities, against the truth."),
        "segment": ("medical.segment", "segment", "Segment an image with a model."),
        "model": ("medical.model", "model", "Look at model packages and check them."),
        "train": (
            "medical.train",
            "train",
            "Train a U-Net from images and label maps, or a classifier from images and their classes.",
        ),
    },
    "Network": {
        "fetch": ("medical.fetch", "fetch", "Fetch studies from a DICOM archive (PACS)."),
        "send": ("medical.send", "send", "Send DICOM files to an archive (PACS)."),
    },
}


@click.group(cls=LazyGroup, sections=COMMANDS)
def medical() -> None:
    """Read, de-identify, convert and analyse medical images."""
