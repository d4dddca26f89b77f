"""EMA VQ: code vectors are running means of their latents."""

from collections.abc import Callable

import torch
from torch import Tensor

from nsvq.distributed import all_reduce_sum
from nsvq.ops import common_dtype, nearest_codes
from nsvq.quantizers.base import Quantizer, check_at_least


class EMAVQ(Quantizer):
    """Vector quantization with an exponential-moving-average codebook (VQ-VAE-2, arXiv 1906.00446; 1711.00937, App. A).

    Per training step n ← γn + (1−γ)n_batch, m ← γm + (1−γ)Σz, ñ = (n+ε)/(Σn+Kε)·Σn, e = m/ñ, with counts and sums of
    all processes. The start is n = 1, m = e. The update follows the lookup of the same step.

    Args:
        dim: Channels of the latents.
        codebook_size: Number of codes K.
        decay: γ, in [0, 1).
        eps: ε of the Laplace smoothing.
        commitment_weight: Factor of the commitment loss.
        initial_scale: See `Quantizer`; None leaves U(−1/K, 1/K).

    Raises:
        ValueError: If a number is out of its range.
    """

    codebook: Tensor
    cluster_sizes: Tensor
    latent_sums: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        decay: float = 0.99,
        eps: float = 1e-5,
        commitment_weight: float = 0.25,
        initial_scale: float | None = None,
    ) -> None:
        super().__init__(dim, codebook_size, commitment_weight, initial_scale=initial_scale)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        check_at_least("eps", eps, 0)
        self.decay = decay
        self.eps = eps
        codes = torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        self.register_buffer("codebook", codes)
        self.register_buffer("cluster_sizes", torch.ones(codebook_size))
        self.register_buffer("latent_sums", codes.clone())

    @property
    def free_codes(self) -> Tensor:
        """The codebook buffer."""
        return self.codebook

    def learn(self, latents: Tensor, codes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Find each latent's code; no loss moves the codes."""
        return nearest_codes(latents, codes), {}

    @torch.no_grad()
    def update(self, latents: Tensor, indices: Tensor) -> None:
        """Move the codes towards the mean of their latents."""
        batch = latents.new_zeros(self.codebook_size, self.dim + 1)
        batch[:, -1].index_add_(0, indices, latents.new_ones(len(indices)))
        batch[:, :-1].index_add_(0, indices, latents)
        batch = all_reduce_sum(batch).to(self.latent_sums.dtype)
        self.cluster_sizes.lerp_(batch[:, -1], 1 - self.decay)
        self.latent_sums.lerp_(batch[:, :-1], 1 - self.decay)
        total = self.cluster_sizes.sum()
        smoothed = (self.cluster_sizes + self.eps) / (total + self.codebook_size * self.eps) * total
        self.codebook.copy_(self.latent_sums / smoothed[:, None])

    def replace_codes(self, indices: Tensor, vectors: Tensor) -> None:
        """Set single code vectors and restart their running sums at n = 1, m = e."""
        super().replace_codes(indices, vectors)
        self.cluster_sizes[indices] = 1.0
        self.latent_sums[indices] = self.codebook[indices]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EMAVQ":
        # A step of 1 − γ falls below the resolution of half types, so the sums don't follow the module into them.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in ("cluster_sizes", "latent_sums"):
            buffer = getattr(self, name)
            setattr(self, name, buffer.to(common_dtype(buffer)))
        return self

    def scale_codes(self, factor: Tensor) -> None:
        """Multiply code vectors and running sums."""
        super().scale_codes(factor)
        self.latent_sums.mul_(factor)
