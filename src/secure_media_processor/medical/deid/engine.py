"""Taking the patient out of DICOM: the Basic Profile of PS3.15 Annex E with options, over every data set at every depth.

Pixel data are copied as they are, unless an option says that they are to be cleaned. What may hold an identity that a header
cannot tell (burned-in text, voices, documents) is quarantined: not written, and reported. Attributes that the table does not
name stay as they are if a dictionary knows them and their values have the form of their VR; names of persons, web addresses and
UIDs are replaced wherever they stand.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import DataElement, Dataset, dcmwrite
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID
from pydicom.valuerep import PersonName

from secure_media_processor import __version__
from secure_media_processor.core.files import atomic_write, make_private_folder, open_source, os_errors, read_full
from secure_media_processor.errors import (
    CredentialsError,
    ExistsError,
    FileAccessError,
    IntegrityError,
    MissingError,
    UsageError,
)
from secure_media_processor.medical.deid.cleaner import Cleaner, RefusedError, texts_of
from secure_media_processor.medical.deid.constant_elements import constant
from secure_media_processor.medical.deid.dates import DateShift
from secure_media_processor.medical.deid.defacing.risk import Risk, face_risk
from secure_media_processor.medical.deid.mapping import Mapping, Patient, made_otherwise
from secure_media_processor.medical.deid.pixels import burned_in_suspicion
from secure_media_processor.medical.deid.profile import METHODS, RETAINING, Option, Profile, Rules
from secure_media_processor.medical.deid.splice import read_spliced
from secure_media_processor.medical.deid.table import EDITION, Action
from secure_media_processor.medical.deid.uids import Pseudonyms
from secure_media_processor.medical.dicom.pixel_tail import PixelTail, read_header
from secure_media_processor.medical.dicom.reader import Unreadable, open_dicom, read_dataset, walk_files
from secure_media_processor.medical.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from collections.abc import Sequence as SequenceOf
    from io import BufferedReader

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.deid.defacing.heads import Heads

# Our own, made once from 128 random bits (PS3.5 section B.2).
_IMPLEMENTATION_CLASS_UID = "2.25.220872983959295534076675154734310370995"
_IMPLEMENTATION_VERSION_NAME = f"SMP_{__version__}"[:16]
_CLASS, _STUDY, _SERIES, _INSTANCE = 0x00080016, 0x0020000D, 0x0020000E, 0x00080018
_PATIENT_NAME, _PATIENT_ID, _ISSUER = 0x00100010, 0x00100020, 0x00100021
# A UID as it may stand in a path (PS3.5 section 9.1).
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_ANYTHING = re.compile(".+", re.DOTALL)
_COPY_BLOCK = 1 << 20
# Files that one process takes at a time: enough that handing them over costs nothing, few enough to keep all busy at the end.
_BATCH = 16


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
class Deidentified:
    """What was done to one data set."""

    actions: Counter[str] = field(default_factory=Counter)
    """"X", "Z", "D", "U", "C" → number of elements."""
    uids: dict[str, str] = field(default_factory=dict, repr=False)
    """Old → new."""
    patient: Patient | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of one file."""

    outcome: Written | Quarantined | Unreadable | Unwritten
    done: Deidentified = field(default_factory=Deidentified)


@dataclass(frozen=True, slots=True)
class _Made:
    """A file as it is to be written."""

    name: Path
    """Below the folder of the output."""
    header: bytes
    tail: PixelTail | None
    done: Deidentified


@dataclass(frozen=True, slots=True)
class DeidReport:
    """What was done to a folder, without any value but in `mapping`. Each file of the folder is in exactly one of the lists."""

    written: tuple[Written, ...]
    quarantined: tuple[Quarantined, ...]
    unreadable: tuple[Unreadable, ...]
    unwritten: tuple[Unwritten, ...]
    actions: Counter[str] = field(default_factory=Counter)
    """"X", "Z", "D", "U", "C" → number of elements."""
    codes: tuple[tuple[str, str], ...] = ()
    """Code and meaning of the profile and its options (PS3.16 CID 7050)."""
    table: str = EDITION
    mapping: Mapping = field(default_factory=Mapping, repr=False)


