"""Phantoms made of ellipsoids: a head with tissue classes, a known bias field and Rician noise, and breasts with a lesion that
takes up contrast medium. Nothing in them is measured from anybody; sizes are free.

Arrays are (i, j, k) with axes towards right, front and head (RAS).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

AIR, SCALP, SKULL, FLUID, GRAY, WHITE, NUCLEUS = range(7)
INTENSITIES = (0.0, 0.85, 0.08, 0.25, 0.62, 0.90, 0.72)
"""Of the tissues above, as in a T1-weighted image; 1 is the brightest that there can be."""


@dataclass(frozen=True)
class Head:
    """A head without noise and without bias."""

    image: NDArray[np.float32]
    """0 to 1; at the borders of tissues in proportion to their parts of the voxel."""
    tissue: NDArray[np.uint8]
    """The tissue that has the largest part of the voxel."""

    @property
    def brain(self) -> NDArray[np.bool_]:
        """Fluid, gray and white matter and the nuclei."""
        return self.tissue >= FLUID


def head(shape: tuple[int, int, int] = (64, 64, 40), *, texture: float = 0.02, seed: int = 3) -> Head:
    """Make a head that fills most of `shape`. The cortex is folded and has furrows with fluid in them, some voxels wide.

    Tissue varies from place to place by the standard deviation `texture`, over some 3 voxels, as real tissue does: a denoiser
    that only has to find flat areas would look better than it is.
    """
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) / (n / 2) for n in shape]
    x, y, z = np.ix_(*axes)
    voxels = min(shape) / 2
    waves = np.sin(np.arctan2(y, x) * 14 + 3 * z) * np.cos(z * 9)
    folds = waves + 0.5 * np.sin(x * 21 + z * 11) * np.cos(y * 17)
    image = np.zeros(shape, np.float32)
    tissue = np.zeros(shape, np.uint8)

    def put(which: int, centre: tuple[float, float, float], axes: tuple[float, float, float], folding: float = 0.0) -> None:
        parts = ((c - m) / a for c, m, a in zip((x, y, z), centre, axes, strict=True))
        radius = np.sqrt(sum(part**2 for part in parts))
        inside = np.clip(0.5 + (1 + folding * folds - radius) * min(axes) * voxels, 0, 1).astype(np.float32)
        image[...] += inside * (INTENSITIES[which] - image)
        tissue[inside > 0.5] = which

    put(SCALP, (0, 0, 0), (0.86, 0.92, 0.92))
    put(SKULL, (0, 0, 0), (0.79, 0.85, 0.85))
    put(FLUID, (0, 0, 0), (0.73, 0.79, 0.79))
    put(GRAY, (0, 0, 0), (0.69, 0.75, 0.75), 0.03)
    put(WHITE, (0, 0, 0), (0.56, 0.62, 0.62), 0.10)
    radius = np.sqrt((x / 0.69) ** 2 + (y / 0.75) ** 2 + (z / 0.75) ** 2)
    furrow = np.clip(1 - np.abs(waves) * 6, 0, 1) * np.clip((radius - 0.84) * 20, 0, 1) * np.clip((1.03 - radius) * 40, 0, 1)
    image[...] += furrow.astype(np.float32) * (INTENSITIES[FLUID] - image)
    tissue[furrow > 0.5] = FLUID
    for side in (-1, 1):
        put(FLUID, (side * 0.14, 0.05, 0.08), (0.09, 0.30, 0.17))
        put(NUCLEUS, (side * 0.29, 0.02, -0.02), (0.10, 0.20, 0.16))
    grain = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape, np.float32), 1.2, mode="wrap")
    image *= 1 + grain * np.float32(texture / grain.std())
    return Head(image, tissue)


def log_bias(shape: tuple[int, int, int], *, peak: float = 0.35, seed: int = 5) -> NDArray[np.float32]:
    """Return a smooth field of mean 0 whose largest absolute value is `peak`: half a period or one along each axis."""
    rng = np.random.default_rng(seed)
    waves = []
    for n in shape:
        at = np.linspace(0, np.pi, n, dtype=np.float32)
        waves.append([np.ones_like(at), np.cos(at), np.cos(2 * at)])
    field = np.zeros(shape, np.float32)
    for a in range(3):
        for b in range(3):
            for c in range(3):
                if 0 < a + b + c <= 3:
                    size = rng.normal() / (a + b + c)
                    field += np.float32(size) * np.multiply.outer(np.multiply.outer(waves[0][a], waves[1][b]), waves[2][c])
    field -= field.mean()
    return field * np.float32(peak / np.abs(field).max())


def rician(image: NDArray[np.float32], sigma: float, *, seed: int = 7) -> NDArray[np.float32]:
    """Return the magnitude of `image` with Gaussian noise, of deviation `sigma`, in both parts (Gudbjartsson and Patz 1995)."""
    rng = np.random.default_rng(seed)
    real = rng.standard_normal(image.shape, np.float32) * np.float32(sigma) + image
    imaginary = rng.standard_normal(image.shape, np.float32) * np.float32(sigma)
    return np.hypot(real, imaginary)


def psnr(image: NDArray[np.float32], clean: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Return the peak signal-to-noise ratio in `mask`, dB, for a peak of 1."""
    return float(-10 * np.log10(np.mean((image[mask].astype(np.float64) - clean[mask]) ** 2)))


