"""The models and quantizers whose training steps are measured."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from nsvq.bench.grid import GridName
from nsvq.losses import AdversarialLoss
from nsvq.models import VQGAN, VQVAE
from nsvq.models.tokenizer import Tokenizer
from nsvq.networks import ConvDecoder, ConvEncoder, LDMDecoder, LDMEncoder, PatchDiscriminator
from nsvq.quantizers import EMAVQ, NSVQ, BandwidthSchedule, FactorizedVQ, Quantizer, SimVQ, TransVQ, VanillaVQ


@dataclass(frozen=True)
class TrainingSetting:
    """A model whose step is measured.

    Attributes:
        model: Its name in tables.
        build: Puts it around a quantizer.
        image_size: Side of the images.
        batch_size: Images in a step.
        dim: Channels of the latents.
        codebook_size: Number of codes K.
        steps: Steps in a turn that count; one more comes before them.
    """

    model: str
    build: Callable[[Quantizer], Tokenizer]
    image_size: int
    batch_size: int
    dim: int
    codebook_size: int
    steps: int


def training_settings(grid: GridName) -> list[TrainingSetting]:
    """List the models.

    Args:
        grid: `tiny` gives models that only show that everything runs.

    Returns:
        The CelebA VQ-VAE of "Beyond Stationarity" (`experiments/models/conv_celeba.yaml`), and the VQ-GAN of
        `experiments/models/vqgan_tiny.yaml` with both of its losses at work from the first step.
    """
    if grid == "tiny":
        return [
            TrainingSetting("tiny VQVAE", _small_vqvae, 8, 2, 8, 16, 1),
            TrainingSetting("tiny VQGAN", _small_vqgan, 16, 2, 8, 16, 1),
        ]
    return [
        TrainingSetting("VQVAE", VQVAE, 64, 16, 64, 1_024, 2),
        TrainingSetting("VQGAN", _small_vqgan, 32, 16, 16, 512, 8),
    ]


def training_quantizers() -> dict[str, Callable[[int, int], Quantizer]]:
    """Return the project's quantizers by name, as the presets in `experiments/quantizers` set them."""
    bandwidth = BandwidthSchedule(1.0, kind="exponential", decay=0.998, per="step", floor=0.1, unit="winner_distance")
    return {
        "VanillaVQ": VanillaVQ,
        "EMAVQ": EMAVQ,
        "FactorizedVQ": FactorizedVQ,
        "SimVQ": SimVQ,
        "NSVQ": partial(NSVQ, kernel="clamped_softmax", bandwidth=bandwidth, initial_scale=1.0),
        "TransVQ": partial(TransVQ, width=128, initial_scale=1.0, position_embedding=False),
    }


def _small_vqvae(quantizer: Quantizer) -> Tokenizer:
    return VQVAE(quantizer, ConvEncoder((8, 16), 1), ConvDecoder((8, 16), 1))


def _small_vqgan(quantizer: Quantizer) -> Tokenizer:
    shape: dict[str, Any] = {"ch": 32, "ch_mult": (1, 1, 2), "num_res_blocks": 1, "resolution": 32, "z_channels": 32}
    return VQGAN(
        quantizer,
        LDMEncoder(**shape),
        LDMDecoder(**shape),
        PatchDiscriminator(channels=32, num_layers=2),
        optimizer=partial(_adam, lr=1e-3),
        discriminator_optimizer=partial(_adam, lr=2e-4),
        perceptual_weight=0.0,
        adversarial=AdversarialLoss("hinge", weight=0.1),
        gradient_clip_val=1.0,
        codebook_lr_factor=10.0,
    )


def _adam(parameters: Any, lr: float) -> Optimizer:
    return torch.optim.Adam(parameters, lr=lr, betas=(0.5, 0.9))
