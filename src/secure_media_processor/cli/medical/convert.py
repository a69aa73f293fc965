"""smp medical convert."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.chosen_keys import keys_at_hand
from secure_media_processor.cli.options import FILE, PATH, force_option, key_option, output_options
from secure_media_processor.cli.ui import Ui, counted, current
from secure_media_processor.core.files import os_errors
from secure_media_processor.errors import MissingError, PartialError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.convert.nifti import Engine
    from secure_media_processor.medical.convert.outcome import Conversion
    from secure_media_processor.medical.convert.segmentation import SegmentKind

# What belongs to one format only: option → format.
_BELONGS_TO = {
    "bits": "png",
    "view": "png",
    "frame": "png",
    "jobs": "png",
    "engine": "nifti",
    "gzip": "nifti",
    "images": "seg",
    "labels": "seg",
    "segmentation": "seg",
}


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.argument("target", metavar="OUT", type=FILE)
@click.option("--format", "kind", type=click.Choice(["png", "nifti", "seg"]), required=True, help="What to make.")
@click.option("--bits", type=click.Choice(["8", "16"]), default="8", help="png: 8 as shown, 16 as measured.")
@click.option("--view", type=click.IntRange(0), default=1, help="png: which VOI LUT or window; 0 for none.  [default: 1]")
@click.option("--frame", type=click.IntRange(1), help="png: only this frame.")
@click.option("--jobs", type=click.IntRange(1), help="png: how many processes.  [default: one a core]")
@click.option("--engine", type=click.Choice(["auto", "dcm2niix", "own"]), default="auto", help="nifti: what makes the volumes.")
@click.option("--gzip/--no-gzip", default=True, help="nifti: .nii.gz or .nii in a folder.")
@click.option("--source", "images", metavar="FOLDER", type=FILE, help="seg: the images to which the mask belongs.")
@click.option("--labels", metavar="FILE", type=FILE, help="seg: JSON that says what each value in the mask stands for.")
@click.option("--segmentation", type=click.Choice(["binary", "labelmap"]), default="binary", help="seg: how it is kept.")
@force_option
@key_option
@output_options
@click.pass_context
def convert(
    context: click.Context,
    source: Path,
    target: Path,
    *,
    kind: str,
    bits: str,
    view: int,
    frame: int | None,
    jobs: int | None,
    engine: Engine,
    gzip: bool,
    images: Path | None,
    labels: Path | None,
    segmentation: SegmentKind,
    force: bool,
    key_file: Path | None,
) -> None:
    """Convert DICOM to PNG or NIfTI, and masks to DICOM SEG.

    IN is a DICOM file or a folder of such; with --format seg, a mask in NIfTI. OUT is a file for one picture or volume, else a
    folder. Names in it are numbers: names of files often hold those of patients. Files that cannot be converted are listed, and
    the others go on.

    DICOM files may be encrypted by `smp encrypt`: they are decrypted in memory only. dcm2niix cannot read them, so series that
    have any are made into volumes by the own engine.

    \b
    Examples:
      smp medical convert study/ pictures --format png
      smp medical convert scan.dcm scan.png --format png --view 2
      smp medical convert study/ volumes --format nifti
      smp medical convert mask.nii.gz mask.dcm --format seg --source study/ --labels labels.json
    """
    ui = current()
    _refuse_foreign_options(context, kind)
    with os_errors(f"read {source}"):
        source.stat()
    with recorded("medical.convert"):
        keys = keys_at_hand(key_file)
        if kind == "seg":
            _convert_mask(ui, source, target, keys, images=images, labels=labels, segmentation=segmentation, force=force)
            return
        files, size = _measure(source)
        with ui.progress("converting", size) as drawn:
            progress = _in_bytes(drawn, files, size)
            if kind == "png":
                from secure_media_processor.medical.convert.folders import convert_to_png
                from secure_media_processor.medical.convert.png import PngOptions

                options = PngOptions(int(bits), view, frame)
                cores = len(os.sched_getaffinity(0))
                done = convert_to_png(
                    source, target, options, overwrite=force, jobs=jobs or cores, identities=keys, progress=progress
                )
            else:
                from secure_media_processor.medical.convert.nifti import convert_to_nifti

                done = convert_to_nifti(
                    source, target, engine=engine, gzip=gzip, overwrite=force, identities=keys, progress=progress
                )
        _report(ui, done, "picture" if kind == "png" else "volume", files)


def _refuse_foreign_options(context: click.Context, kind: str) -> None:
    """Raise UsageError if an option is given that means nothing for this format."""
    for name, belongs_to in _BELONGS_TO.items():
        if belongs_to != kind and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = "source" if name == "images" else name
            raise UsageError(f"--{option} is for --format {belongs_to}")


def _measure(source: Path) -> tuple[int, int]:
    """Return how many files there are, and their bytes."""
    if not source.is_dir():
        return 1, source.stat().st_size
    sizes = []
    for folder, _, names in os.walk(source):
        for name in names:
            try:
                sizes.append(Path(folder, name).stat().st_size)
            except OSError:  # it will be reported when it is its turn
                sizes.append(0)
    if not sizes:
        raise MissingError(f"there are no files in {source}", hint="check the path")
    return len(sizes), sum(sizes)


def _in_bytes(progress: Callable[[int], None] | None, files: int, size: int) -> Callable[[int], None] | None:
    """Return a function that takes how many files more are done, for a bar of bytes. Images of a study are of like size."""
    if progress is None:
        return None
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        progress(size * done // files)

    return add


def _convert_mask(
    ui: Ui,
    mask: Path,
    target: Path,
    keys: Sequence[Identity],
    *,
    images: Path | None,
    labels: Path | None,
    segmentation: SegmentKind,
    force: bool,
) -> None:
    if images is None or labels is None:
        raise UsageError(
            "--format seg needs --source FOLDER and --labels FILE", hint="`smp medical convert --help` has an example"
        )
    from secure_media_processor.cli.schemas import ConvertedFile, MedicalConverted
    from secure_media_processor.medical.convert.segmentation import read_labels, write_segmentation

    segments = read_labels(labels)
    write_segmentation(mask, target, images, segments, kind=segmentation, overwrite=force, identities=keys)
    written = ConvertedFile(str(target), str(mask), 1, None, [])
    ui.result(MedicalConverted([written], []), "")
    ui.say(f"{counted(len(segments), 'segment')} written to {target}")


def _report(ui: Ui, done: Conversion, thing: str, files: int) -> None:
    """Say what became of the files. Raises PartialError if some of them failed."""
    for one in done.failed:
        ui.warn(f"{one.path}: {one.reason}")
    for file in done.written:
        if file.problems:
            ui.warn(f"{file.path}: its slices are no regular grid: {'; '.join(file.problems)}")
    if ui.json:
        from secure_media_processor.cli.schemas import ConvertedFile, FailedFile, MedicalConverted

        written = [
            ConvertedFile(str(one.path), str(one.source), one.files, one.engine, list(one.problems)) for one in done.written
        ]
        ui.result(MedicalConverted(written, [FailedFile(str(one.path), one.reason) for one in done.failed]), "")
    for file in done.written:
        ui.detail(f"{file.path}: from {counted(file.files, 'file')}, the first of them {file.source}")
    ui.say(f"{counted(len(done.written), thing)} written")
    if done.failed:
        raise PartialError(f"{len(done.failed)} of {counted(files, 'file')} failed", hint="see the warnings above")
