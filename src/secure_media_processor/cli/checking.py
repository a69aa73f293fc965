"""smp cloud verify, smp cloud repair and smp cloud prune."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.archive import open_archive
from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.options import key_option, output_options
from secure_media_processor.cli.outcomes import warn_of_memory
from secure_media_processor.cli.schemas import (
    BadCopy,
    IndexTrouble,
    MendedCopy,
    StoresPruned,
    StoresRepaired,
    StoresVerified,
    StrayObject,
)
from secure_media_processor.cli.ui import Ui, counted, current, one_line, summed, table
from secure_media_processor.cloud.index import PREFIX
from secure_media_processor.cloud.objects import ObjectState, ReplicaState
from secure_media_processor.cloud.pruning import GRACE
from secure_media_processor.errors import DegradedError, ObjectLostError, WrongKeyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from secure_media_processor.cloud.archive import Report
    from secure_media_processor.cloud.objects import ObjectStatus
    from secure_media_processor.cloud.pruning import Stray

_DAY = 86400.0  # seconds


@click.command()
@click.option("--deep", is_flag=True, help="Fetch and decrypt every copy.")
@key_option
@output_options
def verify(key_file: Path | None, *, deep: bool) -> None:
    """Check every copy of everything in your stores.

    Each store is asked for its own digest of each object, which is compared with that of what was sent; nothing is fetched.
    Exit code 0 if all is well, 9 if copies are damaged, missing or out of reach and others are intact, 6 if a file is lost or
    the index of a store was set back.

    \b
    Example:
      smp cloud verify
    """
    ui = current()
    with recorded("cloud.verify"), open_archive(key_file) as archive:
        with ui.progress("checking", None) as progress:
            report = archive.verify(deep=deep, progress=summed(progress))
        ui.result(StoresVerified(*_fields(report)), _table(_rows(report)))
        warn_of_memory(ui, archive)
        _judge(ui, "verify", report)


@click.command()
@click.option("--deep", is_flag=True, help="Fetch and decrypt every copy first: a store may not know that its copy is damaged.")
@key_option
@output_options
def repair(key_file: Path | None, *, deep: bool) -> None:
    """Copy what a store lacks from one that has it, and remove what was removed elsewhere.

    What was copied to which store, what was removed and what could not be mended is shown. What is copied is encrypted, and
    stays so. Exit codes are those of verify, afterwards.

    \b
    Example:
      smp cloud repair
    """
    ui = current()
    with recorded("cloud.repair"), open_archive(key_file) as archive:
        with ui.progress("checking and copying", None) as progress:
            report = archive.repair(deep=deep, progress=summed(progress))
        mended = [MendedCopy(one.key, _names(report, one.key), one.store, one.was) for one in report.mended]
        removed = {name: list(keys) for name, keys in report.removed.items()}
        done = [(one.store, "mended", _files_in(report, one.key), f"was {one.was}") for one in report.mended]
        done += [(name, "removed", _files_in(report, key), "") for name, keys in removed.items() for key in keys]
        ui.result(StoresRepaired(*_fields(report), mended, removed), _table([*done, *_rows(report)]))
        for name, number in Counter(one.store for one in report.mended).items():
            ui.say(f"{name} has {counted(number, 'object')} again that it lacked or had damaged")
        for name, keys in removed.items():
            ui.say(f"{counted(len(keys), 'object')} removed from {name}")
        _judge(ui, "repair", report)


@click.command()
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=GRACE / _DAY,
    show_default=True,
    metavar="DAYS",
    help="How long an object must have been seen with nothing that refers to it. Less is dangerous.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and do nothing.")
@key_option
@output_options
def prune(key_file: Path | None, *, grace: float, dry_run: bool) -> None:
    """Remove objects that nothing refers to: uploads that died have left them behind.

    The first time this only remembers which there are; what is still so after a week the next time removes. An upload that is
    under way on another machine has objects like that, too: with a shorter --grace make sure that there is none, or its files
    are lost. Nothing is removed unless all stores answer and all of the index can be read.

    \b
    Example:
      smp cloud prune --dry-run
    """
    ui = current()
    with recorded("cloud.prune.dry-run" if dry_run else "cloud.prune"), open_archive(key_file) as archive:
        pruned = archive.prune(grace=grace * _DAY, dry_run=dry_run)
        removed, kept = _strays(pruned.removed), _strays(pruned.kept)
        verb = "would go" if dry_run else "removed"
        rows = [
            (state, one.object, str(one.size), f"{one.seen_for / _DAY:.1f}", " ".join(one.stores))
            for state, some in ((verb, removed), ("kept", kept))
            for one in some
        ]
        text = table(("state", "object", "bytes", "days", "stores"), rows) if rows else ""
        ui.result(StoresPruned(dry_run, removed, kept, archive.degraded), text)
        ui.say(f"{counted(len(removed), 'object')} {verb}, {len(kept)} kept")
        if archive.degraded:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in archive.degraded.items())
            raise DegradedError(f"not every store let go of everything ({reasons})", hint="run `smp cloud repair`")


def _strays(strays: Sequence[Stray]) -> list[StrayObject]:
    return [StrayObject(stray.key, stray.size, list(stray.stores), stray.seen_for) for stray in strays]


def _fields(report: Report) -> tuple[int, ObjectState, list[BadCopy], IndexTrouble, dict[str, str], dict[str, list[str]]]:
    """Return the fields of StoresVerified."""
    taken_back = {name: list(ids) for name, ids in report.taken_back.items()}
    index = IndexTrouble(taken_back, {name: sorted(ids) for name, ids in report.unreadable.items()})
    unreachable = {name: str(error) for name, error in report.unreachable.items()}
    leftovers = {name: list(keys) for name, keys in report.leftovers.items()}
    return len(report.objects), report.worst, _bad_copies(report), index, unreachable, leftovers


def _bad_copies(report: Report) -> list[BadCopy]:
    return [
        BadCopy(status.object.key, _names(report, status.object.key), name, replica.state, replica.reason)
        for status in report.objects
        for name, replica in status.replicas.items()
        if replica.state is not ReplicaState.INTACT
    ]


def _rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Return the copies that are not intact as rows of a table.

    What a store has that does not answer is nothing but a guess: that it does not answer is said once, as a warning.
    """
    shown = [copy for copy in _bad_copies(report) if copy.store not in report.unreachable]
    return [(copy.store, str(copy.state), _files_in(report, copy.object), copy.reason) for copy in shown]


