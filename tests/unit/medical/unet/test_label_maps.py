"""Labels on another grid: against the plain way, which interpolates each label as an image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from secure_media_processor.errors import ImageError
from secure_media_processor.medical.unet import label_maps
from secure_media_processor.medical.unet.label_maps import resampled_labels
from secure_media_processor.medical.volume import Grid

TURNED = np.array([[0, -1.2, 0.05, 3], [1, 0, 0, 4], [0, 0.05, 2, 5], [0, 0, 0, 1.0]])


def plain(labels: np.ndarray, grid: Grid, target: Grid) -> np.ndarray:
    """The share of each label at each voxel."""
    matrix = np.round(np.linalg.inv(grid.affine) @ target.affine, 9)
    shares = [
        ndimage.affine_transform(
            (labels == label).astype(np.float64), matrix[:3, :3], matrix[:3, 3], target.shape, order=1, mode="nearest"
        )
        for label in range(4)
    ]
    return np.array(shares)


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 1.3, 2.0, 3.0])] * 3),
    seed=st.integers(0, 5),
    slab=st.sampled_from([1, 50, 1 << 22]),
)
def test_it_is_the_greatest_share(shape: tuple[int, int, int], spacing: tuple[float, ...], seed: int, slab: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)
    grid = Grid(shape, TURNED)
    target = grid.with_spacing(spacing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_maps, "_SLAB_VOXELS", slab)
        found = resampled_labels(labels, grid, target)
    assert found.dtype == np.uint8
    assert found.flags.f_contiguous
    shares = plain(labels, grid, target)
    second, first = np.sort(shares, axis=0)[-2:]
    decided = first - second > 1e-5  # where two labels have equal shares, rounding decides in either way
    assert (found == shares.argmax(axis=0))[decided].all()


def test_a_ball_comes_back() -> None:
    axes = np.ogrid[:40, :40, :40]
    labels = (sum((axis - 19.3) ** 2 for axis in axes) < 144).astype(np.uint8) * 7
    grid = Grid((40, 40, 40), TURNED)
    other = grid.with_spacing((0.7, 0.9, 1.1))
    back = resampled_labels(resampled_labels(labels, grid, other), other, grid)
    assert 2 * (back & labels > 0).sum() / ((back > 0).sum() + (labels > 0).sum()) > 0.99
    assert set(np.unique(back)) == {0, 7}


def test_turned_grids_are_refused() -> None:
    grid = Grid((4, 4, 4), np.eye(4))
    with pytest.raises(ImageError, match="run alike"):
        resampled_labels(np.zeros((4, 4, 4), np.uint8), grid, Grid((4, 4, 4), np.diag((-1.0, 1, 1, 1))))
    with pytest.raises(ImageError, match="run alike"):
        resampled_labels(np.zeros((4, 4, 4), np.uint8), grid, Grid((4, 4, 4), TURNED))
