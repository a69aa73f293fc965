"""smp medical segment."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.chosen_keys import keys_at_hand
from secure_media_processor.cli.medical.named_models import package_path
from secure_media_processor.cli.options import FILE, PATH, force_option, key_option, output_options
from secure_media_processor.cli.schemas import MedicalSegmented, SegmentedRegion, UsedModel
from secure_media_processor.cli.ui import counted, current, table
from secure_media_processor.core.files import os_errors, refuse_same_file, write_file
from secure_media_processor.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.inference.packages import Package
    from secure_media_processor.medical.unet.inference import Options, Segmentation
    from secure_media_processor.medical.unet.postprocessing import Region
    from secure_media_processor.medical.volume import Volume

_SIZE = re.compile(r"(?P<number>[0-9]{1,6}(\.[0-9]{1,3})?) ?(?P<unit>[KMGT]?)(?P<binary>i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class _Tile(click.ParamType[int | None]):
    """The word "fitted", or voxels."""

    name = "fitted|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or value == "fitted" or isinstance(value, int):
            return value if isinstance(value, int) else None
        if not re.fullmatch(r"[0-9]{1,4}", str(value)):
            self.fail(f"{value!r} is neither fitted nor a number of voxels", param, ctx)
        return int(value)


class _Bytes(click.ParamType[int]):
    """A size such as 4G (10⁹ bytes) or 4GiB (2³⁰)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.fullmatch(str(value))
        if isinstance(value, int) or match is None:
            return value if isinstance(value, int) else self.fail(f"{value!r} is no size, such as 4G or 800M", param, ctx)
        base = 1024 if match["binary"] else 1000
        return int(float(match["number"]) * base ** _POWERS[match["unit"].upper()])


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.argument("target", metavar="OUT", type=FILE)
@click.option("--model", metavar="PACKAGE", type=PATH, required=True, help="Folder or .zip of the model.")
@click.option(
    "--format", "kind", type=click.Choice(["nifti", "png", "npy", "seg"]), default="nifti", show_default=True, help="Of OUT."
)
@click.option("--channel", "channels", metavar="FILE", type=PATH, multiple=True, help="Further image for a model of several.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "torch", "openvino", "onnx"]),
    default="auto",
    help="What computes.  [default: OpenVINO on a CPU]",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    help="How precisely.  [default: what is quickest here]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where.  [default: a GPU if any]")
@click.option("--tile", type=_Tile(), default="fitted", show_default=True, help="Size of windows, voxels.")
@click.option("--overlap", type=click.FloatRange(0, 0.75), default=0.25, show_default=True, help="Share common to windows.")
@click.option("--tta", is_flag=True, help="Take the mean over mirrored images: 8 times the work.")
@click.option("--max-memory", type=_Bytes(), help="Refuse to need more, such as 4G.  [default: what is free]")
@click.option("--uncertainty", metavar="FILE", type=FILE, help="Write how undecided the model is, 0 to 1, as NIfTI.")
@click.option("--statistics", metavar="FILE", type=FILE, help="Write a table of the regions, .json or .csv.")
@click.option("--preview", metavar="FILE.png", type=FILE, help="Draw the labels over three planes of the image.")
@force_option
@key_option
@output_options
def segment(
    source: Path,
    target: Path,
    *,
    model: Path,
    kind: Literal["nifti", "png", "npy", "seg"],
    channels: tuple[Path, ...],
    engine: Literal["auto", "torch", "openvino", "onnx"],
    precision: Literal["auto", "float32", "bfloat16"],
    device: Literal["auto", "cpu", "cuda"],
    tile: int | None,
    overlap: float,
    tta: bool,
    max_memory: int | None,
    uncertainty: Path | None,
    statistics: Path | None,
    preview: Path | None,
    force: bool,
    key_file: Path | None,
) -> None:
    """Segment an image with a model. Research use only.

    IN is NIfTI, or a DICOM file or folder that holds one volume; it may be encrypted by `smp encrypt`, and is then decrypted in
    memory only. OUT holds the labels on the very grid of IN: a NIfTI file, with --format npy or seg a file, with png a folder.
    What is written is not encrypted.

    \b
    Examples:
      smp medical segment t1.nii.gz labels.nii.gz --model hippocampus/
      smp medical segment study/ labels.dcm --model brain.zip --format seg --statistics regions.csv --preview look.png
    """
    ui = current()
    extra = [path for path in (uncertainty, statistics, preview) if path is not None]
    with os_errors(f"read {source}"):
        source.stat()
    with recorded("medical.segment"):
        from secure_media_processor.medical.inference.packages import read_package
        from secure_media_processor.medical.unet.inference import NOTICE, Options
        from secure_media_processor.medical.unet.inference import segment as segmented
        from secure_media_processor.medical.unet.outputs import refuse_existing
        from secure_media_processor.medical.unet.postprocessing import region_table
        from secure_media_processor.medical.volume import read_volume

        _refuse_bad_places([source, *channels, model], target, extra, kind)
        refuse_existing([*extra, *([] if kind == "png" else [target])], overwrite=force)
        keys = keys_at_hand(key_file)
        package = read_package(package_path(model))
        options = Options(
            engine=engine,
            precision=precision,
            device=device,
            tile=tile,
            overlap=overlap,
            tta=tta,
            uncertainty=uncertainty is not None,
            max_memory=max_memory,
        )
        images = [read_volume(path, identities=keys) for path in (source, *channels)]
        with ui.counting("segmenting") as progress:
            done = segmented(images, package, options, progress=progress)
        regions = region_table(done.labels.array, done.labels.grid, images[0].array)
        _write(done, package, target, source, kind=kind, keys=keys, force=force)
        _write_extra(done, package, images[0], regions, (uncertainty, statistics, preview), force=force)
    for warning in done.warnings:
        ui.warn(warning)
    ui.result(_result(done, package, options, regions, source=source, target=target), _shown(regions, package))
    ui.detail(f"{counted(done.windows, 'window')} of {' x '.join(map(str, done.window))} voxels, {done.seconds:.1f} s")
    ui.say(f"labels written to {target}")
    ui.say(NOTICE)


