"""The kernel-weighted codebook loss of NSVQ as Triton kernels that never write a latents × codes matrix to memory."""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsvq.ops.backend import Precision
from nsvq.ops.triton_search import search_scores
from nsvq.ops.triton_tiles import half_norms, on_device_of, pack, shift_to_mean, split_loop, unpack

MAX_DIM = 256
"""Longest code vector that `kernel_sweep` takes: a program keeps its codes' whole gradient in registers."""

_KERNELS = ("gaussian", "clamped_softmax", "softmax")
_SMALLEST_EXPONENT = -126.0


class Sweep(NamedTuple):
    """What one sweep over the latents yields."""

    loss: Tensor
    """Scalar loss, float32."""
    gradient: Tensor
    """The loss's gradient in the codes, float32, shape (K, d)."""
    indices: Tensor
    """Index of each latent's nearest code, int64, shape (N,)."""
    winner_distance: Tensor
    """Mean squared distance of the latents to their nearest code, scalar, float32."""


class SweepTiles(NamedTuple):
    """Sizes of the sweep kernel, see `sweep_tiles`."""

    rows: int
    codes: int
    chunk: int
    """Entries of a vector that the first product reads at once, a power of 2 from 16."""
    warps: int
    stages: int


def sweep_tiles(d: int, precision: Precision) -> SweepTiles:
    """Choose tile sizes for vectors of length d, at most `MAX_DIM`.

    Scores (codes × rows) and sums (codes × d) both live in registers, so the tiles shrink as d grows. An `ieee` product
    is unrolled over its depth, which is the number of rows in the second product. The sizes are the largest of those
    tried that the compiler for an H100 fits into 255 registers, spilling 40 bytes of a thread at most.
    """
    if precision == "ieee":
        if d <= 64:
            return SweepTiles(rows=32, codes=64, chunk=16, warps=4, stages=2)
        return SweepTiles(rows=16, codes=64 if d <= 128 else 32, chunk=32, warps=8, stages=2)
    if d <= 128:
        return SweepTiles(rows=32, codes=128 if d <= 64 else 64, chunk=32, warps=8, stages=2)
    return SweepTiles(rows=16, codes=64, chunk=16, warps=8, stages=2)


