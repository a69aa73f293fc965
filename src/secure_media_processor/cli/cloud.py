"""smp cloud."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.archive import counted, open_archive, summed
from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.options import key_option, output_options
from secure_media_processor.cli.ui import Ui, current, one_line, table
from secure_media_processor.cloud.index import PREFIX
from secure_media_processor.cloud.objects import ObjectState, ReplicaState
from secure_media_processor.cloud.stores import Store, StoreBook, check_options, find_kind, kinds
from secure_media_processor.cloud.wrappers import Patience
from secure_media_processor.core.config import get_settings
from secure_media_processor.errors import (
    DegradedError,
    ObjectLostError,
    PartialError,
    SmpError,
    TransientError,
    WrongKeyError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from secure_media_processor.cloud.archive import Report
    from secure_media_processor.cloud.objects import ObjectStatus

# Whoever looks at the screen does not wait five minutes to learn that a store is gone.
_LOOK = Patience(deadline=10.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a store says when it is asked whether it is there."""

    name: str
    kind: str
    answers: bool
    seconds: float
    reason: str = ""


@click.group()
def cloud() -> None:
    """Name your stores, check them and repair them."""


@cloud.command()
@click.argument("name")
@click.argument("kind")
@click.argument("options", metavar="[OPTION=VALUE]...", nargs=-1)
@click.option("--no-check", is_flag=True, help="Do not ask whether the store is there.")
@output_options
def add(name: str, kind: str, options: tuple[str, ...], *, no_check: bool) -> None:
    """Name a store and ask whether it is there.

    KIND is local, s3, dropbox, gdrive, or what a plugin adds; `smp cloud kinds` shows the options of each. Secrets are never
    options: they stay where they are, in a profile or a file.

    \b
    Examples:
      smp cloud add clinic-nas local folder=/mnt/nas/smp
      smp cloud add aws s3 bucket=my-bucket prefix=smp/ profile=backup
    """
    found = find_kind(kind)
    given = _pairs(options)
    check_options(kind, found, given)
    absolute = {key: str(Path(value).expanduser().absolute()) for key, value in given.items() if key in found.paths}
    store, book = Store(name, kind, given | absolute), StoreBook(get_settings().stores)
    with recorded("cloud.add"):
        book.check_name(name)
        if found.prepare is not None:
            found.prepare(store.options)
        if not no_check:
            _probe(store)
        book.add(store)
    ui = current()
    ui.result("smp.cloud.add/1", asdict(store), "")
    ui.say(f"added {name}" if no_check else f"added {name}; it answers")


@cloud.command("kinds")
@output_options
def list_kinds() -> None:
    """List the kinds of stores and their options.

    \b
    Example:
      smp cloud kinds
    """
    found = {name: find_kind(name) for name in kinds()}
    rows = [
        (name, option, "required" if option in kind.required else "", meaning)
        for name, kind in found.items()
        for option, meaning in kind.options.items()
    ]
    fields = {
        name: [{"option": o, "required": o in kind.required, "meaning": m} for o, m in kind.options.items()]
        for name, kind in found.items()
    }
    current().result("smp.cloud.kinds/1", {"kinds": fields}, table(("kind", "option", "", "meaning"), rows))


@cloud.command("list")
@output_options
def list_stores() -> None:
    """List your stores. Nothing is sent.

    \b
    Example:
      smp cloud list
    """
    stores = StoreBook(get_settings().stores).stores()
    rows = [(s.name, s.kind, " ".join(f"{key}={value}" for key, value in s.options.items())) for s in stores]
    ui = current()
    ui.result(
        "smp.cloud.list/1", {"stores": [asdict(s) for s in stores]}, table(("store", "kind", "options"), rows) if rows else ""
    )
    if not rows:
        ui.say("there are no stores; `smp cloud add` names one")


@cloud.command()
@click.argument("name")
@output_options
def remove(name: str) -> None:
    """Forget a store. What is in it stays.

    \b
    Example:
      smp cloud remove clinic-nas
    """
    with recorded("cloud.remove"):
        StoreBook(get_settings().stores).remove(name)
    ui = current()
    ui.result("smp.cloud.remove/1", {"name": name}, "")
    ui.say(f"forgot {name}; what is in it stays there")


