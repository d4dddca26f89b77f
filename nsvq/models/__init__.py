"""LightningModules."""

from nsvq.models.vqgan import VQGAN
from nsvq.models.vqvae import VQVAE

__all__ = ["VQGAN", "VQVAE"]