@triton.jit  # type: ignore[untyped-decorator]
def sweep_kernel(
    latents: tl.tensor,
    row_half_norms: tl.tensor,
    codes: tl.tensor,
    code_half_norms: tl.tensor,
    scale: tl.tensor,
    left_out: tl.tensor,
    best: tl.tensor,
    row_scores: tl.tensor,
    log_sums: tl.tensor,
    latent_sums: tl.tensor,
    weight_sums: tl.tensor,
    gap_sums: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    d: tl.tensor,
    split_tiles: tl.tensor,
    factor: tl.tensor,
    negligible: tl.tensor,
    gaussian: tl.constexpr,
    clamped: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    block_d: tl.constexpr,
    chunk: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    """Sum w_ij·z_i, w_ij and w_ij·d_ij/2 over one range of rows for one tile of codes.

    The program (a, b) has the a-th tile of codes and the b-th range of rows; it writes its codes' part of row b of
    `latent_sums` (ranges, k, d), `weight_sums` and `gap_sums` (ranges, k). The pair of row i and code `left_out[i]` has
    weight 0. The gaussian kernel leaves its factor to the caller and merges each row's best score into `best`.
    """
    columns = tl.program_id(0) * block_k + tl.arange(0, block_k)
    dims = tl.arange(0, block_d)
    code_mask = (columns < k)[:, None] & (dims < d)[None, :]
    code_offsets = columns.to(tl.int64)[:, None] * d + dims[None, :]
    parts = tl.arange(0, chunk)
    c_pointers = codes + columns.to(tl.int64)[:, None] * d + parts[None, :]
    if chunk == block_d:
        c = tl.load(c_pointers, mask=code_mask, other=0.0)
    # Infinity would do for the search, but 0·∞ would follow.
    c_half_norm = tl.load(code_half_norms + columns, mask=columns < k, other=1e30)
    exponent_scale = tl.load(scale)
    latent_sum = tl.zeros((block_k, block_d), tl.float32)
    weight_sum = tl.zeros((block_k,), tl.float32)
    gap_sum = tl.zeros((block_k,), tl.float32)
    first = tl.program_id(1) * split_tiles
    last = tl.minimum(first + split_tiles, tl.cdiv(n, block_n))
    for tile in range(first, last):
        rows = tile * block_n + tl.arange(0, block_n)
        row_mask = rows < n
        z_pointers = latents + rows.to(tl.int64)[:, None] * d + dims[None, :]
        z_mask = row_mask[:, None] & (dims < d)[None, :]
        z_half_norm = tl.load(row_half_norms + rows, mask=row_mask, other=0.0)
        out = tl.load(left_out + rows, mask=row_mask, other=-1)
        if chunk == block_d:
            z = tl.load(z_pointers, mask=z_mask, other=0.0)
            scores = tl.dot(c, tl.trans(z), input_precision=precision)
        else:
            scores = tl.zeros((block_k, block_n), tl.float32)
            part_pointers = latents + rows.to(tl.int64)[None, :] * d + parts[:, None]
            for start in range(0, d, chunk):
                c = tl.load(c_pointers + start, mask=(columns < k)[:, None] & (parts < d - start)[None, :], other=0.0)
                part = tl.load(part_pointers + start, mask=row_mask[None, :] & (parts < d - start)[:, None], other=0.0)
                scores = tl.dot(c, part, scores, input_precision=precision)
        scores -= c_half_norm[:, None]
        if gaussian:
            tile_best, tile_index = tl.max(scores, axis=0, return_indices=True)
            packed = pack(tile_best, tl.program_id(0) * block_k + tile_index)
            # Past the first-level cache, which other programs' merges don't reach; an old value is still a valid bound.
            known = tl.load(best + rows, mask=row_mask, other=0, cache_modifier=".cg")
            tl.atomic_max(best + rows, packed, mask=row_mask & (packed > known), sem="relaxed")
            reference = z_half_norm
            log_sum = tl.zeros((block_n,), tl.float32)
        else:
            tile_best = tl.max(scores, axis=0)
            reference = tl.load(row_scores + rows, mask=row_mask, other=0.0)
            log_sum = tl.load(log_sums + rows, mask=row_mask, other=0.0)
        peaks = tl.minimum((tile_best - reference) * exponent_scale, 0.0) - log_sum
        if tl.max(tl.where(row_mask, peaks, float("-inf")), axis=0) >= negligible:
            exponents = tl.minimum((scores - reference[None, :]) * exponent_scale, 0.0) - log_sum[None, :]
            weights = tl.exp2(exponents)
            if clamped:
                weights = tl.minimum(weights * factor, 1.0)
            weights = tl.where(row_mask[None, :] & (columns[:, None] != out[None, :]), weights, 0.0)
            gaps = tl.maximum(z_half_norm[None, :] - scores, 0.0)
            if chunk < block_d:
                z = tl.load(z_pointers, mask=z_mask, other=0.0)
            latent_sum = tl.dot(weights, z, latent_sum, input_precision=precision)
            weight_sum += tl.sum(weights, axis=1)
            gap_sum += tl.sum(weights * gaps, axis=1)
    start = tl.program_id(1).to(tl.int64) * k
    tl.store(latent_sums + start * d + code_offsets, latent_sum, mask=code_mask)
    tl.store(weight_sums + start + columns, weight_sum, mask=columns < k)
    tl.store(gap_sums + start + columns, gap_sum, mask=columns < k)


@triton.jit  # type: ignore[untyped-decorator]
def segment_kernel(
    latents: tl.tensor,
    codes: tl.tensor,
    order: tl.tensor,
    weights: tl.tensor,
    starts: tl.tensor,
    sums: tl.tensor,
    d: tl.tensor,
    block_n: tl.constexpr,
    block_d: tl.constexpr,
) -> None:
    """Sum w·(c − z) over the latents of one code: the pairs `starts[j]` to `starts[j + 1]` of `order` and `weights`."""
    code = tl.program_id(0)
    dims = tl.arange(0, block_d)
    code_offsets = code.to(tl.int64) * d + dims
    c = tl.load(codes + code_offsets, mask=dims < d, other=0.0)
    first = tl.load(starts + code)
    last = tl.load(starts + code + 1)
    total = tl.zeros((block_d,), tl.float32)
    for start in range(first, last, block_n):
        places = start + tl.arange(0, block_n)
        rows = tl.load(order + places, mask=places < last, other=0)
        weight = tl.load(weights + places, mask=places < last, other=0.0)
        z = tl.load(
            latents + rows[:, None] * d + dims[None, :], mask=(places < last)[:, None] & (dims < d)[None, :], other=0.0
        )
        total += tl.sum(weight[:, None] * (c[None, :] - z), axis=0)
    tl.store(sums + code_offsets, total, mask=dims < d)


def segment_differences(latents: Tensor, codes: Tensor, rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Sum weight·(code − latent) of a list of pairs by code, without atomics: two calls agree bit for bit.

    Args:
        latents: Latents, float32, contiguous, shape (N, d).
        codes: Code vectors, float32, contiguous, shape (K, d).
        rows: Each pair's latent, int64, shape (P,).
        indices: Each pair's code, int64, shape (P,); K leaves the pair out.
        weights: Each pair's weight, float32, shape (P,).

    Returns:
        The sums, shape (K, d).
    """
    k, d = codes.shape
    keys, permutation = indices.sort(stable=True)
    starts = torch.searchsorted(keys, torch.arange(k + 1, device=codes.device))
    sums = torch.empty_like(codes)
    block_d = max(16, triton.next_power_of_2(d))
    with on_device_of(latents):
        # 4096 gathered entries over 4 warps: 32 per thread in flight, which hides the gather's latency.
        segment_kernel[(k,)](
            latents,
            codes,
            rows[permutation],
            weights[permutation],
            starts,
            sums,
            d,
            block_n=max(4096 // block_d, 1),
            block_d=block_d,
            num_warps=4,
            num_stages=1,
        )
    return sums


@torch.no_grad()
def kernel_sweep(
    latents: Tensor,
    codes: Tensor,
    kernel: str,
    bandwidth: Tensor | float,
    neighbor_weight: float,
    precision: Precision = "ieee",
    tiles: SweepTiles | None = None,
) -> Sweep:
    """Compute the kernel-weighted codebook loss with its gradient in closed form.

    The loss is 1/(N·d) · Σ_i [d_iq(i) + Σ_{j≠q(i)} w_ij·d_ij] with d_ij the squared distance of latent i and code j,
    q(i) the nearest code and w_ij constant under differentiation: v·exp(−d_ij/τ) (`gaussian`), v·softmax_j(−d_ij/τ)
    (`softmax`) or min(1, v·K·softmax_j(−d_ij/τ)) (`clamped_softmax`). Source: "Beyond Stationarity" (arXiv 2602.18896),
    codebook loss of NSVQ.

    A program keeps a tile of codes and walks over the latents, so that sums over latents need no atomics. The winner's
    distance is often far below the rounding of |z|² − 2z·c + |c|², hence its pair is left out of the sums and enters as
    a difference z − c. The softmax kernels know winner and normaliser from a pass before (three products in all). The
    gaussian kernel needs two: its sweep searches too, and leaves out a guess, found in TF32. Where the guess isn't the
    winner, the guess's kernel weight is put back, and the winner's is taken out as the sweep had it, from the same
    rounded score.

    Weights below the smallest normal float32 may count as zero. Two calls agree bit for bit.

    Args:
        latents: Latents, float32, contiguous, shape (N, d), d at most `MAX_DIM`, on a CUDA device.
        codes: Code vectors, float32, contiguous, shape (K, d).
        kernel: `gaussian`, `clamped_softmax` or `softmax`.
        bandwidth: τ in squared-distance units, above 0; a tensor is read on the device.
        neighbor_weight: v.
        precision: How products are formed, see `nsvq.ops.backend.Precision`.
        tiles: Tile sizes instead of those of `sweep_tiles`.

    Returns:
        Loss, gradient, indices and mean winner distance.

    Raises:
        ValueError: If the kernel is unknown, d is above `MAX_DIM`, the shapes don't fit, there is no code, or a type
            isn't float32.
    """
    if kernel not in _KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; known kernels: {', '.join(_KERNELS)}")
    if codes.shape[-1] > MAX_DIM:
        raise ValueError(f"codes of length {codes.shape[-1]}: the Triton kernel takes at most {MAX_DIM}")
    sums = _Sums(latents, codes, bandwidth, neighbor_weight, precision, tiles)
    n, d = latents.shape
    if n == 0:
        zero = codes.new_zeros(())
        return Sweep(
            zero, torch.zeros_like(codes), torch.empty(0, dtype=torch.int64, device=codes.device), zero.clone()
        )
    total = sums.gaussian() if kernel == "gaussian" else sums.softmax(clamped=kernel == "clamped_softmax")
    winner_distances = sums.pair_distances(total.winners)
    gradient = total.pull + segment_differences(sums.latents, sums.codes, *total.pairs)
    loss = (total.weighted_distance + winner_distances.double().sum()) / (n * d)
    return Sweep(
        loss.clamp(min=0).float(), gradient * (2 / (n * d)), total.winners, winner_distances.double().mean().float()
    )


class _Total(NamedTuple):
    """What a kernel contributes, the 1/(N·d) aside."""

    winners: Tensor
    """Index of each latent's nearest code, int64, shape (N,)."""
    pull: Tensor
    """Σ_i w_ij (c_j − z_i) over the pairs that the sweep kernel weighed, shape (K, d)."""
    weighted_distance: Tensor
    """Σ_ij w_ij d_ij over all pairs except the winners', float64 scalar."""
    pairs: tuple[Tensor, Tensor, Tensor]
    """The pairs that are added to `pull`: rows, codes and weights, see `segment_differences`."""


class _Sums:
    """Sums over all pairs of latents and codes, by kernel.

    Args:
        latents: Latents, float32, shape (N, d).
        codes: Code vectors, float32, shape (K, d).
        bandwidth: τ.
        neighbor_weight: v.
        precision: How products are formed.
        tiles: Tile sizes, or None for those of `sweep_tiles`.
    """

    def __init__(
        self,
        latents: Tensor,
        codes: Tensor,
        bandwidth: Tensor | float,
        neighbor_weight: float,
        precision: Precision,
        tiles: SweepTiles | None,
    ) -> None:
        # Differences of single pairs are taken unshifted, where near vectors subtract without rounding.
        self.latents = latents.contiguous()
        self.codes = codes.contiguous()
        self.shifted_latents, self.shifted_codes = shift_to_mean(latents, codes)
        self.tau = (
            bandwidth.to(codes.device, torch.float64).reshape(())
            if isinstance(bandwidth, Tensor)
            else torch.full((), bandwidth, dtype=torch.float64, device=codes.device)
        )
        # A score's difference times this is −d/τ·log2(e).
        self.scale = (2 * math.log2(math.e) / self.tau).clamp(max=torch.finfo(torch.float32).max).float()
        self.neighbor_weight = neighbor_weight
        self.precision: Precision = precision
        self.tiles = tiles or sweep_tiles(codes.shape[1], precision)

    def pair_distances(self, indices: Tensor) -> Tensor:
        """Return each latent's squared distance to the given code, from their difference, shape (N,)."""
        return (self.latents - self.codes[indices]).square().sum(dim=1)

    def gaussian(self) -> _Total:
        """Weigh by v·exp(−d/τ); search in the same sweep."""
        n, k = len(self.latents), len(self.codes)
        _, guesses, _ = search_scores(self.shifted_latents, self.shifted_codes, "tf32")
        best = torch.full((n,), torch.iinfo(torch.int64).min, device=self.codes.device)
        row_half_norms = half_norms(self.shifted_latents)
        pull, gap_sum = self._sweep(row_half_norms, guesses, best=best)
        scores, winners = unpack(best)
        winners.clamp_(max=k - 1)
        missed = guesses != winners
        gaps = (row_half_norms - scores).clamp(min=0)
        counted = torch.where(missed, (gaps * -self.scale).exp2(), 0) * self.neighbor_weight
        guess_distances = self.pair_distances(guesses)
        missing = torch.where(missed, (guess_distances / -self.tau).exp(), 0).float() * self.neighbor_weight
        corrections = (missing.double() * guess_distances - 2 * counted.double() * gaps).sum()
        rows = torch.arange(n, device=self.codes.device)
        pairs = (
            torch.cat([rows, rows]),
            torch.cat([winners, torch.where(missed, guesses, k)]),
            torch.cat([1 - counted, missing]),
        )
        return _Total(winners, pull * self.neighbor_weight, 2 * self.neighbor_weight * gap_sum + corrections, pairs)

    def softmax(self, clamped: bool) -> _Total:
        """Weigh by v·softmax(−d/τ), or by min(1, v·K·softmax(−d/τ))."""
        scores, winners, log_sums = search_scores(self.shifted_latents, self.shifted_codes, self.precision, self.scale)
        limited = self.neighbor_weight * len(self.codes) if clamped else None
        factor = 1.0 if clamped else self.neighbor_weight
        row_half_norms = half_norms(self.shifted_latents)
        pull, gap_sum = self._sweep(row_half_norms, winners, scores=scores, log_sums=log_sums, limited=limited)
        pairs = (torch.arange(len(winners), device=winners.device), winners, torch.ones_like(scores))
        return _Total(winners, pull * factor, 2 * factor * gap_sum, pairs)

    def _sweep(
        self,
        row_half_norms: Tensor,
        left_out: Tensor,
        best: Tensor | None = None,
        scores: Tensor | None = None,
        log_sums: Tensor | None = None,
        limited: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Launch the sweep kernel and add up its ranges of rows.

        Args:
            row_half_norms: |z|²/2, shape (N,).
            left_out: The code that each row doesn't weigh, shape (N,).
            best: Where packed best scores are merged; selects the gaussian kernel.
            scores: Each row's best score, for the other kernels.
            log_sums: log2 of each row's sum of exponentials, for the other kernels.
            limited: Factor of weights that are limited to 1.

        Returns:
            Σ_i w_ij (c_j − z_i), shape (K, d), and Σ_ij w_ij·d_ij/2, float64 scalar.
        """
        n, d = self.latents.shape
        k = len(self.codes)
        code_tiles = triton.cdiv(k, self.tiles.codes)
        split = split_loop(triton.cdiv(n, self.tiles.rows), code_tiles)
        latent_sums = self.codes.new_empty(split.programs, k, d)
        weight_sums = self.codes.new_empty(split.programs, k)
        gap_sums = torch.empty_like(weight_sums)
        block_d = max(16, triton.next_power_of_2(d))
        with on_device_of(self.latents):
            sweep_kernel[(code_tiles, split.programs)](
                self.shifted_latents,
                row_half_norms,
                self.shifted_codes,
                half_norms(self.shifted_codes),
                self.scale,
                left_out.to(torch.int32),
                best if best is not None else left_out,
                scores if scores is not None else row_half_norms,
                log_sums if log_sums is not None else row_half_norms,
                latent_sums,
                weight_sums,
                gap_sums,
                n,
                k,
                d,
                split.tiles,
                limited if limited is not None else 1.0,
                _SMALLEST_EXPONENT - math.log2(max(limited or 1.0, 1.0)),
                gaussian=best is not None,
                clamped=limited is not None,
                block_n=self.tiles.rows,
                block_k=self.tiles.codes,
                block_d=block_d,
                chunk=min(self.tiles.chunk, block_d),
                precision=self.precision,
                num_warps=self.tiles.warps,
                num_stages=self.tiles.stages,
            )
        pull = self.shifted_codes * weight_sums.sum(dim=0)[:, None] - latent_sums.sum(dim=0)
        return pull, gap_sums.double().sum()
