"""Nearest-code search."""

import torch
from torch import Tensor

from nsvq.ops.blocks import row_blocks
from nsvq.ops.precision import common_dtype


@torch.no_grad()
def nearest_codes(latents: Tensor, codes: Tensor, block_size: int | None = None) -> Tensor:
    """Find for each latent the code at the smallest squared Euclidean distance.

    Both sides are shifted by the codes' mean first: distances don't change, and a codebook far from the origin loses
    no digits. Among duplicated codes the lowest index wins.

    Args:
        latents: Latents, shape (N, d).
        codes: Code vectors, shape (K, d).
        block_size: Rows per block, see `row_blocks`; the working memory is block_size × K elements.

    Returns:
        Code indices, int64, shape (N,).
    """
    with torch.autocast(latents.device.type, enabled=False):
        dtype = common_dtype(latents, codes)
        center = codes.to(dtype).mean(dim=0)
        codes = codes.to(dtype) - center
        half_norms = codes.square().sum(dim=1) / 2
        indices = torch.empty(len(latents), dtype=torch.int64, device=latents.device)
        for block in row_blocks(len(latents), len(codes), dtype, block_size):
            scores = torch.addmm(half_norms, latents[block].to(dtype) - center, codes.T, alpha=-1)
            torch.argmin(scores, dim=1, out=indices[block])
        return lowest_duplicates(codes)[indices]


def lowest_duplicates(codes: Tensor) -> Tensor:
    """Find for each code the lowest index that holds the same vector.

    A matrix product may round equal columns differently, so its argmin alone picks any of them.

    Args:
        codes: Code vectors, shape (K, d).

    Returns:
        Indices, int64, shape (K,).
    """
    groups: Tensor
    _, groups, sizes = codes.unique(dim=0, return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    first = groups.argsort(stable=True)[sizes.cumsum(0) - sizes]
    return first[groups]
