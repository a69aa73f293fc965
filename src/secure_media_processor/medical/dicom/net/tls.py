"""TLS for DIMSE (PS3.15 annex B.9, the BCP 195 profile): version 1.2 or newer, and the other side is always checked."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

from secure_media_processor.core.files import open_source, os_errors
from secure_media_processor.core.keys import refuse_exposed
from secure_media_processor.errors import CredentialsError

if TYPE_CHECKING:
    from pathlib import Path


def client_context(certificate: Path | None, key: Path | None, ca: Path | None) -> ssl.SSLContext:
    """Return how to check a server, and what to show it if it asks who we are.

    Args:
        certificate: Our own, PEM; None if the server asks for none.
        key: Its private key, if that is not in the same file.
        ca: Certificates of the authorities to believe; those of the system unless given.

    Raises:
        KeyExposedError: other users of this machine can read the private key.
        CredentialsError: a file is missing, or is not what it should be.
    """
    return _loaded(ssl.Purpose.SERVER_AUTH, certificate, key, ca)


def server_context(certificate: Path, key: Path | None, ca: Path | None) -> ssl.SSLContext:
    """As client_context, for connections to us. With `ca` whoever connects must show a certificate of these authorities."""
    context = _loaded(ssl.Purpose.CLIENT_AUTH, certificate, key, ca)
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _loaded(purpose: ssl.Purpose, certificate: Path | None, key: Path | None, ca: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(purpose, cafile=ca)
    except OSError:  # ssl.SSLError is one
        raise CredentialsError(f"{ca} holds no certificates that can be used", hint="a PEM file is needed") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        private = key or certificate
        with open_source(private) as file, os_errors(f"read {private}"):
            refuse_exposed(private, os.fstat(file.fileno()).st_mode)
        try:
            # Without a function OpenSSL would ask the terminal for a passphrase.
            context.load_cert_chain(certificate, key, password=lambda: "")
        except OSError:
            hint = "PEM, a key without a passphrase that belongs to the certificate"
            raise CredentialsError(f"{certificate} and its key cannot be used", hint=hint) from None
    return context
