"""Losses against MONAI's, and where numbers are at their ends."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from monai import losses as monai  # noqa: E402 - torch first, or the test is skipped

from secure_media_processor.errors import ImageError, UsageError  # noqa: E402
from secure_media_processor.medical.unet.losses import (  # noqa: E402
    LOSSES,
    BceDiceLoss,
    DiceCrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    TverskyLoss,
    loss_named,
)

COMMON = {"to_onehot_y": True, "include_background": False}


def bce_dice(logits, labels):
    one_hot = torch.nn.functional.one_hot(labels[:, 0], logits.shape[1]).movedim(-1, 1).float()
    dice = monai.DiceLoss(sigmoid=True, **COMMON)(logits, labels)
    return dice + torch.nn.functional.binary_cross_entropy_with_logits(logits, one_hot)


PAIRS = {
    "dice": (DiceLoss(), monai.DiceLoss(softmax=True, **COMMON)),
    "dice over the batch": (DiceLoss(over_batch=True), monai.DiceLoss(softmax=True, batch=True, **COMMON)),
    "dice-ce": (DiceCrossEntropyLoss(), monai.DiceCELoss(softmax=True, **COMMON)),
    "bce-dice": (BceDiceLoss(), bce_dice),
    "focal": (FocalLoss(), monai.FocalLoss(to_onehot_y=True, use_softmax=True)),
    "focal 0.5": (FocalLoss(gamma=0.5), monai.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=0.5)),
    "tversky": (TverskyLoss(), monai.TverskyLoss(softmax=True, alpha=0.3, beta=0.7, **COMMON)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shape", [(2, 9, 7), (2, 5, 6, 7)], ids=["2D", "3D"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("absent", [False, True], ids=["", "a class is absent"])
def test_equals_monai(name, shape, classes, absent) -> None:
    ours, theirs = PAIRS[name]
    generator = torch.Generator().manual_seed(7)
    logits = 3 * torch.randn(shape[0], classes, *shape[1:], generator=generator)
    labels = torch.randint(0, classes - absent, shape, generator=generator)
    results = []
    for loss, target in ((ours, labels), (theirs, labels[:, None])):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, target)
        value.backward()
        results.append((value.detach(), leaf.grad))
    (value, gradient), (their_value, their_gradient) = results
    assert torch.allclose(value, their_value, atol=1e-5, rtol=1e-5)
    assert torch.allclose(gradient, their_gradient, atol=1e-5 * float(their_gradient.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0, 1, 100, 10000])
def test_bfloat16_under_autocast_is_computed_in_float32(name, scale) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (scale * torch.randn(1, 3, 16, 16, 16, generator=generator)).to(torch.bfloat16)
    labels = torch.randint(0, 3, (1, 16, 16, 16), generator=generator)
    leaf = logits.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss_named(name)(leaf, labels)
    value.backward()
    assert value.dtype == torch.float32
    assert value == loss_named(name)(logits.float(), labels)
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_right_costs_nothing_and_wrong_costs_more_also_if_a_class_is_absent(name) -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[0, 2:5, 2:5] = 1  # class 2 is nowhere
    right = 100 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float() - 50
    wrong = right.roll(1, dims=1)
    loss = loss_named(name)
    assert 0 <= loss(right, labels) < 1e-4
    assert loss(wrong, labels) > 0.5
    assert 0 <= loss(right[..., :1, :1], labels[..., :1, :1]) < 1e-4  # nothing but background


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_has_a_slope_where_a_voxel_is_certain(gamma) -> None:
    logits = torch.tensor([[[[500.0]], [[-500.0]]]], requires_grad=True)
    FocalLoss(gamma)(logits, torch.zeros(1, 1, 1, dtype=torch.int64)).backward()
    assert logits.grad.isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    logits = torch.zeros(1, 2, 4, 4)
    with pytest.raises(UsageError, match="shape"):
        DiceLoss()(logits, torch.zeros(1, 1, 4, 4, dtype=torch.int64))
    with pytest.raises(ImageError, match="from 0 to 2"):
        DiceLoss()(logits, torch.full((1, 4, 4), 2).tril())
    with pytest.raises(UsageError, match="hinge") as caught:
        loss_named("hinge")
    assert "dice-ce" in caught.value.hint
