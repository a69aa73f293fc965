"""DICOM series as NIfTI volumes: dcm2niix and our own geometry against each other, and against SimpleITK."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread

from secure_media_processor.errors import MissingExtraError, UsageError
from secure_media_processor.medical.convert import dcm2niix, nifti
from secure_media_processor.medical.convert.gzipping import write_gzip
from secure_media_processor.medical.convert.nifti import convert_to_nifti
from secure_media_processor.medical.convert.sidecar import allowed_fields
from unit.medical.synthetic import CANARY, TIME, image, save, series

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

AXES = [tuple(sign * (n == axis) for n in range(3)) for axis in range(3) for sign in (1, -1)]
ALONG_AXES = [(*row, *column) for row, column in product(AXES, AXES) if np.dot(row, column) == 0]
_turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
OBLIQUE = [(*_turn[0], *_turn[1]), (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)]


def volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels and matrix with the axes nearest to those of the patient."""
    loaded = nibabel.as_closest_canonical(nibabel.load(path))
    return loaded.get_fdata(), loaded.affine


@pytest.mark.parametrize("orientation", [*ALONG_AXES, *OBLIQUE], ids=lambda o: ",".join(f"{c:.2g}" for c in o))
def test_both_engines_put_each_voxel_in_the_same_place(work: Path, orientation: tuple[float, ...]) -> None:
    series("in", orientation)
    for engine in ("own", "dcm2niix"):
        done = convert_to_nifti(Path("in"), Path(engine), engine=engine)
        assert [w.engine for w in done.written] == [engine]
        assert not done.failed
    (a, first), (b, second) = volume(Path("own/series-001.nii.gz")), volume(Path("dcm2niix/series-001.nii.gz"))
    assert np.allclose(first, second, atol=1e-3)
    assert (a == b).all()


def test_simpleitk_agrees(work: Path) -> None:
    paths = series("in", OBLIQUE[0])
    convert_to_nifti(Path("in"), Path("out.nii"), engine="own")
    ours = SimpleITK.ReadImage("out.nii")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames("in"))
    theirs = reader.Execute()
    assert len(paths) == theirs.GetSize()[2]
    for name in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert np.allclose(getattr(ours, name)(), getattr(theirs, name)(), atol=1e-4), name
    assert (SimpleITK.GetArrayFromImage(ours) == SimpleITK.GetArrayFromImage(theirs)).all()


@pytest.mark.parametrize("engine", ["own", "dcm2niix"])
def test_the_header_and_the_sidecar_name_nobody(work: Path, engine: str) -> None:
    series("in/KANARI")
    convert_to_nifti(Path("in"), Path("out"), engine=engine, gzip=False)
    everything = b"".join(p.read_bytes() + str(p).encode() for p in Path("out").rglob("*"))
    assert CANARY.encode() not in everything
    assert TIME[:6].encode() not in everything
    loaded = nibabel.load("out/series-001.nii")
    assert loaded.header["descrip"].item() == loaded.header["aux_file"].item() == loaded.header["db_name"].item() == b""
    assert (int(loaded.header["qform_code"]), int(loaded.header["sform_code"])) == (1, 1)
    assert np.allclose(loaded.get_qform(), loaded.get_sform(), atol=1e-4)
    assert np.allclose(loaded.header.get_zooms()[:3], (0.75, 1.5, 2.5))
    fields = json.loads(Path("out/series-001.json").read_text())
    assert (fields["EchoTime"], fields["RepetitionTime"], fields["FlipAngle"], fields["MagneticFieldStrength"]) == (
        0.03,
        2,
        90,
        3,
    )
    assert fields["Modality"] == "MR"
    assert {p.name for p in Path("out").iterdir()} == {"series-001.nii", "series-001.json"}
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in Path("out").iterdir())


def test_what_a_sidecar_may_hold() -> None:
    fields = {
        "EchoTime": 0.03,
        "PatientName": "x",
        "SliceTiming": [0, 1.5],
        "Modality": "MR",
        "Manufacturer": "A\nB",
        "FlipAngle": "x",
    }
    assert allowed_fields({**fields, "RepetitionTime": float("nan"), "SAR": True}) == {
        "EchoTime": 0.03,
        "Modality": "MR",
        "SliceTiming": [0, 1.5],
    }


