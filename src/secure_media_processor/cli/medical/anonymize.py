"""smp medical anonymize."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.chosen_keys import decryption_keys, encryption_key
from secure_media_processor.cli.options import FILE, PATH, key_option, output_options
from secure_media_processor.cli.schemas import Anonymized, AnonymizedFile, MethodCode
from secure_media_processor.cli.ui import Ui, counted, current
from secure_media_processor.errors import MissingError, PartialError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from secure_media_processor.medical.deid.engine import DeidReport
    from secure_media_processor.medical.deid.profile import Profile

_F = TypeVar("_F", bound="Callable[..., Any]")

# The presets and options of medical/deid/profile.py; a test holds both against each other. Help must not import pydicom.
PROFILES = ("basic", "hipaa-safe-harbor", "tcia", "research")
OPTIONS = {
    "retain-uids": "Keep UIDs.",
    "retain-device": "Keep what identifies devices.",
    "retain-institution": "Keep what identifies the institution.",
    "retain-patient-characteristics": "Keep sex, age up to 89, size, weight and the like.",
    "retain-dates": "Keep all dates and times.",
    "shift-dates": "Move the dates of each patient by one random number of days, 31 to 3652 into the past.",
    "retain-safe-private": "Keep private attributes that are known to hold no identity.",
    "clean-descriptors": "Keep the words of descriptions that say what was imaged, in place of none.",
    "clean-structured-content": "Keep the tree of reports, with its text cleaned, in place of dummy values.",
    "clean-graphics": "Keep annotations without their text, and overlays that mark regions.",
    "clean-pixels": "Find text in suspected images and mask it, in place of quarantine (extra ocr).",
    "deface": "Paint over the face in CT, MR and PET of heads; what may show one otherwise is quarantined.",
}


def _profile_options(command: _F) -> _F:
    for name, line in reversed(OPTIONS.items()):
        command = click.option(f"--{name}", is_flag=True, help=line)(command)
    return command


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.argument("target", metavar="OUT", type=FILE)
@click.option("--profile", type=click.Choice(PROFILES), default="basic", show_default=True, help="What to begin with.")
@_profile_options
@click.option("--project", default="", help="The same patients get other pseudonyms in another project.")
@click.option("--mapping", type=FILE, help="Write, or complete, this encrypted file of what became what.")
@click.option("--processes", type=click.IntRange(1, 256), help="How many to work with; one a core unless given.")
@key_option
@output_options
def anonymize(  # noqa: PLR0917 - click hands them over by name
    source: Path,
    target: Path,
    profile: str,
    project: str,
    mapping: Path | None,
    processes: int | None,
    key_file: Path | None,
    **options: bool,
) -> None:
    """Take the patient out of DICOM files.

    IN is a file or a folder, OUT a folder to which every file is written under its new UIDs. What is done is the Basic
    Profile of DICOM PS3.15 with the options of --profile and of the flags. Pseudonyms, UIDs and moves of dates come from your
    key: the same key and project give the same ones in every run. Run again after an interruption it goes on.

    Files of IN may be encrypted by `smp encrypt`, for --key or a key of the keystore: they are decrypted in memory only. What
    is written to OUT is not encrypted.

    With --deface an average head is laid over the patient's, and what is face by it is painted over in all series that share
    its coordinates. It needs the data of pydeface: pip install --no-deps pydeface

    Images that may show a name in their pixels are quarantined: named, and not written. The exit code is 3 then, as for files
    that cannot be read.

    \b
    Examples:
      smp medical anonymize study/ clean/
      smp medical anonymize study/ clean/ --profile tcia --mapping mapping.smp
    """
    from secure_media_processor.medical.deid.engine import Deidentifier
    from secure_media_processor.medical.deid.mapping import Mapping
    from secure_media_processor.medical.deid.profile import Option, Profile

    ui = current()
    given = [Option(name) for name in OPTIONS if options[name.replace("-", "_")]]
    chosen = Profile.named(profile, given)
    with recorded("medical.anonymize"):
        key = encryption_key(key_file)
        deidentifier = Deidentifier(key.pseudonym_key(project), chosen)
        earlier = Mapping()
        if mapping is not None:
            _refuse_inside(mapping, target)
            if mapping.exists():
                earlier = Mapping.read(mapping, decryption_keys(key_file))
            deidentifier.refuse_foreign(earlier)
        with ui.counting("de-identifying") as progress:
            report = deidentifier.deidentify_folder(
                source,
                target,
                processes=processes or _processes(chosen),
                identities=decryption_keys(key_file),
                progress=progress,
            )
        if mapping is not None:
            report.mapping.merge(earlier)
            report.mapping.write(mapping, [key])
    _tell(ui, report, chosen)


def _processes(profile: Profile) -> int:
    from secure_media_processor.medical.deid.profile import Option

    cores = len(os.sched_getaffinity(0))
    # Each process that reads text takes up to 1 GB for it, and uses several cores by itself.
    return min(cores, 2) if Option.CLEAN_PIXELS in profile.options else cores


def _refuse_inside(mapping: Path, target: Path) -> None:
    if target.resolve() in mapping.resolve().parents:
        raise UsageError("the mapping would lie among the de-identified files", hint="name a place outside OUT")


def _tell(ui: Ui, report: DeidReport, profile: Profile) -> None:
    failed = [AnonymizedFile(str(bad.path), "unreadable", None, bad.reason) for bad in report.unreadable]
    failed += [AnonymizedFile(str(bad.path), "unwritten", None, bad.reason) for bad in report.unwritten]
    held = [AnonymizedFile(str(bad.path), "quarantined", None, bad.reason) for bad in report.quarantined]
    for bad in (*failed, *held):
        ui.warn(f"{bad.input}: {bad.outcome}: {bad.reason}")
    files = [AnonymizedFile(str(one.source), "written", str(one.target), None) for one in report.written]
    files += failed + held
    ui.result(
        Anonymized(
            files,
            dict(report.actions),
            report.table,
            [MethodCode(value, meaning) for value, meaning in report.codes],
            len(report.mapping.patients),
        ),
        "",
    )
    if not files:
        raise MissingError("there are no files in the folder")
    changed = ", ".join(f"{count} {_DONE[action]}" for action, count in sorted(report.actions.items()))
    ui.say(f"{counted(len(report.written), 'file')} of {counted(len(report.mapping.patients), 'patient')} written")
    if changed:
        ui.say(f"values: {changed}")
    ui.detail("method: " + "; ".join(meaning for _, meaning in profile.codes))
    if failed or held:
        message = f"{len(failed) + len(held)} of {counted(len(files), 'file')} not written: "
        counts = {"quarantined": len(held), "failed": len(failed)}
        message += ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        raise PartialError(message, hint="see the warnings above")


_DONE = {"C": "cleaned", "D": "replaced", "U": "UIDs replaced", "X": "removed", "Z": "emptied"}
