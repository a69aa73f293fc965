"""The cases a network learns from: images and label maps that belong together, how they are split, and how they are prepared.

A case is an image and a label map of the same name in two folders. Images are turned, resampled and scaled by the very code of
inference (preparation.py), and labels follow them. Nothing of it is written to the disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from secure_media_processor.core.files import os_errors
from secure_media_processor.errors import ImageError, MissingError, UsageError
from secure_media_processor.medical.unet.label_maps import resampled_labels
from secure_media_processor.medical.unet.preparation import prepared
from secure_media_processor.medical.volume import Volume, read_grid, read_volume, reoriented, same_grid

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.inference.card import Inputs
    from secure_media_processor.medical.volume import Grid

MOST_LABELS: Final = 255
_SUFFIXES: Final = (".nii.gz", ".nii")
_ENCRYPTED: Final = ".smp"
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Case:
    """An image and what is in it."""

    name: str
    """File name without its suffixes."""
    image: Path
    labels: Path


@dataclass(frozen=True, slots=True)
class Split:
    """Which cases are learnt from, and which are kept from that."""

    training: tuple[Case, ...]
    """By name, as below."""
    validation: tuple[Case, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A case as the network sees it."""

    image: NDArray[np.float32]
    """(1, i, j, k), in the model's orientation and spacing, scaled."""
    labels: NDArray[np.uint8]
    """(i, j, k), 0 for the background."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.image.nbytes + self.labels.nbytes


def find_cases(images: Path, labels: Path) -> tuple[Case, ...]:
    """Return the cases in two folders, by name.

    Files are NIfTI (.nii, .nii.gz), encrypted or not (.smp at the end). Other files are left alone.

    Raises:
        UsageError: an image has no labels or the other way round, or two files have one name.
        MissingError: there is no such folder, or no NIfTI file in it.
        FileAccessError: it cannot be read.
    """
    found, truths = _volumes_in(images), _volumes_in(labels)
    for have, lack, what in ((found, truths, "image"), (truths, found, "label map")):
        alone = sorted(have.keys() - lack.keys())
        if alone:
            other = "label map" if what == "image" else "image"
            raise UsageError(
                f"{len(alone)} of {len(have)} files have no {other} of the same name: {_few(alone)}",
                hint=f"give each {what} a {other} of the same name, or move it to another folder",
            )
    return tuple(Case(name, found[name], truths[name]) for name in sorted(found))


def split_cases(cases: Sequence[Case], fraction: float, seed: int) -> Split:
    """Return a split in which `fraction` of the cases, rounded, are for validation: at least one, and not all.

    The cases are ordered by SHA-256 of seed and name, and the first ones are taken. So the split depends on nothing but names
    and seed, and each case that is added later moves at most one of the others.

    Raises:
        UsageError: there are fewer than two cases.
    """
    if len(cases) < 2:  # noqa: PLR2004 - one for each side
        raise UsageError(
            f"{len(cases)} case cannot be split for training and validation", hint="training needs 2 cases or more"
        )
    wanted = min(max(round(fraction * len(cases)), 1), len(cases) - 1)
    ranked = sorted(cases, key=lambda case: sha256(f"{seed}\0{case.name}".encode()).digest())
    return _split(cases, {case.name for case in ranked[:wanted]})


def split_by_names(cases: Sequence[Case], names: Collection[str]) -> Split:
    """Return the split whose validation cases are those of the list; file names count as names.

    Raises:
        UsageError: a name is not that of a case, or nothing is left on one side.
    """
    wanted = {_stem(name) or name for name in names}
    unknown = sorted(wanted - {case.name for case in cases})
    if unknown:
        raise UsageError(f"{len(unknown)} of the validation cases are not there: {_few(unknown)}")
    if not 0 < len(wanted) < len(cases):
        raise UsageError("training and validation need at least one case each")
    return _split(cases, wanted)


def read_names(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file that are not empty. Raises UsageError if it is no text, or as the system says."""
    with os_errors(f"read {path}"):
        data = path.read_bytes()
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file with one name a line") from None
    return tuple(line.strip() for line in lines if line.strip())


def common_spacing(cases: Iterable[Case], identities: Sequence[Identity] = ()) -> tuple[float, float, float]:
    """Return the median spacing of images along each axis in RAS, mm, to 4 significant digits. Raises as read_volume."""
    spacings = [_upright_spacing(read_grid(case.image, identities=identities)) for case in cases]
    x, y, z = (float(f"{middle:.4g}") for middle in np.median(np.array(spacings), axis=0))
    return (x, y, z)


