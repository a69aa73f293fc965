"""smp upload --bucket and smp download --bucket: one file, one object in S3, no index."""

from __future__ import annotations

from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.chosen_keys import decryption_keys, encryption_key
from secure_media_processor.cli.schemas import BucketDownloaded, BucketUploaded
from secure_media_processor.cli.targets import target_in
from secure_media_processor.cli.ui import current, human_size
from secure_media_processor.cloud.manager import ConnectorManager
from secure_media_processor.cloud.objects import StoredObject
from secure_media_processor.cloud.reading import Replicas
from secure_media_processor.cloud.restoring import restore_container
from secure_media_processor.cloud.stores import Store
from secure_media_processor.cloud.transfer import Uploader
from secure_media_processor.core.config import get_settings
from secure_media_processor.core.encryption import SUFFIX
from secure_media_processor.errors import ExistsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from secure_media_processor.cloud.connectors.base import CloudConnector


def upload_to_bucket(path: Path, bucket: str, remote_key: str | None, key_file: Path | None, *, force: bool) -> None:
    """Encrypt the file `path` on its way into `bucket`."""
    ui = current()
    name = remote_key or f"{path.name.removesuffix(SUFFIX)}{SUFFIX}"
    with recorded("upload") as operation, _open(bucket) as store:
        operation.object = f"{bucket}/{name}".encode("utf-8", "surrogatepass")
        key = encryption_key(key_file)
        uploader = Uploader(
            ConnectorManager({bucket: store}),
            [key],
            [key, *decryption_keys(key_file)],
            get_settings().cloud_state / "uploads",
            key.content_key,
        )
        size = path.stat().st_size if path.is_file() else None
        try:
            with (
                ui.progress("uploading", size) as progress,
                uploader.upload(path, f"{bucket}/{name}", key=name, overwrite=force, progress=progress) as uploaded,
            ):
                pass
        except ExistsError as error:
            error.hint = "name another object with --remote-key, or pass --force to replace it"
            raise
    item = uploaded.status.object
    ui.result(BucketUploaded(bucket, name, item.size, dict(item.digests), uploaded.file_id), "")
    ui.say(f"{path} -> s3://{bucket}/{name} ({human_size(uploaded.size)})")


def download_from_bucket(bucket: str, remote_key: str, output: str | None, key_file: Path | None, *, force: bool) -> None:
    """Fetch an object from `bucket` and decrypt it."""
    ui = current()
    with recorded("download") as operation, _open(bucket) as store:
        operation.object = f"{bucket}/{remote_key}".encode("utf-8", "surrogatepass")
        identities = decryption_keys(key_file)
        item = StoredObject(remote_key, store.stat(remote_key).size, {})
        target = target_in(output, remote_key.rpartition("/")[2].removesuffix(SUFFIX))
        token = sha256(f"{bucket}/{remote_key}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        with ui.progress("downloading", item.size) as progress:
            original = restore_container(
                Replicas({bucket: store}, item), identities, target, token, overwrite=force, progress=progress
            )
    ui.result(BucketDownloaded(str(target), original.size, original.sha256), "")
    ui.say(f"s3://{bucket}/{remote_key} -> {target} ({human_size(original.size)})")


@contextmanager
def _open(bucket: str) -> Iterator[CloudConnector]:
    """Open a bucket with the AWS tools' own settings, the endpoint among them."""
    with Store(bucket, "s3", {"bucket": bucket}).open() as store:
        yield store
