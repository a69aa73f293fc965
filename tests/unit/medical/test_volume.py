"""Volumes: what is read and refused, turned and brought back, resampled in the world and not in the file."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file

from conftest import left_in
from secure_media_processor.core.encryption import encrypt_file
from secure_media_processor.core.keys import SymmetricKey
from secure_media_processor.errors import (
    ExistsError,
    ImageError,
    KeyMissingError,
    MissingError,
    SmpError,
    UsageError,
    WrongKeyError,
)
from secure_media_processor.medical.nifti import files_by_name
from secure_media_processor.medical.volume import (
    MAX_VOXELS,
    ORIENTATIONS,
    Grid,
    Volume,
    read_grid,
    read_volume,
    reoriented,
    resampled,
    same_grid,
    write_volume,
)
from unit.medical.synthetic import CANARY, series
from written_paths import written_paths

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
EXAMPLES = settings(max_examples=20)


def oblique(spacing: tuple[float, ...] = (1, 2, 3), *, seed: int = 0, place: tuple[float, ...] = (5, -6, 7)) -> np.ndarray:
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing, place
    return affine


def noise(shape: tuple[int, int, int] = (9, 11, 7), affine: np.ndarray | None = None, seed: int = 0) -> Volume:
    array = np.asfortranarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    return Volume(array, Grid(shape, oblique() if affine is None else affine))


def ball(grid: Grid, radius: float, centre: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    """Return a smooth-edged ball as labels: 1 inside, 2 in its upper half."""
    index = np.indices(grid.shape).reshape(3, -1)
    places = grid.affine[:3, :3] @ index + grid.affine[:3, 3:] - np.array(centre)[:, None]
    inside = (places**2).sum(axis=0) < radius**2
    return (inside * (1 + (places[2] > 0))).astype(np.uint8).reshape(grid.shape)


def centred(shape: tuple[int, int, int], affine: np.ndarray) -> Grid:
    moved = affine.copy()
    moved[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, moved)


# ----------------------------------------------------------------------------------------------------------------- NIfTI


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<u2", "<i4", "<f4", "<f8", "<i8", "i1", "<u4"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_is_written_and_read_as_nibabel_does(work: Path, dtype: str, suffix: str) -> None:
    array = np.random.default_rng(1).integers(0, 100, (5, 4, 3)).astype(dtype)
    volume = Volume(array, Grid(array.shape, oblique()))
    path = Path(f"v{suffix}")
    write_volume(volume, path, overwrite=False, description="made by a test")
    theirs = nibabel.load(path)
    assert (theirs.get_fdata() == array).all()
    assert np.allclose(theirs.affine, volume.grid.affine, atol=1e-5)
    assert (int(theirs.header["qform_code"]), int(theirs.header["sform_code"])) == (1, 1)
    ours = read_volume(path)
    assert ours.array.dtype == np.float32
    assert ours.array.flags.f_contiguous
    assert (ours.array == array).all()
    assert same_grid(ours.grid, volume.grid)
    assert same_grid(read_grid(path), volume.grid)
    assert ours.notes == ()
    with pytest.raises(ExistsError):
        write_volume(volume, path, overwrite=False)


def test_labels_stay_whole(work: Path) -> None:
    array = np.random.default_rng(1).integers(0, 300, (5, 4, 3))
    nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), np.eye(4)), "labels.nii")
    assert read_volume(Path("labels.nii"), dtype=np.int32).array.dtype == np.int32
    with pytest.raises(ImageError, match="do not fit into uint8"):
        read_volume(Path("labels.nii"), dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(array.astype(np.float32) + 0.5, np.eye(4)), "parts.nii")
    with pytest.raises(ImageError, match="not whole numbers"):
        read_volume(Path("parts.nii"), dtype=np.int32)
    write_volume(Volume(array > 100, Grid(array.shape, np.eye(4))), Path("mask.nii"), overwrite=False)
    assert nibabel.load("mask.nii").get_data_dtype() == np.uint8


def header(**fields: object) -> nibabel.Nifti1Header:
    found = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), oblique()).header.copy()
    for name, value in fields.items():
        found[name] = value
    return found


def save_raw(path: str, found: nibabel.Nifti1Header, data: bytes = np.arange(24, dtype=np.int16).tobytes()) -> Path:
    found["vox_offset"], found["magic"] = 352, b"n+1"
    block = found.binaryblock + bytes(4) + data
    Path(path).write_bytes(gzip.compress(block) if path.endswith(".gz") else block)
    return Path(path)


_found = header()
_found["vox_offset"], _found["magic"] = 352, b"n+1"
WHOLE = _found.binaryblock + bytes(4) + np.arange(24, dtype=np.int16).tobytes()


def test_slope_and_endianness_count(work: Path) -> None:
    path = save_raw("scaled.nii", header(scl_slope=0.5, scl_inter=-3))
    assert (read_volume(path).array.ravel(order="F") == np.arange(24) * 0.5 - 3).all()
    big = header(scl_slope=2, scl_inter=0).as_byteswapped(">")
    path = save_raw("big.nii.gz", big, np.arange(24, dtype=">i2").tobytes())
    assert (read_volume(path).array.ravel(order="F") == np.arange(24) * 2).all()
    second = nibabel.Nifti2Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), oblique())
    nibabel.save(second, "two.nii.gz")
    assert (read_volume(Path("two.nii.gz")).array == second.get_fdata()).all()


def test_sform_comes_first_then_qform_then_spacing_alone(work: Path) -> None:
    found = header()
    found.set_sform(oblique(seed=1), 4)
    found.set_qform(oblique(seed=2), 1)
    read = read_volume(save_raw("both.nii", found))
    assert np.allclose(read.grid.affine, oblique(seed=1), atol=1e-5)
    assert read.grid.code == 4
    found["sform_code"] = 0
    assert np.allclose(read_volume(save_raw("q.nii", found)).grid.affine, oblique(seed=2), atol=1e-4)
    found["qform_code"] = 0
    read = read_volume(save_raw("none.nii", found))
    assert np.allclose(read.grid.affine, np.diag((1, 2, 3, 1)))
    assert "does not say where its voxels lie" in read.notes[0]
    write_volume(read, Path("again.nii"), overwrite=False)
    assert int(nibabel.load("again.nii").header["sform_code"]) == 2
    found.set_sform(np.zeros((4, 4)), 1)
    read = read_volume(save_raw("zero.nii", found))
    assert "sform does not lead" in read.notes[0]
    metres = header(xyzt_units=1)
    metres.set_sform(np.diag((0.001, 0.002, 0.003, 1)), 1)
    assert np.allclose(read_volume(save_raw("metres.nii", metres)).grid.spacing, (1, 2, 3))


def test_a_slice_and_axes_of_length_one(work: Path) -> None:
    flat = header()
    flat.set_data_shape((6, 4))
    assert read_volume(save_raw("flat.nii", flat)).grid.shape == (6, 4, 1)
    long = header()
    long.set_data_shape((2, 3, 4, 1))
    assert read_volume(save_raw("long.nii", long)).grid.shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("four.nii", {"dim": [4, 2, 3, 2, 2, 1, 1, 1]}, "not one volume: its shape is 2 by 3 by 2 by 2"),
        ("none.nii", {"dim": [3, 2, 0, 4, 1, 1, 1, 1]}, "not one volume"),
        ("huge.nii.gz", {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "more than what is read"),
        ("bomb.nii.gz", {"dim": [3, 1024, 1024, 1024, 1, 1, 1, 1]}, "cannot hold as many voxels"),
        ("short.nii", {"dim": [3, 2, 3, 5, 1, 1, 1, 1]}, "cannot hold as many voxels"),
        ("cut.nii.gz", {"dim": [3, 2, 3, 50, 1, 1, 1, 1]}, "cut short"),
        ("colours.nii", {"datatype": 128}, "not of a type of real numbers"),
        ("complex.nii", {"datatype": 32}, "not of a type of real numbers"),
        ("unknown.nii", {"datatype": 7}, "not of a type of real numbers"),
        ("inter.nii", {"scl_slope": 1, "scl_inter": np.inf}, "damaged NIfTI"),
        ("sides.nii", {"pixdim": [1, 0, 1, 1, 1, 1, 1, 1], "sform_code": 0, "qform_code": 0}, "nor how large"),
    ],
)
def test_what_is_refused(work: Path, name: str, fields: dict[str, object], reason: str) -> None:
    path = save_raw(name, header(**fields))
    with pytest.raises(ImageError, match=reason):
        read_volume(path)


def test_pairs_damage_and_other_files(work: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(np.zeros((2, 3, 4), np.int16), np.eye(4)), "pair.hdr")
    with pytest.raises(ImageError, match="pair of files"):
        read_volume(Path("pair.hdr"))
    save_raw("good.nii.gz", header())
    data = Path("good.nii.gz").read_bytes()
    Path("damaged.nii.gz").write_bytes(data[:-6] + bytes(2) + data[-4:])
    with pytest.raises(ImageError, match="damaged"):
        read_volume(Path("damaged.nii.gz"))
    Path("text.nii").write_text("hello")
    with pytest.raises(ImageError, match="neither NIfTI nor DICOM"):
        read_volume(Path("text.nii"))
    with pytest.raises(MissingError):
        read_volume(Path("gone.nii"))
    with pytest.raises(UsageError, match="written as NIfTI"):
        write_volume(noise(), Path("v.mha"), overwrite=False)


@settings(max_examples=300)
@given(
    packed=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=4),
    end=st.none() | st.integers(0, 399),
)
def test_any_damage_is_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, *, packed: bool, changes: list[tuple[int, int]], end: int | None
) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.nii"
    path.write_bytes(gzip.compress(data[:end]) if packed else data[:end])
    try:
        found = read_volume(path)
    except SmpError as error:
        assert str(path) in str(error)  # noqa: PT017 - no error is as good
    else:
        assert np.isfinite(found.array).all()
        assert found.grid.size <= 48


def test_values_that_are_no_numbers_are_counted(work: Path) -> None:
    array = np.ones((4, 4, 4), np.float64)
    array[0, 0, :2], array[1, 1, 1], array[2, 2, 2] = np.nan, np.inf, 1e300
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), "nan.nii")
    with pytest.raises(ImageError, match="4 of its 64 voxels are no numbers"):
        read_volume(Path("nan.nii"))
    with pytest.raises(ImageError, match="3 of its 64"):
        read_volume(Path("nan.nii"), dtype=np.float64)


def test_a_sheared_affine_keeps_its_sform(work: Path) -> None:
    sheared = np.diag((1.0, 1.0, 2.0, 1.0))
    sheared[0, 2] = 1
    volume = noise((40, 40, 40), sheared)
    write_volume(volume, Path("sheared.nii"), overwrite=False)
    found = nibabel.load("sheared.nii")
    assert (int(found.header["qform_code"]), int(found.header["sform_code"])) == (0, 1)
    assert same_grid(read_grid(Path("sheared.nii")), volume.grid)


# ----------------------------------------------------------------------------------------------------- DICOM, encryption


def test_a_dicom_series_as_convert_makes_it(work: Path, smp: object) -> None:
    paths = series("in", (0.8, 0.6, 0.0, -0.36, 0.48, 0.8), slopes=(1.0, 2.0))
    Path("in/notes.txt").write_text("not DICOM")
    read = read_volume(Path("in"))
    assert smp("medical", "convert", "in", "out.nii", "--format", "nifti", "--engine", "own").code == 3
    other = read_volume(Path("out.nii"))
    assert (read.array == other.array).all()
    assert same_grid(read.grid, other.grid)
    assert read.frame_of_reference_uid == str(dcmread(paths[0]).FrameOfReferenceUID)
    assert read.modality == "MR"
    assert same_grid(read_grid(Path("in")), read.grid)
    single = read_volume(paths[2])
    assert single.grid.shape == (9, 7, 1)


def test_what_is_no_single_regular_volume(work: Path) -> None:
    paths = series("in", leave_out=(2,))
    with pytest.raises(ImageError, match="1 slice is missing"):
        read_volume(Path("in"))
    series("two/a")
    series("two/b", seed=2)
    with pytest.raises(ImageError, match="2 volumes"):
        read_volume(Path("two"))
    Path("empty").mkdir()
    with pytest.raises(ImageError, match="no DICOM images"):
        read_volume(Path("empty"))
    last = max(paths, key=lambda path: dcmread(path).ImagePositionPatient[2])
    last.write_bytes(last.read_bytes()[:300])
    with pytest.raises(ImageError, match=last.name):
        read_volume(Path("in"))


def test_what_may_lie_beside_slices(work: Path) -> None:
    series("in")
    disc = Path(str(get_testdata_file("MR_small.dcm", download=False))).parent / "dicomdirtests" / "DICOMDIR"
    shutil.copy(disc, "in/DICOMDIR")
    for name in ("README", "viewer.exe", "sidecar.json", "labels.nii"):
        Path("in", name).write_bytes(b"not DICOM" * 100)
    Path("in/thumbs.db").touch()
    grid = read_volume(Path("in")).grid
    assert grid.shape == (9, 7, 6)
    assert same_grid(read_grid(Path("in")), grid)


@pytest.mark.parametrize("content", [b"", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM garbage"])
def test_what_may_be_a_lost_slice_is_not_passed_over(work: Path, content: bytes) -> None:
    series("in")
    Path("in/0007").write_bytes(content)
    with pytest.raises(ImageError, match="0007"):
        read_volume(Path("in"))


def test_a_folder_that_is_not_looked_into_may_hold_slices(work: Path) -> None:
    series("in")
    series("elsewhere")
    Path("in/more").symlink_to(Path("elsewhere").resolve())
    with pytest.raises(ImageError, match="link to a folder"):
        read_volume(Path("in"))


def test_nifti_files_of_a_folder_by_name(work: Path) -> None:
    for name in ("b.nii.gz", "a.nii", "c.nii.gz.smp", ".hidden.nii", "notes.txt"):
        Path(name).touch()
    Path("folder.nii").mkdir()
    assert {name: path.name for name, path in files_by_name(work).items()} == {
        "a": "a.nii",
        "b": "b.nii.gz",
        "c": "c.nii.gz.smp",
    }
    Path("a.nii.gz").touch()
    with pytest.raises(UsageError, match="one name"):
        files_by_name(work)
    with pytest.raises(MissingError, match="no NIfTI file"):
        files_by_name(work / "folder.nii")
    with pytest.raises(MissingError):
        files_by_name(work / "absent")


def test_encrypted_volumes_are_read_in_memory(work: Path, key: SymmetricKey, tmp_path_factory: pytest.TempPathFactory) -> None:
    apart = tmp_path_factory.mktemp("apart")
    volume = noise()
    write_volume(volume, apart / "v.nii.gz", overwrite=False)
    encrypt_file(apart / "v.nii.gz", "v.smp", [key])
    Path("in").mkdir()
    for path in series(apart / "in"):
        encrypt_file(path, f"in/{path.name}.smp", [key])
    with written_paths() as paths:
        assert (read_volume(Path("v.smp"), identities=[key]).array == volume.array).all()
        assert (read_volume(Path("in"), identities=[key]).array == read_volume(apart / "in").array).all()
    assert not paths
    assert not [p for p in work.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]
    for path in (Path("v.smp"), Path("in")):
        with pytest.raises(KeyMissingError):
            read_volume(path)
        with pytest.raises(WrongKeyError):
            read_volume(path, identities=[SymmetricKey.generate()])
    assert "v.smp" in left_in(work)


# -------------------------------------------------------------------------------------------------------------- geometry


def test_what_is_no_grid() -> None:
    with pytest.raises(ImageError):
        Grid((3, 3, 3), np.zeros((4, 4)))
    with pytest.raises(ImageError):
        Grid((3, 3, 0), np.eye(4))
    with pytest.raises(ImageError):
        Grid((MAX_VOXELS, 2, 2), np.eye(4))
    with pytest.raises(ImageError):
        Volume(np.zeros((2, 2, 2)), Grid((3, 3, 3), np.eye(4)))
    with pytest.raises(ValueError, match="read-only"):
        Grid((3, 3, 3), np.eye(4)).affine[0, 0] = 2


def test_a_new_spacing_keeps_the_field_of_view() -> None:
    grid = Grid((100, 81, 30), oblique((1, 1.25, 3)))
    new = grid.with_spacing((2, 1, 1))
    assert new.shape == (50, 101, 90)
    assert np.allclose(new.spacing, (2, 1, 1))
    assert new.orientation == grid.orientation
    for end in (0.0, 1.0):  # the outer faces, to half a voxel
        old_face = grid.affine @ [*(end * np.array(grid.shape) - 0.5), 1]
        new_face = new.affine @ [*(end * np.array(new.shape) - 0.5), 1]
        assert np.abs(old_face - new_face).max() < 0.5
    with pytest.raises(UsageError):
        grid.with_spacing((0, 1, 1))
    with pytest.raises(ImageError, match="too many voxels"):
        grid.with_spacing((1e-3, 1, 1))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("affine", [np.diag((-1.0, 2, 3, 1)), oblique(), oblique(seed=3)], ids=["straight", "a", "b"])
def test_turning_there_and_back_is_exact(orientation: str, affine: np.ndarray) -> None:
    volume = noise(affine=affine)
    turned = reoriented(volume, orientation)
    assert turned.grid.orientation == orientation
    assert turned.array.flags.f_contiguous
    again = reoriented(turned, volume.grid.orientation)
    assert again.array.tobytes() == volume.array.tobytes()
    assert np.abs(again.grid.affine - volume.grid.affine).max() < 1e-9
    # Each value stays where it was in the world.
    back = np.linalg.inv(turned.grid.affine) @ volume.grid.affine
    for voxel in ((0, 0, 0), (8, 0, 3), (2, 10, 6)):
        i, j, k = np.rint(back @ [*voxel, 1])[:3].astype(int)
        assert turned.array[i, j, k] == volume.array[voxel]


def test_turning_refuses_what_is_no_orientation() -> None:
    for name in ("RAR", "RA", "ras", "XYZ"):
        with pytest.raises(UsageError, match="no orientation"):
            reoriented(noise(), name)


@EXAMPLES
@given(
    stored=st.sampled_from(ORIENTATIONS),
    wanted=st.sampled_from(ORIENTATIONS),
    interpolation=st.sampled_from(["nearest", "linear", "cubic"]),
    spacing=st.tuples(*[st.sampled_from([0.5, 0.9, 1.0, 2.0, 3.3])] * 3),
    seed=st.integers(0, 5),
)
def test_the_order_of_storage_does_not_matter(stored: str, wanted: str, interpolation: str, spacing: tuple, seed: int) -> None:
    volume = noise(affine=oblique(seed=seed))
    grid = volume.grid.with_spacing(spacing)
    expected = resampled(volume, grid, interpolation=interpolation).array
    turned = resampled(reoriented(volume, stored), grid, interpolation=interpolation).array
    assert np.abs(turned - expected).max() < 1e-5
    other = reoriented(Volume(np.zeros(grid.shape), grid), wanted).grid
    back = reoriented(resampled(volume, other, interpolation=interpolation), grid.orientation)
    assert np.abs(back.array - expected).max() < 1e-5


@EXAMPLES
@given(seed=st.integers(0, 50), spacing=st.tuples(*[st.floats(0.4, 1.0)] * 3), turned=st.booleans())
def test_labels_there_and_back(seed: int, spacing: tuple[float, float, float], *, turned: bool) -> None:
    grid = centred((32, 30, 28), oblique((1, 1.1, 1.2), seed=seed))
    labels = Volume(ball(grid, 11), grid)
    other = grid.with_spacing(spacing) if not turned else centred((80, 80, 80), oblique((0.5, 0.5, 0.5), seed=seed + 1))
    there = resampled(labels, other, interpolation="nearest")
    assert there.array.dtype == np.uint8
    back = resampled(there, grid, interpolation="nearest").array
    for label in (1, 2):
        mine, theirs = labels.array == label, back == label
        assert 2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()) >= 0.99


def test_a_smooth_image_keeps_its_values_in_the_world() -> None:
    grid = centred((30, 32, 34), oblique((1, 1, 1), seed=4))
    other = centred((40, 40, 40), oblique((0.8, 0.7, 0.9), seed=5))

    def wave(g: Grid) -> np.ndarray:
        places = np.tensordot(g.affine[:3, :3], np.indices(g.shape), 1) + g.affine[:3, 3][:, None, None, None]
        return (np.sin(places[0] / 6) + np.cos(places[1] / 5 + places[2] / 7)).astype(np.float32)

    inside = resampled(Volume(np.ones(grid.shape, np.float32), grid), other).array == 1
    for interpolation, worst in (("linear", 0.03), ("cubic", 0.02)):
        found = resampled(Volume(wave(grid), grid), other, interpolation=interpolation, fill=-9)
        assert found.array.dtype == np.float32
        error = np.abs(found.array - wave(other))
        core = inside & (np.abs(np.indices(other.shape) - 19.5).max(axis=0) < 12)
        assert error[core].max() < worst
        assert (found.array[~inside] == -9).all()
    assert 0.2 < inside.mean() < 1


def test_down_sampling_does_not_alias() -> None:
    """A pattern of alternating voxels is its mean on a coarse grid; without smoothing it would be black or white."""
    grid = Grid((48, 48, 48), np.eye(4))
    pattern = (np.indices(grid.shape).sum(axis=0) % 2).astype(np.float32)
    found = resampled(Volume(pattern, grid), grid.with_spacing((3, 3, 3))).array
    assert np.abs(found - 0.5).max() < 0.05
    labels = resampled(Volume(pattern.astype(np.int16), grid), grid.with_spacing((3, 3, 3)), interpolation="nearest").array
    assert set(np.unique(labels)) <= {0, 1}


@EXAMPLES
@given(spacing=st.tuples(*[st.floats(0.3, 5)] * 3))
def test_a_constant_stays_constant(spacing: tuple[float, float, float]) -> None:
    volume = Volume(np.full((12, 10, 1), 7, np.float32), Grid((12, 10, 1), oblique((1, 1, 4))))
    found = resampled(volume, volume.grid.with_spacing(spacing), interpolation="cubic").array
    assert np.allclose(found[1:-1, 1:-1], 7, atol=1e-4)


def test_the_same_grid_gives_the_same_array() -> None:
    volume = noise()
    nudged = Grid(volume.grid.shape, volume.grid.affine + 1e-5)
    assert resampled(volume, nudged).array is volume.array
    assert not same_grid(volume.grid, Grid(volume.grid.shape, volume.grid.affine + 1e-2))
    assert not same_grid(volume.grid, Grid((9, 11, 8), volume.grid.affine))
    mask = Volume(volume.array > 0, volume.grid)
    assert resampled(mask, volume.grid.with_spacing((1, 1, 1)), interpolation="nearest").array.dtype == np.bool_
