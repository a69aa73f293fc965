"""smp medical fetch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.medical.pacs import failure, grouped, open_server, server_options
from secure_media_processor.cli.options import FILE, dry_run_option, output_options
from secure_media_processor.cli.schemas import Fetched, FetchedInstance, RemoteStudyFound
from secure_media_processor.cli.ui import Ui, counted, current, human_size, table
from secure_media_processor.errors import MissingError, SmpError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from secure_media_processor.medical.dicom.net.model import RemoteInstance, RemoteStudy
    from secure_media_processor.medical.dicom.net.transfer import FetchReport

Outcome: TypeAlias = Literal["fetched", "present", "failed", "pending"]


@click.command()
@click.argument("server")
@click.argument("target", metavar="OUT", type=FILE)
@click.option("--study", default="", metavar="UID", help="StudyInstanceUID.")
@click.option("--patient-id", default="", help="PatientID; * and ? are wildcards. It shows in your shell's history.")
@click.option("--accession", default="", help="AccessionNumber; * and ? are wildcards.")
@click.option("--date", "dates", default="", metavar="RANGE", help="StudyDate: YYYYMMDD, or YYYYMMDD-YYYYMMDD.")
@click.option("--modality", default="", help="Series of this modality only, such as CT.")
@click.option("--identifiers", is_flag=True, help="Show PatientID, name, AccessionNumber and date of the studies found.")
@click.option("--listen", metavar="[ADDRESS:]PORT", help="Have objects sent to this machine (C-MOVE), not fetched (C-GET).")
@click.option(
    "--max-size", type=click.IntRange(min=1), default=1024, show_default=True, help="Largest object that is taken, in MiB."
)
@server_options
@dry_run_option
@output_options
def fetch(
    server: str,
    target: Path,
    *,
    study: str,
    patient_id: str,
    accession: str,
    dates: str,
    modality: str,
    identifiers: bool,
    max_size: int,
    dry_run: bool,
    **way: Any,
) -> None:
    """Fetch studies from a DICOM archive (PACS).

    SERVER is dicoms://TITLE@host:port, or dicom://… without TLS, or the address of a DICOMweb service. Every study is fetched
    for which all holds that is given. Files are written as STUDY/SERIES/INSTANCE.dcm below OUT, named by UIDs, each when it is
    complete and has proved to be what was asked for. They hold the patient's data as the archive has it: `smp medical
    anonymize` comes next. Run again after an interruption it goes on.

    For DICOMweb the credentials stand in the file of --credentials, {"token": "…"} or {"user": "…", "password": "…"}, or in
    SMP_DICOMWEB_TOKEN, or SMP_DICOMWEB_USER and SMP_DICOMWEB_PASSWORD.

    \b
    Examples:
      smp medical fetch dicoms://ARCHIVE@pacs.example.org:2762 study/ --accession A1234 --ca hospital.pem
      smp medical fetch https://pacs.example.org/dicom-web ct/ --date 20240101-20240131 --modality CT --dry-run
    """
    from secure_media_processor.medical.dicom.net import transfer
    from secure_media_processor.medical.dicom.net.model import Limits, Query

    ui = current()
    query = Query(study, patient_id, accession, dates, modality)
    limits = Limits(max_object=max_size << 20)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is not a folder", hint="name a folder to put the files in")
    report: FetchReport | None = None
    with recorded("medical.fetch"):
        source = open_server(server, limits, **way)
        studies = transfer.find(source, query, limits)
        if not studies:
            raise MissingError("the server has no such study", hint="check what was asked for; --modality is that of a series")
        _say_found(ui, studies)
        if not dry_run:
            with ui.counting("fetching") as progress:
                report = transfer.fetch(source, studies, target, limits=limits, progress=progress)
    _tell(ui, studies, report, target, identifiers=identifiers)


def _say_found(ui: Ui, studies: Sequence[RemoteStudy]) -> None:
    series = sum(len(study.series) for study in studies)
    instances = sum(len(study.instances) for study in studies)
    ui.say(f"found {_studies(len(studies))}, {series} series, {counted(instances, 'instance')}")


def _tell(ui: Ui, studies: Sequence[RemoteStudy], report: FetchReport | None, target: Path, *, identifiers: bool) -> None:
    ui.result(
        Fetched(
            report is None, [_found(study, identifiers=identifiers) for study in studies], _instances(studies, report, target)
        ),
        _listing(studies, identifiers=identifiers) if report is None or identifiers else "",
    )
    if report is None:
        return
    for text, count in grouped(report.failed.values()):
        ui.warn(f"{counted(count, 'instance')} not fetched: {text}")
    for instance in report.failed:
        ui.detail(f"not fetched: {instance.uid}")
    present = f", {len(report.present)} were there already" if report.present else ""
    size = human_size(sum(report.fetched.values()))
    ui.say(f"{counted(len(report.fetched), 'instance')} fetched ({size}){present}")
    if report.stopped is not None:
        ui.say(f"{counted(len(report.pending), 'instance')} still to be fetched; run the same command again")
        raise report.stopped
    if report.failed:
        raise failure(report.failed.values(), sum(len(study.instances) for study in studies), "instance")


def _found(study: RemoteStudy, *, identifiers: bool) -> RemoteStudyFound:
    known = (study.patient_id, study.patient_name, study.accession, study.date) if identifiers else (None,) * 4
    return RemoteStudyFound(study.uid, len(study.series), len(study.instances), list(study.modalities), *known)


def _instances(studies: Sequence[RemoteStudy], report: FetchReport | None, target: Path) -> list[FetchedInstance]:
    found = []
    for instance in (one for study in studies for one in study.instances):
        outcome, error = _outcome(instance, report)
        path = str(target / instance.path) if outcome in ("fetched", "present") else None
        code = error.code if error else None
        found.append(FetchedInstance(instance.study_uid, instance.series_uid, instance.uid, outcome, path, code))
    return found


def _outcome(instance: RemoteInstance, report: FetchReport | None) -> tuple[Outcome, SmpError | None]:
    if report is None:
        return "pending", None
    if instance in report.fetched:
        return "fetched", None
    if instance in report.failed:
        return "failed", report.failed[instance]
    return ("pending" if instance in report.pending else "present"), None


def _listing(studies: Sequence[RemoteStudy], *, identifiers: bool) -> str:
    header = ["study", "modalities", "series", "instances"]
    rows: list[list[object]] = [
        [study.uid, ",".join(study.modalities), len(study.series), len(study.instances)] for study in studies
    ]
    if identifiers:
        header += ["patient id", "name", "accession", "date"]
        for row, study in zip(rows, studies, strict=True):
            row += [study.patient_id, study.patient_name, study.accession, study.date]
    return table(header, rows)


def _studies(count: int) -> str:
    return "1 study" if count == 1 else f"{count} studies"
