"""K-means over the latents of all processes."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nsvq.distributed import GlobalRows, all_reduce_sum
from nsvq.ops import nearest_codes

BLOCK = 8192
"""Rows that exist in float64 at a time."""
SHORTEST_MEAN = 1e-6
"""A shorter mean of unit vectors has no direction but rounding's."""


def kmeans(rows: GlobalRows, clusters: int, iterations: int, seed: int, spherical: bool = False) -> Tensor:
    """Cluster the rows of all processes: Lloyd's algorithm from randomly chosen rows.

    The start depends on the seed alone, not on how the rows are dealt out. With 0 iterations it is the result. Where
    clusters lie far apart and are about as many as centers, a random start misses some of them; with several centers to
    a cluster it does not.

    Args:
        rows: Rows to cluster, at least float32.
        clusters: Number of clusters K.
        iterations: Most iterations, see `lloyd`.
        seed: Seed of the choice.
        spherical: Whether rows and centers are unit vectors.

    Returns:
        Centers, shape (K, d), type of the rows, equal on all ranks.

    Raises:
        ValueError: If there are fewer rows than clusters.
    """
    if len(rows) < clusters:
        raise ValueError(f"{clusters} codes need as many latents, and all processes together have {len(rows)}")
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:clusters]
    return lloyd(rows, rows.take(chosen), iterations, spherical)


def lloyd(rows: GlobalRows, centers: Tensor, iterations: int, spherical: bool = False) -> Tensor:
    """Move centers to the means of their nearest rows, again and again.

    An empty cluster is given the row that lies farthest from its center, several the several farthest, as in
    scikit-learn, whose results from the same start these are; where fewer rows lie off the centers, the rest of the
    empty clusters keep their places. It stops early when no row of any process has changed its center. Which sums the
    processes exchange depends on sums that they have exchanged, so all of them take part in each.

    Search and sums take working memory for a block of rows and for K·d sums in float64, on top of the rows.

    Args:
        rows: Rows to cluster, at least float32.
        centers: Where to start, shape (K, d), equal on all ranks.
        iterations: Most iterations.
        spherical: Whether rows and centers are unit vectors: means are scaled to length 1 (spherical k-means, Dhillon
            and Modha 2001).

    Returns:
        Centers, shape (K, d), type of the rows.
    """
    centers = centers.to(rows.rows.dtype)
    before = torch.full_like(rows.positions, -1)
    for _ in range(iterations):
        nearest = nearest_codes(rows.rows, centers)
        if not all_reduce_sum((nearest != before).sum()):
            break
        before = nearest
        counts = all_reduce_sum(torch.bincount(nearest, minlength=len(centers)))
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            nearest = _fill(rows, centers, nearest, empty)
        centers = _means(rows.rows, centers, nearest, spherical)
    return centers


def _fill(rows: GlobalRows, centers: Tensor, nearest: Tensor, empty: Tensor) -> Tensor:
    """Assign to each empty cluster one of the rows farthest from their centers; among equally far ones the first."""
    distances = centers.new_zeros(len(rows), dtype=torch.float64)
    parts = [offsets.square().sum(dim=1) for offsets, _ in _offsets(rows.rows, centers, nearest)]
    distances[rows.positions] = torch.cat(parts)
    distances = all_reduce_sum(distances)
    farthest = distances.argsort(descending=True, stable=True)[: len(empty)]
    farthest = farthest[distances[farthest] > 0]
    clusters = torch.full_like(distances, -1, dtype=torch.int64)
    clusters[farthest] = empty[: len(farthest)]
    clusters = clusters[rows.positions]
    return torch.where(clusters < 0, nearest, clusters)


def _means(rows: Tensor, centers: Tensor, clusters: Tensor, spherical: bool) -> Tensor:
    """Return the mean of each cluster's rows on all processes; without rows a center stays."""
    # Summed are offsets, so that a cluster of equal rows has exactly their mean.
    sums = centers.new_zeros(len(centers), centers.shape[1] + 1, dtype=torch.float64)
    for offsets, indices in _offsets(rows, centers, clusters):
        sums[:, :-1].index_add_(0, indices, offsets)
        sums[:, -1].index_add_(0, indices, sums.new_ones(len(indices)))
    sums = all_reduce_sum(sums)
    means = centers.double() + sums[:, :-1] / sums[:, -1:].clamp(min=1)
    if spherical:
        lengths = means.norm(dim=1, keepdim=True)
        means = torch.where(lengths > SHORTEST_MEAN, means / lengths, centers.double())
    return means.to(centers.dtype)


def _offsets(rows: Tensor, centers: Tensor, clusters: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Return blocks of rows as offsets from their centers, in float64, with their clusters."""
    for start in range(0, max(len(rows), 1), BLOCK):
        block, indices = rows[start : start + BLOCK], clusters[start : start + BLOCK]
        yield block.double() - F.embedding(indices, centers).double(), indices
