"""Stacks of slices as NIfTI volumes, by our own geometry.

NIfTI-1.1 keeps x, y, z in mm as RAS: to the patient's right, front and head. The array of a volume is (columns, rows, slices)
or (columns, rows, slices, times), first axis fastest, which is how DICOM stores pixels; nothing is turned or resampled, and the
affine says where each voxel lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from nibabel.nifti1 import Nifti1Header

from secure_media_processor.core.files import atomic_write
from secure_media_processor.errors import ImageError
from secure_media_processor.medical.convert.decoding import MAX_OBJECT_BYTES, decoded_frames, foreign_data, pixel_form
from secure_media_processor.medical.convert.grayscale import functional_group, grayscale_of, numbers
from secure_media_processor.medical.convert.gzipping import write_gzip
from secure_media_processor.medical.convert.outcome import SliceError
from secure_media_processor.medical.convert.sidecar import SIDECAR_KEYWORDS, fields_of
from secure_media_processor.medical.dicom.geometry import lps_to_ras
from secure_media_processor.medical.dicom.reader import Unreadable, read_dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray
    from pydicom import Dataset

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.dicom.reader import Instance
    from secure_media_processor.medical.dicom.series import Series, Slice, Stack

VOXELS_AT = 352
"""Where voxels begin in a NIfTI-1 file: after the header and four bytes that say that nothing else follows it."""
LONGEST_AXIS = 32767
"""Voxels along an axis of a NIfTI-1 file: dim is of 16 bits."""
_SAME_QFORM = 0.01  # mm at the far corner: quaternions are kept in 32 bits
_SCALE_KEYWORDS = (
    "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", *SIDECAR_KEYWORDS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Scaling:
    """How stored values of one slice become measured ones, and which values it can have."""

    slope: float
    intercept: float
    stored: tuple[int, int] | None
    """The range of stored values; None if they are floating-point numbers."""
    single: bool
    """Whether floating-point numbers have 32 bits."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How voxels are kept."""

    dtype: np.dtype[np.generic]
    rescale: bool
    """Whether values are rescaled slice by slice; else stored values are kept, and the header has `slope` and `intercept`."""
    slope: float = 1.0
    intercept: float = 0.0


def volumes_of(series: Series) -> tuple[tuple[Stack, ...], ...]:
    """Return the volumes of a series: stacks that repeat one grid over time are one volume of four dimensions."""
    found: list[list[Stack]] = []
    for stack in series.stacks:
        same = next((v for v in found if _nature(v[0]) == _nature(stack) and v[0].affine and v[0].same_grid(stack)), None)
        if same is None:
            found.append([stack])
        else:
            same.append(stack)
    return tuple(map(tuple, found))


def _nature(stack: Stack) -> tuple[object, ...]:
    """Return what makes images different measurements, not the same one at another time."""
    one, frame = stack.slices[0].instance, stack.slices[0].frame
    what = (frame.image_type, frame.echo_number, frame.echo_time, frame.b_value, frame.gradient, frame.stack_id)
    return (one.sop_class_uid, one.frame_of_reference_uid, *what)


def write_volume(
    volume: Sequence[Stack],
    target: Path,
    *,
    gzip: bool,
    overwrite: bool,
    identities: Sequence[Identity] = (),
    progress: Callable[[int], None] | None = None,
) -> dict[str, object]:
    """Write a volume as a NIfTI-1 file: qform and sform codes 1 (scanner), spacing in mm, time in s where it is known.

    Stored values are kept with slope and intercept in the header if those are the same in all slices. If they are not, values
    are rescaled slice by slice: to integers (int16 if they fit) where slopes and intercepts are, else to float32.

    Args:
        volume: From volumes_of.
        target: The file.
        gzip: Whether it is compressed.
        overwrite: Whether a file that exists is replaced.
        identities: Keys that open slices that are encrypted.
        progress: Called with the number of slices that were written since the last call.

    Returns:
        Fields for the sidecar.

    Raises:
        ImageError: the slices are not a regular grid; the message says why.
        SliceError: a slice is damaged, or does not fit the others.
    """
    first = volume[0]
    problems = [problem.text for stack in volume for problem in stack.problems]
    if problems or first.affine is None:
        raise ImageError(f"no regular volume: {'; '.join(dict.fromkeys(problems)) or 'its geometry is not known'}")
    headers = {id(one): _read(one.path, identities, _SCALE_KEYWORDS) for stack in volume for one in stack.instances}
    with foreign_data("its header cannot be parsed"):
        scalings = [_scaling(one, headers[id(one.instance)]) for stack in volume for one in stack.slices]
        fields = fields_of(headers[id(first.slices[0].instance)])
    plan = _plan(scalings)
    repetition = fields.get("RepetitionTime", 0.0)
    header = _header(volume, plan, float(cast("float", repetition)))
    with atomic_write(target, overwrite=overwrite) as file:
        chunks = _file(header, volume, plan, identities, progress)
        if gzip:
            write_gzip(chunks, file)
        else:
            for chunk in chunks:
                file.write(chunk)
    return fields


