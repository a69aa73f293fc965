"""smp medical preprocess."""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from secure_media_processor import __version__
from secure_media_processor.cli.auditing import recorded
from secure_media_processor.cli.chosen_keys import keys_at_hand
from secure_media_processor.cli.options import FILE, PATH, dry_run_option, force_option, key_option, output_options
from secure_media_processor.cli.schemas import FailedFile, MedicalPreprocessed, PreprocessedVolume, PreprocessStep
from secure_media_processor.cli.ui import Ui, counted, current, human_size
from secure_media_processor.core.files import make_private_folder, os_errors, refuse_same_file, write_file
from secure_media_processor.errors import ExistsError, ImageError, NoSpaceError, PartialError, SmpError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from secure_media_processor.core.recipients import Identity
    from secure_media_processor.medical.preprocessing.pipeline import Preprocessed, PreprocessingSteps
    from secure_media_processor.medical.preprocessing.quality import MidPlanes
    from secure_media_processor.medical.volume import Grid

_ENCRYPTED = ".smp"
_NIFTI = (".nii", ".nii.gz")
# What says which steps are run; a pipeline file says it alone.
_STEP_OPTIONS = ("bias", "denoise", "normalize", "landmarks", "percentiles", "mask", "spacing", "orient", "clahe")
_AXES = 3