def test_integers_stay_integers_and_slopes_count_slice_by_slice(work: Path) -> None:
    for name, slopes, dtype in (
        ("same", (0.5,), "int16"),
        ("whole", (1.0, 2.0, 3.0), "int32"),
        ("parts", (0.5, 0.25), "float32"),
    ):
        paths = series(name, slopes=slopes)
        convert_to_nifti(Path(name), Path(f"{name}.nii.gz"), engine="own")
        loaded = nibabel.load(f"{name}.nii.gz")
        assert loaded.get_data_dtype() == np.dtype(dtype)
        for k, path in enumerate(paths):
            expected = dcmread(path).pixel_array * slopes[k % len(slopes)] - 10.0
            assert np.allclose(loaded.get_fdata()[:, :, k], expected.T)


def test_a_missing_slice(work: Path) -> None:
    series("in", leave_out=(2,))
    done = convert_to_nifti(Path("in"), Path("own"), engine="own")
    assert not done.written
    assert done.failed[0].reason.startswith("no regular volume: 1 slice is missing, after slice 2")
    assert not list(Path("own").iterdir())
    done = convert_to_nifti(Path("in"), Path("auto"))
    assert all("1 slice is missing" in w.problems[0] for w in done.written)
    assert not Path("auto/series-001.nii.gz").exists()  # that would have an even spacing


def test_a_slice_that_is_there_twice(work: Path) -> None:
    series("in", repeat=(3,))
    done = convert_to_nifti(Path("in"), Path("own"), engine="own")
    assert not done.written
    assert "where another one does" in done.failed[0].reason


def test_a_truncated_slice_is_named(work: Path) -> None:
    paths = series("in")
    data = paths[3].read_bytes()
    paths[3].write_bytes(data[:-50])
    for engine in ("own", "auto"):
        done = convert_to_nifti(Path("in"), Path(engine), engine=engine)
        assert paths[3] in {f.path for f in done.failed}
        assert not Path(engine, "series-001.nii.gz").exists()


def test_points_in_time_are_the_fourth_axis(work: Path) -> None:
    uid = None
    for time in range(3):
        for path in series(f"in/{time}", seed=time):
            ds = dcmread(path)
            uid = uid or (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID)
            ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uid
            ds.TemporalPositionIdentifier, ds.InstanceNumber = time + 1, time * 6 + ds.InstanceNumber
            ds.save_as(path)
    convert_to_nifti(Path("in"), Path("out"), engine="own")
    loaded = nibabel.load("out/series-001.nii.gz")
    assert loaded.shape == (9, 7, 6, 3)
    assert loaded.header.get_zooms()[3] == 2
    convert_to_nifti(Path("in"), Path("theirs"), engine="dcm2niix")
    assert (volume(Path("out/series-001.nii.gz"))[0] == volume(Path("theirs/series-001.nii.gz"))[0]).all()


