"""Nearest-code search as one Triton kernel that never writes a score to memory."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsvq.ops.backend import Precision
from nsvq.ops.triton_tiles import half_norms, on_device_of, pack, shift_to_mean, split_loop, unpack


class SearchTiles(NamedTuple):
    """Sizes of the search kernel, see `search_tiles`."""

    rows: int
    codes: int
    chunk: int
    """Entries of a vector that one product reads, a multiple of 16."""
    warps: int
    stages: int


def search_tiles(d: int, precision: Precision) -> SearchTiles:
    """Choose tile sizes for vectors of length d.

    With `ieee` products 128 × 64 scores over 8 warps are 32 accumulators per thread, few enough that two programs share
    an H100's multiprocessor, and the chunk is short because the product is unrolled over it. Tensor cores want the
    wider tile. Three stages of both operands' chunks take at most 112 KiB of an H100's 227 KiB of shared memory.
    """
    return SearchTiles(
        rows=128, codes=64 if precision == "ieee" else 128, chunk=16 if d <= 16 else 32, warps=8, stages=3
    )


@triton.jit  # type: ignore[untyped-decorator]
def search_kernel(
    latents: tl.tensor,
    codes: tl.tensor,
    code_half_norms: tl.tensor,
    scale: tl.tensor,
    best: tl.tensor,
    exponential_sums: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    d: tl.tensor,
    split_tiles: tl.tensor,
    softmax: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    chunk: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    """Find each row's best score z·c − |c|²/2 over one range of codes, and Σ_j 2^(scale·(score_j − best)).

    The program (a, b) has the a-th block of rows and the b-th range of codes; it writes row b of `best` (packed, int64)
    and of `exponential_sums` (only if softmax), both of shape (ranges, n).
    """
    rows = tl.program_id(0) * block_n + tl.arange(0, block_n)
    first = tl.program_id(1) * split_tiles
    last = tl.minimum(first + split_tiles, tl.cdiv(k, block_k))
    dims = tl.arange(0, chunk)
    row_pointers = latents + rows.to(tl.int64)[:, None] * d + dims[None, :]
    best_score = tl.full((block_n,), float("-inf"), tl.float32)
    best_index = tl.zeros((block_n,), tl.int32)
    if softmax:
        factor = tl.load(scale)
        total = tl.zeros((block_n,), tl.float32)
    for tile in range(first, last):
        columns = tile * block_k + tl.arange(0, block_k)
        code_pointers = codes + columns.to(tl.int64)[None, :] * d + dims[:, None]
        scores = tl.zeros((block_n, block_k), tl.float32)
        for start in range(0, d, chunk):
            z = tl.load(row_pointers + start, mask=(rows < n)[:, None] & (dims < d - start)[None, :], other=0.0)
            c = tl.load(code_pointers + start, mask=(columns < k)[None, :] & (dims < d - start)[:, None], other=0.0)
            scores = tl.dot(z, c, scores, input_precision=precision)
        scores -= tl.load(code_half_norms + columns, mask=columns < k, other=float("inf"))[None, :]
        tile_score, tile_index = tl.max(scores, axis=1, return_indices=True)
        better = tile_score > best_score
        if softmax:
            new_score = tl.where(better, tile_score, best_score)
            total *= tl.exp2((best_score - new_score) * factor)
            total += tl.sum(tl.exp2((scores - new_score[:, None]) * factor), axis=1)
        best_score = tl.where(better, tile_score, best_score)
        best_index = tl.where(better, tile * block_k + tile_index, best_index)
    offsets = tl.program_id(1).to(tl.int64) * n + rows
    tl.store(best + offsets, pack(best_score, best_index), mask=rows < n)
    if softmax:
        tl.store(exponential_sums + offsets, total, mask=rows < n)


def search_scores(
    latents: Tensor,
    codes: Tensor,
    precision: Precision,
    scale: Tensor | None = None,
    tiles: SearchTiles | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find each latent's best score and code, and the sum of exponentials of all its scores.

    With few blocks of rows the codes are split over programs too. Each range writes its own result, and the maximum
    over the ranges of scores packed with their index depends on no order, so two calls agree bit for bit.

    Args:
        latents: Latents, float32, contiguous, shape (N, d), N > 0.
        codes: Code vectors, float32, contiguous, shape (K, d).
        precision: How products are formed, see `nsvq.ops.backend.Precision`.
        scale: Scalar tensor; None skips the sum.
        tiles: Tile sizes instead of those of `search_tiles`.

    Returns:
        Best score, its index (int64) and log2 Σ_j 2^(scale·(score_j − best)), each of shape (N,); the last one holds
        zeros without a scale.
    """
    n, d = latents.shape
    k = len(codes)
    tiles = tiles or search_tiles(d, precision)
    blocks = triton.cdiv(n, tiles.rows)
    code_half_norms = half_norms(codes)
    split = split_loop(triton.cdiv(k, tiles.codes), blocks)
    best = torch.empty(split.programs, n, dtype=torch.int64, device=latents.device)
    sums = torch.empty(split.programs if scale is not None else 0, n, device=latents.device)
    with on_device_of(latents):
        search_kernel[(blocks, split.programs)](
            latents,
            codes,
            code_half_norms,
            scale if scale is not None else code_half_norms,
            best,
            sums,
            n,
            k,
            d,
            split.tiles,
            softmax=scale is not None,
            block_n=tiles.rows,
            block_k=tiles.codes,
            chunk=tiles.chunk,
            precision=precision,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
    score, index = unpack(best.amax(dim=0))
    # A row of NaN has no maximum, and its index may come from the padding.
    index.clamp_(max=k - 1)
    if scale is None:
        return score, index, torch.zeros_like(score)
    range_scores, _ = unpack(best)
    return score, index, (sums * ((range_scores - score) * scale).exp2()).sum(dim=0).log2()


@torch.no_grad()
def search(latents: Tensor, codes: Tensor, precision: Precision = "ieee", tiles: SearchTiles | None = None) -> Tensor:
    """Find for each latent the code at the smallest squared Euclidean distance.

    The code with the largest z·c − |c|²/2 is nearest; |z|² is left out because it would cost the digits of the rest.
    Both sides are shifted by the codes' mean first. Among bit-equal scores the lowest index wins.

    Args:
        latents: Latents, float32, shape (N, d), on a CUDA device.
        codes: Code vectors, float32, shape (K, d).
        precision: How products are formed, see `nsvq.ops.backend.Precision`; with `tf32` near ties are decided by
            rounding.
        tiles: Tile sizes instead of those of `search_tiles`.

    Returns:
        Code indices, int64, shape (N,).

    Raises:
        ValueError: If the shapes don't fit, there is no code, or a type isn't float32.
    """
    latents, codes = shift_to_mean(latents, codes)
    if len(latents) == 0:
        return torch.empty(0, dtype=torch.int64, device=latents.device)
    return search_scores(latents, codes, precision, tiles=tiles)[1]