class _Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them."""

    name = "numbers"

    def __init__(self, count: int, *, repeat: bool = False) -> None:
        self._count = count
        self._repeat = repeat

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            found = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            found = ()
        if self._repeat and len(found) == 1:
            found *= self._count
        if len(found) != self._count:
            self.fail(f"{value!r} is not {self._count} numbers with commas between them", param, ctx)
        return found


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.argument("target", metavar="OUT", type=FILE)
@click.option("--bias", type=click.Choice(["none", "n4"]), default="none", help="Take away the bias field of the coils.")
@click.option(
    "--denoise",
    type=click.Choice(["none", "nlm", "anisotropic", "median"]),
    default="none",
    help="nlm: best; anisotropic: fast.",
)
@click.option(
    "--normalize",
    type=click.Choice(["none", "zscore", "minmax", "percentile", "nyul"]),
    default="none",
    help="Make intensities comparable.",
)
@click.option("--landmarks", metavar="FILE", type=FILE, help="For --normalize nyul: JSON of the standard scale.")
@click.option("--percentiles", metavar="LOW,HIGH", type=_Numbers(2), help="For --normalize percentile.  [default: 0.5,99.5]")
@click.option("--mask", is_flag=True, help="Normalise inside head or body; what is outside becomes 0.")
@click.option("--spacing", metavar="I,J,K", type=_Numbers(_AXES, repeat=True), help="mm between voxels of the result.")
@click.option("--orient", metavar="AXES", help="How the axes of the result run, such as RAS.")
@click.option("--clahe", is_flag=True, help="Raise local contrast, for people who look.")
@click.option("--pipeline", metavar="FILE", type=FILE, help="JSON of the steps, instead of the options above.")
@click.option("--save-pipeline", metavar="FILE", type=FILE, help="Write the steps as JSON, for --pipeline.")
@click.option("--qc", metavar="FILE.png", type=FILE, help="Draw middle planes before and after.")
@click.option("--bias-field", metavar="FILE", type=FILE, help="Write the field that n4 found, as NIfTI.")
@click.option("--log", metavar="FILE", type=FILE, help="Write what each step did, as JSON.")
@dry_run_option
@force_option
@key_option
@output_options
@click.pass_context
def preprocess(
    context: click.Context,
    /,
    source: Path,
    target: Path,
    *,
    pipeline: Path | None,
    save_pipeline: Path | None,
    qc: Path | None,
    bias_field: Path | None,
    log: Path | None,
    dry_run: bool,
    force: bool,
    key_file: Path | None,
    **options: Any,
) -> None:
    """Prepare MR volumes: bias field, noise, intensities, spacing.

    IN is a NIfTI file, a DICOM file or folder that holds one volume, or a folder of NIfTI files; OUT is a NIfTI file, or a
    folder for a folder of NIfTI files, whose names are kept: .smp is taken off. Steps are run in this order: orient, bias,
    denoise, mask, clahe, spacing, normalize. The result lies on the grid of the input unless --spacing or --orient is given,
    and its values are float32.

    IN may be encrypted by `smp encrypt`: it is decrypted in memory only. What is written is not encrypted.

    \b
    Examples:
      smp medical preprocess t1.nii.gz ready.nii.gz --bias n4 --denoise nlm --normalize zscore --mask
      smp medical preprocess study/ ready.nii.gz --orient RAS --spacing 1,1,1 --qc look.png --log run.json
      smp medical preprocess volumes/ ready/ --pipeline steps.json
    """
    ui = current()
    with os_errors(f"read {source}"):
        source.stat()
    with recorded("medical.preprocess"):
        steps = _steps(context, pipeline, options)
        if not steps.names:
            hint = "for example --bias n4 --denoise nlm --normalize zscore --mask"
            raise UsageError("no step is asked for", hint=hint)
        if bias_field is not None and steps.bias == "none":
            raise UsageError("--bias-field needs --bias n4")
        keys = keys_at_hand(key_file)
        side = _SideFiles(qc, bias_field)
        jobs, many = _jobs(source, target, side)
        extra = [path for path in (save_pipeline, log) if path is not None]
        _refuse_bad_places(source, jobs, [*side.paths, *extra], force=force or dry_run)
        run = _Run(ui, steps, keys, side, force=force)
        done = run.rehearse(jobs) if dry_run else run.all(jobs, many=many, folder=target if many else None)
        if not dry_run:
            _write_extra(done, steps, log, save_pipeline, force=force)
    _report(ui, done, len(jobs))


def _steps(context: click.Context, pipeline: Path | None, options: dict[str, Any]) -> PreprocessingSteps:
    from secure_media_processor.medical.preprocessing.normalize import read_landmarks
    from secure_media_processor.medical.preprocessing.pipeline import PreprocessingSteps, read_steps

    given = [name for name in _STEP_OPTIONS if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if pipeline is not None:
        if given:
            raise UsageError(f"--pipeline says which steps are run, and so does --{given[0]}", hint="take one of the two")
        return read_steps(pipeline)
    if "percentiles" in given and options["normalize"] != "percentile":
        raise UsageError("--percentiles is for --normalize percentile")
    low, high = options["percentiles"] or (0.5, 99.5)
    landmarks = options["landmarks"]
    return PreprocessingSteps(
        orient=options["orient"] and options["orient"].upper(),
        bias=options["bias"],
        denoise=options["denoise"],
        mask=options["mask"],
        clahe=options["clahe"],
        spacing=options["spacing"],
        normalize=options["normalize"],
        low=low,
        high=high,
        landmarks=None if landmarks is None else read_landmarks(landmarks),
    )


# ------------------------------------------------------------------------------------------------------------------ files


@dataclass(frozen=True, slots=True)
class _Job:
    """A volume to be preprocessed."""

    source: Path
    target: Path


@dataclass(frozen=True, slots=True)
class _SideFiles:
    """What else is written for a single volume."""

    picture: Path | None
    field: Path | None

    @property
    def paths(self) -> list[Path]:
        """Those that are wanted."""
        return [path for path in (self.picture, self.field) if path is not None]


def _jobs(source: Path, target: Path, side: _SideFiles) -> tuple[list[_Job], bool]:
    """Return what there is to do, and whether it is a folder of volumes."""
    from secure_media_processor.medical.volume import refuse_other_names

    with os_errors(f"read {source}"):
        entries = sorted(source.iterdir()) if source.is_dir() else []
        volumes = [path for path in entries if _plain_name(path).lower().endswith(_NIFTI) and path.is_file()]
    if not volumes:
        refuse_other_names(target)
        if side.field is not None:
            refuse_other_names(side.field)
        return [_Job(source, target)], False
    if side.paths:
        raise UsageError("--qc and --bias-field are for a single volume, and IN is a folder of them")
    jobs = [_Job(path, target / _plain_name(path)) for path in volumes]
    names = [job.target.name for job in jobs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two files in {source} would both become {twice}", hint="take one of them away")
    return jobs, True


def _plain_name(path: Path) -> str:
    return path.name[: -len(_ENCRYPTED)] if path.name.lower().endswith(_ENCRYPTED) else path.name


def _refuse_bad_places(source: Path, jobs: Sequence[_Job], more: Sequence[Path], *, force: bool) -> None:
    """Refuse outputs that are inputs, lie among them, or are named twice; and for a single volume what exists."""
    targets = [*(job.target for job in jobs), *more]
    with os_errors("use the names of the outputs"):
        places = [path.resolve() for path in targets]
        inner = source.resolve()
        if source.is_dir() and any(inner in place.parents for place in places):
            raise UsageError(f"the output would be written into {source}", hint="name a place outside of the input")
    if len(set(places)) < len(places):
        raise UsageError("two outputs have one name")
    for job in jobs:
        for path in targets:
            if not job.source.is_dir() and path.exists():
                refuse_same_file(job.source, path)
    if not force:
        for path in more if len(jobs) > 1 else targets:
            if path.exists() or path.is_symlink():
                raise ExistsError(f"{path} exists already")


def _write_extra(
    done: MedicalPreprocessed, steps: PreprocessingSteps, log: Path | None, pipeline: Path | None, *, force: bool
) -> None:
    from secure_media_processor.medical.preprocessing.pipeline import write_steps

    if log is not None:
        text = json.dumps({"schema": done.schema, **asdict(done)}, indent=1) + "\n"
        write_file(log, text.encode("utf-8", "surrogateescape"), overwrite=force)
    if pipeline is not None:
        write_steps(steps, pipeline, overwrite=force)


# --------------------------------------------------------------------------------------------------------------- the work


@dataclass(frozen=True, slots=True)
class _Read:
    """What is kept of a volume as it was."""

    grid: Grid
    notes: tuple[str, ...]
    planes: MidPlanes | None
    """If a picture is wanted."""


class _Run:
    """Preprocessing volumes one by one."""

    def __init__(self, ui: Ui, steps: PreprocessingSteps, keys: Sequence[Identity], side: _SideFiles, *, force: bool) -> None:
        self._ui = ui
        self._steps = steps
        self._keys = keys
        self._side = side
        self._force = force

    def rehearse(self, jobs: Sequence[_Job]) -> MedicalPreprocessed:
        """Return what would be done, by the headers alone."""
        from secure_media_processor.medical.volume import read_grid

        def look(job: _Job) -> PreprocessedVolume:
            grid = read_grid(job.source, identities=self._keys)
            return self._result(job, grid, self._memory(grid), (), [])

        return self._each(jobs, look, dry_run=True, many=len(jobs) > 1)

    def all(self, jobs: Sequence[_Job], *, many: bool, folder: Path | None) -> MedicalPreprocessed:
        """Preprocess and write all volumes; of several, one that fails does not hold up the others."""
        if folder is not None:
            make_private_folder(folder)
        return self._each(jobs, self._one, dry_run=False, many=many)

    def _each(
        self, jobs: Sequence[_Job], do: Callable[[_Job], PreprocessedVolume], *, dry_run: bool, many: bool
    ) -> MedicalPreprocessed:
        written: list[PreprocessedVolume] = []
        failed: list[FailedFile] = []
        with self._ui.counting("preprocessing") as progress:
            for number, job in enumerate(jobs, start=1):
                try:
                    written.append(do(job))
                except NoSpaceError:
                    raise
                except SmpError as error:
                    if not many:
                        raise
                    failed.append(FailedFile(str(job.source), str(error)))
                if progress is not None:
                    progress(number, len(jobs))
        return MedicalPreprocessed(__version__, dry_run, list(self._steps.names), written, failed)

    def _one(self, job: _Job) -> PreprocessedVolume:
        from secure_media_processor.medical.volume import write_volume

        if not self._force and job.target.exists():
            raise ExistsError(f"{job.target} exists already")
        try:
            read, done = self._work_on(job)
        except MemoryError as error:
            raise self._too_little_memory(job) from error
        with _all_or_none() as kept:
            self._write_side(done, read.planes, kept)
            write_volume(done.volume, job.target, overwrite=self._force)
        runs = [PreprocessStep(r.name, r.parameters, r.cpu_seconds, r.least, r.greatest, r.mean) for r in done.runs]
        return self._result(job, done.volume.grid, self._memory(read.grid), read.notes, runs)

    def _work_on(self, job: _Job) -> tuple[_Read, Preprocessed]:
        from secure_media_processor.medical.preprocessing.pipeline import preprocess as run_steps
        from secure_media_processor.medical.preprocessing.quality import mid_planes
        from secure_media_processor.medical.volume import read_volume

        # Nobody keeps the volume as it was while the steps run: that would be memory for nothing.
        held = [read_volume(job.source, identities=self._keys)]
        read = _Read(held[0].grid, held[0].notes, None if self._side.picture is None else mid_planes(held[0]))
        for note in read.notes:
            self._ui.warn(f"{job.source}: {note}")
        try:
            return read, run_steps(held.pop(), self._steps, progress=lambda name: self._ui.detail(f"{job.source}: {name}"))
        except ImageError as error:
            raise ImageError(f"{job.source}: {error}", hint=error.hint) from error

    def _too_little_memory(self, job: _Job) -> ImageError:
        from secure_media_processor.medical.volume import read_grid

        needed = human_size(self._memory(read_grid(job.source, identities=self._keys)))
        hint = "use a machine with more of it, or a coarser --spacing if that is finer than the input's"
        return ImageError(f"{job.source}: there is not enough memory; about {needed} are needed", hint=hint)

    def _write_side(self, done: Preprocessed, before: MidPlanes | None, kept: list[Path]) -> None:
        from secure_media_processor.medical.preprocessing.quality import mid_planes, picture
        from secure_media_processor.medical.volume import write_volume

        if self._side.picture is not None and before is not None:
            write_file(self._side.picture, picture(before, mid_planes(done.volume)), overwrite=self._force)
            kept.append(self._side.picture)
        if self._side.field is not None and done.bias is not None:
            write_volume(done.bias.volume(), self._side.field, overwrite=self._force)
            kept.append(self._side.field)

    def _memory(self, grid: Grid) -> int:
        from secure_media_processor.medical.preprocessing.pipeline import memory_needed

        return memory_needed(grid, self._steps)

    @staticmethod
    def _result(job: _Job, grid: Grid, memory: int, notes: Sequence[str], steps: list[PreprocessStep]) -> PreprocessedVolume:
        shape, spacing = list(grid.shape), list(grid.spacing)
        return PreprocessedVolume(
            str(job.target), str(job.source), shape, spacing, grid.orientation, memory, list(notes), steps
        )


@contextmanager
def _all_or_none() -> Iterator[list[Path]]:
    """Yield a list of files that are removed again if the block fails."""
    written: list[Path] = []
    try:
        yield written
    except (SmpError, KeyboardInterrupt):
        for path in written:
            with suppress(FileNotFoundError):
                path.unlink()
        raise


def _report(ui: Ui, done: MedicalPreprocessed, count: int) -> None:
    """Say what became of the volumes. Raises PartialError if some of them failed."""
    for bad in done.failed:
        ui.warn(bad.reason if bad.path in bad.reason else f"{bad.path}: {bad.reason}")
    text = ""
    if done.dry_run:
        lines = [f"steps: {', '.join(done.steps)}"]
        lines += [
            f"{one.source} -> {one.path}: {' x '.join(map(str, one.shape))} voxels, about {human_size(one.memory)} of memory"
            for one in done.written
        ]
        text = "\n".join(lines)
    ui.result(done, text)
    for one in done.written:
        for step in one.steps:
            ui.detail(
                f"{one.path}: {step.name}: {step.cpu_seconds:.2f} s, {step.least:g} to {step.greatest:g}, mean {step.mean:g}"
            )
    ui.say(f"{counted(len(done.written), 'volume')} {'would be written' if done.dry_run else 'written'}")
    if done.failed:
        raise PartialError(f"{len(done.failed)} of {counted(count, 'volume')} failed", hint="see the warnings above")
