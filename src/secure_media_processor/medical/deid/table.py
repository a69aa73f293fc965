"""Table E.1-1 of DICOM PS3.15: which attributes hold an identity, and what to do with each.

The table is data, in basic_profile.csv: one row a tag, by number, since newer tags are in no dictionary yet. Column `basic` is
the Basic Profile, the others are the options of the same table (K keep, C clean). `x` in a tag stands for any digit. Rows that
edition 2026c added to 2024e carry no options: for them only the Basic Profile is known here.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

EDITION = "PS3.15 E.1-1 2024e+2026c"


class Action(Enum):
    """What to do with an attribute."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    REPLACE_UID = "U"
    KEEP = "K"
    CLEAN = "C"


# The table offers a choice where the type of an attribute (PS3.5 section 7.4) depends on the object. Of "remove or replace" we
# replace: a value without meaning is allowed wherever a value was, while a missing one may break a mandatory attribute.
_CHOICE = {
    "X": Action.REMOVE,
    "Z": Action.EMPTY,
    "D": Action.DUMMY,
    "U": Action.REPLACE_UID,
    "X/Z": Action.EMPTY,
    "X/D": Action.DUMMY,
    "Z/D": Action.DUMMY,
    "X/Z/D": Action.DUMMY,
    "X/Z/U": Action.REPLACE_UID,
}


@dataclass(frozen=True, slots=True)
class Row:
    """What the table says of one attribute."""

    basic: Action
    """In the Basic Profile."""
    options: Mapping[str, str]
    """Column of an option → "K" or "C"."""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows by tag."""

    by_tag: Mapping[int, Row]
    """Tag as (group << 16 | element) → row."""
    patterns: tuple[tuple[int, int, Row], ...]
    """(mask, value, row): the row for tags with ``tag & mask == value``."""
    private: Row
    """For every tag in an odd group."""

    def row(self, tag: int) -> Row | None:
        """Return the row for `tag`; None if the table does not name it."""
        if tag >> 16 & 1:
            return self.private
        row = self.by_tag.get(tag)
        return row or next((row for mask, value, row in self.patterns if tag & mask == value), None)


@cache
def read_table() -> Table:
    """Read the table."""
    by_tag: dict[int, Row] = {}
    patterns = []
    private = None
    text = files(__package__).joinpath("basic_profile.csv").read_text("ascii")
    for line in csv.DictReader(text.splitlines()):
        tag, basic = line.pop("tag"), _CHOICE[line.pop("basic")]
        row = Row(basic, {column: value for column, value in line.items() if value in ("K", "C")})
        if tag == "private":
            private = row
        elif "x" in tag:
            mask = int("".join("0" if digit == "x" else "F" for digit in tag), 16)
            patterns.append((mask, int(tag.replace("x", "0"), 16), row))
        else:
            by_tag[int(tag, 16)] = row
    if private is None:
        raise ValueError("the table has no row for private attributes")
    return Table(by_tag, tuple(patterns), private)
