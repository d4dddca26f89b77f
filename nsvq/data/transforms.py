"""From a decoded image to a tensor of the size the model sees."""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

Crop = Literal["center", "random"]
MAX_ELONGATION = 100


class ImageTransform:
    """Resize the shorter side, crop a square, maybe mirror, scale to [-1, 1].

    Resizing is bicubic with antialiasing on 8-bit levels. There is no photometric noise: the model is asked to
    reconstruct the very image it sees.

    Args:
        size: Side of the square crop in pixels.
        resize: Length given to the shorter side; None leaves the image as large as it is.
        crop: Where the crop is taken.
        horizontal_flip: Mirror left to right half of the time.
    """

    def __init__(
        self, size: int, resize: int | None = None, crop: Crop = "center", horizontal_flip: bool = False
    ) -> None:
        if resize is not None and resize < size:
            raise ValueError(f"resize {resize} is smaller than the {size}×{size} crop")
        self.size = size
        self.resize = resize
        self.crop = crop
        self.horizontal_flip = horizontal_flip
        self._scale = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])

    def __str__(self) -> str:
        """What an evaluation's record says of the sizes."""
        resize = "not resized" if self.resize is None else f"shorter side {self.resize} px, bicubic with antialiasing"
        return f"{resize}; {self.crop} crop of {self.size}×{self.size} px"

    def __call__(self, image: Image.Image, randomness: np.random.Generator) -> Tensor:
        """Transform an image.

        Args:
            image: The image, in mode RGB.
            randomness: What the place of a random crop and the mirroring are drawn from.

        Returns:
            float32, shape (3, size, size), in [-1, 1].

        Raises:
            ValueError: If the image is too small, or so elongated that resizing it would fill the memory.
        """
        if self.resize is None and min(image.size) < self.size:
            raise ValueError(
                f"{image.width}×{image.height} pixels are too few for a {self.size}×{self.size} crop; "
                "set resize or lower size"
            )
        if self.resize is not None and max(image.size) > MAX_ELONGATION * min(image.size):
            raise ValueError(
                f"{image.width}×{image.height} pixels are too elongated to be resized by the shorter side: the sides "
                f"may differ {MAX_ELONGATION}-fold"
            )
        pixels = F.pil_to_tensor(image)
        if self.resize is not None:
            pixels = F.resize(pixels, [self.resize], InterpolationMode.BICUBIC, antialias=True)
        if self.crop == "random":
            height, width = pixels.shape[-2:]
            top, left = randomness.integers((height - self.size + 1, width - self.size + 1)).tolist()
            pixels = F.crop(pixels, top, left, self.size, self.size)
        else:
            pixels = F.center_crop(pixels, [self.size, self.size])
        if self.horizontal_flip and randomness.random() < 0.5:
            pixels = F.horizontal_flip(pixels)
        scaled: Tensor = self._scale(pixels)
        return scaled