def ssim(image: NDArray[np.float32], clean: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Return the structural similarity of Wang et al. 2004, mean over `mask`; windows of 7 voxels a side, range 1."""

    def mean(of: NDArray[np.float32]) -> NDArray[np.float32]:
        return ndimage.uniform_filter(of, 7)

    a, b = mean(image), mean(clean)
    aa, bb, ab = mean(image * image) - a * a, mean(clean * clean) - b * b, mean(image * clean) - a * b
    one, two = 0.01**2, 0.03**2
    found = ((2 * a * b + one) * (2 * ab + two)) / ((a * a + b * b + one) * (aa + bb + two))
    return float(found[mask].mean(dtype=np.float64))


@dataclass(frozen=True)
class Breasts:
    """A chest with two breasts over time: the first phase is before the contrast medium."""

    phases: tuple[NDArray[np.float32], ...]
    times: tuple[float, ...]
    """Seconds from the first phase."""
    lesion: NDArray[np.bool_]
    body: NDArray[np.bool_]
    spacing: tuple[float, float, float]
    """mm"""

    @property
    def affine(self) -> NDArray[np.float64]:
        """Of the voxels to mm, RAS; 0 of x is in the middle of the body."""
        shape = np.array(self.body.shape)
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = -(shape - 1) / 2 * self.spacing
        return affine


def enhancement(seconds: float, *, washes_out: bool) -> float:
    """Return how much of the signal is added after so many seconds: a fast rise, then a fall or a slow further rise."""
    rise = 1 - np.exp(-seconds / 45)
    return float(1.2 * rise * np.exp(-seconds / 900) if washes_out else 0.25 * rise * (1 + seconds / 900))


def breasts(
    shape: tuple[int, int, int] = (64, 40, 24),
    *,
    times: tuple[float, ...] = (0.0, 90.0, 180.0, 270.0),
    sigma: float = 0.01,
    lesion_side: str = "left",
    seed: int = 11,
) -> Breasts:
    """Make a chest; the lesion, which washes out, is in the breast of that side. x grows to the right side of the patient."""
    i, j, k = np.ix_(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape))
    chest = (i / 0.95) ** 2 + ((j + 1.0) / 0.75) ** 2 < 1 + 0 * k
    body, gland = chest.copy(), np.zeros(shape, bool)
    for side in (-1, 1):
        body |= ((i - side * 0.45) / 0.36) ** 2 + ((j + 0.35) / 0.95) ** 2 + (k / 0.85) ** 2 < 1
        gland |= ((i - side * 0.45) / 0.22) ** 2 + ((j - 0.05) / 0.35) ** 2 + (k / 0.5) ** 2 < 1
    side = 0.45 if lesion_side == "right" else -0.45
    lesion = ((i - side) / 0.10) ** 2 + ((j - 0.1) / 0.15) ** 2 + (k / 0.2) ** 2 < 1
    before = np.where(gland, 0.45, np.where(body, 0.6, 0)).astype(np.float32)
    before[lesion] = 0.4
    phases = []
    for number, seconds in enumerate(times):
        clean = before.copy()
        clean[gland & ~lesion] *= 1 + enhancement(seconds, washes_out=False)
        clean[lesion] *= 1 + enhancement(seconds, washes_out=True)
        phases.append(rician(clean * 1000, sigma * 1000, seed=seed + number))
    return Breasts(tuple(phases), times, lesion, body, (2.0, 2.5, 3.0))
