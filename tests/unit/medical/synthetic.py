"""Small DICOM images for the tests of conversion, with a canary in each element that could name somebody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

CANARY = "KANARI"
NAMING = (
    "PatientName", "PatientID", "StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments", "InstitutionName",
    "StationName", "StudyID", "AccessionNumber", "ReferringPhysicianName", "PatientComments", "SequenceName",
)  # fmt: skip
TIME = "103254.170000"


def image(pixels: np.ndarray, *, modality: str = "CT", syntax: UID = ExplicitVRLittleEndian, **elements: Any) -> Dataset:
    """Return an image with `pixels`, (rows, columns), (rows, columns, 3), or with `frames=True` one axis more in front."""
    frames = elements.pop("frames", False)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = generate_uid(), generate_uid(), generate_uid()
    for number, keyword in enumerate(NAMING):
        setattr(ds, keyword, f"{CANARY}{number}")
    ds.AcquisitionDate, ds.AcquisitionTime, ds.StudyDate, ds.StudyTime = "20200102", TIME, "20200102", TIME
    ds.Modality, ds.InstanceNumber, ds.SeriesNumber = modality, 1, 1
    if frames:
        ds.NumberOfFrames = len(pixels)
    colour = pixels.ndim == 3 + frames
    ds.Rows, ds.Columns = pixels.shape[frames : frames + 2]
    ds.SamplesPerPixel = 3 if colour else 1
    if colour:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit = ds.BitsAllocated, ds.BitsAllocated - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def save(dataset: Dataset, path: Path | str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def series(
    folder: Path | str,
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    *,
    slices: int = 6,
    spacing: tuple[float, float] = (1.5, 0.75),
    step: float = 2.5,
    leave_out: tuple[int, ...] = (),
    repeat: tuple[int, ...] = (),
    slopes: tuple[float, ...] = (1.0,),
    modality: str = "MR",
    seed: int = 1,
) -> list[Path]:
    """Write an MR series under file names that say nothing of the order."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(1000)
    common = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    normal = np.cross(orientation[:3], orientation[3:])
    paths = []
    for k in [k for k in range(slices) if k not in leave_out] + list(repeat):
        pixels = rng.integers(-200, 2000, (7, 9)).astype(np.int16)
        ds = image(pixels, modality=modality, **common)
        ds.InstanceNumber = len(paths) + 1
        ds.PixelSpacing, ds.SliceThickness = list(spacing), step
        ds.ImageOrientationPatient = [f"{cosine:.9g}" for cosine in orientation]
        ds.ImagePositionPatient = [f"{x:.9g}" for x in np.array([-10.5, 20.25, 33.0]) + k * step * normal]
        ds.RescaleSlope, ds.RescaleIntercept = slopes[k % len(slopes)], -10
        ds.EchoTime, ds.RepetitionTime, ds.FlipAngle, ds.MagneticFieldStrength = 30, 2000, 90, 3
        ds.Manufacturer, ds.ScanningSequence, ds.SequenceVariant, ds.PatientPosition = "SIEMENS", "SE", "NONE", "HFS"
        paths.append(save(ds, Path(folder) / f"{names[len(paths)]:04d}"))
    return paths
