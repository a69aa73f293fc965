"""Comparing an output with its original, attribute by attribute at every depth."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import dictionary_VR

from secure_media_processor.medical.deid.verifying import rules as tags
from secure_media_processor.medical.deid.verifying.elements import (
    GRAPHIC_GROUPS,
    TEXT_VRS,
    DataSet,
    DicomFile,
    Element,
    in_dictionary,
)
from secure_media_processor.medical.deid.verifying.findings import Kind, Violation
from secure_media_processor.medical.deid.verifying.links import Links, digest
from secure_media_processor.medical.deid.verifying.rules import Rules, tag_name
from secure_media_processor.medical.deid.verifying.values import date_in, is_sound, is_void, same, shared

if TYPE_CHECKING:
    from collections.abc import Iterator

_STUDY, _PATIENT_NAME, _PATIENT_ID, _ISSUER = 0x0020000D, 0x00100010, 0x00100020, 0x00100021
_SOP_INSTANCE, _MEDIA_STORAGE_INSTANCE = 0x00080018, 0x00020003
_SCHEME = 0x00080102
_OVERLAY_TEXTS = (0x0022, 0x1500)  # OverlayDescription, OverlayLabel
_BIRTH_DATE, _AGE = 0x00100030, 0x00101010
_EVENT_DATES = (0x00080020, 0x00080021, 0x00080022, 0x00080023, 0x0008002A)
_OLDEST = 89  # years: HIPAA's Safe Harbor, 45 CFR 164.514(b)(2)(i)(C)
_YEAR = 365.25
_REMOVED = frozenset("X")
_KEPT = frozenset("K")
_METHOD_CODES = 0x00120064
# Where everything is to be replaced, these VRs can hold words, dates or bytes; numbers and CS keep the structure.
_FREE_VRS = frozenset(
    {"AE", "AS", "DA", "DT", "LO", "LT", "OB", "OD", "OF", "OL", "OV", "OW", "PN", "SH", "ST", "TM", "UC", "UN", "UT"}
)
# Schemes of codes with these beginnings are local (PS3.16 section 8): their codes can mean anything. 99SDM became SRT.
_LOCAL_SCHEME, _PUBLIC_EXCEPTION = "99", "99SDM"


@dataclass(slots=True)
class Comparison:
    """One output against its original."""

    rules: Rules
    links: Links
    number: int
    """Of the output file, for what is found later."""
    patient: bytes = b""
    """Digest of the original patient."""
    violations: set[Violation] = field(default_factory=set)
    lost: Counter[str] = field(default_factory=Counter)
    """Place of an attribute that should have survived → how often."""
    checked: int = 0
    """Elements of the output."""

    def run(self, original: DicomFile, output: DicomFile) -> None:
        """Compare everything but the bytes (see residue.py)."""
        self.patient = patient_of(original.dataset)
        self._file(original, output)
        self._patient_map(original.dataset, output.dataset)
        self._datasets(original.dataset, output.dataset, (), inside=False)
        self._statement(output.dataset)
        self._ages(output.dataset)

    def _add(self, kind: Kind, path: tuple[int, ...]) -> None:
        self.violations.add(Violation(kind, place_of(path)))

    # --- the file around the data set -------------------------------------------------------------------------------

    def _file(self, original: DicomFile, output: DicomFile) -> None:
        for tag in output.meta:
            if tag not in tags.META_TAGS:
                self._add(Kind.FILE_META, (tag,))
        meta = output.meta.get(_MEDIA_STORAGE_INSTANCE)
        instance = output.dataset.get(_SOP_INSTANCE)
        if meta is None or instance is None or meta.texts != instance.texts:
            self._add(Kind.UID_MAP, (_MEDIA_STORAGE_INSTANCE,))
        if any(output.preamble) and output.preamble == original.preamble:
            self.violations.add(Violation(Kind.PREAMBLE, ""))
        if output.trailing not in (b"", b"\0"):  # deflated data may be padded to an even length (PS3.5 section A.5)
            self.violations.add(Violation(Kind.TRAILING, ""))

    def _patient_map(self, original: DataSet, output: DataSet) -> None:
        if _PATIENT_ID in output and original.get(_PATIENT_ID) is not None and not original[_PATIENT_ID].is_empty:
            new = "\\".join(output[_PATIENT_ID].texts)
            # One original may come with and without an issuer; two originals must never become one.
            if not output[_PATIENT_ID].is_empty and not self.links.patients.add(self.patient.hex(), new):
                self._add(Kind.PATIENT_MAP, (_PATIENT_ID,))

    def _statement(self, output: DataSet) -> None:
        removed = output.get(0x00120062)
        if removed is None or removed.texts != ("YES",):
            self._add(Kind.STATEMENT, (0x00120062,))
        codes = method_codes(output)
        wanted = {tags.BASIC_CODE} | {tags.OPTION_CODES[option][1] for option in self.rules.options}
        if not wanted <= codes:
            self._add(Kind.STATEMENT, (_METHOD_CODES,))
        # PS3.15 section E.3.2: what is cleaned of recognizable features says so.
        faces = output.get(0x00280302)
        if self.rules.has("deface") and tags.PIXEL_TAGS & output.keys() and (faces is None or faces.texts != ("NO",)):
            self._add(Kind.STATEMENT, (0x00280302,))
        temporal = output.get(0x00280303)
        expected = (
            "MODIFIED" if self.rules.has("shift-dates") else "UNMODIFIED" if self.rules.has("retain-dates") else "REMOVED"
        )
        if temporal is None or temporal.texts != (expected,):
            self._add(Kind.STATEMENT, (0x00280303,))

    def _ages(self, output: DataSet) -> None:
        age = output.get(_AGE)
        for text in age.texts if age is not None else ():
            if text[:3].isdigit() and text[3:] == "Y" and int(text[:3]) > _OLDEST:
                self._add(Kind.AGE, (_AGE,))
        birth = date_in(output[_BIRTH_DATE].texts[0]) if _BIRTH_DATE in output else None
        for tag in _EVENT_DATES if birth else ():
            event = date_in(output[tag].texts[0]) if tag in output else None
            if birth and event and (event - birth).days >= (_OLDEST + 1) * _YEAR and not is_void(output[_BIRTH_DATE]):
                self._add(Kind.AGE, (_BIRTH_DATE,))

    # --- the data set -----------------------------------------------------------------------------------------------

    def _datasets(self, original: DataSet, output: DataSet, path: tuple[int, ...], *, inside: bool) -> None:
        """Compare two data sets. `inside` a sequence that must be replaced, all free text must be."""
        local_code = (inside or self.rules.has("clean-structured-content")) and _is_local_code(original)
        for tag in original.keys() | output.keys():
            one, other = original.get(tag), output.get(tag)
            if other is not None:
                self.checked += 1
            self._element(one, other, (*path, tag), inside=inside, local_code=local_code)

    def _element(
        self, one: Element | None, other: Element | None, path: tuple[int, ...], *, inside: bool, local_code: bool
    ) -> None:
        tag = path[-1]
        if other is not None and self._is_foreign(tag, path):
            return
        if one is not None and other is not None and "SQ" in (one.vr, other.vr):
            self._sequence(one, other, path, inside=inside)
            return
        permitted = self.rules.permitted(tag)
        if other is not None and permitted == _REMOVED:
            self._add(Kind.PRESENT, path)
        elif one is None:
            if other is not None:
                self._added(other, path)
        elif other is None:
            self._gone(one, permitted, path, inside=inside)
        elif permitted is None:
            self._unlisted(one, other, path, inside=inside, local_code=local_code)
        else:
            self._listed(one, other, permitted, path)

    def _is_foreign(self, tag: int, path: tuple[int, ...]) -> bool:
        """Note what must not be in any output, whatever its value is."""
        if tag >> 16 & 1:
            # Under the option the value is judged by the search of the bytes: which are safe, the manufacturer knows.
            if not self.rules.has("retain-safe-private") and tag not in tags.table().rows:
                self._add(Kind.PRIVATE, path)
                return True
            return tag not in tags.table().rows
        if not tags.is_known(tag) or tag >> 16 in {0x0000, 0x0002, 0x0006}:
            self._add(Kind.UNKNOWN, path)
            return True
        return False

    def _added(self, other: Element, path: tuple[int, ...]) -> None:
        """An attribute that the original has not: it says how the file was made, or comes from elsewhere in the original."""
        if other.vr == "UI" and path[-1] not in tags.KIND_UID_TAGS:
            self._new_uids(other)
        for item in other.items or ():
            self._datasets({}, item, path, inside=False)

    def _gone(self, one: Element, permitted: frozenset[str] | None, path: tuple[int, ...], *, inside: bool) -> None:
        tag = path[-1]
        if tag in tags.PIXEL_TAGS:
            self._add(Kind.PIXELS, path)
            return
        if one.vr == "UI":
            self._old_uids(one, path)
        if permitted is None:
            self._lost(one, path, inside=inside)
        elif permitted.isdisjoint("XC") and tag >> 16 != 0x0002:  # noqa: PLR2004 - file meta is written anew
            self.lost[place_of(path)] += 1

    def _lost(self, one: Element, path: tuple[int, ...], *, inside: bool) -> None:
        """Note that an attribute outside the table is gone or changed, unless there is a good reason."""
        tag = path[-1]
        group = tag >> 16
        excused = (
            group & 1
            or tag & 0xFFFF == 0  # group lengths are retired
            or (group & 0xFF00) in GRAPHIC_GROUPS  # without their data the rest describes nothing
            or group in {0x0000, 0x0002}
            or tag in tags.FREE_TO_CHANGE_TAGS | tags.TEXT_VALUE_TAGS | tags.LIKE_LISTED_TAGS
            or (_vr_of(one) in tags.MAY_GO_VRS and not self.rules.has("retain-dates"))
            or (_vr_of(one) in tags.FREE_TEXT_VRS and group in tags.FREE_TEXT_GROUPS)
            or not tags.is_known(tag)
            or _vr_of(one) in {"PN", "UR"}
            or not is_sound(one)
            or (inside and _vr_of(one) in _FREE_VRS)
            or (tag in tags.PIXEL_DESCRIPTION_TAGS and self.rules.has("clean-pixels", "deface"))
        )
        if not excused:
            self.lost[place_of(path)] += 1

    def _unlisted(self, one: Element, other: Element, path: tuple[int, ...], *, inside: bool, local_code: bool) -> None:
        tag, vr = path[-1], _vr_of(one)
        if tag in tags.PIXEL_TAGS:
            if not same(one, other) and not self.rules.has("clean-pixels", "deface"):
                self._add(Kind.PIXELS, path)
            return
        if tag in tags.SHAPE_TAGS and not same(one, other) and len(path) == 1:
            self._add(Kind.PIXELS, path)
            return
        if vr == "UI" and tag not in tags.KIND_UID_TAGS:
            self._uids(one, other, path, keep=self.rules.has("retain-uids"), must_keep=False)
            return
        if self._must_change(tag, vr, inside=inside, local_code=local_code):
            if not is_void(one) and shared(one, other):
                self._add(Kind.KEPT, path)
        elif not same(one, other) and not (local_code and tag in tags.CODE_TAGS | tags.CODE_FRAME_TAGS):
            self._lost(one, path, inside=inside)

    def _must_change(self, tag: int, vr: str, *, inside: bool, local_code: bool) -> bool:
        """Return whether an attribute outside the table must not keep its value."""
        if tag in tags.FREE_TO_CHANGE_TAGS | tags.CODE_FRAME_TAGS:
            return False
        if vr in {"PN", "UR"}:
            return True
        if tag in tags.LIKE_LISTED_TAGS:
            return True
        if tag in tags.TEXT_VALUE_TAGS:
            return not self.rules.has("clean-structured-content", "clean-descriptors")
        if (tag >> 16 & 0xFF00) in GRAPHIC_GROUPS and not self.rules.has("clean-graphics"):
            return vr in TEXT_VRS and tag & 0xFFFF in _OVERLAY_TEXTS
        if tag in tags.CODE_TAGS:
            return local_code and inside
        return inside and vr in _FREE_VRS

    def _listed(self, one: Element, other: Element, permitted: frozenset[str], path: tuple[int, ...]) -> None:
        """Judge an attribute that the table names, and that both have."""
        tag, vr = path[-1], _vr_of(one)
        if vr == "UI" and tag not in tags.KIND_UID_TAGS:
            self._uids(one, other, path, keep="K" in permitted or "C" in permitted, must_keep=permitted == _KEPT)
        elif permitted == _KEPT:
            # An age over 89 must not be kept; _ages looks whether it was.
            if not same(one, other) and tag != _AGE and vr not in {"PN", "UR"} and is_sound(one):
                self.lost[place_of(path)] += 1
        elif self._is_shifted(tag, permitted) and vr in {"DA", "DT"}:
            self._dates(one, other, path, keep="K" in permitted)
        elif "C" in permitted or "K" in permitted:
            return  # whether it was cleaned is seen in its bytes: residue.py
        elif other.is_empty:
            if "Z" not in permitted and not one.is_empty:
                self.lost[place_of(path)] += 1
        elif not is_void(one) and shared(one, other):
            self._add(Kind.KEPT, path)

    def _is_shifted(self, tag: int, permitted: frozenset[str]) -> bool:
        row = tags.table().row(tag)
        return "C" in permitted and self.rules.has("shift-dates") and row is not None and ("modified_dates", "C") in row.options

    def _dates(self, one: Element, other: Element, path: tuple[int, ...], *, keep: bool) -> None:
        """Judge dates that were moved: all of a patient by the same number of days, and not by none."""
        if len(one.texts) != len(other.texts):
            return
        for before, after in zip(map(date_in, one.texts), map(date_in, other.texts), strict=True):
            if before is None or after is None or is_void(one) or is_void(other):
                continue
            days = (after - before).days
            if not days and not keep:
                self._add(Kind.KEPT, path)
            elif days and not self.links.shift(self.patient, days):
                self._add(Kind.DATES, path)

    # --- UIDs -------------------------------------------------------------------------------------------------------

    def _uids(self, one: Element, other: Element, path: tuple[int, ...], *, keep: bool, must_keep: bool) -> None:
        before, after = _uid_values(one), _uid_values(other)
        if must_keep:
            if before != after:
                self.lost[place_of(path)] += 1
            return
        if not keep:
            self._old_uids(one, path)
        self._new_uids(other)
        if len(before) != len(after):
            if set(before) & set(after) and not keep:
                self._add(Kind.UID, path)
            return
        for old, new in zip(before, after, strict=True):
            self._uid(old, new, path, keep=keep)

    def _uid(self, old: str, new: str, path: tuple[int, ...], *, keep: bool) -> None:
        """Judge one UID. Those that DICOM itself defines stay, but where they should name an instance."""
        if old in UID_dictionary and path[-1] not in tags.IDENTITY_UID_TAGS:
            if new != old:
                self.lost[place_of(path)] += 1
        elif old == new:
            if not keep:
                self._add(Kind.UID, path)
        elif new in UID_dictionary or not self.links.uids.add(old, new):
            self._add(Kind.UID_MAP, path)

    def _old_uids(self, one: Element, path: tuple[int, ...]) -> None:
        if path[-1] in tags.KIND_UID_TAGS or self.rules.has("retain-uids"):
            return
        self.links.originals.update(digest(uid) for uid in _uid_values(one) if uid not in UID_dictionary)

    def _new_uids(self, other: Element) -> None:
        for uid in _uid_values(other):
            if uid not in UID_dictionary:
                self.links.outputs.setdefault(digest(uid), self.number)

    # --- sequences --------------------------------------------------------------------------------------------------

    def _sequence(self, one: Element, other: Element, path: tuple[int, ...], *, inside: bool) -> None:
        permitted = self.rules.permitted(path[-1])
        if permitted == _REMOVED:
            self._add(Kind.PRESENT, path)
            return
        if one.items is None or other.items is None:
            # Bytes that could not be taken apart, on one side or on both: nobody can say that they were cleaned.
            if not other.is_empty and not is_void(one):
                self._add(Kind.KEPT, path)
            return
        if one.items and not other.items:
            if permitted is None or permitted.isdisjoint("XZC"):
                self.lost[place_of(path)] += 1
            return
        replaced = inside or (permitted is not None and permitted.isdisjoint("CKU") and bool(permitted & {"D", "Z"}))
        if permitted is not None and not permitted.isdisjoint("CK"):
            replaced = False
        if path[-1] == _METHOD_CODES:
            return
        if len(other.items) < len(one.items) and (permitted is None or "C" not in permitted):
            self.lost[place_of(path)] += 1
        for number, item in enumerate(other.items):
            before = one.items[number] if number < len(one.items) else {}
            self._datasets(before, item, path, inside=replaced)


def patient_of(dataset: DataSet) -> bytes:
    """Return a digest of the patient; of the study where there is no PatientID."""
    number = dataset.get(_PATIENT_ID)
    if number is None or number.is_empty:
        study = dataset.get(_STUDY)
        return digest("study", *(study.texts if study is not None else ()))
    issuer = dataset.get(_ISSUER)
    return digest("patient", *number.texts, "of", *(issuer.texts if issuer is not None else ()))


def method_codes(dataset: DataSet) -> set[str]:
    """Return the codes of DCM in DeidentificationMethodCodeSequence (0012,0064)."""
    sequence = dataset.get(_METHOD_CODES)
    return set(_codes(sequence)) if sequence is not None else set()


def _codes(sequence: Element) -> Iterator[str]:
    for item in sequence.items or ():
        value, scheme = item.get(0x00080100), item.get(_SCHEME)
        if value is not None and scheme is not None and scheme.texts == ("DCM",):
            yield value.texts[0]


def place_of(path: tuple[int, ...]) -> str:
    """Return tags as a place: (0040,A730) > (0040,A160)."""
    return " > ".join(map(tag_name, path))


def _vr_of(element: Element) -> str:
    """Return the VR by which an element is judged: a written one may be wrong."""
    if not in_dictionary(element.tag):
        return element.vr
    return element.vr if element.vr in (known := dictionary_VR(element.tag).split(" or ")) else known[0]


def _uid_values(element: Element) -> tuple[str, ...]:
    text = element.value.decode("latin-1").replace("\0", "")
    return tuple(uid for uid in (one.strip() for one in text.split("\\")) if uid)


def _is_local_code(dataset: DataSet) -> bool:
    """Return whether the code in a data set is of a local scheme, or of none."""
    scheme = dataset.get(_SCHEME)
    if scheme is None or scheme.is_empty:
        return True
    name = scheme.texts[0].upper()
    return (name.startswith(_LOCAL_SCHEME) and name != _PUBLIC_EXCEPTION) or name == "L"
