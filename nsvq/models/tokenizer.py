"""What every model of this project is: an autoencoder around a quantizer."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MetricCollection

from nsvq.distributed import world_size
from nsvq.losses import ReconstructionLoss
from nsvq.metrics import reconstruction_metrics, to_eight_bit
from nsvq.models.finite import finite_means, stop_unless_finite, stop_unless_gradients_are_finite
from nsvq.models.parameters import parameter_groups, scale_learning_rates
from nsvq.quantizers import KernelCodebookLoss, Quantizer, QuantizerOutput


class Tokenizer(LightningModule):
    """An autoencoder with a quantized bottleneck, without its training step.

    1×1 convolutions map the encoder's width to the quantizer's `dim` and back to the decoder's width. Images are
    float tensors (B, C, H, W) in [−1, 1].

    Args:
        quantizer: Any quantizer.
        encoder: A module with the attribute `out_channels`.
        decoder: A module with the attribute `in_channels`.
        optimizer: Builds the optimizer from parameter groups.
        lr_scheduler: Builds a learning-rate scheduler from an optimizer.
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
        encoder: nn.Module,
        decoder: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        lr_scheduler_interval: Literal["epoch", "step"],
        reconstruction_loss: Literal["mse", "l1"],
        encoder_lr_factor: float,
        codebook_lr_factor: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.quantizer = quantizer
        self.to_latents = nn.Conv2d(_channels(self.encoder, "out_channels"), quantizer.dim, 1)
        self.from_latents = nn.Conv2d(quantizer.dim, _channels(self.decoder, "in_channels"), 1)
        for name, factor in (("encoder_lr_factor", encoder_lr_factor), ("codebook_lr_factor", codebook_lr_factor)):
            if not factor >= 0:
                raise ValueError(f"{name} must be at least 0, got {factor}")
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.reconstruction_loss = ReconstructionLoss(reconstruction_loss)
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
            FloatingPointError: If, in training, a latent or a tensor of the quantizer is not finite on any process.
        """
        latents = self.encode(images)
        if self.training:
            tensors = (*self.quantizer.named_parameters(), *self.quantizer.named_buffers())
            values = {f"quantizer.{name}": value for name, value in tensors if value.is_floating_point()}
            stop_unless_finite({"latents": latents} | values, step=self.global_step)
        output: QuantizerOutput = self.quantizer(latents)
        reconstructions = self.decode(output.quantized)
        if reconstructions.shape != images.shape:
            raise ValueError(
                f"images of shape {tuple(images.shape)} come back as {tuple(reconstructions.shape)}: image sides must "
                "be multiples of the networks' reduction factor"
            )
        return reconstructions, output

    def tokenizer_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return names and parameters of encoder, quantizer and decoder; a shared one under each of its names."""
        return self.named_parameters(remove_duplicate=False)

    def end_batch(self) -> None:
        """Advance what the quantizer schedules per epoch, if this training batch is an epoch's last.

        Training steps call it at their end: a checkpoint that is saved behind the epoch's last batch must know.
        """
        if self.trainer.is_last_batch:
            self.quantizer.on_epoch_end()

    def validation_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Measure a batch of validation images and return their `reconstructions`."""
        return self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Measure a batch of test images and return their `reconstructions`."""
        return self._evaluate(batch, "test", self.test_metrics)

    def predict_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Return `reconstructions` (B, C, H, W) in [−1, 1] and code `indices` (B, h, w)."""
        reconstructions, output = self(batch)
        return {"reconstructions": reconstructions.clamp(-1, 1), "indices": output.indices}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Refuse gradients that are not finite, except where a gradient scaler skips such steps.

        Raises:
            FloatingPointError: If a gradient is not finite.
        """
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            stop_unless_gradients_are_finite(optimizer, self.named_parameters(), self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to replace a sound checkpoint by one with broken weights.

        Raises:
            FloatingPointError: If a weight is not finite; processes have equal weights, so that all of them raise.
        """
        broken = [name for name, value in checkpoint["state_dict"].items() if not value.isfinite().all()]
        if broken:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            raise FloatingPointError(
                f"not finite after step {self.global_step}: {broken[0]}{more}; no checkpoint was written, earlier "
                "ones are untouched"
            )

    def tokenizer_optimizer(self) -> Optimizer:
        """Build the tokenizer's optimizer with the learning-rate factors applied.

        Raises:
            ValueError: If the optimizer refuses its options.
        """
        groups = parameter_groups(
            dict.fromkeys(parameter for _, parameter in self.tokenizer_parameters()),
            [self.encoder, self.to_latents],
            self.quantizer,
            self.encoder_lr_factor,
            self.codebook_lr_factor,
        )
        return scale_learning_rates(build_optimizer(self.optimizer, groups))

    def log_training(self, losses: dict[str, Tensor], total: Tensor) -> None:
        """Log the training losses of a batch, means over all processes, and NSVQ's bandwidth.

        Raises:
            FloatingPointError: If a loss is not finite on any process.
        """
        means = finite_means({"loss": total} | losses, self.global_step)
        self.log("train/loss", means.pop("loss"), prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in means.items()})
        if isinstance(self.quantizer.codebook_loss, KernelCodebookLoss):
            self.log("train/bandwidth", self.quantizer.codebook_loss.bandwidth)

    def _losses(self, images: Tensor, reconstructions: Tensor, output: QuantizerOutput) -> dict[str, Tensor]:
        losses = {"reconstruction_loss": self.reconstruction_loss(reconstructions, images)}
        return losses | {f"{name}_loss": value for name, value in output.losses.items()}

    def _evaluate(self, images: Tensor, split: str, metrics: MetricCollection) -> dict[str, Tensor]:
        reconstructions, output = self(images)
        losses = self._losses(images, reconstructions, output)
        metrics.update(to_eight_bit(reconstructions), to_eight_bit(images))
        values = {"loss": losses["reconstruction_loss"] + output.loss, **losses}
        # Lightning divides by the processes' mean number of images, rounded down, where their shares differ
        # (pytorch-lightning#21859); a multiple of the number of processes has no remainder.
        weight = len(images) * world_size()
        self.log_dict({f"{split}/{k}": v for k, v in values.items()}, batch_size=weight, sync_dist=True)
        self.log_dict(metrics, batch_size=len(images), prog_bar=split == "val")
        return {"reconstructions": reconstructions}


def build_optimizer(build: OptimizerCallable, parameters: Iterable[Any]) -> Optimizer:
    """Build an optimizer.

    Args:
        build: Makes an optimizer from parameters.
        parameters: Parameters or groups of them.

    Returns:
        The optimizer.

    Raises:
        ValueError: If the optimizer refuses its options.
    """
    try:
        return build(parameters)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the optimizer refuses its options: {error}") from error


def build_scheduler(build: LRSchedulerCallable, optimizer: Optimizer) -> Any:
    """Build a learning-rate scheduler.

    Args:
        build: Makes a scheduler from an optimizer.
        optimizer: The optimizer.

    Returns:
        The scheduler.

    Raises:
        ValueError: If the scheduler refuses its options.
    """
    try:
        return build(optimizer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the learning-rate scheduler refuses its options: {error}") from error


def _channels(network: nn.Module, attribute: str) -> int:
    channels = getattr(network, attribute, None)
    if not isinstance(channels, int):
        raise ValueError(f"{type(network).__name__} has no attribute {attribute}, which tells its width to the model")
    return channels
