"""What each command prints with --json: one class a command, which is its schema.

A command makes the object, `Ui.result` prints its fields under the name of the schema, and docs/generate.py writes the page
docs/reference/json.md from these classes. Every field is always there; one that does not apply is null. A name such as
``smp.ls/1`` is that of the command and a version: fields may be added to a version, and what is there keeps its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from secure_media_processor.cloud.objects import ObjectState, ReplicaState  # noqa: TC001 - who writes the reference needs the types
from secure_media_processor.cloud.outcome import Action  # noqa: TC001 - as above


@dataclass(frozen=True, slots=True)
class Result:
    """What a command prints."""

    schema: ClassVar[str]
    """Name and version."""


# --------------------------------------------------------------------------------------------------------- encryption


@dataclass(frozen=True, slots=True)
class OriginalFile:
    """What an encrypted file tells of the file that was encrypted."""

    size: int
    """Bytes."""
    sha256: str
    """64 hexadecimal digits."""
    name: str | None
    """File name without folder."""
    mtime_ns: int | None
    """Modification time, nanoseconds since 1970-01-01 UTC."""
    media_type: str | None
    """Such as application/dicom."""
    writer: str | None
    """Program and version that encrypted it."""


@dataclass(frozen=True, slots=True)
class Verified(Result):
    """An encrypted file that is intact."""

    schema: ClassVar[str] = "smp.verify/1"
    input: str
    """Path; - for standard input."""
    file_id: str
    """Of the encrypted file, 32 hexadecimal digits."""
    original: OriginalFile


@dataclass(frozen=True, slots=True)
class Encrypted(Verified):
    """A file that was encrypted. Nothing is printed when the encrypted file itself goes to standard output."""

    schema: ClassVar[str] = "smp.encrypt/1"
    output: str
    """Path."""


@dataclass(frozen=True, slots=True)
class Decrypted(Encrypted):
    """A file that was decrypted. Nothing is printed when the file itself goes to standard output."""

    schema: ClassVar[str] = "smp.decrypt/1"


# --------------------------------------------------------------------------------------------------------------- keys


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key in the keystore, without its secret."""

    id: str
    """16 hexadecimal digits."""
    file: str
    """Path."""
    primary: bool
    """Whether new files are encrypted for it."""
    exported: str | None
    """UTC time of the last export, ISO 8601; null if there was none."""


@dataclass(frozen=True, slots=True)
class KeyGenerated(KeyFile, Result):
    """The key that was made."""

    schema: ClassVar[str] = "smp.key.generate/1"


@dataclass(frozen=True, slots=True)
class KeyImported(KeyFile, Result):
    """The key that was brought back."""

    schema: ClassVar[str] = "smp.key.import/1"


@dataclass(frozen=True, slots=True)
class KeyChosen(KeyFile, Result):
    """The key for which new files are encrypted now."""

    schema: ClassVar[str] = "smp.key.primary/1"


@dataclass(frozen=True, slots=True)
class KeyExported(Result):
    """The copy of a key. Nothing is printed when the key itself goes to standard output."""

    schema: ClassVar[str] = "smp.key.export/1"
    id: str
    """Of the key, 16 hexadecimal digits."""
    file: str
    """Path of the copy."""


@dataclass(frozen=True, slots=True)
class KeyList(Result):
    """The keys in the keystore."""

    schema: ClassVar[str] = "smp.key.list/1"
    keystore: str
    """Path of the folder."""
    keys: list[KeyFile]


# -------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True, slots=True)
class FileDone:
    """What became of a file, or with --dry-run what would become of it."""

    name: str
    """In the stores."""
    action: Action
    size: int
    """Bytes; 0 if it is not known."""
    error: str | None
    """Code of the error if the action is failed, else null."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Something in a folder that is not uploaded."""

    path: str
    """On this machine."""
    reason: str
    """For people."""


