"""One sweep over tiles of latents and codes: nearest codes, NSVQ's loss and its gradient.

A pair costs two products and one exponential: a tile's scores become weights in place, and the weights meet the
latents while they are still in the cache. Where an exponential could overflow, weights are relative to the best score
so far; what is missing to their true size is one factor for each latent. The gaussian kernel knows that factor at once;
the softmax kernels must have seen all codes first, so their tiles wait until then. A latent's nearest code weighs 1
whatever the kernel says: it is left out of the products and enters by its difference to the latent, which loses no
digits to their norms.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nsvq.ops.blocks import slices, tile_shape
from nsvq.ops.duplicates import Distinct, distinct_codes
from nsvq.ops.scores import center_codes, check_finite, improvements, score_codes, score_latents

# 2^score and sums of it are far from overflow up to this score.
SAFE_EXPONENT = 64
# A tile in which more than this share of the latents has a weight is worked on as a whole.
DENSE = 0.25


class SweepResult(NamedTuple):
    """What a sweep yields."""

    loss: Tensor
    """Scalar."""
    gradient: Tensor
    """Derivative of the loss by the codes, shape (K, d)."""
    indices: Tensor
    """Nearest code of each latent, int64, shape (N,)."""
    winner_distance: Tensor
    """Mean squared distance of the latents to their nearest code, scalar."""


class _Block(NamedTuple):
    """Latents that pass over the codes together."""

    rows: slice
    latents: Tensor
    squares: Tensor
    side: Tensor


class _Waiting(NamedTuple):
    """A tile of weights whose factors are not known yet."""

    columns: slice
    weights: Tensor
    kept: Tensor | slice
    reference: Tensor


def sweep_tiles(
    latents: Tensor, codes: Tensor, kernel: str, bandwidth: float, neighbor_weight: float, memory_cap: int | None
) -> SweepResult:
    """Compute NSVQ's loss, see `nsvq.ops.kernel_codebook_loss`.

    Args:
        latents: Latents, shape (N, d), at least float32.
        codes: Code vectors, shape (K, d), of the same type.
        kernel: `gaussian`, `clamped_softmax` or `softmax`.
        bandwidth: τ.
        neighbor_weight: v.
        memory_cap: Bytes of working memory, see `tile_shape`.

    Returns:
        Loss, gradient, indices and winner distance.
    """
    if not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth must be above 0 and finite, got {bandwidth}")
    distinct = distinct_codes(codes)
    center, codes = center_codes(codes)
    return _Sweep(latents - center, codes, distinct, kernel, bandwidth, neighbor_weight, memory_cap).run()


class _Sweep:
    def __init__(
        self,
        latents: Tensor,
        codes: Tensor,
        distinct: Distinct | None,
        kernel: str,
        bandwidth: float,
        neighbor_weight: float,
        memory_cap: int | None,
    ) -> None:
        self.latents = latents
        self.codebook_size = len(codes)
        self.distinct = distinct
        if distinct is not None:
            codes = codes[distinct.first]
            self.counts = torch.bincount(distinct.group).to(codes.dtype)
        self.codes = codes
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.neighbor_weight = neighbor_weight
        self.code_side = score_codes(codes)
        # In units in which 2^score is exp(−d/τ), up to a factor for each latent; scores that would overflow at a tiny τ
        # leave no weights anyway.
        largest = max((side.square().sum(dim=1).amax().item() for side in (latents, codes) if len(side)), default=0)
        self.scale = min(2 * math.log2(math.e) / bandwidth, torch.finfo(codes.dtype).max / (100 * max(largest, 1)))
        self.underflow = math.log2(torch.finfo(codes.dtype).tiny)
        all_columns = kernel != "gaussian"
        self.block, self.width = tile_shape(
            len(latents), len(codes), codes.dtype, codes.device, memory_cap, keep_columns=all_columns
        )
        self.buffer = codes.new_empty(self.block * (len(codes) if all_columns else self.width))
        self.indices = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
        self.weight_sums = codes.new_zeros(len(codes))
        self.square_sums = codes.new_zeros(len(codes))
        self.latent_sums = torch.zeros_like(codes)
        self.winner_weights = codes.new_zeros(0 if kernel == "gaussian" else len(latents))

    def run(self) -> SweepResult:
        for rows in slices(len(self.latents), self.block):
            latents = self.latents[rows]
            squares = latents.square().sum(dim=1)
            block = _Block(rows, latents, squares, score_latents(latents, self.scale))
            if self.kernel == "gaussian":
                self._gaussian(block)
            else:
                self._softmax(block)
        return self._result()

    def _gaussian(self, block: _Block) -> None:
        winners = self.indices[block.rows]
        scores = torch.full_like(block.squares, -math.inf)
        # The score at distance 0, which is the highest there is.
        highest = block.squares * (self.scale / 2)
        needs_reference = bool((highest > SAFE_EXPONENT).any())
        reference = torch.zeros_like(scores)
        left_out: list[tuple[Tensor, Tensor]] = []
        for columns in slices(len(self.codes), self.width):
            tile = self._scores(columns, block)
            peaks, improved, places = improvements(tile, scores)
            if columns.start > 0:
                left_out.append((improved, winners[improved]))
                if sum(len(latents) for latents, _ in left_out) * self.codes.shape[1] > len(self.buffer):
                    self._put_back(block, left_out)
            tile[places, improved] = -math.inf
            winners[improved] = columns.start + places
            scores = torch.maximum(scores, peaks)
            kept = self._kept(peaks - highest)
            if kept is None:
                continue
            if needs_reference:
                reference = scores
            weights = self._weights(tile, reference if needs_reference else None, kept)
            factors = self.neighbor_weight * torch.exp2((reference - highest).clamp(max=0))
            self._add(columns, weights, factors[kept], block, kept)
        check_finite(scores, block.latents, self.codes)
        self._put_back(block, left_out)

    def _softmax(self, block: _Block) -> None:
        winners = self.indices[block.rows]
        scores = torch.full_like(block.squares, -math.inf)
        normalizer = torch.zeros_like(scores)
        waiting: list[_Waiting] = []
        for columns in slices(len(self.codes), self.width):
            tile = self._scores(columns, block)
            peaks, improved, places = improvements(tile, scores)
            winners[improved] = columns.start + places
            before, scores = scores, torch.maximum(scores, peaks)
            normalizer *= torch.exp2(before - scores)
            kept = self._kept(peaks - scores)
            if kept is not None:
                weights = self._weights(tile, scores, kept)
                normalizer[kept] += weights.sum(dim=0) if self.distinct is None else self.counts[columns] @ weights
                waiting.append(_Waiting(columns, weights, kept, scores[kept]))
        check_finite(scores, block.latents, self.codes)
        clamped = self.kernel == "clamped_softmax"
        total = self.neighbor_weight * (self.codebook_size if clamped else 1) / normalizer
        self.winner_weights[block.rows] = total.clamp(max=1) if clamped else total
        for columns, weights, kept, reference in waiting:
            factors = total[kept] * torch.exp2(reference - scores[kept])
            places = winners[kept] - columns.start
            inside = ((places >= 0) & (places < len(weights))).nonzero().squeeze(1)
            weights[places[inside], inside] = 0
            if clamped and (factors > 1).any():
                torch.minimum(weights, 1 / factors, out=weights)
            self._add(columns, weights, factors, block, kept)

    def _scores(self, columns: slice, block: _Block) -> Tensor:
        count = len(block.latents)
        start = 0 if self.kernel == "gaussian" else columns.start * count
        tile = self.buffer[start : start + (columns.stop - columns.start) * count].view(-1, count)
        return torch.mm(self.code_side[columns], block.side, out=tile)

    def _kept(self, exponents: Tensor) -> Tensor | slice | None:
        """Return which latents of a tile have a weight, by the largest exponent of each; None if none has."""
        kept = (exponents > self.underflow).nonzero().squeeze(1)
        if len(kept) > DENSE * len(exponents):
            return slice(None)
        return kept if len(kept) else None

    def _weights(self, tile: Tensor, reference: Tensor | None, kept: Tensor | slice) -> Tensor:
        """Turn scores into 2^(score − reference), in place where all latents are kept."""
        if isinstance(kept, Tensor):
            tile = tile.index_select(1, kept)
        if reference is not None:
            tile.sub_(reference[kept])
        return tile.exp2_()

    def _add(self, columns: slice, weights: Tensor, factors: Tensor, block: _Block, kept: Tensor | slice) -> None:
        self.latent_sums[columns].addmm_(weights, block.latents[kept] * factors[:, None])
        self.weight_sums[columns].addmv_(weights, factors)
        self.square_sums[columns].addmv_(weights, factors * block.squares[kept])

    def _put_back(self, block: _Block, left_out: list[tuple[Tensor, Tensor]]) -> None:
        """Add pairs whose code was the best one only until a later tile, and empty the list."""
        if not left_out:
            return
        latents, codes = (torch.cat(parts) for parts in zip(*left_out, strict=True))
        left_out.clear()
        chosen = block.latents[latents]
        weights = self._gaussian_weights((self.codes[codes] - chosen).square().sum(dim=1))
        self.weight_sums.index_add_(0, codes, weights)
        self.square_sums.index_add_(0, codes, weights * block.squares[latents])
        self.latent_sums.index_add_(0, codes, chosen * weights[:, None])

    def _result(self) -> SweepResult:
        crossed = (self.codes * self.latent_sums).sum(dim=1)
        norms = self.codes.square().sum(dim=1)
        # Rounding may leave a sum of squared distances below 0.
        neighbors = (self.square_sums - 2 * crossed + norms * self.weight_sums).clamp_(min=0)
        gradient = self.latent_sums.neg_().addcmul_(self.codes, self.weight_sums[:, None])
        difference = self.codes[self.indices] - self.latents
        distances = difference.square().sum(dim=1)
        loss = distances.sum() + neighbors.sum()
        won = gradient.index_add(0, self.indices, difference)
        indices = self.indices
        if self.distinct is not None:
            # The lowest of equal codes is the nearest one, the others are its neighbors.
            weights = self._gaussian_weights(distances) if self.kernel == "gaussian" else self.winner_weights
            gradient.index_add_(0, indices, difference * weights[:, None])
            neighbors.index_add_(0, indices, distances * weights)
            loss += torch.dot(neighbors, self.counts - 1)
            gradient = gradient[self.distinct.group]
            gradient[self.distinct.first] = won
            won, indices = gradient, self.distinct.first[indices]
        check_finite(loss, self.latents, self.codes)
        scale = 1 / max(self.latents.numel(), 1)
        winner_distance = distances.sum() / max(len(distances), 1)
        return SweepResult(loss * scale, won.mul_(2 * scale), indices, winner_distance)

    def _gaussian_weights(self, distances: Tensor) -> Tensor:
        return self.neighbor_weight * torch.exp(-distances / self.bandwidth)
