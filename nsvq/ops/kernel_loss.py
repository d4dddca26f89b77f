"""The kernel-weighted codebook loss of NSVQ, with its gradient in closed form."""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nsvq.ops.backend import takes_triton, triton_precision
from nsvq.ops.blocks import check_memory_cap
from nsvq.ops.kernel_sweep import sweep_tiles
from nsvq.ops.precision import common_dtype, full_precision
from nsvq.ops.scores import check_finite, check_sides

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


def kernel_codebook_loss(
    latents: Tensor,
    codes: Tensor,
    kernel: Kernel,
    bandwidth: Tensor | float,
    neighbor_weight: float,
    memory_cap: int | None = None,
) -> KernelSweep:
    """Pull every code towards the latents, each pair by its kernel weight.

    The loss is 1/(N·d) · Σ_i [d_iq(i) + Σ_{j≠q(i)} w_ij·d_ij] with d_ij the squared distance of latent i and code j,
    q(i) the nearest code and w_ij constant under differentiation, so that
    ∂L/∂e_j = 2/(N·d) · (e_j·Σ_i w_ij − Σ_i w_ij z_i) with w_iq(i) = 1. Source: "Beyond Stationarity"
    (arXiv 2602.18896), codebook loss of NSVQ.

    Weights: `gaussian`: v·exp(−d/τ), with τ = 2σ² and v = ½ in the paper's architecture figure; `clamped_softmax`:
    min(1, v·K·softmax(−d/τ)) (the paper's released code); `softmax`: v·softmax(−d/τ) (arXiv 2606.11363). Both
    softmaxes run over all K codes. Weights below the smallest normal number of the type count as zero. In float32 a
    weight has a relative error of about 3e-7·|z − mean e|²/τ, and the neighbors' part of the loss one of
    3e-7·|z − mean e|²/d.

    Args:
        latents: Latents, shape (N, d); no gradient flows to them.
        codes: Code vectors, shape (K, d).
        kernel: The weight's form.
        bandwidth: τ in squared-distance units, above 0.
        neighbor_weight: v.
        memory_cap: Bytes of working memory, see `tile_shape`; the softmax kernels hold K scores for a block of latents,
            the gaussian kernel a tile.

    Returns:
        Loss, indices and mean winner distance.

    Raises:
        ValueError: If the kernel is unknown, a shape, type or number is wrong or a value is not finite.
        NotImplementedError: If the gradient is differentiated once more, or in forward mode.
    """
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; known kernels: {', '.join(KERNELS)}")
    check_sides(latents, codes)
    check_memory_cap(memory_cap)
    if not 0 <= neighbor_weight < math.inf:
        raise ValueError(f"neighbor_weight must be at least 0 and finite, got {neighbor_weight}")
    if not isinstance(bandwidth, Tensor) and not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth must be above 0 and finite, got {bandwidth}")
    if not torch.compiler.is_compiling() and has_tangent(codes):
        raise NotImplementedError("the kernel-weighted codebook loss has no forward-mode derivative")
    dtype = common_dtype(latents, codes)
    bandwidth = torch.as_tensor(bandwidth, dtype=dtype, device=codes.device)
    loss, _, indices, winner_distance = kernel_sweep(
        latents.detach().to(dtype), codes.to(dtype), kernel, bandwidth.detach(), neighbor_weight, memory_cap
    )
    return KernelSweep(loss, indices, winner_distance.detach())


def has_tangent(tensor: Tensor) -> bool:
    """Return whether a tensor is differentiated in forward mode."""
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


@torch.library.custom_op("nsvq::kernel_sweep", mutates_args=())
def kernel_sweep(
    latents: Tensor, codes: Tensor, kernel: str, bandwidth: Tensor, neighbor_weight: float, memory_cap: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the loss, its gradient in the codes, the indices and the mean winner distance in one sweep."""
    latents, codes = latents.contiguous(), codes.contiguous()
    if takes_triton(latents, codes):
        from nsvq.ops import triton_kernel_loss

        check_finite(latents.sum(dim=1) + codes.sum(), latents, codes)
        sweep = triton_kernel_loss.kernel_sweep(latents, codes, kernel, bandwidth, neighbor_weight, triton_precision())
        check_finite(sweep.loss, latents, codes)
        return sweep
    with full_precision(latents.device):
        return sweep_tiles(latents, codes, kernel, bandwidth.item(), neighbor_weight, memory_cap)


@kernel_sweep.register_fake
def _(
    latents: Tensor, codes: Tensor, kernel: str, bandwidth: Tensor, neighbor_weight: float, memory_cap: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scalar = codes.new_empty(())
    return scalar, codes.new_empty(codes.shape), latents.new_empty(len(latents), dtype=torch.int64), scalar.clone()


def keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep the gradient in the codes, the second output of a sweep."""
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def scale_gradient(
    ctx: Any, grad_loss: Tensor | None, grad_gradient: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Return the gradient in the codes, the second input of a sweep, and none in the others.

    Raises:
        NotImplementedError: If it is differentiated once more.
    """
    if grad_gradient is not None:
        raise NotImplementedError("the kernel-weighted codebook loss has no second derivative")
    (gradient,) = ctx.saved_tensors
    none = [None] * (len(ctx.needs_input_grad) - 2)
    return None, None if grad_loss is None else gradient * grad_loss, *none


kernel_sweep.register_autograd(scale_gradient, setup_context=keep_gradient)
