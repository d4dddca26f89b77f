"""The VQ-VAE as a LightningModule."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MetricCollection

from nsvq.metrics import reconstruction_metrics, to_eight_bit
from nsvq.models.parameters import parameter_groups, scale_learning_rates
from nsvq.networks import ConvDecoder, ConvEncoder
from nsvq.quantizers import KernelCodebookLoss, Quantizer, QuantizerOutput

RECONSTRUCTION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss}


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=5e-4)


class VQVAE(LightningModule):
    """An autoencoder with a quantized bottleneck (VQ-VAE, arXiv 1711.00937).

    1×1 convolutions map the encoder's width to the quantizer's `dim` and back to the decoder's width. Images are
    float tensors (B, C, H, W) in [−1, 1].

    Args:
        quantizer: Any quantizer.
        encoder: A module with the attribute `out_channels`; None: the CelebA network of arXiv 2602.18896.
        decoder: A module with the attribute `in_channels`; None: the same paper's.
        optimizer: Builds the optimizer from parameter groups.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer.
        lr_scheduler_interval: What steps the scheduler.
        reconstruction_loss: Mean squared (`mse`) or mean absolute error (`l1`).
        encoder_lr_factor: Factor of the learning rate of the encoder and its 1×1 convolution.
        codebook_lr_factor: Factor of the learning rate of free code vectors. Transforms that make a codebook train at
            the networks' rate.

    Raises:
        ValueError: If a network lacks its channel attribute, a factor is negative or the loss is unknown.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        optimizer: OptimizerCallable = _adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        reconstruction_loss: Literal["mse", "l1"] = "mse",
        encoder_lr_factor: float = 1.0,
        codebook_lr_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = ConvEncoder() if encoder is None else encoder
        self.decoder = ConvDecoder() if decoder is None else decoder
        self.quantizer = quantizer
        self.to_latents = nn.Conv2d(_channels(self.encoder, "out_channels"), quantizer.dim, 1)
        self.from_latents = nn.Conv2d(quantizer.dim, _channels(self.decoder, "in_channels"), 1)
        for name, factor in (("encoder_lr_factor", encoder_lr_factor), ("codebook_lr_factor", codebook_lr_factor)):
            if not factor >= 0:
                raise ValueError(f"{name} must be at least 0, got {factor}")
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        if reconstruction_loss not in RECONSTRUCTION_LOSSES:
            raise ValueError(f"reconstruction_loss must be mse or l1, got {reconstruction_loss!r}")
        self.distance = RECONSTRUCTION_LOSSES[reconstruction_loss]
        self.encoder_lr_factor = encoder_lr_factor
        self.codebook_lr_factor = codebook_lr_factor
        self.val_metrics = reconstruction_metrics("val/")
        self.test_metrics = reconstruction_metrics("test/")

    def encode(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to latents (B, dim, h, w), before quantization."""
        latents: Tensor = self.to_latents(self.encoder(images))
        return latents

    def decode(self, quantized: Tensor) -> Tensor:
        """Map quantized latents (B, dim, h, w) to images (B, C, H, W)."""
        images: Tensor = self.decoder(self.from_latents(quantized))
        return images

    def forward(self, images: Tensor) -> tuple[Tensor, QuantizerOutput]:
        """Reconstruct images.

        Args:
            images: Images in [−1, 1], shape (B, C, H, W).

        Returns:
            Reconstructions of the same shape, not clamped, and the quantizer's output.

        Raises:
            ValueError: If the reconstruction's shape is not the image's.
        """
        output: QuantizerOutput = self.quantizer(self.encode(images))
        reconstructions = self.decode(output.quantized)
        if reconstructions.shape != images.shape:
            raise ValueError(
                f"images of shape {tuple(images.shape)} come back as {tuple(reconstructions.shape)}: image sides must "
                "be multiples of the networks' reduction factor"
            )
        return reconstructions, output

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of a batch of images."""
        loss, losses, _ = self._losses(batch)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        if isinstance(self.quantizer.codebook_loss, KernelCodebookLoss):
            self.log("train/bandwidth", self.quantizer.codebook_loss.bandwidth)
        return loss

    def on_train_epoch_end(self) -> None:
        """Advance what the quantizer schedules per epoch."""
        self.quantizer.on_epoch_end()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Measure a batch of validation images."""
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Measure a batch of test images."""
        self._evaluate(batch, "test", self.test_metrics)

    def predict_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Return `reconstructions` (B, C, H, W) in [−1, 1] and code `indices` (B, h, w)."""
        reconstructions, output = self(batch)
        return {"reconstructions": reconstructions.clamp(-1, 1), "indices": output.indices}

    def configure_optimizers(self) -> Any:
        """Build the optimizer, with the learning-rate factors applied, and the scheduler."""
        groups = parameter_groups(
            self, [self.encoder, self.to_latents], self.quantizer, self.encoder_lr_factor, self.codebook_lr_factor
        )
        try:
            optimizer = scale_learning_rates(self.optimizer(groups))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the optimizer refuses its options: {error}") from error
        if self.lr_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.lr_scheduler(optimizer), "interval": self.lr_scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _losses(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        reconstructions, output = self(images)
        reconstruction_loss = self.distance(reconstructions.float(), images.float())
        losses = {"reconstruction_loss": reconstruction_loss}
        losses.update({f"{name}_loss": value for name, value in output.losses.items()})
        return reconstruction_loss + output.loss, losses, reconstructions

    def _evaluate(self, images: Tensor, split: str, metrics: MetricCollection) -> None:
        loss, losses, reconstructions = self._losses(images)
        metrics.update(to_eight_bit(reconstructions), to_eight_bit(images))
        values = {f"{split}/{name}": value for name, value in {"loss": loss, **losses}.items()}
        self.log_dict(values, batch_size=len(images), sync_dist=True)
        self.log_dict(metrics, batch_size=len(images), prog_bar=split == "val")


def _channels(network: nn.Module, attribute: str) -> int:
    channels = getattr(network, attribute, None)
    if not isinstance(channels, int):
        raise ValueError(f"{type(network).__name__} has no attribute {attribute}, which tells its width to the model")
    return channels
