"""The autoencoder of VQGAN and latent diffusion: published names and shapes, and what its parts compute."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nsvq.networks import ConvDecoder, LDMDecoder, LDMEncoder
from nsvq.networks.ldm import AttentionBlock, Downsample, ResidualBlock, Upsample

VQ_F4 = {"ch": 128, "ch_mult": (1, 2, 4), "num_res_blocks": 2, "z_channels": 3}
VQGAN_F16 = {
    "ch": 128,
    "ch_mult": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
    "attn_resolutions": (16,),
    "resolution": 256,
    "z_channels": 256,
}
SMALL = {"ch": 64, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "resolution": 8, "z_channels": 5}

# The checkpoints' modules: kind, name, input channels, output channels.
VQ_F4_ENCODER = """
conv conv_in 3 128
res  down.0.block.0 128 128
res  down.0.block.1 128 128
conv down.0.downsample.conv 128 128
res  down.1.block.0 128 256
res  down.1.block.1 256 256
conv down.1.downsample.conv 256 256
res  down.2.block.0 256 512
res  down.2.block.1 512 512
res  mid.block_1 512 512
attn mid.attn_1 512 512
res  mid.block_2 512 512
norm norm_out 512 512
conv conv_out 512 3
"""
VQ_F4_DECODER = """
conv conv_in 3 512
res  mid.block_1 512 512
attn mid.attn_1 512 512
res  mid.block_2 512 512
res  up.2.block.0 512 512
res  up.2.block.1 512 512
res  up.2.block.2 512 512
conv up.2.upsample.conv 512 512
res  up.1.block.0 512 256
res  up.1.block.1 256 256
res  up.1.block.2 256 256
conv up.1.upsample.conv 256 256
res  up.0.block.0 256 128
res  up.0.block.1 128 128
res  up.0.block.2 128 128
norm norm_out 128 128
conv conv_out 128 3
"""
VQGAN_F16_ENCODER = """
conv conv_in 3 128
res  down.0.block.0 128 128
res  down.0.block.1 128 128
conv down.0.downsample.conv 128 128
res  down.1.block.0 128 128
res  down.1.block.1 128 128
conv down.1.downsample.conv 128 128
res  down.2.block.0 128 256
res  down.2.block.1 256 256
conv down.2.downsample.conv 256 256
res  down.3.block.0 256 256
res  down.3.block.1 256 256
conv down.3.downsample.conv 256 256
res  down.4.block.0 256 512
res  down.4.block.1 512 512
attn down.4.attn.0 512 512
attn down.4.attn.1 512 512
res  mid.block_1 512 512
attn mid.attn_1 512 512
res  mid.block_2 512 512
norm norm_out 512 512
conv conv_out 512 256
"""
VQGAN_F16_DECODER = """
conv conv_in 256 512
res  mid.block_1 512 512
attn mid.attn_1 512 512
res  mid.block_2 512 512
res  up.4.block.0 512 512
res  up.4.block.1 512 512
res  up.4.block.2 512 512
attn up.4.attn.0 512 512
attn up.4.attn.1 512 512
attn up.4.attn.2 512 512
conv up.4.upsample.conv 512 512
res  up.3.block.0 512 256
res  up.3.block.1 256 256
res  up.3.block.2 256 256
conv up.3.upsample.conv 256 256
res  up.2.block.0 256 256
res  up.2.block.1 256 256
res  up.2.block.2 256 256
conv up.2.upsample.conv 256 256
res  up.1.block.0 256 128
res  up.1.block.1 128 128
res  up.1.block.2 128 128
conv up.1.upsample.conv 128 128
res  up.0.block.0 128 128
res  up.0.block.1 128 128
res  up.0.block.2 128 128
norm norm_out 128 128
conv conv_out 128 3
"""


def tensors(kind, name, width, out_width):
    """Return the names and shapes of a module's tensors as the checkpoints have them."""
    if kind == "norm":
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    if kind in ("conv", "conv1x1"):
        side = 3 if kind == "conv" else 1
        return {f"{name}.weight": (out_width, width, side, side), f"{name}.bias": (out_width,)}
    if kind == "attn":
        parts = [("norm", "norm")] + [("conv1x1", part) for part in ("q", "k", "v", "proj_out")]
        return {k: v for part, end in parts for k, v in tensors(part, f"{name}.{end}", width, width).items()}
    parts = [("norm", "norm1", width), ("conv", "conv1", width), ("norm", "norm2", out_width)]
    parts += [("conv", "conv2", out_width)] + [("conv1x1", "nin_shortcut", width)] * (width != out_width)
    return {k: v for part, end, size in parts for k, v in tensors(part, f"{name}.{end}", size, out_width).items()}


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def pair(**changes):
    options = SMALL | changes
    return LDMEncoder(**options), LDMDecoder(**options)