def _table(rows: Sequence[tuple[str, str, str, str]]) -> str:
    return table(("store", "copy", "of", "reason"), rows) if rows else ""


def _names(report: Report, key: str) -> list[str]:
    return list(report.names.get(key, ()))


def _judge(ui: Ui, command: str, report: Report) -> None:
    """Say what was found. Raises unless all is well."""
    troubled = [status for status in report.objects if status.state is not ObjectState.FULL]
    for name, ids in report.taken_back.items():
        ui.warn(f"{name} has lost {_records(len(ids))} that it had: it was set back, or somebody removed them")
    for name, bad in report.unreadable.items():
        foreign = sum(isinstance(error, WrongKeyError) for error in bad.values())
        if foreign:
            ui.warn(f"{name} holds {_records(foreign)} for other keys than those at hand: what they tell of is not shown")
        if foreign < len(bad):
            ui.warn(f"{name} holds {_records(len(bad) - foreign)} that cannot be read: damaged, or put there by somebody else")
    for name, error in report.unreachable.items():
        ui.warn(f"{name} does not answer: {error}")
    for name, keys in report.leftovers.items():
        ui.detail(f"{name} holds {counted(len(keys), 'object')} that nothing refers to")
    every = counted(len(report.objects), "object")
    lost = [status for status in troubled if status.state is ObjectState.LOST and not _may_return(status)]
    if lost:
        hint = "remove what cannot be had any more with `smp rm`, then upload the originals again"
        raise ObjectLostError(f"{len(lost)} of {every} cannot be had any more", hint=hint)
    if report.taken_back:
        raise ObjectLostError("the index of a store was set back", hint="`smp cloud repair` gives it back what it lacks")
    if troubled or report.unreachable or report.unreadable:
        raise _degraded(command, report, every)
    verb = "is" if len(report.objects) == 1 else "are"
    ui.say(f"{every} {verb} intact in every store" if report.objects else "there is nothing in your stores")


def _degraded(command: str, report: Report, every: str) -> DegradedError:
    """Return the error that says what is not as it should be, and what helps against that."""
    pending = {copy.object for copy in _bad_copies(report) if copy.store not in report.unreachable}
    if pending:
        helps = "run `smp cloud repair`" if command == "verify" else "see the reasons above, then run `smp cloud repair` again"
        verb = "is" if len(pending) == 1 else "are"
        return DegradedError(f"{len(pending)} of {every} {verb} not intact in every store", hint=helps)
    if report.unreachable:
        names = ", ".join(report.unreachable)
        return DegradedError(f"not all stores answer: {names}", hint="run `smp cloud repair` when they are back")
    errors = {record: error for bad in report.unreadable.values() for record, error in bad.items()}
    foreign = sum(isinstance(error, WrongKeyError) for error in errors.values())
    if foreign:
        hint = "`smp key list` shows the keys at hand, and `smp key import FILE` brings another"
        verb = "is" if foreign == 1 else "are"
        return DegradedError(f"{_records(foreign)} {verb} for other keys than those at hand", hint=hint)
    helps = "run `smp cloud repair`" if command == "verify" else "no store has them intact"
    return DegradedError(f"{_records(len(errors))} cannot be read", hint=helps)


def _records(number: int) -> str:
    return f"{counted(number, 'record')} of the index"


def _may_return(status: ObjectStatus) -> bool:
    return any(replica.state is ReplicaState.UNREACHABLE for replica in status.replicas.values())


def _files_in(report: Report, key: str) -> str:
    names = report.names.get(key, ())
    if not names:
        return "the index" if key.startswith(PREFIX) else "no file any more"
    return one_line(names[0]) if len(names) == 1 else f"{one_line(names[0])} and {len(names) - 1} more"
