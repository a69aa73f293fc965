"""Moving dates: by one number of days for all that is known of a patient, so that intervals stay what they were."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import sha256

# Back in time by up to ten years: the future would stand out, and much less would leave the season to be guessed.
_MOST_DAYS = 3652
_LEAST_DAYS = 31
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})(.*)", re.DOTALL)
_TIME = re.compile(r"(\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?)?")
_OLDEST = 89
_AGE = re.compile(r"(\d{3})([DWMY])")


@dataclass(frozen=True, slots=True)
class DateShift:
    """A move of dates by whole days; times of the day stay."""

    days: int
    """Negative: into the past."""

    @classmethod
    def of(cls, key: bytes, patient: str) -> DateShift:
        """Return the move for the patient of that pseudonym: the same under the same `key`, -3652 to -31 days."""
        drawn = int.from_bytes(hmac.digest(key, b"date shift\x00" + patient.encode(), sha256)[:8], "big")
        return cls(-_LEAST_DAYS - drawn % (_MOST_DAYS - _LEAST_DAYS + 1))

    def date(self, text: str) -> str | None:
        """Return a DA value (PS3.5 section 6.2) moved, None if it is not a whole date. Empty stays empty."""
        moved = self.datetime(text)
        return moved if not moved or len(moved) == len("YYYYMMDD") else None

    def datetime(self, text: str) -> str | None:
        """Return a DT value moved, None if it has no whole date. A time zone is left out: it tells where somebody was."""
        text = text.strip(" \0")
        if not text:
            return ""
        found = _DATE.fullmatch(text)
        if found is None:
            return None
        time = re.split(r"[+-]", found[4], maxsplit=1)[0]
        try:
            moved = date(int(found[1]), int(found[2]), int(found[3])) + timedelta(days=self.days)
        except (ValueError, OverflowError):
            return None
        return f"{moved:%Y%m%d}{time}" if moved.year >= 1000 and _TIME.fullmatch(time) else None  # noqa: PLR2004 - four digits


def is_time(text: str) -> bool:
    """Return whether `text` is a TM value (PS3.5 section 6.2), with colons as old files have them, or empty."""
    return _TIME.fullmatch(text.strip(" \0").replace(":", "")) is not None


def capped_age(text: str) -> str | None:
    """Return an AS value (PS3.5 section 6.2), None if it is none, with ages over 89 years as 090Y.

    So old, few people are left (45 CFR 164.514). Empty stays empty.
    """
    text = text.strip(" \0")
    found = _AGE.fullmatch(text)
    if found is None:
        return None if text else ""
    return "090Y" if found[2] == "Y" and int(found[1]) > _OLDEST else text
