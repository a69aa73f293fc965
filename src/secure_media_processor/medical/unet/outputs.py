"""Where a segmentation goes: NIfTI, numpy, pictures of slices, DICOM SEG; a table of what was found."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.sr.coding import Code

from secure_media_processor.core.files import atomic_write, make_private_folder, os_errors, write_file
from secure_media_processor.errors import ExistsError, SmpError, UsageError
from secure_media_processor.medical.convert.segmentation import Segment, write_label_map
from secure_media_processor.medical.unet.inference import NOTICE
from secure_media_processor.medical.unet.preview import label_colours
from secure_media_processor.medical.volume import write_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.inference.card import ModelCard
    from secure_media_processor.medical.unet.postprocessing import Region
    from secure_media_processor.medical.volume import Volume

_SHORT: Final = "research use only"
_LONGEST: Final = 64  # of the value representation LO
# What is said of a label whose card has no codes for it.
_TISSUE: Final = Code("85756007", "SCT", "Tissue")
TABLES: Final = (".json", ".csv")


def write_nifti(labels: Volume, card: ModelCard, target: Path, *, overwrite: bool) -> None:
    """Write labels as NIfTI; the header's description names the model."""
    write_volume(labels, target, overwrite=overwrite, description=f"{card.name} {card.version}, {_SHORT}"[:79])


def write_npy(labels: Volume, target: Path, *, overwrite: bool) -> None:
    """Write labels as a numpy file, (i, j, k) uint8 in the axes of the image, without pickle."""
    with atomic_write(target, overwrite=overwrite) as file:
        np.save(file, labels.array, allow_pickle=False)


def write_slices(labels: Volume, target: Path, *, overwrite: bool) -> None:
    """Write a PNG for each slice along the last axis, all or none, into a folder: slice-0001.png and so on.

    Rows are j, columns i, and the value of a pixel is its label; a palette gives each label a colour.
    """
    existed = target.exists()
    make_private_folder(target)
    colours = label_colours().reshape(-1).tolist()
    written: list[Path] = []
    try:
        for number in range(labels.array.shape[2]):
            path = target / f"slice-{number + 1:04d}.png"
            if path.exists() and not overwrite:
                raise ExistsError(f"{path} exists already")
            write_file(path, _paletted(labels.array[:, :, number].T, colours), overwrite=overwrite)
            written.append(path)
    except (SmpError, KeyboardInterrupt):
        for path in written:
            path.unlink(missing_ok=True)
        if not existed:
            target.rmdir()
        raise


def write_seg(
    labels: Volume, card: ModelCard, target: Path, source: Path, *, overwrite: bool, identities: Sequence[Identity]
) -> None:
    """Write labels as a DICOM Segmentation tied to the images in `source`. Raises as write_label_map."""
    write_label_map(
        labels.array,
        labels.grid.affine,
        target,
        source,
        segments_of(card),
        description=NOTICE[:_LONGEST],
        overwrite=overwrite,
        identities=identities,
    )


def segments_of(card: ModelCard) -> tuple[Segment, ...]:
    """Return what the labels of a model are called in DICOM."""
    found = []
    for value, name in card.labels.items():
        if value == 0:
            continue
        codes = card.outputs.codes.get(str(value))
        category, kind = (
            (_TISSUE, _TISSUE)
            if codes is None
            else (Code(one.value, one.scheme, one.meaning) for one in (codes.category, codes.type))
        )
        label = name.replace("\\", "/")[:_LONGEST]
        found.append(Segment(value, label, category, kind, None, "AUTOMATIC", f"{card.name} {card.version}"[:_LONGEST]))
    return tuple(found)


def write_table(regions: Sequence[Region], card: ModelCard, target: Path, *, overwrite: bool) -> None:
    """Write what was found, as JSON or CSV by the name of the file.

    Raises:
        UsageError: the name ends in neither.
    """
    rows = [{"name": card.labels[region.label], **asdict(region)} for region in regions]
    writer: Callable[[list[dict[str, Any]], ModelCard], bytes]
    if target.suffix.lower() not in TABLES:
        raise UsageError(f"{target}: a table is written as JSON or CSV", hint="end the name in .json or .csv")
    writer = _json if target.suffix.lower() == ".json" else _csv
    write_file(target, writer(rows, card), overwrite=overwrite)


def refuse_existing(targets: Sequence[Path], *, overwrite: bool) -> None:
    """Raise ExistsError if one of them exists and may not be replaced: before hours of work, not after."""
    for target in targets:
        with os_errors(f"write {target}"):
            if not overwrite and target.exists():
                raise ExistsError(f"{target} exists already")


def _json(rows: list[dict[str, Any]], card: ModelCard) -> bytes:
    model = {"name": card.name, "version": card.version}
    return (json.dumps({"notice": NOTICE, "model": model, "regions": rows}, indent=2) + "\n").encode()


def _csv(rows: list[dict[str, Any]], card: ModelCard) -> bytes:
    file = io.StringIO()
    axes = {"first": "ijk", "last": "ijk", "low": "xyz", "high": "xyz", "centroid": "xyz"}
    flat = [
        {
            **{
                f"{name}_{axes[name][at]}" if name in axes else name: one
                for name, value in row.items()
                for at, one in enumerate(value if name in axes else [value])
            },
            "model": f"{card.name} {card.version}",
            "notice": NOTICE,
        }
        for row in rows
    ]
    names = list(flat[0]) if flat else ["name", "label", "voxels", "ml", "model", "notice"]
    table = csv.DictWriter(file, names, lineterminator="\n")
    table.writeheader()
    table.writerows(flat)
    return file.getvalue().encode()


def _paletted(labels: Any, colours: list[int]) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette(colours)
    said = PngInfo()
    said.add_text("Description", NOTICE)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=said)
    return file.getvalue()