@dataclass(frozen=True, slots=True)
class FilesDone(Result):
    """What became of files."""

    dry_run: bool
    """Whether nothing was done, and this is what would be."""
    files: list[FileDone]
    degraded: dict[str, str]
    """Stores that did not answer, or did not take all they should, and why."""


@dataclass(frozen=True, slots=True)
class Uploaded(FilesDone):
    """What became of the files to be uploaded."""

    schema: ClassVar[str] = "smp.upload/1"
    passed_over: list[PassedOver]
    """Symbolic links, pipes, devices, and folders of smp itself."""


@dataclass(frozen=True, slots=True)
class Synced(Uploaded):
    """What became of the files in the folder, and with --delete of those that are not in it any more."""

    schema: ClassVar[str] = "smp.sync/1"


@dataclass(frozen=True, slots=True)
class Downloaded(FilesDone):
    """What became of the files to be fetched. `dry_run` is false."""

    schema: ClassVar[str] = "smp.download/1"


@dataclass(frozen=True, slots=True)
class Removed(FilesDone):
    """What became of the files to be removed."""

    schema: ClassVar[str] = "smp.rm/1"


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file in the stores."""

    name: str
    size: int
    """Bytes."""
    mtime_ns: int | None
    """Modification time, nanoseconds since 1970-01-01 UTC; null if it is before 1970."""


@dataclass(frozen=True, slots=True)
class Listing(Result):
    """The files in the stores."""

    schema: ClassVar[str] = "smp.ls/1"
    files: list[ListedFile]
    degraded: dict[str, str]
    """Stores that did not answer, and why."""


@dataclass(frozen=True, slots=True)
class BucketUploaded(Result):
    """With --bucket: the object that was stored."""

    schema: ClassVar[str] = "smp.upload.bucket/1"
    bucket: str
    key: str
    """Of the object."""
    size: int
    """Bytes of the object, which is encrypted."""
    digests: dict[str, str]
    """Of the object: name of the algorithm and hexadecimal digits, as S3 reports them."""
    file_id: str | None
    """Of the encrypted file, 32 hexadecimal digits; null if the file was encrypted before."""


@dataclass(frozen=True, slots=True)
class BucketDownloaded(Result):
    """With --bucket: the file that was fetched."""

    schema: ClassVar[str] = "smp.download.bucket/1"
    output: str
    """Path."""
    size: int
    """Bytes."""
    sha256: str
    """Of the file, 64 hexadecimal digits."""


# ------------------------------------------------------------------------------------------------------------- stores


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """A store that was named."""

    name: str
    kind: str
    """As `smp cloud kinds` shows it."""
    options: dict[str, str]


@dataclass(frozen=True, slots=True)
class StoreAdded(StoreEntry, Result):
    """The store that was named."""

    schema: ClassVar[str] = "smp.cloud.add/1"


@dataclass(frozen=True, slots=True)
class StoreList(Result):
    """The stores."""

    schema: ClassVar[str] = "smp.cloud.list/1"
    stores: list[StoreEntry]


@dataclass(frozen=True, slots=True)
class StoreRemoved(Result):
    """The store that was forgotten."""

    schema: ClassVar[str] = "smp.cloud.remove/1"
    name: str


@dataclass(frozen=True, slots=True)
class CredentialsKept(Result):
    """The credentials that the keyring has now."""

    schema: ClassVar[str] = "smp.cloud.keep-credentials/1"
    name: str
    """Under which it has them."""


@dataclass(frozen=True, slots=True)
class CredentialsForgotten(Result):
    """The credentials that the keyring has no more."""

    schema: ClassVar[str] = "smp.cloud.forget-credentials/1"
    name: str
    """Under which it had them."""


@dataclass(frozen=True, slots=True)
class KindOption:
    """An option of a kind of store."""

    option: str
    required: bool
    meaning: str
    """For people."""


@dataclass(frozen=True, slots=True)
class KindList(Result):
    """The kinds of stores."""

    schema: ClassVar[str] = "smp.cloud.kinds/1"
    kinds: dict[str, list[KindOption]]
    """Name of the kind and its options."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a store says when it is asked whether it is there."""

    name: str
    kind: str
    answers: bool
    seconds: float
    """How long that took."""
    reason: str = ""
    """Why it does not answer, for people."""


