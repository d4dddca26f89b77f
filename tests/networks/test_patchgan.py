"""The PatchGAN discriminator: published names, patches, initialisation, norms."""

import pytest
import torch
from torch import nn

from nsvq.networks import PatchDiscriminator

# taming-transformers' `loss.discriminator`.
PUBLISHED = {
    "main.0.weight": (64, 3, 4, 4),
    "main.0.bias": (64,),
    "main.2.weight": (128, 64, 4, 4),
    "main.3.weight": (128,),
    "main.3.bias": (128,),
    "main.3.running_mean": (128,),
    "main.3.running_var": (128,),
    "main.3.num_batches_tracked": (),
    "main.5.weight": (256, 128, 4, 4),
    "main.6.weight": (256,),
    "main.6.bias": (256,),
    "main.6.running_mean": (256,),
    "main.6.running_var": (256,),
    "main.6.num_batches_tracked": (),
    "main.8.weight": (512, 256, 4, 4),
    "main.9.weight": (512,),
    "main.9.bias": (512,),
    "main.9.running_mean": (512,),
    "main.9.running_var": (512,),
    "main.9.num_batches_tracked": (),
    "main.11.weight": (1, 512, 4, 4),
    "main.11.bias": (1,),
}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def test_names_and_shapes_with_batch_norm_are_the_published_ones():
    assert shapes(PatchDiscriminator(norm="batch")) == PUBLISHED


def test_group_norm_differs_in_biases_and_statistics_only():
    expected = {name: shape for name, shape in PUBLISHED.items() if not name.endswith(STATISTICS)}
    expected |= {"main.2.bias": (128,), "main.5.bias": (256,), "main.8.bias": (512,)}
    assert shapes(PatchDiscriminator()) == expected


def test_the_width_stops_at_eight_times_the_first():
    model = PatchDiscriminator(channels=4, num_layers=5)
    widths = [layer.out_channels for layer in model.main if isinstance(layer, nn.Conv2d)]
    assert widths == [4, 8, 16, 32, 32, 32, 1]


@pytest.mark.parametrize(("num_layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch(num_layers, patch):
    # In evaluation batch norm is an affine map, so that only convolutions spread a pixel's influence.
    model = PatchDiscriminator(channels=8, num_layers=num_layers, norm="batch").double().eval()
    image = torch.randn(1, 3, 160, 160, dtype=torch.double, requires_grad=True)
    logits = model(image)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    rows, columns = image.grad[0].abs().amax(0).nonzero(as_tuple=True)
    assert rows.max() - rows.min() + 1 == patch
    assert columns.max() - columns.min() + 1 == patch


@pytest.mark.parametrize(
    ("num_layers", "size", "logits"),
    [(3, (256, 256), (30, 30)), (3, (24, 41), (1, 3)), (2, (12, 64), (1, 14)), (1, (6, 7), (1, 1))],
    ids=str,
)
def test_one_logit_a_patch(num_layers, size, logits):
    model = PatchDiscriminator(in_channels=2, channels=4, num_layers=num_layers)
    assert model(torch.randn(2, 2, *size)).shape == (2, 1, *logits)


@pytest.mark.parametrize(("num_layers", "least"), [(1, 6), (2, 12), (3, 24)])
def test_an_image_too_small_for_a_logit_is_refused(num_layers, least):
    model = PatchDiscriminator(channels=4, num_layers=num_layers)
    model(torch.randn(1, 3, least, least))
    with pytest.raises(ValueError, match=f"at least {least}, got {least - 1}×{least}"):
        model(torch.randn(1, 3, least - 1, least))


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_weights_start_near_zero_and_norms_near_one(norm):
    model = PatchDiscriminator(norm=norm)
    for layer in model.main:
        if isinstance(layer, nn.Conv2d):
            error = 5 * 0.02 / layer.weight.numel() ** 0.5
            assert layer.weight.mean().abs() < error
            assert abs(layer.weight.std() - 0.02) < error
        elif isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
            error = 5 * 0.02 / layer.weight.numel() ** 0.5
            assert abs(layer.weight.mean() - 1) < error
            assert abs(layer.weight.std() - 0.02) < error
            assert not layer.bias.any()


@pytest.mark.parametrize(("norm", "independent"), [("group", True), ("batch", False)])
def test_only_batch_norm_depends_on_how_a_batch_is_split(norm, independent):
    model = PatchDiscriminator(channels=8, norm=norm).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.double)
    together = model(images)
    apart = torch.cat([model(half) for half in images.chunk(2)])
    assert torch.allclose(together, apart, rtol=1e-9, atol=1e-9) == independent


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_gradient_reaches_every_parameter_and_the_image(norm):
    model = PatchDiscriminator(channels=32, norm=norm)
    image = torch.randn(2, 3, 32, 32, requires_grad=True)
    model(image).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert image.grad.abs().max() > 0


def test_negative_values_leak_by_a_fifth():
    model = PatchDiscriminator()
    slopes = [layer.negative_slope for layer in model.main if isinstance(layer, nn.LeakyReLU)]
    assert slopes == [0.2] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"channels": 48}, "channels must be at most 32 or a multiple of 32, got 48"),
        ({"norm": "instance"}, "norm must be group or batch, got 'instance'"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchDiscriminator(**arguments)


def test_batch_norm_takes_any_width():
    assert PatchDiscriminator(channels=48, norm="batch")(torch.randn(2, 3, 24, 24)).shape == (2, 1, 1, 1)
