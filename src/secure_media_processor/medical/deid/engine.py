"""Taking the patient out of DICOM headers: the Basic Profile of PS3.15 Annex E, over every data set at every depth.

Pixel data is never decoded or changed. What may hold an identity that a header cannot tell (burned-in text, documents) is
quarantined: not written, and reported. Attributes that the table does not name stay as they are, except those that no
dictionary knows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

# isort: split - the reader, imported first, says so in our own words if pydicom is missing
from pydicom import DataElement, Dataset, dcmwrite
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from secure_media_processor import __version__
from secure_media_processor.core.files import PRIVATE_FOLDER, os_errors, write_file
from secure_media_processor.errors import UsageError
from secure_media_processor.medical.deid.pixels import burned_in_suspicion
from secure_media_processor.medical.deid.table import EDITION, Action, ActionTable, basic_profile
from secure_media_processor.medical.deid.uids import Pseudonyms
from secure_media_processor.medical.dicom.reader import Unreadable, read_dataset, read_folder
from secure_media_processor.medical.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    from collections.abc import Iterator

# Our own, made once from 128 random bits (PS3.5 section B.2).
_IMPLEMENTATION_CLASS_UID = "2.25.220872983959295534076675154734310370995"
_IMPLEMENTATION_VERSION_NAME = f"SMP_{__version__}"[:16]
_BASIC_PROFILE_CODE = ("113100", "DCM", "Basic Application Confidentiality Profile")

# Group 0002 is rebuilt and 0000 belongs to the network. Curves and overlays go as whole groups: without their data, which the
# table removes, the rest of them describes nothing, and their labels are free text.
_META_GROUPS = (0x0000, 0x0002)
_GRAPHIC_GROUPS = (0x5000, 0x6000)
_GRAPHIC_MASK = 0xFF00

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
_CODE_KEYWORDS = (
    "CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning", "LongCodeValue", "URNCodeValue",
    "MappingResource", "ContextIdentifier", "TemplateIdentifier",
)  # fmt: skip
_CODE_TAGS = {tag_for_keyword(keyword) for keyword in _CODE_KEYWORDS}
_PATIENT_NAME, _PATIENT_ID, _ISSUER = 0x00100010, 0x00100020, 0x00100021


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
class DeidReport:
    """What was done to a folder, without any value."""

    written: tuple[Written, ...]
    quarantined: tuple[Quarantined, ...]
    unreadable: tuple[Unreadable, ...]
    actions: Counter[str] = field(default_factory=Counter)
    """"X", "Z", "D", "U" → number of elements."""
    table: str = EDITION


@dataclass(slots=True)
class _Cleaner:
    """One pass over one data set."""

    pseudonyms: Pseudonyms
    table: ActionTable
    actions: Counter[str] = field(default_factory=Counter)

    def clean(self, dataset: Dataset, *, replace_all: bool = False) -> None:
        """Clean `dataset` and what it nests. With `replace_all`, whatever can hold free text too, named by the table or not."""
        for tag in list(dataset.keys()):
            action = self._action(int(tag), _vr(dataset, int(tag)), replace_all=replace_all)
            if action is None:
                continue
            self.actions[action.value] += 1
            match action:
                case Action.REMOVE:
                    del dataset[tag]
                case Action.EMPTY:
                    self._set(dataset, int(tag), None)
                case Action.DUMMY | Action.REPLACE_UID:
                    self._replace(dataset, int(tag))
        for tag in list(dataset.keys()):
            if _vr(dataset, int(tag)) in ("SQ", "UN") and isinstance(dataset[tag].value, Sequence):
                inner = replace_all or self.table.action_for(int(tag)) is Action.DUMMY
                for item in dataset[tag].value:
                    self.clean(item, replace_all=inner)

    def _action(self, tag: int, vr: str, *, replace_all: bool) -> Action | None:
        group = tag >> 16
        action = self.table.action_for(tag)
        if group in _META_GROUPS or (group & _GRAPHIC_MASK) in _GRAPHIC_GROUPS:
            return Action.REMOVE
        if action is not None:
            return None if vr == "SQ" and action in (Action.DUMMY, Action.REPLACE_UID) else action
        if not dictionary_has_tag(tag):
            return Action.REMOVE  # an element of the standard that no dictionary knows: nobody can say what is in it
        if replace_all and vr == "UI":
            return Action.REPLACE_UID
        if replace_all and vr in _FREE_VRS and tag not in _CODE_TAGS:
            return Action.DUMMY
        return None

    def _replace(self, dataset: Dataset, tag: int) -> None:
        vr = _vr(dataset, tag)
        if vr != "UI":
            self._set(dataset, tag, _DUMMIES.get(vr, b"\0\0"))
            return
        values = dataset[tag].value
        originals = [values] if isinstance(values, str) else list(values or ())
        self._set(dataset, tag, [self.pseudonyms.uid(str(value)) for value in originals])

    @staticmethod
    def _set(dataset: Dataset, tag: int, value: object) -> None:
        vr = _vr(dataset, tag)
        dataset[tag] = DataElement(tag, vr, Sequence() if vr == "SQ" else value)


def _vr(dataset: Dataset, tag: int) -> str:
    """Return the VR of an element without decoding its value: as written, or from the dictionary where it is not."""
    written = dataset.get_item(tag).VR
    if written not in (None, "UN"):
        return str(written)
    # "US or SS" and the like: either serves for a replacement.
    return dictionary_VR(tag).split(" ")[0] if dictionary_has_tag(tag) else "UN"


class Deidentifier:
    """De-identifies data sets, files and folders, consistently for one key."""

    def __init__(self, key: bytes) -> None:
        """Use `key` (32 random bytes) for UIDs and patients: the same key gives the same pseudonyms in every run."""
        self._pseudonyms = Pseudonyms(key)
        self._table = basic_profile()

    def deidentify(self, dataset: Dataset) -> Counter[str]:
        """De-identify `dataset` in place, file meta information and preamble included. Returns the number of actions by kind.

        The caller has made sure that its pixels show no identity (deid.pixels).
        """
        cleaner = _Cleaner(self._pseudonyms, self._table)
        pseudonym = self._pseudonyms.patient(_text(dataset, _PATIENT_ID), _text(dataset, _ISSUER))
        cleaner.clean(dataset)
        for tag in (_PATIENT_NAME, _PATIENT_ID):
            dataset[tag] = DataElement(tag, dictionary_VR(tag), pseudonym)
        _state_method(dataset)
        _rebuild_meta(dataset)
        return cleaner.actions

    def deidentify_file(self, source: Path, folder: Path) -> Written | Quarantined | Unreadable:
        """De-identify the file `source` into `folder`, as ``<study UID>/<series UID>/<instance UID>.dcm`` with the new UIDs.

        Raises:
            ExistsError, NoSpaceError, FileAccessError: the output cannot be written.
        """
        outcome, _ = self._file(source, folder)
        return outcome

    def deidentify_folder(self, source: Path | str, target: Path | str) -> DeidReport:
        """De-identify every file below `source` into the folder `target`, which must not lie inside `source`.

        One bad file does not stop the others; each file of `source` is in exactly one list of the report.

        Raises:
            UsageError: one folder lies in the other.
            MissingError, ExistsError, NoSpaceError, FileAccessError: as the system says.
        """
        source, target = Path(source), Path(target)
        if source.resolve() in (target.resolve(), *target.resolve().parents) or target.resolve() in source.resolve().parents:
            raise UsageError("input and output folder lie within each other", hint="write to a folder elsewhere")
        contents = read_folder(source)
        actions: Counter[str] = Counter()
        written, quarantined, unreadable = [], [], list(contents.unreadable)
        for instance in contents.instances:
            outcome, counted = self._file(instance.path, target)
            actions += counted
            match outcome:
                case Written():
                    written.append(outcome)
                case Quarantined():
                    quarantined.append(outcome)
                case Unreadable():
                    unreadable.append(outcome)
        return DeidReport(tuple(written), tuple(quarantined), tuple(unreadable), actions)

    def _file(self, source: Path, folder: Path) -> tuple[Written | Quarantined | Unreadable, Counter[str]]:
        none: Counter[str] = Counter()
        dataset = read_dataset(source)
        if isinstance(dataset, Unreadable):
            return dataset, none
        with silent_pydicom():
            try:
                suspicion = burned_in_suspicion(dataset)
                if suspicion:
                    return Quarantined(source, suspicion), none
                actions = self.deidentify(dataset)
                data = BytesIO()
                dcmwrite(data, dataset, enforce_file_format=True)
            except Exception as error:  # noqa: BLE001 - foreign values fail in many ways; the file is reported, and not written
                return Unreadable(source, f"it cannot be de-identified ({type(error).__name__})"), none
        target = folder.joinpath(*_uid_path(dataset))
        with os_errors(f"make the folder {target.parent}"):
            target.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        write_file(target, data.getvalue())
        return Written(source, target), actions


def _uid_path(dataset: Dataset) -> Iterator[str]:
    """Yield the parts of the name of the new file. The UIDs are ours (2.25 and digits), so they are safe as names."""
    yield str(dataset.StudyInstanceUID)
    yield str(dataset.SeriesInstanceUID)
    yield f"{dataset.SOPInstanceUID}.dcm"


def _text(dataset: Dataset, tag: int) -> str:
    return str(dataset[tag].value or "").strip() if tag in dataset else ""


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
