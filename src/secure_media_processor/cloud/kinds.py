"""The kinds of stores that come with the program; each connector is imported when such a store is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from secure_media_processor.cloud.credentials import read_private_json
from secure_media_processor.cloud.stores import StoreKind
from secure_media_processor.errors import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from secure_media_processor.cloud.connectors.base import CloudConnector


def _local(options: Mapping[str, str], _before_request: Callable[[], object]) -> CloudConnector:
    from secure_media_processor.cloud.connectors.local import LocalConnector  # noqa: PLC0415 - see the module

    return LocalConnector(options["folder"])


def _prepare_local(options: Mapping[str, str]) -> None:
    from secure_media_processor.cloud.connectors.local import LocalConnector  # noqa: PLC0415 - see the module

    LocalConnector.create(options["folder"])


def _s3(options: Mapping[str, str], before_request: Callable[[], object]) -> CloudConnector:
    from secure_media_processor.cloud.connectors.s3 import S3Connector  # noqa: PLC0415 - see the module

    return S3Connector(
        options["bucket"],
        prefix=options.get("prefix", ""),
        endpoint_url=options.get("endpoint"),
        region=options.get("region"),
        profile=options.get("profile"),
        conditional_writes=options.get("conditional-writes", "yes") != "no",
        before_request=before_request,
    )


def _dropbox(options: Mapping[str, str], before_request: Callable[[], object]) -> CloudConnector:
    from secure_media_processor.cloud.connectors.dropbox import DropboxAccess, DropboxConnector  # noqa: PLC0415

    path = Path(options["credentials"])
    hint = "docs/how-to/dropbox.md tells how to make one"
    found = read_private_json(path, hint=hint)
    names = {"refresh_token", "app_key", "app_secret", "access_token"}
    if not found.keys() <= names or not all(isinstance(value, str) for value in found.values()):
        raise CredentialsError(f"{path} may hold {', '.join(sorted(names))}, each a text, and nothing else", hint=hint)
    access = DropboxAccess(**{name: str(value) for name, value in found.items()})
    return DropboxConnector(access, folder=options.get("folder", ""), before_request=before_request)


def _google_drive(options: Mapping[str, str], before_request: Callable[[], object]) -> CloudConnector:
    from secure_media_processor.cloud.connectors.google_drive import GoogleDriveConnector  # noqa: PLC0415 - see the module
    from secure_media_processor.cloud.connectors.google_http import load_credentials  # noqa: PLC0415

    return GoogleDriveConnector(
        load_credentials(options["credentials"]),
        folder=options.get("folder", "smp"),
        shared_drive=options.get("shared-drive"),
        before_request=before_request,
    )


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
        "conditional-writes": "no, for servers that ignore If-None-Match",
    },
    required=frozenset({"bucket"}),
    open=_s3,
    requests_per_second=1000,  # AWS bears 3,500 writes a second under one prefix
)
DROPBOX = StoreKind(
    options={
        "credentials": "JSON file, mode 0600, with refresh_token and app_key",
        "folder": "where the objects lie; everything unless given",
    },
    required=frozenset({"credentials"}),
    open=_dropbox,
    requests_per_second=5,
    paths=frozenset({"credentials"}),
)
GOOGLE_DRIVE = StoreKind(
    options={
        "credentials": "JSON file, mode 0600, of a service account or a user's token",
        "folder": "name of the folder at the top of the drive; smp unless given",
        "shared-drive": "id of a shared drive",
    },
    required=frozenset({"credentials"}),
    open=_google_drive,
    requests_per_second=10,
    paths=frozenset({"credentials"}),
)
