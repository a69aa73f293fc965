"""Secure Media Processor: sensitive images through clouds nobody trusts, and back.

The names below are the library's front door. They are loaded when first used, so that importing the package costs nothing::

    from secure_media_processor import SymmetricKey, decrypt_file, encrypt_file

    key = SymmetricKey.generate()
    key.save("study.key")
    encrypt_file("study.nii.gz", "study.nii.gz.smp", [key])
    decrypt_file("study.nii.gz.smp", "copy.nii.gz", [key])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secure_media_processor.cloud.archive import Archive
    from secure_media_processor.cloud.connectors.azure import AzureBlobConnector
    from secure_media_processor.cloud.connectors.azure_access import AzureAccess
    from secure_media_processor.cloud.connectors.base import CloudConnector
    from secure_media_processor.cloud.connectors.dropbox import DropboxAccess, DropboxConnector
    from secure_media_processor.cloud.connectors.google_drive import GoogleDriveConnector
    from secure_media_processor.cloud.connectors.local import LocalConnector
    from secure_media_processor.cloud.connectors.s3 import S3Access, S3Connector
    from secure_media_processor.cloud.connectors.sftp import SFTPConnector
    from secure_media_processor.cloud.legacy import CloudStorageManager
    from secure_media_processor.cloud.manager import ConnectorManager
    from secure_media_processor.core.audit import AuditLog
    from secure_media_processor.core.encryption import (
        decrypt_file,
        decrypt_stream,
        encrypt_file,
        encrypt_stream,
        verify_file,
    )
    from secure_media_processor.core.keys import SymmetricKey
    from secure_media_processor.core.keystore import Keystore
    from secure_media_processor.core.rate_limiter import RateLimiter
    from secure_media_processor.core.seekable import open_encrypted
    from secure_media_processor.errors import SmpError
    from secure_media_processor.medical.deid.engine import Deidentifier
    from secure_media_processor.medical.dicom.reader import read_folder
    from secure_media_processor.medical.preprocessing.breast import BreastMRIPreprocessor

_HOME_OF = {
    "Archive": "cloud.archive",
    "AuditLog": "core.audit",
    "AzureAccess": "cloud.connectors.azure_access",
    "AzureBlobConnector": "cloud.connectors.azure",
    "BreastMRIPreprocessor": "medical.preprocessing.breast",
    "CloudConnector": "cloud.connectors.base",
    "CloudStorageManager": "cloud.legacy",
    "ConnectorManager": "cloud.manager",
    "Deidentifier": "medical.deid.engine",
    "DropboxAccess": "cloud.connectors.dropbox",
    "DropboxConnector": "cloud.connectors.dropbox",
    "GoogleDriveConnector": "cloud.connectors.google_drive",
    "Keystore": "core.keystore",
    "LocalConnector": "cloud.connectors.local",
    "RateLimiter": "core.rate_limiter",
    "S3Access": "cloud.connectors.s3",
    "S3Connector": "cloud.connectors.s3",
    "SFTPConnector": "cloud.connectors.sftp",
    "SmpError": "errors",
    "SymmetricKey": "core.keys",
    "decrypt_file": "core.encryption",
    "decrypt_stream": "core.encryption",
    "encrypt_file": "core.encryption",
    "encrypt_stream": "core.encryption",
    "open_encrypted": "core.seekable",
    "read_folder": "medical.dicom.reader",
    "verify_file": "core.encryption",
}

__version__ = "3.0.0.dev0"

__all__ = [
    "Archive",
    "AuditLog",
    "AzureAccess",
    "AzureBlobConnector",
    "BreastMRIPreprocessor",
    "CloudConnector",
    "CloudStorageManager",
    "ConnectorManager",
    "Deidentifier",
    "DropboxAccess",
    "DropboxConnector",
    "GoogleDriveConnector",
    "Keystore",
    "LocalConnector",
    "RateLimiter",
    "S3Access",
    "S3Connector",
    "SFTPConnector",
    "SmpError",
    "SymmetricKey",
    "__version__",
    "decrypt_file",
    "decrypt_stream",
    "encrypt_file",
    "encrypt_stream",
    "open_encrypted",
    "read_folder",
    "verify_file",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - nothing is imported until a name is used

    value: object = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
