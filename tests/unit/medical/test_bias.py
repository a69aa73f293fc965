"""N4 on a phantom whose bias field is known."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - everybody calls it so

from secure_media_processor.errors import ImageError, UsageError
from secure_media_processor.medical.preprocessing.bias import BiasField, bias_field, divided, n4
from unit.medical.phantoms import WHITE, head, log_bias, rician

SHAPE = (64, 64, 64)
SPACING = (3.0, 3.0, 3.0)
QUICK = (5, 5)


@pytest.fixture(scope="module")
def phantom():
    clean = head(SHAPE)
    truth = log_bias(SHAPE)
    return clean, truth, rician(clean.image * np.exp(truth), 0.02)


def residual(found, truth, mask):
    return np.std((found - truth)[mask]) / np.std(truth[mask])


@pytest.mark.parametrize("masked", [True, False])
def test_it_takes_most_of_the_bias_away(phantom, masked):
    clean, truth, image = phantom
    corrected, field = n4(image, clean.brain if masked else None, SPACING, iterations=(20, 20, 20))
    assert residual(field, truth, clean.brain) <= 0.70
    white = clean.tissue == WHITE
    assert np.std(corrected[white]) / np.mean(corrected[white]) < np.std(image[white]) / np.mean(image[white])
    assert corrected.dtype == field.dtype == np.float32
    np.testing.assert_allclose(corrected * np.exp(field), image, rtol=1e-5)


def test_field_has_mean_0_in_the_mask(phantom):
    clean, _, image = phantom
    _, field = n4(image, clean.brain, SPACING, iterations=QUICK)
    assert abs(field[clean.brain].mean(dtype=np.float64)) < 1e-6


def test_brightness_of_the_whole_changes_nothing(phantom):
    clean, _, image = phantom
    _, field = n4(image, clean.brain, SPACING, iterations=QUICK)
    _, bright = n4(image * np.float32(1000), clean.brain, SPACING, iterations=QUICK)
    np.testing.assert_allclose(field, bright, atol=1e-3)


def test_the_same_call_gives_the_same_bits(phantom):
    clean, _, image = phantom
    first, again = (n4(image, clean.brain, SPACING, iterations=QUICK) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])


def test_the_field_between_voxels_is_that_of_itk(phantom):
    """ITK evaluates its splines itself; without shrinking both are at the same voxels."""
    clean, _, image = phantom
    small, mask = image[::2, ::2, ::2], clean.brain[::2, ::2, ::2]
    _, found = n4(small, mask, SPACING, shrink=1, iterations=QUICK)
    filter_ = sitk.N4BiasFieldCorrectionImageFilter()
    filter_.SetMaximumNumberOfIterations(list(QUICK))
    filter_.SetConvergenceThreshold(1e-3)
    picture = sitk.GetImageFromArray(np.where(small > 0, small, 1).transpose(2, 1, 0))
    picture.SetSpacing(SPACING)
    marked = sitk.GetImageFromArray(mask.astype(np.uint8).transpose(2, 1, 0))
    marked.SetSpacing(SPACING)
    filter_.Execute(picture, marked)
    itk = sitk.GetArrayFromImage(filter_.GetLogBiasFieldAsImage(picture)).transpose(2, 1, 0)
    np.testing.assert_allclose(found, itk - itk[mask].mean(), atol=1e-4)


def test_slabs_make_the_field_whatever_their_size(phantom):
    clean, _, image = phantom
    field = bias_field(image, clean.brain, SPACING, iterations=QUICK)
    whole = np.concatenate([values for _, values in field.slabs(1000)])
    assert whole.shape == SHAPE
    np.testing.assert_allclose(np.concatenate([values for _, values in field.slabs(5)]), whole, atol=1e-5)


def test_dividing_in_place(phantom):
    clean, _, image = phantom
    field = bias_field(image, clean.brain, SPACING, iterations=QUICK)
    own = image.copy()
    assert divided(own, field, out=own) is own
    assert np.array_equal(own, divided(image, field))


def test_a_field_that_is_a_cubic_is_kept_exactly():
    places = tuple(np.arange(1.0, n, 4) for n in (32, 24, 16))
    i, j, k = np.ix_(*places)
    coarse = ((i / 30) ** 3 + j / 20 - k * j / 400).astype(np.float32)
    field = np.concatenate([values for _, values in BiasField((32, 24, 16), coarse, places).slabs()])
    i, j, k = np.indices((32, 24, 16))
    np.testing.assert_allclose(field, (i / 30) ** 3 + j / 20 - k * j / 400, atol=1e-5)


def test_a_slice_and_thick_slices(phantom):
    clean, truth, image = phantom
    _, field = n4(image[:, :, 32:33], clean.brain[:, :, 32:33], SPACING, iterations=(20, 20))
    assert field.shape == (64, 64, 1)
    assert residual(field, truth[:, :, 32:33], clean.brain[:, :, 32:33]) <= 0.7
    _, field = n4(image[:, :, ::10], clean.brain[:, :, ::10], (3, 3, 30), iterations=(20, 20))
    assert residual(field, truth[:, :, ::10], clean.brain[:, :, ::10]) <= 0.7


def test_integers_and_order_in_memory(phantom):
    clean, _, image = phantom
    whole = np.rint(image * 1000).astype(np.int16)
    one, _ = n4(whole, clean.brain, SPACING, iterations=QUICK)
    other, _ = n4(np.asfortranarray(whole.astype(np.float32)), np.asfortranarray(clean.brain), SPACING, iterations=QUICK)
    assert np.array_equal(one, other)


def test_what_cannot_be(phantom):
    clean, _, image = phantom
    with pytest.raises(ImageError, match="above 0"):
        n4(image, np.zeros(SHAPE, bool), SPACING)
    with pytest.raises(ImageError):
        n4(np.zeros(SHAPE, np.float32), None, SPACING)
    with pytest.raises(ImageError, match="above 0"):
        n4(-image, clean.brain, SPACING)
    with pytest.raises(ImageError, match="finite"):
        n4(np.full(SHAPE, np.nan), clean.brain, SPACING)
    with pytest.raises(ImageError, match="row"):
        n4(image[:, :1, :1], None, SPACING)
    with pytest.raises(ImageError, match="volume"):
        n4(image[0], None, SPACING)
    with pytest.raises(UsageError, match="mask"):
        n4(image, clean.brain[1:], SPACING)
    with pytest.raises(UsageError, match="bool"):
        n4(image, clean.tissue, SPACING)
    for wrong in ({"shrink": 0}, {"iterations": ()}, {"spacing": (1, 1, 0)}):
        with pytest.raises(UsageError):
            n4(image, clean.brain, **({"spacing": SPACING} | wrong))
