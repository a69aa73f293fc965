"""smp doctor."""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING

import click

from secure_media_processor import __version__
from secure_media_processor.cli.options import output_options
from secure_media_processor.cli.schemas import DoctorReport, Finding
from secure_media_processor.cli.ui import current, table
from secure_media_processor.core.audit import AuditLog
from secure_media_processor.core.config import get_loaded
from secure_media_processor.core.device import devices
from secure_media_processor.core.keystore import Keystore
from secure_media_processor.errors import SmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DISTRIBUTION = "secure-media-processor"
# "pydicom>=3; extra == 'dicom'", as the metadata of a wheel states it.
_OPTIONAL = re.compile(r"""^(?P<name>[A-Za-z0-9._-]+).*extra == ['"](?P<extra>[a-z0-9]+)['"]""")
_NOT_FEATURES = {"all", "dev"}


@click.command()
@output_options
def doctor() -> None:
    """Check the installation, keys, audit log and settings.

    Exit code 0 if nothing is broken; an extra that is not installed, or a key without a copy, is only noted. The error codes of
    what is broken stand in the findings.

    \b
    Example:
      smp doctor
    """
    ui = current()
    findings = [finding for check in (_program, _extras, _devices, _settings, _keys, _audit) for finding in _safely(check)]
    rows = [(finding.check, finding.state, finding.text) for finding in findings]
    hints = dict.fromkeys(finding.hint for finding in findings if finding.hint)
    text = "\n".join([table(("check", "state", "finding"), rows), *(f"hint: {hint}" for hint in hints)])
    ui.result(DoctorReport(findings), text)
    failed = [finding.check for finding in findings if finding.state == "fail"]
    if failed:
        raise SmpError(f"not in order: {', '.join(failed)}", hint="see the findings above")


def _safely(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what `check` finds; if it fails, that is the finding."""
    try:
        yield from check()
    except SmpError as error:
        yield Finding((check.__doc__ or "").rstrip(".").lower(), "fail", f"{error} [{error.code}]", error.hint)


def _program() -> Iterator[Finding]:
    """Program."""
    yield Finding("smp", "ok", f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}")


def _extras() -> Iterator[Finding]:
    """Extras."""
    from importlib.metadata import PackageNotFoundError, requires, version

    wanted: dict[str, list[str]] = {}
    for requirement in requires(_DISTRIBUTION) or []:
        match = _OPTIONAL.match(requirement)
        if match and match["extra"] not in _NOT_FEATURES:
            wanted.setdefault(match["extra"], []).append(match["name"])
    absent = []
    for extra, names in sorted(wanted.items()):
        try:
            yield Finding(f"extra {extra}", "ok", ", ".join([f"{name} {version(name)}" for name in names]))
        except PackageNotFoundError:
            absent.append(extra)
    if absent:
        yield Finding("other extras", "note", f"not installed: {', '.join(absent)}")


def _devices() -> Iterator[Finding]:
    """Devices."""
    for device in devices():
        yield Finding(f"device {device.kind}", "ok", f"{device.name} ({device.detail})")


def _settings() -> Iterator[Finding]:
    """Settings."""
    sources = get_loaded().sources
    yield Finding("settings", "ok", f"from {', '.join(sources)}" if sources else "all defaults")


def _keys() -> Iterator[Finding]:
    """Keys."""
    settings = get_loaded().settings
    keystore = Keystore(settings.keystore)
    entries = keystore.entries()
    if not entries:
        yield Finding("keys", "note", f"none in {settings.keystore}", "smp key generate")
        return
    yield Finding("keys", "ok", f"{len(entries)} in {settings.keystore}, primary {keystore.primary().id}")
    for entry in entries:
        keystore.load(entry.id)
        if entry.exported is None:
            hint = f"smp key export {entry.id} FILE, with FILE on another disk"
            yield Finding("key copy", "note", f"{entry.id} was never exported: if this disk dies, so do its files", hint)
        else:
            yield Finding("key copy", "ok", f"{entry.id} was exported at {entry.exported}")


def _audit() -> Iterator[Finding]:
    """Audit log."""
    path = get_loaded().settings.audit_log
    head = AuditLog(path).verify()
    yield Finding("audit log", "ok", f"{head.seq} records in {path}, chain intact")
