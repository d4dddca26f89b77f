"""A kernel loss in which each code has a bandwidth of its own."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nsvq.ops.blocks import check_memory_cap, slices, tile_shape
from nsvq.ops.kernel_loss import KernelSweep, has_tangent, keep_gradient, scale_gradient
from nsvq.ops.precision import common_dtype, full_precision
from nsvq.ops.scores import check_sides
from nsvq.ops.search import nearest_codes


@torch.no_grad()
def code_distances(latents: Tensor, codes: Tensor, memory_cap: int | None = None) -> Tensor:
    """Return each code's squared distance to its nearest latent.

    Args:
        latents: Latents, shape (N, d), N above 0.
        codes: Code vectors, shape (K, d).
        memory_cap: Bytes of working memory, see `tile_shape`.

    Returns:
        Distances, shape (K,), at least float32.
    """
    dtype = common_dtype(latents, codes)
    nearest = nearest_codes(codes, latents, memory_cap=memory_cap)
    return (codes.to(dtype) - F.embedding(nearest, latents).to(dtype)).square().sum(dim=1)


def local_kernel_codebook_loss(
    latents: Tensor, codes: Tensor, bandwidths: Tensor, neighbor_weight: float, memory_cap: int | None = None
) -> KernelSweep:
    """Pull every code towards the latents by a gaussian kernel of the code's own width.

    The loss is that of `kernel_codebook_loss` with w_ij = v·exp(−d_ij/τ_j) for all but the nearest code. With τ_j in
    proportion to the code's squared distance to its nearest latent (`code_distances`), as in self-tuning spectral
    clustering (Zelnik-Manor and Perona 2004), a code that the latents have left is pulled however far they are, and one
    that lies among them learns from its own latents nearly alone, at any scale of the latents.

    Args:
        latents: Latents, shape (N, d); no gradient flows to them.
        codes: Code vectors, shape (K, d).
        bandwidths: τ_j in squared-distance units, at least 0, shape (K,); at 0 a code has no weight but as the nearest.
        neighbor_weight: v.
        memory_cap: Bytes of working memory, see `tile_shape`.

    Returns:
        Loss, differentiable in the codes once, indices and mean winner distance.

    Raises:
        ValueError: If a shape, type or number is wrong.
    """
    check_sides(latents, codes)
    check_memory_cap(memory_cap)
    if bandwidths.shape != codes.shape[:1]:
        raise ValueError(f"expected a bandwidth for each of {len(codes)} codes, got {tuple(bandwidths.shape)}")
    if not 0 <= neighbor_weight < math.inf:
        raise ValueError(f"neighbor_weight must be at least 0 and finite, got {neighbor_weight}")
    if not torch.compiler.is_compiling() and has_tangent(codes):
        raise NotImplementedError("the kernel-weighted codebook loss has no forward-mode derivative")
    dtype = common_dtype(latents, codes)
    loss, _, indices, winner_distance = local_kernel_sweep(
        latents.detach().to(dtype), codes.to(dtype), bandwidths.detach().to(dtype), neighbor_weight, memory_cap
    )
    return KernelSweep(loss, indices, winner_distance.detach())


@torch.library.custom_op("nsvq::local_kernel_sweep", mutates_args=())
def local_kernel_sweep(
    latents: Tensor, codes: Tensor, bandwidths: Tensor, neighbor_weight: float, memory_cap: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the loss, its gradient in the codes, the indices and the mean winner distance."""
    with full_precision(latents.device):
        indices = nearest_codes(latents, codes, memory_cap=memory_cap)
        offsets = latents - F.embedding(indices, codes)
        winner_distance = offsets.square().sum(dim=1).mean()
        loss, gradient = _neighbors(latents, codes, bandwidths, indices, memory_cap)
        gradient *= neighbor_weight
        gradient.index_add_(0, indices, -offsets)
        gradient *= 2 / latents.numel()
        loss = winner_distance / codes.shape[1] + neighbor_weight * loss / latents.numel()
        return loss, gradient, indices, winner_distance


@local_kernel_sweep.register_fake
def _(
    latents: Tensor, codes: Tensor, bandwidths: Tensor, neighbor_weight: float, memory_cap: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scalar = codes.new_empty(())
    return scalar, codes.new_empty(codes.shape), latents.new_empty(len(latents), dtype=torch.int64), scalar.clone()


local_kernel_sweep.register_autograd(scale_gradient, setup_context=keep_gradient)


def _neighbors(
    latents: Tensor, codes: Tensor, bandwidths: Tensor, indices: Tensor, memory_cap: int | None
) -> tuple[Tensor, Tensor]:
    """Return Σ w_ij·d_ij and Σ_i w_ij·(e_j − z_i) of all but the nearest codes, with v left out."""
    center = codes.mean(dim=0)
    latents, codes = latents - center, codes - center
    squares = codes.square().sum(dim=1)
    # At a width of 0 the exponent would be 0/0 where a latent lies on the code.
    steepness = (1 / bandwidths).clamp(max=torch.finfo(codes.dtype).max)
    weight_sums, latent_sums, loss = torch.zeros_like(squares), torch.zeros_like(codes), codes.new_zeros(())
    rows, _ = tile_shape(len(latents), len(codes), codes.dtype, codes.device, memory_cap, keep_columns=True)
    for block in slices(len(latents), rows):
        part = latents[block]
        distances = torch.addmm(squares, part, codes.T, alpha=-2)
        distances += part.square().sum(dim=1, keepdim=True)
        distances.clamp_(min=0)
        weights = torch.exp(-distances * steepness)
        weights.scatter_(1, indices[block, None], 0)
        weights.masked_fill_(bandwidths == 0, 0)
        loss += (weights * distances).sum()
        weight_sums += weights.sum(dim=0)
        latent_sums += weights.T @ part
    return loss, codes * weight_sums[:, None] - latent_sums