@dataclass(frozen=True, slots=True)
class StoreStatus(Result):
    """The stores, and whether they answer."""

    schema: ClassVar[str] = "smp.cloud.status/1"
    stores: list[Answer]


@dataclass(frozen=True, slots=True)
class BadCopy:
    """A copy of an object that is not intact."""

    object: str
    """Key of the object in the stores."""
    files: list[str]
    """Names of the files that lie in it; empty if it is a record of the index."""
    store: str
    state: ReplicaState
    reason: str
    """For people."""


@dataclass(frozen=True, slots=True)
class IndexTrouble:
    """What is wrong with the index."""

    taken_back: dict[str, list[str]]
    """Stores that were set back, and the ids of the records that they had and lack."""
    unreadable: dict[str, list[str]]
    """Stores that hold records which are damaged or for other keys, and their ids."""


@dataclass(frozen=True, slots=True)
class StoresVerified(Result):
    """How things stand."""

    schema: ClassVar[str] = "smp.cloud.verify/1"
    objects: int
    """How many there are to be, records of the index included."""
    state: ObjectState
    """Of the object that is worst off."""
    copies: list[BadCopy]
    """Those that are not intact."""
    index: IndexTrouble
    unreachable: dict[str, str]
    """Stores that did not answer, and why."""
    leftovers: dict[str, list[str]]
    """Stores that hold objects which nothing refers to, and the keys of these."""


@dataclass(frozen=True, slots=True)
class MendedCopy:
    """A copy that was not intact, and is now."""

    object: str
    """Key of the object in the stores."""
    files: list[str]
    """Names of the files that lie in it; empty if it is a record of the index."""
    store: str
    """Where it was copied to."""
    was: ReplicaState


@dataclass(frozen=True, slots=True)
class StoresRepaired(StoresVerified):
    """What was done, and how things stand afterwards: `copies` are those that could not be mended, and why."""

    schema: ClassVar[str] = "smp.cloud.repair/1"
    mended: list[MendedCopy]
    removed: dict[str, list[str]]
    """Stores from which objects were removed that are not to be there any more, and the keys of these."""


@dataclass(frozen=True, slots=True)
class StrayObject:
    """An object that no record of the index tells of."""

    object: str
    """Key of the object in the stores."""
    size: int
    """Bytes, all copies together."""
    stores: list[str]
    """Those that have it."""
    seen_for: float
    """Seconds since this machine first saw it so."""


@dataclass(frozen=True, slots=True)
class StoresPruned(Result):
    """What nothing refers to, and was removed or is left for the present."""

    schema: ClassVar[str] = "smp.cloud.prune/1"
    dry_run: bool
    removed: list[StrayObject]
    """With dry_run, what would be removed."""
    kept: list[StrayObject]
    """What is too new, or may be needed by an unfinished upload."""
    degraded: dict[str, str]
    """Stores that did not let go of what was to be removed, and why."""


# ----------------------------------------------------------------------------------------------------- medical images


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """A picture, volume or segmentation that was written."""

    path: str
    source: str
    """The file that it was made of; for a volume, the first one."""
    files: int
    """How many files it was made of."""
    engine: Literal["dcm2niix", "own"] | None
    """What made a volume; null for a segmentation."""
    problems: list[str]
    """Why the slices of a volume are not a regular grid, for people; dcm2niix may have resampled them."""


@dataclass(frozen=True, slots=True)
class FailedFile:
    """A file that could not be used."""

    path: str
    """For a volume that could not be made, its first file."""
    reason: str
    """For people."""


@dataclass(frozen=True, slots=True)
class MedicalConverted(Result):
    """What was made of the files, and which of them failed."""

    schema: ClassVar[str] = "smp.medical.convert/1"
    written: list[ConvertedFile]
    failed: list[FailedFile]


