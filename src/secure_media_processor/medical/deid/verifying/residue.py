"""Searching the bytes of an output for what the original said.

What is looked for ("marks") is taken from every attribute of the original that must change: those of the table, names of
persons and private elements wherever they stand, elements that no dictionary knows, the preamble and file meta information.

* UIDs, whole.
* Names of persons: each word of at least 4 letters (2 characters of other scripts), and the whole name.
* Numbers of at least 5 digits, and words of at least 5 characters that mix letters and digits (patient and accession numbers).
* DS and IS values of at least 5 digits, whole.
* Dates, whole; times with minutes, whole.
* Other text: the whole value from 5 characters on, its sentences from 16 characters on. Of institutions and addresses each word
  of at least 4 letters.
* Bytes: the texts in them from 6 characters on, and 32 bytes out of their middle.

A mark counts only between characters that are not of its kind: 20040119 is not found in a longer number. To keep false alarms
away, nothing is looked for that says nothing (zeros, "ANONYMIZED"), and short text in words that DICOM itself uses (CHEST,
HEAD) is looked for only as the whole value of an element. *Weak* marks (all but names, UIDs and numbers of patients) are not
looked for if the original says the same in an attribute that must stay as it is. *Strong* ones are: a name there is a leak.

They are searched, in any case of letters, in all bytes of the file, also inflated, inside Base64, as UTF-16, and in the
character sets of original and output.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pydicom._dicom_dict import DicomDictionary
from pydicom._uid_dict import UID_dictionary

from secure_media_processor.medical.deid.verifying import rules as tags
from secure_media_processor.medical.deid.verifying.comparing import place_of
from secure_media_processor.medical.deid.verifying.elements import TEXT_VRS, DataSet, DicomFile, Element, leaves
from secure_media_processor.medical.deid.verifying.values import is_void, is_void_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from secure_media_processor.medical.deid.verifying.rules import Rules

_MIN_LETTERS, _MIN_OTHER_SCRIPT, _MIN_DIGITS, _MIN_VALUE, _MIN_PHRASE, _MIN_SENTENCE, _MIN_UID = 4, 2, 5, 5, 12, 16, 6
_MIN_HIDDEN = 6  # characters of text between bytes
_SAMPLE = 32  # bytes
_MIN_VARIETY = 8  # different bytes of a sample: fewer are a pattern
_MAX_SCANNED = 1 << 16  # bytes of one binary value in which text is looked for
_PRINTABLE = re.compile(rb"[ -~]{4,}")
_WIDE = re.compile(rb"[ -~]?(?:\0[ -~]){4,}\0?")
_BASE64 = re.compile(rb"[A-Za-z0-9+/](?:[A-Za-z0-9+/]|\r?\n){15,}")
_TEXT_IN_BYTES = re.compile(rb"[ -~]{%d,}" % _MIN_HIDDEN)
_LETTERS = re.compile(r"[^\W\d_]+")
_DIGITS = re.compile(r"\d+")
_MIXED = re.compile(r"[^\W_]+(?:[-_][^\W_]+)*")
_SENTENCE_END = re.compile(r"[\r\n\f]+|[.;!?](?=\s)")
_BULK = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_DATE_VRS = frozenset({"DA", "DT", "TM"})
_PREAMBLE_PLACE = "preamble"


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that must not be found."""

    text: str
    """In lower case; empty if `data` is looked for."""
    place: str
    """Of the attribute of the original that it comes from."""
    strong: bool = False
    whole: bool = False
    """Looked for only as the whole value of an element."""
    is_date: bool = False
    """Not looked for in elements of dates and times, if these were shifted: one date may become another."""
    data: bytes = b""
    """Bytes to be found as they are."""


@cache
def _vocabulary() -> frozenset[str]:
    """Return the words that DICOM itself uses in names of attributes and UIDs. As a value they say little."""
    names = [entry[2] for entry in DicomDictionary.values()] + [entry[0] for entry in UID_dictionary.values()]
    return frozenset(word.lower() for name in names for word in _LETTERS.findall(name))