class Deidentifier:
    """De-identifies data sets, files and folders, consistently for one key."""

    def __init__(self, key: bytes, profile: Profile | None = None) -> None:
        """Use `key` (32 random bytes) for UIDs, patients and dates: the same key gives the same pseudonyms in every run."""
        self._key = key
        self._pseudonyms = Pseudonyms(key)
        self._profile = profile or Profile()
        self._rules = Rules(self._profile)
        self._heads: Heads | None = None

    def deidentify(self, dataset: Dataset) -> Deidentified:
        """De-identify `dataset` in place, file meta information and preamble included.

        The caller has made sure that its pixels show no identity (deid.pixels, deid.defacing). If it raises, the
        data set is half done.

        Raises:
            ValueError: SOPClassUID, StudyInstanceUID, SeriesInstanceUID or SOPInstanceUID is missing or has several values.
        """
        return self._deidentify(dataset, shares_constants=False)

    def _deidentify(self, dataset: Dataset, *, shares_constants: bool) -> Deidentified:
        with silent_pydicom():
            _refuse_without_uids(dataset, _ANYTHING)
            patient_id, issuer = ("\\".join(texts_of(dataset, tag)) for tag in (_PATIENT_ID, _ISSUER))
            # Patients without a number must not become one: the study is as near to a patient as such files come.
            pseudonym = self._pseudonyms.patient(patient_id or _text(dataset, _STUDY), issuer)
            shift = DateShift.of(self._key, pseudonym) if Option.SHIFT_DATES in self._profile.options else None
            patient = Patient(patient_id, issuer, _text(dataset, _PATIENT_NAME), pseudonym, shift.days if shift else None)
            cleaner = Cleaner(self._rules, self._pseudonyms, shift, shares_constants=shares_constants)
            cleaner.clean(dataset)
            _refuse_without_uids(dataset, _UID)
            for tag in (_PATIENT_NAME, _PATIENT_ID):
                dataset[tag] = DataElement(tag, dictionary_VR(tag), pseudonym)
            _state_method(dataset, self._profile, shares_constants=shares_constants)
            _rebuild_meta(dataset)
        return Deidentified(cleaner.actions, cleaner.uids, patient)

    def refuse_foreign(self, mapping: Mapping) -> None:
        """Raise ConfigError if `mapping` was made with another key, or with dates that were treated in another way."""
        uid = next(iter(mapping.uids.items()), None)
        moves = Option.SHIFT_DATES in self._profile.options
        if (uid and self._pseudonyms.instance_uid(uid[0]) != uid[1]) or any(
            (patient.days is not None) != moves for patient in mapping.patients.values()
        ):
            raise made_otherwise()

    def deidentify_file(
        self, source: Path, folder: Path, *, identities: SequenceOf[Identity] = ()
    ) -> Written | Quarantined | Unreadable | Unwritten:
        """De-identify the file `source` into `folder`, as ``<study UID>/<series UID>/<instance UID>.dcm`` with the new UIDs.

        A file that is there already with the same contents, from an earlier run or a copy of `source`, counts as written. What
        is written is never encrypted; `source` may be, for one of `identities`.

        Raises:
            NoSpaceError: the disk is full.
            MissingExtraError: faces are to be removed, and the template of a head is not installed.
        """
        self._look_for_heads([source], identities)
        return self._file(source, folder, identities).outcome

    def _look_for_heads(self, paths: SequenceOf[Path], identities: SequenceOf[Identity]) -> None:
        if Option.DEFACE in self._profile.options:
            from secure_media_processor.medical.deid.defacing.heads import find_heads  # noqa: PLC0415 - heavy, and rarely needed

            self._heads = find_heads(paths, identities=identities)

    def _file(self, source: Path, folder: Path, identities: SequenceOf[Identity]) -> FileResult:
        made = self._make_quickly(source) or self._make(source, identities)
        if not isinstance(made, _Made):
            return FileResult(made)
        outcome = _write(source, folder / made.name, made, identities)
        return FileResult(outcome, made.done) if isinstance(outcome, Written) else FileResult(outcome)

    @property
    def _cleans_pixels(self) -> bool:
        return Option.CLEAN_PIXELS in self._profile.options

    def _make_quickly(self, source: Path) -> _Made | Quarantined | None:
        """De-identify a file of which little has to be looked at; None if it is none, or if anything is wrong with it."""
        if self._heads is not None:  # all of the header has to be looked at
            return None
        try:
            with silent_pydicom() as said:
                spliced = read_spliced(source, self._rules)
                suspicion = burned_in_suspicion(spliced.dataset, spliced.tail.value_size if spliced.tail else None)
                if suspicion:
                    return None if self._cleans_pixels else Quarantined(source, suspicion)
                done = self._deidentify(spliced.dataset, shares_constants=True)
                header = spliced.write()
                if said:
                    return None
        except Exception:  # noqa: BLE001 - what it is, and in which words to tell, is found by reading the file as a whole
            return None
        if spliced.removed:
            done.actions[Action.REMOVE.value] += spliced.removed
        return _Made(_name(spliced.dataset), header, spliced.tail, done)

    def _make(self, source: Path, identities: SequenceOf[Identity] = ()) -> _Made | Quarantined | Unreadable:
        """De-identify any file, an encrypted one too."""
        read = read_header(source, identities)
        if isinstance(read, Unreadable):
            return read
        dataset, tail = read
        try:
            with silent_pydicom():
                suspicion = burned_in_suspicion(dataset, tail.value_size if tail else None)
                if suspicion and not self._cleans_pixels:
                    return Quarantined(source, suspicion)
                if suspicion:
                    cleaned = _without_text(source, suspicion, identities)
                    if not isinstance(cleaned, Dataset):
                        return cleaned
                    dataset, tail = cleaned, None
                if self._heads is not None and face_risk(dataset) is not Risk.NONE:
                    faceless = _without_face(source, dataset if tail is None else None, self._heads, identities)
                    if not isinstance(faceless, Dataset):
                        return faceless
                    dataset, tail = faceless, None
                if self._heads is not None and (tail is not None or "PixelData" in dataset):
                    dataset.RecognizableVisualFeatures = "NO"  # PS3.15 section E.3.2
                done = self.deidentify(dataset)
                header = BytesIO()
                dcmwrite(header, dataset, enforce_file_format=True)
                return _Made(_name(dataset), header.getvalue(), tail, done)
        except RefusedError as error:
            return Unreadable(source, str(error))
        except Exception as error:  # noqa: BLE001 - foreign values fail in many ways; the file is reported, and not written
            return Unreadable(source, f"it cannot be de-identified ({type(error).__name__})")

    def deidentify_folder(
        self,
        source: Path | str,
        target: Path | str,
        *,
        processes: int = 1,
        identities: SequenceOf[Identity] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> DeidReport:
        """De-identify every file below `source` into the folder `target`; neither may lie inside the other.

        One bad file does not stop the others; each file of `source` is in exactly one list of the report. Run again after an
        interruption it goes on: what is there already is not written twice.

        Args:
            source: Folder, or one file.
            target: Made if need be, mode 0700.
            processes: How many to work with.
            identities: Keys that open encrypted files (SMP1) in `source`, in memory only; what is written is not encrypted.
                With several processes they must be such that can be pickled, as keys and keystores are.
            progress: Called with the number of files done and the number of all.

        Raises:
            UsageError: one folder lies in the other.
            MissingError, FileAccessError: `source` cannot be read.
            NoSpaceError: the disk is full.
        """
        source, target = Path(source), Path(target)
        inside, outside = (Path(os.path.realpath(path)) for path in (source, target))
        if inside == outside or inside in outside.parents or outside in inside.parents:
            raise UsageError("input and output folder lie within each other", hint="write to a folder elsewhere")
        found = list(walk_files(source)) if source.is_dir() or not source.exists() else [(source, "")]
        bad = [FileResult(Unreadable(path, problem)) for path, problem in found if problem]
        paths = [path for path, problem in found if not problem]
        self._look_for_heads(paths, identities)
        results = chain(bad, self._results(paths, target, processes, identities))
        return self._report(_counted(results, len(found), progress))

    def _results(
        self, paths: list[Path], target: Path, processes: int, identities: SequenceOf[Identity]
    ) -> Iterator[FileResult]:
        if processes == 1 or len(paths) <= _BATCH:
            yield from (self._file(path, target, identities) for path in paths)
            return
        from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415 - only where it is worth it
        from concurrent.futures.process import BrokenProcessPool  # noqa: PLC0415
        from multiprocessing import get_context  # noqa: PLC0415

        # Forking is quicker, and not safe for a process that has threads, as it has after heads were looked for.
        context = get_context("fork" if threading.active_count() == 1 and self._heads is None else "spawn")
        # Keys are inherited, or go to our own new process through a pipe that nobody else has; in neither case to the disk.
        given = (self._key, self._profile, self._heads, target, identities)
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin_worker, initargs=given) as pool:
            batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
            pending = deque((batch, pool.submit(_work, batch)) for batch in batches)
            while pending:
                batch, future = pending.popleft()  # what a future brought goes with it
                try:
                    yield from future.result()
                except BrokenProcessPool:  # one was killed; which file was at fault nobody knows
                    yield from (FileResult(Unwritten(path, "the process that worked on it died")) for path in batch)

    def _report(self, results: Iterable[FileResult]) -> DeidReport:
        actions: Counter[str] = Counter()
        mapping = Mapping()
        outcomes = []
        for result in results:
            outcomes.append(result.outcome)
            actions.update(result.done.actions)
            if result.done.patient is not None:
                mapping.add(result.done.patient, result.done.uids)
        return DeidReport(
            tuple(o for o in outcomes if isinstance(o, Written)),
            tuple(o for o in outcomes if isinstance(o, Quarantined)),
            tuple(o for o in outcomes if isinstance(o, Unreadable)),
            tuple(o for o in outcomes if isinstance(o, Unwritten)),
            actions,
            tuple(self._profile.codes),
            mapping=mapping,
        )


