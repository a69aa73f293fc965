"""The order of the phases of a dynamic series: from stamps alone, and from DICOM files under names that say nothing."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import EnhancedMRImageStorage, generate_uid

from secure_media_processor.errors import ImageError, MissingError
from secure_media_processor.medical.preprocessing.phases import PhaseStamp, _instant, _seconds, phase_order, read_phases
from unit.medical.synthetic import CANARY, image, save

NOON = 12 * 3600.0
DAY = 24 * 3600.0


@given(st.permutations(range(5)))
def test_acquisition_time(order):
    found = phase_order([PhaseStamp(acquired=NOON + 60 * n) for n in order])
    assert [order[n] for n in found.order] == [0, 1, 2, 3, 4]
    assert found.times == (0, 60, 120, 180, 240)
    assert found.by == "AcquisitionTime"


@pytest.mark.parametrize(
    ("stamps", "by", "times"),
    [
        ([PhaseStamp(position=2), PhaseStamp(position=1)], "TemporalPositionIdentifier", None),
        ([PhaseStamp(acquired=NOON, position=2), PhaseStamp(acquired=NOON, position=1)], "TemporalPositionIdentifier", None),
        ([PhaseStamp(content=90), PhaseStamp(content=30)], "ContentTime", (0, 60)),
        ([PhaseStamp(trigger=90), PhaseStamp(trigger=0)], "TriggerTime", (0, 90)),
        ([PhaseStamp(position=2, trigger=75.5), PhaseStamp(position=1, trigger=0)], "TemporalPositionIdentifier", (0, 75.5)),
        # Images may be made in another order than they were taken.
        ([PhaseStamp(position=2, content=5), PhaseStamp(position=1, content=9)], "TemporalPositionIdentifier", None),
        # Midnight between them, without a date and with one.
        ([PhaseStamp(acquired=30), PhaseStamp(acquired=DAY - 30)], "AcquisitionTime", (0, 60)),
        ([PhaseStamp(acquired=8 * DAY + 30), PhaseStamp(acquired=8 * DAY - 30)], "AcquisitionTime", (0, 60)),
    ],
)
def test_what_else_tells_the_order(stamps, by, times):
    found = phase_order(stamps)
    assert found.order == (1, 0)
    assert found.by == by
    assert found.times == times


@pytest.mark.parametrize(
    ("stamps", "reason"),
    [
        ([], "one phase only"),
        ([PhaseStamp(acquired=NOON)], "one phase only"),
        ([PhaseStamp(acquired=NOON), PhaseStamp(acquired=NOON)], "missing or equal"),
        ([PhaseStamp(acquired=NOON), PhaseStamp()], "missing or equal"),
        ([PhaseStamp(acquired=NOON, position=2), PhaseStamp(acquired=NOON + 9, position=1)], "contradict"),
        ([PhaseStamp(position=2), PhaseStamp(position=3)], "before the contrast medium is missing"),
        ([PhaseStamp(acquired=NOON + n, bolus=NOON - 5) for n in (1, 2)], "before the contrast medium is missing"),
    ],
)
def test_no_order(stamps, reason):
    for order in permutations(stamps):
        with pytest.raises(ImageError, match=reason):
            phase_order(order)


def test_a_bolus_after_the_first_phase_is_right():
    assert phase_order([PhaseStamp(acquired=NOON + n, bolus=NOON + 5) for n in (0, 60)]).order == (0, 1)
    assert phase_order([PhaseStamp(acquired=9 * DAY + n, bolus=5) for n in (-10, 60)]).order == (0, 1)


@pytest.mark.parametrize(
    ("time", "day", "seconds"),
    [
        ("103254.170000", "", 37974.17), ("1032", "", 37920), ("10", "", 36000), ("10:32:54", "", 37974), ("", "", None),
        ("noon", "", None), ("000001", "00010101", DAY + 1), ("000001", "20230231", None), ("000001", "yesterday", 1),
    ],
)  # fmt: skip
def test_times(time, day, seconds):
    assert _seconds(time, day) == (None if seconds is None else pytest.approx(seconds))


def test_dates_with_times():
    assert _instant("20240229235959.5+0100") == _seconds("235959.5", "20240229")
    assert _instant("20240301000001-0930") - _instant("20240229235959.5") == 1.5
    assert [_instant(moment) for moment in ("", "2024", "20240229", "20230229120000")] == [None] * 4


def write_phases(folder: Path, times: tuple[str, ...], *, one_series: bool = False, seed: int = 4, **elements) -> None:
    """Write phases of 3 slices, all voxels of a slice of value 100 phase + slice, in files whose names are drawn by lot."""
    rng = np.random.default_rng(seed)
    names = iter(rng.permutation(10_000))
    study, frame, common = generate_uid(), generate_uid(), generate_uid()
    for phase, time in enumerate(times):
        series = common if one_series else generate_uid()
        for k in range(3):
            ds = image(np.full((5, 6), 100 * phase + k, np.int16), modality="MR")
            ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
            ds.InstanceNumber, ds.PixelSpacing, ds.SliceThickness = 3 * phase + k + 1, [2, 1], 3
            ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-5, -9, 3.0 * k]
            ds.AcquisitionTime, ds.ContentTime = time, "235959"
            for keyword, values in elements.items():
                setattr(ds, keyword, values[phase])
            save(ds, folder / f"{next(names):05}")


def phase_values(phases) -> list[int]:
    return [round(float(volume.array.mean()) - 1) // 100 for volume in phases.volumes]


@pytest.mark.parametrize("one_series", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_dicom_phases_in_shuffled_files(tmp_path, one_series, seed):
    write_phases(tmp_path, ("100300", "100000", "100130.5"), one_series=one_series, seed=seed)
    found = read_phases(tmp_path)
    assert phase_values(found) == [1, 2, 0]
    assert found.times == (0, 90.5, 180)
    assert found.volumes[0].array.shape == (6, 5, 3)
    assert found.volumes[0].array[0, 0].tolist() == [100, 101, 102]
    assert found.volumes[0].grid.orientation == "LPS"
    assert found.volumes[0].grid.spacing == pytest.approx((1, 2, 3))


def test_dicom_phases_by_position(tmp_path):
    write_phases(tmp_path, ("100000",) * 3, one_series=True, TemporalPositionIdentifier=(3, 1, 2))
    found = read_phases(tmp_path)
    assert phase_values(found) == [1, 2, 0]
    assert (found.by, found.times) == ("TemporalPositionIdentifier", None)


def write_enhanced(path: Path, times: tuple[str | None, ...], positions: tuple[int | None, ...], *, seed: int = 3) -> None:
    """Write all phases as one object, 3 slices each of value 100 phase + slice, its frames in an order drawn by lot."""
    frames = [(phase, k) for phase in range(len(times)) for k in range(3)]
    order = np.random.default_rng(seed).permutation(len(frames))
    pixels = np.array([np.full((5, 6), 100 * frames[n][0] + frames[n][1], np.int16) for n in order])
    ds = image(pixels, modality="MR", frames=True, ContentTime="235959", AcquisitionDateTime="20200102100000")
    del ds.AcquisitionTime, ds.AcquisitionDate
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [2, 1], 3
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for n in order:
        phase, k = frames[n]
        content, place, group = Dataset(), Dataset(), Dataset()
        content.FrameAcquisitionNumber = phase + 1
        if times[phase] is not None:
            content.FrameAcquisitionDateTime = times[phase]
        if positions[phase] is not None:
            content.TemporalPositionIndex = positions[phase]
        place.ImagePositionPatient = [-5, -9, 3.0 * k]
        group.FrameContentSequence, group.PlanePositionSequence = [content], [place]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    save(ds, path)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("positions", [(None,) * 3, (3, 1, 2)])
def test_frames_of_one_enhanced_object(tmp_path, positions, seed):
    write_enhanced(tmp_path / "all", ("20200103000100", "20200102235930", "20200103000010.25"), positions, seed=seed)
    found = read_phases(tmp_path)
    assert phase_values(found) == [1, 2, 0]
    assert (found.by, found.times) == ("AcquisitionTime", (0, 40.25, 90))
    assert found.volumes[0].array[0, 0].tolist() == [100, 101, 102]


def test_frames_of_one_enhanced_object_by_position_alone(tmp_path):
    write_enhanced(tmp_path / "all", (None,) * 3, (3, 1, 2))
    found = read_phases(tmp_path)
    assert phase_values(found) == [1, 2, 0]
    assert (found.by, found.times) == ("TemporalPositionIdentifier", None)
    write_enhanced(tmp_path / "all", (None,) * 3, (None,) * 3)
    with pytest.raises(ImageError, match="missing or equal"):
        read_phases(tmp_path)
    write_enhanced(tmp_path / "all", ("20200102100000", "20200102100100"), (2, 1))
    with pytest.raises(ImageError, match="contradict"):
        read_phases(tmp_path)


def test_dicom_without_order_is_refused(tmp_path):
    write_phases(tmp_path, ("100000",) * 2)
    with pytest.raises(ImageError, match="missing or equal") as error:
        read_phases(tmp_path)
    assert CANARY not in str(error.value)


def test_other_stacks_are_left_out(tmp_path):
    write_phases(tmp_path, ("100000", "100100"))
    ds = image(np.zeros((5, 6), np.int16), modality="MR")
    ds.PixelSpacing, ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 1], [0, 1, 0, 0, 0, 1], [0, 0, 0]
    save(ds, tmp_path / "localizer")
    assert len(read_phases(tmp_path).volumes) == 2


def test_folders_that_hold_no_dynamic_series(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError):
        read_phases(tmp_path / "empty")
    write_phases(tmp_path / "one", ("100000",))
    with pytest.raises(ImageError, match="one phase only"):
        read_phases(tmp_path / "one")
    write_phases(tmp_path / "two", ("100000", "100100"))
    write_phases(tmp_path / "two" / "more", ("100000", "100100"))
    with pytest.raises(ImageError, match="2 dynamic series"):
        read_phases(tmp_path / "two")
    write_phases(tmp_path / "lost", ("100000", "100100"))
    (tmp_path / "lost" / "cut").write_bytes(next((tmp_path / "lost").iterdir()).read_bytes()[:300])
    with pytest.raises(ImageError, match="cut"):
        read_phases(tmp_path / "lost")


def test_side_files_are_no_slices(tmp_path):
    write_phases(tmp_path, ("100000", "100100"))
    (tmp_path / "README").write_text("what lies here")
    (tmp_path / "settings.json").write_text("{}")
    assert len(read_phases(tmp_path).volumes) == 2
    (tmp_path / "empty").touch()
    with pytest.raises(ImageError, match="empty"):
        read_phases(tmp_path)


def test_a_missing_slice_is_no_phase(tmp_path):
    write_phases(tmp_path, ("100000", "100100"))
    dropped = next(path for path in tmp_path.iterdir())
    dropped.unlink()
    with pytest.raises(ImageError):
        read_phases(tmp_path)
