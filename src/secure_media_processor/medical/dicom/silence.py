"""Keeping pydicom from talking: its warnings and log lines quote values, which may be a patient's."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from pydicom import config, dataset, filewriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

_LOGGER = logging.getLogger("pydicom")


@contextmanager
def silent_pydicom() -> Iterator[list[str]]:
    """Within the block pydicom does not validate what it reads, warn or log. Yields what it would have logged.

    What is wrong with a file is found where a value is used, and reported in our own words; the list is for looking at, never
    for showing. The switch holds for the whole process, so blocks of different threads must not overlap; work in parallel is
    done in processes.
    """
    said: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        said.append(record.getMessage())
        return False

    mode, level = config.settings.reading_validation_mode, _LOGGER.level
    config.settings.reading_validation_mode = config.IGNORE
    _LOGGER.setLevel(logging.WARNING)
    _LOGGER.addFilter(keep)
    try:
        with warnings.catch_warnings(), _plain_errors():
            warnings.simplefilter("ignore")
            yield said
    finally:
        config.settings.reading_validation_mode = mode
        _LOGGER.setLevel(level)
        _LOGGER.removeFilter(keep)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Let errors in nested data sets come through as they are.

    pydicom adds the traceback so far to the text at each level, which doubles it each time: an error twelve levels deep takes
    gigabytes, and a file of a few hundred bytes can cause it.
    """

    def plain(_tag: object) -> AbstractContextManager[None]:
        return nullcontext()

    originals = [(module, vars(module)["tag_in_exception"]) for module in (filewriter, dataset)]
    for module, _ in originals:
        vars(module)["tag_in_exception"] = plain
    try:
        yield
    finally:
        for module, original in originals:
            vars(module)["tag_in_exception"] = original
