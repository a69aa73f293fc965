"""Could somebody recognise a face in this object? Answered from its header alone."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from secure_media_processor.medical.dicom.elements import text, texts

if TYPE_CHECKING:
    from pydicom import Dataset

VOLUMES = {"CT", "MR", "PT"}
"""Modality (0008,0060) of what is cut into slices, of which a face can be drawn."""
# Projections, sound, microscopy, curves, doses and text: no surface can be drawn of them.
_NO_FACE = {
    "CR", "DX", "MG", "RF", "XA", "BMD", "US", "IVUS", "IVOCT", "NM", "SM", "ECG", "EPS", "HD", "EEG", "EMG", "EOG", "RESP",
    "AU", "SR", "PR", "KO", "REG", "PLAN", "RTPLAN", "RTRECORD", "RTDOSE", "FID", "RWV", "STAIN",
}  # fmt: skip
# BodyPartExamined (0018,0015), PS3.16 annex L: parts far from the head.
_FAR_FROM_HEAD = {
    "ABDOMEN", "ABDOMENPELVIS", "ANKLE", "ARM", "BLADDER", "BREAST", "CALF", "COLON", "ELBOW", "EXTREMITY", "FEMUR", "FINGER",
    "FOOT", "FOREARM", "HAND", "HIP", "HUMERUS", "KIDNEY", "KNEE", "LEG", "LIVER", "LSPINE", "LUMBARSPINE", "PANCREAS",
    "PELVIS", "PROSTATE", "RECTUM", "SIJOINT", "SPLEEN", "TESTIS", "THIGH", "THUMB", "TOE", "UTERUS", "WRIST",
}  # fmt: skip
# Words of ImageType (0008,0008) for pictures of a volume from outside: where a pixel lies in them is not in the header.
_DRAWN = {
    "PROJECTION IMAGE",
    "MIP",
    "MINIP",
    "MAX_IP",
    "MIN_IP",
    "VOLUME_RENDER",
    "VRT",
    "SSD",
    "3D_RENDERING",
    "MOSAIC",
    "CSA 3D",
}


class Risk(Enum):
    """What an object may show of a face."""

    NONE = "none"
    SLICES = "slices"
    """It is made of slices of which the place is known: what is face in them can be painted over."""
    UNKNOWN = "unknown"
    """It may show one, and nobody can say where."""


def face_risk(dataset: Dataset) -> Risk:
    """Return what `dataset` may show of a face.

    An answer of NO in RecognizableVisualFeatures (0028,0302) is believed. CT localizers are radiographs. Volumes of parts of
    the body far from the head are taken at the word of BodyPartExamined (0018,0015).
    """
    if text(dataset, "RecognizableVisualFeatures").upper() == "NO":
        return Risk.NONE
    modality = text(dataset, "Modality").upper()
    if modality in _NO_FACE:
        return Risk.NONE
    kind = {word.upper() for word in texts(dataset, "ImageType")}
    if modality not in VOLUMES or kind & _DRAWN:
        return Risk.UNKNOWN
    part = text(dataset, "BodyPartExamined").upper().replace(" ", "").replace("_", "")
    if part in _FAR_FROM_HEAD or (modality == "CT" and "LOCALIZER" in kind):
        return Risk.NONE
    return Risk.SLICES
