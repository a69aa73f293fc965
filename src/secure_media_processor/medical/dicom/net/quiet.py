"""Keeping the libraries that speak to servers from talking: their lines hold addresses, questions and answers."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from secure_media_processor.medical.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def silent_network() -> Iterator[list[BaseException]]:
    """Within the block neither pynetdicom, urllib3 nor pydicom logs or warns. Yields the errors that they would have logged.

    A logger passes its records on without asking those above it, so each of them is silenced by itself. Threads that serve
    connections must have ended when the block ends: they too use pydicom, which is silent only until then.
    """
    errors: list[BaseException] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            errors.append(record.exc_info[1])
        elif isinstance(record.msg, BaseException):
            errors.append(record.msg)
        return False

    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("pynetdicom", "urllib3")]
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        with silent_pydicom():
            yield errors
    finally:
        for logger in loggers:
            logger.removeFilter(keep)