def _read(path: Path, identities: Sequence[Identity], tags: Sequence[str] | None = None) -> Dataset:
    found = read_dataset(path, tags=tags, identities=identities)
    if isinstance(found, Unreadable):
        raise SliceError(path, found.reason)
    return found


def _scaling(one: Slice, dataset: Dataset) -> _Scaling:
    if dataset.get("ModalityLUTSequence"):
        raise SliceError(one.instance.path, "its values are defined by a modality LUT, which NIfTI cannot hold")
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise SliceError(one.instance.path, "it is a colour image, which is no volume of measured values")
    group = functional_group(dataset, one.frame.index, "PixelValueTransformationSequence")
    slope, intercept = (numbers(group, "RescaleSlope") or [1.0])[0], (numbers(group, "RescaleIntercept") or [0.0])[0]
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise SliceError(one.instance.path, "its RescaleSlope and RescaleIntercept make no values")
    bits = dataset.get("BitsStored")
    if not bits:
        return _Scaling(slope, intercept, None, dataset.get("BitsAllocated") == 32)  # noqa: PLR2004 - bits of a float
    signed = dataset.get("PixelRepresentation") == 1
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return _Scaling(slope, intercept, (low, high), single=False)


def _plan(scalings: Sequence[_Scaling]) -> _Plan:
    same = len({(one.slope, one.intercept) for one in scalings}) == 1
    ranges = [one.stored for one in scalings if one.stored is not None]
    if len(ranges) < len(scalings):
        dtype = np.float32 if all(one.single for one in scalings) else np.float64
        return _Plan(np.dtype(dtype), rescale=not same, **_in_header(scalings, same=same))
    if same:
        return _Plan(_smallest(ranges), rescale=False, **_in_header(scalings, same=True))
    if all(one.slope.is_integer() and one.intercept.is_integer() for one in scalings):
        ends = [
            (min(values), max(values))
            for one, stored in zip(scalings, ranges, strict=True)
            for values in [[int(end * one.slope + one.intercept) for end in stored]]
        ]
        return _Plan(_smallest(ends), rescale=True)
    return _Plan(np.dtype(np.float32), rescale=True)


def _in_header(scalings: Sequence[_Scaling], *, same: bool) -> dict[str, float]:
    return {"slope": scalings[0].slope, "intercept": scalings[0].intercept} if same else {}


def _smallest(ranges: Sequence[tuple[int, int]]) -> np.dtype[np.generic]:
    """Return the first type that holds the values. Those that every reader of NIfTI knows stand first."""
    low, high = min(one for one, _ in ranges), max(one for _, one in ranges)
    for name in ("u1", "<i2", "<u2", "<i4", "<f8"):
        dtype = np.dtype(name)
        if dtype.kind == "f" or (np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max):
            return dtype
    raise AssertionError("the last type takes everything")


def _header(volume: Sequence[Stack], plan: _Plan, repetition: float) -> bytes:
    """Return the 352 bytes before the voxels. Fields for text stay empty.

    Args:
        volume: The stacks.
        plan: How voxels are kept.
        repetition: Seconds from one stack to the next; 0 if it is not known.
    """
    first = volume[0]
    if first.affine is None or first.pixel_spacing is None:
        raise ImageError("no regular volume: its geometry is not known")
    shape = (first.columns or 0, first.rows or 0, len(first.slices), *([len(volume)] if len(volume) > 1 else []))
    if max(shape) > LONGEST_AXIS or np.prod(shape, dtype=np.float64) * plan.dtype.itemsize > MAX_OBJECT_BYTES:
        raise ImageError(f"{' by '.join(map(str, shape))} voxels are larger than what is made")
    affine = np.array(lps_to_ras(first.affine))
    return nifti_header(shape, affine, plan.dtype, slope=plan.slope, intercept=plan.intercept, repetition=repetition)


