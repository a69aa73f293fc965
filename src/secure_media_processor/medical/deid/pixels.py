"""Does an identity stand in the pixels? Headers can be cleaned; what is drawn into an image cannot be seen from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

# Ultrasound, endoscopy, screenshots and the like usually carry the patient's name in the picture.
_SUSPECT_MODALITIES = {"US", "IVUS", "ES", "OT", "SC", "XC", "GM", "OP", "DOC", "SMR", "RF", "ECG"}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_ENCAPSULATED = "1.2.840.10008.5.1.4.1.1.104."
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def burned_in_suspicion(dataset: Dataset) -> str | None:
    """Return why `dataset` may show an identity in its pixels or its document, None if nothing points to it.

    An answer of NO in BurnedInAnnotation (0028,0301) is believed. Without one, kinds of objects that usually show names are
    suspected.
    """
    sop_class = str(dataset.get("SOPClassUID", ""))
    if sop_class.startswith(_ENCAPSULATED):
        return "an encapsulated document: its text is not read"
    if not any(keyword in dataset for keyword in _PIXELS):
        return None
    answer = str(dataset.get("BurnedInAnnotation", "")).strip().upper()
    if answer == "NO":
        return None
    if answer:
        return "BurnedInAnnotation says so"
    if sop_class.startswith(_SECONDARY_CAPTURE):
        return "a secondary capture that does not say it is free of burned-in text"
    modality = str(dataset.get("Modality", "")).strip().upper()
    if modality in _SUSPECT_MODALITIES or not modality:
        return f"modality {modality if modality in _SUSPECT_MODALITIES else 'unknown'} usually shows text in the image"
    return None
