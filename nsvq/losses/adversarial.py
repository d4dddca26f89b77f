"""Adversarial training: what the discriminator minimises, and what of it reaches the tokenizer."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsvq.distributed import all_reduce_sum, world_size
from nsvq.losses.precision import at_least_float32

MAX_ADAPTIVE_WEIGHT = 1e4
EPSILON = 1e-4


class AdversarialLoss(nn.Module):
    """The two sides' losses and the schedule by which the tokenizer comes to feel the discriminator.

    The hinge loss (arXiv 1705.02894) is ½·mean relu(1 − D(x)) + ½·mean relu(1 + D(x̂)) for the discriminator and
    −mean D(x̂) for the tokenizer. The non-saturating loss (arXiv 1406.2661) is ½·mean softplus(−D(x)) +
    ½·mean softplus(D(x̂)) and mean softplus(−D(x̂)).

    Args:
        kind: `hinge` or `non_saturating`.
        weight: Factor of the tokenizer's adversarial loss.
        adaptive: Whether that factor is also multiplied by the ratio of gradient norms, see `adaptive_weight`.
        discriminator_start: Step at which the discriminator begins to learn.
        start: Step at which the tokenizer begins to feel it; None: together with discriminator_start. An untrained
            discriminator's gradient damages reconstructions, so let it lie later.
        ramp: Steps over which the weight then grows linearly from 0.
        r1_weight: Factor γ of the gradient penalty γ/2·mean ‖∇D(x)‖² on real images (R1, arXiv 1801.04406, Eq. 9), with
            D(x) the sum of an image's logits.
        r1_every_n_steps: Steps between penalties; the penalty is multiplied by it (StyleGAN2, arXiv 1912.04958).
        lecam_weight: Factor of the LeCam regularisation mean relu(D(x) − ema_fake)² + mean relu(ema_real − D(x̂))²
            (arXiv 2104.03310, Eq. 6 in its released form).
        lecam_decay: Decay of its running mean logits.

    Raises:
        ValueError: If a number is out of its range or the kind is unknown.
    """

    lecam_real: Tensor
    lecam_fake: Tensor

    def __init__(
        self,
        kind: Literal["hinge", "non_saturating"] = "hinge",
        weight: float = 0.75,
        adaptive: bool = True,
        discriminator_start: int = 0,
        start: int | None = None,
        ramp: int = 0,
        r1_weight: float = 0.0,
        r1_every_n_steps: int = 16,
        lecam_weight: float = 0.0,
        lecam_decay: float = 0.999,
    ) -> None:
        super().__init__()
        start = discriminator_start if start is None else start
        if kind not in ("hinge", "non_saturating"):
            raise ValueError(f"kind must be hinge or non_saturating, got {kind!r}")
        for name, value, least in (
            ("weight", weight, 0),
            ("discriminator_start", discriminator_start, 0),
            ("ramp", ramp, 0),
            ("r1_weight", r1_weight, 0),
            ("r1_every_n_steps", r1_every_n_steps, 1),
            ("lecam_weight", lecam_weight, 0),
        ):
            if not value >= least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if start < discriminator_start:
            raise ValueError(f"start must be at least discriminator_start={discriminator_start}, got {start}")
        if not 0 <= lecam_decay < 1:
            raise ValueError(f"lecam_decay must be at least 0 and below 1, got {lecam_decay}")
        self.kind = kind
        self.weight = weight
        self.adaptive = adaptive
        self.discriminator_start = discriminator_start
        self.start = start
        self.ramp = ramp
        self.r1_weight = r1_weight
        self.r1_every_n_steps = r1_every_n_steps
        self.lecam_weight = lecam_weight
        self.lecam_decay = lecam_decay
        self.register_buffer("lecam_real", torch.zeros(()))
        self.register_buffer("lecam_fake", torch.zeros(()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdversarialLoss":
        # A step of 1 − lecam_decay falls below the resolution of half types, so the means don't follow into them.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.lecam_real, self.lecam_fake = at_least_float32(self.lecam_real), at_least_float32(self.lecam_fake)
        return self

    def discriminator_learns(self, step: int) -> bool:
        """Whether the discriminator is trained at a step."""
        return step >= self.discriminator_start

    def weight_at(self, step: int) -> float:
        """Return the factor of the tokenizer's adversarial loss at a step, without the adaptive part."""
        if step < self.start:
            return 0.0
        return self.weight * min(1.0, (step - self.start + 1) / (self.ramp + 1))

    def tokenizer_loss(self, fake_logits: Tensor) -> Tensor:
        """Return the unweighted loss of the tokenizer.

        Args:
            fake_logits: The discriminator's logits of reconstructions, any shape.

        Returns:
            Scalar.
        """
        fake_logits = at_least_float32(fake_logits)
        return -fake_logits.mean() if self.kind == "hinge" else F.softplus(-fake_logits).mean()

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Return the loss of the discriminator, with LeCam's term if it is on.

        Args:
            real_logits: Logits of images, any shape.
            fake_logits: Logits of reconstructions, any shape.

        Returns:
            Scalar.
        """
        real_logits, fake_logits = at_least_float32(real_logits), at_least_float32(fake_logits)
        penalty = F.softplus if self.kind == "non_saturating" else _hinge
        loss = (penalty(-real_logits).mean() + penalty(fake_logits).mean()) / 2
        if self.lecam_weight:
            loss = loss + self.lecam_weight * self._lecam(real_logits, fake_logits)
        return loss

    def r1_penalty(self, discriminator: nn.Module, images: Tensor, step: int) -> Tensor | None:
        """Return the gradient penalty on real images if it is due.

        Args:
            discriminator: The discriminator.
            images: Real images, shape (B, C, H, W).
            step: The training step.

        Returns:
            Scalar, None if the penalty is off or not due.
        """
        if not self.r1_weight or step % self.r1_every_n_steps:
            return None
        with torch.autocast(images.device.type, enabled=False):
            images = images.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
            factor = self.r1_weight / 2 * self.r1_every_n_steps
            return factor * at_least_float32(gradient).square().flatten(1).sum(dim=1).mean()

    def _lecam(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        with torch.no_grad():
            means = all_reduce_sum(torch.stack([real_logits.mean(), fake_logits.mean()])) / world_size()
            self.lecam_real.lerp_(means[0].to(self.lecam_real.dtype), 1 - self.lecam_decay)
            self.lecam_fake.lerp_(means[1].to(self.lecam_fake.dtype), 1 - self.lecam_decay)
        real = F.relu(real_logits - self.lecam_fake).square().mean()
        fake = F.relu(self.lecam_real - fake_logits).square().mean()
        return real + fake


def adaptive_weight(task_loss: Tensor, adversarial_loss: Tensor | None, last_layer: Tensor) -> Tensor:
    """Return ‖∇ task_loss‖ / (‖∇ adversarial_loss‖ + 1e-4) at the last layer (VQGAN, arXiv 2012.09841, Eq. 7).

    The gradients are averaged over processes before their norms, in at least float32, so that all ranks use the weight
    that one process would find. The communication is the same with and without an adversarial loss.

    Args:
        task_loss: Reconstruction and perceptual loss, scalar.
        adversarial_loss: The tokenizer's unweighted adversarial loss, scalar; None before it takes part.
        last_layer: The decoder's last weight.

    Returns:
        Scalar in [0, 1e4] without a gradient; 0 without an adversarial loss, nan where a gradient is not finite.
    """
    if adversarial_loss is None:
        gradients = at_least_float32(
            torch.zeros(2, last_layer.numel(), dtype=last_layer.dtype, device=last_layer.device)
        )
    else:
        losses = (task_loss, adversarial_loss)
        gradients = torch.stack(
            [at_least_float32(torch.autograd.grad(loss, last_layer, retain_graph=True)[0]).flatten() for loss in losses]
        )
    norms = (all_reduce_sum(gradients) / world_size()).norm(dim=1)
    weight = (norms[0] / (norms[1] + EPSILON)).clamp(max=MAX_ADAPTIVE_WEIGHT)
    # An infinite norm would hide behind the clamp or a weight of 0.
    return torch.where(norms.isfinite().all(), weight, torch.nan)


def _hinge(logits: Tensor) -> Tensor:
    return F.relu(1 + logits)
