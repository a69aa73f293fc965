"""smp medical verify-anonymized."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.chosen_keys import keys_at_hand
from secure_media_processor.cli.options import FILE, PATH, key_option, output_options
from secure_media_processor.cli.schemas import AnonymizationVerified, FileWithFindings, FoundViolation, UnreadFile
from secure_media_processor.cli.ui import counted, current, table
from secure_media_processor.errors import IdentityLeftError, PartialError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from secure_media_processor.medical.deid.verify import VerifyReport

# As `smp medical anonymize` names them; a test compares these with the library's, which this module must not import yet.
OPTIONS = {
    "retain-uids": "UIDs were kept.",
    "retain-device": "Identities of devices were kept.",
    "retain-institution": "Institutions were kept.",
    "retain-patient-characteristics": "Age, sex, size and the like were kept.",
    "retain-dates": "Dates and times were kept.",
    "shift-dates": "Dates were moved.",
    "retain-safe-private": "Private elements known to be safe were kept.",
    "clean-descriptors": "Descriptions were cleaned, not removed.",
    "clean-structured-content": "Reports were cleaned, not replaced.",
    "clean-graphics": "Graphics were cleaned, not removed.",
    "clean-pixels": "Text in pixels was masked.",
    "deface": "Faces were removed.",
}


def _profile_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add one flag for each option of the profile, handed over together with the others by name."""
    for name, meaning in reversed(OPTIONS.items()):
        command = click.option(f"--{name}", is_flag=True, help=meaning)(command)
    return command


@click.command("verify-anonymized")
@click.argument("original", metavar="ORIG", type=PATH)
@click.argument("output", metavar="OUT", type=PATH)
@click.option("--basic", is_flag=True, help="Allow no option: only the Basic Profile.")
@_profile_options
@click.option(
    "--at-least", metavar="NAME", multiple=True, help="Each file of OUT must state this: basic, or an option as above."
)
@click.option("--mapping", type=FILE, help="CSV of old and new SOPInstanceUIDs, to pair files by.")
@key_option
@output_options
def verify_anonymized(
    original: Path,
    output: Path,
    mapping: Path | None,
    at_least: tuple[str, ...],
    key_file: Path | None,
    *,
    basic: bool,
    **flags: bool,
) -> None:
    """Compare de-identified DICOM with its originals and say what is left.

    ORIG and OUT are files or folders. Files are paired by their contents. Table E.1-1 of PS3.15 is checked at every depth,
    every byte of OUT is searched for what the original says, and UIDs, dates and pixels are compared. Each file of OUT is
    believed as to the options it states, unless --basic or options are given here: then these are allowed and no others. No
    value is ever shown. Exit code 6 if anything is left, 3 if files could not be read, 0 if all is well.

    Files may be encrypted by `smp encrypt`, for --key or a key of the keystore: they are decrypted in memory only.

    \b
    Example:
      smp medical verify-anonymized study study-anonymous
    """
    from secure_media_processor.medical.deid.verify import read_mapping, verify_deidentified

    ui = current()
    chosen = [name.replace("_", "-") for name, given in flags.items() if given]
    report = verify_deidentified(
        original,
        output,
        options=chosen if chosen or basic else None,
        at_least=at_least,
        mapping=read_mapping(mapping) if mapping else None,
        identities=keys_at_hand(key_file),
    )
    ui.result(_result(report), _text(report))
    for bad in report.unreadable:
        ui.warn(f"{bad.path}: {bad.reason}")
    if report.missing:
        ui.say(f"{counted(len(report.missing), 'original')} without an output: quarantined or refused")
    for path in report.missing:
        ui.detail(f"{path} has no output")
    if report.lost:
        ui.warn(f"{counted(report.lost.total(), 'attribute')} that should have survived did not")
    if not report.is_clean:
        number = len([file for file in report.files if file.violations])
        raise IdentityLeftError(f"{counted(report.violations.total(), 'violation')} in {number} of {_files(report.outputs)}")
    if report.unreadable:
        raise PartialError(f"{_files(len(report.unreadable))} could not be read; nothing is wrong with the others")
    ui.say(f"{_files(report.pairs)} compared, {counted(report.elements, 'element')}: nothing is left")


def _files(number: int) -> str:
    return counted(number, "file")


def _result(report: VerifyReport) -> AnonymizationVerified:
    return AnonymizationVerified(
        clean=report.is_clean,
        originals=report.originals,
        outputs=report.outputs,
        pairs=report.pairs,
        elements=report.elements,
        violations={str(kind): count for kind, count in sorted(report.violations.items())},
        lost=dict(sorted(report.lost.items())),
        files=[
            FileWithFindings(
                str(file.output),
                str(file.original) if file.original else None,
                [FoundViolation(str(violation.kind), violation.place) for violation in file.violations],
                dict(file.lost),
            )
            for file in report.files
        ],
        missing=[str(path) for path in report.missing],
        unreadable=[UnreadFile(str(bad.path), bad.reason) for bad in report.unreadable],
    )


def _text(report: VerifyReport) -> str:
    """Return a table of what was found: in how many files, and where."""
    found = Counter((str(one.kind), one.place or "(the file)") for file in report.files for one in file.violations)
    rows = [(count, kind, place) for (kind, place), count in sorted(found.items())]
    rows += [(count, "lost", place) for place, count in sorted(report.lost.items())]
    return table(("files", "found", "place"), rows) if rows else ""
