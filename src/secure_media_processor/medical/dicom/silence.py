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
_listening: dict[int, list[str]] = {}
"""What each block has heard so far that has begun and not ended, by its id()."""


@contextmanager
def silent_pydicom() -> Iterator[list[str]]:
    """Within the block pydicom does not validate what it reads, warn or log. Yields what it would have logged.

    What is wrong with a file is found where a value is used, and reported in our own words; the list is for looking at, never
    for showing. Blocks may stand inside each other, and then all of them hear. The switch holds for the whole process, so
    blocks of different threads must not overlap; work in parallel is done in processes.
    """
    said: list[str] = []
    _listening[id(said)] = said
    try:
        if len(_listening) > 1:  # the outer one has done it all
            yield said
            return
        with _switched_off():
            yield said
    finally:
        del _listening[id(said)]


@contextmanager
def _switched_off() -> Iterator[None]:
    mode, level = config.settings.reading_validation_mode, _LOGGER.level
    config.settings.reading_validation_mode = config.IGNORE
    if level != logging.WARNING:  # setting it makes all loggers forget what they had worked out
        _LOGGER.setLevel(logging.WARNING)
    _LOGGER.addFilter(_keep)
    try:
        with warnings.catch_warnings(), _plain_errors():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.reading_validation_mode = mode
        if level != logging.WARNING:
            _LOGGER.setLevel(level)
        _LOGGER.removeFilter(_keep)


def _keep(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    for said in list(_listening.values()):
        said.append(message)
    return False


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
