"""De-identification and conversion of encrypted files: the same results as of plain ones, and no plaintext file on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file

from conftest import Ran, left_in
from secure_media_processor import Deidentifier, Keystore, SymmetricKey, encrypt_file
from secure_media_processor.core.container import MAGIC
from secure_media_processor.errors import ImageError, KeyMissingError, WrongKeyError
from secure_media_processor.medical.convert import dcm2niix, folders
from secure_media_processor.medical.convert.folders import convert_to_png
from secure_media_processor.medical.convert.nifti import convert_to_nifti
from secure_media_processor.medical.convert.png import PngOptions
from secure_media_processor.medical.convert.segmentation import read_labels, write_segmentation
from secure_media_processor.medical.deid import burned_in
from secure_media_processor.medical.deid.profile import Option, Profile
from secure_media_processor.medical.deid.verify import Kind, verify_deidentified
from secure_media_processor.medical.dicom.reader import Instance, read_instance
from unit.medical.synthetic import CANARY, image, save, series
from unit.medical.test_segmentation import LABELS
from written_paths import written_paths

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom", "ignore::UserWarning:highdicom")
KEY = bytes(range(32))
SAMPLES = (
    "CT_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm", "JPEG2000.dcm", "examples_overlay.dcm",
    "rtdose_1frame.dcm", "rtplan.dcm", "test-SR.dcm",
)  # fmt: skip


def sample(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def seal(plain: Path, sealed: Path, key: SymmetricKey) -> Path:
    """Encrypt all files below `plain` into the folder `sealed`, under their names."""
    for name in left_in(plain):
        (sealed / name).parent.mkdir(parents=True, exist_ok=True)
        encrypt_file(plain / name, sealed / name, [key])
    return sealed


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in left_in(folder)}


@pytest.fixture
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder for what is not encrypted, apart from the one that is watched."""
    return tmp_path_factory.mktemp("plain")


# --- de-identification -------------------------------------------------------------------------------------------------


def test_de_identification_gives_the_same_bytes(work: Path, plain: Path, key: SymmetricKey) -> None:
    (plain / "in").mkdir()
    for number, name in enumerate(SAMPLES):
        dataset = dcmread(sample(name))
        dataset.SOPInstanceUID, dataset.BurnedInAnnotation = f"1.2.3.{number}", "NO"
        dataset.save_as(plain / "in" / name)
    (plain / "in" / "echo").write_bytes(sample("examples_rgb_color.dcm").read_bytes())
    (plain / "in" / "notes.txt").write_text("hello")
    sealed = seal(plain / "in", work / "sealed", key)
    deidentifier = Deidentifier(KEY)
    expected = deidentifier.deidentify_folder(plain / "in", plain / "clean")
    with written_paths() as paths:
        report = deidentifier.deidentify_folder(sealed, work / "clean", identities=[key])
    assert len(report.written) == len(SAMPLES)
    assert contents(work / "clean") == contents(plain / "clean")
    assert [r.reason for r in report.unreadable] == [r.reason for r in expected.unreadable]
    assert [q.reason for q in report.quarantined] == [q.reason for q in expected.quarantined] != []
    assert (report.actions, report.mapping) == (expected.actions, expected.mapping)
    assert paths
    assert not [path for path in paths if not path.is_relative_to(work / "clean")]
    again = deidentifier.deidentify_folder(sealed, work / "clean", identities=[key])
    assert len(again.written) == len(report.written)


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_several_processes_have_the_keys(work: Path, plain: Path, way: str) -> None:
    key = SymmetricKey.generate()
    store = Keystore(work / "keys")
    store.add(key)
    series(plain / "in", slices=40)
    seal(plain / "in", work / "sealed", key)
    go_on = threading.Event()
    other = threading.Thread(target=go_on.wait)
    if way == "spawn":  # which is what is done if there are threads
        other.start()
    try:
        report = Deidentifier(KEY).deidentify_folder(
            work / "sealed", work / "clean", processes=2, identities=[store if way == "fork" else key]
        )
    finally:
        go_on.set()
    assert len(report.written) == 40
    Deidentifier(KEY).deidentify_folder(plain / "in", plain / "clean")
    assert contents(work / "clean") == contents(plain / "clean")


def test_a_key_that_does_not_fit_stops_no_other_file(work: Path, plain: Path, key: SymmetricKey) -> None:
    first, second, third = series(plain, slices=3)
    (work / "in").mkdir()
    encrypt_file(first, work / "in" / "ours", [key])
    encrypt_file(second, work / "in" / "theirs", [SymmetricKey.generate()])
    (work / "in" / "plain").write_bytes(third.read_bytes())
    deidentifier = Deidentifier(KEY)
    report = deidentifier.deidentify_folder(work / "in", work / "clean", identities=[key])
    assert [one.source.name for one in report.written] == ["ours", "plain"]
    assert [(one.path.name, one.reason[:32]) for one in report.unreadable] == [("theirs", "none of the keys at hand opens t")]
    report = deidentifier.deidentify_folder(work / "in", work / "other")
    assert {one.reason for one in report.unreadable} == {"it is encrypted, and there is no key to read it with"}
    assert len(report.written) == len(left_in(work / "other")) == 1