@dataclass(frozen=True, slots=True)
class PreprocessStep:
    """What one step has done to a volume."""

    name: str
    """orient, bias, denoise, mask, clahe, spacing, normalize, or outside: what is outside of the mask becomes 0."""
    parameters: dict[str, str | float | list[float]]
    """Settings, and what the step found out by itself, such as the noise."""
    cpu_seconds: float
    """Of all threads together."""
    least: float
    """Least value of the volume after the step."""
    greatest: float
    mean: float


@dataclass(frozen=True, slots=True)
class PreprocessedVolume:
    """A volume that was preprocessed, or with dry_run would be."""

    path: str
    """Of the result."""
    source: str
    """File, or folder of DICOM."""
    shape: list[int]
    """Voxels along i, j, k: of the result; with dry_run of the input."""
    spacing: list[float]
    """mm along i, j, k, of the same."""
    orientation: str
    """Ends of the patient to which i, j, k grow, such as RAS, of the same."""
    memory: int
    """Bytes that were reckoned to be needed."""
    notes: list[str]
    """What is to be known of how the input was read, for people."""
    steps: list[PreprocessStep]
    """In order; empty with dry_run."""


@dataclass(frozen=True, slots=True)
class MedicalPreprocessed(Result):
    """What was preprocessed, and which files failed. With --log this is also what is written there."""

    schema: ClassVar[str] = "smp.medical.preprocess/1"
    version: str
    """Of this program."""
    dry_run: bool
    steps: list[str]
    """Names of the steps, in order."""
    written: list[PreprocessedVolume]
    failed: list[FailedFile]


@dataclass(frozen=True, slots=True)
class UsedModel:
    """The model that made a result."""

    name: str
    version: str
    sha256: str
    """Of its model.json, which names all its files by their hashes."""


@dataclass(frozen=True, slots=True)
class SegmentedRegion:
    """A label that was found."""

    label: int
    name: str
    voxels: int
    ml: float
    components: int
    """Connected pieces."""
    centroid: list[float]
    """x, y, z in mm, RAS."""


@dataclass(frozen=True, slots=True)
class MedicalSegmented(Result):
    """An image that was segmented."""

    schema: ClassVar[str] = "smp.medical.segment/1"
    input: str
    output: str
    model: UsedModel
    engine: Literal["torch", "openvino", "onnx"]
    precision: Literal["float32", "bfloat16"]
    device: Literal["cpu", "cuda"]
    """What computed in the end; a GPU that ran out of memory is left for the CPU, and a warning says so."""
    window: list[int]
    """Size, voxels of the model's grid."""
    windows: int
    overlap: float
    """The share that windows have in common at least."""
    mirrored: bool
    """Whether the mean over mirrored images was taken."""
    expected_memory: int
    """Bytes that were reckoned to be needed at the peak."""
    seconds: float
    """For all but reading and writing."""
    regions: list[SegmentedRegion]
    warnings: list[str]
    notice: str
    """What the result is not for."""


@dataclass(frozen=True, slots=True)
class ModelMetric:
    """A figure from the validation of a model, as its maker states it."""

    label: str
    metric: str
    mean: float
    low: float | None
    """Ends of the confidence interval of 95 %."""
    high: float | None


@dataclass(frozen=True, slots=True)
class ModelShown(Result):
    """What a model package says of its model."""

    schema: ClassVar[str] = "smp.medical.model.info/1"
    path: str
    name: str
    version: str
    sha256: str
    """Of its model.json, which names all its files by their hashes."""
    task: Literal["segment", "classify"]
    architecture: str
    """For people."""
    channels: list[str]
    modality: str | None
    """Null for any."""
    orientation: str
    spacing: list[float] | None
    """mm; null for that of the image."""
    window: list[int]
    """With which it was trained, voxels."""
    normalization: str
    labels: dict[str, str]
    """Value → name."""
    intended_use: str
    limitations: str
    training_data: str
    licence: str
    validated_on: str | None
    validation_cases: int | None
    metrics: list[ModelMetric]
    size: int
    """Bytes of its files without model.json."""
    self_test: bool


