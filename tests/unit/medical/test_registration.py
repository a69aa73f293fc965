"""Rigid registration of a phantom that was moved by a known amount."""

from __future__ import annotations

import numpy as np
import pytest

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.preprocessing.registration import RigidMotion, moved, rigid_motion
from secure_media_processor.medical.volume import Grid, Volume
from unit.medical.phantoms import head, rician

SHAPE = (48, 48, 36)
# Oblique, and of unequal spacing: nothing is right by chance.
TURN = np.array([[0.96, -0.28, 0, 0], [0.28, 0.96, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
AFFINE = TURN @ np.diag([2.0, -2.2, 3.0, 1.0]) + np.array([[0, 0, 0, -40], [0, 0, 0, 60], [0, 0, 0, -50], [0, 0, 0, 0.0]])


def matrix(degrees: float, shift: tuple[float, float, float]) -> np.ndarray:
    a = np.radians(degrees)
    found = np.eye(4)
    found[1:3, 1:3] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    found[:3, 3] = shift
    return found


@pytest.fixture(scope="module")
def fixed():
    return Volume(rician(head(SHAPE).image, 0.01), Grid(SHAPE, AFFINE))


@pytest.mark.parametrize("metric", ["mutual-information", "mean-squares"])
def test_a_known_motion_is_found(fixed, metric):
    truth = RigidMotion(matrix(3, (2.0, -3.0, 1.5)), 0, 0)
    shifted = moved(fixed, truth, fixed)
    back = rigid_motion(fixed, shifted, metric=metric)
    left = RigidMotion(truth.matrix @ back.matrix, 0, 0)
    assert truth.largest_shift(fixed.grid) > 4
    assert left.largest_shift(fixed.grid) < 1.0  # mm, at a corner: half a voxel
    restored = moved(shifted, back, fixed)
    inner = (slice(8, -8),) * 3
    assert np.abs(restored.array - fixed.array)[inner].mean() < 0.4 * np.abs(shifted.array - fixed.array)[inner].mean()


def test_what_does_not_move_stays(fixed):
    motion = rigid_motion(fixed, fixed)
    assert motion.largest_shift(fixed.grid) < 0.2
    assert motion.degrees < 0.2


def test_no_motion_is_the_same_volume(fixed):
    still = moved(fixed, RigidMotion(np.eye(4), 0, 0), fixed)
    np.testing.assert_allclose(still.array, fixed.array, atol=1e-4)
    assert still.grid is fixed.grid


def test_matrix_says_where_a_place_goes():
    """A shift of one voxel along each axis: the voxel (i, j, k) gets what was at the place that the matrix names."""
    x = np.zeros((9, 9, 9), np.float32)
    x[5, 3, 6] = 1
    volume = Volume(x, Grid(x.shape, np.diag([2.0, 3.0, 4.0, 1.0])))
    found = moved(volume, RigidMotion(matrix(0, (2, -3, 8)), 0, 0), volume)
    assert np.unravel_index(found.array.argmax(), x.shape) == (4, 4, 4)


def test_the_same_call_gives_the_same_motion(fixed):
    shifted = moved(fixed, RigidMotion(matrix(1, (1, 0, 0)), 0, 0), fixed)
    assert np.array_equal(rigid_motion(fixed, shifted).matrix, rigid_motion(fixed, shifted).matrix)


def test_what_cannot_be(fixed):
    far = np.array(fixed.grid.affine)
    far[:3, 3] += 5000
    with pytest.raises(ImageError, match="registered"):
        rigid_motion(fixed, Volume(fixed.array, Grid(SHAPE, far)))
    with pytest.raises(UsageError):
        rigid_motion(fixed, fixed, metric="likeness")
