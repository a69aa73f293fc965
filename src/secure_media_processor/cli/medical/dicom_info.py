"""smp medical dicom-info."""

from __future__ import annotations

import stat
from itertools import groupby
from typing import TYPE_CHECKING

import click

from secure_media_processor.cli.chosen_keys import keys_at_hand
from secure_media_processor.cli.options import PATH, key_option, output_options
from secure_media_processor.cli.schemas import DicomSeries, DicomShown, DicomStack, SliceProblem, UnreadableFile
from secure_media_processor.cli.ui import counted, current, one_line, table
from secure_media_processor.core.files import os_errors
from secure_media_processor.errors import FileAccessError, MissingError, PartialError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.dicom.reader import FolderContents
    from secure_media_processor.medical.dicom.series import Series, Stack

# So many files are named in one line.
_NAMED = 5


@click.command("dicom-info")
@click.argument("path", type=PATH)
@click.option("--series", "details", is_flag=True, help="Tell more of each series.")
@click.option("--identifiers", is_flag=True, help="Show the patient, dates and UIDs, too.")
@key_option
@output_options
def dicom_info(path: Path, key_file: Path | None, *, details: bool, identifiers: bool) -> None:
    """Show what is in a DICOM file, or which series a folder holds.

    PATH is a file or a folder; files may have any name, and may be encrypted by `smp encrypt`: they are decrypted in memory
    only. Series are split into stacks, slices that can be one volume, and each stack is told to be regular or what is wrong
    with it: missing slices, uneven spacing, tilt, slices at one place, no geometry.

    Patient, dates, institution and UIDs are shown with --identifiers only, since what a terminal shows is often kept.
    Descriptions of study and series are shown, and are free text: check what you pass on. The exit code is 3 if some
    files cannot be read; they are named. What is plainly no image, a DICOMDIR, a README or a viewer on a disc, is
    counted only.

    \b
    Examples:
      smp medical dicom-info scan.dcm
      smp medical dicom-info study/ --series
    """
    from secure_media_processor.medical.dicom.series import group_into_series

    with os_errors(f"read {path}"):
        mode = path.stat().st_mode
    is_folder = stat.S_ISDIR(mode)
    if not is_folder and not stat.S_ISREG(mode):
        raise FileAccessError(f"cannot read {path}: it is a pipe or a device", hint="name a file or a folder")
    keys = keys_at_hand(key_file)
    attributes = None if is_folder else _attributes(path, keys, identifiers=identifiers)
    contents = _read(path, keys, is_folder=is_folder)
    if is_folder and not contents.instances:
        raise _nothing(path, contents)
    series = sorted(group_into_series(contents.instances), key=lambda one: (one.study_instance_uid, one.number or 0))
    ui = current()
    unreadable = [UnreadableFile(str(one.path), one.reason) for one in contents.unreadable if not (is_folder and one.beside)]
    side_files = [str(one.path) for one in contents.unreadable if is_folder and one.beside]
    shown = DicomShown(
        str(path),
        attributes,
        [_described(one, identifiers=identifiers) for one in series],
        len(contents.instances),
        contents.patients,
        unreadable,
        side_files,
    )
    for one in unreadable:
        ui.warn(f"{one.path}: {one.reason}")
    if side_files:
        ui.say(f"{counted(len(side_files), 'file')} beside the images: {_named(side_files)}")
    if contents.patients > 1:
        ui.warn(f"these are files of {contents.patients} patients")
    texts = [_listing(attributes)] if attributes is not None else []
    texts += [_details(one, of) for one, of in zip(shown.series, series, strict=True)] if details else [_overview(series)]
    ui.result(shown, "\n\n".join(text for text in texts if text))
    if unreadable and not is_folder:
        raise PartialError(f"not all of {path} could be read", hint="see the warning above")
    if unreadable:
        among = len(unreadable) + len(contents.instances)
        raise PartialError(f"{len(unreadable)} of {counted(among, 'file')} could not be read", hint="see the warnings above")


def _attributes(path: Path, keys: Sequence[Identity], *, identifiers: bool) -> dict[str, str]:
    """Return what is known of one file. Raises if it cannot be read."""
    from secure_media_processor.medical.dicom.metadata import IDENTIFYING_KEYWORDS, IMAGE_KEYWORDS, facts
    from secure_media_processor.medical.dicom.reader import Unreadable, open_dicom, read_dataset

    with os_errors(f"read {path}"):
        open_dicom(path, keys).close()  # a wrong key is an error of its own here, where there is only one file
    dataset = read_dataset(path, tags=(*IMAGE_KEYWORDS, *IDENTIFYING_KEYWORDS, "SpecificCharacterSet"), identities=keys)
    if isinstance(dataset, Unreadable) or not dataset:
        reason = dataset.reason if isinstance(dataset, Unreadable) else "there is nothing in it"
        raise FileAccessError(f"cannot read {path}: {reason}")
    return facts(dataset, identifiers=identifiers)


