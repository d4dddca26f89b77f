"""The VQ-VAE as a LightningModule."""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from nsvq.models.tokenizer import Tokenizer, build_scheduler
from nsvq.networks import ConvDecoder, ConvEncoder
from nsvq.quantizers import Quantizer


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=5e-4)


class VQVAE(Tokenizer):
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
        super().__init__(
            quantizer,
            ConvEncoder() if encoder is None else encoder,
            ConvDecoder() if decoder is None else decoder,
            optimizer,
            lr_scheduler,
            lr_scheduler_interval,
            reconstruction_loss,
            encoder_lr_factor,
            codebook_lr_factor,
        )

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of a batch of images."""
        reconstructions, output = self(batch)
        losses = self._losses(batch, reconstructions, output)
        loss: Tensor = losses["reconstruction_loss"] + output.loss
        self.log_training(losses, loss)
        self.end_batch()
        return loss

    def configure_optimizers(self) -> Any:
        """Build the optimizer, with the learning-rate factors applied, and the scheduler."""
        optimizer = self.tokenizer_optimizer()
        if self.lr_scheduler is None:
            return optimizer
        scheduler = {"scheduler": build_scheduler(self.lr_scheduler, optimizer), "interval": self.lr_scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
