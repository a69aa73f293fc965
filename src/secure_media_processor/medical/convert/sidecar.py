"""The JSON file beside a NIfTI volume (BIDS 1.10), with what describes the measurement and nothing that leads to a person.

What may stand in it is on a list. What is not on the list, names, dates, free text, numbers of devices and of examinations, is
left out, whoever wrote it.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

from secure_media_processor.medical.dicom.elements import number, numbers, texts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydicom import Dataset

# Numbers and lists of numbers; times in seconds, as BIDS wants them.
_NUMBERS = frozenset({
    "AcquisitionMatrixPE", "BandwidthPerPixelPhaseEncode", "BaseResolution", "ConvolutionKernelFactor",
    "DiffusionScheme", "DwellTime", "EchoNumber", "EchoTime", "EchoTime1", "EchoTime2", "EchoTrainLength",
    "EffectiveEchoSpacing", "EstimatedEffectiveEchoSpacing", "EstimatedTotalReadoutTime", "FlipAngle",
    "FrameDuration", "FrameTimesStart", "ImageOrientationPatientDICOM", "ImagingFrequency", "InversionTime",
    "MagneticFieldStrength", "MultibandAccelerationFactor", "NumberOfAverages", "ParallelReductionFactorInPlane",
    "ParallelReductionOutOfPlane", "PartialFourier", "PercentPhaseFOV", "PercentSampling", "PhaseEncodingSteps",
    "PhaseEncodingStepsNoPartialFourier", "PhaseOversampling", "PhaseResolution", "PhilipsRWVIntercept",
    "PhilipsRWVSlope", "PhilipsRescaleIntercept", "PhilipsRescaleSlope", "PhilipsScaleSlope", "PixelBandwidth",
    "RadionuclideHalfLife", "RadionuclidePositronFraction", "RadionuclideTotalDose", "ReconMatrixPE",
    "RepetitionTime", "RepetitionTimeExcitation", "RepetitionTimeInversion", "SAR", "SliceThickness", "SliceTiming",
    "SpacingBetweenSlices", "TotalReadoutTime", "TriggerDelayTime", "VendorReportedEchoSpacing", "WaterFatShift",
    "XRayExposure", "XRayTubeCurrent",
})  # fmt: skip
# Terms. The first ones are of defined vocabularies; manufacturer and model name a product, of which there are many.
_TERMS = frozenset({
    "ConversionSoftware", "ConversionSoftwareVersion", "MRAcquisitionType", "Manufacturer", "ManufacturersModelName",
    "Modality", "PatientPosition", "PhaseEncodingAxis", "PhaseEncodingDirection", "PulseSequenceType",
    "ScanningSequence", "SequenceVariant",
})  # fmt: skip
_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,_+/\\-]{0,63}")
_LONGEST_LIST = 10_000

_MILLISECONDS = {"EchoTime": "EchoTime", "RepetitionTime": "RepetitionTime", "InversionTime": "InversionTime"}
_AS_THEY_ARE = {
    "FlipAngle": "FlipAngle",
    "MagneticFieldStrength": "MagneticFieldStrength",
    "SliceThickness": "SliceThickness",
    "SpacingBetweenSlices": "SpacingBetweenSlices",
    "EchoTrainLength": "EchoTrainLength",
    "PixelBandwidth": "PixelBandwidth",
    "NumberOfAverages": "NumberOfAverages",
}
_WORDS = {
    "Modality": "Modality",
    "Manufacturer": "Manufacturer",
    "ManufacturersModelName": "ManufacturerModelName",
    "MRAcquisitionType": "MRAcquisitionType",
    "ScanningSequence": "ScanningSequence",
    "SequenceVariant": "SequenceVariant",
    "PatientPosition": "PatientPosition",
}
SIDECAR_KEYWORDS = (*_MILLISECONDS.values(), *_AS_THEY_ARE.values(), *_WORDS.values(), "ImageOrientationPatient")
"""DICOM keywords that fields_of looks at."""


def allowed_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """Return those of `fields` that are on the list and have a value of the expected kind, in order of their names."""
    return {name: fields[name] for name in sorted(fields) if _allowed(name, fields[name])}


def _allowed(name: str, value: object) -> bool:
    if name in _TERMS:
        return isinstance(value, str) and _TERM.fullmatch(value) is not None
    values = value if isinstance(value, list) else [value]
    plain = all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in values)
    return name in _NUMBERS and plain and len(values) <= _LONGEST_LIST


def fields_of(dataset: Dataset) -> dict[str, object]:
    """Return the fields for what an image says of itself in DICOM: times in s, angles in degrees, lengths in mm, field in T."""
    found: dict[str, object] = {}
    for name, keyword in _MILLISECONDS.items():
        value = number(dataset, keyword)
        if value is not None:
            found[name] = round(value / 1000, 9)
    for name, keyword in _AS_THEY_ARE.items():
        value = number(dataset, keyword)
        if value is not None:
            found[name] = value
    for name, keyword in _WORDS.items():
        words = texts(dataset, keyword)
        if words:
            found[name] = "_".join(words)
    cosines = numbers(dataset, "ImageOrientationPatient")
    if cosines:
        found["ImageOrientationPatientDICOM"] = list(cosines)
    return allowed_fields({**found, "ConversionSoftware": "secure-media-processor"})


def read_fields(path: Path) -> dict[str, object]:
    """Return the allowed fields of a JSON file that another program wrote. ValueError: it is not a JSON object."""
    fields = json.loads(path.read_text("utf-8", "replace"))
    if not isinstance(fields, dict):
        raise ValueError("not an object")  # noqa: TRY004 - as json.loads says of all else that is not what it should be
    return allowed_fields(fields)


def sidecar_bytes(fields: Mapping[str, object]) -> bytes:
    """Return the file."""
    return (json.dumps(fields, indent=2) + "\n").encode()