@pytest.mark.parametrize(
    ("network", "options", "table"),
    [
        (LDMEncoder, VQ_F4, VQ_F4_ENCODER),
        (LDMDecoder, VQ_F4, VQ_F4_DECODER),
        (LDMEncoder, VQGAN_F16, VQGAN_F16_ENCODER),
        (LDMDecoder, VQGAN_F16, VQGAN_F16_DECODER),
    ],
    ids=["vq-f4 encoder", "vq-f4 decoder", "vqgan-f16 encoder", "vqgan-f16 decoder"],
)
def test_names_and_shapes_are_the_published_ones(network, options, table):
    published = {}
    for line in table.split("\n")[1:-1]:
        kind, name, width, out_width = line.split()
        published |= tensors(kind, name, int(width), int(out_width))
    with torch.device("meta"):
        assert shapes(network(**options)) == published


def test_the_defaults_are_vq_f4():
    with torch.device("meta"):
        assert shapes(LDMEncoder()) == shapes(LDMEncoder(**VQ_F4))
        assert shapes(LDMDecoder()) == shapes(LDMDecoder(**VQ_F4))
        assert LDMEncoder()(torch.zeros(1, 3, 256, 256)).shape == (1, 3, 64, 64)
        assert LDMDecoder()(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 256, 256)


@pytest.mark.parametrize("ch_mult", [(1,), (1, 2), (2, 1, 1)], ids=str)
def test_encoder_and_decoder_mirror_each_other_at_any_image_size(ch_mult):
    encoder, decoder = pair(ch=32, ch_mult=ch_mult, attn_resolutions=())
    factor = 2 ** (len(ch_mult) - 1)
    latents = encoder(torch.randn(2, 3, 8, 12))
    assert latents.shape == (2, 5, 8 // factor, 12 // factor)
    assert (encoder.out_channels, decoder.in_channels) == (5, 5)
    assert decoder(latents).shape == (2, 3, 8, 12)


def test_image_channels():
    encoder, decoder = LDMEncoder(**SMALL, in_channels=1), LDMDecoder(**SMALL, out_channels=2)
    assert decoder(encoder(torch.randn(1, 1, 4, 4))).shape == (1, 2, 4, 4)


@pytest.mark.parametrize("size", [(8, 9), (9, 8), (1, 8)], ids=str)
def test_an_image_that_the_factor_does_not_divide_is_refused(size):
    with pytest.raises(ValueError, match=f"multiples of 2, got {size[0]}×{size[1]}"):
        pair()[0](torch.randn(1, 3, *size))


def test_attention_is_softmax_of_scaled_products():
    block = AttentionBlock(64).double()
    x = torch.randn(2, 64, 3, 5, dtype=torch.double)
    normalised = F.group_norm(x, 32, block.norm.weight, block.norm.bias, eps=1e-6)
    q, k, v = (
        torch.einsum("oc,bcn->bno", layer.weight[:, :, 0, 0], normalised.flatten(2)) + layer.bias
        for layer in (block.q, block.k, block.v)
    )
    weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(64), dim=-1)
    assert torch.allclose(weights.sum(-1), torch.ones((), dtype=torch.double))
    attended = (weights @ v).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(block(x), x + block.proj_out(attended), rtol=1e-10, atol=1e-10)


def test_attention_does_not_know_positions():
    block = AttentionBlock(32).double()
    x = torch.randn(2, 32, 4, 6, dtype=torch.double)
    order = torch.randperm(24)
    mixed = x.flatten(2)[:, :, order].reshape(x.shape)
    assert torch.allclose(block(x).flatten(2)[:, :, order], block(mixed).flatten(2), rtol=1e-10, atol=1e-10)


