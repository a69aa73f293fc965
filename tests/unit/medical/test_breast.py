"""Dynamic MRI of the breast on a phantom whose lesion, sides and curves are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import generate_uid

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.preprocessing.breast import (
    MASK_NOTE,
    BreastMRIPreprocessor,
    breast_sides,
    projection,
)
from secure_media_processor.medical.preprocessing.registration import RigidMotion, moved
from secure_media_processor.medical.volume import Grid, Volume, reoriented
from unit.medical.phantoms import Breasts, breasts
from unit.medical.synthetic import image, save


def volumes(phantom: Breasts) -> tuple[Volume, ...]:
    grid = Grid(phantom.body.shape, phantom.affine)
    return tuple(Volume(phase, grid) for phase in phantom.phases)


@pytest.fixture(scope="module")
def phantom() -> Breasts:
    return breasts()


@pytest.fixture(scope="module")
def study(phantom):
    lesion = replace(volumes(phantom)[0], array=phantom.lesion.astype(np.uint8))
    return BreastMRIPreprocessor().run(volumes(phantom), phantom.times, masks={"lesion": lesion})


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_lesion_is_on_its_side(side):
    phantom = breasts(lesion_side=side)
    found = BreastMRIPreprocessor().run(volumes(phantom), phantom.times)
    other = "right" if side == "left" else "left"
    regions = {region.name: region for region in found.regions}
    assert found.projections[side].max() > 1.5 * found.projections[other].max()
    assert regions[side].intensities.maximum > 1.5 * regions[other].intensities.maximum
    assert regions[side].intensities.skewness > regions[other].intensities.skewness
    i, j = np.unravel_index(found.projections[side].argmax(), found.projections[side].shape)
    assert phantom.lesion.any(axis=2)[i, j]
    x = (found.breasts.grid.affine @ [i, j, 0, 1])[0]
    assert (x > 0) == (side == "right")  # RAS: x grows to the right side of the patient


def test_subtraction_is_what_was_taken_up(phantom, study):
    lesion, gland = study.subtraction.array[phantom.lesion].mean(), study.subtraction.array[~phantom.body].mean()
    assert lesion == pytest.approx(400 * 1.2 * (1 - np.exp(-2)) * np.exp(-0.1), rel=0.02)
    assert abs(gland) < 5
    assert np.array_equal(study.subtracted(1).array, study.subtraction.array)
    assert study.subtracted(3).array[phantom.lesion].mean() < lesion


def test_curves_of_the_regions(study):
    regions = {region.name: region for region in study.regions}
    assert set(regions) == {"left", "right", "lesion"}
    lesion = regions["lesion"].kinetics
    assert lesion.wash_in == pytest.approx(100 * 1.2 * (1 - np.exp(-2)) * np.exp(-0.1) / 1.5, rel=0.03)
    assert lesion.wash_out < 0
    assert regions["right"].kinetics.curve in ("persistent", "plateau")
    assert regions["lesion"].millilitres == pytest.approx(regions["lesion"].intensities.voxels * 2 * 2.5 * 3 / 1000)


def test_the_mask_is_breast_and_says_what_it_is(phantom, study):
    sides = study.breasts.array
    assert MASK_NOTE in study.notes
    assert sides.dtype == np.uint8
    assert (sides[phantom.lesion] == 1).all()
    assert phantom.body[sides > 0].mean() > 0.95
    # Both breasts are alike in the phantom.
    assert np.count_nonzero(sides == 1) == pytest.approx(np.count_nonzero(sides == 2), rel=0.1)
    # Nothing of the chest behind its surface in the middle.
    assert not sides[:, :13].any()


def test_how_the_axes_run_does_not_matter(phantom, study):
    for orientation in ("LPS", "SAR", "PIL"):
        turned = tuple(reoriented(volume, orientation) for volume in volumes(phantom))
        found = BreastMRIPreprocessor().run(turned, phantom.times)
        assert np.array_equal(found.subtraction.array, study.subtraction.array)
        assert np.array_equal(found.breasts.array, study.breasts.array)


def test_mirrored_patient_has_mirrored_sides(phantom):
    mirrored = tuple(replace(volume, array=volume.array[::-1]) for volume in volumes(phantom))
    one, other = (breast_sides(phases[0]) for phases in (volumes(phantom), mirrored))
    assert np.mean(np.where(one > 0, 3 - one, 0)[::-1] == other) > 0.99


def test_registration_takes_motion_out(phantom):
    phases = list(volumes(phantom))
    shift = np.eye(4)
    shift[:3, 3] = (2.0, 1.5, -1.0)
    phases[1] = moved(phases[1], RigidMotion(shift, 0, 0), phases[0])
    plain = BreastMRIPreprocessor().run(phases, phantom.times)
    found = BreastMRIPreprocessor(register=True).run(phases, phantom.times)
    assert len(found.motions) == 3
    assert not plain.motions
    calm = phantom.body & ~phantom.lesion

    def error(study):
        return np.abs(study.subtraction.array - (phantom.phases[1] - phantom.phases[0]))[calm].mean()

    assert error(found) < 0.5 * error(plain)


def test_one_breast_alone(phantom):
    flat = [phase.copy() for phase in phantom.phases]
    for phase in flat:
        phase[32:, 15:] = 0
    study = BreastMRIPreprocessor().run([replace(v, array=a) for v, a in zip(volumes(phantom), flat, strict=True)])
    assert [region.name for region in study.regions] == ["left"]
    assert "no breast is found on the right side" in study.notes
    assert not study.projections["right"].any()


def test_no_enhancement_is_said(phantom):
    same = (volumes(phantom)[0],) * 2
    assert any("contrast medium" in note for note in BreastMRIPreprocessor().run(same).notes)


def test_projection_stays_in_the_mask():
    x = np.arange(24.0).reshape(2, 3, 4) - 30
    mask = np.zeros(x.shape, bool)
    assert (projection(x, mask) == 0).all()
    mask[0, 0, 1] = True
    assert projection(-x, mask)[0].tolist() == [29, 0, 0]


def test_from_dicom_under_shuffled_names(tmp_path, phantom):
    rng = np.random.default_rng(8)
    names = iter(rng.permutation(1000))
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for phase, seconds in zip(phantom.phases, phantom.times, strict=True):
        for k in range(phase.shape[2]):
            # DICOM: columns to the left, rows to the back.
            ds = image(np.rint(phase[::-1, ::-1, k].T).astype(np.int16), modality="MR")
            ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
            ds.PixelSpacing, ds.SliceThickness, ds.InstanceNumber = [2.5, 2.0], 3, 1
            ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            x, y, z = phantom.affine[:3, 3]
            ds.ImagePositionPatient = [x, y, z + 3.0 * k]
            minutes, rest = divmod(seconds, 60)
            ds.AcquisitionTime = f"11{int(minutes):02}{rest:09.6f}"
            save(ds, tmp_path / f"{next(names)}")
    found = BreastMRIPreprocessor().run_folder(Path(tmp_path))
    assert found.times == phantom.times
    np.testing.assert_allclose(found.subtraction.array, phantom.phases[1] - phantom.phases[0], atol=1.01)
    assert (found.breasts.array[phantom.lesion] == 1).all()


def test_what_cannot_be(phantom):
    phases = volumes(phantom)
    with pytest.raises(ImageError, match="one phase only"):
        BreastMRIPreprocessor().run(phases[:1])
    for times in ((0, 0, 1, 2), (0, 1), (0, 2, 1, 3), (0, 1, 2, np.nan)):
        with pytest.raises(UsageError, match="time"):
            BreastMRIPreprocessor().run(phases, times)
    with pytest.raises(UsageError, match="no phase 4"):
        BreastMRIPreprocessor(subtract=4).run(phases)
    for wrong in ({"subtract": 0}, {"bins": 0}):
        with pytest.raises(UsageError):
            BreastMRIPreprocessor(**wrong)
    shifted = np.array(phases[1].grid.affine)
    shifted[0, 3] += 5
    with pytest.raises(ImageError, match="phase 2"):
        BreastMRIPreprocessor().run((phases[0], Volume(phases[1].array, Grid(phases[1].grid.shape, shifted))))
    flat = phases[0].array.copy()
    flat[:, 14:] = 0
    with pytest.raises(ImageError, match="no breast"):
        breast_sides(replace(phases[0], array=flat))
    with pytest.raises(UsageError, match="RAS"):
        breast_sides(reoriented(phases[0], "LPS"))
    empty = replace(phases[0], array=np.zeros(phases[0].grid.shape, np.uint8))
    with pytest.raises(ImageError, match="empty"):
        BreastMRIPreprocessor().run(phases, masks={"lesion": empty})
    with pytest.raises(ImageError, match="grid"):
        BreastMRIPreprocessor().run(phases, masks={"lesion": Volume(empty.array, Grid(empty.grid.shape, shifted))})
