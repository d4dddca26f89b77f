"""Images held in memory as one uint8 tensor, served a batch at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nsvq.data.base import ImageDataset


def to_unit_range(images: Tensor) -> Tensor:
    """Map uint8 grey levels to float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror some images of a batch left to right.

    Args:
        images: The batch, shape (B, C, H, W); it is left unchanged.
        mirrored: Which images, bool, shape (B,).

    Returns:
        The batch.
    """
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


class TensorImages(ImageDataset):
    """A tensor of images as a dataset.

    Args:
        images: uint8, shape (N, 3, H, W).
        names: One name per image.
        horizontal_flip: Mirror an image in half of its draws.
    """

    def __init__(self, images: Tensor, names: Sequence[str], horizontal_flip: bool = False) -> None:
        self.images = images
        self.names = names
        self.horizontal_flip = horizontal_flip

    def __getitem__(self, draw: int) -> Tensor:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: list[int]) -> list[Tensor]:
        batch = self.images[[draw % len(self) for draw in draws]]
        if self.horizontal_flip:
            batch = flip(batch, torch.tensor([self.randomness(draw).random() < 0.5 for draw in draws]))
        return list(to_unit_range(batch).unbind())
