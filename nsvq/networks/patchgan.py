"""A discriminator that judges patches."""

from typing import Literal

import torch
from torch import Tensor, nn

GROUPS = 32


class PatchDiscriminator(nn.Module):
    """The PatchGAN discriminator, one logit a patch (pix2pix, arXiv 1611.07004, Sec. 3.2.2), as VQGAN uses it.

    num_layers 4×4 convolutions of stride 2 and two of stride 1; three strided ones give patches of 70×70 pixels.
    Convolution weights start at N(0, 0.02²), the norms' at N(1, 0.02²) with bias 0. With batch norm, parameters bear
    the names and shapes of `loss.discriminator` in taming-transformers' checkpoints.

    Batch norm takes its statistics from the images of one process, so that its results depend on how a batch is split
    among ranks. Group norm normalises each image by itself and has no such dependence.

    Args:
        in_channels: Image channels.
        channels: Width after the first convolution; it doubles with each further one up to 8·channels. With group norm
            at most 32 or a multiple of 32.
        num_layers: Convolutions of stride 2.
        norm: `group`, with 32 groups or, below 32 channels, as many as channels; or `batch`, as published.

    Raises:
        ValueError: If a number is out of its range or the norm is unknown.
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: int = 64,
        num_layers: int = 3,
        norm: Literal["group", "batch"] = "group",
    ) -> None:
        super().__init__()
        for name, size in (("in_channels", in_channels), ("channels", channels), ("num_layers", num_layers)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if norm not in ("group", "batch"):
            raise ValueError(f"norm must be group or batch, got {norm!r}")
        groups = min(GROUPS, channels)
        if norm == "group" and channels % groups:
            raise ValueError(f"channels must be at most {GROUPS} or a multiple of {GROUPS}, got {channels}")
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        width = channels
        for n in range(1, num_layers + 1):
            out_width = channels * min(2**n, 8)
            stride = 2 if n < num_layers else 1
            layers += [
                nn.Conv2d(width, out_width, 4, stride=stride, padding=1, bias=norm == "group"),
                nn.BatchNorm2d(out_width) if norm == "batch" else nn.GroupNorm(groups, out_width),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            width = out_width
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        self.main.apply(_initialise)
        # A strided convolution halves a side, rounded down, and each of the last two takes one off.
        self.minimal_side = 3 * 2**num_layers

    def forward(self, x: Tensor) -> Tensor:
        """Judge images.

        Args:
            x: Images, shape (B, in_channels, H, W).

        Returns:
            Logits, one a patch, shape (B, 1, ⌊H/2^num_layers⌋ − 2, ⌊W/2^num_layers⌋ − 2); higher is more real.

        Raises:
            ValueError: If a side is too small for a single logit.
        """
        height, width = x.shape[-2:]
        if min(height, width) < self.minimal_side:
            raise ValueError(f"image sides must be at least {self.minimal_side}, got {height}×{width}")
        logits: Tensor = self.main(x)
        return logits


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        module.weight.normal_(0.0, 0.02)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        module.weight.normal_(1.0, 0.02)
        module.bias.zero_()
