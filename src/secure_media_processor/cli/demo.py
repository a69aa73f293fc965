"""smp demo: the whole way of a study, with real parts, and a proof for every claim.

Everything happens in one folder: keys, stores, audit log. The study is made of CT and MR files that ship with pydicom, into
which a patient who does not exist is planted. Where SeaweedFS and boto3 are installed one of the stores is a real S3 server, on
this machine; else it is a folder like the others.
"""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from secure_media_processor.cli import local_s3
from secure_media_processor.cli.options import FILE, output_options
from secure_media_processor.cli.schemas import DemoRun, DemoStep
from secure_media_processor.cli.ui import current, table
from secure_media_processor.cloud.archive import Archive, Keys
from secure_media_processor.cloud.connectors.local import LocalConnector
from secure_media_processor.cloud.objects import ObjectState, ObjectStatus, ReplicaState
from secure_media_processor.cloud.outcome import Action
from secure_media_processor.cloud.uploading import Source
from secure_media_processor.core.audit import AuditLog
from secure_media_processor.core.files import make_private_folder
from secure_media_processor.core.keystore import Keystore
from secure_media_processor.errors import ExistsError, SmpError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from secure_media_processor.cloud.connectors.base import CloudConnector
    from secure_media_processor.medical.deid.engine import DeidReport
    from secure_media_processor.medical.dicom.reader import Instance

# Files and folders of pydicom's test data: CT and MR, single files and whole series.
_STUDY = (
    "CT_small.dcm", "MR_small.dcm", "dicomdirtests/77654033/CT2", "dicomdirtests/98892001/CT2N", "dicomdirtests/98892001/CT5N",
    "dicomdirtests/98892003/MR1", "dicomdirtests/98892003/MR2", "dicomdirtests/98892003/MR700",
)  # fmt: skip
_NAS, _S3, _OTHER = "clinic-nas", "cloud-a", "cloud-b"
_NAME = "study"
# Different bytes in a piece of a file that is looked for: a run of zeros is everywhere.
_VARIED = 8

# Nobody has this name, number or address. Each value goes where a real one of its kind stands.
_PATIENT = {
    "PatientName": "Halvorsen-Quist^Rowena",
    "PatientID": "MRN-7719-RHQ",
    "PatientBirthDate": "19610228",
    "PatientAddress": "14 Larkspur Mews, Eastwick",
    "PatientComments": "Rowena prefers morning visits",
    "ReferringPhysicianName": "Okonkwo-Tremaine^Ansel",
    "InstitutionName": "St Brannoc Infirmary",
    "AccessionNumber": "ACC-55120-RHQ",
    "StudyDescription": "Follow-up of Rowena HQ",
    "OtherPatientNames": "Quistie^Wena",
}
_NESTED = "Requested by Ansel for RHQ"
_PRIVATE = "private note on RHQ"
_PREAMBLE = b"scanned for Rowena Halvorsen-Quist"
_FILE_NAME = "halvorsen-quist"
_RANDOM_UID = re.compile(rb"2\.25\.\d+")


class DemoFailedError(SmpError):
    """A claim of `smp demo` did not hold on this machine. The table marks which."""

    code = "SMP-DEMO-FAILED"
    default_hint = "please report it, with the table and the output of `smp doctor`"


