"""What `smp medical fetch` and `send` share: the options that tell which archive, and the way to it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

import click

from secure_media_processor.cli.options import FILE
from secure_media_processor.errors import CredentialsError, PartialError, SmpError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from secure_media_processor.medical.dicom.net.model import Limits, PacsServer

_F = TypeVar("_F", bound="Callable[..., Any]")


def server_options(command: _F) -> _F:
    """Add the options that `open_server` takes."""
    for option in reversed(
        (
            click.option("--aet", default="SMP", show_default=True, help="Our own application entity title (dicom, dicoms)."),
            click.option("--ca", type=FILE, help="Certificates of the authorities to believe, instead of the usual ones."),
            click.option("--certificate", type=FILE, help="Our own certificate (dicoms); PEM, with the chain."),
            click.option("--certificate-key", type=FILE, help="Its private key; a file that only its owner can read."),
            click.option("--credentials", type=FILE, help="For https: a private JSON file with a token, or user and password."),
            click.option("--plaintext", is_flag=True, help="Allow a line that is not encrypted to another machine."),
        )
    ):
        command = option(command)
    return command


def open_server(
    address: str,
    limits: Limits,
    *,
    aet: str,
    ca: Path | None,
    certificate: Path | None,
    certificate_key: Path | None,
    credentials: Path | None,
    plaintext: bool,
    listen: str | None = None,
) -> PacsServer:
    """Return the server at `address`. Nothing is sent yet.

    Raises:
        UsageError: the options do not fit together, or the address is none.
        CredentialsError: the certificate or the credentials cannot be used.
        MissingExtraError: what is needed is not installed.
    """
    from secure_media_processor.medical.dicom.net.address import WebAddress, checked_aet, parse_address

    where = parse_address(address, plaintext=plaintext)
    if isinstance(where, WebAddress):
        if listen is not None or certificate is not None:
            raise UsageError("--listen and --certificate are for dicom:// and dicoms://")
        from secure_media_processor.medical.dicom.net.web import WebCredentials, WebServer

        return WebServer(where, credentials=WebCredentials.load(credentials), ca_file=_readable(ca), limits=limits)
    if credentials is not None:
        raise UsageError("--credentials are for https://", hint="DIMSE knows titles (--aet) and certificates (--certificate)")
    from secure_media_processor.medical.dicom.net.dimse import DimseServer
    from secure_media_processor.medical.dicom.net.receiving import Receiver
    from secure_media_processor.medical.dicom.net.tls import client_context, server_context

    receiver = None
    if listen is not None:
        host, _, port = listen.rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UsageError("--listen wants a port, or an address and a port", hint="such as 11112 or 192.0.2.5:11112")
        own = None
        if where.tls:
            if certificate is None:
                raise UsageError("to be sent objects over TLS a certificate is needed", hint="--certificate FILE")
            own = server_context(certificate, certificate_key, ca)
        receiver = Receiver(int(port), host.strip("[]"), own)
    tls = client_context(certificate, certificate_key, ca) if where.tls else None
    return DimseServer(where, aet=checked_aet(aet), tls=tls, receiver=receiver, limits=limits)


def failure(errors: Collection[SmpError], among: int, thing: str) -> SmpError:
    """Return the error that ends a command in which `errors` kept some of `among` things, or all, from being done."""
    if among == 1:
        return next(iter(errors))
    message, hints = f"{len(errors)} of {among} {thing}s failed", {error.hint for error in errors}
    hint = (hints.pop() if len(hints) == 1 else "") or "see the warnings above"
    kinds = {type(error) for error in errors}
    # Where nothing is done, and for one reason, whoever reads the exit code wants that reason.
    return kinds.pop()(message, hint=hint) if len(errors) == among and len(kinds) == 1 else PartialError(message, hint=hint)


def grouped(errors: Collection[SmpError]) -> list[tuple[str, int]]:
    """Return the texts of errors and how often each occurs: a thousand instances often fail for one reason."""
    return Counter(map(str, errors)).most_common()


def _readable(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise CredentialsError(f"there is no file {path}", hint="it holds certificates, PEM")
    return path
