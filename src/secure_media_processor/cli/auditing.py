"""Recording what commands do, as the settings demand."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from secure_media_processor.cli.ui import current
from secure_media_processor.core.audit import AuditLog, Operation
from secure_media_processor.core.config import get_settings
from secure_media_processor.errors import SmpError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def recorded(action: str) -> Iterator[Operation]:
    """Record what the block does in the audit log. If that cannot be written, stop or warn, as audit_on_failure says."""
    settings = get_settings()
    log = AuditLog(settings.audit_log)
    if settings.audit_on_failure == "stop":
        with log.operation(action) as operation:
            yield operation
        return
    operation, outcome = Operation(), "ok"
    try:
        yield operation
    except BaseException as error:
        outcome = error.code if isinstance(error, SmpError) else type(error).__name__
        raise
    finally:
        try:
            log.append(action, operation.object, outcome)
        except SmpError as error:
            current().warn(f"not recorded: {error}")
