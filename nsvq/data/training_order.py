"""The order in which training asks for images."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class TrainingOrder(Sampler[int]):
    """One process's draws of an epoch: a permutation that depends on the seed and the epoch alone.

    A draw is the number `epoch · images + image`, so that a data set can make the random part of an image, its crop or
    its mirroring, a function of the draw: the same for any number of processes and of loader workers, and after a
    resumption. The images of a global batch are dealt out to the processes in turn, as torch's `DistributedSampler`
    does; the permutation is also the same as its. Images that fill no global batch at the end of an epoch are left out.

    Args:
        images: Number of images N of the data set.
        batch_size: Images per batch and process.
        seed: Seed of the permutations.
        processes: Number of processes.
        rank: This process.
        epoch: The first epoch.
        first_batch: Batches of that epoch that are done already; later epochs begin at 0.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        seed: int,
        processes: int = 1,
        rank: int = 0,
        epoch: int = 0,
        first_batch: int = 0,
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.processes = processes
        self.rank = rank
        self.epoch = epoch
        self._first = (epoch, first_batch)

    def __len__(self) -> int:
        """This process's images in a whole epoch."""
        return self.images // (self.batch_size * self.processes) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(self.images, generator=generator)
        mine = order[self.rank :: self.processes][: len(self)]
        first_batch = self._first[1] if epoch == self._first[0] else 0
        return iter((epoch * self.images + mine[first_batch * self.batch_size :]).tolist())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; Lightning calls it."""
        self.epoch = epoch
