"""Converting files and folders: each file that fails is reported, and the others go on.

Names of outputs are made of numbers alone, since names of files and folders often hold those of patients. Series are numbered
in the order of their SeriesInstanceUIDs, images and volumes within them as they lie in space.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from secure_media_processor.core.files import (
    atomic_write,
    make_private_folder,
    move_into_place,
    os_errors,
    refuse_same_file,
    write_file,
)
from secure_media_processor.errors import ExistsError, ImageError, NoSpaceError, SmpError, UsageError
from secure_media_processor.medical.convert.dcm2niix import Dcm2niix, Produced, dcm2niix_path
from secure_media_processor.medical.convert.gzipping import write_gzip
from secure_media_processor.medical.convert.png import PngOptions, check_options, write_png_files
from secure_media_processor.medical.convert.sidecar import sidecar_bytes
from secure_media_processor.medical.convert.volume import SliceError, volumes_of, write_volume
from secure_media_processor.medical.dicom.reader import (
    FolderContents,
    Instance,
    Unreadable,
    open_dicom,
    read_dataset,
    read_folder,
    read_instance,
)
from secure_media_processor.medical.dicom.series import Series, group_into_series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.dicom.series import Stack

Engine: TypeAlias = Literal["auto", "dcm2niix", "own"]
"""What makes NIfTI volumes: dcm2niix, our own geometry, or dcm2niix where it is installed and makes something of a series."""
Progress: TypeAlias = "Callable[[int], None]"
"""Called with how many files are done more than at the last call."""

# Fewer files are done before another process has started.
_WORTH_PROCESSES = 64
_COPY = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Written:
    """A picture or volume that was written."""

    path: Path
    source: Path
    """The file that it was made of; for a volume, the first one."""
    files: int
    """How many files it was made of."""
    engine: Literal["dcm2niix", "own"] = "own"
    problems: tuple[str, ...] = ()
    """For volumes: why the slices are not a regular grid, in words. dcm2niix may have resampled them all the same."""


@dataclass(slots=True)
class Conversion:
    """What became of a file or a folder."""

    written: list[Written] = field(default_factory=list)
    failed: list[Unreadable] = field(default_factory=list)
    """Files that could not be used, and why. For a volume that could not be made, its first file."""


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
    _prepare_folder(source, target)
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
            _stop_if_hopeless(result)
            done.failed.append(Unreadable(task.path, str(result)))
        if progress is not None:
            progress(1)
    return done


def convert_to_nifti(
    source: Path,
    target: Path,
    *,
    engine: Engine = "auto",
    gzip: bool = True,
    overwrite: bool = False,
    identities: Sequence[Identity] = (),
    progress: Progress | None = None,
) -> Conversion:
    """Write DICOM series as NIfTI volumes, each with a JSON file (see sidecar), and .bval and .bvec where there are gradients.

    Args:
        source: A DICOM file, or a folder; files may be encrypted.
        target: A folder, which is made if it is missing; or, for what is a single volume, a name that ends in .nii or .nii.gz.
            In a folder the volumes are ``series-001.nii.gz`` and so on; further ones of a series have what dcm2niix appends,
            such as ``series-001_e2.nii.gz``, or a number.
        engine: See Engine. dcm2niix reads from the disk, so it gets no encrypted files: with "auto" a series that has any goes
            to the own engine, with "dcm2niix" it is refused.
        gzip: Whether volumes in a folder are compressed.
        overwrite: Whether files that exist are replaced.
        identities: Keys that open encrypted files, in memory only.
        progress: See Progress.

    Raises:
        MissingExtraError: dcm2niix is asked for and not installed.
        SmpError: nothing can be done at all; what is wrong with single files and series stands in the result.
    """
    naming = _naming(source, target, gzip=gzip, overwrite=overwrite)
    with _private_folder(target.parent if naming.single else target) as private:
        produced: dict[str, list[Produced]] = {}
        if engine == "own" or (engine == "auto" and dcm2niix_path() is None):
            contents = _contents(source, identities)
        else:
            contents, produced = _run_dcm2niix(source, private, identities)
        done = Conversion(failed=list(contents.unreadable))
        found = group_into_series(contents.instances)
        plans = [_plan_series(series, produced.get(series.series_instance_uid, []), engine) for series in found]
        volumes = sum(map(len, plans))
        if naming.single and volumes > 1:
            raise UsageError(f"{source} holds {volumes} volumes", hint="name a folder as output")
        for number, (series, plan) in enumerate(zip(found, plans, strict=True), start=1):
            if not plan:
                done.failed.append(_no_volume(series, engine))
            for volume in plan:
                _write_one(volume, series, naming, number, done, identities=identities)
            if progress is not None:
                progress(len(series.instances))
    return done


def _no_volume(series: Series, engine: Engine) -> Unreadable:
    """Say why there is no volume of a series."""
    encrypted = [one.path for one in series.instances if one.encrypted]
    if engine == "dcm2niix" and encrypted:
        reason = "it is encrypted, and dcm2niix can read only what lies decrypted on the disk; the own engine can read it"
        return Unreadable(encrypted[0], f"{reason} (series of {len(series.instances)} files)")
    return Unreadable(series.instances[0].path, f"no volume can be made of its series ({len(series.instances)} files)")


def _run_dcm2niix(
    source: Path, private: Path, identities: Sequence[Identity]
) -> tuple[FolderContents, dict[str, list[Produced]]]:
    """Return what is in `source`, and what dcm2niix has made of each series, by its UID."""
    with Dcm2niix(private) as run:
        run.start(_files_below(source))
        contents = _contents(source, identities)  # while it works
        run.leave_out([one.path for one in contents.unreadable])
        produced: dict[str, list[Produced]] = {}
        # Of a series with encrypted files it has got the others only, which are not the volume.
        encrypted = {instance.series_instance_uid for instance in contents.instances if instance.encrypted}
        for one in run.finish({instance.series_instance_uid for instance in contents.instances}):
            if one.series_instance_uid in encrypted:
                continue
            produced.setdefault(one.series_instance_uid, []).append(one)
    return contents, produced


def _contents(source: Path, identities: Sequence[Identity]) -> FolderContents:
    if source.is_dir():
        return read_folder(source, identities=identities)
    _try_keys(source, identities)
    found = read_instance(source, identities=identities)
    if isinstance(found, Instance):
        return FolderContents((found,), ())
    raise ImageError(f"{source}: {found.reason}")


def _try_keys(source: Path, identities: Sequence[Identity]) -> None:
    """Raise what is wrong with the keys: an error of its own where there is only one file."""
    with os_errors(f"read {source}"):
        open_dicom(source, identities).close()


def _files_below(source: Path) -> list[Path]:
    """Return the regular files, and links to such, that read_folder would read, in any order."""
    if not source.is_dir():
        return [source]
    return [path for folder, _, names in os.walk(source) for name in names if (path := Path(folder, name)).is_file()]


@contextmanager
def _private_folder(folder: Path) -> Iterator[Path]:
    """Yield a new hidden folder in `folder`, mode 0700, that is removed with all that is in it."""
    with os_errors(f"write into {folder}"):
        path = Path(tempfile.mkdtemp(prefix=".smp-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _prepare_folder(source: Path, target: Path) -> None:
    """Make the folder for outputs, unless it is in the folder of inputs, where it would become input of the next run."""
    with os_errors(f"use {target}"):
        inner, outer = target.resolve(), source.resolve()
    if inner == outer or outer in inner.parents:
        raise UsageError(f"the output would be written into {source}", hint="name a place outside of the input")
    make_private_folder(target)


def _stop_if_hopeless(error: SmpError) -> None:
    """Raise an error that would befall every other file, too."""
    if isinstance(error, NoSpaceError):
        raise error


# ------------------------------------------------------------------------------------------------------------------- PNG


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
    _try_keys(source, identities)
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


# ----------------------------------------------------------------------------------------------------------------- NIfTI


@dataclass(slots=True)
class _Naming:
    """Where volumes go."""

    target: Path
    single: bool
    gzip: bool
    overwrite: bool
    used: Counter[str] = field(default_factory=Counter)

    def stem(self, number: int, suffix: str) -> Path:
        """Return the path of a volume without .nii or .nii.gz; no two are the same."""
        if self.single:
            return self.target.with_name(self.target.name.removesuffix(".gz").removesuffix(".nii"))
        name = f"series-{number:03d}{suffix}"
        self.used[name] += 1
        return self.target / (name if self.used[name] == 1 else f"{name}-{self.used[name]}")

    def volume(self, stem: Path) -> Path:
        """Return the path of the volume itself."""
        return stem.with_name(f"{stem.name}.nii{'.gz' if self.gzip else ''}")


def _naming(source: Path, target: Path, *, gzip: bool, overwrite: bool) -> _Naming:
    """Return where volumes go, and make the folder for them."""
    single = target.name.endswith((".nii", ".nii.gz")) and not target.is_dir()
    folder = target.parent if single else target
    if source.is_dir():
        _prepare_folder(source, folder)
    elif not single:
        make_private_folder(folder)
    return _Naming(target, single=single, gzip=target.name.endswith(".gz") if single else gzip, overwrite=overwrite)


def _plan_series(series: Series, produced: list[Produced], engine: Engine) -> Sequence[Produced | tuple[Stack, ...]]:
    if produced or engine == "dcm2niix":
        # Where slices are missing dcm2niix also writes them as if they were evenly spaced. That volume is wrong.
        resampled = {one.suffix.removesuffix("_1").removesuffix("_Eq") for one in produced if "_Eq" in one.suffix}
        return [one for one in produced if one.suffix not in resampled]
    return [volume for volume in volumes_of(series) if volume[0].rows is not None]


def _write_one(
    volume: Produced | tuple[Stack, ...],
    series: Series,
    naming: _Naming,
    number: int,
    done: Conversion,
    *,
    identities: Sequence[Identity],
) -> None:
    if isinstance(volume, Produced):
        stem = naming.stem(number, volume.suffix)
        first, files = series.instances[0].path, len(series.instances)
    else:
        stem = naming.stem(number, "")
        paths = [one.path for stack in volume for one in stack.instances]
        first, files = paths[0], len(paths)
    targets = [naming.volume(stem), *(stem.with_name(f"{stem.name}{kind}") for kind in (".json", ".bval", ".bvec"))]
    try:
        if not naming.overwrite:
            for path in targets:
                if path.exists() or path.is_symlink():
                    raise ExistsError(f"{path} exists already")
        if isinstance(volume, Produced):
            _publish(volume, targets, naming)
        else:
            fields = write_volume(volume, targets[0], gzip=naming.gzip, overwrite=naming.overwrite, identities=identities)
            write_file(targets[1], sidecar_bytes(fields), overwrite=naming.overwrite)
    except SliceError as error:
        done.failed.append(Unreadable(error.path, f"{error}; the volume of {files} files to which it belongs is not written"))
    except SmpError as error:
        _stop_if_hopeless(error)
        what = "" if isinstance(error, ExistsError) or files == 1 else f" ({files} files)"
        done.failed.append(Unreadable(first, f"{error}{what}"))
    else:
        if isinstance(volume, Produced):
            problems = [problem.text for stack in series.stacks for problem in stack.problems]
            done.written.append(Written(targets[0], first, files, "dcm2niix", tuple(dict.fromkeys(problems))))
        else:
            done.written.append(Written(targets[0], first, files))


def _publish(volume: Produced, targets: Sequence[Path], naming: _Naming) -> None:
    """Give the files of a volume their names: the volume comes last, so that what belongs to it is there when it is seen."""
    write_file(targets[1], sidecar_bytes(volume.fields), overwrite=naming.overwrite)
    for gradients, target in zip(volume.gradients, targets[2:], strict=False):
        move_into_place(gradients, target, overwrite=naming.overwrite)
    if not naming.gzip:
        move_into_place(volume.volume, targets[0], overwrite=naming.overwrite)
        return
    with volume.volume.open("rb") as file, atomic_write(targets[0], overwrite=naming.overwrite) as out:
        write_gzip(iter(lambda: file.read(_COPY), b""), out)
