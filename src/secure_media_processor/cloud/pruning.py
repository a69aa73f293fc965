"""Objects that nothing refers to: what an upload has sent and never written down, because its process died.

Such an object looks the same as one that another machine has just sent and is about to write down. Only time tells them apart,
so each machine remembers when it first saw an object that no record tells of, and lets it go when that is long ago.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secure_media_processor.core.files import locked_folder, make_private_folder, os_errors, write_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

GRACE = 7 * 86400.0
"""Seconds for which an object must have been seen with no record of it. No upload takes so long between the two."""
_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Stray:
    """An object that no record tells of."""

    key: str
    size: int
    """Bytes, all copies together."""
    stores: tuple[str, ...]
    """Names of the stores that have it."""
    seen_for: float
    """Seconds since this machine first saw it so."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, or would be."""

    removed: Sequence[Stray]
    kept: Sequence[Stray]
    """Those that are too new, or that an unfinished upload of this machine may need."""


@dataclass(frozen=True, slots=True)
class StrayBook:
    """The file in which this machine remembers since when it has seen objects that no record tells of."""

    path: Path

    def look(self, present: Mapping[str, Mapping[str, int]], referenced: Iterable[str], now: float) -> list[Stray]:
        """Return the strays among the objects `present` (store → key → size), sorted. What has no key of ours is left out.

        Args:
            present: What each store lists.
            referenced: Keys that some record tells of.
            now: Seconds since 1970.
        """
        known, seen = set(referenced), self._seen()
        keys = {key for listed in present.values() for key in listed if _KEY.fullmatch(key)} - known
        found = []
        for key in sorted(keys):
            stores = tuple(name for name, listed in present.items() if key in listed)
            first = min(seen.get(key, now), now)  # the clock was set back: better late than too soon
            found.append(Stray(key, sum(present[name][key] for name in stores), stores, now - first))
        return found

    def remember(self, strays: Iterable[Stray], now: float) -> None:
        """Write down since when these have been strays, and forget all others: what was referred to meanwhile begins anew."""
        make_private_folder(self.path.parent)
        with locked_folder(self.path.parent):
            first = {stray.key: now - stray.seen_for for stray in strays}
            write_file(self.path, json.dumps(first).encode(), overwrite=True)

    def _seen(self) -> dict[str, float]:
        """Return when each was first seen. A file that is damaged is as none: then all begins anew."""
        try:
            seen = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(seen, dict):
            return {}
        return {key: float(first) for key, first in seen.items() if isinstance(first, int | float)}


def begun_here(journals: Path, keys: Iterable[str]) -> set[str]:
    """Return those of `keys` that a journal in the folder `journals` names: its upload may go on with them."""
    with os_errors(f"read {journals}"):
        texts = [path.read_bytes() for path in journals.iterdir()] if journals.is_dir() else []
    return {key for key in keys if any(key.encode() in text for text in texts)}
