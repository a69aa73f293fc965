"""Masks as DICOM Segmentations: what goes in comes out, and nothing is moved in silence."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from secure_media_processor.errors import ExistsError, ImageError, UsageError
from secure_media_processor.medical.convert.nifti import convert_to_nifti
from secure_media_processor.medical.convert.segmentation import read_labels, write_segmentation
from unit.medical.synthetic import series

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom", "ignore::UserWarning:highdicom")
ORGAN = ["123037004", "SCT", "Anatomical Structure"]
LABELS = {
    "1": {"label": "Liver", "category": ORGAN, "type": ["10200004", "SCT", "Liver"], "region": ["818983003", "SCT", "Abdomen"]},
    "2": {
        "label": "Spleen",
        "category": ORGAN,
        "type": ["78961009", "SCT", "Spleen"],
        "algorithm": "AUTOMATIC",
        "algorithm_name": "net 1",
    },
}


@pytest.fixture
def mask(work: Path) -> Path:
    """A mask on a series in the folder images, and labels.json."""
    series("images", (0.8, 0.6, 0.0, -0.36, 0.48, 0.8))
    convert_to_nifti(Path("images"), Path("image.nii"), engine="own")
    image = nibabel.load("image.nii")
    values = np.zeros(image.shape, np.uint8)
    values[1:4, 2:5, 0:3], values[5:8, 1:6, 2:6] = 1, 2
    nibabel.save(nibabel.Nifti1Image(values, image.affine), "mask.nii.gz")
    Path("labels.json").write_text(json.dumps(LABELS))
    return Path("mask.nii.gz")


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("turned", [False, True])
def test_it_comes_back_as_it_was(mask: Path, kind: str, turned: bool) -> None:
    original = nibabel.load(mask)
    if turned:  # the same voxels at the same places, in another order
        nibabel.save(nibabel.as_closest_canonical(original), "turned.nii.gz")
        mask = Path("turned.nii.gz")
    write_segmentation(mask, Path("mask.dcm"), Path("images"), read_labels(Path("labels.json")), kind=kind)
    made = highdicom.seg.segread("mask.dcm")
    volume = made.get_volume(combine_segments=True, allow_missing_positions=True)
    to_ras = np.diag([-1, -1, 1, 1]) @ volume.affine
    index = np.array(list(np.ndindex(volume.array.shape)))
    places = (to_ras @ np.c_[index, np.ones(len(index))].T).T
    voxels = np.rint((np.linalg.inv(original.affine) @ places.T).T[:, :3]).astype(int)
    assert (volume.array[tuple(index.T)] == original.get_fdata()[tuple(voxels.T)]).all()
    assert volume.array.astype(int).sum() == original.get_fdata().sum()
    one = dcmread(next(Path("images").iterdir()))
    assert made.FrameOfReferenceUID == one.FrameOfReferenceUID
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == one.SeriesInstanceUID
    assert made.StudyInstanceUID == one.StudyInstanceUID
    assert [s.SegmentLabel for s in made.SegmentSequence if s.SegmentNumber] == ["Liver", "Spleen"]
    assert Path("mask.dcm").stat().st_mode & 0o777 == 0o600


def test_dciodvfy_finds_no_error(mask: Path) -> None:
    write_segmentation(mask, Path("mask.dcm"), Path("images"), read_labels(Path("labels.json")))
    said = subprocess.run(["dciodvfy", "mask.dcm"], capture_output=True, text=True, check=False).stderr
    assert "Segmentation" in said
    assert "Error" not in said


def test_another_grid_is_refused(mask: Path) -> None:
    image = nibabel.load(mask)
    labels = read_labels(Path("labels.json"))
    moved = image.affine.copy()
    moved[0, 3] += 0.3
    for name, data, affine in (
        ("moved", image.get_fdata(), moved),
        ("cut", image.get_fdata()[1:], image.affine),
        ("coarse", image.get_fdata()[::2], image.affine @ np.diag([2, 1, 1, 1])),
    ):
        nibabel.save(nibabel.Nifti1Image(data.astype(np.uint8), affine), f"{name}.nii")
        with pytest.raises(ImageError, match="has the grid of") as caught:
            write_segmentation(Path(f"{name}.nii"), Path("x.dcm"), Path("images"), labels)
        assert "resample" in caught.value.hint
    assert not Path("x.dcm").exists()


def test_values_without_a_label_and_gaps(mask: Path) -> None:
    image, labels = nibabel.load(mask), read_labels(Path("labels.json"))
    with pytest.raises(UsageError, match="1 values that the labels do not describe"):
        write_segmentation(mask, Path("x.dcm"), Path("images"), labels[:1])
    nibabel.save(nibabel.Nifti1Image((image.get_fdata() * 2).astype(np.uint8), image.affine), "even.nii")
    Path("even.json").write_text(json.dumps({"2": LABELS["1"], "4": LABELS["1"]}))
    with pytest.raises(UsageError, match="without gaps"):
        write_segmentation(Path("even.nii"), Path("x.dcm"), Path("images"), read_labels(Path("even.json")))
    write_segmentation(Path("even.nii"), Path("x.dcm"), Path("images"), read_labels(Path("even.json")), kind="labelmap")
    with pytest.raises(ExistsError):
        write_segmentation(mask, Path("x.dcm"), Path("images"), labels)


@pytest.mark.parametrize(
    "entries",
    [
        "x",
        "[]",
        "{}",
        '{"0": {}}',
        '{"1": 3}',
        '{"1": {"label": ""}}',
        '{"1": {"label": "a", "colour": 1}}',
        '{"1": {"label": "a"}}',
    ],
)
def test_labels_that_are_none(work: Path, entries: str) -> None:
    Path("labels.json").write_text(entries)
    with pytest.raises(UsageError, match=r"labels\.json"):
        read_labels(Path("labels.json"))


def test_masks_that_are_none(mask: Path) -> None:
    labels = read_labels(Path("labels.json"))
    Path("noise.nii").write_bytes(bytes(1000))
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4), np.uint8), np.eye(4)), "flat.nii")
    Path("cut.nii.gz").write_bytes(mask.read_bytes()[:-20])
    for name in ("noise.nii", "flat.nii", "cut.nii.gz"):
        with pytest.raises(ImageError, match=name):
            write_segmentation(Path(name), Path("x.dcm"), Path("images"), labels)
    assert not Path("x.dcm").exists()
