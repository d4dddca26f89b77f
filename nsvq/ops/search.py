"""Nearest-code search."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nsvq.ops.backend import takes_triton, triton_precision
from nsvq.ops.blocks import check_memory_cap, slices, tile_shape
from nsvq.ops.duplicates import distinct_codes
from nsvq.ops.precision import common_dtype, full_precision
from nsvq.ops.scores import center_codes, check_finite, check_sides, improvements, score_codes, score_latents

Metric = Literal["euclidean", "cosine"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@torch.no_grad()
def nearest_codes(
    latents: Tensor, codes: Tensor, metric: Metric = "euclidean", memory_cap: int | None = None
) -> Tensor:
    """Find for each latent the nearest code.

    Both sides are shifted by the codes' mean first: distances don't change, and a codebook far from the origin loses
    no digits. Among duplicated codes the lowest index wins. Types are raised to float32, and products are computed in
    it whatever autocast or `torch.set_float32_matmul_precision` say.

    Args:
        latents: Latents, shape (N, d).
        codes: Code vectors, shape (K, d).
        metric: `euclidean`: smallest (squared) distance; `cosine`: largest cosine, which is the smallest distance on
            the unit sphere.
        memory_cap: Bytes of working memory, see `tile_shape`.

    Returns:
        Code indices, int64, shape (N,).

    Raises:
        ValueError: If the metric is unknown, a shape or type is wrong, memory_cap is below 1 or a value is not finite.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known metrics: {', '.join(METRICS)}")
    check_sides(latents, codes)
    check_memory_cap(memory_cap)
    dtype = common_dtype(latents, codes)
    latents, codes = latents.to(dtype), codes.to(dtype)
    if metric == "cosine":
        latents, codes = F.normalize(latents, dim=1), F.normalize(codes, dim=1)
    indices: Tensor = search(latents, codes, memory_cap)
    return indices


@torch.library.custom_op("nsvq::search", mutates_args=())
def search(latents: Tensor, codes: Tensor, memory_cap: int | None) -> Tensor:
    """Run the search, see `nearest_codes`; latents and codes have one type of at least float32."""
    latents, codes = latents.contiguous(), codes.contiguous()
    distinct = distinct_codes(codes)
    if distinct is not None:
        codes = codes[distinct.first]
    indices = _search_distinct(latents, codes, memory_cap)
    return indices if distinct is None else distinct.first[indices]


@search.register_fake
def _(latents: Tensor, codes: Tensor, memory_cap: int | None) -> Tensor:
    return latents.new_empty(len(latents), dtype=torch.int64)


def _search_distinct(latents: Tensor, codes: Tensor, memory_cap: int | None) -> Tensor:
    if takes_triton(latents, codes):
        from nsvq.ops import triton_search

        check_finite(latents.sum(dim=1) + codes.sum(), latents, codes)
        return triton_search.search(latents, codes, triton_precision())
    with full_precision(latents.device):
        return search_tiles(latents, codes, memory_cap)


def search_tiles(latents: Tensor, codes: Tensor, memory_cap: int | None) -> Tensor:
    """Search by tiles, see `nearest_codes`; no two codes are equal."""
    center, codes = center_codes(codes)
    code_side = score_codes(codes)
    indices = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    block, width = tile_shape(len(latents), len(codes), codes.dtype, codes.device, memory_cap)
    buffer = codes.new_empty(block * width)
    for rows in slices(len(latents), block):
        latent_side = score_latents(latents[rows] - center)
        winners = indices[rows]
        scores = codes.new_full((len(winners),), -math.inf)
        for columns in slices(len(codes), width):
            tile = buffer[: (columns.stop - columns.start) * len(winners)].view(-1, len(winners))
            torch.mm(code_side[columns], latent_side, out=tile)
            peaks, improved, places = improvements(tile, scores)
            winners[improved] = columns.start + places
            scores = torch.maximum(scores, peaks)
        check_finite(scores, latents[rows], codes)
    return indices
