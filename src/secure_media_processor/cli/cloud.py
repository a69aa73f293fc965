"""smp cloud."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

import click

from secure_media_processor.cli import checking
from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.options import FILE_OR_PIPE, PIPE, output_options, standard_input
from secure_media_processor.cli.schemas import (
    Answer,
    CredentialsForgotten,
    CredentialsKept,
    KindList,
    KindOption,
    StoreAdded,
    StoreEntry,
    StoreList,
    StoreRemoved,
    StoreStatus,
)
from secure_media_processor.cli.ui import current, table
from secure_media_processor.cloud.credentials import forget_in_keyring, keep_in_keyring
from secure_media_processor.cloud.stores import Store, StoreBook, check_options, find_kind, kinds, with_absolute_paths
from secure_media_processor.cloud.wrappers import Patience
from secure_media_processor.core.config import get_settings
from secure_media_processor.core.private_json import read_json, read_private_json
from secure_media_processor.errors import PartialError, SmpError, TransientError

if TYPE_CHECKING:
    from pathlib import Path

# Whoever looks at the screen does not wait five minutes to learn that a store is gone.
_LOOK = Patience(deadline=10.0)
_NO_STORES = "there are no stores; `smp cloud add` names one"


@click.group()
def cloud() -> None:
    """Name your stores, check them and repair them."""


cloud.add_command(checking.verify)
cloud.add_command(checking.repair)
cloud.add_command(checking.prune)


@cloud.command()
@click.argument("name")
@click.argument("kind")
@click.argument("options", metavar="[OPTION=VALUE]...", nargs=-1)
@click.option("--no-check", is_flag=True, help="Do not ask whether the store is there.")
@output_options
def add(name: str, kind: str, options: tuple[str, ...], *, no_check: bool) -> None:
    """Name a store and ask whether it is there.

    KIND is local, s3, azure, dropbox, gdrive, sftp, or what a plugin adds; `smp cloud kinds` shows the options of each. Secrets
    are never options: they stay where they are, in a profile, a file, or the keyring of your system (credentials=keyring).

    \b
    Examples:
      smp cloud add clinic-nas local folder=/mnt/nas/smp
      smp cloud add aws s3 bucket=my-bucket prefix=smp/ profile=backup
    """
    found = find_kind(kind)
    given = _pairs(options)
    check_options(kind, found, given)
    store, book = Store(name, kind, with_absolute_paths(found, given)), StoreBook(get_settings().stores)
    with recorded("cloud.add"):
        book.check_name(name)
        if found.prepare is not None:
            found.prepare(store.options)
        if not no_check:
            _probe(store)
        book.add(store)
    ui = current()
    ui.result(StoreAdded(store.name, store.kind, dict(store.options)), "")
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
    listed = {
        name: [KindOption(option, option in kind.required, meaning) for option, meaning in kind.options.items()]
        for name, kind in found.items()
    }
    current().result(KindList(listed), table(("kind", "option", "", "meaning"), rows))


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
    entries = [StoreEntry(store.name, store.kind, dict(store.options)) for store in stores]
    ui.result(StoreList(entries), table(("store", "kind", "options"), rows) if rows else "")
    if not rows:
        ui.say(_NO_STORES)


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
    ui.result(StoreRemoved(name), "")
    ui.say(f"forgot {name}; what is in it stays there")


@cloud.command("keep-credentials")
@click.argument("name")
@click.argument("file", type=FILE_OR_PIPE, default="-")
@output_options
def keep_credentials(name: str, file: Path) -> None:
    """Put credentials into the keyring of your system.

    FILE is a JSON file that only you can read; without it, or with -, standard input is read. What the keyring has under NAME
    is replaced. A store takes from there what has its own name with credentials=keyring, and anything with
    credentials=keyring:NAME.

    \b
    Example:
      smp cloud keep-credentials box dropbox.json
      smp cloud add box dropbox credentials=keyring
    """
    ui = current()
    hint = "the pages on Dropbox, Google Drive and S3 in docs/how-to tell how to make one"
    if file == PIPE:
        if sys.stdin.isatty():
            ui.say("paste the JSON object, then press Ctrl-D on a line of its own")
        found = read_json(standard_input(), "standard input", hint=hint)
    else:
        found = read_private_json(file, hint=hint)
    with recorded("cloud.keep-credentials"):
        keep_in_keyring(name, found)
    ui.result(CredentialsKept(name), "")
    ui.say(f"the keyring has {name}" + ("" if file == PIPE else f"; {file} can be removed"))


@cloud.command("forget-credentials")
@click.argument("name")
@output_options
def forget_credentials(name: str) -> None:
    """Remove credentials from the keyring of your system.

    They stay valid: withdraw them where they were made if nobody is to use them any more.

    \b
    Example:
      smp cloud forget-credentials box
    """
    with recorded("cloud.forget-credentials"):
        forget_in_keyring(name)
    ui = current()
    ui.result(CredentialsForgotten(name), "")
    ui.say(f"the keyring has {name} no more")


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
    with ThreadPoolExecutor(max(1, len(stores))) as pool:  # those that are away are waited for together
        answers = list(pool.map(_ask, stores))
    rows = [(a.name, a.kind, "yes" if a.answers else "no", f"{a.seconds:.2f}", a.reason) for a in answers]
    text = table(("store", "kind", "answers", "seconds", "reason"), rows) if rows else ""
    ui = current()
    ui.result(StoreStatus(answers), text)
    if not answers:
        ui.say(_NO_STORES)
    silent = [answer.name for answer in answers if not answer.answers]
    if silent:
        kind = TransientError if len(silent) == len(answers) else PartialError
        raise kind(f"{len(silent)} of {len(answers)} stores do not answer: {', '.join(silent)}")


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
