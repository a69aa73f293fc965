"""Keeping pydicom from talking: its warnings and log lines quote values, which may be a patient's."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydicom import config

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGGER = logging.getLogger("pydicom")


@contextmanager
def silent_pydicom() -> Iterator[None]:
    """Within the block pydicom reads values without validating them, and neither warns nor logs.

    What is wrong with a file is found where a value is used, and reported in our own words. The switch holds for the whole
    process, so blocks of different threads must not overlap; work in parallel is done in processes.
    """
    mode, disabled = config.settings.reading_validation_mode, _LOGGER.disabled
    config.settings.reading_validation_mode = config.IGNORE
    _LOGGER.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.reading_validation_mode = mode
        _LOGGER.disabled = disabled
