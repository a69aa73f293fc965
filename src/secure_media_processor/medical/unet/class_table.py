"""The classes of images, from a CSV file with an id and a label a line.

Labels are whole numbers from 0 without gaps, or names. Names become numbers in the order of the alphabet, unless an order is
given: the last of two classes is the one that sensitivity and AUC are of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.prediction_scores import csv_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MOST_CLASSES: Final = 256
_NOTHING: Final = frozenset({"", "nan", "na", "n/a", "null"})


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Which class each image has."""

    path: Path
    classes: dict[str, int]
    """Id → class, from 0."""
    names: tuple[str, ...]
    """Of the classes, in order."""


def read_classes(path: Path, names: Mapping[int, str] | None = None) -> ClassTable:
    """Read a CSV file in UTF-8 with the columns `id` and `label`; others are left alone.

    Args:
        path: The file.
        names: Class → name. Where labels are names, the order of the classes, all of them; where they are numbers, what the
            classes are called: those that are missing are called by their numbers.

    Raises:
        ImageError: it is no such table, an id is missing or twice there, a label is missing, or there is one class only or a
            gap between them; the line is named, not what stands in it.
        UsageError: `names` does not fit the labels.
        MissingError, FileAccessError: it cannot be read.
    """
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, (id_, label) in csv_lines(path, "label"):
        if not id_:
            raise ImageError(f"{path}, line {line}: it has no id")
        if label.casefold() in _NOTHING:
            raise ImageError(f"{path}, line {line}: it has no label", hint="leave out images whose class is not known")
        if id_ in found:
            raise ImageError(f"{path}, line {line}: the id of line {lines[id_]} again", hint="keep one line a case")
        found[id_], lines[id_] = label, line
    labels = sorted(set(found.values()))
    if len(labels) < 2:  # noqa: PLR2004 - nothing to tell apart
        raise ImageError(f"{path} has {len(labels)} class: there is nothing to tell apart", hint="give images of two classes")
    if len(labels) > MOST_CLASSES:
        raise ImageError(f"{path} has more than {MOST_CLASSES} classes")
    numbered = all(label.isascii() and label.isdigit() for label in labels)
    order = _numbers(path, labels) if numbered else _ordered(labels, names or {})
    shown = _shown(len(order), names or {}) if numbered else tuple(order)
    return ClassTable(path, {id_: order[label] for id_, label in found.items()}, shown)


def _numbers(path: Path, labels: Sequence[str]) -> dict[str, int]:
    """Return label → class where labels are numbers."""
    order = {label: int(label) for label in labels}
    if sorted(order.values()) != list(range(len(labels))):
        raise ImageError(f"{path}: its labels are not 0, 1 and so on without gaps")
    return order


def _shown(count: int, names: Mapping[int, str]) -> tuple[str, ...]:
    """Return the names of classes that are numbers in the table."""
    unknown = sorted(set(names) - set(range(count)))
    if unknown:
        raise UsageError(f"there is no class {unknown[0]} in the data: they are 0 to {count - 1}")
    return tuple(names.get(class_, f"class {class_}") for class_ in range(count))


def _ordered(labels: Sequence[str], names: Mapping[int, str]) -> dict[str, int]:
    """Return label → class where labels are names."""
    if not names:
        return {label: class_ for class_, label in enumerate(labels)}
    if sorted(names) != list(range(len(labels))) or sorted(names.values()) != list(labels):
        raise UsageError(
            "the names of the classes are not those in the table",
            hint="give each name that is there once, with the numbers from 0 on, or none of them",
        )
    return {names[class_]: class_ for class_ in sorted(names)}
