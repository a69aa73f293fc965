"""Taking the patient out of DICOM headers: the Basic Profile of PS3.15 Annex E, over every data set at every depth.

Pixel data is never decoded or changed. What may hold an identity that a header cannot tell (burned-in text, voices, documents)
is quarantined: not written, and reported. Attributes that the table does not name stay as they are if a dictionary knows them
and their values have the form of their VR; names of persons, web addresses and UIDs are replaced wherever they stand.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from pydicom import DataElement, Dataset, dcmwrite
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID
from pydicom.valuerep import PersonName

from secure_media_processor import __version__
from secure_media_processor.core.files import make_private_folder, os_errors, write_file
from secure_media_processor.errors import ExistsError, FileAccessError, MissingError, UsageError
from secure_media_processor.medical.deid.pixels import burned_in_suspicion
from secure_media_processor.medical.deid.table import EDITION, Action, ActionTable, basic_profile
from secure_media_processor.medical.deid.uids import Pseudonyms
from secure_media_processor.medical.deid.values import has_sound_value
from secure_media_processor.medical.dicom.reader import Unreadable, read_dataset, read_folder
from secure_media_processor.medical.dicom.silence import silent_pydicom

# Our own, made once from 128 random bits (PS3.5 section B.2).
_IMPLEMENTATION_CLASS_UID = "2.25.220872983959295534076675154734310370995"
_IMPLEMENTATION_VERSION_NAME = f"SMP_{__version__}"[:16]
_BASIC_PROFILE_CODE = ("113100", "DCM", "Basic Application Confidentiality Profile")

# Group 0002 is rebuilt, 0000 belongs to the network, and FFFE to delimiters, which are no elements. Curves and overlays go as
# whole groups: without their data, which the table removes, the rest describes nothing, and their labels are free text.
_FOREIGN_GROUPS = (0x0000, 0x0002, 0xFFFE)
_GRAPHIC_GROUPS = (0x5000, 0x6000)
_GRAPHIC_MASK = 0xFF00
# Far deeper than any object of the standard nests.
_MAX_DEPTH = 64

# A value of each VR (PS3.5 section 6.2) that is valid and says nothing.
_TEXT = "ANONYMIZED"
_DUMMIES: dict[str, object] = {
    "AE": _TEXT, "AS": "000Y", "AT": 0, "CS": _TEXT, "DA": "19000101", "DS": "0", "DT": "19000101000000", "FD": 0.0, "FL": 0.0,
    "IS": "0", "LO": _TEXT, "LT": _TEXT, "OB": b"\0\0", "OD": bytes(8), "OF": bytes(4), "OL": bytes(4), "OV": bytes(8),
    "OW": b"\0\0", "PN": _TEXT, "SH": _TEXT, "SL": 0, "SS": 0, "ST": _TEXT, "SV": 0, "TM": "000000", "UC": _TEXT, "UL": 0,
    "UN": b"\0\0", "UR": "http://anonymized.invalid", "US": 0, "UT": _TEXT, "UV": 0,
}  # fmt: skip
# Inside a sequence that must be replaced (an SR tree, say) whatever can hold words, dates or bytes is; numbers and codes stay.
_FREE_VRS = {
    "AE",
    "AS",
    "DA",
    "DT",
    "LO",
    "LT",
    "OB",
    "OD",
    "OF",
    "OL",
    "OV",
    "OW",
    "PN",
    "SH",
    "ST",
    "TM",
    "UC",
    "UN",
    "UR",
    "UT",
}
# What names a person, a place on the web, or an instance, wherever it stands: the table cannot list every such attribute.
_ALWAYS = {"PN": Action.DUMMY, "UR": Action.DUMMY, "UI": Action.REPLACE_UID}
_CODE_KEYWORDS = (
    "CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning", "LongCodeValue", "URNCodeValue",
    "MappingResource", "ContextIdentifier", "TemplateIdentifier",
)  # fmt: skip
_CODE_TAGS = {tag_for_keyword(keyword) for keyword in _CODE_KEYWORDS}
# Codes of these schemes are published; a local scheme (99…) can mean anything, a name too.
_PUBLIC_SCHEMES = {
    "DCM",
    "SCT",
    "SRT",
    "SNM3",
    "99SDM",
    "LN",
    "UCUM",
    "FMA",
    "RADLEX",
    "I10",
    "I9C",
    "BI",
    "UMLS",
    "NCIt",
    "MSH",
}
# UIDs that name a kind of thing. Private ones among them are not in any dictionary, and must stay.
_KIND_UID_KEYWORDS = (
    "SOPClassUID", "ReferencedSOPClassUID", "RelatedGeneralSOPClassUID", "ReferencedRelatedGeneralSOPClassUIDInFile",
    "OriginalSpecializedSOPClassUID", "CodingSchemeUID", "ContextUID", "MappingResourceUID", "TransferSyntaxUID",
    "AvailableTransferSyntaxUID", "EncryptedContentTransferSyntaxUID", "MACCalculationTransferSyntaxUID", "SOPClassesInStudy",
    "SOPClassesSupported",
)  # fmt: skip
_KIND_UID_TAGS = {tag_for_keyword(keyword) for keyword in _KIND_UID_KEYWORDS}
# Identities that edition 2026c of the table does not name: text of reports outside their tree, and encrypted originals.
_BEYOND_TABLE = {0x0040A160: Action.DUMMY, 0x04000500: Action.REMOVE, 0x04000520: Action.REMOVE}
_STUDY, _SERIES, _INSTANCE = 0x0020000D, 0x0020000E, 0x00080018
_PATIENT_NAME, _PATIENT_ID, _ISSUER = 0x00100010, 0x00100020, 0x00100021
_OUR_UID = re.compile(r"2\.25\.[0-9]{1,39}")


class _RefusedError(Exception):
    """A file that cannot be de-identified; the text holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was de-identified."""

    source: Path
    target: Path


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A file that was not written, because its pixels or document may show an identity."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A file whose result could not be written; `reason` holds nothing of the file."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class DeidReport:
    """What was done to a folder, without any value. Each file of the folder is in exactly one of the four lists."""

    written: tuple[Written, ...]
    quarantined: tuple[Quarantined, ...]
    unreadable: tuple[Unreadable, ...]
    unwritten: tuple[Unwritten, ...]
    actions: Counter[str] = field(default_factory=Counter)
    """"X", "Z", "D", "U" → number of elements."""
    table: str = EDITION


@dataclass(slots=True)
class _Cleaner:
    """One pass over one data set."""

    pseudonyms: Pseudonyms
    table: ActionTable
    actions: Counter[str] = field(default_factory=Counter)

    def clean(self, dataset: Dataset, *, replace_all: bool = False, depth: int = 0) -> None:
        """Clean `dataset` and what it nests. With `replace_all`, whatever can hold free text too, named by the table or not."""
        if depth > _MAX_DEPTH:
            raise _RefusedError("its sequences are nested too deeply")
        private_codes = replace_all and not _is_public_code(dataset)
        for tag in map(int, list(dataset.keys())):
            action = self._action(dataset, tag, replace_all=replace_all, private_codes=private_codes)
            if action is not None:
                self.actions[action.value] += 1
                self._apply(dataset, tag, action)
        for tag in map(int, list(dataset.keys())):
            if _vr(dataset, tag) == "SQ":
                inner = replace_all or self.table.action_for(tag) is Action.DUMMY
                for item in dataset[tag].value:
                    self.clean(item, replace_all=inner, depth=depth + 1)

    def _action(self, dataset: Dataset, tag: int, *, replace_all: bool, private_codes: bool) -> Action | None:
        """Return what to do with an element; None if it stays, or is a sequence whose items are to be cleaned."""
        group, vr = tag >> 16, _vr(dataset, tag)
        if group in _FOREIGN_GROUPS or (group & _GRAPHIC_MASK) in _GRAPHIC_GROUPS:
            return Action.REMOVE
        action = self.table.action_for(tag) or _BEYOND_TABLE.get(tag)
        if action is Action.REMOVE:
            return action
        if vr == "SQ":
            # A sequence that pydicom could not take apart cannot be cleaned.
            sound = isinstance(dataset[tag].value, Sequence)
            return (Action.EMPTY if action is Action.EMPTY else None) if sound else Action.REMOVE
        if action is not None:
            return action
        if not dictionary_has_tag(tag):
            return Action.REMOVE  # an element of the standard that no dictionary knows: nobody can say what is in it
        if vr in _ALWAYS and tag not in _KIND_UID_TAGS:
            return _ALWAYS[vr]
        if replace_all and vr in _FREE_VRS and (private_codes or tag not in _CODE_TAGS):
            return Action.DUMMY
        return None if has_sound_value(dataset.get_item(tag)) else Action.EMPTY

    def _apply(self, dataset: Dataset, tag: int, action: Action) -> None:
        vr = _vr(dataset, tag)
        if action is Action.REMOVE:
            del dataset[tag]
        elif action is Action.EMPTY:
            dataset[tag] = DataElement(tag, vr, Sequence() if vr == "SQ" else None)
        elif vr == "UI":
            dataset[tag] = DataElement(tag, vr, [self._uid(tag, uid) for uid in _uids(dataset, tag)])
        else:
            dataset[tag] = DataElement(tag, vr, _DUMMIES.get(vr, b"\0\0"))

    def _uid(self, tag: int, original: str) -> str:
        is_identity = tag in (_STUDY, _SERIES, _INSTANCE)
        return self.pseudonyms.instance_uid(original) if is_identity else self.pseudonyms.uid(original)


def _uids(dataset: Dataset, tag: int) -> list[str]:
    value = dataset[tag].value
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace").split("\\")
    return [str(uid) for uid in ([value] if isinstance(value, str) else value or ())]


def _vr(dataset: Dataset, tag: int) -> str:
    """Return the VR by which an element is judged: that of the dictionary if it has one, since a written one may be wrong."""
    if dictionary_has_tag(tag):
        known = dictionary_VR(tag)
        # "US or SS" and the like: either serves for a replacement.
        return known.split(" ")[0]
    return str(dataset.get_item(tag).VR or "UN")


def _is_public_code(dataset: Dataset) -> bool:
    """Return whether the codes in `dataset`, if any, are of a scheme that is published."""
    scheme = dataset.get("CodingSchemeDesignator")
    return scheme in _PUBLIC_SCHEMES if scheme else "CodeMeaning" not in dataset


class Deidentifier:
    """De-identifies data sets, files and folders, consistently for one key."""

    def __init__(self, key: bytes) -> None:
        """Use `key` (32 random bytes) for UIDs and patients: the same key gives the same pseudonyms in every run."""
        self._pseudonyms = Pseudonyms(key)
        self._table = basic_profile()

    def deidentify(self, dataset: Dataset) -> Counter[str]:
        """De-identify `dataset` in place, file meta information and preamble included. Returns the number of actions by kind.

        The caller has made sure that its pixels show no identity (deid.pixels). If it raises, the data set is half done.

        Raises:
            ValueError: StudyInstanceUID, SeriesInstanceUID or SOPInstanceUID is missing or has several values.
        """
        with silent_pydicom():
            cleaner = _Cleaner(self._pseudonyms, self._table)
            patient = _text(dataset, _PATIENT_ID)
            # Patients without a number must not become one: the study is as near to a patient as such files come.
            pseudonym = self._pseudonyms.patient(patient or _text(dataset, _STUDY), _text(dataset, _ISSUER))
            cleaner.clean(dataset)
            if any(not _OUR_UID.fullmatch(_text(dataset, tag)) for tag in (_STUDY, _SERIES, _INSTANCE)):
                raise ValueError("study, series and instance need one UID each")
            for tag in (_PATIENT_NAME, _PATIENT_ID):
                dataset[tag] = DataElement(tag, dictionary_VR(tag), pseudonym)
            _state_method(dataset)
            _rebuild_meta(dataset)
        return cleaner.actions

    def deidentify_file(self, source: Path, folder: Path) -> Written | Quarantined | Unreadable | Unwritten:
        """De-identify the file `source` into `folder`, as ``<study UID>/<series UID>/<instance UID>.dcm`` with the new UIDs.

        A file that is there already with the same contents, from an earlier run or a copy of `source`, counts as written.

        Raises:
            NoSpaceError: the disk is full.
        """
        outcome, _ = self._file(source, folder)
        return outcome

    def deidentify_folder(self, source: Path | str, target: Path | str) -> DeidReport:
        """De-identify every file below `source` into the folder `target`, which must not lie inside `source`.

        One bad file does not stop the others; each file of `source` is in exactly one list of the report. Run again after an
        interruption it goes on: what is there already is not written twice.

        Raises:
            UsageError: one folder lies in the other.
            MissingError, FileAccessError: `source` cannot be read.
            NoSpaceError: the disk is full.
        """
        source, target = Path(source), Path(target)
        inside, outside = (Path(os.path.realpath(path)) for path in (source, target))
        if inside == outside or inside in outside.parents or outside in inside.parents:
            raise UsageError("input and output folder lie within each other", hint="write to a folder elsewhere")
        contents = read_folder(source)
        actions: Counter[str] = Counter()
        outcomes: list[Written | Quarantined | Unreadable | Unwritten] = list(contents.unreadable)
        for instance in contents.instances:
            outcome, counted = self._file(instance.path, target)
            actions += counted
            outcomes.append(outcome)
        return DeidReport(
            tuple(o for o in outcomes if isinstance(o, Written)),
            tuple(o for o in outcomes if isinstance(o, Quarantined)),
            tuple(o for o in outcomes if isinstance(o, Unreadable)),
            tuple(o for o in outcomes if isinstance(o, Unwritten)),
            actions,
        )

    def _file(self, source: Path, folder: Path) -> tuple[Written | Quarantined | Unreadable | Unwritten, Counter[str]]:
        none: Counter[str] = Counter()
        dataset = read_dataset(source)
        if isinstance(dataset, Unreadable):
            return dataset, none
        try:
            with silent_pydicom():
                suspicion = burned_in_suspicion(dataset)
                if suspicion:
                    return Quarantined(source, suspicion), none
                actions = self.deidentify(dataset)
                data = BytesIO()
                dcmwrite(data, dataset, enforce_file_format=True)
                target = folder / _text(dataset, _STUDY) / _text(dataset, _SERIES) / f"{_text(dataset, _INSTANCE)}.dcm"
        except _RefusedError as error:
            return Unreadable(source, str(error)), none
        except Exception as error:  # noqa: BLE001 - foreign values fail in many ways; the file is reported, and not written
            return Unreadable(source, f"it cannot be de-identified ({type(error).__name__})"), none
        return _write(source, target, data.getvalue()), actions


def _write(source: Path, target: Path, data: bytes) -> Written | Unwritten:
    try:
        make_private_folder(target.parent)
        write_file(target, data)
    except ExistsError:
        with os_errors(f"read {target}"):
            same = target.read_bytes() == data
        reason = "another file with the same SOPInstanceUID and other contents was written before"
        return Written(source, target) if same else Unwritten(source, reason)
    except (FileAccessError, MissingError) as error:
        return Unwritten(source, str(error))
    return Written(source, target)


def _text(dataset: Dataset, tag: int) -> str:
    """Return the value of an element as text; empty if it has none, or several."""
    value = dataset[tag].value if tag in dataset else ""
    return str(value).strip() if isinstance(value, str | PersonName) else ""


def _state_method(dataset: Dataset) -> None:
    """Say in the data set that, and how, it was de-identified (PS3.15 section E.1.1, step 7)."""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = f"smp {__version__}, {EDITION}"[:64]
    dataset.LongitudinalTemporalInformationModified = "REMOVED"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = _BASIC_PROFILE_CODE
    dataset.DeidentificationMethodCodeSequence = Sequence([code])


def _rebuild_meta(dataset: Dataset) -> None:
    """Replace preamble and file meta information (PS3.10 section 7.1), which repeat UIDs and name machines."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    meta.ImplementationClassUID = UID(_IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = _IMPLEMENTATION_VERSION_NAME
    dataset.file_meta = meta
    dataset.preamble = bytes(128)