@cloud.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@output_options
def status(names: tuple[str, ...]) -> None:
    """Ask your stores, or those named, whether they are there.

    Exit code 0 if all answer, 3 if some do, 11 if none does.

    \b
    Example:
      smp cloud status
    """
    book = StoreBook(get_settings().stores)
    stores = [book.find(name) for name in names] if names else book.stores()
    answers = [_ask(store) for store in stores]
    rows = [(a.name, a.kind, "yes" if a.answers else "no", f"{a.seconds:.2f}", a.reason) for a in answers]
    text = table(("store", "kind", "answers", "seconds", "reason"), rows) if rows else ""
    current().result("smp.cloud.status/1", {"stores": [asdict(answer) for answer in answers]}, text)
    silent = [answer.name for answer in answers if not answer.answers]
    if silent:
        kind = TransientError if len(silent) == len(answers) else PartialError
        raise kind(f"{len(silent)} of {len(answers)} stores do not answer: {', '.join(silent)}")


@cloud.command()
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
        _judge(ui, "verify", report)


@cloud.command()
@click.option("--deep", is_flag=True, help="Fetch and decrypt every copy first: a store may not know that its copy is damaged.")
@key_option
@output_options
def repair(key_file: Path | None, *, deep: bool) -> None:
    """Copy what a store lacks from one that has it, and remove what was removed elsewhere.

    What is copied is encrypted, and stays so. Exit codes are those of verify, afterwards.

    \b
    Example:
      smp cloud repair
    """
    with recorded("cloud.repair"), open_archive(key_file) as archive:
        _judge(current(), "repair", archive.repair(deep=deep))


def _judge(ui: Ui, command: str, report: Report) -> None:
    """Print what was found. Raises unless all is well."""
    troubled = [status for status in report.objects if status.state is not ObjectState.FULL]
    copies = [
        {
            "object": status.object.key,
            "files": list(report.names.get(status.object.key, ())),
            "store": name,
            "state": str(replica.state),
            "reason": replica.reason,
        }
        for status in troubled
        for name, replica in status.replicas.items()
        if replica.state is not ReplicaState.INTACT
    ]
    index = {"taken_back": report.taken_back, "unreadable": {s: sorted(ids) for s, ids in report.unreadable.items()}}
    fields = {
        "objects": len(report.objects),
        "state": str(report.worst),
        "copies": copies,
        "index": index,
        "unreachable": {name: str(error) for name, error in report.unreachable.items()},
        "leftovers": report.leftovers,
    }
    # What a store has that does not answer is nothing but a guess: that it does not answer is said once, below.
    shown = [copy for copy in copies if copy["store"] not in report.unreachable]
    rows = [(copy["store"], copy["state"], _files_in(report, str(copy["object"])), copy["reason"]) for copy in shown]
    ui.result(f"smp.cloud.{command}/1", fields, table(("store", "copy", "of", "reason"), rows) if rows else "")
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
        raise _degraded(command, report, copies, every)
    verb = "is" if len(report.objects) == 1 else "are"
    ui.say(f"{every} {verb} intact in every store" if report.objects else "there is nothing in your stores")


def _degraded(command: str, report: Report, copies: Sequence[Mapping[str, object]], every: str) -> DegradedError:
    """Return the error that says what is not as it should be, and what helps against that."""
    pending = {copy["object"] for copy in copies if copy["store"] not in report.unreachable}
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


def _pairs(options: tuple[str, ...]) -> dict[str, str]:
    pairs = [option.partition("=") for option in options]
    if any(not separator or not value for _, separator, value in pairs):
        raise click.BadParameter("write each option as OPTION=VALUE", param_hint="OPTION=VALUE")
    return {name: value for name, _, value in pairs}


def _ask(store: Store) -> Answer:
    start = time.perf_counter()
    try:
        _probe(store)
    except SmpError as error:
        return Answer(store.name, store.kind, answers=False, seconds=round(time.perf_counter() - start, 3), reason=str(error))
    return Answer(store.name, store.kind, answers=True, seconds=round(time.perf_counter() - start, 3))


def _probe(store: Store) -> None:
    """Ask for the first object of a store, which tells whether it is there and lets us in. Raises as list."""
    with store.open(_LOOK) as connector:
        list(islice(connector.list(), 1))