@dataclass(frozen=True, slots=True)
class ModelInstalled(Result):
    """A model package that was made from installed weights."""

    schema: ClassVar[str] = "smp.medical.model.install/1"
    path: str
    name: str
    version: str
    sha256: str
    """Of its model.json."""


@dataclass(frozen=True, slots=True)
class ModelVerified(Result):
    """A model package that is intact."""

    schema: ClassVar[str] = "smp.medical.model.verify/1"
    path: str
    name: str
    version: str
    sha256: str
    """Of its model.json."""
    files: int
    engine: str | None
    """What ran the self-test; null if there is none."""
    largest_difference: float | None
    """Of a logit from the one that its maker had."""
    tolerance: float | None


@dataclass(frozen=True, slots=True)
class TrainedFigure:
    """A figure over the validation cases, with its 95 % confidence interval."""

    label: str
    """Name of the label, or "mean of the labels"; of a classifier the name of the class."""
    metric: str
    """dice, iou, precision, recall, hd95 or assd; of a classifier auc, sensitivity or specificity (at 0.5)."""
    mean: float
    """Over cases; of a classifier the figure itself."""
    low: float | None
    """Null if there are too few cases for an interval."""
    high: float | None


@dataclass(frozen=True, slots=True)
class MedicalTrained(Result):
    """A model that was trained, or with dry_run would be."""

    schema: ClassVar[str] = "smp.medical.train/1"
    dry_run: bool
    task: Literal["segment", "classify"]
    package: str
    """Path."""
    curve: str
    """Path of the picture of loss and score over the steps."""
    training: int
    """How many cases were learnt from."""
    validation: int
    """How many were kept apart."""
    labels: dict[str, str]
    """Label in the label maps, or class of images → name."""
    voxels: dict[str, int]
    """Label → voxels of it in all cases; empty with classify."""
    cases: dict[str, int]
    """Class → images of it, training and validation; empty with segment."""
    variant: str | None
    """Of a U-Net; null with classify."""
    dimensions: int
    channels: list[int]
    """Features a level."""
    parameters: int
    """Of the network."""
    window: list[int]
    """Voxels."""
    spacing: list[float]
    """mm along the axes in RAS, as the network sees images."""
    loss: str
    seed: int
    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]
    steps: int | None
    """Null with dry_run, as below."""
    seconds: float | None
    cpu_seconds: float | None
    """Of all threads together, and of all calls that worked on it."""
    figures: list[TrainedFigure]
    """Measured on the validation cases with the weights of the package; empty with dry_run."""


# ------------------------------------------------------------------------------------------------------------- images


@dataclass(frozen=True, slots=True)
class FoundViolation:
    """Something of the original that is left in an output, or another fault of it. Never a value."""

    kind: str
    """kept, present, private, unknown, residue, uid, uid-map, patient-map, file-meta, preamble, trailing, pixels, statement,
    dates, age, file-name or unpaired."""
    place: str
    """Tags from the outermost sequence inwards; of the original attribute if the kind is residue; empty for the whole file."""


@dataclass(frozen=True, slots=True)
class FileWithFindings:
    """An output in which something was found."""

    output: str
    """Path."""
    original: str | None
    """Path; null if no original belongs to it."""
    violations: list[FoundViolation]
    lost: dict[str, int]
    """Place and number of attributes that should have survived and did not."""


@dataclass(frozen=True, slots=True)
class UnreadFile:
    """A file that could not be read as DICOM."""

    path: str
    reason: str
    """For people."""


@dataclass(frozen=True, slots=True)
class AnonymizationVerified(Result):
    """How de-identified files compare with their originals. It holds no value of any attribute."""

    schema: ClassVar[str] = "smp.medical.verify-anonymized/1"
    clean: bool
    """Whether no violation was found."""
    originals: int
    """How many could be read."""
    outputs: int
    """How many could be read."""
    pairs: int
    """How many outputs were compared with their originals."""
    elements: int
    """How many elements of outputs were compared."""
    violations: dict[str, int]
    """Kind and number."""
    lost: dict[str, int]
    """Place and number of attributes that should have survived and did not."""
    files: list[FileWithFindings]
    """Those in which something was found."""
    missing: list[str]
    """Paths of originals without an output: quarantined, or refused."""
    unreadable: list[UnreadFile]


