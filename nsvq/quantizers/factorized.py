"""Factorized VQ, known as VQGAN-FC."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsvq.ops import call_raised
from nsvq.quantizers.base import Quantizer, check_at_least
from nsvq.quantizers.codebook_loss import CodebookLoss


class FactorizedVQ(Quantizer):
    """Cosine search in a low-dimensional projection (VQGAN-FC; ViT-VQGAN, arXiv 2110.04627).

    Latents are projected to `code_dim`, both sides are l2-normalised, losses are taken there, and the chosen code is
    projected back.

    Args:
        dim: Channels of the latents.
        codebook_size: Number of codes K.
        code_dim: Dimension of the search space.
        commitment_weight: Factor of the commitment loss.
        codebook_weight: Factor of the codebook loss.
        codebook_loss: How the code vectors learn; None: the nearest code only.
    """

    spherical = True

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        code_dim: int = 8,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        codebook_loss: CodebookLoss | None = None,
    ) -> None:
        super().__init__(dim, codebook_size, commitment_weight, codebook_weight, codebook_loss)
        check_at_least("code_dim", code_dim, 1)
        self.code_dim = code_dim
        self.project_in = nn.Linear(dim, code_dim)
        self.project_out = nn.Linear(code_dim, dim)
        self.code_vectors = nn.Parameter(
            torch.empty(codebook_size, code_dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        )

    def codes(self) -> Tensor:
        """Return the normalised code vectors, shape (K, code_dim)."""
        return F.normalize(self.code_vectors.to(torch.promote_types(self.code_vectors.dtype, torch.float32)), dim=1)

    def project(self, latents: Tensor) -> Tensor:
        """Map latents (N, dim) onto the unit sphere (N, code_dim)."""
        return F.normalize(call_raised(self.project_in, latents), dim=1)

    def unproject(self, vectors: Tensor) -> Tensor:
        """Map unit vectors (N, code_dim) back to (N, dim)."""
        return call_raised(self.project_out, vectors)

    @property
    def codebook(self) -> Tensor:  # type: ignore[override]
        """Effective code vectors, shape (K, dim)."""
        return self.unproject(self.codes())

    def replace_codes(self, indices: Tensor, vectors: Tensor) -> None:
        """Set single code vectors, as long as the others are, so that they go on turning as fast."""
        length = self.code_vectors.detach().norm(dim=1).mean()
        super().replace_codes(indices, F.normalize(vectors, dim=1) * length)

    def initialize_codes(self, vectors: Tensor) -> None:
        """Set all code vectors, with length 1: the optimizer's first steps would turn shorter ones anywhere."""
        super().initialize_codes(vectors)
        with torch.no_grad():
            self.code_vectors.copy_(self.codes())

    @property
    def free_codes(self) -> Tensor:
        """The code vectors before normalisation, shape (K, code_dim)."""
        return self.code_vectors