def _counted(results: Iterable[FileResult], total: int, progress: Callable[[int, int], None] | None) -> Iterator[FileResult]:
    """Hand results on, one in memory at a time, and tell how many there were."""
    for done, result in enumerate(results, start=1):
        if progress is not None:
            progress(done, total)
        yield result


_worker: tuple[Deidentifier, Path, SequenceOf[Identity]] | None = None


def _begin_worker(key: bytes, profile: Profile, heads: Heads | None, target: Path, identities: SequenceOf[Identity]) -> None:
    global _worker  # noqa: PLW0603 - the one thing that a process of a pool has
    deidentifier = Deidentifier(key, profile)
    deidentifier._heads = heads  # noqa: SLF001 - ours
    _worker = (deidentifier, target, identities)


def _work(paths: list[Path]) -> list[FileResult]:
    if _worker is None:
        raise RuntimeError("this process was not made by a pool")
    deidentifier, target, identities = _worker
    return [deidentifier._file(path, target, identities) for path in paths]  # noqa: SLF001 - ours


def _without_text(source: Path, suspicion: str, identities: SequenceOf[Identity]) -> Dataset | Quarantined | Unreadable:
    """Read the file `source` and paint over the text in its pixels."""
    from secure_media_processor.medical.deid.burned_in import PixelsNotCleanError, clean_pixels  # noqa: PLC0415 - rarely needed

    dataset = read_dataset(source, identities=identities)
    if isinstance(dataset, Unreadable):
        return dataset
    if "PixelData" not in dataset:
        return Quarantined(source, suspicion)
    try:
        clean_pixels(dataset)
    except PixelsNotCleanError as error:
        return Quarantined(source, f"{suspicion}, and {error}")
    return dataset


