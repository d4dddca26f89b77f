"""Pretrained networks: their files, and LPIPS built from them."""

from nsvq.pretrained.lpips import PerceptualDistance, lpips_network
from nsvq.pretrained.weights import PRETRAINED, PretrainedFile, fetch, find, obtain

__all__ = [
    "PRETRAINED",
    "PerceptualDistance",
    "PretrainedFile",
    "fetch",
    "find",
    "lpips_network",
    "obtain",
]