@dataclass(slots=True)
class Step:
    """One row of the table at the end."""

    name: str
    shown: str = ""
    held: bool = False
    files: int = 0
    size: int = 0
    """Bytes gone through."""
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """MB/s, 10⁶ bytes."""
        return self.size / 1e6 / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class Demo:
    """The steps so far, and where they happen."""

    folder: Path
    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time a step and add it to the table; an error in it ends the demo."""
        step = Step(name)
        self.steps.append(step)
        current().detail(name)
        start = time.perf_counter()
        yield step
        step.seconds = time.perf_counter() - start


@click.command()
@click.option("--folder", type=FILE, help="Work in this new folder and keep it; a temporary one is removed at the end.")
@output_options
def demo(folder: Path | None) -> None:
    """Show the whole way on a real study, from DICOM to cloud and back.

    A study with a planted patient is de-identified, and encrypted on its way into three stores, one of them a real S3 server if
    there is one on this machine; one copy is damaged and one deleted, which is noticed and repaired; one store is lost; and the
    study comes back identical. Nothing outside the folder is touched, and nothing leaves this machine.

    \b
    Example:
      smp demo --folder /tmp/smp-demo
    """
    import secure_media_processor.medical.dicom  # noqa: F401 - says so, before anything is made, if pydicom is missing

    ui = current()
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="smp-demo-") as name:
            steps = run(Path(name))
    else:
        if folder.exists():
            raise ExistsError(f"{folder} exists already", hint="name a new folder")
        make_private_folder(folder)
        steps = run(folder)
    held = all(step.held for step in steps)
    rows = [_row(step) for step in steps]
    text = table(("step", "shown", "files", "MB", "seconds", "MB/s", "holds"), rows)
    ui.result(DemoRun(held, [DemoStep(**asdict(step)) for step in steps]), text)
    if not held:
        failed = ", ".join(step.name for step in steps if not step.held)
        raise DemoFailedError(f"not everything held: {failed}")
    ui.say("every claim held")
    if folder is not None:
        ui.say(f"everything is in {folder}")


def run(folder: Path) -> list[Step]:
    """Run the demo in the empty folder `folder` and return its steps."""
    demo = Demo(folder)
    study, clean, back = (folder / name for name in ("study", "de-identified", "fetched"))
    log = AuditLog(folder / "audit" / "audit.jsonl")
    planted, uids = _plant(demo, study)
    with log.operation("medical.anonymize"):
        report = _deidentify(demo, study, clean)
    _search(demo, clean, planted, uids, report)
    originals = _files(clean)
    keystore = Keystore(folder / "keys")
    keystore.generate()
    key = keystore.primary()
    with _stores(folder) as stores:
        archive = Archive(stores, Keys([key], [keystore], key.content_key), folder / "cloud")
        with log.operation("upload"):
            _upload(demo, archive, clean, stores)
        _search_stores(demo, stores, planted, originals)
        _damage_and_notice(demo, archive, folder / "stores", stores)
        with log.operation("cloud.repair"):
            _repair(demo, archive)
        with log.operation("download"):
            _lose_a_store_and_download(demo, archive, folder / "stores", back)
    _compare(demo, back / _NAME, originals)
    _check_audit(demo, log, planted)
    return demo.steps


@contextmanager
def _stores(folder: Path) -> Iterator[dict[str, CloudConnector]]:
    """Yield the three stores, all of them in `folder`."""
    stores: dict[str, CloudConnector] = {name: LocalConnector.create(folder / "stores" / name) for name in (_NAS, _OTHER)}
    if local_s3.program() is None or find_spec("boto3") is None:
        yield {**stores, _S3: LocalConnector.create(folder / "stores" / _S3)}
        return
    make_private_folder(folder / "stores" / _S3)
    with local_s3.running(folder / "stores" / _S3) as server, server.bucket() as bucket:
        yield {**stores, _S3: bucket}


def _plant(demo: Demo, study: Path) -> tuple[list[bytes], list[bytes]]:
    """Write the study with the planted patient. Returns the planted values and the UIDs that name patient, study and images."""
    from pydicom import Dataset, dcmread
    from pydicom.data import get_testdata_file

    make_private_folder(study)
    uids: set[str] = set()
    with demo.step("plant a patient") as step:
        first = Path(str(get_testdata_file(_STUDY[0], download=False)))
        sources = [path for name in _STUDY for path in _files(first.parent / name)]
        for number, path in enumerate(sources):
            dataset = dcmread(path)
            uids |= {str(dataset.get(k)) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
            for keyword, value in _PATIENT.items():
                setattr(dataset, keyword, value)
            inner, outer = Dataset(), Dataset()
            inner.ScheduledProcedureStepDescription = _NESTED
            outer.RequestAttributesSequence = [inner]
            dataset.RequestAttributesSequence = [outer]
            dataset.private_block(0x0011, "SMP DEMO", create=True).add_new(0x01, "LO", _PRIVATE)
            dataset.preamble = _PREAMBLE.ljust(128, b"\0")
            dataset.save_as(study / f"{_FILE_NAME}-{number:03}.dcm")
        values = [v.encode() for v in (*_PATIENT.values(), _NESTED, _PRIVATE)]
        parts = [b"Rowena", b"Halvorsen", b"Okonkwo", b"Tremaine", _FILE_NAME.encode(), _PREAMBLE]
        planted = [*values, *parts]
        found = _occurrences(_files(study), [*planted, *(uid.encode() for uid in uids)])
        step.files, step.size = len(sources), _size(_files(study))
        step.held = len(sources) > 1 and len(found) == len(planted) + len(uids)
        step.shown = f"{len(planted)} values and {len(uids)} UIDs are in the files"
    return planted, [uid.encode() for uid in uids]


def _deidentify(demo: Demo, study: Path, clean: Path) -> DeidReport:
    from secure_media_processor.medical.deid.engine import Deidentifier
    from secure_media_processor.medical.deid.uids import KEY_SIZE

    with demo.step("de-identify") as step:
        report = Deidentifier(secrets.token_bytes(KEY_SIZE)).deidentify_folder(study, clean)
        step.files, step.size = len(report.written), _size(_files(study))
    done = report.actions
    step.shown = f"{done['X']} elements removed, {done['Z'] + done['D']} replaced, {done['U']} UIDs mapped"
    step.held = (
        len(report.written) == len(_files(study)) and not report.unreadable and not report.quarantined and not report.unwritten
    )
    return report


def _search(demo: Demo, clean: Path, planted: list[bytes], uids: list[bytes], report: DeidReport) -> None:
    """Search every byte and name of the output, and check that pixels and series stayed what they were."""
    from pydicom import dcmread

    from secure_media_processor.medical.dicom.reader import read_folder
    from secure_media_processor.medical.dicom.series import group_into_series

    with demo.step("search for the patient") as step:
        files = _files(clean)
        survivors = _occurrences(files, planted + uids)
        step.files, step.size = len(files), _size(files)
    same_pixels = all(dcmread(w.source).PixelData == dcmread(w.target).PixelData for w in report.written)
    before = {s.series_instance_uid: len(s.instances) for s in group_into_series(_instances(report))}
    after = group_into_series(read_folder(clean).instances)
    modalities = {series.modality for series in after}
    step.held = not survivors and same_pixels and sorted(before.values()) == sorted(len(s.instances) for s in after)
    step.held = step.held and modalities == {"CT", "MR"}
    step.shown = f"0 of {len(planted) + len(uids)} values survive; pixels identical; {len(after)} series kept"
    if not step.held:
        step.shown = f"{len(survivors)} values survive; pixels identical: {same_pixels}; {len(after)} of {len(before)} series"


def _instances(report: DeidReport) -> Iterator[Instance]:
    from secure_media_processor.medical.dicom.reader import Instance, read_instance

    for written in report.written:
        found = read_instance(written.source)
        if isinstance(found, Instance):
            yield found


def _upload(demo: Demo, archive: Archive, clean: Path, stores: Mapping[str, CloudConnector]) -> None:
    with demo.step("encrypt on the way into three stores") as step:
        sources = [Source(path, f"{_NAME}/{path.relative_to(clean).as_posix()}") for path in _files(clean)]
        done = list(archive.upload(sources))
        step.files, step.size = len(done), sum(one.size for one in done) * len(stores)
    kinds = "two folders and a real S3 server" if _is_s3(stores[_S3]) else "three folders"
    step.held = {one.action for one in done} <= {Action.STORED, Action.LINKED} and not archive.degraded
    step.shown = f"AES-256-GCM, random names, an encrypted index; {kinds}"


def _search_stores(demo: Demo, stores: Mapping[str, CloudConnector], planted: list[bytes], originals: Sequence[Path]) -> None:
    """Search what the stores hold for the patient, and for anything of the de-identified files, too."""
    with demo.step("search the stores") as step:
        keys = {name: [info.key for info in store.list()] for name, store in stores.items()}
        held = [key.encode() + b"".join(store.get(key)) for name, store in stores.items() for key in keys[name]]
        step.files, step.size = len(held), sum(map(len, held))
    ends = [path.read_bytes()[-64:] for path in originals]
    samples = [end for end in ends if len(set(end)) > _VARIED] + [path.name.encode() for path in originals]
    found = [sample for sample in [*planted, *samples] if any(sample.lower() in data.lower() for data in held)]
    step.held = not found and len({tuple(sorted(names)) for names in keys.values()}) == 1 and len(held) > 0
    step.shown = f"{len(found)} of {len(planted) + len(samples)} values, names and pieces are in any of {len(held)} objects"


def _damage_and_notice(demo: Demo, archive: Archive, folder: Path, stores: Mapping[str, CloudConnector]) -> None:
    """Flip one bit of one copy, delete another, and see whether verify names these two and no other."""
    objects = [status.object.key for status in archive.verify().objects]
    flipped, deleted = objects[0], objects[-1]
    victim = folder / _NAS / flipped
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    stores[_S3].delete(deleted)
    with demo.step("flip a bit, delete a copy, verify") as step:
        report = archive.verify()
        step.files, step.size = len(report.objects), sum(status.object.size for status in report.objects) * len(stores)
    expected = {(flipped, _NAS, ReplicaState.DAMAGED), (deleted, _S3, ReplicaState.MISSING)}
    named = {found for status in report.objects for found in _not_intact(status)}
    step.held = named == expected
    step.shown = "named: " + ", ".join(f"{state} in {store}" for _, store, state in sorted(named, key=lambda n: n[1]))


def _not_intact(status: ObjectStatus) -> Iterator[tuple[str, str, ReplicaState]]:
    for store, replica in status.replicas.items():
        if replica.state is not ReplicaState.INTACT:
            yield status.object.key, store, replica.state


def _repair(demo: Demo, archive: Archive) -> None:
    with demo.step("repair") as step:
        report = archive.repair()
        step.files, step.size = len(report.objects), sum(status.object.size for status in report.objects)
    step.held = archive.verify().worst is ObjectState.FULL and not report.taken_back
    step.shown = f"both copies healed; all {len(report.objects)} objects full again"


def _lose_a_store_and_download(demo: Demo, archive: Archive, folder: Path, back: Path) -> None:
    shutil.rmtree(folder / _NAS)
    make_private_folder(back)
    with demo.step("lose a store, download the study") as step:
        index = archive.read_index()
        done = list(archive.restore([(file, back / file.name) for file in index.files()], back, index))
        step.files, step.size = len(done), sum(one.size for one in done)
    step.held = _NAS in archive.degraded and bool(done) and {one.action for one in done} == {Action.RESTORED}
    step.shown = f"{_NAS} is gone; everything came from the others, verified before it got its name"


def _compare(demo: Demo, result: Path, originals: Sequence[Path]) -> None:
    with demo.step("compare") as step:
        found = [_sha256(path) for path in _files(result)]
        step.files, step.size = len(found), _size(_files(result))
    step.held = found == [_sha256(path) for path in originals]
    step.shown = "SHA-256 of every file is that of the de-identified original"


def _is_s3(store: CloudConnector) -> bool:
    return not isinstance(store, LocalConnector)


def _check_audit(demo: Demo, log: AuditLog, planted: list[bytes]) -> None:
    with demo.step("check the audit log") as step:
        head = log.verify()
        step.files, step.size = 1, log.path.stat().st_size
    step.held = head.seq > 0 and not _occurrences([log.path], planted)
    step.shown = f"{head.seq} records, chain intact, no name in it"


def _files(path: Path) -> list[Path]:
    """Return `path` if it is a file, else all files below it, sorted."""
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _size(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _sha256(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _occurrences(paths: Sequence[Path], values: Sequence[bytes]) -> set[bytes]:
    """Return those of `values` (6 bytes or more) that occur in a file or its name, in any case of letters.

    Shorter values, or a date among the digits of a random UID, would turn up by chance now and then.
    """
    found = set()
    for path in paths:
        haystack = _RANDOM_UID.sub(b"", path.read_bytes().lower() + b"\0" + str(path.name).lower().encode())
        found |= {value for value in values if value.lower() in haystack}
    return found


def _row(step: Step) -> tuple[object, ...]:
    figures = (round(step.size / 1e6, 2), round(step.seconds, 3), round(step.rate, 1))
    return (step.name, step.shown, step.files, *figures, "yes" if step.held else "NO")
