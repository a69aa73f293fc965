"""smp medical reidentify."""

from __future__ import annotations

import csv
from io import StringIO
from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.chosen_keys import decryption_keys
from secure_media_processor.cli.options import FILE, key_option, output_options
from secure_media_processor.cli.schemas import Original, Reidentified
from secure_media_processor.cli.ui import current, table
from secure_media_processor.core.files import write_file
from secure_media_processor.errors import MissingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--mapping", type=FILE, required=True, help="The file that `smp medical anonymize --mapping` wrote.")
@click.option("--patients-csv", type=FILE, help="Write old and new PatientID of all patients into this new file.")
@click.option("--uids-csv", type=FILE, help="Write old and new of all UIDs into this new file.")
@key_option
@output_options
def reidentify(
    names: tuple[str, ...], mapping: Path, patients_csv: Path | None, uids_csv: Path | None, key_file: Path | None
) -> None:
    """Tell who stands behind a pseudonym.

    Each NAME is a PatientID or UID of a de-identified file; its original is printed. Dates of the patient are moved back by
    the number of days that is told with it. The two CSV files have the columns old and new; they are not encrypted.

    \b
    Examples:
      smp medical reidentify SMP-ABCDEFGHIJKLMNOP --mapping mapping.smp
      smp medical reidentify --mapping mapping.smp --uids-csv uids.csv
    """
    from secure_media_processor.medical.deid.mapping import Mapping

    if not names and patients_csv is None and uids_csv is None:
        raise UsageError("there is nothing to do", hint="name a PatientID or UID, or --patients-csv or --uids-csv")
    with recorded("medical.reidentify"):
        found = Mapping.read(mapping, decryption_keys(key_file))
        originals = found.original_of()
        unknown = [name for name in names if name not in originals]
        if unknown:
            raise MissingError(f"{unknown[0]} is not in {mapping}", hint="it may be from another run, key or project")
        if patients_csv is not None:
            write_file(patients_csv, _csv((patient.patient_id, new) for new, patient in found.patients.items()))
        if uids_csv is not None:
            write_file(uids_csv, _csv(found.uids.items()))
    days = {name: found.patients[name].days if name in found.patients else None for name in names}
    rows = [(name, originals[name], "" if days[name] is None else days[name]) for name in names]
    answers = [Original(name, originals[name], days[name]) for name in names]
    current().result(Reidentified(answers), table(("new", "old", "days moved"), rows) if rows else "")


def _csv(pairs: Iterable[tuple[str, str]]) -> bytes:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("old", "new"))
    writer.writerows(sorted(pairs))
    return text.getvalue().encode()
