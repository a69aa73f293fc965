"""Splitting series into stacks and judging these, on volumes made for it and on real series."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian

from secure_media_processor import read_folder
from secure_media_processor.medical.dicom.frames import Frame
from secure_media_processor.medical.dicom.geometry import Affine, Vector, apply, lps_to_ras, measure, plane_of, slice_normal
from secure_media_processor.medical.dicom.reader import Instance, read_instance
from secure_media_processor.medical.dicom.series import Stack, split_into_stacks

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of what the tests themselves write

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def turned(a: float, b: float) -> tuple[float, ...]:
    """Return an oblique orientation: axial, turned about x by `a` and then about z by `b` radians."""
    rows, columns = (1, 0, 0), (0, math.cos(a), math.sin(a))
    about_z = [(math.cos(b) * x - math.sin(b) * y, math.sin(b) * x + math.cos(b) * y, z) for x, y, z in (rows, columns)]
    return (*about_z[0], *about_z[1])


ORIENTATIONS = {
    "axial": AXIAL,
    "sagittal": SAGITTAL,
    "coronal": CORONAL,
    "flipped": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "feet first": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "oblique": turned(0.3, 0.0),
    "doubly oblique": turned(0.5, -0.4),
}


def instance(number: int, frame: Frame, **other: object) -> Instance:
    known = {"rows": 4, "columns": 6, "instance_number": number, "frames": (frame,)} | other
    return Instance(Path(f"{number:03}"), "1.1", f"1.2.{number}", "1.3", "1.4", "CT", **known)


def volume(
    orientation: tuple[float, ...] = AXIAL,
    *,
    count: int = 8,
    spacing: float = 2.5,
    origin: Vector = (-100, 20, 33),
    **frame: object,
) -> list[Instance]:
    normal = slice_normal(orientation)
    assert normal
    found = []
    for n in range(count):
        position = tuple(o + n * spacing * d for o, d in zip(origin, normal, strict=True))
        found.append(instance(n + 1, Frame(position=position, orientation=orientation, pixel_spacing=(0.7, 0.5), **frame)))
    return found


def moved(one: Instance, by: Vector, **other: object) -> Instance:
    frame = one.frames[0]
    position = tuple(a + b for a, b in zip(frame.position, by, strict=True))
    fields = {name: getattr(frame, name) for name in Frame.__slots__} | {"position": position} | other
    return instance(one.instance_number, Frame(**fields))


def only(instances: list[Instance]) -> Stack:
    (stack,) = split_into_stacks(instances)
    return stack


def shuffled(instances: list[Instance]) -> list[Instance]:
    return random.Random(7).sample(instances, len(instances))


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_regular_volumes(orientation: tuple[float, ...], count: int) -> None:
    """In order along the normal however they are named, and every voxel at its place."""
    made = volume(orientation, count=count)
    stack = only(shuffled(made))
    assert stack.regular, stack.problems
    assert [i.instance_number for i in stack.instances] == list(range(1, count + 1))
    assert (len(stack.slices), stack.rows, stack.columns) == (count, 4, 6)
    if count > 1:
        assert stack.spacing == pytest.approx(2.5)
        assert stack.affine
        row, column = orientation[:3], orientation[3:]
        for i, j, k in [(0, 0, 0), (5, 0, 0), (0, 3, 0), (0, 0, count - 1), (5, 3, count - 1)]:
            # PS3.3 C.7.6.2.1.1: column index times the spacing between columns, which PixelSpacing has second.
            start = made[k].position
            expected = [s + r * 0.5 * i + c * 0.7 * j for s, r, c in zip(start, row, column, strict=True)]
            assert apply(stack.affine, (i, j, k)) == pytest.approx(expected)
            x, y, z = expected
            assert apply(lps_to_ras(stack.affine), (i, j, k)) == pytest.approx([-x, -y, z])


@pytest.mark.parametrize(
    ("facts", "step"),
    [({"slice_thickness": 3.0, "spacing_between_slices": 4.0}, 4), ({"slice_thickness": 3.0}, 3), ({}, 1)],
)
def test_a_single_slice_has_a_matrix(facts: dict, step: float) -> None:
    affine: Affine | None = only(volume(count=1, **facts)).affine
    assert affine == ((0.5, 0, 0, -100), (0, 0.7, 0, 20), (0, 0, step, 33), (0, 0, 0, 1))


@given(
    a=st.floats(-3, 3),
    b=st.floats(-3, 3),
    count=st.integers(2, 30),
    spacing=st.floats(0.05, 20),
    digits=st.sampled_from([3, 6, 12]),
)
def test_any_regular_volume_is_found_regular(a: float, b: float, count: int, spacing: float, digits: int) -> None:
    """Also where numbers are written with few digits."""
    orientation = tuple(round(cosine, 6) for cosine in turned(a, b))
    made = [moved(one, (0, 0, 0)) for one in volume(orientation, count=count, spacing=spacing)]
    rounded = [
        instance(
            one.instance_number,
            Frame(position=tuple(round(p, digits) for p in one.position), orientation=orientation, pixel_spacing=(1, 1)),
        )
        for one in made
    ]
    stack = only(shuffled(rounded))
    assert stack.regular, stack.problems
    assert stack.spacing == pytest.approx(spacing, rel=0.03)


def test_missing_slices_are_counted_and_placed() -> None:
    made = volume(count=12)
    stack = only(made[:3] + made[4:7] + made[9:])
    assert stack.kinds == {"gaps"}
    (problem,) = stack.problems
    assert (problem.amount, problem.slices) == (3, (2, 5))
    assert problem.text == "3 slices are missing, after slice 3, 6"
    assert (stack.spacing, stack.affine) == (pytest.approx(2.5), None)


def test_every_other_slice_missing_in_a_part() -> None:
    made = volume(count=9)
    (problem,) = only([made[n] for n in (0, 2, 3, 5, 7, 8)]).problems
    assert (problem.kind, problem.amount) == ("gaps", 3)


def test_duplicates() -> None:
    made = volume()
    again = moved(made[3], (0, 0, 0))
    (problem,) = only(
        [*made, Instance(Path("x"), *("1.1", "1.2.99", "1.3", "1.4", "CT"), 99, frames=again.frames, rows=4, columns=6)]
    ).problems
    assert (problem.kind, problem.amount, problem.slices) == ("duplicates", 1, (4,))


def test_the_same_object_twice_is_a_duplicate_and_no_second_time_point() -> None:
    made = volume()
    stack = only([*made, *made])
    assert stack.kinds == {"duplicates"}
    assert stack.problems[0].amount == len(made)


@pytest.mark.parametrize("degrees", [0.5, -18.5, 30])
def test_a_tilted_gantry(degrees: float) -> None:
    shear = math.tan(math.radians(degrees))
    made = [moved(one, (0, n * 2.5 * shear, 0)) for n, one in enumerate(volume())]
    stack = only(shuffled(made))
    (problem,) = stack.problems
    assert problem.kind == "tilt"
    assert problem.amount == pytest.approx(abs(degrees))
    assert stack.spacing == pytest.approx(2.5)
    assert stack.affine
    assert apply(stack.affine, (0, 0, 7)) == pytest.approx(made[7].position)


def test_uneven_spacing_and_shifts() -> None:
    made = volume()
    uneven = only([moved(one, (0, 0, 0.9)) if n == 4 else one for n, one in enumerate(made)])
    assert uneven.kinds == {"uneven-spacing"}
    assert uneven.problems[0].amount == pytest.approx(0.9)
    assert (uneven.spacing, uneven.affine) == (None, None)
    growing = [moved(one, (0, 0, n * n * 0.2)) for n, one in enumerate(made)]
    assert only(growing).kinds == {"uneven-spacing"}
    shifted = only([moved(one, (0.9, 0, 0)) if n == 4 else one for n, one in enumerate(made)])
    assert (shifted.kinds, shifted.problems[0].slices) == ({"shift"}, (4,))


def test_a_localizer_is_three_stacks() -> None:
    made = [*volume(AXIAL, count=3), *volume(SAGITTAL, count=3), *volume(CORONAL, count=1)]
    stacks = split_into_stacks(made)
    assert [(len(s.slices), s.regular) for s in stacks] == [(3, True), (3, True), (1, True)]
    assert [dict(s.set_apart_by)["ImageOrientationPatient"] for s in stacks] == ["axial", "sagittal", "coronal"]


def test_a_series_that_turns_is_one_stack() -> None:
    made = [instance(n, Frame(position=(0, 0, 0), orientation=turned(0.2 * n, 0), pixel_spacing=(1, 1))) for n in range(8)]
    stack = only(made)
    assert stack.kinds == {"mixed-orientation"}
    assert stack.problems[0].amount == pytest.approx(math.degrees(1.4))


def test_a_hostile_number_of_directions_takes_no_time() -> None:
    made = [
        instance(n, Frame(position=(0, 0, 0), orientation=turned(n / 1000, n / 700), pixel_spacing=(1, 1))) for n in range(3000)
    ]
    assert sum(len(s.slices) for s in split_into_stacks(made)) == 3000


@pytest.mark.parametrize(
    "facts",
    [
        [{"echo_time": 4.6}, {"echo_time": 6.9}],
        [{"echo_number": 1}, {"echo_number": 2}],
        [{"image_type": ("ORIGINAL", "PRIMARY", "M")}, {"image_type": ("ORIGINAL", "PRIMARY", "P")}],
        [{"b_value": 0.0}, {"b_value": 1000.0}],
        [{"temporal_position": n} for n in range(5)],
        [{"gradient": (1.0, 0.0, 0.0)}, {"gradient": (0.0, 1.0, 0.0)}, {}],
        [{"acquisition_number": n} for n in range(4)],
        [{"trigger_time": n * 40.0} for n in range(4)],
        [{"reference_time": n * 9e4} for n in range(4)],
        [{"acquisition_time": "101112"}, {"acquisition_time": "101113"}],
        [{"gradient": g, "acquisition_number": n} for g in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)) for n in (1, 2)],
        [{}, {}, {}],  # nothing but numbers that go on
    ],
)
def test_what_lies_at_one_place_is_told_apart(facts: list[dict]) -> None:
    made = []
    for n, fact in enumerate(facts):
        made += [moved(one, (0, 0, 0), **fact) for one in volume()]
        made[-8:] = [instance(n * 8 + k, one.frames[0]) for k, one in enumerate(made[-8:])]
    stacks = split_into_stacks(sorted(shuffled(made), key=lambda one: one.instance_number))
    assert [len(s.slices) for s in stacks] == [8] * len(facts)
    assert all(s.regular for s in stacks)
    assert all(stacks[0].same_grid(s) for s in stacks)
    if any(facts):
        assert all(s.set_apart_by for s in stacks)
    assert "101112" not in str([s.set_apart_by for s in stacks])


def test_numbers_that_each_slice_has_for_itself_split_nothing() -> None:
    made = [moved(one, (0, 0, 0), acquisition_number=n, acquisition_time=str(n)) for n, one in enumerate(volume())]
    assert only(made).regular
    extra = moved(made[2], (0, 0, 0), acquisition_number=77, acquisition_time="77")
    stack = only([*made, instance(99, extra.frames[0])])
    assert stack.kinds == {"duplicates"}


@pytest.mark.parametrize(
    "other",
    [{"rows": 5}, {"columns": 9}, {"frame_of_reference_uid": "1.9"}],
)
def test_other_images_in_a_series(other: dict) -> None:
    made = volume()
    stacks = split_into_stacks([*made, instance(50, made[4].frames[0], **other)])
    assert [(len(s.slices), s.regular) for s in stacks] == [(8, True), (1, True)]


def test_secondary_captures_in_a_ct_series() -> None:
    made = volume()
    capture = Instance(Path("sc"), "1.1.7", "1.2.99", "1.3", "1.4", "CT", 99, rows=4, columns=6)
    first, second = split_into_stacks([*made, capture])
    assert first.regular
    assert second.kinds == {"no-geometry"}


def test_pixels_that_are_not_square_and_other_spacings() -> None:
    made = volume()
    other = moved(made[3], (0, 0, 0), pixel_spacing=(0.5, 0.7))
    assert [len(s.slices) for s in split_into_stacks([*made, instance(50, other.frames[0])])] == [8, 1]
    assert only([moved(one, (0, 0, 0), pixel_spacing=None) for one in made]).kinds == {"no-geometry"}


def test_a_mosaic_is_flagged() -> None:
    made = [instance(n, Frame(position=(0, 0, 0), orientation=AXIAL, image_type=("ORIGINAL", "MOSAIC"))) for n in range(5)]
    stack = only(made)
    assert (stack.kinds, stack.affine, len(stack.slices)) == ({"mosaic"}, None, 5)


def test_measure_wants_a_normal() -> None:
    with pytest.raises(ValueError, match="normal"):
        measure([(0, 0, 0)], (0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("orientation", "plane"),
    [(AXIAL, "axial"), (SAGITTAL, "sagittal"), (CORONAL, "coronal"), (turned(0.3, 0), "oblique axial"), ((0,) * 6, "unknown")],
)
def test_planes(orientation: tuple[float, ...], plane: str) -> None:
    assert plane_of(orientation) == plane


# ------------------------------------------------------------------------------------------------------------- real files


def enhanced(path: Path, *, echoes: int = 1, positions: int = 5, shared_orientation: bool = True) -> None:
    """Write an enhanced MR object: frames in an order of its own, echo after echo at each place, the last place first."""
    source = dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
    source.file_meta.MediaStorageSOPClassUID = source.SOPClassUID = EnhancedMRImageStorage
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "EchoTime"):
        del source[keyword]
    plane, measures = Dataset(), Dataset()
    plane.ImageOrientationPatient = list(SAGITTAL)
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.8], 3
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    if shared_orientation:
        shared.PlaneOrientationSequence = [plane]
    source.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for n in reversed(range(positions)):
        for echo in range(echoes):
            own, place, time = Dataset(), Dataset(), Dataset()
            place.ImagePositionPatient = [-3.0 * n, 0, 0]
            time.EffectiveEchoTime = 10.0 * (echo + 1)
            own.PlanePositionSequence, own.MREchoSequence = [place], [time]
            if not shared_orientation:
                own.PlaneOrientationSequence = [plane]
            frames.append(own)
    source.PerFrameFunctionalGroupsSequence = frames
    source.NumberOfFrames = len(frames)
    source.PixelData = source.PixelData * len(frames)
    source.save_as(path, implicit_vr=False, little_endian=True)
    assert source.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


@pytest.mark.parametrize("shared", [True, False])
def test_enhanced_objects(work: Path, *, shared: bool) -> None:
    enhanced(Path("one"), echoes=2, shared_orientation=shared)
    found = read_instance(Path("one"))
    assert isinstance(found, Instance)
    assert (found.number_of_frames, len(found.frames)) == (10, 10)
    stacks = split_into_stacks([found])
    assert [[s.frame.index for s in stack.slices] for stack in stacks] == [[8, 6, 4, 2, 0], [9, 7, 5, 3, 1]]
    assert all(s.regular and s.spacing == pytest.approx(3) and s.pixel_spacing == (0.5, 0.8) for s in stacks)
    assert [dict(s.set_apart_by) for s in stacks] == [{"EchoTime": "10"}, {"EchoTime": "20"}]
    assert stacks[0].instances == (found,)


def test_many_enhanced_objects_are_many_stacks(work: Path) -> None:
    for n in range(3):
        enhanced(Path(str(n)))
        dataset = dcmread(str(n))
        dataset.SOPInstanceUID = f"1.2.{n}"
        dataset.save_as(str(n))
    stacks = split_into_stacks(read_folder(work).instances)
    assert [len(s.slices) for s in stacks] == [5, 5, 5]
    assert all(s.regular for s in stacks)


def test_a_dose_grid() -> None:
    found = read_instance(Path(str(get_testdata_file("rtdose.dcm", download=False))))
    assert isinstance(found, Instance)
    stack = only([found])
    assert stack.regular
    assert (len(stack.slices), stack.spacing) == (15, pytest.approx(5))


def test_the_series_of_real_scanners() -> None:
    folder = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent / "dicomdirtests" / "77654033"
    found = {}
    for one in read_folder(folder).instances:
        found.setdefault(one.series_description, []).append(one)
    assert (
        [dict(s.set_apart_by)["ImageOrientationPatient"] for s in split_into_stacks(found["Scout"])] == ["sagittal", "coronal"]
        if "Scout" in found
        else True
    )
    (brain,) = split_into_stacks(next(members for name, members in found.items() if name.startswith("Routine Brain")))
    assert brain.kinds == {"gaps"}
