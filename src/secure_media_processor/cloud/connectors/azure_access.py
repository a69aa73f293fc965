"""What opens an Azure storage account, and where it is found: the environment, or where other credentials are kept."""

from __future__ import annotations

import os
import re
from base64 import b64decode
from dataclasses import dataclass, field, fields
from urllib.parse import urlsplit

from secure_media_processor.cloud.credentials import read_texts
from secure_media_processor.errors import CredentialsError, UsageError

_HINT = "docs/how-to/azure.md tells how to get one"
_VARIABLES = {
    "account": "AZURE_STORAGE_ACCOUNT",
    "connection_string": "AZURE_STORAGE_CONNECTION_STRING",
    "key": "AZURE_STORAGE_KEY",
    "sas_token": "AZURE_STORAGE_SAS_TOKEN",
}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureAccess:
    """What opens a storage account: its key, or a SAS token. Neither is shown by repr. Python cannot erase them from memory.

    Raises:
        CredentialsError: it is neither the one nor the other, or cannot be one.
        UsageError: `endpoint` is no address, or holds more than one.
    """

    account: str = ""
    """Its name; found in `endpoint` if that is Azure's, or ends in it."""
    endpoint: str = ""
    """Address of the blob service; https://ACCOUNT.blob.core.windows.net unless given."""
    key: str = field(default="", repr=False)
    sas_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if bool(self.key) == bool(self.sas_token):
            raise CredentialsError("either an account key or a SAS token is needed for Azure", hint=_HINT)
        for part in fields(self):
            if not re.fullmatch(r"[!-~]*", getattr(self, part.name)):
                hint = "was a line break read with it?"
                raise CredentialsError(f"the {part.name} for Azure holds a character that it cannot have", hint=hint)
        object.__setattr__(self, "sas_token", self.sas_token.lstrip("?"))
        object.__setattr__(self, "endpoint", self._checked_endpoint())
        if not self.account:
            url = urlsplit(self.endpoint)
            name, dot, _ = (url.hostname or "").partition(".blob.")
            object.__setattr__(self, "account", name if dot else url.path.strip("/"))
        if not re.fullmatch(r"[a-z0-9]{3,24}", self.account) and self.key:
            hint = "3 to 24 lower-case letters and digits: the option account= of the store"
            raise CredentialsError("the name of the Azure account is missing, or is none", hint=hint)
        if self.key and not _is_base64(self.key):
            raise CredentialsError("the account key for Azure is not Base64", hint="copy it once more, to its last =")

    def _checked_endpoint(self) -> str:
        if not self.endpoint and not self.account:
            raise CredentialsError("neither an account nor an endpoint of Azure is named", hint="add account=NAME")
        endpoint = self.endpoint or f"https://{self.account}.blob.core.windows.net"
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query or url.fragment:
            hint = "such as https://ACCOUNT.blob.core.windows.net; secrets, such as a SAS token, do not belong into it"
            raise UsageError("this is no address of a blob service", hint=hint)
        if self.sas_token and url.scheme == "http" and url.hostname not in _LOOPBACK:
            raise UsageError("a SAS token is not sent without encryption", hint="use an address with https://")
        return endpoint.rstrip("/")


def load_access(place: str | None = None, *, account: str = "", endpoint: str = "") -> AzureAccess:
    """Return the access that credentials.read_texts finds at `place`, or else in the environment.

    `account` and `endpoint` come before what is found there. Raises as read_texts, as AzureAccess, and CredentialsError if what
    is found is for another account than `account`.
    """
    if place is not None:
        found = read_texts(place, _VARIABLES, hint=_HINT)
    else:
        found = {name: os.environ[variable] for name, variable in _VARIABLES.items() if os.environ.get(variable)}
    if found.get("connection_string"):  # has all, as in Microsoft's own programs
        found = _read_connection_string(found["connection_string"])
    elif found.get("key"):
        found.pop("sas_token", None)
    if account and found.get("account", account) != account:
        raise CredentialsError("the credentials are for another Azure account than the store", hint=_HINT)
    return AzureAccess(
        account=account or found.get("account", ""),
        endpoint=endpoint or found.get("endpoint", ""),
        key=found.get("key", ""),
        sas_token=found.get("sas_token", ""),
    )


def _read_connection_string(text: str) -> dict[str, str]:
    """Return what a connection string of Azure says. Of its several services only that of blobs is looked at."""
    said = {name.strip().lower(): value for name, _, value in (part.partition("=") for part in text.strip().split(";"))}
    account, endpoint = said.get("accountname", ""), said.get("blobendpoint", "")
    if account and not endpoint and "endpointsuffix" in said:
        endpoint = f"{said.get('defaultendpointsprotocol', 'https')}://{account}.blob.{said['endpointsuffix']}"
    key, token = said.get("accountkey", ""), said.get("sharedaccesssignature", "")
    found = {"account": account, "endpoint": endpoint, "key": key, "sas_token": "" if key else token}
    return {name: value for name, value in found.items() if value}


def _is_base64(text: str) -> bool:
    try:
        return bool(b64decode(text, validate=True))
    except ValueError:
        return False
