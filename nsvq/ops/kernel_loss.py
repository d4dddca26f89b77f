"""The kernel-weighted codebook loss of NSVQ, with its gradient in closed form."""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsvq.ops.blocks import row_blocks
from nsvq.ops.precision import common_dtype
from nsvq.ops.search import lowest_duplicates

Kernel = Literal["gaussian", "clamped_softmax", "softmax"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


class KernelSweep(NamedTuple):
    """What one sweep over the latents yields."""

    loss: Tensor
    """Scalar loss, differentiable in the codes."""
    indices: Tensor
    """Index of each latent's nearest code, int64, shape (N,)."""
    winner_distance: Tensor
    """Mean squared distance of the latents to their nearest code, scalar, no gradient."""


def kernel_weights(distances: Tensor, kernel: Kernel, bandwidth: Tensor | float, neighbor_weight: float) -> Tensor:
    """Weigh each pair of latent and code by their squared distance.

    Args:
        distances: Squared distances, shape (N, K). The tensor may be overwritten.
        kernel: `gaussian`: v·exp(−d/τ), with τ = 2σ² and v = ½ in "Beyond Stationarity" (arXiv 2602.18896, architecture
            figure); `clamped_softmax`: min(1, v·K·softmax(−d/τ)) (the paper's released code); `softmax`:
            v·softmax(−d/τ) (arXiv 2606.11363). Both softmaxes run over all K codes.
        bandwidth: τ in squared-distance units, above 0.
        neighbor_weight: v.

    Returns:
        Weights, shape (N, K).

    Raises:
        ValueError: If the kernel is unknown.
    """
    scaled = distances.neg_().div_(bandwidth)
    if kernel == "gaussian":
        return scaled.exp_().mul_(neighbor_weight)
    if kernel == "softmax":
        return scaled.softmax(dim=1).mul_(neighbor_weight)
    if kernel == "clamped_softmax":
        return scaled.softmax(dim=1).mul_(neighbor_weight * distances.shape[1]).clamp_(max=1.0)
    raise ValueError(f"unknown kernel {kernel!r}; known kernels: {', '.join(KERNELS)}")


class _KernelLoss(torch.autograd.Function):
    """Keeps (K,) and (K, d) sums for backward, never an N×K tensor."""

    @staticmethod
    def forward(
        ctx: Any,
        codes: Tensor,
        latents: Tensor,
        kernel: Kernel,
        bandwidth: Tensor | float,
        neighbor_weight: float,
        block_size: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = common_dtype(latents, codes)
        center = codes.to(dtype).mean(dim=0)
        shifted_codes = codes.to(dtype) - center
        code_norms = shifted_codes.square().sum(dim=1)
        lowest = lowest_duplicates(shifted_codes)
        indices = torch.empty(len(latents), dtype=torch.int64, device=latents.device)
        weight_sums = torch.zeros_like(code_norms)
        weighted_latents = torch.zeros_like(shifted_codes)
        loss = code_norms.new_zeros(())
        winner_distance = code_norms.new_zeros(())
        for block in row_blocks(len(latents), len(codes), dtype, block_size):
            rows = latents[block].to(dtype) - center
            distances = torch.addmm(code_norms, rows, shifted_codes.T, alpha=-2)
            winners = lowest[distances.argmin(dim=1)]
            indices[block] = winners
            distances += rows.square().sum(dim=1, keepdim=True)
            distances.clamp_(min=0)
            # The winner's distance is often far below the norms it was computed from.
            winner_distances = (rows - shifted_codes[winners]).square().sum(dim=1)
            distances.scatter_(1, winners[:, None], winner_distances[:, None])
            weights = kernel_weights(distances.clone(), kernel, bandwidth, neighbor_weight)
            weights.scatter_(1, winners[:, None], 1.0)
            weight_sums += weights.sum(dim=0)
            weighted_latents.addmm_(weights.T, rows)
            loss += torch.linalg.vecdot(weights.flatten(), distances.flatten())
            winner_distance += winner_distances.sum()
        ctx.save_for_backward(shifted_codes, weight_sums, weighted_latents)
        ctx.scale = 1 / max(latents.numel(), 1)
        ctx.codes_dtype = codes.dtype
        winner_distance /= max(len(latents), 1)
        ctx.mark_non_differentiable(indices, winner_distance)
        return loss * ctx.scale, indices, winner_distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        codes, weight_sums, weighted_latents = ctx.saved_tensors
        gradient = (codes * weight_sums[:, None] - weighted_latents) * (2 * ctx.scale * grad_loss)
        return gradient.to(ctx.codes_dtype), None, None, None, None, None


def kernel_codebook_loss(
    latents: Tensor,
    codes: Tensor,
    kernel: Kernel,
    bandwidth: Tensor | float,
    neighbor_weight: float,
    block_size: int | None = None,
) -> KernelSweep:
    """Pull every code towards the latents, each pair by its kernel weight.

    The loss is 1/(N·d) · Σ_i [d_iq(i) + Σ_{j≠q(i)} w_ij·d_ij] with d_ij the squared distance of latent i and code j,
    q(i) the nearest code and w_ij constant under differentiation, so that
    ∂L/∂e_j = 2/(N·d) · (e_j·Σ_i w_ij − Σ_i w_ij z_i) with w_iq(i) = 1. Source: "Beyond Stationarity"
    (arXiv 2602.18896), codebook loss of NSVQ. Working memory is a few block×K tensors.

    Args:
        latents: Latents, shape (N, d); no gradient flows to them.
        codes: Code vectors, shape (K, d).
        kernel: The weight's form, see `kernel_weights`.
        bandwidth: τ in squared-distance units, above 0.
        neighbor_weight: The kernel's factor.
        block_size: Rows per block, see `row_blocks`.

    Returns:
        Loss, indices and mean winner distance.

    Raises:
        ValueError: If the kernel is unknown.
    """
    with torch.autocast(latents.device.type, enabled=False):
        return KernelSweep(*_KernelLoss.apply(codes, latents.detach(), kernel, bandwidth, neighbor_weight, block_size))
