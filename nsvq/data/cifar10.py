"""CIFAR-10 through torchvision."""

from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from nsvq.data.base import ImageDataModule, Splits
from nsvq.data.tensor_images import TensorImages


class CIFAR10(ImageDataModule):
    """CIFAR-10 without its labels: 50,000 training images of 32×32 pixels; the 10,000 others validate and test.

    Args:
        root: The folder that holds `cifar-10-batches-py/`.
        download: Fetch the data into `root` if they are not there.
        horizontal_flip: Mirror training images half of the time.
        batch_size: Images per batch and process.
        num_workers: Loader processes; the images are in memory, so 0 will do.
        seed: Added to the run's seed, which decides order and augmentation in training.
    """

    def __init__(
        self,
        root: str | Path,
        download: bool = False,
        horizontal_flip: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.root = Path(root).expanduser()
        self.download = download
        self.horizontal_flip = horizontal_flip

    def prepare_data(self) -> None:
        """Fetch the data if asked to."""
        if not self.download:
            return
        try:
            datasets.CIFAR10(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise OSError(f"CIFAR-10 could not be downloaded to {self.root}: {error}") from error

    def make_splits(self) -> Splits:
        """Read both parts into memory."""
        train = self._read("train", horizontal_flip=self.horizontal_flip)
        test = self._read("test")
        return Splits(train, test, test)

    def _read(self, part: str, **options: Any) -> TensorImages:
        try:
            data = datasets.CIFAR10(self.root, train=part == "train").data
        except RuntimeError as error:
            raise FileNotFoundError(
                f"CIFAR-10 is not in {self.root}, or its files are damaged: root must hold cifar-10-batches-py/, "
                "or set download to true"
            ) from error
        images = torch.from_numpy(data).permute(0, 3, 1, 2).contiguous()
        return TensorImages(images, [f"{part}/{index:05d}" for index in range(len(images))], **options)