def _without_face(
    source: Path, dataset: Dataset | None, heads: Heads, identities: SequenceOf[Identity]
) -> Dataset | Quarantined | Unreadable:
    """Paint over the face in `dataset`, or, if its pixels were left in the file `source`, in what is read from there."""
    from secure_media_processor.medical.deid.defacing.cover import FaceLeftError, cover_face  # noqa: PLC0415 - rarely needed

    whole = dataset or read_dataset(source, identities=identities)
    if isinstance(whole, Unreadable):
        return whole
    if face_risk(whole) is Risk.UNKNOWN:
        return Quarantined(source, "a face may be seen in it, and nobody can say where")
    try:
        cover_face(whole, heads)
    except FaceLeftError as error:
        return Quarantined(source, str(error))
    return whole


def _write(source: Path, target: Path, made: _Made, identities: SequenceOf[Identity]) -> Written | Unreadable | Unwritten:
    header, tail = made.header, made.tail
    try:
        with os_errors(f"read {source}"):
            opened = open_dicom(source, identities)
        with opened as pixels:
            make_private_folder(target.parent)
            try:
                with atomic_write(target) as file:
                    for block in _blocks(header, pixels, tail):
                        file.write(block)
            except ExistsError:
                if not _has(target, _blocks(header, pixels, tail)):
                    return Unwritten(source, "another file with the same SOPInstanceUID and other contents was written before")
    except (CredentialsError, IntegrityError) as error:  # what is encrypted shows damage to the pixels only where they are read
        return Unreadable(source, str(error).removeprefix(f"{source}: "))
    except (FileAccessError, MissingError) as error:
        return Unwritten(source, str(error))
    return Written(source, target)


