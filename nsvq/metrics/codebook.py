"""Codebook usage and quantization error, accumulated over batches and processes."""

import torch
from torch import Tensor
from torchmetrics import Metric


def usage_statistics(counts: Tensor) -> dict[str, float]:
    """Describe how a codebook was used.

    Args:
        counts: How often each code was chosen, integer, shape (K,).

    Returns:
        `tokens`: N, the number of choices; `codebook_utilization`: share of codes chosen at least once;
        `codebook_utilization_ceiling`: 1 − (1 − 1/K)^N, the expected share if all codes were equally likely;
        `perplexity`: exp of the entropy of the choices, in codes; `dead_code_fraction` and `dead_codes`: share and
        number of codes never chosen. Without tokens perplexity is 0.
    """
    size = len(counts)
    tokens = int(counts.sum())
    used = int((counts > 0).sum())
    share = counts.double() / max(tokens, 1)
    return {
        "tokens": tokens,
        "codebook_utilization": used / size,
        "codebook_utilization_ceiling": 1 - (1 - 1 / size) ** tokens,
        "perplexity": float(torch.exp(-torch.special.xlogy(share, share).sum())) if tokens else 0.0,
        "dead_code_fraction": (size - used) / size,
        "dead_codes": size - used,
    }


class CodebookUsage(Metric):
    """The summed histogram of chosen codes.

    Perplexity and utilization depend on how many tokens are counted and cannot be averaged over batches or processes,
    so the counts are what is accumulated.

    Args:
        codebook_size: Number of codes K.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(codebook_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        """Count chosen codes.

        Args:
            indices: Code indices in [0, codebook_size), any shape.
        """
        self.counts += torch.bincount(indices.flatten(), minlength=len(self.counts))

    def compute(self) -> dict[str, float]:
        """Return the statistics of all tokens, see `usage_statistics`."""
        return usage_statistics(self.counts)


class QuantizationError(Metric):
    """Mean squared distance of latents to their codes over the latents' variance: mean ‖u − c‖² / s².

    s² = mean ‖u − mean u‖², summed over dimensions, over all accumulated latents. 0 is perfect; 1 is what a single code
    at the mean would give.

    Args:
        dim: Dimension of the search space.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = False
    error: Tensor
    latent_sum: Tensor
    square_sum: Tensor
    tokens: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.add_state("error", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("latent_sum", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("square_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, latents: Tensor, chosen: Tensor) -> None:
        """Accumulate latents and their codes.

        Args:
            latents: Latents in the search space, shape (N, dim).
            chosen: Their codes, shape (N, dim).
        """
        latents, chosen = latents.double(), chosen.double()
        self.error += (latents - chosen).square().sum()
        self.latent_sum += latents.sum(dim=0)
        self.square_sum += latents.square().sum()
        self.tokens += len(latents)

    def compute(self) -> Tensor:
        """Return the relative error, scalar; nan without tokens or where all latents are equal."""
        mean_square = self.square_sum / self.tokens
        variance = mean_square - (self.latent_sum / self.tokens).square().sum()
        error = self.error / self.tokens / variance
        # Equal latents leave a variance of rounding errors.
        return torch.where(variance > 1e-12 * mean_square, error, torch.nan)