# --------------------------------------------------------------------------------------------------------- DICOM files


@dataclass(frozen=True, slots=True)
class SliceProblem:
    """Why slices are not a regular grid."""

    kind: str
    """no-geometry, mosaic, mixed-orientation, duplicates, gaps, uneven-spacing, tilt or shift."""
    text: str
    """For people."""
    amount: float | None
    """tilt, mixed-orientation: degrees. uneven-spacing, shift: the largest deviation in mm. gaps: slices that are missing.
    duplicates: slices too many. Null for the others."""
    slices: list[int]
    """Indices in the stack, from 0: after which slices are missing, which lie where others do, or which is furthest off."""


@dataclass(frozen=True, slots=True)
class DicomStack:
    """Slices of a series that belong together."""

    images: int
    rows: int | None
    """Null if these are no images."""
    columns: int | None
    plane: str | None
    """axial, coronal or sagittal, with oblique before it if it is more than 5 degrees off; null if there is none."""
    pixel_spacing: list[float] | None
    """mm between rows, then between columns."""
    slice_spacing: float | None
    """mm between slices, measured along the normal; null for a single slice, or if it is not even."""
    affine: list[list[float]] | None
    """From voxel (column, row, slice) to the patient: 4 rows of 4 numbers, mm, LPS; null if the slices are not even."""
    regular: bool
    """Whether the slices are a regular grid."""
    problems: list[SliceProblem]
    """Why not."""
    set_apart_by: dict[str, str]
    """Keywords of what makes it a stack of its own, and their values; a value is empty if it is a time of day or a UID."""


@dataclass(frozen=True, slots=True)
class DicomSeries:
    """A series."""

    number: int | None
    """SeriesNumber."""
    modality: str
    """Such as CT; empty if there is none."""
    description: str
    """SeriesDescription, free text."""
    series_instance_uid: str | None
    """Null without --identifiers."""
    study_instance_uid: str | None
    """Null without --identifiers."""
    instances: int
    """Number of objects."""
    stacks: list[DicomStack]


@dataclass(frozen=True, slots=True)
class UnreadableFile:
    """A file that could not be read."""

    path: str
    reason: str
    """For people; without anything from the file."""


@dataclass(frozen=True, slots=True)
class DicomShown(Result):
    """What is in a DICOM file or a folder of them."""

    schema: ClassVar[str] = "smp.medical.dicom-info/1"
    path: str
    attributes: dict[str, str] | None
    """Of a file: keywords and values, with names in place of the UIDs of kinds. Null for a folder."""
    series: list[DicomSeries]
    instances: int
    """Number of objects in all series."""
    patients: int
    """How many there are, by PatientID or name."""
    unreadable: list[UnreadableFile]
    side_files: list[str]
    """Paths of files that are plainly no images: a DICOMDIR, texts, web pages, programs."""


# ------------------------------------------------------------------------------------------------------- this program


@dataclass(frozen=True, slots=True)
class DemoStep:
    """One thing that was shown."""

    name: str
    shown: str
    """For people."""
    held: bool
    """Whether it is as was claimed."""
    files: int
    """How many files or objects were gone through."""
    size: int
    """Bytes gone through."""
    seconds: float


