"""Non-local means, the estimate of noise, diffusion and the median, on phantoms whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.preprocessing import denoise
from secure_media_processor.medical.preprocessing.denoise import anisotropic_diffusion, median, noise_sigma, non_local_means
from unit.medical.phantoms import head, psnr, rician, ssim

SIGMA = 0.05


@pytest.fixture(scope="module")
def phantom():
    clean = head((96, 96, 64))
    return clean, rician(clean.image, SIGMA)


def by_the_formula(x: np.ndarray, sigma: float, h: float = 0.8) -> np.ndarray:
    """Say the same as non_local_means, offset by offset on whole arrays in double precision."""
    x = x.astype(np.float64)
    axes = [n > 1 for n in x.shape]
    search, patch = [2 * a for a in axes], [1 * a for a in axes]
    pad = [s + p for s, p in zip(search, patch, strict=True)]
    big = np.pad(x, [(p, p) for p in pad], mode="reflect")
    total, weights = np.zeros_like(x), np.zeros_like(x)
    core = tuple(slice(p, p + n) for p, n in zip(pad, x.shape, strict=True))
    for offset in np.ndindex(*[2 * s + 1 for s in search]):
        shift = tuple(s - o for s, o in zip(search, offset, strict=True))
        other = np.roll(big, shift, (0, 1, 2))
        distance = ndimage.uniform_filter((big - other) ** 2, [2 * p + 1 for p in patch])
        w = np.exp(-np.maximum(distance - 2 * sigma**2, 0) / (h * sigma) ** 2)[core]
        total += w * other[core] ** 2
        weights += w
    return np.sqrt(np.maximum(total / weights - 2 * sigma**2, 0))


@pytest.mark.parametrize("shape", [(9, 11, 10), (20, 4, 5), (12, 13, 1), (1, 9, 8)])
def test_it_is_the_formula(shape):
    x = rician(head((24, 24, 16)).image[: shape[0], : shape[1], : shape[2]].copy(), 0.1) + np.float32(0.2)
    x = np.resize(x, shape)
    np.testing.assert_allclose(non_local_means(x, sigma=0.1), by_the_formula(x, 0.1), atol=2e-4)


def test_it_takes_five_percent_of_noise_out(phantom):
    clean, noisy = phantom
    found = non_local_means(noisy, sigma=SIGMA)
    assert found.dtype == np.float32
    assert psnr(found, clean.image, clean.brain) >= psnr(noisy, clean.image, clean.brain) + 4
    assert ssim(found, clean.image, clean.brain) >= 0.93


def test_estimated_sigma_does_as_well(phantom):
    clean, noisy = phantom
    given, found = non_local_means(noisy, sigma=SIGMA), non_local_means(noisy)
    assert psnr(found, clean.image, clean.brain) == pytest.approx(psnr(given, clean.image, clean.brain), abs=0.5)


def test_mean_of_flat_areas_is_not_biased():
    """Magnitudes of weak signal are too large on average; squares, less 2 sigma², are not."""
    flat = np.full((32, 32, 32), 0.15, np.float32)
    noisy = rician(flat, SIGMA)
    assert noisy.mean() > 0.157
    assert np.sqrt((non_local_means(noisy, sigma=SIGMA, strength=5.0) ** 2).mean()) == pytest.approx(0.15, abs=0.002)


@settings(max_examples=15, deadline=None)
@given(
    planes=st.integers(1, 20),
    voxels=st.integers(1, 2000),
    threads=st.integers(1, 4),
    shape=st.tuples(st.integers(2, 30), st.integers(2, 60), st.integers(2, 9)),
)
def test_parts_and_threads_change_no_bit(planes, voxels, threads, shape):
    x = np.random.default_rng(1).rayleigh(1.0, shape).astype(np.float32)
    whole = non_local_means(x, sigma=0.8, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoise, "_BLOCK_PLANES", planes)
        patch.setattr(denoise, "_BLOCK_VOXELS", voxels)
        parts = non_local_means(x, sigma=0.8, threads=threads)
    assert np.array_equal(whole, parts)


@settings(max_examples=10, deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.floats(0, 100, width=32)))
def test_any_small_volume_stays_within_its_range(x):
    for found in (non_local_means(x, sigma=1.0, noise="gaussian"), anisotropic_diffusion(x, (1, 2, 0.5)), median(x)):
        assert found.shape == x.shape
        assert found.min() >= x.min() - 1e-3
        assert found.max() <= x.max() + 1e-3


def test_mirrored_input_gives_mirrored_output(phantom):
    noisy = phantom[1][20:60, 20:60, 20:40]
    for make in (lambda x: non_local_means(x, sigma=SIGMA), lambda x: anisotropic_diffusion(x, (1, 1, 2)), median):
        np.testing.assert_allclose(make(noisy[::-1, :, ::-1])[::-1, :, ::-1], make(noisy), atol=1e-5)


def test_order_in_memory_and_type_do_not_matter(phantom):
    x = np.rint(phantom[1][:30, :30, :30] * 1000).astype(np.int16)
    for make in (non_local_means, lambda a: anisotropic_diffusion(a, (1, 1, 1)), median):
        wanted = make(x.astype(np.float32))
        assert np.array_equal(make(np.asfortranarray(x)), wanted)
        assert np.array_equal(make(x), wanted)


def test_input_stays_as_it_was(phantom):
    noisy = phantom[1][:20, :20, :20].copy()
    kept = noisy.copy()
    for make in (non_local_means, lambda a: anisotropic_diffusion(a, (1, 1, 1)), median):
        make(noisy)
        assert np.array_equal(noisy, kept)


@pytest.fixture(scope="module")
def large():
    """With borders of tissue as far apart, in voxels, as in images of heads; in smaller ones they look like weak noise."""
    return head((128, 128, 80)).image


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.05, 0.09])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_sigma_is_estimated_within_15_percent(large, sigma, scale):
    noisy = rician(large, sigma, seed=3) * np.float32(scale)
    assert noise_sigma(noisy) == pytest.approx(sigma * scale, rel=0.15)


def test_sigma_without_any_air(phantom):
    brain = phantom[0].image[30:66, 30:66, 20:44]
    assert noise_sigma(rician(brain, SIGMA)) == pytest.approx(SIGMA, rel=0.15)


def test_sigma_of_a_slice(phantom):
    assert noise_sigma(rician(phantom[0].image[:, :, 32:33], SIGMA)) == pytest.approx(SIGMA, rel=0.15)


def test_sigma_of_weak_signal_is_corrected():
    noisy = rician(np.full((48, 48, 48), 1.0, np.float32) * SIGMA, SIGMA)
    assert noise_sigma(noisy, noise="gaussian") < 0.9 * SIGMA
    assert denoise._corrected(float(noisy.std()), float(noisy.mean())) == pytest.approx(SIGMA, rel=0.03)


def test_gaussian_noise():
    noise = np.random.default_rng(2).normal(-3, 2, (40, 40, 40))
    assert noise_sigma(noise, noise="gaussian") == pytest.approx(2, rel=0.03)
    assert non_local_means(noise, noise="gaussian").std() < 1


def test_constant_and_single_voxels_are_copied():
    for shape in ((5, 5, 5), (1, 1, 1), (1, 1, 7)):
        x = np.full(shape, 7, np.uint8)
        assert noise_sigma(x) == 0
        for found in (non_local_means(x), anisotropic_diffusion(x, (1, 1, 1)), median(x)):
            assert (found == 7).all()
            assert found.dtype == np.float32


def test_diffusion_is_better_than_the_noise_and_keeps_edges(phantom):
    clean, noisy = phantom
    found = anisotropic_diffusion(noisy, (1, 1, 1))
    # In so small a phantom there are borders everywhere; in one of 256 voxels a side it is 7 dB.
    assert psnr(found, clean.image, clean.brain) >= psnr(noisy, clean.image, clean.brain) + 1.5
    step = np.zeros((20, 20, 20), np.float32)
    step[10:] = 1
    assert np.abs(anisotropic_diffusion(step, (1, 1, 1)) - step).max() < 0.05


def test_diffusion_keeps_the_mean_and_does_not_see_parts(phantom, monkeypatch):
    noisy = phantom[1]
    found = anisotropic_diffusion(noisy, (1, 1, 1))
    assert found.mean(dtype=np.float64) == pytest.approx(noisy.mean(dtype=np.float64), rel=1e-6)
    monkeypatch.setattr(denoise, "_BLOCK_PLANES", 7)
    np.testing.assert_allclose(anisotropic_diffusion(noisy, (1, 1, 1)), found, atol=1e-6)


def test_diffusion_knows_spacing():
    """Across thick slices less flows than within them: variance is taken out in the plane first."""
    noise = np.random.default_rng(3).normal(0, 1, (40, 40, 40)).astype(np.float32)
    found = anisotropic_diffusion(noise, (1, 1, 5), conductance=10)
    along_i, along_k = (float(np.var(np.diff(found, axis=axis))) for axis in (0, 2))
    assert along_i < 0.5 * along_k


def test_long_steps_are_refused(phantom):
    noisy = phantom[1][:8, :8, :8]
    assert anisotropic_diffusion(noisy, (1, 1, 1), step=1 / 6).max() <= noisy.max()
    with pytest.raises(UsageError, match="not stable"):
        anisotropic_diffusion(noisy, (1, 1, 1), step=0.17)
    with pytest.raises(UsageError, match="not stable"):
        anisotropic_diffusion(noisy, (0.5, 1, 1), step=1 / 6)


def test_median_is_scipys(phantom):
    x = phantom[1][:40, :20, :20]
    assert np.array_equal(median(x), ndimage.median_filter(x, 3))
    assert np.array_equal(median(x, radius=2), ndimage.median_filter(x, 5))


def test_what_cannot_be(phantom):
    x = phantom[1][:8, :8, :8].copy()
    for bad in (np.nan, np.inf):
        broken = x.copy()
        broken[1, 2, 3] = bad
        for make in (non_local_means, noise_sigma, median, lambda a: anisotropic_diffusion(a, (1, 1, 1))):
            with pytest.raises(ImageError, match="finite"):
                make(broken)
    with pytest.raises(ImageError, match="below 0"):
        non_local_means(x - 1)
    with pytest.raises(ImageError, match="volume"):
        median(x[0])
    for wrong in ({"sigma": -1.0}, {"strength": 0.0}, {"search": 0}, {"patch": -1}, {"sigma": np.inf}):
        with pytest.raises(UsageError):
            non_local_means(x, **wrong)
    for wrong in ({"iterations": 0}, {"conductance": 0.0}, {"spacing": (1, 0, 1)}):
        with pytest.raises(UsageError):
            anisotropic_diffusion(x, **({"spacing": (1, 1, 1)} | wrong))
    with pytest.raises(UsageError):
        median(x, radius=0)
