"""Data modules: batches of images as float32 tensors (B, 3, H, W) in [-1, 1]."""

from nsvq.data.embedded_photographs import EmbeddedPhotographs

__all__ = ["EmbeddedPhotographs"]
