"""The VQ-GAN as a LightningModule."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from nsvq.losses import AdversarialLoss, PerceptualLoss, adaptive_weight
from nsvq.models.batch_count import one_count_per_batch
from nsvq.models.published import load_published_autoencoder
from nsvq.models.tokenizer import Tokenizer, build_optimizer, build_scheduler
from nsvq.networks import LDMDecoder, LDMEncoder, PatchDiscriminator
from nsvq.pretrained import lpips_network, obtain
from nsvq.quantizers import Quantizer


def _adam(parameters: Any) -> Optimizer:
    return torch.optim.Adam(parameters, lr=5.4e-5, betas=(0.5, 0.9))


class VQGAN(Tokenizer):
    """An autoencoder with a quantized bottleneck, trained with perceptual and adversarial losses (arXiv 2012.09841).

    The tokenizer minimises reconstruction loss + perceptual_weight · LPIPS + the quantizer's loss + λ · adversarial
    loss, with λ from `AdversarialLoss` and, where adaptive, `nsvq.losses.adaptive_weight`. Each batch runs the
    autoencoder once. A step is a batch, also with accumulated gradients: `trainer.global_step`, checkpoints, loggers
    and averages of weights count each once.

    `val/loss` is the reconstruction loss plus the quantizer's. Under DDP the strategy must be
    `ddp_find_unused_parameters_true`, since each of the two losses leaves the other's parameters unused.

    Args:
        quantizer: Any quantizer.
        encoder: A module with the attribute `out_channels`; None: latent-diffusion's at f = 4.
        decoder: A module with the attributes `in_channels` and `last_layer`, the last weight; None: latent-diffusion's
            at f = 4.
        discriminator: Maps images (B, C, H, W) to logits of any shape; None: a `PatchDiscriminator`.
        optimizer: Builds the tokenizer's optimizer from parameter groups.
        discriminator_optimizer: Builds the discriminator's.
        lr_scheduler: Builds a learning-rate scheduler from an optimizer, one for each of the two; the discriminator's
            rests until the discriminator learns.
        lr_scheduler_interval: What steps the schedulers: a step of the optimizers or an epoch.
        reconstruction_loss: Mean absolute (`l1`) or mean squared error (`mse`).
        perceptual_weight: Factor of LPIPS (VGG, arXiv 1801.03924); 0 needs no pretrained weights.
        vgg_path: File of the VGG weights; None: found by `nsvq.pretrained.find`.
        allow_download: Whether rank 0 may fetch them.
        adversarial: The adversarial losses and their schedule; None: `AdversarialLoss()`.
        gradient_clip_val: Largest gradient norm of each of the two optimizers' parameters; None does not clip.
        accumulate_grad_batches: Batches whose mean gradient an optimizer step takes; the last of an epoch, where they
            are fewer, are divided by the same number.
        encoder_lr_factor: Factor of the learning rate of the encoder and its 1×1 convolution.
        codebook_lr_factor: Factor of the learning rate of free code vectors.
        pretrained: A taming-transformers or latent-diffusion checkpoint that the autoencoder starts from where no
            checkpoint of a run is given, see `nsvq.models.published`.

    Raises:
        ValueError: If a network lacks a needed attribute or an option is out of its range.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        optimizer: OptimizerCallable = _adam,
        discriminator_optimizer: OptimizerCallable = _adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        reconstruction_loss: Literal["l1", "mse"] = "l1",
        perceptual_weight: float = 1.0,
        vgg_path: str | None = None,
        allow_download: bool = False,
        adversarial: AdversarialLoss | None = None,
        gradient_clip_val: float | None = None,
        accumulate_grad_batches: int = 1,
        encoder_lr_factor: float = 1.0,
        codebook_lr_factor: float = 1.0,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(
            quantizer,
            LDMEncoder() if encoder is None else encoder,
            LDMDecoder() if decoder is None else decoder,
            optimizer,
            lr_scheduler,
            lr_scheduler_interval,
            reconstruction_loss,
            encoder_lr_factor,
            codebook_lr_factor,
        )
        if not isinstance(getattr(self.decoder, "last_layer", None), nn.Parameter):
            raise ValueError(
                f"{type(self.decoder).__name__} has no parameter last_layer, which the adaptive weight is measured at"
            )
        if not perceptual_weight >= 0:
            raise ValueError(f"perceptual_weight must be at least 0, got {perceptual_weight}")
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ValueError(f"gradient_clip_val must be null or above 0, got {gradient_clip_val}")
        if accumulate_grad_batches < 1:
            raise ValueError(f"accumulate_grad_batches must be at least 1, got {accumulate_grad_batches}")
        self.automatic_optimization = False
        self.discriminator = PatchDiscriminator() if discriminator is None else discriminator
        self.adversarial = AdversarialLoss() if adversarial is None else adversarial
        self.discriminator_optimizer = discriminator_optimizer
        self.perceptual_weight = perceptual_weight
        self.vgg_path = vgg_path
        self.allow_download = allow_download
        self.gradient_clip_val = gradient_clip_val
        self.accumulate_grad_batches = accumulate_grad_batches
        self.pretrained = pretrained
        self.perceptual_loss: PerceptualLoss | None = None

    def tokenizer_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return names and parameters of all but the discriminator."""
        adversary = {id(parameter) for parameter in self.discriminator.parameters()}
        return ((name, value) for name, value in super().tokenizer_parameters() if id(value) not in adversary)

    def setup(self, stage: str) -> None:
        """Load the weights to start from and, before training, the perceptual network.

        Raises:
            FileNotFoundError: If weights are needed and found nowhere.
            ValueError: If weights are another model's, or the strategy or precision cannot train two losses.
        """
        if self.pretrained is not None:
            if self.trainer.ckpt_path is None:
                load_published_autoencoder(self, Path(self.pretrained))
            # A later stage must not replace what was trained.
            self.pretrained = None
        if stage != "fit":
            return
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise ValueError("VQGAN has two losses and needs --trainer.strategy ddp_find_unused_parameters_true")
        if self.trainer.precision == "16-mixed":
            raise ValueError(
                "VQGAN does not train in 16-mixed, where the gradients that the adaptive weight compares vanish: give "
                "--trainer.precision bf16-mixed"
            )
        if self.perceptual_weight and self.perceptual_loss is None:
            trunk = obtain(
                "vgg",
                self.vgg_path,
                self.allow_download,
                option="--model.vgg_path",
                switch_off="set --model.perceptual_weight to 0",
            )
            self.perceptual_loss = PerceptualLoss(lpips_network("vgg", trunk))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Train the tokenizer and the discriminator on a batch and return the tokenizer's loss."""
        optimizers = cast(list[LightningOptimizer], self.optimizers())
        with one_count_per_batch(self.trainer, optimizers):
            tokenizer_optimizer, discriminator_optimizer = optimizers
            step = self.global_step
            with self.toggled_optimizer(tokenizer_optimizer):
                losses, watched, reconstructions = self._tokenizer_losses(batch, step)
                loss = torch.stack(list(losses.values())).sum()
            backward = [(loss, tokenizer_optimizer)]
            if self.adversarial.discriminator_learns(step):
                with self.toggled_optimizer(discriminator_optimizer):
                    discriminator_loss, logits = self._discriminator_loss(batch, reconstructions.detach(), step)
                backward.append((discriminator_loss, discriminator_optimizer))
                watched |= {"discriminator_loss": discriminator_loss} | logits
            self.log_training(losses | watched, loss)
            full = (batch_idx + 1) % self.accumulate_grad_batches == 0 or self.trainer.is_last_batch
            for value, optimizer in backward:
                # Lightning's autocast is on in here, and would shorten the products of the quantizer's gradients.
                with torch.autocast(self.device.type, enabled=False):
                    self.manual_backward(value / self.accumulate_grad_batches)
                if full:
                    optimizer.step()
                    optimizer.zero_grad()
            if full if self.lr_scheduler_interval == "step" else self.trainer.is_last_batch:
                schedulers = cast(list[LRScheduler], self.lr_schedulers() or [])
                for scheduler, _ in zip(schedulers, backward, strict=False):
                    scheduler.step()
            self.end_batch()
        return loss.detach()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Refuse gradients that are not finite, and clip the others."""
        super().on_before_optimizer_step(optimizer)
        if self.gradient_clip_val is not None:
            self.clip_gradients(optimizer, self.gradient_clip_val, gradient_clip_algorithm="norm")

    def on_validation_model_zero_grad(self) -> None:
        """Keep gradients that are being accumulated, which Lightning would clear before a validation."""

    def configure_optimizers(self) -> Any:
        """Build both optimizers, with the tokenizer's learning-rate factors applied, and their schedulers.

        Raises:
            ValueError: If an optimizer refuses its options or a scheduler waits for a measured value.
        """
        discriminator = build_optimizer(self.discriminator_optimizer, self.discriminator.parameters())
        optimizers = [self.tokenizer_optimizer(), discriminator]
        if self.lr_scheduler is None:
            return optimizers
        schedulers = [build_scheduler(self.lr_scheduler, optimizer) for optimizer in optimizers]
        if any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in schedulers):
            raise ValueError("VQGAN steps its schedulers by time: ReduceLROnPlateau waits for a measured value")
        return optimizers, schedulers

    def _tokenizer_losses(self, images: Tensor, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Return the weighted losses that sum to the tokenizer's, what else to watch, and the reconstructions."""
        reconstructions, output = self(images)
        losses = self._losses(images, reconstructions, output)
        if self.perceptual_loss is not None:
            losses["perceptual_loss"] = self.perceptual_weight * self.perceptual_loss(reconstructions, images)
        factor = self.adversarial.weight_at(step)
        adversarial = self.adversarial.tokenizer_loss(self.discriminator(reconstructions)) if factor else None
        if self.adversarial.adaptive:
            task = torch.stack([losses[name] for name in ("reconstruction_loss", "perceptual_loss") if name in losses])
            weight = factor * adaptive_weight(task.sum(), adversarial, cast(Tensor, self.decoder.last_layer))
        else:
            weight = torch.full((), factor, device=images.device)
        losses["adversarial_loss"] = weight * (torch.zeros_like(weight) if adversarial is None else adversarial)
        return losses, {"adversarial_weight": weight}, reconstructions

    def _discriminator_loss(self, images: Tensor, fakes: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the discriminator's loss and its mean logits."""
        real, fake = self.discriminator(images), self.discriminator(fakes)
        loss = self.adversarial.discriminator_loss(real, fake)
        penalty = self.adversarial.r1_penalty(self.discriminator, images, step)
        if penalty is not None:
            loss = loss + penalty
        return loss, {"real_logits": real.double().mean(), "fake_logits": fake.double().mean()}
