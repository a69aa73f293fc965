"""DICOM series as NIfTI volumes: what was made of them gets its name, and what was not is made by our own geometry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_media_processor.core.files import atomic_write, move_into_place, os_errors, write_file
from secure_media_processor.errors import ExistsError, ImageError, SmpError, UsageError
from secure_media_processor.medical.convert.dcm2niix import Produced
from secure_media_processor.medical.convert.outcome import Conversion, SliceError, Written, stop_if_hopeless
from secure_media_processor.medical.convert.sidecar import sidecar_bytes
from secure_media_processor.medical.dicom.reader import (
    FolderContents,
    Instance,
    Unreadable,
    open_dicom,
    read_folder,
    read_instance,
)
from secure_media_processor.medical.dicom.series import group_into_series

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.convert.dcm2niix import Dcm2niix
    from secure_media_processor.medical.convert.nifti import Engine, Naming
    from secure_media_processor.medical.convert.outcome import Progress
    from secure_media_processor.medical.dicom.series import Series, Stack

_COPY = 4 * 1024 * 1024


def write_volumes(
    source: Path,
    naming: Naming,
    run: Dcm2niix | None,
    *,
    engine: Engine,
    identities: Sequence[Identity],
    progress: Progress | None,
) -> Conversion:
    """Write the volumes of what is in `source`, with `run`, which was started on it, or by our own geometry.

    See nifti.convert_to_nifti, of which this is the second half.
    """
    contents, produced = (_contents(source, identities), {}) if run is None else _finish_dcm2niix(run, source, identities)
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


def _finish_dcm2niix(
    run: Dcm2niix, source: Path, identities: Sequence[Identity]
) -> tuple[FolderContents, dict[str, list[Produced]]]:
    """Return what is in `source`, and what dcm2niix has made of each series, by its UID."""
    contents = _contents(source, identities)  # while it works
    run.leave_out([one.path for one in contents.unreadable])
    produced: dict[str, list[Produced]] = {}
    # Of a series with encrypted files it has got the others only, which are not the volume.
    encrypted = {instance.series_instance_uid for instance in contents.instances if instance.encrypted}
    for one in run.finish({instance.series_instance_uid for instance in contents.instances}):
        if one.series_instance_uid not in encrypted:
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


def _plan_series(series: Series, produced: list[Produced], engine: Engine) -> Sequence[Produced | tuple[Stack, ...]]:
    if produced or engine == "dcm2niix":
        # Where slices are missing dcm2niix also writes them as if they were evenly spaced. That volume is wrong.
        resampled = {one.suffix.removesuffix("_1").removesuffix("_Eq") for one in produced if "_Eq" in one.suffix}
        return [one for one in produced if one.suffix not in resampled]
    from secure_media_processor.medical.convert.volume import volumes_of  # noqa: PLC0415 - needs what dcm2niix makes do without

    return [volume for volume in volumes_of(series) if volume[0].rows is not None]


def _write_one(
    volume: Produced | tuple[Stack, ...],
    series: Series,
    naming: Naming,
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
            from secure_media_processor.medical.convert.volume import write_volume  # noqa: PLC0415 - as above

            fields = write_volume(volume, targets[0], gzip=naming.gzip, overwrite=naming.overwrite, identities=identities)
            write_file(targets[1], sidecar_bytes(fields), overwrite=naming.overwrite)
    except SliceError as error:
        done.failed.append(Unreadable(error.path, f"{error}; the volume of {files} files to which it belongs is not written"))
    except SmpError as error:
        stop_if_hopeless(error)
        what = "" if isinstance(error, ExistsError) or files == 1 else f" ({files} files)"
        done.failed.append(Unreadable(first, f"{error}{what}"))
    else:
        if isinstance(volume, Produced):
            problems = [problem.text for stack in series.stacks for problem in stack.problems]
            done.written.append(Written(targets[0], first, files, "dcm2niix", tuple(dict.fromkeys(problems))))
        else:
            done.written.append(Written(targets[0], first, files))


def _publish(volume: Produced, targets: Sequence[Path], naming: Naming) -> None:
    """Give the files of a volume their names: the volume comes last, so that what belongs to it is there when it is seen."""
    write_file(targets[1], sidecar_bytes(volume.fields), overwrite=naming.overwrite)
    for gradients, target in zip(volume.gradients, targets[2:], strict=False):
        move_into_place(gradients, target, overwrite=naming.overwrite)
    if not naming.gzip:
        move_into_place(volume.volume, targets[0], overwrite=naming.overwrite)
        return
    from secure_media_processor.medical.convert.gzipping import write_gzip  # noqa: PLC0415 - only where it is asked for

    with volume.volume.open("rb") as file, atomic_write(targets[0], overwrite=naming.overwrite) as out:
        write_gzip(iter(lambda: file.read(_COPY), b""), out)
