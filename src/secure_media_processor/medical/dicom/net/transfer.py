"""Fetching studies from a server and sending files to one, over lines that break."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secure_media_processor.errors import TransientError
from secure_media_processor.medical.dicom.net.incoming import Incoming
from secure_media_processor.medical.dicom.net.model import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from secure_media_processor.errors import SmpError
    from secure_media_processor.medical.dicom.net.model import PacsServer, Query, RemoteInstance, RemoteStudy
    from secure_media_processor.medical.dicom.net.outgoing import OutgoingFile


@dataclass(frozen=True, slots=True)
class FetchReport:
    """What became of the instances that were asked for: each is in exactly one of the four."""

    fetched: Mapping[RemoteInstance, int]
    """Written, and how many bytes."""
    present: Sequence[RemoteInstance]
    """Left as they were: they had been fetched before."""
    failed: Mapping[RemoteInstance, SmpError]
    pending: Collection[RemoteInstance]
    """Not tried, or cut off: the same call may fetch them later."""
    stopped: TransientError | None
    """What ended the work; None if it went to its end."""


@dataclass(frozen=True, slots=True)
class SendReport:
    """What became of files: each is in exactly one of the three."""

    sent: Sequence[OutgoingFile]
    failed: Mapping[OutgoingFile, SmpError]
    pending: Sequence[OutgoingFile]
    stopped: TransientError | None
    """As in FetchReport."""


def find(server: PacsServer, query: Query, limits: Limits | None = None) -> list[RemoteStudy]:
    """Return the studies that fit, trying again where the line breaks. Raises as PacsServer.find."""
    limits = limits or Limits()
    found: list[RemoteStudy] = []

    def ask() -> None:
        found[:] = server.find(query)

    stopped = _patiently(ask, lambda: 0, limits)
    if stopped is not None:
        raise stopped
    return found


def fetch(
    server: PacsServer,
    studies: Sequence[RemoteStudy],
    folder: Path,
    *,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FetchReport:
    """Fetch all instances of `studies` into `folder`, as STUDY/SERIES/INSTANCE.dcm, each named by its UID.

    Run again it goes on: what is there is not fetched again.

    Raises:
        CredentialsError, SmpError: as PacsServer.fetch.
        NoSpaceError, FileAccessError: the folder cannot be written to.
    """
    limits = limits or Limits()
    incoming = Incoming(folder, [one for study in studies for one in study.instances], limits, progress)
    stopped = None
    if incoming.pending:
        stopped = _patiently(lambda: server.fetch(incoming), lambda: len(incoming.pending), limits)
    return FetchReport(incoming.fetched, incoming.present, incoming.failed, set(incoming.pending), stopped)


def send(
    server: PacsServer,
    files: Sequence[OutgoingFile],
    *,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SendReport:
    """Store `files` at the server. One that it has already is stored again, which changes nothing.

    Raises CredentialsError or SmpError, as PacsServer.send.
    """
    limits = limits or Limits()
    sent: list[OutgoingFile] = []
    failed: dict[OutgoingFile, SmpError] = {}
    pending = dict.fromkeys(files)

    def done(file: OutgoingFile, error: SmpError | None) -> None:
        del pending[file]
        if error is None:
            sent.append(file)
        else:
            failed[file] = error
        if progress is not None:
            progress(len(files) - len(pending), len(files))

    stopped = _patiently(lambda: server.send(list(pending), done), lambda: len(pending), limits) if files else None
    return SendReport(sent, failed, list(pending), stopped)


def _patiently(act: Callable[[], object], left: Callable[[], int], limits: Limits) -> TransientError | None:
    """Call `act` until it comes to its end. Returns why it does not, after as many attempts in a row as change nothing.

    Only a TransientError is worth another attempt. `left` tells how much is to be done, by which progress is seen.
    """
    failures = 0
    while True:
        before = left()
        try:
            act()
        except TransientError as error:
            failures = failures + 1 if left() == before else 1
            if failures >= limits.attempts:
                return error
            time.sleep(limits.pause * 2 ** (failures - 1))
        else:
            return None
