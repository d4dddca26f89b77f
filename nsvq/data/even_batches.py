"""Evaluation batches of several processes: every image once, equally many batches each."""

from collections.abc import Iterator
from itertools import pairwise
from math import ceil

from torch.utils.data import Sampler


class EvenBatches(Sampler[list[int]]):
    """Batches of one process, which together with the other processes' hold every index once.

    The indices are split in order into as few chunks as the batch size allows, nearly equal in length, and each chunk
    likewise into one batch per process. Every process has the same number of batches and none is empty:
    `DistributedDataParallel` communicates in each forward pass, so that a process with one batch more would wait for
    ever. Lengths differ by at most one within a chunk, longer ones first, and batches are one longer than asked for
    only where batches of one image leave no other way.

    Args:
        images: Number of images N, at least one per process.
        batch_size: Images per batch and process.
        processes: Number of processes.
        rank: This process.

    Raises:
        ValueError: If there are fewer images than processes.
    """

    def __init__(self, images: int, batch_size: int, processes: int, rank: int) -> None:
        if images < processes:
            raise ValueError(f"{images} images cannot be divided among {processes} processes")
        chunks = min(ceil(images / (processes * batch_size)), images // processes)
        self.batches = [list(_parts(chunk, processes)[rank]) for chunk in _parts(range(images), chunks)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _parts(indices: range, count: int) -> list[range]:
    """Split indices into consecutive parts whose lengths differ by at most one, the longer ones first."""
    length, longer = divmod(len(indices), count)
    starts = [part * length + min(part, longer) for part in range(count + 1)]
    return [indices[start:end] for start, end in pairwise(starts)]