def test_damage_to_the_pixels_is_seen_while_they_are_copied(work: Path, plain: Path, key: SymmetricKey) -> None:
    save(image(np.arange(256 * 256, dtype=np.uint16).reshape(256, 256), BurnedInAnnotation="NO"), plain / "in" / "one")
    seal(plain / "in", work / "sealed", key)
    sealed = work / "sealed" / "one"
    data = bytearray(sealed.read_bytes())
    data[len(data) // 2] ^= 1
    sealed.write_bytes(data)
    assert isinstance(read_instance(sealed, identities=[key]), Instance)
    report = Deidentifier(KEY).deidentify_folder(work / "sealed", work / "clean", identities=[key])
    assert [one.path for one in report.unreadable] == [sealed]
    assert "damaged" in report.unreadable[0].reason
    assert not left_in(work / "clean")
    assert not report.actions
    assert not report.mapping.patients


def test_pixels_are_cleaned(work: Path, plain: Path, key: SymmetricKey, monkeypatch: pytest.MonkeyPatch) -> None:
    def clean(dataset: Dataset) -> None:
        dataset.PixelData = bytes(len(dataset.PixelData))

    monkeypatch.setattr(burned_in, "clean_pixels", clean)
    (plain / "in").mkdir()
    (plain / "in" / "one").write_bytes(sample("examples_rgb_color.dcm").read_bytes())
    seal(plain / "in", work / "sealed", key)
    deidentifier = Deidentifier(KEY, Profile(frozenset({Option.CLEAN_PIXELS})))
    deidentifier.deidentify_folder(plain / "in", plain / "clean")
    report = deidentifier.deidentify_folder(work / "sealed", work / "clean", identities=[key])
    assert not any(dcmread(report.written[0].target).PixelData)
    assert contents(work / "clean") == contents(plain / "clean")


def test_what_begins_as_an_encrypted_file_is_never_taken_as_a_plain_one(work: Path) -> None:
    """A preamble may hold anything; one reader must not see another file than the next."""
    path = series("in", slices=1)[0]
    path.write_bytes(MAGIC + path.read_bytes()[len(MAGIC) :])
    assert not dcm2niix._marked(path)
    assert Deidentifier(KEY)._make_quickly(path) is None
    report = Deidentifier(KEY).deidentify_folder("in", "clean")
    assert [one.reason for one in report.unreadable] == ["it is encrypted, and there is no key to read it with"]


# --- verification ------------------------------------------------------------------------------------------------------


def test_encrypted_originals_are_compared(
    work: Path, plain: Path, key: SymmetricKey, key_file: Path, smp: Callable[..., Ran]
) -> None:
    series(plain / "in")
    (plain / "in" / "notes").write_text("hello")
    sealed = seal(plain / "in", work / "sealed", key)
    Deidentifier(KEY).deidentify_folder(plain / "in", work / "clean")
    worse = next(path for path in sorted(Path("clean").rglob("*.dcm")))
    dataset = dcmread(worse)
    dataset.PatientComments = CANARY + "11"  # as in the original
    dataset.save_as(worse)
    with written_paths() as paths:
        expected = verify_deidentified(plain / "in", "clean")
        report = verify_deidentified(sealed, seal(Path("clean"), work / "sealed-clean", key), identities=[key])
        ran = smp("medical", "verify-anonymized", sealed, "clean", "--key", key_file)
    assert (report.pairs, report.elements, report.violations) == (expected.pairs, expected.elements, expected.violations)
    assert (report.pairs, Kind.RESIDUE in report.violations) == (6, True)
    assert [one.reason for one in report.unreadable] == ["it is not a DICOM file"]
    assert ran.code == 6
    assert CANARY not in ran.text + ran.err
    assert all(path.parent == work / "sealed-clean" or "sealed-clean" in path.parts for path in paths)


def test_originals_for_other_keys_are_not_compared(work: Path, key: SymmetricKey, plain: Path, smp: Callable[..., Ran]) -> None:
    series(plain / "in", slices=1)
    sealed = seal(plain / "in", work / "sealed", key)
    Deidentifier(KEY).deidentify_folder(plain / "in", work / "clean")
    reasons = {
        one.reason
        for keys in ([], [SymmetricKey.generate()])
        for one in verify_deidentified(sealed, "clean", identities=keys).unreadable
    }
    assert len(reasons) == 2
    assert "it is encrypted, and there is no key to read it with" in reasons
    ran = smp("medical", "verify-anonymized", sealed, "clean")
    assert (ran.code, "there is no key to read it with" in ran.err) == (6, True)  # an output without an original


# --- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_pictures_are_the_same(work: Path, plain: Path, key: SymmetricKey, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr(folders, "_WORTH_PROCESSES", 2)
    series(plain / "in")
    (plain / "in" / "notes").write_text("hello")
    sealed = seal(plain / "in", work / "sealed", key)
    expected = convert_to_png(plain / "in", plain / "out", PngOptions())
    with written_paths() as paths:
        done = convert_to_png(sealed, work / "out", PngOptions(), jobs=jobs, identities=[key])
    assert contents(work / "out") == contents(plain / "out")
    assert len(done.written) == 6
    assert [bad.reason for bad in done.failed] == [bad.reason for bad in expected.failed]
    assert not [path for path in paths if not path.is_relative_to(work / "out")]


def test_one_picture(work: Path, plain: Path, key: SymmetricKey) -> None:
    one = series(plain, slices=1)[0]
    encrypt_file(one, work / "one.smp", [key])
    convert_to_png(one, plain / "one.png", PngOptions())
    convert_to_png(work / "one.smp", work / "one.png", PngOptions(), identities=[key])
    assert Path("one.png").read_bytes() == (plain / "one.png").read_bytes()
    with pytest.raises(KeyMissingError):
        convert_to_png(work / "one.smp", work / "two.png", PngOptions())
    with pytest.raises(WrongKeyError):
        convert_to_png(work / "one.smp", work / "two.png", PngOptions(), identities=[SymmetricKey.generate()])
    assert left_in(work) == {"one.smp", "one.png"}


# --- volumes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["own", "auto"])
@pytest.mark.parametrize("mixed", [False, True])
def test_volumes_are_the_same(work: Path, plain: Path, key: SymmetricKey, engine: str, mixed: bool) -> None:
    paths = series(plain / "in")
    sealed = seal(plain / "in", work / "sealed", key)
    if mixed:  # of which dcm2niix would make a volume with three slices
        for path in paths[:3]:
            (sealed / path.name).write_bytes(path.read_bytes())
    convert_to_nifti(plain / "in", plain / "out", engine="own")
    with written_paths() as written:
        done = convert_to_nifti(sealed, work / "out", engine=engine, identities=[key])
    assert [one.engine for one in done.written] == ["own"]
    assert not done.failed
    assert contents(work / "out") == contents(plain / "out")
    assert not [path for path in written if not path.is_relative_to(work / "out")]
    links = [path for path in written if path.suffix == ".dcm"]
    assert len(links) == (3 if mixed and engine == "auto" else 0)


def test_dcm2niix_is_not_given_what_is_encrypted(work: Path, plain: Path, key: SymmetricKey) -> None:
    series(plain / "in")
    seal(plain / "in", work / "in", key)
    series("in/plain", seed=2)
    done = convert_to_nifti(Path("in"), Path("out"), engine="dcm2niix", identities=[key])
    assert [one.engine for one in done.written] == ["dcm2niix"]
    assert len(done.failed) == 1
    assert "it is encrypted, and dcm2niix can read only what lies decrypted on the disk" in done.failed[0].reason
    assert len(left_in(Path("out"))) == 2


def test_one_slice_and_keys_that_do_not_fit(work: Path, plain: Path, key: SymmetricKey) -> None:
    series(plain)
    sealed = seal(plain, work / "sealed", key)
    one = min(sealed.iterdir())
    with pytest.raises(KeyMissingError):
        convert_to_nifti(one, work / "one.nii", engine="own")
    assert convert_to_nifti(one, work / "one.nii", engine="own", identities=[key]).written
    encrypt_file(plain / one.name, one, [SymmetricKey.generate()], overwrite=True)
    done = convert_to_nifti(sealed, work / "out", identities=[key])
    assert [bad.path for bad in done.failed if "none of the keys" in bad.reason] == [one]


# --- segmentations -----------------------------------------------------------------------------------------------------


def test_a_mask_on_encrypted_images(work: Path, plain: Path, key: SymmetricKey) -> None:
    series(plain / "images")
    convert_to_nifti(plain / "images", plain / "image.nii", engine="own")
    grid = nibabel.load(plain / "image.nii")
    values = np.zeros(grid.shape, np.uint8)
    values[1:4, 2:5, 0:3], values[5:8, 1:6, 2:6] = 1, 2
    nibabel.save(nibabel.Nifti1Image(values, grid.affine), "mask.nii")
    Path("labels.json").write_text(json.dumps(LABELS))
    labels = read_labels(Path("labels.json"))
    sealed = seal(plain / "images", work / "images", key)
    write_segmentation(Path("mask.nii"), plain / "mask.dcm", plain / "images", labels)
    with written_paths() as written:
        write_segmentation(Path("mask.nii"), Path("mask.dcm"), sealed, labels, identities=[key])
    assert {path.name for path in written if path.suffix == ".dcm"} == {"mask.dcm"}
    assert not [path for path in written if work not in {path, path.parent}]
    expected, made = highdicom.seg.segread(plain / "mask.dcm"), highdicom.seg.segread("mask.dcm")
    assert made.PixelData == expected.PixelData
    assert made.ReferencedSeriesSequence == expected.ReferencedSeriesSequence
    assert made.PatientName == expected.PatientName
    assert CANARY in str(made.PatientName)
    with pytest.raises(ImageError, match=r"6 cannot be read, the first is .*: it is encrypted, and there is no key"):
        write_segmentation(Path("mask.nii"), Path("x.dcm"), sealed, labels)
