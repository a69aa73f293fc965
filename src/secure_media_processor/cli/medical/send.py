"""smp medical send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.chosen_keys import keys_at_hand
from secure_media_processor.cli.medical.pacs import failure, grouped, open_server, server_options
from secure_media_processor.cli.options import PATH, key_option, output_options
from secure_media_processor.cli.schemas import Sent, SentFile
from secure_media_processor.cli.ui import Ui, counted, current
from secure_media_processor.errors import MissingError, SmpError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from secure_media_processor.medical.dicom.net.outgoing import OutgoingFile
    from secure_media_processor.medical.dicom.net.transfer import SendReport
    from secure_media_processor.medical.dicom.reader import Unreadable


@click.command()
@click.argument("server")
@click.argument("paths", metavar="PATH...", type=PATH, nargs=-1, required=True)
@click.option("--identified", is_flag=True, help="Send files that show who the patient is, or may.")
@server_options
@key_option
@output_options
def send(server: str, paths: tuple[Path, ...], *, identified: bool, key_file: Path | None, **way: Any) -> None:
    """Send DICOM files to an archive (PACS).

    Each PATH is a file or a folder. SERVER and the credentials are as for `smp medical fetch`.

    Nothing at all is sent if one of the files does not say of itself that the patient's identity was removed
    (PatientIdentityRemoved is YES, as `smp medical anonymize` writes it), or says that text is burned into its pixels. This
    is a net against mistakes: it believes the files. With --identified they are sent as they are.

    Files may be encrypted by `smp encrypt`, for --key or a key of the keystore. They are decrypted in memory only, and the
    archive gets the DICOM objects in them: what protects these on the way is the line.

    \b
    Examples:
      smp medical send https://pacs.example.org/dicom-web clean/ --credentials pacs.json
      smp medical send dicoms://ARCHIVE@pacs.example.org:2762 clean/ --aet RESEARCH --ca hospital.pem
    """
    from secure_media_processor.medical.dicom.net import transfer
    from secure_media_processor.medical.dicom.net.model import Limits
    from secure_media_processor.medical.dicom.net.outgoing import OutgoingFile, read_all

    ui = current()
    limits = Limits()
    with recorded("medical.send"):
        target = open_server(server, limits, **way)
        files: list[OutgoingFile] = []
        unreadable: list[Unreadable] = []
        for found in read_all(paths, keys_at_hand(key_file)):
            if isinstance(found, OutgoingFile):
                files.append(found)
            else:
                unreadable.append(found)
        if not (files or unreadable):
            raise MissingError("there are no files to send")
        if not identified:
            _refuse_identified(ui, files)
        with ui.counting("sending") as progress:
            report = transfer.send(target, files, limits=limits, progress=progress)
    _tell(ui, report, unreadable)


def _refuse_identified(ui: Ui, files: Sequence[OutgoingFile]) -> None:
    known = [file for file in files if file.identified]
    for file in known:
        ui.detail(f"{file.path}: {file.identified}")
    if known:
        message = f"{len(known)} of {counted(len(files), 'file')} may show who the patient is; nothing was sent"
        first = f"{known[0].path}: {known[0].identified}"
        raise UsageError(message, hint=f"{first}; use `smp medical anonymize`, or --identified if they may be seen there")


def _tell(ui: Ui, report: SendReport, unreadable: Sequence[Unreadable]) -> None:
    for bad in unreadable:
        ui.warn(f"{bad.path}: not sent: {bad.reason}")
    for text, count in grouped(report.failed.values()):
        ui.warn(f"{counted(count, 'file')} not sent: {text}")
    for file in report.failed:
        ui.detail(f"not sent: {file.path}")
    files = [SentFile(str(file.path), "sent", None) for file in report.sent]
    files += [SentFile(str(file.path), "failed", error.code) for file, error in report.failed.items()]
    files += [SentFile(str(bad.path), "unreadable", None) for bad in unreadable]
    files += [SentFile(str(file.path), "pending", None) for file in report.pending]
    ui.result(Sent(files), "")
    ui.say(f"{counted(len(report.sent), 'file')} sent")
    if report.stopped is not None:
        ui.say(f"{counted(len(report.pending), 'file')} still to be sent; run the same command again")
        raise report.stopped
    errors = [*report.failed.values(), *(SmpError(f"{bad.path}: {bad.reason}") for bad in unreadable)]
    if errors:
        raise failure(errors, len(files), "file")