def _refuse_bad_places(sources: Sequence[Path], target: Path, extra: Sequence[Path], kind: str) -> None:
    """Raise UsageError if something would be written over, or under a name that does not say what it is."""
    from secure_media_processor.medical.unet.outputs import TABLES

    endings = {"nifti": (".nii", ".nii.gz"), "npy": (".npy",), "seg": (".dcm",), "png": ("",)}[kind]
    if not target.name.lower().endswith(endings):
        raise UsageError(f"{target} is no name for --format {kind}", hint=f"end it in {' or '.join(endings)}")
    places = [target, *extra]
    if len({path.absolute() for path in places}) < len(places):
        raise UsageError("two of the results would go to one file", hint="give each of them a name of its own")
    for place in places:
        for source in sources:
            refuse_same_file(source, place)
    for name in extra:
        if not name.name.lower().endswith((".nii", ".nii.gz", ".png", *TABLES)):
            raise UsageError(f"{name} does not say what it is", hint="end it in .nii.gz, .json, .csv or .png")


def _write(
    done: Segmentation, package: Package, target: Path, source: Path, *, kind: str, keys: Sequence[Identity], force: bool
) -> None:
    from secure_media_processor.medical.unet import outputs

    if kind == "nifti":
        outputs.write_nifti(done.labels, package.card, target, overwrite=force)
    elif kind == "npy":
        outputs.write_npy(done.labels, target, overwrite=force)
    elif kind == "png":
        outputs.write_slices(done.labels, target, overwrite=force)
    else:
        outputs.write_seg(done.labels, package.card, target, source, overwrite=force, identities=keys)


def _write_extra(
    done: Segmentation,
    package: Package,
    image: Volume,
    regions: Sequence[Region],
    targets: tuple[Path | None, Path | None, Path | None],
    *,
    force: bool,
) -> None:
    from secure_media_processor.medical.unet import outputs
    from secure_media_processor.medical.unet.inference import NOTICE
    from secure_media_processor.medical.unet.preview import preview
    from secure_media_processor.medical.volume import write_volume

    uncertainty, statistics, picture = targets
    if uncertainty is not None and done.uncertainty is not None:
        write_volume(done.uncertainty, uncertainty, overwrite=force, description="uncertainty 0 to 1, research use only")
    if statistics is not None:
        outputs.write_table(regions, package.card, statistics, overwrite=force)
    if picture is not None:
        line = f"{package.card.name} {package.card.version}: {NOTICE}"
        write_file(picture, preview(image, done.labels, line), overwrite=force)


def _result(
    done: Segmentation, package: Package, options: Options, regions: Sequence[Region], *, source: Path, target: Path
) -> MedicalSegmented:
    from secure_media_processor.medical.unet.inference import NOTICE

    card = package.card
    rows = [
        SegmentedRegion(one.label, card.labels[one.label], one.voxels, one.ml, one.components, list(one.centroid))
        for one in regions
    ]
    return MedicalSegmented(
        input=str(source),
        output=str(target),
        model=UsedModel(card.name, card.version, package.sha256),
        engine=done.choice.engine,
        precision=done.choice.precision,
        device=done.choice.device,
        window=list(done.window),
        windows=done.windows,
        overlap=options.overlap,
        mirrored=options.tta,
        expected_memory=done.peak_memory,
        seconds=round(done.seconds, 3),
        regions=rows,
        warnings=list(done.warnings),
        notice=NOTICE,
    )


def _shown(regions: Sequence[Region], package: Package) -> str:
    if not regions:
        return "nothing was found"
    rows = [[one.label, package.card.labels[one.label], f"{one.ml:.2f}", one.components] for one in regions]
    return table(["label", "name", "ml", "pieces"], rows, right=["ml"])
