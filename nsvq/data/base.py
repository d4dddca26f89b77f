"""What every data module shares: loaders, their checks, and the fingerprint of each split."""

import hashlib
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nsvq import distributed
from nsvq.data.even_batches import EvenBatches
from nsvq.data.position import training_position
from nsvq.data.training_order import TrainingOrder


class ImageDataset(Dataset[Tensor]):
    """A dataset of float32 images (3, H, W) in [-1, 1] that can name what it is made of.

    It is indexed by draws, see `TrainingOrder`: item `epoch · N + i` is image i as that epoch sees it. Whatever is
    random in an image comes from `randomness(draw)`.

    Attributes:
        names: The split's members in order; one per item wherever items have names of their own.
        preparation: How an image was resized and cropped, in words, for the record of an evaluation.
        seed: Seed of what is random in the images.
    """

    names: Sequence[str]
    preparation: str = "images as they are stored"
    seed: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def randomness(self, draw: int) -> np.random.Generator:
        """Return the source of random numbers of a draw; equal draws get equal numbers."""
        return np.random.default_rng((self.seed, draw))


@dataclass(frozen=True)
class Splits:
    """The three datasets of a data module; predictions are made on `test`."""

    train: ImageDataset
    val: ImageDataset
    test: ImageDataset


class ImageDataModule(LightningDataModule, ABC):
    """Loaders of bare image batches, float32 (B, 3, H, W) in [-1, 1].

    Training shuffles and drops the last incomplete global batch; evaluation keeps the order and every image. Order and
    augmentation of the training images are functions of the run's seed, `seed`, the epoch and the image alone, so that
    B/W images on each of W processes are the B images of one process, and a run that goes on from a checkpoint, also
    from inside an epoch, sees the images that it would have seen without the interruption.

    Training, validation and test images are divided among the processes here, in evaluation without a repeat (see
    `EvenBatches`); prediction is left to Lightning, which repeats none there.
    The command line tells the trainer so. In Python, several processes that fit, validate or test need
    `Trainer(use_distributed_sampler=False)`: by default Lightning wants to put a sampler of its own into the loaders
    and stops at these, and for prediction its default is right.

    Loaders own a generator: building an iterator takes nothing from the global random state. The run's seed is that
    which rank 0's torch was given last (`torch.initial_seed()`, e.g. by `seed_everything`) when `setup` runs.

    To add a data module, implement `make_splits`.

    Args:
        batch_size: Images per batch and process.
        num_workers: Loader processes; 0 loads in the training process.
        seed: Seed of the split where it is random; order and augmentation in training depend on the sum of it and the
            run's seed.

    Attributes:
        split_sha256: SHA-256 of each split's newline-joined names, by split name; filled by `setup`.
    """

    def __init__(self, batch_size: int, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        require_at_least("batch_size", batch_size, 1)
        require_at_least("num_workers", num_workers, 0)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.split_sha256: dict[str, str] = {}
        self._splits: Splits | None = None
        self._training_seed = seed
        self._position = (0, 0)

    @abstractmethod
    def make_splits(self) -> Splits:
        """Build the three datasets; called once."""

    @property
    def splits(self) -> Splits:
        """The datasets; `setup` must have run."""
        if self._splits is None:
            raise RuntimeError(f"call {type(self).__name__}.setup() before asking for its data")
        return self._splits

    def setup(self, stage: str | None = None) -> None:
        """Build the datasets unless they exist, and check that they can serve the stage.

        Args:
            stage: Lightning's stage; None means all of them.
        """
        if self._splits is None:
            self._training_seed = (self.seed + distributed.from_rank_0(torch.initial_seed())) % 2**32
            splits = self.make_splits()
            splits.train.seed = self._training_seed
            for name in ("val", "test"):
                if len(getattr(splits, name)) == 0:
                    raise ValueError(f"the {name} split of {type(self).__name__} is empty")
            self.split_sha256 = {name: names_sha256(part.names) for name, part in vars(splits).items()}
            self._splits = splits
        if stage in ("fit", None):
            self._require_full_batch(len(self.splits.train))

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Shuffled full batches of this process's share of the training images."""
        train = self.splits.train
        ranks = (distributed.world_size(), distributed.rank())
        order = TrainingOrder(len(train), self.batch_size, self._training_seed, *ranks, *self.resumed_position)
        return self._loader(train, batch_size=self.batch_size, sampler=order, drop_last=True)

    @property
    def global_batch_size(self) -> int:
        """Images per training batch, all processes together."""
        return self.batch_size * distributed.world_size()

    @property
    def resumed_position(self) -> tuple[int, int]:
        """Where a checkpoint lets training begin: the epoch and the whole batches of it that are done."""
        epoch, images = self._position
        batches = ceil(images / self.global_batch_size)
        if batches >= len(self.splits.train) // self.global_batch_size:
            return epoch + (batches > 0), 0
        return epoch, batches

    def state_dict(self) -> dict[str, Any]:
        """Return how far training is: the epoch and the images of it that are done, on all processes."""
        if self.trainer is None:
            return {}
        epoch, batches = training_position(self.trainer)
        return {"epoch": epoch, "images": batches * self.global_batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next training loader begin where a checkpoint was saved.

        With another number of processes or images per batch it begins at the next whole batch.
        """
        self._position = (state_dict["epoch"], state_dict["images"])

    def teardown(self, stage: str) -> None:
        """Forget where a checkpoint let training begin."""
        if stage == "fit":
            self._position = (0, 0)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """This process's share of the validation images, in order.

        Raises:
            ValueError: If there are fewer images than processes.
        """
        return self._evaluation_loader("validation", self.splits.val)

    def test_dataloader(self) -> DataLoader[Tensor]:
        """This process's share of the test images, in order.

        Raises:
            ValueError: If there are fewer images than processes.
        """
        return self._evaluation_loader("test", self.splits.test)

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """The test images again, all of them in every process."""
        return self._loader(self.splits.test, batch_size=self.batch_size)

    def _evaluation_loader(self, split: str, dataset: ImageDataset) -> DataLoader[Tensor]:
        images, processes = len(dataset), distributed.world_size()
        if processes == 1:
            return self._loader(dataset, batch_size=self.batch_size)
        if images < processes:
            raise ValueError(
                f"the {split} split holds {images} images, fewer than the {processes} processes that are to share them"
            )
        batches = EvenBatches(images, self.batch_size, processes, distributed.rank())
        return self._loader(dataset, batch_sampler=batches)

    def _loader(self, dataset: ImageDataset, **batching: Any) -> DataLoader[Tensor]:
        return DataLoader(
            dataset,
            **batching,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_to_the_run,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _require_full_batch(self, images: int) -> None:
        processes = distributed.world_size()
        if images < self.global_batch_size:
            share = "" if processes == 1 else f" for {processes} processes"
            raise ValueError(
                f"the training split holds {images} images{share}, less than one full batch of {self.batch_size}; "
                "lower batch_size or give more images"
            )


def _leave_signals_to_the_run(_: int) -> None:
    """Let a loader worker live on when a whole process group is asked to stop: the run needs it for its batch."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def names_sha256(names: Sequence[str]) -> str:
    """Return the SHA-256 of the newline-joined names, in hexadecimal."""
    # File names are bytes, and not all are UTF-8.
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError naming the argument and its choices if it is none of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value}")


def require_at_least(name: str, value: int, minimum: int) -> None:
    """Raise a ValueError naming the argument if it is below its minimum."""
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
