"""One pass over one data set, and over what it nests, by the rules of a profile."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings
from pydicom.datadict import tag_for_keyword
from pydicom.sequence import Sequence
from pydicom.valuerep import PersonName

from secure_media_processor.medical.deid.constant_elements import blank, new_blank
from secure_media_processor.medical.deid.dates import capped_age, is_time
from secure_media_processor.medical.deid.private import creator_tag, is_creator, is_safe
from secure_media_processor.medical.deid.profile import Option, Rule
from secure_media_processor.medical.deid.table import Action, read_table
from secure_media_processor.medical.deid.text import clean_text, is_usual, words_of
from secure_media_processor.medical.deid.values import has_sound_value
from secure_media_processor.medical.dicom.elements import whole_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from secure_media_processor.medical.deid.dates import DateShift
    from secure_media_processor.medical.deid.profile import Rules
    from secure_media_processor.medical.deid.uids import Pseudonyms

# Far deeper than any object of the standard nests.
_MAX_DEPTH = 64
# Inside a sequence that must be replaced (an SR tree, say) whatever can hold words, dates or bytes is; numbers and codes stay.
_FREE_VRS = frozenset(
    ["AE", "AS", "DA", "DT", "LO", "LT", "OB", "OD", "OF", "OL", "OV", "OW", "PN", "SH", "ST", "TM", "UC", "UN", "UR", "UT"]
)
_WORD_VRS = frozenset(["AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT"])
_NAMING_VRS = _WORD_VRS - {"CS"} | {"PN"}
_TEMPORAL_VRS = frozenset(["DA", "DT", "TM"])
_NEVER_SAFE = frozenset(["AS", "DA", "DT", "PN", "TM", "UI", "UR"])  # whatever a list says of the attribute
_CODE_KEYWORDS = (
    "CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning", "LongCodeValue", "URNCodeValue",
    "MappingResource", "ContextIdentifier", "TemplateIdentifier",
)  # fmt: skip
_CODE_TAGS = {tag for tag in map(tag_for_keyword, _CODE_KEYWORDS) if tag is not None}
# Codes of these schemes are published; a local scheme (99…) can mean anything, a name too.
_PUBLIC_SCHEMES = {
    "DCM", "SCT", "SRT", "SNM3", "99SDM", "LN", "UCUM", "FMA", "RADLEX", "I10", "I9C", "BI", "UMLS", "NCIt", "MSH", "SCPECG",
    "MDC", "IBSI", "RXNORM", "NDC", "NEU", "MA", "UBERON", "ITIS_TSN", "PUBCHEM_CID", "BARI", "ACR", "C4", "C5",
}  # fmt: skip
_IDENTITY_UIDS = {0x0020000D, 0x0020000E, 0x00080018}  # study, series, instance
_TEXT_VALUE, _SCHEME, _CHARACTER_SET = 0x0040A160, 0x00080102, 0x00080005
_BIRTH_DATES = {0x00100030, 0x00100033}
_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_OVERLAY_GROUPS, _OVERLAY_TYPE = 0x6000, 0x0040
_OVERLAY_DATA, _OVERLAY_SIZE = 0x3000, ((0x0010, 0), (0x0011, 0), (0x0015, 1))  # rows, columns, frames
_REGION = "R"  # an overlay that marks a region, not graphics (PS3.3 section C.9.2)
# Shorter words are found in any bytes.
_SHORTEST_IN_BYTES = 4


class RefusedError(Exception):
    """A data set that cannot be de-identified; the text holds nothing of it."""


class _Inside(Enum):
    """What kind of sequence an element stands in."""

    USUAL = "only the table counts"
    REPLACED = "all that can hold words, dates or bytes is replaced"
    CLEANED = "words are cleaned, dates are shifted or replaced"


@dataclass(slots=True)
class _Level:
    """One data set, of a file or an item, while it is being cleaned."""

    dataset: Dataset
    inside: _Inside
    private_codes: bool
    """Whether codes in it may mean anything, and what is in it is not to be taken as it is."""
    regions: set[int]
    """Groups of overlays that mark a region, and so show no text."""
    kept_blocks: set[int] = field(default_factory=set)
    """Tags of the creators of private elements that stay."""
    nested: list[tuple[Sequence, _Inside]] = field(default_factory=list)
    """Sequences whose items are to be cleaned."""


@dataclass(slots=True)
class Cleaner:
    """What is needed to clean one data set, and what was done."""

    rules: Rules
    pseudonyms: Pseudonyms
    shift: DateShift | None
    """For the patient; None if dates are not shifted."""
    actions: Counter[str] = field(default_factory=Counter)
    """"X", "Z", "D", "U", "C" → number of elements."""
    uids: dict[str, str] = field(default_factory=dict)
    """Old → new, of those that were replaced."""
    shares_constants: bool = False
    """Whether elements may be put in that other data sets have, too: if nobody gets this one to change it."""
    _names: frozenset[str] = frozenset()
    """Words that name somebody or something in this data set."""
    _needles: frozenset[bytes] = frozenset()
    """The longer ones of them, and the UIDs, as they may stand among other bytes."""

    def clean(self, dataset: Dataset) -> None:
        """Clean `dataset` in place. Raises RefusedError if it is nested too deeply."""
        if self._reads_words:
            self._names = frozenset(self._naming_words(dataset))
            self._needles = frozenset(self._as_bytes(dataset))
        self._clean(dataset, _Inside.USUAL, 0)

    @property
    def _reads_words(self) -> bool:
        return not self.rules.profile.options.isdisjoint(_OPTIONS_THAT_KEEP_WORDS)

    def _clean(self, dataset: Dataset, inside: _Inside, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise RefusedError("its sequences are nested too deeply")
        level = self._level(dataset, inside)
        for tag in list(dataset.keys()):
            number = int(tag)
            if number >> 16 & 1:
                self._private(level, number)
            elif depth and number in _PIXELS:
                self._apply(dataset, number, Action.REMOVE)  # nobody has looked at what a picture inside an item shows
            else:
                self._element(level, number)
        for block in [tag for tag in map(int, dataset.keys()) if is_creator(tag) and tag not in level.kept_blocks]:
            self._apply(dataset, block, Action.REMOVE)
        for sequence, within in level.nested:
            for item in sequence:
                self._clean(item, within, depth + 1)

    def _level(self, dataset: Dataset, inside: _Inside) -> _Level:
        regions: set[int] = set()
        if Option.CLEAN_GRAPHICS in self.rules.profile.options:
            overlays = {tag >> 16 for tag in map(int, dataset.keys()) if tag >> 16 & 0xFF00 == _OVERLAY_GROUPS}
            regions = {group for group in overlays if _marks_region(dataset, group << 16)}
        private_codes = inside is not _Inside.USUAL and not _is_public_code(dataset)
        return _Level(dataset, inside, private_codes, regions)

    def _element(self, level: _Level, tag: int) -> None:
        """Do what is to be done with an element of the standard; items of sequences come later."""
        rule = self.rules.rule(tag)
        if rule.vr == "SQ" or (not rule.vr and level.dataset.get_item(tag, keep_deferred=True).VR == "SQ"):
            self._sequence(level, tag, rule)
            return
        action = rule.action
        if action is Action.CLEAN and tag >> 16 & 0xFF00 == _OVERLAY_GROUPS:
            action = Action.REMOVE if tag >> 16 not in level.regions else action if rule.vr in _WORD_VRS else None
        if tag == _TEXT_VALUE and level.inside is _Inside.CLEANED:
            action = Action.CLEAN
        if action is None:
            action = self._beyond_table(level, tag, rule)
        if action is not None:
            self._apply(level.dataset, tag, action)

    def _sequence(self, level: _Level, tag: int, rule: Rule) -> None:
        """Remove or empty a sequence, or remember it as one whose items are to be cleaned."""
        action = rule.action
        # What pydicom could not take apart, or no dictionary knows, cannot be cleaned.
        if action is Action.REMOVE or not rule.vr or not isinstance(level.dataset[tag].value, Sequence):
            self._apply(level.dataset, tag, Action.REMOVE)
        elif action is Action.EMPTY:
            self._apply(level.dataset, tag, action)
        else:
            within = {Action.DUMMY: _Inside.REPLACED, Action.CLEAN: _Inside.CLEANED}.get(action or Action.KEEP, level.inside)
            if level.inside is _Inside.REPLACED:
                within = level.inside
            level.nested.append((level.dataset[tag].value, within))

    def _beyond_table(self, level: _Level, tag: int, rule: Rule) -> Action | None:
        """Return what to do with an element for which the table has nothing."""
        if level.inside is not _Inside.USUAL and rule.vr in _FREE_VRS and (level.private_codes or tag not in _CODE_TAGS):
            if level.inside is _Inside.REPLACED or rule.vr not in _WORD_VRS | _TEMPORAL_VRS:
                return Action.DUMMY
            return Action.CLEAN if rule.vr not in _TEMPORAL_VRS or self.shift is not None else self._of_date()
        return None if has_sound_value(level.dataset.get_item(tag, keep_deferred=True), rule) else Action.EMPTY

    def _of_date(self) -> Action | None:
        return None if Option.RETAIN_DATES in self.rules.profile.options else Action.DUMMY

    def _apply(self, dataset: Dataset, tag: int, action: Action) -> None:
        rule = self.rules.rule(tag)
        vr = rule.vr or str(dataset.get_item(tag, keep_deferred=True).VR or "UN")
        if action is Action.CLEAN:
            value = self._cleaned(dataset, tag, vr)
            if value is not None:
                self._count(action)
                if value != []:
                    dataset[tag] = DataElement(tag, vr, value)
                return
            action = rule.fallback if rule.action is Action.CLEAN else Action.DUMMY
        if action is Action.KEEP:
            self._keep(dataset, tag, vr)
            return
        self._count(action)
        if action is Action.REMOVE:
            del dataset[tag]
        elif action is Action.REPLACE_UID or (action is Action.DUMMY and vr == "UI"):
            dataset[tag] = DataElement(tag, vr, [self._uid(tag, uid) for uid in _uids(dataset, tag)])
        else:
            dataset[tag] = (blank if self.shares_constants else new_blank)(tag, vr, action)

    def _keep(self, dataset: Dataset, tag: int, vr: str) -> None:
        """Keep a value that an option keeps, if it has the form of its VR."""
        ages = [capped_age(age) for age in texts_of(dataset, tag)] if vr == "AS" else []
        if ages and None not in ages:
            dataset[tag] = DataElement(tag, vr, ages)
        elif ages or not has_sound_value(dataset.get_item(tag, keep_deferred=True), self.rules.rule(tag)):
            self._count(Action.EMPTY)
            dataset[tag] = DataElement(tag, vr, None)

    def _cleaned(self, dataset: Dataset, tag: int, vr: str) -> list[str] | None:
        """Return the cleaned values of an element, none if it stays as it is; None if it cannot be cleaned."""
        if vr == "TM":
            sound = all(map(is_time, texts_of(dataset, tag)))
            # Numbers of patients are often made of a time.
            return [] if sound and self.shift is not None and not self._names_somebody(dataset, tag) else None
        if vr in _TEMPORAL_VRS:
            if self.shift is None:
                return None
            move = self.shift.date if vr == "DA" else self.shift.datetime
            moved = [move(text) for text in texts_of(dataset, tag)]
            return [text for text in moved if text is not None] if moved and None not in moved else None
        if vr not in _WORD_VRS:
            return None
        cleaned = [clean_text(text, self._names) for text in texts_of(dataset, tag)]
        return cleaned if any(cleaned) else None

    def _private(self, level: _Level, tag: int) -> None:
        """Remove a private element, unless it is known to be safe and names nobody."""
        if is_creator(tag) and Option.RETAIN_SAFE_PRIVATE in self.rules.profile.options:
            return  # it goes when all is known that it stands for
        if self._is_harmless_private(level, tag):
            level.kept_blocks.add(creator_tag(tag))
        else:
            self._apply(level.dataset, tag, Action.REMOVE)

    def _is_harmless_private(self, level: _Level, tag: int) -> bool:
        """Return whether a private element stays; if it is a sequence, remember its items."""
        creator = texts_of(level.dataset, creator_tag(tag))
        if Option.RETAIN_SAFE_PRIVATE not in self.rules.profile.options or len(creator) != 1 or not is_safe(tag, creator[0]):
            return False
        element = level.dataset.get_item(tag, keep_deferred=True)
        if element.VR in (None, "UN", "SQ"):
            element = level.dataset[tag]  # pydicom's dictionary may know a sequence in it
        if element.VR in _NEVER_SAFE:
            return False
        if element.VR != "SQ":
            return not self._names_somebody(level.dataset, tag)
        if isinstance(element.value, Sequence):
            level.nested.append((element.value, _Inside.CLEANED))
            return True
        return False

    def _names_somebody(self, dataset: Dataset, tag: int) -> bool:
        """Return whether a value holds a word that names somebody in this data set, or one of its UIDs."""
        value = dataset.get_item(tag, keep_deferred=True).value
        if isinstance(value, bytes) and any(needle in value or needle in value.lower() for needle in self._needles):
            return True
        texts = [text.lower() for text in texts_of(dataset, tag)]
        # Not every script has spaces between words.
        glued = any(name in text for name in self._names if not name.isascii() for text in texts)
        return glued or any(not self._names.isdisjoint(words_of(text)) for text in texts)

    def _as_bytes(self, dataset: Dataset) -> Iterator[bytes]:
        """Yield names and UIDs as they may be written in bytes that are not known to be text."""
        for tag in _IDENTITY_UIDS:
            yield from (uid.encode() for uid in texts_of(dataset, tag) if uid)
        names = [name for name in self._names if len(name) >= _SHORTEST_IN_BYTES or not name.isascii()]
        encodings = {"utf-8", "latin-1", "utf-16-le", "utf-16-be", *_encodings(dataset)}
        for encoding in encodings:
            for name in names:
                for form in {name, name.upper(), name.title()}:
                    with suppress(UnicodeEncodeError, LookupError):  # this alphabet has it not, or nobody has this alphabet
                        yield form.encode(encoding)

    def _naming_words(self, dataset: Dataset, depth: int = 0) -> set[str]:
        """Return the words of all names, numbers, addresses and birth dates in `dataset`, and in what it nests."""
        words: set[str] = set()
        if depth > _MAX_DEPTH:
            raise RefusedError("its sequences are nested too deeply")
        for tag in list(dataset.keys()):
            number = int(tag)
            if number >> 16 & 1:
                continue
            rule = self.rules.rule(number)
            if rule.vr == "SQ":
                value = dataset[tag].value
                for item in value if isinstance(value, Sequence) else ():
                    words |= self._naming_words(item, depth + 1)
            elif rule.vr == "PN" or number in _BIRTH_DATES or (rule.vr in _NAMING_VRS and _names_things(number, rule)):
                found = {word for text in texts_of(dataset, number) for word in words_of(text)}
                words |= {word for word in found if not is_usual(word)} if _names_places(number) else found
        return words

    def _uid(self, tag: int, original: str) -> str:
        new = self.pseudonyms.instance_uid(original) if tag in _IDENTITY_UIDS else self.pseudonyms.uid(original)
        if new != original:
            self.uids[original] = new
        return new

    def _count(self, action: Action) -> None:
        self.actions[action.value] += 1


_OPTIONS_THAT_KEEP_WORDS = {
    Option.CLEAN_DESCRIPTORS, Option.CLEAN_STRUCTURED_CONTENT, Option.CLEAN_GRAPHICS, Option.RETAIN_SAFE_PRIVATE,
    Option.RETAIN_DEVICE, Option.RETAIN_PATIENT_CHARACTERISTICS, Option.SHIFT_DATES,
}  # fmt: skip


def _names_things(tag: int, rule: Rule) -> bool:
    """Return whether the table has an attribute for who or where it names, not for what it describes; and it is not cleaned."""
    row = read_table().row(tag)
    return row is not None and "descriptors" not in row.options and rule.action is not Action.CLEAN


def _names_places(tag: int) -> bool:
    """Return whether an attribute names a place or a device, which usual words often do: a Heart Center, CT_CHEST."""
    row = read_table().row(tag)
    return row is not None and not {"institution", "device"}.isdisjoint(row.options)


def _encodings(dataset: Dataset) -> list[str]:
    """Return the names of the character sets of `dataset` in Python."""
    try:
        return convert_encodings(texts_of(dataset, _CHARACTER_SET) or [""])
    except LookupError:
        return []


def _marks_region(dataset: Dataset, group: int) -> bool:
    """Return whether an overlay marks a region, and its data are no longer than that."""
    rows, columns, frames = (whole_number(dataset, group | element) or default for element, default in _OVERLAY_SIZE)
    value = dataset[group | _OVERLAY_DATA].value if group | _OVERLAY_DATA in dataset else b""
    bits = rows * columns * frames
    fits = isinstance(value, bytes) and len(value) <= -(-bits // 16) * 2
    return texts_of(dataset, group | _OVERLAY_TYPE) == [_REGION] and fits


def _uids(dataset: Dataset, tag: int) -> list[str]:
    value = dataset[tag].value
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace").split("\\")
    return [str(uid) for uid in ([value] if isinstance(value, str) else value or ())]


def texts_of(dataset: Dataset, tag: int) -> list[str]:
    """Return the values of an element as text, whatever they are; none if it is absent or empty."""
    if tag not in dataset:
        return []
    value = dataset[tag].value
    if isinstance(value, bytes):
        value = value.decode("latin-1").split("\\")
    values = [value] if isinstance(value, str | PersonName) else list(value) if hasattr(value, "__iter__") else [value]
    return [str(one).strip(" \0") for one in values if one is not None]


def _is_public_code(dataset: Dataset) -> bool:
    """Return whether the codes in `dataset`, if any, are of a scheme that is published."""
    scheme = texts_of(dataset, _SCHEME)
    if scheme and any(scheme):
        return len(scheme) == 1 and scheme[0] in _PUBLIC_SCHEMES
    return not any(tag in dataset for tag in _CODE_TAGS)
