"""NSVQ as one would write it from the formula: the yardstick of the closed form."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsvq.ops import Kernel


def plain_kernel_loss(
    latents: Tensor, codes: Tensor, kernel: Kernel, bandwidth: float, neighbor_weight: float
) -> tuple[Tensor, Tensor]:
    """Compute NSVQ's codebook loss over the full N×K distances and leave the gradient to autograd.

    Args:
        latents: Latents, shape (N, d).
        codes: Code vectors, shape (K, d).
        kernel: `gaussian`, `clamped_softmax` or `softmax`.
        bandwidth: τ in squared-distance units.
        neighbor_weight: The kernel's factor v.

    Returns:
        The loss 1/(N·d) · Σ_ij w_ij·d_ij with w_ij constant and w_iq(i) = 1, and the nearest codes (N,).
    """
    latents = latents.detach()
    squares = latents.square().sum(dim=1, keepdim=True) + codes.square().sum(dim=1)
    distances = squares - 2 * latents @ codes.T
    with torch.no_grad():
        indices = distances.argmin(dim=1)
        if kernel == "gaussian":
            weights = neighbor_weight * torch.exp(-distances / bandwidth)
        else:
            weights = neighbor_weight * torch.softmax(-distances / bandwidth, dim=1)
        if kernel == "clamped_softmax":
            weights = (len(codes) * weights).clamp(max=1)
        weights.scatter_(1, indices[:, None], 1.0)
    return (weights * distances).sum() / latents.numel(), indices


class PlainNSVQ(nn.Module):
    """NSVQ on `plain_kernel_loss`, with the arithmetic of `nsvq.quantizers.NSVQ` otherwise.

    Args:
        codes: The codebook at the start, shape (K, dim).
        kernel: The kernel.
        bandwidth: τ.
        neighbor_weight: The kernel's factor.
        commitment_weight: Factor of the commitment loss.
    """

    def __init__(
        self,
        codes: Tensor,
        kernel: Kernel,
        bandwidth: float,
        neighbor_weight: float,
        commitment_weight: float,
    ) -> None:
        super().__init__()
        self.codebook = nn.Parameter(codes)
        self.kernel: Kernel = kernel
        self.bandwidth = bandwidth
        self.neighbor_weight = neighbor_weight
        self.commitment_weight = commitment_weight

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize latents (N, dim) to the same shape; also return the indices (N,) and the loss."""
        loss, indices = plain_kernel_loss(z, self.codebook, self.kernel, self.bandwidth, self.neighbor_weight)
        chosen = F.embedding(indices, self.codebook).detach()
        loss = loss + self.commitment_weight * F.mse_loss(z, chosen)
        return z + (chosen - z).detach(), indices, loss