def _is_common(text: str) -> bool:
    """Return whether a text is so short that it may stand anywhere, and all its words are DICOM's own."""
    if len(text) >= _MIN_PHRASE or any(_number_marks(text, "", strong=False)):
        return False
    return all(word.lower() in _vocabulary() or len(word) < _MIN_LETTERS for word in _LETTERS.findall(text))


# --- what to look for ------------------------------------------------------------------------------------------------------


def marks_of(original: DicomFile, rules: Rules) -> list[Mark]:
    """Return what must not be found in the output of `original`."""
    kept_text, kept_bytes = bytearray(), bytearray()
    collector = _Collector(rules)
    marks: list[Mark] = []
    for element, path, inside in _walk(original.dataset, (), rules, inside=False):
        if collector.changes(element, inside=inside):
            marks += collector.marks(element, place_of(path))
        elif element.vr in TEXT_VRS:
            kept_text += "\\".join(element.texts).lower().encode("utf-8", "replace") + b"\0"
        elif element.vr in _BULK:
            kept_bytes += element.value
    for tag, element in original.meta.items():
        if tag not in tags.META_TAGS:
            marks += collector.marks(element, place_of((tag,)))
    for hidden in _TEXT_IN_BYTES.findall(original.preamble):
        marks += _text_marks(hidden.decode("ascii"), _PREAMBLE_PLACE, strong=False, words=False)
    kept = bytes(kept_text)
    found: dict[tuple[str, bytes], Mark] = {}
    for mark in marks:
        stays = mark.data in kept_bytes if mark.data else mark.text.encode("utf-8", "replace") in kept
        if mark.strong or not stays:
            # The same text may come from several places: one of them is enough, the strongest if there is one.
            key = (mark.text, mark.data)
            found[key] = mark if mark.strong else found.get(key, mark)
    return list(found.values())


def _walk(
    dataset: DataSet, path: tuple[int, ...], rules: Rules, *, inside: bool
) -> Iterator[tuple[Element, tuple[int, ...], bool]]:
    """Yield every element that is no sequence, with its path, and whether all free text around it must be replaced."""
    for element in dataset.values():
        here = (*path, element.tag)
        if element.items is None:
            yield element, here, inside
            continue
        permitted = rules.permitted(element.tag)
        deeper = inside or (permitted is not None and permitted.isdisjoint("CKU"))
        for item in element.items:
            yield from _walk(item, here, rules, inside=deeper and not (permitted is not None and "C" in permitted))


@dataclass(frozen=True, slots=True)
class _Collector:
    """Makes marks of the elements that must change."""

    rules: Rules

    def changes(self, element: Element, *, inside: bool) -> bool:
        """Return whether an element must lose its value."""
        tag, vr = element.tag, element.vr
        if tag in tags.FREE_TO_CHANGE_TAGS | tags.CODE_TAGS | tags.CODE_FRAME_TAGS | tags.KIND_UID_TAGS | tags.PIXEL_TAGS:
            return False
        permitted = self.rules.permitted(tag)
        if permitted is not None:
            if vr == "PN":
                return "K" not in permitted
            if self._is_shifted(tag):
                return vr == "DA"
            return permitted.isdisjoint("CK")
        if vr in {"PN", "UR"} or tag in tags.TEXT_VALUE_TAGS:
            return not (tag in tags.TEXT_VALUE_TAGS and self.rules.has("clean-structured-content", "clean-descriptors"))
        if vr == "UI":
            return not self.rules.has("retain-uids")
        if not tags.is_known(tag):
            return True
        return inside and vr in TEXT_VRS - {"CS", "DS", "IS"}

    def _is_shifted(self, tag: int) -> bool:
        row = tags.table().row(tag)
        return self.rules.has("shift-dates") and row is not None and ("modified_dates", "C") in row.options

    def marks(self, element: Element, place: str) -> Iterator[Mark]:
        """Yield what to look for of an element."""
        if is_void(element):
            return
        vr, tag = element.vr, element.tag
        if vr in _BULK:
            yield from _byte_marks(element.value, place)
        if vr not in TEXT_VRS:
            return
        row = None if tag >> 16 & 1 else tags.table().row(tag)
        columns = {column for column, _ in row.options} if row is not None else set()
        words = "institution" in columns or tag in tags.ADDRESS_TAGS
        for text in element.texts:
            if is_void_text(text):
                continue
            yield from self._value_marks(element, text, place, strong=row is not None and not columns, words=words)

    def _value_marks(self, element: Element, text: str, place: str, *, strong: bool, words: bool) -> Iterator[Mark]:
        """Yield what to look for of one value of text."""
        match element.vr:
            case "UI":
                uid = text.strip(" \0")
                if uid not in UID_dictionary and len(uid) >= _MIN_UID:
                    # The option keeps most attributes with a UID, not all: what one must lose, another may rightly keep.
                    yield Mark(uid.lower(), place, strong=not self.rules.has("retain-uids"))
            case "PN":
                yield from _name_marks(text, place)
            case "DA" | "DT":
                yield from _date_marks(text, place, shifted=self._is_shifted(element.tag))
            case "TM":
                time = text.partition(".")[0].replace(":", "")
                if len(time) == 6 and not time.endswith("0000"):  # noqa: PLR2004 - hours, minutes, seconds
                    yield Mark(time, place)
            case "DS" | "IS":
                if sum(map(str.isdigit, text)) >= _MIN_DIGITS:
                    yield Mark(text.strip().lower(), place)
            case "AS":
                return  # it is compared where it stands; alone it says too little
            case _:
                yield from _text_marks(text, place, strong=strong, words=words)


