"""Masks as DICOM Segmentations (PS3.3 A.51), tied to the images on which they were drawn.

The result names the same patient and study as those images. It refers to each of them, and has their FrameOfReferenceUID.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import highdicom
import nibabel
import numpy as np
from highdicom.seg import Segmentation, SegmentDescription
from pydicom import dcmwrite
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from secure_media_processor import __version__
from secure_media_processor.core.files import atomic_write, os_errors, refuse_same_file
from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.convert.decoding import MAX_OBJECT_BYTES, foreign_data
from secure_media_processor.medical.dicom.geometry import lps_to_ras
from secure_media_processor.medical.dicom.reader import Unreadable, read_dataset, read_folder
from secure_media_processor.medical.dicom.series import group_into_series

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pydicom import Dataset

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.dicom.series import Stack

SegmentKind: TypeAlias = Literal["binary", "labelmap"]
"""SegmentationType (0062,0001): a bit image a segment, which is read everywhere; or one image of numbers (Supplement 243)."""
_NAME = "secure-media-processor"
# How far a voxel of the mask may be from its voxel of the images, in voxels: NIfTI has its matrix in 32 bits.
_SAME_VOXEL = 0.05
# Of type 2 in the patient and study modules: must be there, and may be empty. De-identified images often lack them.
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
    "ReferringPhysicianName",
)  # fmt: skip
_ALGORITHMS = ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL")
_MOST_SEGMENTS = 65535
_LONGEST_LABEL = 64  # of the value representation LO
_MAX_LABELS_FILE = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class Segment:
    """What a value in a mask stands for."""

    value: int
    """In the mask, from 1."""
    label: str
    """SegmentLabel (0062,0005)."""
    category: Code
    """SegmentedPropertyCategoryCodeSequence (0062,0003), CID 7150, such as (123037004, SCT, "Anatomical Structure")."""
    kind: Code
    """SegmentedPropertyTypeCodeSequence (0062,000F), CID 7151, such as (10200004, SCT, "Liver")."""
    region: Code | None
    """AnatomicRegionSequence (0008,2218)."""
    algorithm: str
    """SegmentAlgorithmType (0062,0008): AUTOMATIC, SEMIAUTOMATIC or MANUAL."""
    algorithm_name: str
    """SegmentAlgorithmName (0062,0009); empty if it is MANUAL."""


def read_labels(path: Path) -> tuple[Segment, ...]:
    """Read a JSON file with the segments, in order of their values.

    It is an object: the value in the mask → an object with `label`, `category`, `type` and perhaps `region`, each of the last
    three a list ``[code, coding scheme, meaning]``; `algorithm` (MANUAL if absent), and `algorithm_name`, which all but MANUAL
    need.

    Raises:
        UsageError: it is something else; the entry is named.
    """
    with os_errors(f"read {path}"):
        if path.stat().st_size > _MAX_LABELS_FILE:
            raise UsageError(f"{path} is too large for a file of labels")
        data = path.read_bytes()
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is not JSON") from None
    if not isinstance(entries, dict) or not entries:
        raise UsageError(f"{path} is not an object with a field for each value in the mask")
    try:
        segments = [_segment(value, entry) for value, entry in entries.items()]
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    return tuple(sorted(segments, key=lambda segment: segment.value))


def _segment(value: str, entry: Any) -> Segment:
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= _MOST_SEGMENTS) or not isinstance(entry, dict):
        raise ValueError(f"{value!r} is not a number from 1 with an object")
    unknown = entry.keys() - {"label", "category", "type", "region", "algorithm", "algorithm_name"}
    if unknown:
        raise ValueError(f"{value}: unknown field {min(unknown)}")
    label, algorithm = entry.get("label"), entry.get("algorithm", "MANUAL")
    name = entry.get("algorithm_name", "")
    if not isinstance(label, str) or not 0 < len(label) <= _LONGEST_LABEL or "\\" in label or not label.isprintable():
        raise ValueError(f"{value}: label is not a text of up to {_LONGEST_LABEL} characters")
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"{value}: algorithm is not one of {', '.join(_ALGORITHMS)}")
    if not isinstance(name, str) or len(name) > _LONGEST_LABEL or (algorithm != "MANUAL" and not name):
        raise ValueError(f"{value}: algorithm_name is missing")
    region = _code(value, entry, "region") if "region" in entry else None
    return Segment(int(value), label, _code(value, entry, "category"), _code(value, entry, "type"), region, algorithm, name)


def _code(value: str, entry: dict[str, Any], field: str) -> Code:
    parts = entry.get(field)
    if not isinstance(parts, list) or len(parts) != 3 or not all(isinstance(part, str) and part for part in parts):  # noqa: PLR2004
        raise ValueError(f"{value}: {field} is not [code, coding scheme, meaning]")
    return Code(*parts)


def write_segmentation(
    mask: Path,
    target: Path,
    source: Path,
    segments: tuple[Segment, ...],
    *,
    kind: SegmentKind = "binary",
    overwrite: bool = False,
    identities: Sequence[Identity] = (),
) -> None:
    """Write a mask as a DICOM Segmentation.

    Args:
        mask: NIfTI, three axes, integers: 0 for background, else the value of a segment. Its grid must be that of a volume in
            `source`. Axes may be in another order, or run the other way; it is never resampled.
        target: The DICOM file.
        source: Folder with the images on which the mask was drawn.
        segments: What the values stand for.
        kind: See SegmentKind.
        overwrite: Whether a file that exists is replaced.
        identities: Keys that open images in `source` that are encrypted; the mask may not be.

    Raises:
        ImageError: the mask cannot be read, does not lie on a volume of `source`, or on more than one; or the images lack what
            a segmentation has to take over from them.
        UsageError: the values in the mask are not those in `segments`.
    """
    refuse_same_file(mask, target)
    image, shape = _open_mask(mask)
    stack, axes = _matching_stack(np.asarray(image.affine, dtype=np.float64), shape, source, mask, identities)
    with foreign_data(f"{mask} is damaged"):
        stored = np.asanyarray(image.dataobj)
    labels = _labels(_in_order_of(stored.reshape(shape), axes), segments, mask, kind)
    _write(stack, labels, target, segments, kind=kind, overwrite=overwrite, identities=identities)


def write_label_map(
    labels: NDArray[np.generic],
    affine: NDArray[np.float64],
    target: Path,
    source: Path,
    segments: tuple[Segment, ...],
    *,
    description: str | None = None,
    kind: SegmentKind = "binary",
    overwrite: bool = False,
    identities: Sequence[Identity] = (),
) -> None:
    """Write a mask that is in memory as a DICOM Segmentation.

    Args:
        labels: (i, j, k), as the mask of write_segmentation.
        affine: (4, 4), voxel → mm, RAS.
        target: The DICOM file.
        source: As for write_segmentation, which also says the rest, and what is raised.
        segments: As there.
        description: ContentDescription (0070,0081), at most 64 characters.
        kind: As there.
        overwrite: As there.
        identities: As there.
    """
    i, j, k = labels.shape
    stack, axes = _matching_stack(affine, (i, j, k), source, "the mask", identities)
    ordered = _labels(_in_order_of(labels, axes), segments, "the mask", kind)
    _write(stack, ordered, target, segments, description=description, kind=kind, overwrite=overwrite, identities=identities)


def _write(
    stack: Stack,
    labels: NDArray[np.uint16],
    target: Path,
    segments: tuple[Segment, ...],
    *,
    description: str | None = None,
    kind: SegmentKind,
    overwrite: bool,
    identities: Sequence[Identity],
) -> None:
    images, ordered = _images(stack, labels, identities)
    with foreign_data("the images lack what a segmentation takes over from them"):
        made = _segmentation(images, ordered, segments, kind, description)
    with atomic_write(target, overwrite=overwrite) as file, foreign_data("the segmentation cannot be written"):
        dcmwrite(file, made, enforce_file_format=True)


def _open_mask(mask: Path) -> tuple[Any, tuple[int, int, int]]:
    """Return the image, not yet read, and its shape: trailing axes of length 1 do not count."""
    with os_errors(f"read {mask}"):
        mask.open("rb").close()
    with foreign_data(f"{mask} is not a NIfTI image"):
        image: Any = nibabel.load(mask)
        shape = tuple(int(size) for size in image.shape)
    if len(shape) < 3 or any(size != 1 for size in shape[3:]) or min(shape) < 1:  # noqa: PLR2004 - a volume
        raise ImageError(f"{mask} is not a volume: its shape is {shape}")
    if np.prod(shape, dtype=np.float64) * 8 > MAX_OBJECT_BYTES:
        raise ImageError(f"{mask} claims to be larger than any volume")
    return image, cast("tuple[int, int, int]", shape[:3])


@dataclass(frozen=True, slots=True)
class _Axes:
    """How the axes of a mask become column, row and slice."""

    order: tuple[int, ...]
    """Which axis of the mask runs along columns, rows, slices."""
    reversed: tuple[bool, ...]
    """Whether it runs the other way."""


def _matching_stack(
    affine: NDArray[np.float64], shape: tuple[int, int, int], source: Path, mask: Path | str, identities: Sequence[Identity]
) -> tuple[Stack, _Axes]:
    """Return the one stack below `source` on whose grid the mask lies."""
    contents = read_folder(source, identities=identities)
    stacks = [stack for series in group_into_series(contents.instances) for stack in series.stacks if stack.rows]
    found = [(stack, axes) for stack in stacks if (axes := _axes(affine, shape, stack)) is not None]
    if not found:
        reason = f"none of the {len(stacks)} volumes in {source} has the grid of {mask}"
        if contents.unreadable:
            bad = contents.unreadable
            reason += f"; of the files there {len(bad)} cannot be read, the first is {bad[0].path}: {bad[0].reason}"
        raise ImageError(reason, hint="resample the mask onto the grid of the images; this is not done without being asked for")
    if len(found) > 1:
        raise ImageError(f"{len(found)} volumes in {source} have the grid of {mask}", hint="name the folder of one series")
    return found[0]


def _axes(affine: NDArray[np.float64], shape: tuple[int, int, int], stack: Stack) -> _Axes | None:
    """Return how the axes of a grid lead to those of a stack; None if a voxel of one would lie between voxels of the other."""
    if stack.affine is None or stack.problems or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:  # noqa: PLR2004
        return None
    size = (stack.columns or 0, stack.rows or 0, len(stack.slices))
    to_mask = np.linalg.inv(affine) @ np.array(lps_to_ras(stack.affine))  # voxel of the stack → voxel of the mask
    turn = np.rint(to_mask[:3, :3])
    order = tuple(int(axis) for axis in np.abs(turn).argmax(axis=0))
    if sorted(order) != [0, 1, 2] or not (np.abs(turn).sum(axis=0) == 1).all() or tuple(shape[axis] for axis in order) != size:
        return None
    flips = tuple(bool(turn[axis, n] < 0) for n, axis in enumerate(order))
    for corner in product(*((0, length - 1) for length in size)):
        wanted = np.zeros(3)
        for n, axis in enumerate(order):
            wanted[axis] = size[n] - 1 - corner[n] if flips[n] else corner[n]
        if np.abs((to_mask @ [*corner, 1])[:3] - wanted).max() > _SAME_VOXEL:
            return None
    return _Axes(order, flips)


def _in_order_of(stored: NDArray[np.generic], axes: _Axes) -> NDArray[np.generic]:
    """Return the mask as (slices, rows, columns) of the stack."""
    turned = stored.transpose(axes.order)
    for axis, flip in enumerate(axes.reversed):
        turned = np.flip(turned, axis) if flip else turned
    return turned.transpose(2, 1, 0)


def _labels(
    values: NDArray[np.generic], segments: tuple[Segment, ...], mask: Path | str, kind: SegmentKind
) -> NDArray[np.uint16]:
    """Return the mask as numbers of segments. Raises unless each of them is described."""
    if values.dtype.kind not in "biuf":
        raise ImageError(f"the values of {mask} are no numbers")
    present = {float(value) for value in np.unique(values)} - {0.0}
    known = {float(segment.value) for segment in segments}
    if not present <= known:
        raise UsageError(f"{mask} has {len(present - known)} values that the labels do not describe")
    if kind == "binary" and [segment.value for segment in segments] != list(range(1, len(segments) + 1)):
        hint = "number them so in mask and labels, or use --segmentation labelmap"
        raise UsageError("the values of a binary segmentation are 1, 2, 3 and so on, without gaps", hint=hint)
    return values.astype(np.uint16)


def _images(
    stack: Stack, labels: NDArray[np.uint16], identities: Sequence[Identity]
) -> tuple[list[Dataset], NDArray[np.uint16]]:
    """Return the headers of the images, and the mask with a slice for each of their frames, in their order."""
    if len(stack.instances) == 1 and stack.instances[0].number_of_frames > 1:
        if len(stack.slices) != stack.instances[0].number_of_frames:
            raise ImageError("the images are only some of the frames of an object, which is not supported")
        labels = labels[np.argsort([one.frame.index for one in stack.slices])]
    elif len(stack.instances) != len(stack.slices):
        raise ImageError("the images lie in several multi-frame objects, which is not supported")
    images = []
    for instance in stack.instances:
        dataset = read_dataset(instance.path, identities=identities)
        if isinstance(dataset, Unreadable):
            raise ImageError(f"{instance.path}: {dataset.reason}")
        if not dataset.get("FrameOfReferenceUID"):
            raise ImageError(f"{instance.path}: it has no FrameOfReferenceUID")
        dataset.pop("PixelData", None)
        for keyword in _MAY_BE_EMPTY:
            if keyword not in dataset:
                setattr(dataset, keyword, None)
        images.append(dataset)
    return images, labels


def _segmentation(
    images: list[Dataset],
    labels: NDArray[np.uint16],
    segments: tuple[Segment, ...],
    kind: SegmentKind,
    description: str | None,
) -> Segmentation:
    described = [
        SegmentDescription(
            segment_number=segment.value,
            segment_label=segment.label,
            segmented_property_category=segment.category,
            segmented_property_type=segment.kind,
            algorithm_type=segment.algorithm,
            algorithm_identification=_algorithm(segment),
            anatomic_regions=None if segment.region is None else [segment.region],
        )
        for segment in segments
    ]
    return Segmentation(
        source_images=images,
        pixel_array=labels,
        segmentation_type=kind.upper(),
        segment_descriptions=described,
        series_instance_uid=generate_uid(prefix=None),
        series_number=1,
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer=_NAME,
        manufacturer_model_name=_NAME,
        software_versions=__version__,
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description=description,
        transfer_syntax_uid=ExplicitVRLittleEndian if kind == "binary" else RLELossless,
    )


def _algorithm(segment: Segment) -> highdicom.AlgorithmIdentificationSequence | None:
    if segment.algorithm == "MANUAL":
        return None
    family = Code("113076", "DCM", "Segmentation")  # of CID 7162
    return highdicom.AlgorithmIdentificationSequence(segment.algorithm_name, family, version="unknown")
