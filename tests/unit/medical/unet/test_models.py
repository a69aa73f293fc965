"""The three U-Nets: any size, the same numbers as another program's, and that all of them learns."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from monai.networks.nets import BasicUNet  # noqa: E402 - torch first, or the test is skipped

from secure_media_processor.errors import UsageError  # noqa: E402
from secure_media_processor.medical.unet.models import VARIANTS, UNetConfig, _doubled, build_unet  # noqa: E402

SIZES = {2: [(1, 1), (7, 5), (16, 16), (33, 18)], 3: [(1, 1, 1), (5, 9, 7), (8, 8, 8), (4, 4, 4), (13, 8, 3)]}


def built(variant, dimensions, *, channels=(3, 4, 6), in_channels=2, out_channels=3):
    torch.manual_seed(0)
    return build_unet(UNetConfig(variant, dimensions, in_channels, out_channels, channels))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_any_size_comes_back_in_its_size(variant, dimensions) -> None:
    net = built(variant, dimensions)
    for size in SIZES[dimensions]:
        for batch in (1, 2):
            logits = net.train()(torch.randn(batch, 2, *size))
            assert logits.shape == (batch, 3, *size)
            assert logits.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_padding_is_with_the_border_and_in_the_middle(variant, dimensions) -> None:
    net = built(variant, dimensions).eval()
    image = torch.randn(1, 2, *(9,) * dimensions)
    padded = torch.nn.functional.pad(image, (1, 2) * dimensions, mode="replicate")
    inside = (slice(None), slice(None), *(slice(1, 10),) * dimensions)
    assert torch.equal(net(image), net(padded)[inside])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_gradient_reaches_every_parameter(variant, dimensions) -> None:
    net = built(variant, dimensions, channels=(3, 4, 6, 8))
    net(torch.randn(2, 2, *(16,) * dimensions)).square().sum().backward()
    still = [name for name, parameter in net.named_parameters() if not parameter.grad.abs().max() > 1e-6]
    assert not still


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_standard_net_is_monais_basic_unet(dimensions) -> None:
    features = (4, 4, 8, 16, 32)
    ours = built("standard", dimensions, channels=features)
    theirs = BasicUNet(
        dimensions,
        2,
        3,
        (*features, 4),
        bias=False,
        act=("LeakyReLU", {"negative_slope": 0.01}),
        norm=("instance", {"affine": True}),
    )
    own = list(ours.encoder.state_dict().values())
    for level in reversed(range(4)):
        own += [*ours.up[level].state_dict().values(), *ours.decoder[level].state_dict().values()]
    own += ours.head.state_dict().values()
    names = list(theirs.state_dict())
    assert len(names) == len(own) == len(ours.state_dict())
    theirs.load_state_dict(dict(zip(names, own, strict=True)))
    image = torch.randn(1, 2, *(32,) * dimensions)
    assert torch.allclose(ours(image), theirs(image), atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_mirrored_weights_give_the_mirrored_result(variant) -> None:
    net, mirror = built(variant, 2).eval(), built(variant, 2).eval()
    mirror.load_state_dict({name: value.flip(-1) if value.dim() == 4 else value for name, value in net.state_dict().items()})
    image = torch.randn(1, 2, 12, 16)
    assert torch.allclose(net(image).flip(-1), mirror(image.flip(-1)), atol=1e-5)


def test_a_gate_follows_the_paper() -> None:
    """A gate that is open everywhere gives the standard net; one that is shut, the net without that connection."""
    net, standard = built("attention", 2).eval(), built("standard", 2).eval()
    standard.load_state_dict({name: value for name, value in net.state_dict().items() if "gates" not in name})
    assert len(net.gates) == 1, "there is none on the uppermost connection"
    image = torch.randn(1, 2, 16, 16)
    with torch.no_grad():
        net.gates[0].psi.bias.fill_(100)
        net.gates[0].psi.weight.fill_(0)
        assert torch.allclose(net(image), standard(image), atol=1e-5)
        net.gates[0].psi.bias.fill_(-100)
        standard.decoder[1][0].conv.weight[:, :4] = 0
        assert torch.allclose(net(image), standard(image), atol=1e-5)


@pytest.mark.parametrize(("shape", "mode"), [((1, 1), "bilinear"), ((3, 4), "bilinear"), ((2, 3, 1), "trilinear")])
def test_doubling_is_linear_interpolation(shape, mode) -> None:
    small = torch.randn(2, 3, *shape)
    expected = torch.nn.functional.interpolate(small, scale_factor=2.0, mode=mode, align_corners=False)
    assert torch.allclose(_doubled(small), expected, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_is_the_same_from_run_to_run(variant) -> None:
    def trained():
        net = built(variant, 3)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        images = torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(1))
        for _ in range(2):
            optimiser.zero_grad()
            net(images).square().mean().backward()
            optimiser.step()
        return net.state_dict()

    torch.use_deterministic_algorithms(mode=True)
    try:
        one, other = trained(), trained()
    finally:
        torch.use_deterministic_algorithms(mode=False)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_net_comes_back_from_its_description_and_state_dict(variant) -> None:
    config = UNetConfig(variant, 3, 1, 2, (2, 3, 4))
    again = UNetConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    net, other = build_unet(config).eval(), build_unet(again).eval()
    other.load_state_dict(net.state_dict())
    image = torch.randn(1, 1, 8, 8, 8)
    assert torch.equal(net(image), other(image))


def test_weights_are_those_of_the_seed() -> None:
    one, other = built("residual", 3).state_dict(), built("residual", 3).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


GOOD = UNetConfig("standard", 3, 1, 2, (8, 16)).to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"variant": "transformer"},
        {"variant": "attention"},  # it needs three levels
        {"dimensions": 4},
        {"dimensions": "3"},
        {"in_channels": 0},
        {"in_channels": 65},
        {"in_channels": True},
        {"out_channels": 1},
        {"out_channels": 257},
        {"channels": [8]},
        {"channels": [8] * 9},
        {"channels": [8, 0]},
        {"channels": [8, 1.5]},
        {"channels": [8, 10**9]},
        {"channels": "88"},
        {"path": "$import"},
    ],
)
def test_descriptions_out_of_bounds_are_refused(change) -> None:
    with pytest.raises(UsageError):
        UNetConfig.from_json({**GOOD, **change})
    with pytest.raises(UsageError):
        UNetConfig.from_json({})


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 1, 8, 8, 8), (2, 8, 8, 8)])
def test_images_of_another_kind_are_refused(shape) -> None:
    with pytest.raises(UsageError, match="takes"):
        built("standard", 3)(torch.zeros(shape))
