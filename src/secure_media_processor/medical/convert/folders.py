"""Converting folders to pictures: each file that fails is reported, and the others go on.

Names of outputs are made of numbers alone, since names of files and folders often hold those of patients. Series are numbered
in the order of their SeriesInstanceUIDs, images within them as they lie in space.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING

from secure_media_processor.core.files import make_private_folder, os_errors, refuse_same_file
from secure_media_processor.errors import ImageError, SmpError, UsageError
from secure_media_processor.medical.convert.outcome import Conversion, Written, prepare_folder, stop_if_hopeless
from secure_media_processor.medical.convert.png import PngOptions, check_options, write_png_files
from secure_media_processor.medical.dicom.reader import Unreadable, open_dicom, read_dataset, read_folder
from secure_media_processor.medical.dicom.series import group_into_series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.convert.outcome import Progress

# Fewer files are done before another process has started.
_WORTH_PROCESSES = 64


def convert_to_png(
    source: Path,
    target: Path,
    options: PngOptions,
    *,
    overwrite: bool = False,
    jobs: int = 1,
    identities: Sequence[Identity] = (),
    progress: Progress | None = None,
) -> Conversion:
    """Write DICOM images as PNG files.

    Args:
        source: A DICOM file, or a folder; files may be encrypted.
        target: For a file with one frame, a name that ends in .png; else a folder, which is made if it is missing. A folder
            becomes ``series-001/0001.png`` and so on, an image of several frames ``series-001/0001-0001.png``.
        options: How.
        overwrite: Whether files that exist are replaced.
        jobs: How many processes work.
        identities: Keys that open encrypted files, in memory only. With several jobs they must be such that can be pickled, as
            keys and keystores are.
        progress: See Progress.

    Raises:
        SmpError: nothing can be done at all; what is wrong with single files stands in the result.
    """
    check_options(options)
    if not source.is_dir():
        return _one_png(source, target, options, overwrite=overwrite, identities=identities)
    prepare_folder(source, target)
    contents = read_folder(source, identities=identities)
    done = Conversion(failed=list(contents.unreadable))
    tasks: list[_PngTask] = []
    for number, series in enumerate(group_into_series(contents.instances), start=1):
        folder = target / f"series-{number:03d}"
        ordered = list({id(one): one for stack in series.stacks for one in stack.instances}.values())
        tasks += [
            _PngTask(one.path, folder / f"{place:04d}", options, overwrite, identities)
            for place, one in enumerate(ordered, start=1)
        ]
    for folder in {task.stem.parent for task in tasks}:
        make_private_folder(folder)
    for task, result in _work_on(tasks, jobs):
        if isinstance(result, list):
            done.written += [Written(path, task.path, 1) for path in result]
        else:
            stop_if_hopeless(result)
            done.failed.append(Unreadable(task.path, str(result)))
        if progress is not None:
            progress(1)
    return done


@dataclass(frozen=True, slots=True)
class _PngTask:
    path: Path
    stem: Path
    """The path of the picture, without .png."""
    options: PngOptions
    overwrite: bool
    identities: Sequence[Identity] = field(default=(), repr=False)
    """They go to our own processes through a pipe that nobody else has, never to the disk."""


def _one_png(source: Path, target: Path, options: PngOptions, *, overwrite: bool, identities: Sequence[Identity]) -> Conversion:
    with os_errors(f"read {source}"):
        open_dicom(source, identities).close()  # wrong keys are an error of their own where there is only one file
    dataset = read_dataset(source, identities=identities)
    if isinstance(dataset, Unreadable):
        raise ImageError(f"{source}: {dataset.reason}")
    single = target.suffix.lower() == ".png" and not target.is_dir()
    if single:
        refuse_same_file(source, target)
    else:
        make_private_folder(target)

    def target_of(frame: int, frames: int) -> Path:
        if not single:
            return target / ("0001.png" if frames == 1 else f"0001-{frame:04d}.png")
        if frames > 1 and options.frame is None:
            raise UsageError(f"{source} has {frames} frames", hint="name a folder as output, or one of them with --frame")
        return target

    try:
        written = write_png_files(dataset, options, target_of, overwrite=overwrite)
    except ImageError as error:
        raise ImageError(f"{source}: {error}", hint=error.hint) from error
    return Conversion([Written(path, source, 1) for path in written])


def _png(task: _PngTask) -> list[Path] | SmpError:
    """Convert one file. Errors are returned, so that they come through from another process."""
    dataset = read_dataset(task.path, identities=task.identities)
    if isinstance(dataset, Unreadable):
        return ImageError(dataset.reason)

    def target_of(frame: int, frames: int) -> Path:
        name = task.stem.name if frames == 1 else f"{task.stem.name}-{frame:04d}"
        return task.stem.with_name(f"{name}.png")

    try:
        return write_png_files(dataset, task.options, target_of, overwrite=task.overwrite)
    except SmpError as error:
        error.__cause__ = error.__context__ = None  # what a decoder raises may not be able to travel, and may hold data
        return error


def _work_on(tasks: Sequence[_PngTask], jobs: int) -> Iterator[tuple[_PngTask, list[Path] | SmpError]]:
    """Yield the tasks with their results, in order."""
    if jobs == 1 or len(tasks) < _WORTH_PROCESSES:
        for task in tasks:
            yield task, _png(task)
        return
    done = 0
    try:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            for task, result in zip(tasks, pool.map(_png, tasks, chunksize=8), strict=True):
                yield task, result
                done += 1
    except BrokenProcessPool:
        # A decoder has crashed over one of the files. What is left goes one by one, each in a process that may die of it.
        for task in tasks[done:]:
            yield task, _png_apart(task)


def _png_apart(task: _PngTask) -> list[Path] | SmpError:
    again = replace(task, overwrite=True)  # its picture may be there from before the crash
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_png, again).result()
        except BrokenProcessPool:
            return ImageError("a decoder crashes over it")