@dataclass(frozen=True, slots=True)
class DemoRun(Result):
    """What the demo showed."""

    schema: ClassVar[str] = "smp.demo/1"
    held: bool
    """Whether every step held."""
    steps: list[DemoStep]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked."""

    check: str
    state: Literal["ok", "note", "fail"]
    """A note is something that one may want to know."""
    text: str
    """For people."""
    hint: str = ""
    """The next step, for people; empty if there is none."""


@dataclass(frozen=True, slots=True)
class DoctorReport(Result):
    """What was found."""

    schema: ClassVar[str] = "smp.doctor/1"
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One line of the audit log; docs/format/audit.md tells more."""

    seq: int
    """Number in the log, from 1."""
    ts: str
    """UTC, ISO 8601 with microseconds."""
    actor: str
    """uid: and the numeric user id."""
    action: str
    object: str | None
    """Keyed id of what was acted on, 32 hexadecimal digits."""
    outcome: str
    """ok, or the code of an error."""
    prev: str
    """Hash of the record before."""
    hash: str
    """Of this record, 64 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class AuditShown(Result):
    """The records, oldest first."""

    schema: ClassVar[str] = "smp.audit.show/1"
    records: list[AuditRecord]


@dataclass(frozen=True, slots=True)
class AuditVerified(Result):
    """An audit log that is intact."""

    schema: ClassVar[str] = "smp.audit.verify/1"
    records: int
    """How many there are."""
    head: str
    """Number and hash of the last one, for --head."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of a setting."""

    value: str | None
    origin: str
    """Where it comes from."""


@dataclass(frozen=True, slots=True)
class ConfigShown(Result):
    """The settings."""

    schema: ClassVar[str] = "smp.config.show/1"
    settings: dict[str, Setting]
    """Name and value."""


@dataclass(frozen=True, slots=True)
class ConfigTrusted(Result):
    """The file that is trusted."""

    schema: ClassVar[str] = "smp.config.trust/1"
    file: str
    """Path."""


# -------------------------------------------------------------------------------------------------- de-identification


@dataclass(frozen=True, slots=True)
class AnonymizedFile:
    """What became of a file."""

    input: str
    """Path."""
    outcome: Literal["written", "quarantined", "unreadable", "unwritten"]
    output: str | None
    """Path; null if it was not written."""
    reason: str | None
    """Why it was not written, without any value of the file; null if it was."""


@dataclass(frozen=True, slots=True)
class MethodCode:
    """An entry of DeidentificationMethodCodeSequence (0012,0064), of the scheme DCM."""

    code: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Anonymized(Result):
    """What was done to a folder."""

    schema: ClassVar[str] = "smp.medical.anonymize/1"
    files: list[AnonymizedFile]
    actions: dict[str, int]
    """X removed, Z emptied, D replaced, U UIDs replaced, C cleaned: how many values."""
    table: str
    """Edition of the table of PS3.15."""
    method: list[MethodCode]
    patients: int
    """How many there were."""


@dataclass(frozen=True, slots=True)
class Original:
    """What stands behind a pseudonym."""

    new: str
    old: str
    days: int | None
    """By which dates of this patient were moved, negative into the past; null for a UID, or if they were not."""


@dataclass(frozen=True, slots=True)
class Reidentified(Result):
    """What stands behind the names that were asked for."""

    schema: ClassVar[str] = "smp.medical.reidentify/1"
    originals: list[Original]


# --------------------------------------------------------------------------------------------------------- evaluation

Figure = float | Literal["inf"] | None
"""JSON has no infinity; null is undefined."""


@dataclass(frozen=True, slots=True)
class EvaluatedLabel:
    """One label in one case."""

    label: int
    tp: int
    """Voxels in both."""
    fp: int
    """Voxels in the prediction alone."""
    fn: int
    """Voxels in the truth alone."""
    tn: int
    """Voxels in neither."""
    values: dict[str, Figure]
    """Metric → value; "inf" where only one of the masks is empty, null where it is undefined."""


@dataclass(frozen=True, slots=True)
class EvaluatedCase:
    """One prediction."""

    case: str
    prediction: str
    """Path."""
    truth: str
    """Path."""
    labels: list[EvaluatedLabel]


@dataclass(frozen=True, slots=True)
class WorstCase:
    """A case that is far from the best value."""

    case: str
    value: Figure


