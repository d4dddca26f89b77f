"""From a decoded image to a tensor of the size the model sees."""

from collections.abc import Callable
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

Crop = Literal["center", "random"]


class ImageTransform:
    """Resize the shorter side, crop a square, maybe mirror, scale to [-1, 1].

    Resizing is bicubic with antialiasing on 8-bit levels. There is no photometric noise: the model is asked to
    reconstruct the very image it sees.

    Args:
        size: Side of the square crop in pixels.
        resize: Length given to the shorter side; None leaves the image as large as it is.
        crop: Where the crop is taken; "random" draws from the global random state.
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
        steps = [v2.PILToTensor()]
        if resize is not None:
            steps.append(v2.Resize(resize, InterpolationMode.BICUBIC, antialias=True))
        steps.append(v2.RandomCrop(size) if crop == "random" else v2.CenterCrop(size))
        if horizontal_flip:
            steps.append(v2.RandomHorizontalFlip())
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
        self._apply: Callable[[Image.Image], Tensor] = v2.Compose(steps)

    def __str__(self) -> str:
        """What an evaluation's record says of the sizes."""
        resize = "not resized" if self.resize is None else f"shorter side {self.resize} px, bicubic with antialiasing"
        return f"{resize}; {self.crop} crop of {self.size}×{self.size} px"

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the image as float32 (3, size, size) in [-1, 1]."""
        if self.resize is None and min(image.size) < self.size:
            raise ValueError(
                f"{image.width}×{image.height} pixels are too few for a {self.size}×{self.size} crop; "
                "set resize or lower size"
            )
        return self._apply(image)
