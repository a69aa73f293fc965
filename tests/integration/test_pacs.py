"""Fetching from and sending to a real archive, Orthanc, by DIMSE and by DICOMweb; and what happens when it dies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from pydicom import Dataset
from pydicom.data import get_testdata_file
from requests.auth import HTTPBasicAuth

from conftest import Ran, left_in
from secure_media_processor.medical.dicom.net import transfer
from secure_media_processor.medical.dicom.net.incoming import Incoming
from servers import orthanc
from servers.fault_proxy import proxying
from servers.orthanc import AET, OUR_AET, PASSWORD, USER, Orthanc

NAME, PATIENT, ACCESSION = "CANARYNAME^QUEENIE", "CANARYID7731", "CANARYACC91"
SECRETS = (NAME, "CANARYNAME", PATIENT, ACCESSION, PASSWORD)
STUDY = "1.2.826.0.1.3680043.8.498.77"
SAMPLES = ["CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "ExplVR_BigEnd.dcm", "image_dfl.dcm", "SC_rgb_jpeg_dcmtk.dcm"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of what the tests themselves read and write


@pytest.fixture(scope="module")
def archive_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if orthanc.program() is None:
        pytest.skip("Orthanc (apt install orthanc orthanc-dicomweb) is not installed")
    with orthanc.running(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def archive(archive_server: Orthanc) -> Orthanc:
    """Without any study."""
    if archive_server.process is None:
        archive_server.start()
    archive_server.empty()
    return archive_server


@pytest.fixture
def run(smp: Callable[..., Ran], caplog: pytest.LogCaptureFixture) -> Callable[..., Ran]:
    """Run the program and see that nothing it says holds a secret."""

    def checked(*args: str | Path) -> Ran:
        ran = smp(*args)
        for secret in SECRETS:
            assert secret not in ran.text + ran.err + caplog.text, "it tells"
        return ran

    return checked


def study(folder: Path, *, removed: str = "YES") -> list[Path]:
    """Write a study of real objects in six transfer syntaxes, in two series."""
    folder.mkdir()
    for number, name in enumerate(SAMPLES):
        dataset = pydicom.dcmread(str(get_testdata_file(name, download=False)))
        identify(dataset, number, removed=removed)
        dataset.save_as(folder / name, enforce_file_format=True)
    return sorted(folder.iterdir())


def identify(dataset: Dataset, number: int, *, removed: str = "YES") -> None:
    dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = NAME, PATIENT, ACCESSION
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, f"{STUDY}.{number % 2}"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{STUDY}.9.{number}"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.StudyDate, dataset.PatientIdentityRemoved = "20240131", removed
    dataset.Modality = ("CT", "MR")[number % 2]


def many(folder: Path, count: int) -> None:
    """Write `count` slices of 512 KiB."""
    folder.mkdir()
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    dataset.Rows, dataset.Columns, dataset.PixelData = 256, 1024, bytes(256 * 1024 * 2)
    for number in range(count):
        identify(dataset, number)
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def objects(folder: Path) -> dict[str, tuple[str, Dataset]]:
    """Return transfer syntax and elements of all files, by SOPInstanceUID.

    Orthanc writes an object anew before it hands it over by DIMSE, without the trailing padding.
    """
    found = {}
    for path in folder.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.pop("DataSetTrailingPadding", None)
        found[str(dataset.SOPInstanceUID)] = (str(dataset.file_meta.TransferSyntaxUID), dataset)
    return found


def credentials(folder: Path, **values: str) -> Path:
    path = folder / "pacs.json"
    path.write_text(json.dumps(values or {"user": USER, "password": PASSWORD}))
    path.chmod(0o600)
    return path


def way(archive: Orthanc, kind: str, work: Path) -> tuple[list[str | Path], list[str | Path]]:
    """Return the address and options with which to reach the server."""
    if kind == "web":
        return [archive.web], ["--credentials", credentials(work)]
    listen = ["--listen", str(archive.our_port)] if kind == "move" else []
    return [archive.dicom], ["--aet", OUR_AET, *listen]


@pytest.mark.parametrize("kind", ["get", "move", "web"])
def test_what_is_sent_can_be_fetched_as_it_was(archive: Orthanc, run: Callable[..., Ran], work: Path, kind: str) -> None:
    study(work / "in")
    address, options = way(archive, kind, work)
    sending = [option for option in options if option not in ("--listen", str(archive.our_port))]
    sent = run("medical", "send", *address, "in", *sending, "--json")
    assert sent.code == 0, sent.err
    assert [one["outcome"] for one in json.loads(sent.out)["files"]] == ["sent"] * len(SAMPLES)
    fetched = run("medical", "fetch", *address, "out", "--study", STUDY, *options, "--json")
    assert fetched.code == 0, fetched.err
    told = json.loads(fetched.out)
    assert {one["outcome"] for one in told["instances"]} == {"fetched"}
    assert {one["path"] for one in told["instances"]} == {f"out/{name}" for name in left_in(work / "out")}
    assert told["studies"][0]["patient_id"] is None
    assert objects(work / "out") == objects(work / "in")
    if kind == "web":  # to the byte
        assert {p.read_bytes() for p in (work / "out").rglob("*.dcm")} == {p.read_bytes() for p in (work / "in").iterdir()}
    assert {path.stat().st_mode & 0o777 for path in (work / "out").rglob("*.dcm")} == {0o600}
    # Of a series that lacks one, that one alone is fetched again.
    gone = work / "out" / STUDY / f"{STUDY}.1" / f"{STUDY}.9.3.dcm"
    gone.unlink()
    times = {path: path.stat().st_mtime_ns for path in (work / "out").rglob("*.dcm")}
    again = run("medical", "fetch", *address, "out", "--study", STUDY, *options)
    assert again.code == 0, again.err
    assert f"1 instance fetched ({gone.stat().st_size / 1024:.1f} KiB), 5 were there already" in again.err
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert objects(work / "out") == objects(work / "in")


def test_dicomweb_client_agrees(archive: Orthanc, run: Callable[..., Ran], work: Path) -> None:
    paths = study(work / "in")
    client = DICOMwebClient(archive.web)
    client._session.auth = HTTPBasicAuth(USER, PASSWORD)
    client.store_instances([pydicom.dcmread(paths[0])])
    private = credentials(work)
    assert run("medical", "send", archive.web, *paths[1:], "--credentials", private).code == 0
    assert run("medical", "fetch", archive.web, "out", "--date", "20240101-", "--credentials", private).code == 0
    theirs = client.search_for_instances(study_instance_uid=STUDY)
    ours = objects(work / "out")
    assert {one["00080018"]["Value"][0] for one in theirs} == ours.keys()
    for path in (work / "out").rglob("*.dcm"):
        mine = pydicom.dcmread(path)
        found = client.retrieve_instance(
            STUDY, mine.SeriesInstanceUID, mine.SOPInstanceUID, media_types=(("application/dicom", "*"),)
        )
        assert found == mine


@pytest.mark.parametrize("kind", ["get", "web"])
def test_a_dry_run_tells_and_writes_nothing(
    archive: Orthanc, run: Callable[..., Ran], smp: Callable[..., Ran], work: Path, kind: str
) -> None:
    study(work / "in")
    address, options = way(archive, kind, work)
    assert run("medical", "send", *address, "in", *options).code == 0
    command = ["medical", "fetch", *address, "out", "--patient-id", "CANARYID*", *options, "--dry-run"]
    shown = smp(*command)
    assert shown.code == 0, shown.err
    assert shown.text.split()[4:] == [STUDY, "CT,MR" if "CT,MR" in shown.text else "MR,CT", "2", "6"]
    assert not (work / "out").exists()
    assert all(secret not in shown.text + shown.err for secret in SECRETS)
    only = json.loads(smp(*command, "--modality", "MR", "--json").out)
    assert only["studies"][0]["modalities"] == ["MR"]
    assert len(only["instances"]) == 3
    named = smp(*command, "--identifiers")
    assert all(value in named.text for value in (NAME, PATIENT, ACCESSION, "20240131"))


@pytest.mark.parametrize("kind", ["get", "web"])
def test_nothing_is_found(archive: Orthanc, run: Callable[..., Ran], work: Path, kind: str) -> None:
    study(work / "in")
    address, options = way(archive, kind, work)
    assert run("medical", "send", *address, "in", *options).code == 0
    for asked in (("--study", "1.2.3"), ("--patient-id", "nobody"), ("--date", "19990101-19991231")):
        assert run("medical", "fetch", *address, "out", *asked, *options).code == 7
    assert not (work / "out").exists()


def test_identified_files_are_not_sent(archive: Orthanc, run: Callable[..., Ran], work: Path) -> None:
    study(work / "in", removed="NO")
    (work / "in" / "JPEG2000.dcm").unlink()
    dataset = pydicom.dcmread(work / "in" / "CT_small.dcm")
    dataset.PatientIdentityRemoved, dataset.BurnedInAnnotation = "YES", "YES"
    dataset.save_as(work / "in" / "CT_small.dcm")
    ran = run("medical", "send", archive.dicom, "in", "--aet", OUR_AET, "-v")
    assert ran.code == 2
    assert "5 of 5 files may show who the patient is; nothing was sent" in ran.err
    assert "its pixels may show a name" in ran.err
    assert archive.rest("GET", "/instances") == []
    assert run("medical", "send", archive.dicom, "in", "--aet", OUR_AET, "--identified").code == 0
    assert len(archive.rest("GET", "/instances")) == 5  # type: ignore[arg-type]


def test_what_is_no_dicom_file_is_named(archive: Orthanc, run: Callable[..., Ran], work: Path) -> None:
    study(work / "in")
    (work / "in" / "notes.txt").write_text(NAME)
    ran = run("medical", "send", archive.dicom, "in", "--aet", OUR_AET, "--json")
    assert ran.code == 3
    assert sorted(one["outcome"] for one in json.loads(ran.out)["files"]) == ["sent"] * 6 + ["unreadable"]


def test_who_is_not_known_is_not_let_in(archive: Orthanc, run: Callable[..., Ran], work: Path) -> None:
    wrong = "wr0ng-6612"
    stranger = run("medical", "fetch", archive.dicom, "out", "--study", STUDY, "--aet", "STRANGER")
    assert stranger.code == 4
    other = archive.dicom.replace(AET, "OTHER")
    ran = run("medical", "fetch", other, "out", "--study", STUDY, "--aet", OUR_AET)
    assert (ran.code, "called AE title not recognised" in ran.err) == (4, True)
    for private in (credentials(work, user=USER, password=wrong), credentials(work, token=wrong)):
        ran = run("medical", "fetch", archive.web, "out", "--study", STUDY, "--credentials", private)
        assert ran.code == 4
        assert wrong not in ran.err
    assert run("medical", "send", archive.web, *study(work / "in")).code == 4
    private.chmod(0o644)
    ran = run("medical", "fetch", archive.web, "out", "--study", STUDY, "--credentials", private)
    assert (ran.code, "[SMP-KEY-EXPOSED]" in ran.err) == (4, True)
    assert not (work / "out").exists()


def test_credentials_of_the_environment(
    archive: Orthanc, run: Callable[..., Ran], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMP_DICOMWEB_USER", USER)
    monkeypatch.setenv("SMP_DICOMWEB_PASSWORD", PASSWORD)
    assert run("medical", "fetch", archive.web, "out", "--study", STUDY).code == 7


def test_a_title_that_the_archive_does_not_know_where_to_find(archive: Orthanc, run: Callable[..., Ran], work: Path) -> None:
    study(work / "in")
    assert run("medical", "send", archive.dicom, "in", "--aet", OUR_AET).code == 0
    ran = run(
        "medical", "fetch", archive.dicom, "out", "--study", STUDY, "--aet", OUR_AET, "--listen", str(orthanc.free_port())
    )
    assert (ran.code, f"does it know {OUR_AET} at 127.0.0.1:" in ran.err) == (1, True), ran.err
    assert left_in(work / "out") == set()


@pytest.mark.parametrize("kind", ["get", "move", "web"])
def test_a_server_that_dies_in_the_middle(
    archive: Orthanc, run: Callable[..., Ran], work: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer.time, "sleep", lambda _: None)
    many(work / "in", 10)
    assert run("medical", "send", archive.dicom, "in", "--aet", OUR_AET).code == 0
    address, options = way(archive, kind, work)
    command = ["medical", "fetch", *address, "out", "--study", STUDY, *options]
    if kind == "move":  # it is the archive that connects; it dies when it has handed over the fourth
        take = Incoming.take

        def deadly(self: Incoming, *args: object, **options: object) -> bool:
            taken = take(self, *args, **options)  # type: ignore[arg-type]
            if len(self.fetched) == 4:
                archive.kill()
            return taken

        with monkeypatch.context() as patched:
            patched.setattr(Incoming, "take", deadly)
            broken = run(*command)
    else:
        port = archive.http_port if kind == "web" else archive.dicom_port
        with proxying(port) as proxy:
            proxy.trap, proxy.trap_after = archive.kill, 2 << 20
            broken = run(*[str(part).replace(f":{port}", f":{proxy.port}") for part in command])
    assert broken.code == 11, broken.err
    assert "[SMP-TRANSIENT]" in broken.err
    got = left_in(work / "out")
    assert 0 < len(got) < 10
    assert all(name.endswith(".dcm") for name in got)
    archive.start()
    again = run(*command)
    assert again.code == 0, again.err
    assert f"{10 - len(got)} instances fetched" in again.err
    assert objects(work / "out") == objects(work / "in")


@pytest.mark.parametrize("kind", ["store", "web"])
def test_a_server_that_dies_while_it_is_sent_to(
    archive: Orthanc, run: Callable[..., Ran], work: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer.time, "sleep", lambda _: None)
    many(work / "in", 8)
    address, options = way(archive, kind, work)
    port = archive.http_port if kind == "web" else archive.dicom_port
    with proxying(port) as proxy:
        proxy.direction, proxy.trap, proxy.trap_after = "up", archive.kill, 2 << 20
        broken = run("medical", "send", str(address[0]).replace(f":{port}", f":{proxy.port}"), "in", *options, "--json")
    assert broken.code == 11, broken.err
    outcomes = [one["outcome"] for one in json.loads(broken.out)["files"]]
    assert 0 < outcomes.count("sent") < 8
    assert set(outcomes) == {"sent", "pending"}
    archive.start()
    assert run("medical", "send", *address, "in", *options).code == 0
    assert len(archive.rest("GET", "/instances")) == 8  # type: ignore[arg-type]


def test_nothing_is_printed_from_a_process_of_its_own(archive: Orthanc, smp_process: Callable[..., Ran], work: Path) -> None:
    """Where no handler is set up, Python's logging prints warnings of any library to standard error."""
    study(work / "in")
    assert smp_process("medical", "send", archive.dicom, "in", "--aet", OUR_AET).code == 0
    (work / "out" / STUDY / f"{STUDY}.0").mkdir(parents=True)
    (work / "out" / STUDY / f"{STUDY}.0" / f"{STUDY}.9.0.dcm").write_text(NAME)
    ran = smp_process("medical", "fetch", archive.dicom, "out", "--study", STUDY, "--aet", OUR_AET, "-v")
    assert ran.code == 3
    assert all(line.startswith("smp: ") for line in ran.err.splitlines())
    assert all(secret not in ran.text + ran.err for secret in SECRETS)
