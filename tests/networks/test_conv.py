"""Shapes of the convolutional networks."""

import pytest
import torch

from nsvq.networks import ConvDecoder, ConvEncoder


@pytest.mark.parametrize("channels", [[4], [4, 6], [4, 6, 8]], ids=str)
def test_encoder_and_decoder_mirror_each_other(channels):
    encoder = ConvEncoder(channels, num_residual_layers=1)
    decoder = ConvDecoder(channels, num_residual_layers=1)
    factor = 2 ** len(channels)
    latents = encoder(torch.randn(2, 3, 16, 24))
    assert latents.shape == (2, channels[-1], 16 // factor, 24 // factor)
    assert (encoder.out_channels, decoder.in_channels) == (channels[-1], channels[-1])
    assert decoder(latents).shape == (2, 3, 16, 24)


def test_the_default_reduces_by_four():
    encoder = ConvEncoder()
    assert encoder(torch.randn(1, 3, 8, 8)).shape == (1, 256, 2, 2)
    assert ConvDecoder()(torch.randn(1, 256, 2, 2)).shape == (1, 3, 8, 8)


def test_image_channels_and_no_residual_layers():
    encoder = ConvEncoder([4, 4], num_residual_layers=0, in_channels=1)
    decoder = ConvDecoder([4, 4], num_residual_layers=0, out_channels=1)
    assert decoder(encoder(torch.randn(1, 1, 8, 8))).shape == (1, 1, 8, 8)


def test_latents_can_be_negative():
    assert ConvEncoder([4], num_residual_layers=1)(torch.randn(4, 3, 8, 8)).min() < 0


@pytest.mark.parametrize("network", [ConvEncoder, ConvDecoder])
def test_impossible_sizes_are_refused(network):
    for channels in ([], [4, 0], [-1]):
        with pytest.raises(ValueError, match="channels"):
            network(channels)
    with pytest.raises(ValueError, match="num_residual_layers"):
        network([4], num_residual_layers=-1)
