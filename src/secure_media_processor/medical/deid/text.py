"""Cleaning free text by an allow-list: only words that say what was imaged and how are kept, in vocabulary.txt.

No list of names is complete, so names are not looked for. What is not known to be harmless goes: other words, numbers of more
than three digits, dates, and every word that the same file uses as a name, number or address.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

# Dates and times of the day, with any separator.
_MONTH = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DATED = re.compile(
    r"\d{1,4}[-./ ]\d{1,2}[-./ ]\d{1,4}|\d{1,2}/\d{1,2}|\d{1,2}:\d{2}(:\d{2})?"
    rf"|\d{{1,2}}[-. ]*{_MONTH}[-., ]*\d{{0,4}}|{_MONTH}[-. ]*\d{{1,4}}",
    re.IGNORECASE,
)
# Whoever comes after one of these is somebody.
_TITLED = re.compile(r"\b(?:dr|drs|mrs|ms|prof|by|pt|pat|patient|name)\b[.:]?\s+\w+", re.IGNORECASE)
# What may stand between words; whatever else there is could be a letter of another script.
_FOREIGN = re.compile(r"[^A-Za-z0-9 ._,;:+()*/=<>%#-]")
_NUMBERS_IN_A_ROW = re.compile(r"(?<!\S)[\d.,/-]*\d[\d.,/-]*(?:\s+[\d.,/-]*\d[\d.,/-]*)+(?!\S)")
_WORD = re.compile(r"[^\W_]+")
_PIECE = re.compile(r"[^\W\d_]+|\d+")
# Numbers of a protocol, such as a slice thickness; a number of a telephone or a patient comes in longer pieces. With a letter
# that says what it is, such as kV, a number may have one digit more, and a b-value two.
_MOST_DIGITS = 2
# Letters that stand before or after a number in the names of sequences: T2w, b1000, TE80, 5mm, 3D, L5, C7.
_BESIDE_NUMBERS = frozenset(
    [
        "b",
        "c",
        "cm",
        "d",
        "f",
        "g",
        "h",
        "hz",
        "kv",
        "kvp",
        "l",
        "mas",
        "min",
        "mm",
        "ms",
        "p",
        "s",
        "sec",
        "t",
        "te",
        "ti",
        "tr",
    ]
)
_SPACE = re.compile(r"\s+")
_LONE_MARKS = re.compile(r"(?<!\w)[^\w\s](?:[\s]*[^\w\s])*(?!\w)")


def clean_text(text: str, forbidden: frozenset[str]) -> str:
    """Return what may stay of `text`; empty if nothing may.

    Args:
        text: Any.
        forbidden: Words, in lower case, that name somebody or something in the same file.
    """
    plain = _TITLED.sub(" ", _DATED.sub(" ", text))
    words = _WORD.sub(lambda found: found[0] if _is_harmless(found[0].lower(), forbidden) else " ", plain)
    marks = _LONE_MARKS.sub(" ", _FOREIGN.sub(" ", words))
    cleaned = _SPACE.sub(" ", _NUMBERS_IN_A_ROW.sub(" ", marks)).strip()
    return cleaned if any(not word.isdecimal() for word in _WORD.findall(cleaned)) else ""  # numbers alone say nothing


def words_of(text: str) -> set[str]:
    """Return the words of two letters or digits and more in `text`, in lower case, and what they are without marks between."""
    words = _WORD.findall(text.lower())
    return {word for word in (*words, "".join(words)) if len(word) > 1}


def is_usual(word: str) -> bool:
    """Return whether `word`, in lower case, is in the vocabulary."""
    return word in _vocabulary()


def _is_harmless(word: str, forbidden: frozenset[str]) -> bool:
    if word in forbidden:
        return False
    pieces = _PIECE.findall(word)
    if len(pieces) == 1:
        return word in _vocabulary() or (word.isascii() and word.isdecimal() and len(word) <= _MOST_DIGITS)
    numbers = [piece for piece in pieces if piece.isdecimal()]
    letters = [piece for piece in pieces if not piece.isdecimal()]
    most = _MOST_DIGITS + (2 if letters[0] == "b" else 1)
    named = len(letters) == 1 and len(letters[0]) > 1 and letters[0] in _vocabulary()
    known = named or all(piece in _BESIDE_NUMBERS for piece in letters)
    return known and len(numbers) == 1 and word.isascii() and len(numbers[0]) <= most


@cache
def _vocabulary() -> frozenset[str]:
    lines = files(__package__).joinpath("vocabulary.txt").read_text("ascii").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())
