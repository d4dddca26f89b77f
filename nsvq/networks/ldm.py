"""The autoencoder of VQGAN and latent diffusion.

Sources: VQGAN (arXiv 2012.09841) and latent diffusion (arXiv 2112.10752) with their released code. Parameters bear the
names of the published checkpoints.
"""

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32


class ResidualBlock(nn.Module):
    """Twice group norm, swish and 3×3 convolution, added to the input.

    Args:
        width: Input channels, a multiple of 32.
        out_width: Output channels, a multiple of 32. Where the two differ, a 1×1 convolution maps the input.
        dropout: Probability of dropping a value before the second convolution.
    """

    def __init__(self, width: int, out_width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(width)
        self.conv1 = nn.Conv2d(width, out_width, 3, padding=1)
        self.norm2 = _norm(out_width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1)
        self.nin_shortcut = nn.Identity() if width == out_width else nn.Conv2d(width, out_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to (B, out_width, H, W)."""
        residual = self.conv1(F.silu(self.norm1(x)))
        residual = self.conv2(self.dropout(F.silu(self.norm2(residual))))
        out: Tensor = self.nin_shortcut(x) + residual
        return out


class AttentionBlock(nn.Module):
    """Group norm and self-attention over all positions, softmax(q·k/√width)·v with one head, added to the input.

    Args:
        width: Channels, a multiple of 32.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same shape."""
        normalised = self.norm(x)
        # The kernels that keep no (HW)² matrix want one head's channels side by side in memory.
        query, key, value = (
            layer(normalised).flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = x + self.proj_out(attended.squeeze(1).transpose(1, 2).reshape(x.shape))
        return out


class Downsample(nn.Module):
    """A 3×3 convolution of stride 2 after one row of zeros at the bottom and one column at the right.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W), H and W even, to (B, width, H/2, W/2)."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Every position repeated 2×2, then a 3×3 convolution.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to (B, width, 2H, 2W)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if the level attends.

    Args:
        width: Input channels.
        out_width: Output channels.
        num_blocks: Residual blocks.
        attends: Whether attention follows each block.
        dropout: The blocks' dropout.
    """

    def __init__(self, width: int, out_width: int, num_blocks: int, attends: bool, dropout: float) -> None:
        super().__init__()
        widths = [width] + [out_width] * num_blocks
        self.block = nn.ModuleList(ResidualBlock(widths[j], out_width, dropout) for j in range(num_blocks))
        self.attn = nn.ModuleList(AttentionBlock(out_width) for _ in range(num_blocks if attends else 0))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to (B, out_width, H, W)."""
        for j, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[j](x)
        return x


class DownLevel(Level):
    """A level of the encoder, which halves the resolution at its end unless it is the last.

    Args:
        width: Input channels.
        out_width: Output channels.
        num_blocks: Residual blocks.
        attends: Whether attention follows each block.
        dropout: The blocks' dropout.
        last: Whether this is the lowest resolution.
    """

    def __init__(self, width: int, out_width: int, num_blocks: int, attends: bool, dropout: float, last: bool) -> None:
        super().__init__(width, out_width, num_blocks, attends, dropout)
        self.downsample = nn.Identity() if last else Downsample(out_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to (B, out_width, H/2, W/2), the last level to (B, out_width, H, W)."""
        out: Tensor = self.downsample(super().forward(x))
        return out


class UpLevel(Level):
    """A level of the decoder, which doubles the resolution at its end unless it is the last.

    Args:
        width: Input channels.
        out_width: Output channels.
        num_blocks: Residual blocks.
        attends: Whether attention follows each block.
        dropout: The blocks' dropout.
        last: Whether this is the highest resolution.
    """

    def __init__(self, width: int, out_width: int, num_blocks: int, attends: bool, dropout: float, last: bool) -> None:
        super().__init__(width, out_width, num_blocks, attends, dropout)
        self.upsample = nn.Identity() if last else Upsample(out_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to (B, out_width, 2H, 2W), the last level to (B, out_width, H, W)."""
        out: Tensor = self.upsample(super().forward(x))
        return out


class Middle(nn.Module):
    """Residual block, attention and residual block at the lowest resolution.

    Args:
        width: Channels.
        dropout: The blocks' dropout.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width, dropout)
        self.attn_1 = AttentionBlock(width)
        self.block_2 = ResidualBlock(width, width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same shape."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class LDMEncoder(nn.Module):
    """The encoder of VQGAN (arXiv 2012.09841) and latent diffusion (arXiv 2112.10752).

    The defaults are latent diffusion's VQ-f4. The reduction factor is f = 2^(len(ch_mult) − 1).

    Args:
        ch: Base width, a multiple of 32.
        ch_mult: Width of each level, from the image's resolution down, as a multiple of ch.
        num_res_blocks: Residual blocks a level.
        attn_resolutions: Levels with attention, by their side at an image side of `resolution`. The middle, at the
            lowest resolution, always has attention.
        resolution: Image side that attn_resolutions refers to, in pixels. Images of other sizes work as well.
        z_channels: Output channels.
        in_channels: Image channels.
        dropout: Dropout in the residual blocks.

    Raises:
        ValueError: If a number is out of its range, ch·ch_mult is no multiple of 32 or attn_resolutions names no level.
    """

    def __init__(
        self,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 4),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (),
        resolution: int = 256,
        z_channels: int = 3,
        in_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_sizes(num_res_blocks=num_res_blocks, z_channels=z_channels, in_channels=in_channels)
        widths, attends = _plan(ch, ch_mult, attn_resolutions, resolution)
        inputs, last = [ch, *widths[:-1]], len(widths) - 1
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(inputs[i], widths[i], num_res_blocks, attends[i], dropout, last=i == last)
            for i in range(len(widths))
        )
        self.mid = Middle(widths[-1], dropout)
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)
        self.out_channels = z_channels
        self.factor = 2**last

    def forward(self, x: Tensor) -> Tensor:
        """Encode images.

        Args:
            x: Images, shape (B, in_channels, H, W).

        Returns:
            Latents, shape (B, z_channels, H/f, W/f).

        Raises:
            ValueError: If H or W is no multiple of f.
        """
        height, width = x.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"image sides must be multiples of {self.factor}, got {height}×{width}")
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return out


class LDMDecoder(nn.Module):
    """The decoder of VQGAN (arXiv 2012.09841) and latent diffusion (arXiv 2112.10752).

    The mirror image of `LDMEncoder` with one more residual block a level; takes the encoder's arguments.

    Args:
        ch: Base width, a multiple of 32.
        ch_mult: Width of each level, from the image's resolution down, as a multiple of ch.
        num_res_blocks: The encoder's residual blocks a level; the decoder has one more.
        attn_resolutions: Levels with attention, by their side at an image side of `resolution`. The middle, at the
            lowest resolution, always has attention.
        resolution: Image side that attn_resolutions refers to, in pixels. Images of other sizes work as well.
        z_channels: Input channels.
        out_channels: Image channels.
        dropout: Dropout in the residual blocks.

    Raises:
        ValueError: If a number is out of its range, ch·ch_mult is no multiple of 32 or attn_resolutions names no level.
    """

    def __init__(
        self,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 4),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (),
        resolution: int = 256,
        z_channels: int = 3,
        out_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_sizes(num_res_blocks=num_res_blocks, z_channels=z_channels, out_channels=out_channels)
        widths, attends = _plan(ch, ch_mult, attn_resolutions, resolution)
        inputs = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], dropout)
        # up.0 is the highest resolution in the published checkpoints, so the levels run from the last to the first.
        self.up = nn.ModuleList(
            UpLevel(inputs[i], widths[i], num_res_blocks + 1, attends[i], dropout, last=i == 0)
            for i in range(len(widths))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        self.in_channels = z_channels

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight that makes the image, at which a GAN loss compares gradients."""
        return cast(nn.Parameter, self.conv_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Decode latents (B, z_channels, h, w) to images (B, out_channels, h·f, w·f)."""
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=1e-6)


def _plan(
    ch: int, ch_mult: Sequence[int], attn_resolutions: Sequence[int], resolution: int
) -> tuple[list[int], list[bool]]:
    """Return each level's width and whether it attends, from the image's resolution down."""
    if not ch_mult or min(ch_mult) < 1:
        raise ValueError(f"ch_mult must be a list of numbers of at least 1, got {list(ch_mult)}")
    if ch < 1 or ch % GROUPS:
        raise ValueError(
            f"ch · ch_mult must be multiples of {GROUPS}, the groups of group normalisation, and so must ch: "
            f"got ch {ch} and ch_mult {list(ch_mult)}"
        )
    factor = 2 ** (len(ch_mult) - 1)
    if resolution < 1 or resolution % factor:
        raise ValueError(f"resolution must be a multiple of {factor}, got {resolution}")
    sides = [resolution // 2**i for i in range(len(ch_mult))]
    if not set(attn_resolutions) <= set(sides):
        raise ValueError(
            f"attn_resolutions must be among the levels' sides {sides} of resolution {resolution}, "
            f"got {list(attn_resolutions)}"
        )
    return [ch * multiple for multiple in ch_mult], [side in attn_resolutions for side in sides]


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