def _read(path: Path, keys: Sequence[Identity], *, is_folder: bool) -> FolderContents:
    from secure_media_processor.medical.dicom.reader import FolderContents, Instance, read_folder, read_instance

    if is_folder:
        return read_folder(path, identities=keys)
    found = read_instance(path, identities=keys)
    return FolderContents((found,), ()) if isinstance(found, Instance) else FolderContents((), (found,))


def _named(paths: Sequence[str]) -> str:
    return ", ".join(paths[:_NAMED]) + (f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else "")


def _nothing(path: Path, contents: FolderContents) -> MissingError:
    if not contents.unreadable:
        return MissingError(f"there is no file in {path}", hint="check the path")
    first = contents.unreadable[0]
    message = f"there is no DICOM file that can be read in {path}; of {counted(len(contents.unreadable), 'file')} the first is"
    return MissingError(f"{message} {first.path}: {first.reason}", hint="check the path")


# -------------------------------------------------------------------------------------------------------------- as JSON


def _described(series: Series, *, identifiers: bool) -> DicomSeries:
    return DicomSeries(
        series.number,
        series.modality,
        series.description,
        series.series_instance_uid if identifiers else None,
        series.study_instance_uid if identifiers else None,
        len(series.instances),
        [_stack(stack) for stack in series.stacks],
    )


def _stack(stack: Stack) -> DicomStack:
    from secure_media_processor.medical.dicom.geometry import plane_of

    spacing = stack.pixel_spacing
    return DicomStack(
        _images(stack),
        stack.rows,
        stack.columns,
        None if stack.orientation is None else plane_of(stack.orientation),
        None if spacing is None else [*spacing],
        stack.spacing,
        None if stack.affine is None else [[*row] for row in stack.affine],
        stack.regular,
        [SliceProblem(problem.kind.value, problem.text, problem.amount, [*problem.slices]) for problem in stack.problems],
        dict(stack.set_apart_by),
    )


def _images(stack: Stack) -> int:
    """Return how many images there are: an object that does not tell where its frames lie is one slice with all of them."""
    return sum(1 if len(one.instance.frames) > 1 else one.instance.number_of_frames for one in stack.slices)


# -------------------------------------------------------------------------------------------------------------- as text


def _listing(attributes: dict[str, str]) -> str:
    width = max(map(len, attributes), default=0)
    return "\n".join(f"{keyword.ljust(width)}  {one_line(value)}" for keyword, value in attributes.items())


def _overview(series: Sequence[Series]) -> str:
    """Return a line for each stack; those that differ only in time or the like share one."""
    rows = []
    for one in series:
        for (images, size, spacing, verdict), alike in groupby(one.stacks, _row):
            count = len([*alike])
            number = "" if one.number is None else str(one.number)
            shown = f"{count} x {images}" if count > 1 else str(images)
            rows.append((number, one.modality, one_line(one.description), shown, size, spacing, verdict))
    return table(("series", "modality", "description", "images", "size", "mm", "verdict"), rows, right={"series", "images"})


def _row(stack: Stack) -> tuple[int, str, str, str]:
    size = "" if stack.rows is None else f"{stack.columns} x {stack.rows}"
    spacing = " x ".join(f"{mm:.3g}" for mm in (*reversed(stack.pixel_spacing or ()), stack.spacing) if mm is not None)
    return _images(stack), size, spacing, ", ".join(problem.kind for problem in stack.problems) or "regular"


def _details(shown: DicomSeries, series: Series) -> str:
    name = " ".join(filter(None, (str(series.number or ""), series.modality, one_line(series.description))))
    lines = [f"series {name}: {counted(shown.instances, 'object')}, {counted(len(shown.stacks), 'stack')}"]
    if shown.series_instance_uid is not None:
        lines.append(f"  SeriesInstanceUID {one_line(shown.series_instance_uid)}")
    for number, (stack, of) in enumerate(zip(shown.stacks, series.stacks, strict=True), 1):
        images, size, spacing, _ = _row(of)
        parts = [counted(images, "image"), size, stack.plane or "", f"{spacing} mm" if spacing else ""]
        lines.append(f"  stack {number}: {', '.join(filter(None, parts))}: {'regular' if stack.regular else 'not regular'}")
        lines += [f"    {problem.text}" for problem in stack.problems]
        apart = ", ".join(f"{keyword} {one_line(value)}".strip() for keyword, value in stack.set_apart_by.items())
        lines += [f"    apart by {apart}"] if apart else []
    return "\n".join(lines)
