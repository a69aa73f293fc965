"""The kinds of stores that come with the program; each connector is imported when such a store is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_media_processor.cloud.credentials import read_credentials, read_texts
from secure_media_processor.cloud.stores import StoreKind
from secure_media_processor.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from secure_media_processor.cloud.connectors.base import CloudConnector
    from secure_media_processor.cloud.connectors.sftp import SFTPConnector


def _local(options: Mapping[str, str], _before_request: Callable[[], object]) -> CloudConnector:
    from secure_media_processor.cloud.connectors.local import LocalConnector  # noqa: PLC0415 - see the module

    return LocalConnector(options["folder"])


def _prepare_local(options: Mapping[str, str]) -> None:
    from secure_media_processor.cloud.connectors.local import LocalConnector  # noqa: PLC0415 - see the module

    LocalConnector.create(options["folder"])


def _s3(options: Mapping[str, str], before_request: Callable[[], object]) -> CloudConnector:
    from secure_media_processor.cloud.connectors.s3 import S3Access, S3Connector  # noqa: PLC0415 - see the module

    access, place = None, options.get("credentials")
    if place is not None:
        if "profile" in options:
            raise UsageError("a store has either the option credentials or the option profile", hint="leave one of them out")
        hint = "docs/how-to/s3.md tells how to make one"
        names = {"aws_access_key_id", "aws_secret_access_key", "aws_session_token"}
        access = S3Access(**read_texts(place, names, hint=hint))
    return S3Connector(
        options["bucket"],
        prefix=options.get("prefix", ""),
        endpoint_url=options.get("endpoint"),
        region=options.get("region"),
        profile=options.get("profile"),
        access=access,
        conditional_writes=options.get("conditional-writes", "yes") != "no",
        before_request=before_request,
    )


def _dropbox(options: Mapping[str, str], before_request: Callable[[], object]) -> CloudConnector:
    from secure_media_processor.cloud.connectors.dropbox import DropboxAccess, DropboxConnector  # noqa: PLC0415

    hint = "docs/how-to/dropbox.md tells how to make one"
    names = {"refresh_token", "app_key", "app_secret", "access_token"}
    access = DropboxAccess(**read_texts(options["credentials"], names, hint=hint))
    return DropboxConnector(access, folder=options.get("folder", ""), before_request=before_request)


def _google_drive(options: Mapping[str, str], before_request: Callable[[], object]) -> CloudConnector:
    from secure_media_processor.cloud.connectors.google_drive import GoogleDriveConnector  # noqa: PLC0415 - see the module
    from secure_media_processor.cloud.connectors.google_http import NEW_TOKEN_HINT, credentials_of  # noqa: PLC0415

    place = options["credentials"]
    return GoogleDriveConnector(
        credentials_of(read_credentials(place, hint=NEW_TOKEN_HINT), place),
        folder=options.get("folder", "smp"),
        shared_drive=options.get("shared-drive"),
        before_request=before_request,
    )


def _azure(options: Mapping[str, str], before_request: Callable[[], object]) -> CloudConnector:
    from secure_media_processor.cloud.connectors.azure import AzureBlobConnector  # noqa: PLC0415 - see the module
    from secure_media_processor.cloud.connectors.azure_access import load_access  # noqa: PLC0415

    place, account, endpoint = options.get("credentials"), options.get("account", ""), options.get("endpoint", "")
    access = load_access(place, account=account, endpoint=endpoint)
    return AzureBlobConnector(options["container"], access, prefix=options.get("prefix", ""), before_request=before_request)


def _sftp(options: Mapping[str, str], before_request: Callable[[], object] | None = None) -> SFTPConnector:
    from secure_media_processor.cloud.connectors.sftp import SFTPConnector  # noqa: PLC0415 - see the module

    port = options.get("port", "22")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise UsageError("port is a number from 1 to 65535", hint="port=22, unless the server has another")
    return SFTPConnector(
        options["host"],
        options["folder"],
        port=int(port),
        user=options.get("user"),
        identity=options.get("identity"),
        known_hosts=options.get("known-hosts", "~/.ssh/known_hosts"),
        before_request=before_request,
    )


def _prepare_sftp(options: Mapping[str, str]) -> None:
    with _sftp(options) as store:
        store.create()


LOCAL = StoreKind(
    options={"folder": "where the objects lie; it is made if need be"},
    required=frozenset({"folder"}),
    open=_local,
    requests_per_second=1e6,  # a folder has no requests to count
    paths=frozenset({"folder"}),
    prepare=_prepare_local,
)
S3 = StoreKind(
    options={
        "bucket": "its name",
        "prefix": "put before every key, such as smp/",
        "endpoint": "address of a server that is not AWS",
        "region": "as AWS names it",
        "profile": "name of a profile in ~/.aws",
        "credentials": "JSON file, mode 0600, with a key pair; or keyring. From ~/.aws and the like unless given",
        "conditional-writes": "no, for servers that ignore If-None-Match",
    },
    required=frozenset({"bucket"}),
    open=_s3,
    requests_per_second=1000,  # AWS bears 3,500 writes a second under one prefix
    paths=frozenset({"credentials"}),
)
DROPBOX = StoreKind(
    options={
        "credentials": "JSON file, mode 0600, with refresh_token and app_key; or keyring",
        "folder": "where the objects lie; everything unless given",
    },
    required=frozenset({"credentials"}),
    open=_dropbox,
    requests_per_second=5,
    paths=frozenset({"credentials"}),
)
GOOGLE_DRIVE = StoreKind(
    options={
        "credentials": "JSON file, mode 0600, of a service account or a user's token; or keyring",
        "folder": "name of the folder at the top of the drive; smp unless given",
        "shared-drive": "id of a shared drive",
    },
    required=frozenset({"credentials"}),
    open=_google_drive,
    requests_per_second=10,
    paths=frozenset({"credentials"}),
)
AZURE = StoreKind(
    options={
        "container": "its name",
        "prefix": "put before every key, such as smp/",
        "account": "name of the storage account",
        "endpoint": "address of the blob service, if it is not https://ACCOUNT.blob.core.windows.net",
        "credentials": "JSON file, mode 0600, with key, sas_token or connection_string; or keyring. Else the environment",
    },
    required=frozenset({"container"}),
    open=_azure,
    requests_per_second=500,  # Azure promises that for one blob, and 20,000 for an account
    paths=frozenset({"credentials"}),
)
SFTP = StoreKind(
    options={
        "host": "name or address of the SSH server",
        "folder": "where the objects lie there, in the user's home unless it begins with /; it is made if need be",
        "user": "at the server; your name here unless given",
        "port": "22 unless given",
        "identity": "file of a private key without a passphrase; ssh-agent and ~/.ssh unless given",
        "known-hosts": "file of host keys; ~/.ssh/known_hosts unless given",
    },
    required=frozenset({"host", "folder"}),
    open=_sftp,
    requests_per_second=1000,
    paths=frozenset({"identity", "known-hosts"}),
    prepare=_prepare_sftp,
)