@dataclass(frozen=True, slots=True)
class EvaluatedMetric:
    """A metric of a label over all cases."""

    label: int | None
    """Null: of the mean over labels of each case."""
    name: str | None
    """Of the label, as given."""
    metric: str
    n: int
    """Cases in which it is defined."""
    undefined: int
    infinite: int
    mean: Figure
    low: Figure
    """Of the interval of 95 % of the mean; null for fewer than two cases."""
    high: Figure
    median: Figure
    worst: list[WorstCase]


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How segmentations were measured."""

    surface: Literal["voxel", "area"] | None
    """Which surface distances are of; null if none were asked for."""
    tolerance: float
    """mm, of the surface Dice."""
    lesion_iou: float | None
    """From which IoU on a lesion is found; 0: any voxel is enough; null if lesions were not asked for."""
    resamples: int
    """Of the bootstrap."""
    seed: int


@dataclass(frozen=True, slots=True)
class Proportion:
    """A figure with its interval of 95 %; null where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Cases whose probability is from `low` to below `high`."""

    low: float
    high: float
    n: int
    probability: float | None
    """Mean; null if there are no cases."""
    observed: float | None
    """Part of them with label 1."""


@dataclass(frozen=True, slots=True)
class PredictionsScored:
    """How good probabilities are."""

    n: int
    positives: int
    threshold: float
    auc: Proportion
    """Mann-Whitney, interval of DeLong."""
    sensitivity: Proportion
    """Interval of Wilson."""
    specificity: Proportion
    brier: float
    ece: float
    """Of the bins of `reliability`."""
    reliability: list[ReliabilityBin]


@dataclass(frozen=True, slots=True)
class Evaluated(Result):
    """Predictions against what was the case: segmentations, or probabilities in tables."""

    schema: ClassVar[str] = "smp.medical.evaluate/1"
    settings: EvaluationSettings | None
    """Null for tables."""
    cases: list[EvaluatedCase]
    """Empty for tables."""
    summary: list[EvaluatedMetric]
    """Empty for tables."""
    predictions: PredictionsScored | None
    """Null for segmentations."""
    missing: list[str]
    """What has no partner: paths; of tables, path and line."""
    failed: list[FailedFile]
    """What could not be measured."""


# ------------------------------------------------------------------------------------------------------------ network


@dataclass(frozen=True, slots=True)
class RemoteStudyFound:
    """A study that a server has. What may identify the patient is null unless it was asked for."""

    study_uid: str
    series: int
    instances: int
    modalities: list[str]
    patient_id: str | None
    patient_name: str | None
    accession: str | None
    date: str | None
    """StudyDate, as the server writes it."""


@dataclass(frozen=True, slots=True)
class FetchedInstance:
    """What became of an instance; with dry_run all are pending."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    outcome: Literal["fetched", "present", "failed", "pending"]
    """present was there already; pending may come with the next call."""
    path: str | None
    """Null unless it is fetched or present."""
    error: str | None
    """Code of the error if it failed, else null."""


@dataclass(frozen=True, slots=True)
class Fetched(Result):
    """What a server has, and what was fetched of it."""

    schema: ClassVar[str] = "smp.medical.fetch/1"
    dry_run: bool
    """Whether nothing was fetched."""
    studies: list[RemoteStudyFound]
    instances: list[FetchedInstance]


@dataclass(frozen=True, slots=True)
class SentFile:
    """What became of a file."""

    path: str
    outcome: Literal["sent", "failed", "unreadable", "pending"]
    """pending may be sent by the next call."""
    error: str | None
    """Code of the error if it failed, else null."""


@dataclass(frozen=True, slots=True)
class Sent(Result):
    """What was sent to a server."""

    schema: ClassVar[str] = "smp.medical.send/1"
    files: list[SentFile]


def every_result() -> list[type[Result]]:
    """Return the classes of what commands print, in the order in which they stand here."""
    found = [value for value in globals().values() if isinstance(value, type) and issubclass(value, Result)]
    return [kind for kind in found if "schema" in vars(kind)]
