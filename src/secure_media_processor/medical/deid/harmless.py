"""Which words in a picture may stay: scales and units, which say something of the image and nothing of the patient."""

from __future__ import annotations

import re

# No more digits than a depth or a gain has: eight of them would be a number of a patient.
_NUMBER = r"[<>=]{0,2}\s?[-+]?\d{1,3}(?:[.,]\d{1,2})?"
# "m", "s" and "y" are left out: "67 m" and "67 y" are a sex and an age.
_UNIT = r"(?:mm|cm|cm/s|mm/s|m/s|d[Bb]|[kM]?Hz|HZ|KHz|MHZ|fps|FPS|%)"
# Mechanical index and thermal indices (IEC 62359).
_INDEX = r"(?:MI|Mi|TI|TI[SBCsbc])"
# What a number with a unit may be called.
_QUANTITY = r"(?:Depth|AO|Gain|GAIN|DR|FR|PRF|Freq|Frq|WF|D|G)"
_PHRASE = "|".join(
    (
        rf"{_INDEX}(?:\s?[:=]?\s?{_NUMBER})?",
        rf"(?:{_QUANTITY}\s?[:=]?\s?)?{_NUMBER}\s?{_UNIT}",
        _UNIT,
        r"0[.,]\d{1,2}",  # the value of an index: no day, month, age or number of anybody begins like that
    )
)
_HARMLESS = re.compile(rf"(?:{_PHRASE})(?:[\s,;|]+(?:{_PHRASE}))*")
_LONGEST = 48


def is_harmless(text: str) -> bool:
    """Return whether all of `text`, as read from a picture, is made of scale words and numbers with units.

    These are: the indices MI, TI, TIS, TIB and TIC, with or without a number; a number of up to three digits and two decimals
    before one of mm, cm, mm/s, cm/s, m/s, dB, Hz, kHz, MHz, fps and %, which may be called Depth, AO, Gain, DR, FR, PRF, Freq,
    WF, D or G; such a unit alone; and a decimal fraction below one. Upper and lower case count. A number alone, a date, a time,
    an age and every other word are not harmless, nor is a line in which one of them stands beside harmless ones.
    """
    text = text.strip()
    return len(text) <= _LONGEST and _HARMLESS.fullmatch(text) is not None
