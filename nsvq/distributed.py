"""Process-group helpers that do nothing without a process group.

Whether a group exists is asked at every call: Lightning builds modules before it starts the group.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Return whether a process group is running."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return the number of processes in the group, 1 without a group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Return this process's rank, 0 without a group."""
    return dist.get_rank() if is_distributed() else 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes.

    Args:
        tensor: The local addend; every rank passes the same shape and type. It is left unchanged.

    Returns:
        The sum, equal on all ranks; the tensor itself without a group.
    """
    return _all_reduce(tensor, dist.ReduceOp.SUM)


def all_reduce_min(tensor: Tensor) -> Tensor:
    """Return the smallest values of all processes.

    Args:
        tensor: The local values; every rank passes the same shape and type. It is left unchanged.

    Returns:
        The minima, equal on all ranks; the tensor itself without a group.
    """
    return _all_reduce(tensor, dist.ReduceOp.MIN)


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if not is_distributed():
        return tensor
    result = tensor.clone()
    dist.all_reduce(result, operation)
    return result


def everywhere(condition: bool) -> bool:
    """Return whether a condition holds in all processes."""
    if not is_distributed():
        return condition
    conditions = [False] * world_size()
    dist.all_gather_object(conditions, condition)
    return all(conditions)


def from_rank_0(value: int) -> int:
    """Return rank 0's value in all processes."""
    values = [value]
    if is_distributed():
        dist.broadcast_object_list(values)
    return int(values[0])


def barrier() -> None:
    """Wait until all processes are here."""
    if is_distributed():
        dist.barrier()


class GlobalRows:
    """The rows of a batch that all processes hold together, in the order of one process.

    Training loaders deal the images of a global batch out in turn: image i lies on rank i % W as its image i // W.
    Ranks that have no image left are passed over, so that any shares have an order.

    All processes build it, and call `take`, together. What they exchange, W integers here, has a fixed size.

    Args:
        rows: This process's rows, shape (B, T, d): B images, maybe none, of T rows. B may differ between ranks; T, d
            and the type may not.

    Attributes:
        rows: This process's rows, shape (B·T, d).
        positions: Where these lie in the global order, int64, rising, shape (B·T,).
    """

    def __init__(self, rows: Tensor) -> None:
        images, tokens, _ = rows.shape
        shares = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
        shares[rank()] = images
        counts: list[int] = all_reduce_sum(shares).tolist()
        self.rows = rows.flatten(0, 1).contiguous()
        own = torch.arange(images, device=rows.device)
        # Before an image come those of an earlier place on any rank, and those of its place on lower ranks.
        places = torch.zeros_like(own)
        for other, count in enumerate(counts):
            places += own.clamp(max=count) + (own < count) * (other < rank())
        self.positions = (places[:, None] * tokens + torch.arange(tokens, device=rows.device)).flatten()
        self._length = sum(counts) * tokens

    def __len__(self) -> int:
        """The number of rows of all processes."""
        return self._length

    def take(self, positions: Tensor) -> Tensor:
        """Return rows of the global order.

        Args:
            positions: Positions in [0, len(self)), int64, shape (M,), equal on all ranks.

        Returns:
            The rows, bit for bit as their process holds them, shape (M, d).

        Raises:
            IndexError: If a position lies outside.
        """
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < len(self):
            raise IndexError(f"positions must lie in [0, {len(self)})")
        positions = positions.to(self.rows.device)
        own = torch.isin(positions, self.positions)
        taken = self.rows.new_zeros(len(positions), self.rows.shape[1])
        taken[own] = self.rows[torch.searchsorted(self.positions, positions[own])]
        # Bytes are summed, since 0.0 + -0.0 is not -0.0.
        return all_reduce_sum(taken.view(torch.uint8)).view(taken.dtype)