def nifti_header(
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    dtype: DTypeLike,
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
    repetition: float = 0.0,
    code: int = 1,
    description: str = "",
) -> bytes:
    """Return what stands before the voxels in a NIfTI-1 file, 352 bytes, little endian. Other fields for text stay empty.

    The affine is kept as sform, and as qform too unless it is sheared, which a qform cannot say.

    Args:
        shape: Voxels along i, j, k, and points in time if there are four axes.
        affine: (4, 4), voxel to mm, RAS.
        dtype: Of the voxels.
        slope: Measured values are the stored ones times this,
        intercept: plus this.
        repetition: Seconds from one point in time to the next; 0 if it is not known.
        code: What the coordinates are: 1 of the scanner, 2 aligned to something, 3 Talairach, 4 MNI 152.
        description: At most 79 bytes of ASCII are kept.
    """
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    header.set_zooms((*zooms, repetition) if len(shape) > 3 else tuple(zooms))  # noqa: PLR2004 - axes of space
    header.set_xyzt_units("mm", "sec")
    header.set_qform(affine, code)
    if not np.allclose((header.get_qform() - affine)[:3, :3] @ np.diag(shape[:3]), 0, atol=_SAME_QFORM):
        header["qform_code"] = 0
    header.set_sform(affine, code)
    header.set_slope_inter(slope, intercept)
    header["vox_offset"] = VOXELS_AT
    header["descrip"] = description.encode("ascii", "replace")[:79]
    return cast("bytes", header.binaryblock) + bytes(4)


def _file(
    header: bytes,
    volume: Sequence[Stack],
    plan: _Plan,
    identities: Sequence[Identity],
    progress: Callable[[int], None] | None,
) -> Iterator[bytes | memoryview]:
    """Yield the file in pieces."""
    yield header
    for stack in volume:
        for pixels in _slices(stack, plan, identities):
            yield np.ascontiguousarray(pixels).tobytes()
            if progress is not None:
                progress(1)


def measured_slices(stack: Stack, dtype: DTypeLike, *, identities: Sequence[Identity] = ()) -> Iterator[NDArray[np.generic]]:
    """Yield the slices of a stack in order, rescaled to measured values (PS3.3 C.11.1), each of shape (rows, columns).

    Args:
        stack: One whose slices are images of one size.
        dtype: Of the arrays.
        identities: Keys that open slices that are encrypted.

    Raises:
        SliceError: a slice is damaged, or does not fit the others.
    """
    return _slices(stack, _Plan(np.dtype(dtype), rescale=True), identities)


def _slices(stack: Stack, plan: _Plan, identities: Sequence[Identity]) -> Iterator[NDArray[np.generic]]:
    """Yield the slices of a stack as the plan wants them, each of shape (rows, columns)."""
    frames = _Frames(stack, identities)
    for one in stack.slices:
        try:
            pixels = frames.take(one, plan)
        except SliceError:
            raise
        except ImageError as error:
            raise SliceError(one.instance.path, str(error)) from error
        yield pixels


class _Frames:
    """The slices of a stack as arrays; what is in one object is decoded in one go."""

    def __init__(self, stack: Stack, identities: Sequence[Identity]) -> None:
        self._stack = stack
        self._identities = identities
        self._decoded: dict[int, dict[int, NDArray[np.generic]]] = {}

    def take(self, one: Slice, plan: _Plan) -> NDArray[np.generic]:
        """Return a slice, shape (rows, columns). Each is asked for once."""
        key = id(one.instance)
        if key not in self._decoded:
            self._decoded[key] = self._decode(one.instance, plan)
        pixels = self._decoded[key].pop(one.frame.index)
        if not self._decoded[key]:
            del self._decoded[key]
        return pixels

    def _decode(self, instance: Instance, plan: _Plan) -> dict[int, NDArray[np.generic]]:
        wanted = {one.frame.index for one in self._stack.slices if one.instance is instance}
        dataset = _read(instance.path, self._identities)
        form = pixel_form(dataset)
        if not form.monochrome or (form.rows, form.columns) != (self._stack.rows, self._stack.columns):
            raise ImageError("its pixels are not those of the volume")
        only = next(iter(wanted)) if len(wanted) == 1 else None
        frames = enumerate(decoded_frames(dataset, form, only=only), start=only or 0)
        found = {}
        for index, pixels in frames:
            if index in wanted:
                values = grayscale_of(dataset, form, index).rescaled(pixels) if plan.rescale else pixels
                found[index] = values.astype(plan.dtype)
        return found
