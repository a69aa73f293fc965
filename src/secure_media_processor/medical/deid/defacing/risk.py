"""Could somebody recognise a face in this object? Answered from its header alone."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from secure_media_processor.medical.dicom.elements import text, texts
from secure_media_processor.medical.dicom.frames import frames_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydicom import Dataset

_STORAGE = "1.2.840.10008.5.1.4.1.1."
VOLUMES = tuple(_STORAGE + end for end in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4", "128", "128.1", "130"))
"""SOP classes of CT, MR and PET, plain, enhanced and converted: slices, of which a face can be drawn."""
# Projections, ultrasound in a plane, scintigrams, microscopy, curves, text, plans and doses: no face can be drawn of them.
_NO_FACE = tuple(
    _STORAGE + end
    for end in (
        "1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "3.1", "6.1", "12.1", "12.1.1", "12.2", "12.2.1", "13.1.3",
        "13.1.4", "14.1", "14.2", "20", "66.1", "66.2", "66.3", "67",
        "77.1.6", "88", "481.2", "481.4", "481.5", "481.6", "481.7", "481.8", "481.9",
    )
)  # fmt: skip
_FAMILIES = tuple(_STORAGE + end for end in ("9.", "11.", "88."))  # waveforms, presentation states, reports
# BodyPartExamined (0018,0015), PS3.16 annex L: parts far from the head.
_FAR_FROM_HEAD = {
    "ABDOMEN", "ABDOMENPELVIS", "ANKLE", "ARM", "BLADDER", "BREAST", "CALF", "COLON", "ELBOW", "EXTREMITY", "FEMUR", "FINGER",
    "FOOT", "FOREARM", "HAND", "HIP", "HUMERUS", "KIDNEY", "KNEE", "LEG", "LIVER", "LSPINE", "LUMBARSPINE", "PANCREAS",
    "PELVIS", "PROSTATE", "RECTUM", "SIJOINT", "SPLEEN", "TESTIS", "THIGH", "THUMB", "TOE", "UTERUS", "WRIST",
}  # fmt: skip
# Words of ImageType (0008,0008) and FrameType (0008,9007), and parts of such words, for pictures of a volume from outside,
# along curves or through a slab: where a pixel lies in them is not in the header.
_DRAWN = {"MIP", "VR", "SSD", "PJN", "CPR", "3D", "MPR CURVED", "MOSAIC", "MAXIMUM", "MINIMUM", "AVERAGE"}
_DRAWN_PARTS = (
    "PROJ",
    "REND",
    "VRT",
    "MAX_IP",
    "MIN_IP",
    "MAXIP",
    "MINIP",
    "MIP_",
    "_MIP",
    "SURFACE",
    "SHADED",
    "SCREEN",
    "CURV",
    "3D ",
)
_TRUE_SLICES = {"", "NONE", "MPR"}  # VolumeBasedCalculationTechnique (0008,9207)
_TRUE_VOXELS = {"", "VOLUME", "SAMPLED"}  # VolumetricProperties (0008,9206)


class Risk(Enum):
    """What an object may show of a face."""

    NONE = "none"
    SLICES = "slices"
    """It is made of slices of which the place is known: what is face in them can be painted over."""
    UNKNOWN = "unknown"
    """It may show one, and nobody can say where."""


def face_risk(dataset: Dataset) -> Risk:
    """Return what `dataset` may show of a face, by its SOP class: a Modality is what somebody typed.

    An answer of NO in RecognizableVisualFeatures (0028,0302) is believed. CT localizers are radiographs.
    """
    answer = text(dataset, "RecognizableVisualFeatures").upper()
    if answer == "NO":
        return Risk.NONE
    sop_class = text(dataset, "SOPClassUID")
    if sop_class not in VOLUMES:
        harmless = sop_class in _NO_FACE or sop_class.startswith(_FAMILIES)
        return Risk.NONE if harmless and answer != "YES" else Risk.UNKNOWN
    kinds = {texts(dataset, "ImageType"), *(frame.image_type for frame in frames_of(dataset))}
    if any(is_drawn(kind) for kind in kinds):
        return Risk.UNKNOWN
    if text(dataset, "VolumeBasedCalculationTechnique") not in _TRUE_SLICES:
        return Risk.UNKNOWN
    if text(dataset, "VolumetricProperties") not in _TRUE_VOXELS:
        return Risk.UNKNOWN
    localizer = sop_class.startswith(f"{_STORAGE}2") and any("LOCALIZER" in kind for kind in kinds)
    return Risk.NONE if localizer and answer != "YES" else Risk.SLICES


def is_drawn(words: Iterable[str]) -> bool:
    """Return whether an ImageType or FrameType speaks of something else than slices."""
    capitals = [word.upper() for word in words]
    return any(word in _DRAWN or any(part in word for part in _DRAWN_PARTS) for word in capitals)


def is_far_from_head(dataset: Dataset) -> bool:
    """Return whether BodyPartExamined (0018,0015) names a part of the body from which no face can be seen."""
    part = text(dataset, "BodyPartExamined").upper().replace(" ", "").replace("_", "")
    return part in _FAR_FROM_HEAD and text(dataset, "RecognizableVisualFeatures").upper() != "YES"