@pytest.mark.parametrize("manufacturer", ["SIEMENS", "Philips"])
@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE[1]], ids=["axial", "oblique"])
def test_gradients_come_in_the_axes_of_the_image(work: Path, orientation: tuple[float, ...], manufacturer: str) -> None:
    """Diffusion: one volume of four dimensions with .bval and .bvec (FSL), which anonymous names and mode 0600 have, too."""
    b_values = [0.0, 1000.0, 1000.0, 2000.0]
    gradients = np.array([(0, 0, 0), (1, 0, 0), (0.6, 0, 0.8), (0, -0.6, 0.8)])
    common: tuple[str, ...] = ()
    for number, (b_value, gradient) in enumerate(zip(b_values, gradients, strict=True)):
        for path in series(f"in/{number}", orientation, seed=number):
            ds = dcmread(path)
            common = common or (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID)
            ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = common
            ds.Manufacturer, ds.ImageType = manufacturer, ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"]
            ds.InstanceNumber, ds.TemporalPositionIdentifier = number * 6 + ds.InstanceNumber, number + 1
            ds.AcquisitionNumber, ds.DiffusionBValue = number + 1, b_value
            if b_value:
                ds.DiffusionGradientOrientation = [float(cosine) for cosine in gradient]
            ds.save_as(path)
    (written,) = convert_to_nifti(Path("in"), Path("out")).written
    loaded = nibabel.load(written.path)
    assert loaded.shape == (9, 7, 6, 4)
    names = {f"series-001{suffix}" for suffix in (".nii.gz", ".json", ".bval", ".bvec")}
    assert {path.name for path in Path("out").iterdir() if path.stat().st_mode & 0o777 == 0o600} == names
    assert np.loadtxt("out/series-001.bval").tolist() == b_values
    axes = loaded.affine[:3, :3] / np.linalg.norm(loaded.affine[:3, :3], axis=0)
    expected = (gradients * (-1, -1, 1)) @ axes  # LPS to RAS, then along the axes of the image
    expected[:, 0] *= -np.sign(np.linalg.det(axes))  # as FSL wants it
    assert np.allclose(np.loadtxt("out/series-001.bvec").T, expected, atol=1e-3)


def test_a_single_file_and_names(work: Path) -> None:
    (path,) = series("in", slices=1)
    convert_to_nifti(path, Path("one.nii"), engine="own")
    assert nibabel.load("one.nii").shape == (9, 7, 1)
    done = convert_to_nifti(path, Path("one.nii"), engine="own")
    assert "exists already" in done.failed[0].reason
    assert convert_to_nifti(path, Path("one.nii"), engine="own", overwrite=True).written
    series("in", seed=2)
    with pytest.raises(UsageError, match="2 volumes"):
        convert_to_nifti(Path("in"), Path("two.nii"), engine="own")
    with pytest.raises(UsageError, match="be written into"):
        convert_to_nifti(Path("in"), Path("in/two.nii"), engine="own")


def test_what_is_no_volume(work: Path) -> None:
    save(image(np.zeros((4, 4, 3), np.uint8)), "in/colour")
    save(image(np.zeros((4, 4), np.uint8)), "in/flat")
    done = convert_to_nifti(Path("in"), Path("out"), engine="own")
    assert not done.written
    assert len(done.failed) == 2
    assert all("no regular volume" in f.reason for f in done.failed)


def test_dcm2niix_is_optional_and_its_crash_is_no_result(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series("in")
    monkeypatch.setattr(dcm2niix, "dcm2niix_path", lambda: None)
    monkeypatch.setattr(nifti, "dcm2niix_path", lambda: None)
    assert convert_to_nifti(Path("in"), Path("auto")).written[0].engine == "own"
    with pytest.raises(MissingExtraError):
        convert_to_nifti(Path("in"), Path("out"), engine="dcm2niix")
    script = Path("crash")
    script.write_text("#!/bin/sh\nkill -SEGV $$\n")
    script.chmod(0o700)
    for module in (dcm2niix, nifti):
        monkeypatch.setattr(module, "dcm2niix_path", lambda: str(script.resolve()))
    assert convert_to_nifti(Path("in"), Path("crashed")).written[0].engine == "own"
    assert not any(p.name.startswith(".smp") for p in Path("crashed").iterdir())


def test_dcm2niix_does_not_wait_for_what_it_does_not_need() -> None:
    """It is started before the parser of DICOM is loaded, which takes a third of its own time for a series of 1,000."""
    code = (
        "import sys; from secure_media_processor.medical.convert import nifti; print({'pydicom', 'numpy'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"


@pytest.mark.parametrize("size", [0, 1, 1_000_000, 1024 * 1024, 5_000_001])
def test_gzip(work: Path, size: int) -> None:
    data = (os.urandom(1000) * (size // 1000 + 1))[:size]
    with Path("x.gz").open("wb") as file:
        write_gzip([data[:7], data[7:]], file)
    assert gzip.decompress(Path("x.gz").read_bytes()) == data
    subprocess.run(["gzip", "-t", "x.gz"], check=True)
