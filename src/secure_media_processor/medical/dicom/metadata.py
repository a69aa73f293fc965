"""What an imaging researcher asks of a DICOM object, with and without what points to the patient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_VR
from pydicom.uid import UID

from secure_media_processor.medical.dicom.elements import numbers, text

if TYPE_CHECKING:
    from pydicom import Dataset

IMAGE_KEYWORDS = (
    "Modality", "SOPClassUID", "TransferSyntaxUID", "BodyPartExamined", "Laterality", "StudyDescription", "SeriesDescription",
    "ProtocolName", "SeriesNumber", "InstanceNumber", "ImageType", "Rows", "Columns", "NumberOfFrames", "PixelSpacing",
    "ImagerPixelSpacing", "SliceThickness", "SpacingBetweenSlices", "PatientPosition", "PhotometricInterpretation",
    "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "WindowCenter",
    "WindowWidth", "LossyImageCompression", "BurnedInAnnotation", "Manufacturer", "ManufacturerModelName", "SoftwareVersions",
    "MagneticFieldStrength", "ScanningSequence", "SequenceVariant", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle",
    "EchoTrainLength", "DiffusionBValue", "KVP", "XRayTubeCurrent", "Exposure", "ConvolutionKernel", "GantryDetectorTilt",
    "ContrastBolusAgent", "PatientIdentityRemoved",
)  # fmt: skip
"""How the object was made and what it holds. Descriptions are free text, in which a careless hand may have put a name."""
IDENTIFYING_KEYWORDS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight",
    "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "SeriesDate", "AcquisitionDate", "InstitutionName", "StationName",
    "DeviceSerialNumber", "ReferringPhysicianName", "OperatorsName", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID",
    "FrameOfReferenceUID",
)  # fmt: skip
"""What points to the patient, to who treated them, or to the very study in an archive."""

# UIDs of the standard itself, which have names.
_NAMED = {"SOPClassUID", "TransferSyntaxUID"}
_NUMBERS = {"DS", "FD", "IS", "US"}
# Long texts are no facts; what is cut is shown as cut.
_LONGEST = 200


def facts(dataset: Dataset, *, identifiers: bool = False) -> dict[str, str]:
    """Return keyword and value of what is known of an object, each as DICOM writes it, without those that are empty.

    Args:
        dataset: From read_dataset.
        identifiers: Add what points to the patient (IDENTIFYING_KEYWORDS).
    """
    found = {}
    for keyword in (*IMAGE_KEYWORDS, *(IDENTIFYING_KEYWORDS if identifiers else ())):
        value = text(dataset.file_meta if keyword == "TransferSyntaxUID" else dataset, keyword)
        if value:
            found[keyword] = _shown(dataset, keyword, value)
    return found


def _shown(dataset: Dataset, keyword: str, value: str) -> str:
    if keyword in _NAMED:
        return UID(value).name
    if dictionary_VR(keyword) in _NUMBERS and numbers(dataset, keyword) is None:
        return "not a number"  # whatever stands there is not what was asked for
    return _shortened(value)


def _shortened(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
