"""The cases a network learns from: images and what is in them, how they are split, and how they are prepared.

A case is an image and a label map of the same name in two folders, or an image and its class in a table. Images are turned,
resampled and scaled by the very code of inference (preparation.py), and labels follow them. Nothing of it is written to the
disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
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
    from secure_media_processor.medical.unet.class_table import ClassTable
    from secure_media_processor.medical.volume import Grid

MOST_LABELS: Final = 255
_SUFFIXES: Final = (".nii.gz", ".nii")
_ENCRYPTED: Final = ".smp"
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Case:
    """An image and what is in it: a label of each voxel, or a class of the whole image."""

    name: str
    """File name without its suffixes."""
    image: Path
    labels: Path | None
    """The label map; None of an image with a class."""
    class_: int | None = None
    """From 0; None of an image with a label map."""


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
    """(i, j, k), 0 for the background; () of an image with a class, which it is."""

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


def find_classified(images: Path, truth: ClassTable) -> tuple[Case, ...]:
    """Return the cases of a folder, as find_cases, with the classes of a table by name; file names count as names.

    Raises:
        UsageError: an image is not in the table or the other way round, or two files or ids have one name.
        MissingError: there is no such folder, or no NIfTI file in it.
        FileAccessError: it cannot be read.
    """
    found = _volumes_in(images)
    classes = {case_name(id_): class_ for id_, class_ in truth.classes.items()}
    if len(classes) < len(truth.classes):
        raise UsageError(f"two ids of {truth.path} name one image", hint="keep one line an image")
    for have, lack, what in (
        (found, classes, f"images are not in {truth.path}"),
        (classes, found, f"ids of {truth.path} have no image in {images}"),
    ):
        alone = sorted(have.keys() - lack.keys())
        if alone:
            raise UsageError(
                f"{len(alone)} of {len(have)} {what}: {_few(alone)}", hint="give each image one line with its name as id"
            )
    return tuple(Case(name, found[name], None, classes[name]) for name in sorted(found))


def case_name(text: str) -> str:
    """Return the name of a case, which may be given as a file name."""
    return _stem(text) or text


def split_cases(cases: Sequence[Case], fraction: float, seed: int) -> Split:
    """Return a split in which `fraction` of the cases, rounded, are for validation: at least one, and not all.

    The cases are ordered by SHA-256 of seed and name, and the first ones are taken. So the split depends on nothing but names
    and seed, and each case that is added later moves at most one of the others. Where cases have classes, each class is split
    so by itself.

    Raises:
        UsageError: there are fewer than two cases, or two of a class.
    """
    held_out: set[str] = set()
    for class_ in sorted({-1 if case.class_ is None else case.class_ for case in cases}) or [-1]:
        group = [case for case in cases if class_ in (-1, case.class_)]
        if len(group) < 2:  # noqa: PLR2004 - one for each side
            which, each = ("", "") if class_ < 0 else (f" of class {class_}", " of each class")
            raise UsageError(
                f"{len(group)} case{which} cannot be split for training and validation",
                hint=f"training needs 2 cases or more{each}",
            )
        wanted = min(max(round(fraction * len(group)), 1), len(group) - 1)
        ranked = sorted(group, key=lambda case: sha256(f"{seed}\0{case.name}".encode()).digest())
        held_out.update(case.name for case in ranked[:wanted])
    return _split(cases, held_out)


def split_by_names(cases: Sequence[Case], names: Collection[str]) -> Split:
    """Return the split whose validation cases are those of the list; file names count as names.

    Raises:
        UsageError: a name is not that of a case, or nothing is left on one side, or of a class on one side.
    """
    wanted = {case_name(name) for name in names}
    unknown = sorted(wanted - {case.name for case in cases})
    if unknown:
        raise UsageError(f"{len(unknown)} of the validation cases are not there: {_few(unknown)}")
    if not 0 < len(wanted) < len(cases):
        raise UsageError("training and validation need at least one case each")
    split = _split(cases, wanted)
    if {case.class_ for case in split.training} != {case.class_ for case in split.validation}:
        raise UsageError("training and validation need at least one case of each class")
    return split


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
        UsageError: there is no label map.
        ImageError: they lie on different grids, the labels are not whole numbers from 0 to 255, or one of them cannot be read.
    """
    if case.labels is None:
        raise UsageError(f"{case.image} has no label map")
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


def prepare_classified(image: Volume, class_: int, inputs: Inputs) -> Sample:
    """Return a case with a class as the network sees it.

    Raises:
        ImageError: all values of the image are the same, or it has several slices, and the network takes one.
    """
    seen = prepared([image], inputs)
    if len(inputs.roi) == 2 and seen.grid.shape[2] != 1:  # noqa: PLR2004 - 2D or 3D
        raise ImageError(f"it has {seen.grid.shape[2]} slices, not one", hint="use --dimensions 3 for volumes")
    return Sample(seen.scaled(), np.array(class_, np.uint8))


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
        if case.class_ is None:
            image, labels = read_case(case, self.identities)
            made = partial(prepare, image, labels, self.inputs)
        else:
            image = read_volume(case.image, identities=self.identities)
            made = partial(prepare_classified, image, case.class_, self.inputs)
        try:
            ready = made()
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


def covering_window(shapes: Sequence[tuple[int, ...]], factor: int) -> tuple[int, ...]:
    """Return the window that holds all of each case: the greatest sizes, rounded up to multiples of `factor`."""
    return tuple(int(-(-side // factor) * factor) for side in np.max(np.array(shapes), axis=0))


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