def _name_marks(text: str, place: str) -> Iterator[Mark]:
    """Yield the words of a person's name."""
    for word in _LETTERS.findall(text):
        enough = _MIN_LETTERS if word.isascii() else _MIN_OTHER_SCRIPT
        if len(word) >= enough and word.lower() not in _vocabulary() and not is_void_text(word):
            yield Mark(word.lower(), place, strong=True)
    yield from _number_marks(text, place, strong=True)
    if len(text) >= _MIN_VALUE and not _is_common(text):
        yield Mark(text.lower(), place, strong=True)


def _date_marks(text: str, place: str, *, shifted: bool) -> Iterator[Mark]:
    digits = text.replace(".", "", 2) if text[4:5] == "." else text
    day = digits[:8]
    if len(day) == 8 and day.isdigit() and not is_void_text(day):  # noqa: PLR2004 - YYYYMMDD
        yield Mark(day, place, is_date=shifted)
        if not shifted:
            yield Mark(f"{day[:4]}-{day[4:6]}-{day[6:]}", place)


def _number_marks(text: str, place: str, *, strong: bool) -> Iterator[Mark]:
    """Yield numbers, and words that mix letters and digits."""
    for digits in _DIGITS.findall(text):
        if len(digits) >= _MIN_DIGITS and len(set(digits)) > 1:
            yield Mark(digits, place, strong=strong)
    for word in _MIXED.findall(text):
        if len(word) >= _MIN_VALUE and any(map(str.isdigit, word)) and any(map(str.isalpha, word)):
            yield Mark(word.lower(), place, strong=strong)


def _text_marks(text: str, place: str, *, strong: bool, words: bool) -> Iterator[Mark]:
    """Yield what to look for of other text."""
    stripped = text.strip()
    if len(stripped) < _MIN_VALUE or _is_common(stripped):
        # Looked for in vain where it is too short to mean anything anywhere.
        if len(stripped) >= _MIN_LETTERS:
            yield Mark(stripped.lower(), place, whole=True)
        return
    yield Mark(stripped.lower(), place)
    for sentence in _SENTENCE_END.split(stripped):
        if len(sentence.strip()) >= _MIN_SENTENCE and not _is_common(sentence):
            yield Mark(sentence.strip().lower(), place)
    yield from _number_marks(stripped, place, strong=strong)
    for word in _LETTERS.findall(stripped) if words else ():
        if len(word) >= _MIN_LETTERS and word.lower() not in _vocabulary() and not is_void_text(word):
            yield Mark(word.lower(), place)


