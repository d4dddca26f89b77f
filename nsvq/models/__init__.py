"""LightningModules."""

from nsvq.models.vqvae import VQVAE

__all__ = ["VQVAE"]
