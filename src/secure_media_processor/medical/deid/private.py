"""Private attributes that are known to hold no identity (PS3.15 section E.3.10).

The list, safe_private.csv, has (group, private creator, element) of attributes that the knowledge base of private attributes of
The Cancer Imaging Archive (2024-02-01) keeps wherever it knows them; without those that name persons, dates or instances.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

_FIRST_BLOCK = 0x10


def is_creator(tag: int) -> bool:
    """Return whether `tag` reserves a block of private elements (PS3.5 section 7.8.1)."""
    return bool(tag >> 16 & 1) and _FIRST_BLOCK <= tag & 0xFFFF <= 0xFF  # noqa: PLR2004 - (gggg,0010-00FF)


def creator_tag(tag: int) -> int:
    """Return the tag of the creator of the private element `tag`."""
    return (tag & 0xFFFF0000) | (tag >> 8 & 0xFF)


def is_safe(tag: int, creator: str) -> bool:
    """Return whether the private element `tag` of `creator` is known to hold no identity."""
    return (tag >> 16, creator, tag & 0xFF) in _safe()


@cache
def _safe() -> frozenset[tuple[int, str, int]]:
    lines = files(__package__).joinpath("safe_private.csv").read_text("ascii").splitlines()
    rows = csv.DictReader(lines)
    return frozenset((int(row["group"], 16), row["creator"], int(row["element"], 16)) for row in rows)
