"""Equal code vectors."""

from typing import NamedTuple

import torch
from torch import Tensor


class Distinct(NamedTuple):
    """The different vectors of a codebook."""

    first: Tensor
    """Lowest index of each different vector, ascending, int64, shape (U,)."""
    group: Tensor
    """Which of them each code is, int64, shape (K,)."""


def distinct_codes(codes: Tensor) -> Distinct | None:
    """Tell equal code vectors apart from different ones.

    A matrix product may round equal columns differently: whether two codes are equal must not hang on their scores.
    Codes are sorted by their first component; only those that share it with another one are compared as a whole.

    Args:
        codes: Code vectors, shape (K, d).

    Returns:
        The different vectors, or None if no two codes are equal.
    """
    values, order = codes[:, 0].sort()
    equal = values[1:] == values[:-1]
    if not equal.any():
        return None
    shared = torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
    shared[order[1:][equal]] = True
    shared[order[:-1][equal]] = True
    candidates = shared.nonzero().squeeze(1)
    groups: Tensor
    _, groups, sizes = codes[candidates].unique(dim=0, return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    if len(sizes) == len(candidates):
        return None
    lowest = torch.arange(len(codes), device=codes.device)
    lowest[candidates] = candidates[groups.argsort(stable=True)[sizes.cumsum(0) - sizes]][groups]
    first, group = lowest.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return Distinct(first, group)