def _blocks(header: bytes, pixels: BufferedReader, tail: PixelTail | None) -> Iterator[bytes | memoryview]:
    """Yield a file piece by piece: its new header, then the pixel data of the old file."""
    yield header
    if tail is None:
        return
    buffer = memoryview(bytearray(min(_COPY_BLOCK, tail.size)))
    left = tail.size
    with os_errors("read the pixel data"):
        pixels.seek(tail.offset)
        while left:
            count = read_full(pixels, buffer[: min(left, len(buffer))])
            if not count:
                raise FileAccessError("the file was cut short while it was being read")
            yield buffer[:count]
            left -= count


def _has(target: Path, blocks: Iterable[bytes | memoryview]) -> bool:
    """Return whether the file `target` is what `blocks` are together."""
    with open_source(target) as file, os_errors(f"read {target}"):
        return all(file.read(len(block)) == block for block in blocks) and not file.read(1)


def _name(dataset: Dataset) -> Path:
    return Path(_text(dataset, _STUDY), _text(dataset, _SERIES), f"{_text(dataset, _INSTANCE)}.dcm")


def _text(dataset: Dataset, tag: int) -> str:
    """Return the value of an element as text; empty if it has none, or several."""
    value = dataset[tag].value if tag in dataset else ""
    return str(value).strip() if isinstance(value, str | PersonName) else ""


def _refuse_without_uids(dataset: Dataset, form: re.Pattern[str]) -> None:
    if any(not form.fullmatch(_text(dataset, tag)) for tag in (_CLASS, _STUDY, _SERIES, _INSTANCE)):
        raise ValueError("class, study, series and instance need one UID each")


def _state_method(dataset: Dataset, profile: Profile, *, shares_constants: bool) -> None:
    """Say in the data set that, and how, it was de-identified (PS3.15 section E.1.1, step 7)."""
    stated = [item.get("CodeValue") for item in dataset.get("DeidentificationMethodCodeSequence") or ()]
    codes = dict(profile.codes)
    # What an earlier method cleaned is still clean. What it retained is gone now, unless this one retains it, too.
    earlier = {code: METHODS[code] for code in stated if code in METHODS and code not in RETAINING}
    if shares_constants and earlier.keys() <= codes.keys():
        elements = _constant_statement(profile)
    else:
        elements = _statement(profile, earlier | codes)
    for element in elements:
        dataset[element.tag] = element


@cache
def _constant_statement(profile: Profile) -> list[DataElement]:
    return [constant(element) for element in _statement(profile, dict(profile.codes))]


def _statement(profile: Profile, codes: dict[str, str]) -> list[DataElement]:
    dates = {Option.RETAIN_DATES: "UNMODIFIED", Option.SHIFT_DATES: "MODIFIED"}
    said = [word for option, word in dates.items() if option in profile.options]
    items, dataset = [], Dataset()
    for value, meaning in sorted(codes.items()):
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
        items.append(code)
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = f"smp {__version__}, {EDITION}"[:64]
    dataset.DeidentificationMethodCodeSequence = Sequence(items)
    dataset.LongitudinalTemporalInformationModified = said[0] if said else "REMOVED"
    return list(dataset)


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
