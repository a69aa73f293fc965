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

EDITION = "PS3.15 E.1-1 2024e+2026c"


class Action(Enum):
    """What to do with an attribute."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    REPLACE_UID = "U"


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
class ActionTable:
    """The actions of the Basic Profile."""

    by_tag: dict[int, Action]
    """Tag as (group << 16 | element) → action."""
    patterns: tuple[tuple[int, int, Action], ...]
    """(mask, value, action): the action for tags with ``tag & mask == value``."""
    private: Action
    """For every tag in an odd group."""

    def action_for(self, tag: int) -> Action | None:
        """Return what to do with `tag`; None if the table does not name it."""
        if tag >> 16 & 1:
            return self.private
        action = self.by_tag.get(tag)
        if action is None:
            action = next((act for mask, value, act in self.patterns if tag & mask == value), None)
        return action


@cache
def basic_profile() -> ActionTable:
    """Read the table of the Basic Profile."""
    by_tag: dict[int, Action] = {}
    patterns = []
    private = None
    text = files(__package__).joinpath("basic_profile.csv").read_text("ascii")
    for row in csv.DictReader(text.splitlines()):
        tag, action = row["tag"], _CHOICE[row["basic"]]
        if tag == "private":
            private = action
        elif "x" in tag:
            mask = int("".join("0" if digit == "x" else "F" for digit in tag), 16)
            patterns.append((mask, int(tag.replace("x", "0"), 16), action))
        else:
            by_tag[int(tag, 16)] = action
    if private is None:
        raise ValueError("the table has no row for private attributes")
    return ActionTable(by_tag, tuple(patterns), private)