def _byte_marks(value: bytes, place: str) -> Iterator[Mark]:
    for hidden in _TEXT_IN_BYTES.findall(value[:_MAX_SCANNED]):
        yield from _text_marks(hidden.decode("ascii"), place, strong=False, words=False)
    middle = max(len(value) // 2 - _SAMPLE // 2, 0)
    sample = value[middle : middle + _SAMPLE]
    if len(set(sample)) >= _MIN_VARIETY:
        yield Mark("", place, data=sample)


# --- looking for it --------------------------------------------------------------------------------------------------------


def places_left(marks: list[Mark], output: DicomFile, path: Path | None = None) -> tuple[set[str], set[str]]:
    """Return the places of the original whose marks are found in the bytes of `output`, and those found in the name `path`."""
    searched = _Searched(output)
    inside = {mark.place for mark in marks if searched.has(mark)}
    name = str(path).lower() if path is not None else ""
    named = {mark.place for mark in marks if mark.text and not mark.whole and _stands_in(mark.text, name)}
    return inside, named


class _Searched:
    """The bytes of an output, made ready for many searches."""

    def __init__(self, output: DicomFile) -> None:
        everything = output.raw + output.inflated
        embedded = b"\n".join(_from_base64(everything))
        self._bytes = everything + embedded
        # Once more element by element: the byte after a value, which begins the next tag, may look like one more letter.
        every = [element for dataset in (output.meta, output.dataset) for element in leaves(dataset)]
        narrow = b"\n".join(run for data in (self._bytes, *(e.value for e in every)) for run in _PRINTABLE.findall(data))
        wide = b"\n".join(found.replace(b"\0", b"") for found in _WIDE.findall(self._bytes))
        self._text = (narrow + b"\n" + wide).decode("ascii").lower()
        elements = [element for element in leaves(output.dataset) if element.vr in TEXT_VRS]
        self._values = {text.strip(" \0").lower() for element in elements for text in element.texts}
        self._charsets = {codec for element in elements for codec in element.charset}
        # Characters that are not ASCII are compared after decoding: the output may have another character set.
        self._decoded = "\n".join(text for element in elements for text in element.texts if not text.isascii()).lower()
        undated = [e for e in elements if e.vr not in _DATE_VRS]
        self._undated = "\n".join(text for element in undated for text in element.texts).lower()

    def has(self, mark: Mark) -> bool:
        """Return whether `mark` is there."""
        if mark.data:
            return mark.data in self._bytes
        if mark.whole:
            return mark.text in self._values
        if mark.is_date:
            return _stands_in(mark.text, self._undated)
        if mark.text.isascii():
            return _stands_in(mark.text, self._text)
        forms = {mark.text, mark.text.upper(), mark.text.title()}
        codings = ("utf-8", "utf-16-le", "utf-16-be")
        raw = any(form.encode(coding) in self._bytes for form in forms for coding in codings)
        return raw or _stands_in(mark.text, self._decoded)


def _from_base64(data: bytes) -> Iterator[bytes]:
    """Yield what Base64 in `data` may stand for. Where it begins is not known, so each of four beginnings is tried."""
    for found in _BASE64.findall(data):
        packed = found.replace(b"\r", b"").replace(b"\n", b"")
        for skip in range(4):
            part = packed[skip:]
            try:
                yield base64.b64decode(part[: len(part) // 4 * 4])
            except binascii.Error:  # it was not Base64
                continue


def _stands_in(text: str, within: str) -> bool:
    """Return whether `text` is in `within`, and not as a part of a longer word or number."""
    start = within.find(text)
    while start >= 0:
        end = start + len(text)
        before, after = within[start - 1 : start], within[end : end + 1]
        if not (_continues(before, text[0]) or _continues(text[-1], after)):
            return True
        start = within.find(text, start + 1)
    return False


def _continues(one: str, other: str) -> bool:
    """Return whether two neighbours are of one word or one number."""
    return (one.isdigit() and other.isdigit()) or (one.isalpha() and other.isalpha())
