"""Data modules: batches of images as float32 tensors (B, 3, H, W) in [-1, 1]."""

from nsvq.data.embedded_photographs import EmbeddedPhotographs
from nsvq.data.image_folder import ImageFolder

__all__ = ["EmbeddedPhotographs", "ImageFolder"]
