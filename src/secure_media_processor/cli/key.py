"""smp key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.options import FILE, output_options
from secure_media_processor.cli.ui import current, table
from secure_media_processor.core.config import get_settings
from secure_media_processor.core.keystore import KeyEntry, Keystore

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def key() -> None:
    """Make, list and export keys."""


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
    ui.result("smp.key.generate/1", _fields(entry), entry.id)
    ui.say(f"the key is in {entry.path}")
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
    ui.result("smp.key.list/1", {"keystore": str(folder), "keys": [_fields(entry) for entry in entries]}, text)
    if not entries:
        ui.say(f"there are no keys in {folder}; `smp key generate` makes one")


@key.command()
@click.argument("key_id")
@click.argument("target", metavar="FILE", type=FILE)
@output_options
def export(key_id: str, target: Path) -> None:
    """Copy a key to a new file, to be kept elsewhere.

    \b
    Example:
      smp key export 5e0f3c2a9b71d864 /media/usb/smp.key
    """
    ui = current()
    with recorded("key.export") as operation:
        Keystore(get_settings().keystore).export(key_id, target)
        operation.object = bytes.fromhex(key_id)
    ui.result("smp.key.export/1", {"id": key_id, "file": str(target)}, "")
    ui.say(f"wrote {target}; whoever has it can read what was encrypted with it")


def _fields(entry: KeyEntry) -> dict[str, object]:
    return {"id": entry.id, "file": str(entry.path), "primary": entry.primary, "exported": entry.exported}