def read_case(case: Case, identities: Sequence[Identity] = ()) -> tuple[Volume, Volume]:
    """Return image and label map as they are stored.

    Raises:
        ImageError: they lie on different grids, the labels are not whole numbers from 0 to 255, or one of them cannot be read.
    """
    image = read_volume(case.image, identities=identities)
    labels = read_volume(case.labels, identities=identities, dtype=np.int32)
    if not same_grid(image.grid, labels.grid):
        raise ImageError(f"{case.labels} does not lie on the grid of {case.image}", hint="resample the labels onto the image")
    low, high = int(labels.array.min()), int(labels.array.max())
    if low < 0 or high > MOST_LABELS:
        raise ImageError(f"{case.labels} has values from {low} to {high}; labels are 0 to {MOST_LABELS}")
    return image, labels


def prepare(image: Volume, labels: Volume, inputs: Inputs) -> Sample:
    """Return a case as the network sees it.

    Raises:
        ImageError: all values of the image are the same.
    """
    seen = prepared([image], inputs)
    truth = reoriented(labels, inputs.orientation)
    array = truth.array.astype(np.uint8)
    if seen.grid is not seen.turned:
        array = resampled_labels(array, truth.grid, seen.grid)
    return Sample(seen.scaled(), np.ascontiguousarray(array))


@dataclass(slots=True)
class Cases:
    """Cases as the network sees them, kept in memory as far as they fit; the rest is read again each time."""

    inputs: Inputs
    identities: Sequence[Identity] = ()
    limit: int = 4 * 1024**3
    """Bytes."""
    _kept: dict[str, Sample] = field(default_factory=dict)
    _size: int = 0

    def get(self, case: Case) -> Sample:
        """Return the case. Raises as read_case and prepare; the message names the file."""
        known = self._kept.get(case.name)
        if known is not None:
            return known
        image, labels = read_case(case, self.identities)
        try:
            ready = prepare(image, labels, self.inputs)
        except ImageError as error:
            raise ImageError(f"{case.image}: {error}", hint=error.hint) from error
        # What is there stays: with cases in random order that is as good as any rule, and nothing is thrown away in vain.
        if self._size + ready.size <= self.limit:
            self._kept[case.name] = ready
            self._size += ready.size
        return ready


def window_for(shapes: Sequence[tuple[int, ...]], factor: int, most: int) -> tuple[int, ...]:
    """Return the window to train with: the median shape, rounded up to a multiple of `factor`, of up to `most` voxels.

    Where it would be larger, the longest side becomes shorter until it is not.

    Args:
        shapes: Voxels of each case, one or more.
        factor: Of the network.
        most: Voxels.
    """
    sides = [int(-(-side // factor) * factor) for side in np.median(np.array(shapes), axis=0)]
    while prod(sides) > most and max(sides) > factor:
        sides[sides.index(max(sides))] -= factor
    return tuple(sides)


def _volumes_in(folder: Path) -> dict[str, Path]:
    """Return the NIfTI files in a folder by their names without suffixes."""
    with os_errors(f"read {folder}"):
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    found: dict[str, Path] = {}
    for path in paths:
        name = _stem(path.name)
        if name is None or path.name.startswith("."):
            continue
        if name in found:
            raise UsageError(f"{found[name]} and {path} have one name", hint="give them names of their own")
        found[name] = path
    if not found:
        raise MissingError(f"there are no NIfTI files in {folder}", hint="they end in .nii or .nii.gz, encrypted ones in .smp")
    return found


def _stem(name: str) -> str | None:
    """Return the name of a NIfTI file without its suffixes; None if it is none."""
    plain = name.removesuffix(_ENCRYPTED)
    return next((plain.removesuffix(suffix) for suffix in _SUFFIXES if plain.endswith(suffix)), None)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" and others" if len(names) > _SHOWN else "")


def _split(cases: Sequence[Case], held_out: Collection[str]) -> Split:
    ordered = sorted(cases, key=lambda case: case.name)
    training = tuple(case for case in ordered if case.name not in held_out)
    return Split(training, tuple(case for case in ordered if case.name in held_out))


def _upright_spacing(grid: Grid) -> tuple[float, float, float]:
    """Return the spacing of a grid along its axes once they run as RAS, mm."""
    axes = [next(at for at, pair in enumerate(("RL", "AP", "SI")) if letter in pair) for letter in grid.orientation]
    x, y, z = (grid.spacing[axes.index(axis)] for axis in range(3))
    return (x, y, z)
