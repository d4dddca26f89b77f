"""Images held in memory as one uint8 tensor, served a batch at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nsvq.data.base import ImageDataset


def to_unit_range(images: Tensor) -> Tensor:
    """Map uint8 grey levels to float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def flip_at_random(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Mirror each image of a batch (B, C, H, W) left to right with probability one half.

    Args:
        images: The batch; it is left unchanged.
        generator: Source of the draws; None takes the global one.

    Returns:
        The batch with about half of its images mirrored.
    """
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


class TensorImages(ImageDataset):
    """A tensor of images as a dataset.

    Args:
        images: uint8, shape (N, 3, H, W).
        names: One name per image.
        horizontal_flip: Mirror images at random, from the global random state.
    """

    def __init__(self, images: Tensor, names: Sequence[str], horizontal_flip: bool = False) -> None:
        self.images = images
        self.names = names
        self.horizontal_flip = horizontal_flip

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        batch = self.images[indices]
        if self.horizontal_flip:
            batch = flip_at_random(batch)
        return list(to_unit_range(batch).unbind())
