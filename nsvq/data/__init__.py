"""Data modules: batches of images as float32 tensors (B, 3, H, W) in [-1, 1]."""

from nsvq.data.celebahq import CelebAHQ
from nsvq.data.cifar10 import CIFAR10
from nsvq.data.embedded_photographs import EmbeddedPhotographs
from nsvq.data.image_folder import ImageFolder
from nsvq.data.imagenet import ImageNet

__all__ = ["CIFAR10", "CelebAHQ", "EmbeddedPhotographs", "ImageFolder", "ImageNet"]
