"""Vanilla VQ."""

import torch
from torch import Tensor, nn

from nsvq.quantizers.base import Quantizer
from nsvq.quantizers.codebook_loss import CodebookLoss


class VanillaVQ(Quantizer):
    """Vector quantization with a codebook of free parameters (VQ-VAE, arXiv 1711.00937).

    loss = commitment_weight·mean (z − sg e_q)² + codebook_weight·mean (sg z − e_q)², straight-through gradient,
    codebook initialised U(−1/K, 1/K).

    Args:
        dim: Channels of the latents.
        codebook_size: Number of codes K.
        commitment_weight: Factor of the commitment loss.
        codebook_weight: Factor of the codebook loss.
        codebook_loss: How the code vectors learn; None: the nearest code only.
        initial_scale: See `Quantizer`; None leaves U(−1/K, 1/K).
    """

    codebook: nn.Parameter

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
        self.codebook = nn.Parameter(torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size))

    @property
    def free_codes(self) -> Tensor:
        """The codebook parameter."""
        return self.codebook