def test_attention_stands_at_the_named_resolutions_only():
    encoder, decoder = pair(ch=32, ch_mult=(1, 1, 1), num_res_blocks=2, attn_resolutions=(16, 4), resolution=16)
    assert [len(level.attn) for level in encoder.down] == [2, 0, 2]
    assert [len(level.attn) for level in decoder.up] == [3, 0, 3]


def test_a_residual_block_is_norm_swish_convolution_twice():
    block = ResidualBlock(32, 64, dropout=0.0).double()
    x = 1e-3 * torch.randn(2, 32, 4, 4, dtype=torch.double)

    def half(x, norm, conv):
        x = x.unflatten(1, (32, -1))
        mean, variance = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), correction=0, keepdim=True)
        x = ((x - mean) / (variance + 1e-6).sqrt()).flatten(1, 2) * norm.weight[:, None, None]
        return conv(x / (1 + (-x).exp()))

    expected = block.nin_shortcut(x) + half(half(x, block.norm1, block.conv1), block.norm2, block.conv2)
    assert torch.allclose(block(x), expected, rtol=1e-10, atol=1e-12)


def test_dropout_acts_in_training_only():
    encoder = pair(dropout=0.5)[0]
    x = torch.randn(1, 3, 8, 8)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)])
def test_downsampling_pads_bottom_and_right(row, column):
    down = Downsample(1)
    with torch.no_grad():
        down.conv.weight.zero_()[0, 0, row, column] = 1.0
        down.conv.bias.zero_()
    x = torch.rand(1, 1, 6, 8)
    padded = torch.zeros(7, 9)
    padded[:6, :8] = x[0, 0]
    assert torch.equal(down(x)[0, 0], padded[row : row + 6 : 2, column : column + 8 : 2])


def test_upsampling_repeats_positions():
    up = Upsample(1)
    with torch.no_grad():
        up.conv.weight.zero_()[0, 0, 1, 1] = 1.0
        up.conv.bias.zero_()
    x = torch.rand(1, 1, 2, 3)
    assert torch.equal(up(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_the_gradient_reaches_every_parameter():
    model = nn.Sequential(*pair())
    model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A key's bias adds the same to all products of one query, which the softmax cancels.
        assert name.endswith("k.bias") or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("network", "options"), [(LDMDecoder, SMALL), (ConvDecoder, {"channels": [5, 5]})], ids=["ldm", "conv"]
)
def test_the_last_layer_is_the_weight_that_makes_the_image(network, options):
    decoder = network(**options)
    assert isinstance(decoder.last_layer, nn.Parameter)
    assert decoder.last_layer is [value for name, value in decoder.named_parameters() if name.endswith("weight")][-1]
    with torch.no_grad():
        decoder.last_layer.zero_()
    image = decoder(torch.randn(2, 5, 2, 2))
    assert torch.equal(image, image[:1, :, :1, :1].expand_as(image))


@pytest.mark.parametrize("network", [LDMEncoder, LDMDecoder])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch": 48}, r"ch · ch_mult must be multiples of 32.*ch 48 and ch_mult \[1, 2\]"),
        ({"ch": 16}, "ch · ch_mult must be multiples of 32"),
        ({"ch": 0}, "ch · ch_mult must be multiples of 32"),
        ({"ch_mult": ()}, r"ch_mult must be a list of numbers of at least 1, got \[\]"),
        ({"ch_mult": (1, 0)}, r"ch_mult .* got \[1, 0\]"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1, got 0"),
        ({"z_channels": 0}, "z_channels must be at least 1, got 0"),
        ({"resolution": 9}, "resolution must be a multiple of 2, got 9"),
        ({"resolution": 0}, "resolution must be a multiple of 2, got 0"),
        ({"attn_resolutions": (4, 16)}, r"attn_resolutions must be among .*\[8, 4\].*, got \[4, 16\]"),
        ({"dropout": 1.5}, "dropout"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(network, changes, message):
    with pytest.raises(ValueError, match=message):
        network(**(SMALL | changes))


def test_impossible_image_channels_are_refused():
    with pytest.raises(ValueError, match="in_channels must be at least 1, got 0"):
        LDMEncoder(**SMALL, in_channels=0)
    with pytest.raises(ValueError, match="out_channels must be at least 1, got 0"):
        LDMDecoder(**SMALL, out_channels=0)
