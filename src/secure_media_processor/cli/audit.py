"""smp audit."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.options import FILE, output_options
from secure_media_processor.cli.schemas import AuditRecord, AuditShown, AuditVerified
from secure_media_processor.cli.ui import current, table
from secure_media_processor.core.audit import AuditLog, Head
from secure_media_processor.core.config import get_settings
from secure_media_processor.core.encryption import read_file_id

if TYPE_CHECKING:
    from pathlib import Path

    from secure_media_processor.core.audit import Record


@click.group()
def audit() -> None:
    """Read and check the audit log."""


@audit.command()
@click.option("--file", "container", type=FILE, help="Only what was done to this encrypted file.")
@click.option("-n", "--last", type=click.IntRange(min=1), help="Only the last N records.")
@output_options
def show(container: Path | None, last: int | None) -> None:
    """Show the records, oldest first; the chain is checked on the way.

    \b
    Example:
      smp audit show --file scan.nii.gz.smp
    """
    log = AuditLog(get_settings().audit_log)
    records = list(log.records())
    if container is not None:
        wanted = log.object_id(read_file_id(container))
        records = [record for record in records if record.object == wanted]
    records = records[-last:] if last else records
    text = table(("seq", "time", "actor", "action", "object", "outcome"), [_row(record) for record in records])
    current().result(AuditShown([AuditRecord(**asdict(record)) for record in records]), text if records else "")


@audit.command()
@click.option("--head", metavar="N:HASH", help="Also check that this head, printed earlier, is still in the log.")
@output_options
def verify(head: str | None) -> None:
    """Check the chain of records and print its head.

    Keep the head somewhere else: with --head it shows later that the log was neither cut nor written anew.

    \b
    Example:
      smp audit verify > head.txt
      smp audit verify --head "$(cat head.txt)"
    """
    try:
        expected = Head.parse(head.strip()) if head is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--head") from None
    found = AuditLog(get_settings().audit_log).verify(expected)
    ui = current()
    ui.result(AuditVerified(found.seq, str(found)), str(found))
    ui.say(f"the audit log is intact: {found.seq} records")


def _row(record: Record) -> tuple[object, ...]:
    return (record.seq, record.ts, record.actor, record.action, record.object or "", record.outcome)
