"""Does an identity stand in the pixels? Headers can be cleaned; what is drawn into an image cannot be seen from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom.pixels.utils import get_expected_length

if TYPE_CHECKING:
    from pydicom import Dataset

# Ultrasound, endoscopy, screenshots and the like usually carry the patient's name in the picture; AU is a voice.
_SUSPECT_MODALITIES = {"US", "IVUS", "ES", "OT", "SC", "XC", "GM", "OP", "DOC", "SMR", "RF", "ECG", "AU"}
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SUSPECT_CLASSES = {
    f"{_STORAGE}3": "an ultrasound image",
    f"{_STORAGE}6": "an ultrasound image",
    f"{_STORAGE}7": "a secondary capture",
    f"{_STORAGE}77.1.1": "a video or picture of an endoscope",
}
_ENCAPSULATED = f"{_STORAGE}104"
_VOICE = f"{_STORAGE}9.4"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# OverlayBitsAllocated and OverlayBitPosition of all groups 60xx (PS3.3 section C.9.2) → where the overlay has its own data.
_OVERLAY_MASK = 0xFF00FFFF
_USUAL = {0x60000100: 1, 0x60000102: 0}


def burned_in_suspicion(dataset: Dataset, pixel_bytes: int | None = None) -> str | None:
    """Return why `dataset` may hold an identity in its pixels, sound or document; None if nothing points to it.

    `pixel_bytes` is the length of PixelData where these were left in the file.

    An answer of NO in BurnedInAnnotation (0028,0301) is believed as far as the picture goes. Without one, kinds of objects that
    usually show names are suspected.
    """
    sop_class = str(dataset.get("SOPClassUID", ""))
    modalities = _values(dataset, "Modality")
    if _within(sop_class, _ENCAPSULATED):
        return "an encapsulated document: its text is not read"
    if _within(sop_class, _VOICE) or "AU" in modalities:
        return "a voice recording: it is not listened to"
    if pixel_bytes is None and not any(keyword in dataset for keyword in _PIXELS):
        return None
    return hidden_in_pixels(dataset, pixel_bytes) or _drawn_into_pixels(dataset, sop_class, modalities)


def hidden_in_pixels(dataset: Dataset, pixel_bytes: int | None = None) -> str | None:
    """Return what else than pixels is in the pixel data, which no look at the picture finds; None if there is nothing."""
    if pixel_bytes is None and "PixelData" in dataset:
        pixel_bytes = len(dataset.PixelData)
    for tag in list(dataset.keys()):
        usual = _USUAL.get(int(tag) & _OVERLAY_MASK)
        if usual is not None and dataset[tag].value not in (usual, None):
            return "an overlay is kept in unused bits of the pixels"
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if pixel_bytes is not None and syntax is not None and not syntax.is_compressed:
        expected = get_expected_length(dataset, unit="bytes")
        if pixel_bytes > expected + expected % 2:
            return "the pixel data are longer than the image"
    return None


def _drawn_into_pixels(dataset: Dataset, sop_class: str, modalities: set[str]) -> str | None:
    answer = _values(dataset, "BurnedInAnnotation")
    if answer == {"NO"}:
        return None
    if answer:
        return "BurnedInAnnotation says so"
    for known, name in _SUSPECT_CLASSES.items():
        if _within(sop_class, known):
            return f"{name} that does not say it is free of burned-in text"
    if "ConversionType" in dataset or any("SCREEN" in value for value in _values(dataset, "ImageType")):
        return "a captured picture that does not say it is free of burned-in text"
    suspect = sorted(modalities & _SUSPECT_MODALITIES)
    if suspect or not modalities:
        return f"modality {suspect[0] if suspect else 'unknown'} usually shows text in the image"
    return None


def _within(uid: str, root: str) -> bool:
    return uid == root or uid.startswith(f"{root}.")


def _values(dataset: Dataset, keyword: str) -> set[str]:
    """Return the values of an attribute, however many, in capitals."""
    value = dataset.get(keyword)
    values = [value] if isinstance(value, str) else list(value or ())
    return {str(one).strip().upper() for one in values} - {""}
