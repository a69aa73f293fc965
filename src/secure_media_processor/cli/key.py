"""smp key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.options import FILE, FILE_OR_PIPE, PIPE, output_options, refuse_terminal
from secure_media_processor.cli.schemas import KeyChosen, KeyExported, KeyFile, KeyGenerated, KeyImported, KeyList
from secure_media_processor.cli.ui import current, table
from secure_media_processor.core.config import get_settings
from secure_media_processor.core.keys import SymmetricKey
from secure_media_processor.core.keystore import KeyEntry, Keystore
from secure_media_processor.errors import ExistsError

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def key() -> None:
    """Make, list, copy and choose keys."""


@key.command()
@click.option("--primary", is_flag=True, help="Encrypt new files for this key from now on.")
@output_options
def generate(*, primary: bool) -> None:
    """Make a key in the keystore.

    The first key becomes the primary one, for which new files are encrypted.

    \b
    Example:
      smp key generate
    """
    ui = current()
    with recorded("key.generate") as operation:
        entry = Keystore(get_settings().keystore).generate(primary=primary)
        operation.object = bytes.fromhex(entry.id)
    ui.result(KeyGenerated(*_fields(entry)), entry.id)
    ui.say(f"the key is in {entry.path}")
    _say_whether_primary(entry)
    ui.say(f"without it nothing can be decrypted: keep a copy elsewhere, with `smp key export {entry.id} FILE`")


@key.command("list")
@output_options
def list_keys() -> None:
    """List the keys in the keystore, never their secrets."""
    ui = current()
    folder = get_settings().keystore
    entries = Keystore(folder).entries()
    rows = [(entry.id, "yes" if entry.primary else "", entry.exported or "never", entry.path) for entry in entries]
    text = table(("key id", "primary", "exported", "file"), rows) if entries else ""
    ui.result(KeyList(str(folder), [KeyFile(*_fields(entry)) for entry in entries]), text)
    if not entries:
        ui.say(f"there are no keys in {folder}; `smp key generate` makes one")


@key.command()
@click.argument("key_id")
@click.argument("target", metavar="FILE", type=FILE_OR_PIPE)
@output_options
def export(key_id: str, target: Path) -> None:
    """Copy a key to a new file, to be kept elsewhere.

    The beginning of the id is enough. FILE can be - for standard output.

    \b
    Example:
      smp key export 5e0f /media/usb/smp.key
    """
    ui = current()
    keystore = Keystore(get_settings().keystore)
    with recorded("key.export") as operation:
        entry = keystore.find(key_id)
        operation.object = bytes.fromhex(entry.id)
        if target == PIPE:
            refuse_terminal("the key")
            print(keystore.load(entry.id).to_text(), end="")
            return
        try:
            keystore.load(entry.id).save(target)
        except ExistsError as error:
            raise ExistsError(str(error), hint="name another file; a key file is never replaced") from None
        keystore.note_export(entry.id)
    ui.result(KeyExported(entry.id, str(target)), "")
    ui.say(f"wrote {target}; whoever has it can read what was encrypted with it")
    if target.stat().st_dev == entry.path.stat().st_dev:
        ui.warn("it lies on the same disk as the keystore: copy it to another, or it dies with that disk")


@key.command("import")
@click.argument("source", metavar="FILE", type=FILE)
@click.option("--primary", is_flag=True, help="Encrypt new files for this key from now on.")
@output_options
def import_key(source: Path, *, primary: bool) -> None:
    """Bring a copy of a key back into the keystore.

    The copy may be open to other users, as everything on a USB stick is; in the keystore it is not.

    \b
    Example:
      smp key import /media/usb/smp.key
    """
    ui = current()
    with recorded("key.import") as operation:
        key = SymmetricKey.load(source, exposed=True)
        operation.object = bytes.fromhex(key.id)
        try:
            entry = Keystore(get_settings().keystore).add(key, primary=primary)
        except ExistsError:
            raise ExistsError(f"the key {key.id} is in the keystore already", hint="there is nothing to do") from None
    ui.result(KeyImported(*_fields(entry)), entry.id)
    _say_whether_primary(entry)


@key.command("primary")
@click.argument("key_id")
@output_options
def choose_primary(key_id: str) -> None:
    """Encrypt new files for another key of the keystore from now on.

    The beginning of the id is enough. Files that were encrypted before are read as before.

    \b
    Example:
      smp key primary 5e0f
    """
    ui = current()
    with recorded("key.primary") as operation:
        keystore = Keystore(get_settings().keystore)
        entry = keystore.make_primary(keystore.find(key_id).id)
        operation.object = bytes.fromhex(entry.id)
    ui.result(KeyChosen(*_fields(entry)), "")
    _say_whether_primary(entry)


def _say_whether_primary(entry: KeyEntry) -> None:
    if entry.primary:
        current().say(f"new files are encrypted for {entry.id}")
    else:
        current().say(f"new files are encrypted for another key; `smp key primary {entry.id}` changes that")


def _fields(entry: KeyEntry) -> tuple[str, str, bool, str | None]:
    """Return the fields of KeyFile."""
    return entry.id, str(entry.path), entry.primary, entry.exported
