"""Losses of the models: reconstruction, perceptual, adversarial."""

from nsvq.losses.adversarial import AdversarialLoss, adaptive_weight
from nsvq.losses.perceptual import PerceptualLoss
from nsvq.losses.reconstruction import ReconstructionLoss

__all__ = ["AdversarialLoss", "PerceptualLoss", "ReconstructionLoss", "adaptive_weight"]
