"""Gradient estimators: how the gradient passes the nearest-code lookup."""

from torch import Tensor


def straight_through(latents: Tensor, quantized: Tensor, codebook_share: float = 0.0) -> Tensor:
    """Return the quantized values with the gradient handed to the latents.

    Forward the result equals `quantized` to the last bit. Backward the latents receive the incoming gradient unchanged
    (van den Oord et al. 2017) and the chosen codes receive `codebook_share` times it: the codebook straight-through
    z + a·q + sg[(1 − a)·q − z] of "Beyond Stationarity" (arXiv 2602.18896, Sec. 3.3.3).

    Args:
        latents: Latents, any shape.
        quantized: Their code vectors, the same shape.
        codebook_share: The factor a.

    Returns:
        The estimate, the same shape.
    """
    passed = quantized.detach() + (latents - latents.detach())
    if codebook_share == 0:
        return passed
    return passed + codebook_share * (quantized - quantized.detach())
