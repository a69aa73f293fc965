"""The single images of a DICOM object, each with its place in space and with what sets it apart from others at that place.

A classic object (CT, MR, PET) is one image. An enhanced one holds many, and says of each in its functional groups (PS3.3
C.7.6.16) what a classic one says of itself; a dose grid (PS3.3 C.8.8.3) gives the distance of each from the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import Dataset

from secure_media_processor.medical.dicom.elements import items, number, numbers, text, texts, whole_number
from secure_media_processor.medical.dicom.geometry import slice_normal

if TYPE_CHECKING:
    from secure_media_processor.medical.dicom.geometry import Orientation, Spacing, Vector

# Where vendors put the b-value before it was standard: creator of the private block, group, element in the block.
_PRIVATE_B_VALUES = (
    ("SIEMENS MR HEADER", 0x0019, 0x0C),
    ("GEMS_PARM_01", 0x0043, 0x39),
    ("Philips Imaging DD 001", 0x2001, 0x03),
)
# GE adds this to the number to mark it; the number itself is below.
_GE_MARK = 100_000

FRAME_KEYWORDS = (
    "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "ImageType", "EchoTime", "EchoNumbers", "DiffusionBValue", "DiffusionGradientOrientation",
    "TemporalPositionIdentifier", "TriggerTime", "FrameReferenceTime", "AcquisitionNumber", "AcquisitionTime",
    "GridFrameOffsetVector",
)  # fmt: skip
"""What frames_of looks at, without the sequences."""
FRAME_SEQUENCES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
"""The sequences that frames_of looks at."""
FRAME_TAGS = tuple(group << 16 | 0x1000 | element for _, group, element in _PRIVATE_B_VALUES) + tuple(
    group << 16 | 0x10 for _, group, _ in _PRIVATE_B_VALUES
)
"""The private elements that frames_of looks at; vendors always put these blocks first."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One image, or several of which nothing tells one from the other."""

    index: int = 0
    """Which frame of its object it is, from 0; in DICOM frames count from 1."""
    position: Vector | None = None
    """ImagePositionPatient (0020,0032): x, y, z of the centre of the first pixel in mm, LPS."""
    orientation: Orientation | None = None
    """ImageOrientationPatient (0020,0037): six direction cosines, row then column."""
    pixel_spacing: Spacing | None = None
    """PixelSpacing (0028,0030) in mm: between rows, then between columns."""
    slice_thickness: float | None = None
    """SliceThickness (0018,0050) in mm; not the distance between slices."""
    spacing_between_slices: float | None = None
    """SpacingBetweenSlices (0018,0088) in mm, as the scanner says; the true one is measured from positions."""
    image_type: tuple[str, ...] = ()
    """ImageType (0008,0008), or FrameType (0008,9007)."""
    echo_time: float | None = None
    """EchoTime (0018,0081), or EffectiveEchoTime (0018,9082), in ms."""
    echo_number: int | None = None
    """EchoNumbers (0018,0086)."""
    b_value: float | None = None
    """DiffusionBValue (0018,9087), or that of the vendor, in s/mm²."""
    gradient: Vector | None = None
    """DiffusionGradientOrientation (0018,9089): unit vector in LPS."""
    temporal_position: int | None = None
    """TemporalPositionIdentifier (0020,0100), or TemporalPositionIndex (0020,9128)."""
    trigger_time: float | None = None
    """TriggerTime (0018,1060), or NominalCardiacTriggerDelayTime (0020,9153), in ms."""
    reference_time: float | None = None
    """FrameReferenceTime (0054,1300) in ms."""
    acquisition_number: int | None = None
    """AcquisitionNumber (0020,0012), or FrameAcquisitionNumber (0020,9156)."""
    acquisition_time: str | None = None
    """AcquisitionTime (0008,0032) as it stands there, to tell frames apart. Never shown: it says when a patient was where."""
    stack_id: str | None = None
    """StackID (0020,9056)."""


def frames_of(dataset: Dataset) -> tuple[Frame, ...]:
    """Return the frames of an object: as many as it has, or a single one for all where it does not tell where each lies."""
    count = whole_number(dataset, "NumberOfFrames") or 1
    groups = items(dataset, "PerFrameFunctionalGroupsSequence")
    if groups and len(groups) == count:
        shared = next(iter(items(dataset, "SharedFunctionalGroupsSequence")), None)
        return tuple(_enhanced(dataset, index, shared, own) for index, own in enumerate(groups))
    one = _classic(dataset)
    if count == 1:
        return (one,)
    return _dose_grid(dataset, one, count) or (_without_place(one),)


