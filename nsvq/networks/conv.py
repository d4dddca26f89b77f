"""The convolutional encoder and decoder of the VQ-VAE experiments."""

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualLayer(nn.Module):
    """ReLU, 3×3 convolution, ReLU, 1×1 convolution, added to the input (VQ-VAE, arXiv 1711.00937, Sec. 4.1).

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.mix = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same shape."""
        out: Tensor = x + self.mix(F.relu(self.conv(F.relu(x))))
        return out


class ConvEncoder(nn.Module):
    """Strided convolutions, each halving the image, then residual layers.

    The defaults are the CelebA network of "Beyond Stationarity" (arXiv 2602.18896, released code): f = 4, six residual
    layers.

    Args:
        channels: Width after each stride-2 convolution; the reduction factor is f = 2^len(channels).
        num_residual_layers: Residual layers at the last width.
        in_channels: Image channels.

    Raises:
        ValueError: If channels is empty or a number is below its least value.
    """

    def __init__(
        self, channels: Sequence[int] = (128, 256), num_residual_layers: int = 6, in_channels: int = 3
    ) -> None:
        super().__init__()
        _check_sizes(channels, num_residual_layers)
        layers: list[nn.Module] = []
        width = in_channels
        for out_width in channels:
            layers += [nn.Conv2d(width, out_width, 4, stride=2, padding=1), nn.ReLU()]
            width = out_width
        layers.append(nn.Conv2d(width, width, 3, padding=1))
        layers += [ResidualLayer(width) for _ in range(num_residual_layers)]
        self.layers = nn.Sequential(*layers)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Encode images (B, in_channels, H, W) to (B, out_channels, H/f, W/f)."""
        out: Tensor = self.layers(x)
        return out


class ConvDecoder(nn.Module):
    """The mirror image of `ConvEncoder`.

    Args:
        channels: The encoder's widths, in the encoder's order.
        num_residual_layers: Residual layers at the first width.
        out_channels: Image channels.

    Raises:
        ValueError: If channels is empty or a number is below its least value.
    """

    def __init__(
        self, channels: Sequence[int] = (128, 256), num_residual_layers: int = 6, out_channels: int = 3
    ) -> None:
        super().__init__()
        _check_sizes(channels, num_residual_layers)
        width = channels[-1]
        layers: list[nn.Module] = [nn.Conv2d(width, width, 3, padding=1)]
        layers += [ResidualLayer(width) for _ in range(num_residual_layers)]
        layers.append(nn.ReLU())
        for out_width in reversed(channels[:-1]):
            layers += [nn.ConvTranspose2d(width, out_width, 4, stride=2, padding=1), nn.ReLU()]
            width = out_width
        layers.append(nn.ConvTranspose2d(width, out_channels, 4, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)
        self.in_channels = channels[-1]

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight that makes the image, at which a GAN loss compares gradients."""
        return cast(nn.Parameter, self.layers[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """Decode (B, in_channels, h, w) to images (B, out_channels, h·f, w·f)."""
        out: Tensor = self.layers(x)
        return out


def _check_sizes(channels: Sequence[int], num_residual_layers: int) -> None:
    if not channels or min(channels) < 1:
        raise ValueError(f"channels must be a list of numbers of at least 1, got {list(channels)}")
    if num_residual_layers < 0:
        raise ValueError(f"num_residual_layers must be at least 0, got {num_residual_layers}")
