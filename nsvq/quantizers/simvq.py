"""SimVQ: a frozen codebook behind a trained linear map."""

import torch
from torch import Tensor, nn

from nsvq.quantizers.codebook_loss import CodebookLoss
from nsvq.quantizers.transformed import TransformedVQ


class SimVQ(TransformedVQ):
    """Vector quantization against a linearly transformed frozen codebook (SimVQ, arXiv 2411.02038).

    The frozen codebook is drawn from N(0, 1/dim); a linear map with bias, as in the official code, moves all codes.

    Args:
        dim: Channels of the latents.
        codebook_size: Number of codes K.
        commitment_weight: Factor of the commitment loss.
        codebook_weight: Factor of the codebook loss.
        codebook_loss: How the code vectors learn; None: the nearest code only.
        initial_scale: See `Quantizer`; a number rescales the linear map.
    """

    transform: nn.Linear

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        codebook_loss: CodebookLoss | None = None,
        initial_scale: float | None = None,
    ) -> None:
        super().__init__(dim, codebook_size, commitment_weight, codebook_weight, codebook_loss, initial_scale)
        self.register_buffer("frozen_codebook", torch.randn(codebook_size, dim) * dim**-0.5)
        self.transform = nn.Linear(dim, dim)

    def scale_codes(self, factor: Tensor) -> None:
        """Multiply the linear map."""
        self.transform.weight.mul_(factor)
        self.transform.bias.mul_(factor)
