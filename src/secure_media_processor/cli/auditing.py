"""Recording what commands do, as the settings demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_media_processor.cli.ui import current
from secure_media_processor.core.audit import AuditLog
from secure_media_processor.core.config import get_settings

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from secure_media_processor.core.audit import Operation
    from secure_media_processor.errors import SmpError


def recorded(action: str) -> AbstractContextManager[Operation]:
    """Record what the block does in the audit log. If that cannot be written, stop or warn, as audit_on_failure says."""
    settings, ui = get_settings(), current()

    def warn(error: SmpError) -> None:
        ui.warn(f"not recorded: {error}")

    return AuditLog(settings.audit_log).operation(action, on_failure=warn if settings.audit_on_failure == "warn" else None)