def _classic(dataset: Dataset) -> Frame:
    return Frame(
        position=_three(numbers(dataset, "ImagePositionPatient")),
        orientation=_six(numbers(dataset, "ImageOrientationPatient")),
        pixel_spacing=_two(numbers(dataset, "PixelSpacing")),
        slice_thickness=number(dataset, "SliceThickness"),
        spacing_between_slices=number(dataset, "SpacingBetweenSlices"),
        image_type=texts(dataset, "ImageType"),
        echo_time=number(dataset, "EchoTime"),
        echo_number=whole_number(dataset, "EchoNumbers"),
        b_value=_b_value(dataset),
        gradient=_three(numbers(dataset, "DiffusionGradientOrientation")),
        temporal_position=whole_number(dataset, "TemporalPositionIdentifier"),
        trigger_time=number(dataset, "TriggerTime"),
        reference_time=number(dataset, "FrameReferenceTime"),
        acquisition_number=whole_number(dataset, "AcquisitionNumber"),
        acquisition_time=text(dataset, "AcquisitionTime") or None,
    )


def _without_place(frame: Frame) -> Frame:
    """Return what is known of many frames at once: a position given for all of them is that of one."""
    return Frame(
        pixel_spacing=frame.pixel_spacing,
        slice_thickness=frame.slice_thickness,
        spacing_between_slices=frame.spacing_between_slices,
        image_type=frame.image_type,
        echo_time=frame.echo_time,
        acquisition_number=frame.acquisition_number,
    )


def _enhanced(dataset: Dataset, index: int, shared: Dataset | None, own: Dataset) -> Frame:
    """Return frame `index`, of which something stands in its `own` functional groups and the rest in the `shared` ones."""

    def group(keyword: str) -> Dataset:
        for place in (own, shared):
            found = items(place, keyword) if place is not None else []
            if found:
                return found[0]
        return Dataset()

    measures, content, diffusion = group("PixelMeasuresSequence"), group("FrameContentSequence"), group("MRDiffusionSequence")
    types = (group(f"{kind}FrameTypeSequence") for kind in ("MRImage", "CTImage", "PET"))
    gradients = items(diffusion, "DiffusionGradientDirectionSequence")
    return Frame(
        index=index,
        position=_three(numbers(group("PlanePositionSequence"), "ImagePositionPatient")),
        orientation=_six(numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient")),
        pixel_spacing=_two(numbers(measures, "PixelSpacing")),
        slice_thickness=number(measures, "SliceThickness"),
        spacing_between_slices=number(measures, "SpacingBetweenSlices"),
        image_type=next((found for kind in types if (found := texts(kind, "FrameType"))), texts(dataset, "ImageType")),
        echo_time=number(group("MREchoSequence"), "EffectiveEchoTime"),
        b_value=number(diffusion, "DiffusionBValue"),
        gradient=_three(numbers(gradients[0], "DiffusionGradientOrientation")) if gradients else None,
        temporal_position=whole_number(content, "TemporalPositionIndex"),
        trigger_time=number(group("CardiacSynchronizationSequence"), "NominalCardiacTriggerDelayTime"),
        acquisition_number=whole_number(content, "FrameAcquisitionNumber"),
        stack_id=text(content, "StackID") or None,
    )


def _dose_grid(dataset: Dataset, first: Frame, count: int) -> tuple[Frame, ...]:
    """Return the planes of a dose grid, which lie along the normal at given distances from the first; none if it is not one."""
    offsets = numbers(dataset, "GridFrameOffsetVector")
    normal = first.orientation and slice_normal(first.orientation)
    if offsets is None or len(offsets) != count or first.position is None or not normal:
        return ()
    frames = []
    for index, offset in enumerate(offsets):
        # They begin at 0, or at the position of the first plane (PS3.3 C.8.8.3.2): the difference is the same.
        x, y, z = (p + (offset - offsets[0]) * n for p, n in zip(first.position, normal, strict=True))
        frames.append(
            Frame(
                index=index,
                position=(x, y, z),
                orientation=first.orientation,
                pixel_spacing=first.pixel_spacing,
                slice_thickness=first.slice_thickness,
                image_type=first.image_type,
            )
        )
    return tuple(frames)


def _b_value(dataset: Dataset) -> float | None:
    value = number(dataset, "DiffusionBValue")
    for creator, group, element in _PRIVATE_B_VALUES if value is None else ():
        if text(dataset, group << 16 | 0x10) == creator:
            found = numbers(dataset, group << 16 | 0x1000 | element)
            if found:
                value = found[0] % _GE_MARK if creator.startswith("GE") else found[0]
    return value


def _three(values: tuple[float, ...] | None) -> Vector | None:
    return values if values is not None and len(values) == 3 else None  # noqa: PLR2004 - it says so


def _six(values: tuple[float, ...] | None) -> Orientation | None:
    return values if values is not None and len(values) == 6 else None  # noqa: PLR2004 - it says so


def _two(values: tuple[float, ...] | None) -> Spacing | None:
    """Return two positive numbers; anything else is no spacing."""
    return values if values is not None and len(values) == 2 and min(values) > 0 else None  # noqa: PLR2004 - it says so
