"""Image files of a folder as a dataset."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from nsvq.data.base import ImageDataset
from nsvq.data.damage import DamageLog
from nsvq.data.decoding import DamagedImageError, read_rgb


class FolderImages(ImageDataset):
    """Named image files below one folder.

    Args:
        root: The folder.
        names: Paths relative to the folder, in the order they are served.
        transform: From an RGB image, and what is random about it, to a tensor.
        max_damaged: None raises at the first file that cannot be decoded. A number replaces such a file by the next
            sound one, with a warning the first time, until more than this many distinct files are damaged. The count
            includes all loader workers; under distributed training each process counts the files it meets.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        transform: Callable[[Image.Image, np.random.Generator], Tensor],
        max_damaged: int | None = None,
    ) -> None:
        self.root = root
        self.names = names
        self.transform = transform
        self.preparation = str(transform)
        self.damage = None if max_damaged is None else DamageLog(names, max_damaged)

    def __getitem__(self, draw: int) -> Tensor:
        index = draw % len(self)
        if self.damage is None:
            return self._load(index, draw)
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            if candidate in self.damage:
                continue
            try:
                return self._load(candidate, draw)
            except DamagedImageError as error:
                self.damage.record(candidate, error)
        raise ValueError(f"all {len(self)} training images in {self.root} are damaged")

    def _load(self, index: int, draw: int) -> Tensor:
        path = self.root / self.names[index]
        image = read_rgb(path)
        try:
            return self.transform(image, self.randomness(draw))
        except ValueError as error:
            raise ValueError(f"image {path}: {error}") from error
