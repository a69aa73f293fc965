"""The address of a server, as the user writes it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from secure_media_processor.errors import UsageError

_FORMS = "dicom://AETITLE@host:port, dicoms://AETITLE@host:port (TLS) or https://host/dicom-web"
# PS3.8 section 7.1.1.3: the ports that are registered for DICOM without and with TLS.
_PORTS = {"dicom": 104, "dicoms": 2762}
_AE_TITLE = re.compile(r"(?! )[\x20-\x5b\x5d-\x7e]{1,16}(?<! )")


@dataclass(frozen=True, slots=True)
class DimseAddress:
    """A server that speaks DIMSE."""

    aet: str
    """Its application entity title."""
    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"{self.aet} at {self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class WebAddress:
    """A server that speaks DICOMweb."""

    url: str
    """Without a slash at its end."""
    host: str
    tls: bool

    def __str__(self) -> str:
        return self.url


def parse_address(text: str, *, plaintext: bool = False) -> DimseAddress | WebAddress:
    """Return the address that the user means.

    Args:
        text: Such as ``dicoms://ARCHIVE@pacs.example.org:2762`` or ``https://pacs.example.org/dicom-web``.
        plaintext: Allow that everybody on the way to another machine can read along.

    Raises:
        UsageError: it is no address, holds a password, or would lead over an open line to another machine.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError("the server's address cannot be read", hint=f"write {_FORMS}") from None
    if parts.password is not None or (parts.scheme in ("http", "https") and parts.username is not None):
        hint = "put them into a file with mode 0600 and name it with --credentials"
        raise UsageError("credentials do not belong into the server's address", hint=hint)
    if not host or parts.query or parts.fragment or parts.scheme not in (*_PORTS, "http", "https"):
        raise UsageError("this is no address of a server", hint=f"write {_FORMS}")
    tls = parts.scheme in ("dicoms", "https")
    if not (tls or plaintext or is_loopback(host)):
        hint = "use https:// or dicoms://, or allow it with --plaintext where the network itself is safe"
        raise UsageError(f"everybody on the way to {host} could read along", hint=hint)
    if parts.scheme in _PORTS:
        if parts.path not in ("", "/"):
            raise UsageError("an address of DIMSE has no path", hint=f"write {_FORMS}")
        return DimseAddress(checked_aet(parts.username or ""), host, port or _PORTS[parts.scheme], tls)
    return WebAddress(text.rstrip("/"), host, tls)


def checked_aet(text: str) -> str:
    """Return an application entity title (PS3.5 section 6.2, AE). Raises UsageError if it cannot be one."""
    if not _AE_TITLE.fullmatch(text):
        raise UsageError(
            "an application entity title has 1 to 16 characters of ASCII, and no backslash", hint=f"write {_FORMS}"
        )
    return text


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine, by name or address, so that what is sent there crosses no network."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
