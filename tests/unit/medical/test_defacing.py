"""Faces go, brains stay, and what cannot be told is held back."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    JPEG2000Lossless,
    MRImageStorage,
    RawDataStorage,
    RLELossless,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    XRay3DAngiographicImageStorage,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from secure_media_processor.errors import IntegrityError, MissingExtraError
from secure_media_processor.medical.deid.defacing import template as template_module
from secure_media_processor.medical.deid.defacing.registration import find_head, shrunken, shrunken_affine
from secure_media_processor.medical.deid.defacing.risk import Risk, face_risk
from secure_media_processor.medical.deid.defacing.template import read_template
from secure_media_processor.medical.deid.engine import Deidentifier
from secure_media_processor.medical.deid.profile import Option, Profile
from secure_media_processor.medical.deid.verify import verify_deidentified
from unit.medical.synthetic import image, save

KEY = bytes(range(32))
DEFACE = Profile(frozenset({Option.DEFACE}))
REAL_HEAD = Path(os.environ.get("SMP_TEST_HEADS", "/usr/share/mricron/templates"))
FACTORS = (3, 3, 3)


@pytest.fixture(scope="module")
def head():
    """The template itself at 3 mm, in front of air with some noise: values (i, j, k), matrix to LPS, and what is face."""
    template = read_template()
    small = shrunken(template.head, FACTORS)
    noisy = small + np.abs(np.random.default_rng(3).normal(0, 4, small.shape))
    face = shrunken(template.face.astype(np.float32), FACTORS) > 0.5
    return noisy.astype(np.float32), shrunken_affine(template.affine, FACTORS), face


def posed(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    move[:3, 3] = shift
    return move


@pytest.mark.parametrize("contrast", ["T1", "inverted"])
def test_a_head_is_found_in_any_pose_and_contrast(head, contrast):
    array, affine, _ = head
    if contrast == "inverted":
        array = np.where(array > 30, 600 - array, array).astype(np.float32)
    move = posed((12, -8, 15), (30, -50, 90))
    place = find_head(array, move @ affine)
    assert place is not None
    # Corners of the head: their places in the template are known, since it is the template.
    voxels = np.array([[20, 10, 10, 1], [40, 70, 30, 1], [30, 40, 75, 1], [10, 50, 50, 1]], float)
    found = voxels @ (place @ move @ affine).T
    true = voxels @ (np.linalg.inv(read_template().affine) @ affine).T
    assert np.abs(found - true).max() < 4  # voxels of about 1 mm


def test_the_same_image_gives_the_same_place_to_the_last_bit(head):
    array, affine, _ = head
    assert (find_head(array, affine) == find_head(array, affine)).all()


@pytest.mark.parametrize("what", ["noise", "flat", "cylinder", "upside down"])
def test_no_head_is_found_where_there_is_none(head, what):
    array, affine, _ = head
    rng = np.random.default_rng(1)
    x, y, _ = np.indices((40, 40, 40)) - 20
    other = {
        "noise": rng.normal(100, 10, (40, 40, 40)),
        "flat": np.zeros((40, 40, 40)),
        "cylinder": ((x / 13) ** 2 + (y / 16) ** 2 < 1) * 100 + rng.normal(0, 5, (40, 40, 40)),
        "upside down": array[:, :, ::-1],
    }[what]
    scale = np.diag([1.0, 1, 1, 1]) if what == "upside down" else np.diag([1.6, 1.6, 1.6, 1])
    assert find_head(other.astype(np.float32), affine @ scale) is None


def write_series(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    space: str,
    *,
    slices: list[int] | None = None,
    axis: int = 2,
    **elements,
) -> dict[Path, tuple[int, int]]:
    """Write slices across `axis` of a volume as an MR series; return path → (axis, slice)."""
    series, study = generate_uid(), elements.pop("StudyInstanceUID", "1.2.3.4")
    first, second = [n for n in range(3) if n != axis]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    written = {}
    for k in range(array.shape[axis]) if slices is None else slices:
        pixels = np.take(array, k, axis=axis).T.round().astype(np.uint16)
        corner = np.array([0, 0, 0, 1.0])
        corner[axis] = k
        directions = [*(affine[:3, first] / spacing[first]), *(affine[:3, second] / spacing[second])]
        ds = image(
            np.ascontiguousarray(pixels), modality="MR", SeriesInstanceUID=series, StudyInstanceUID=study,
            FrameOfReferenceUID=space, InstanceNumber=k + 1, ImagePositionPatient=[round(v, 6) for v in (affine @ corner)[:3]],
            ImageOrientationPatient=[round(v, 9) for v in directions], PixelSpacing=[spacing[second], spacing[first]],
            SliceThickness=spacing[axis], ImageType=["ORIGINAL", "PRIMARY"], SequenceName="fl3d1", **elements,
        )  # fmt: skip
        written[save(ds, folder / f"{series}-{k}")] = (axis, k)
    return written


def changes(report, places) -> dict[tuple[int, int], np.ndarray]:
    """Return (axis, slice) → which pixels changed, as the volume has them, and hold that changed ones are black."""
    found = {}
    for one in report.written:
        if one.source in places:
            before, after = pydicom.dcmread(one.source).pixel_array, pydicom.dcmread(one.target).pixel_array
            changed = before != after
            assert not after[changed].any()
            found[places[one.source]] = changed.T
    return found


def test_the_face_goes_from_every_series_of_the_frame_of_reference_and_nothing_else_does(head, tmp_path):
    array, affine, face = head
    source, target = tmp_path / "in", tmp_path / "out"
    places = write_series(source, array, affine, "1.2.3.5")
    # A localizer of three slices shows too little of a head; its frame of reference knows one.
    places |= write_series(source, array, affine, "1.2.3.5", slices=[27, 28, 29], axis=0)
    report = Deidentifier(KEY, DEFACE).deidentify_folder(source, target)
    assert not report.quarantined
    assert len(report.written) == len(places)
    found = changes(report, places)
    volume = np.stack([found[2, k] for k in range(array.shape[2])], axis=2)
    stored = array.round() > 0
    assert (volume[face & stored]).mean() > 0.97
    assert (volume & ~face).sum() < 0.03 * face.sum()  # a voxel's width along the edge
    inside = np.zeros(array.shape, bool)
    inside[14:44, 20:60, 45:72] = True  # a box in the brain
    assert not (volume & inside).any()
    sagittal = np.stack([found[0, k] for k in (27, 28, 29)])
    assert (sagittal[face[27:30] & stored[27:30]]).mean() > 0.97
    dataset = pydicom.dcmread(report.written[0].target)
    assert dataset.RecognizableVisualFeatures == "NO"
    assert "113102" in [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence]
    verdict = verify_deidentified(source, target, options={"deface"})
    assert verdict.is_clean, verdict.files[0]
    assert not verdict.lost
    assert verdict.pairs == len(places)
    # Done again it is the same to the byte: nothing counts as another file of the same name.
    again = Deidentifier(KEY, DEFACE).deidentify_folder(source, target)
    assert len(again.written) == len(places)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=["RLE", "JPEG 2000"])
def test_compressed_slices_stay_compressed(head, tmp_path, syntax):
    array, affine, _ = head
    places = write_series(tmp_path / "in", array, affine, "1.2.3.5")
    for path in places:
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    report = Deidentifier(KEY, DEFACE).deidentify_folder(tmp_path / "in", tmp_path / "out", processes=2)
    found = changes(report, places)
    assert sum(changed.sum() for changed in found.values()) > 10_000
    assert pydicom.dcmread(report.written[0].target).file_meta.TransferSyntaxUID == syntax


def test_what_may_show_a_face_somewhere_is_held_back(head, tmp_path):
    array, affine, _ = head
    source = tmp_path / "in"
    noise = np.random.default_rng(1).normal(100, 10, (20, 20, 20)).astype(np.float32)
    lost = set(write_series(source, noise, np.diag([5.0, 5, 5, 1]), "1.2.9"))
    lost |= set(write_series(source, array, affine, "1.2.10", slices=[20]))
    rendered = image(np.zeros((4, 4), np.uint8), modality="MR", ImageType=["DERIVED", "SECONDARY", "VRT"])
    photograph = image(
        np.zeros((4, 4, 3), np.uint8), modality="XC", SOPClassUID=SecondaryCaptureImageStorage, BurnedInAnnotation="NO"
    )
    photograph.Modality = "XC"
    lost |= {save(rendered, source / "rendered"), save(photograph, source / "photograph")}
    kept = {save(image(np.zeros((4, 4), np.uint16), modality="CT", BodyPartExamined="KNEE"), source / "knee")}
    radiograph = image(np.zeros((4, 4), np.uint16), SOPClassUID=ComputedRadiographyImageStorage, BurnedInAnnotation="NO")
    radiograph.file_meta.MediaStorageSOPClassUID = radiograph.SOPClassUID
    kept |= {save(radiograph, source / "radiograph")}
    report = Deidentifier(KEY, DEFACE).deidentify_folder(source, tmp_path / "out")
    assert {one.path for one in report.quarantined} == lost
    assert {one.source for one in report.written} == kept
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == len(kept)


def test_without_its_place_a_slice_is_held_back(head, tmp_path):
    array, affine, _ = head
    places = write_series(tmp_path / "in", array, affine, "1.2.3.5")
    bad = next(iter(places))
    dataset = pydicom.dcmread(bad)
    del dataset.PixelSpacing
    dataset.save_as(bad)
    report = Deidentifier(KEY, DEFACE).deidentify_folder(tmp_path / "in", tmp_path / "out")
    assert [one.path for one in report.quarantined] == [bad]
    assert "does not say where" in report.quarantined[0].reason


def test_the_answer_of_the_header_is_believed_and_the_rest_is_told_by_kind():
    dataset = image(np.zeros((4, 4), np.uint16), modality="MR")
    assert face_risk(dataset) is Risk.SLICES
    dataset.RecognizableVisualFeatures = "NO"
    assert face_risk(dataset) is Risk.NONE
    scout = image(np.zeros((4, 4), np.uint16), modality="CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert face_risk(scout) is Risk.NONE
    scout.SOPClassUID = MRImageStorage
    scout.Modality = "CR"  # somebody typed it
    assert face_risk(scout) is Risk.SLICES
    scout.RecognizableVisualFeatures = "YES"
    scout.SOPClassUID = ComputedRadiographyImageStorage
    assert face_risk(scout) is Risk.UNKNOWN
    for sop_class in (RTStructureSetStorage, RawDataStorage, SecondaryCaptureImageStorage, XRay3DAngiographicImageStorage):
        scout.SOPClassUID = sop_class
        assert face_risk(scout) is Risk.UNKNOWN


@pytest.mark.parametrize(
    "kind", ["VRT", "MIP", "VOLREND", "SHADED SURFACE", "SCREEN SAVE", "MIP_THK", "PROJECTION IMAGE", "CSA 3D X"]
)
def test_pictures_of_a_volume_are_no_slices(kind):
    dataset = image(np.zeros((4, 4), np.uint16), modality="MR", ImageType=["DERIVED", "SECONDARY", kind])
    assert face_risk(dataset) is Risk.UNKNOWN
    dataset.ImageType = ["DERIVED", "SECONDARY", "MPR"]
    assert face_risk(dataset) is Risk.SLICES
    dataset.VolumeBasedCalculationTechnique = "VOLUME_RENDER"
    assert face_risk(dataset) is Risk.UNKNOWN


def test_each_series_has_its_own_pose_and_those_that_show_too_little_are_held_back_if_they_differ(head, tmp_path):
    array, affine, face = head
    moved = posed((25, 0, 0), (0, 10, 30)) @ affine
    places = write_series(tmp_path / "in", array, affine, "1.2.3.5")
    places |= {path: (3, k) for path, (_, k) in write_series(tmp_path / "in", array, moved, "1.2.3.5").items()}
    localizer = set(write_series(tmp_path / "in", array, affine, "1.2.3.5", slices=[27, 28], axis=0))
    # Another patient whose files were given the same UIDs.
    places |= {
        path: (4, k)
        for path, (_, k) in write_series(
            tmp_path / "in", array, posed((0, 0, 10), (40, 0, 0)) @ affine, "1.2.3.5", PatientID="B"
        ).items()
    }
    report = Deidentifier(KEY, DEFACE).deidentify_folder(tmp_path / "in", tmp_path / "out")
    assert {one.path for one in report.quarantined} == localizer
    found = changes(report, places)
    for series in (2, 3, 4):
        volume = np.stack([found[series, k] for k in range(array.shape[2])], axis=2)
        assert volume[face & (array.round() > 0)].mean() > 0.95
        assert not volume[14:44, 20:60, 48:72].any()


def test_what_no_scanner_writes_is_held_back_soon_and_in_little_memory(head, tmp_path):
    array, _, _ = head
    source = tmp_path / "in"
    for path in write_series(source, array[:, :, :15], np.diag([3.0, 3, 30, 1]), "1.2.9"):
        dataset = pydicom.dcmread(path)
        dataset.PixelSpacing = ["1e200", "1e200"]
        dataset.save_as(path)
    report = Deidentifier(KEY, DEFACE).deidentify_folder(source, tmp_path / "out")
    assert len(report.quarantined) == 15


def test_other_pictures_in_an_object_go_with_the_face(head, tmp_path):
    array, affine, _ = head
    places = write_series(tmp_path / "in", array, affine, "1.2.3.5")
    for path in places:
        dataset = pydicom.dcmread(path)
        for element, vr, value in ((0x10, "US", 4), (0x11, "US", 4), (0x40, "CS", "R"), (0x50, "SS", [1, 1]), (0x100, "US", 1)):
            dataset.add_new((0x6000, element), vr, value)
        dataset.add_new((0x6000, 0x102), "US", 0)
        dataset.add_new((0x6000, 0x3000), "OW", b"\x0f\x00")
        dataset.save_as(path)
    profile = Profile(frozenset({Option.DEFACE, Option.CLEAN_GRAPHICS}))
    report = Deidentifier(KEY, profile).deidentify_folder(tmp_path / "in", tmp_path / "out")
    assert len(report.written) == len(places)
    assert not any(tag.group == 0x6000 for tag in pydicom.dcmread(report.written[0].target).keys())  # noqa: SIM118 - tags


def test_without_the_template_or_with_another_one_nothing_is_written(tmp_path, monkeypatch):
    save(image(np.zeros((4, 4), np.uint16), modality="MR"), tmp_path / "in" / "one")
    monkeypatch.setattr(template_module, "_HEAD", ("pydeface/data/mean_reg2mean.nii.gz", "0" * 64))
    read_template.cache_clear()
    with pytest.raises(IntegrityError):
        read_template()

    def absent(name):
        raise template_module.PackageNotFoundError

    monkeypatch.setattr(template_module, "distribution", absent)
    with pytest.raises(MissingExtraError, match="pydeface"):
        Deidentifier(KEY, DEFACE).deidentify_folder(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()


def test_the_brain_of_a_real_head_keeps_every_voxel(tmp_path):
    names = [REAL_HEAD / "ch2.nii.gz", REAL_HEAD / "ch2bet.nii.gz"]
    if not all(map(Path.exists, names)):
        pytest.skip("mricron-data")
    head, brain = (nibabel.Nifti1Image.from_bytes(gzip.decompress(name.read_bytes())) for name in names)
    array, inside = np.asarray(head.dataobj), np.asarray(brain.dataobj) > 0
    affine = np.diag([-1.0, -1, 1, 1]) @ head.affine
    places = write_series(tmp_path / "in", array, affine, "1.2.3.5")
    report = Deidentifier(KEY, DEFACE).deidentify_folder(tmp_path / "in", tmp_path / "out", processes=2)
    found = changes(report, places)
    volume = np.stack([found[2, k] for k in range(array.shape[2])], axis=2)
    assert inside.sum() > 1_700_000
    assert not (volume & inside).any()
    # Nose, mouth and chin: 50 mm and more in front of the anterior commissure, 46 mm and more below it.
    assert volume[40:141, 175:, :25][array[40:141, 175:, :25] > 40].mean() > 0.99
