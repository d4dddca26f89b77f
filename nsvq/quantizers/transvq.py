"""TransVQ: a small transformer moves the whole codebook at once."""

import torch
from torch import Tensor

from nsvq.quantizers.base import check_at_least
from nsvq.quantizers.codebook_loss import CodebookLoss
from nsvq.quantizers.codebook_transformer import CodebookTransformer
from nsvq.quantizers.transformed import TransformedVQ


class TransVQ(TransformedVQ):
    """Vector quantization against a frozen random codebook seen through a trained transformer.

    Source: "Beyond Stationarity" (arXiv 2602.18896) and its released code. The frozen codebook is drawn from
    N(0, 1/frozen_dim); one selected code moves all codes.

    Args:
        dim: Channels of the latents.
        codebook_size: Number of codes K.
        frozen_dim: Channels of the frozen codebook; None: `dim`.
        depth: Transformer blocks.
        width: Channels of the transformer.
        num_heads: Attention heads; must divide the width.
        mlp_ratio: Inner over outer width of the feed-forward parts.
        commitment_weight: Factor of the commitment loss.
        codebook_weight: Factor of the codebook loss.
        codebook_loss: How the code vectors learn; None: the nearest code only.
        initial_scale: See `Quantizer`; a number rescales the output projection. Without it the codes start about
            as large as the transformer's LayerNorm makes them, often far outside the latents.
        position_embedding: Whether each code has a learned position embedding (released form: yes).

    Raises:
        ValueError: If a number is out of its range or num_heads does not divide width.
    """

    transform: CodebookTransformer

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        frozen_dim: int | None = None,
        depth: int = 1,
        width: int = 256,
        num_heads: int = 1,
        mlp_ratio: float = 2.0,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        codebook_loss: CodebookLoss | None = None,
        initial_scale: float | None = None,
        position_embedding: bool = True,
    ) -> None:
        super().__init__(dim, codebook_size, commitment_weight, codebook_weight, codebook_loss, initial_scale)
        frozen_dim = dim if frozen_dim is None else frozen_dim
        for name, value in (("frozen_dim", frozen_dim), ("depth", depth), ("width", width), ("num_heads", num_heads)):
            check_at_least(name, value, 1)
        if width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads, got width={width}, num_heads={num_heads}")
        if int(width * mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio must leave at least one inner channel, got {mlp_ratio} at width {width}")
        self.register_buffer("frozen_codebook", torch.randn(codebook_size, frozen_dim) * frozen_dim**-0.5)
        self.transform = CodebookTransformer(
            frozen_dim, dim, codebook_size, depth, width, num_heads, mlp_ratio, position_embedding
        )

    def scale_codes(self, factor: Tensor) -> None:
        """Multiply the output projection."""
        self.transform.out_proj.weight.mul_(factor)
