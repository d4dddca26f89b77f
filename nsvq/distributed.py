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
    if not is_distributed():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def everywhere(condition: bool) -> bool:
    """Return whether a condition holds in all processes."""
    if not is_distributed():
        return condition
    conditions = [False] * world_size()
    dist.all_gather_object(conditions, condition)
    return all(conditions)


def barrier() -> None:
    """Wait until all processes are here."""
    if is_distributed():
        dist.barrier()
