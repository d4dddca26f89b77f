"""A control for the drift thesis: an encoder that stops to move."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class EncoderFreeze(Callback):
    """Keeps the encoder from a step on as it is; codebook and decoder go on to train.

    The encoder's gradients are dropped before the optimizer's step, so that neither momentum nor weight decay moves it,
    whatever the learning-rate schedule. Works in any LightningModule whose optimizer has a parameter group named
    `encoder`, as those of `nsvq.models` have.

    Args:
        from_step: Training steps after which the encoder stands still; 0 freezes it as it was initialised.

    Raises:
        ValueError: If from_step is negative.
    """

    def __init__(self, from_step: int = 0) -> None:
        if from_step < 0:
            raise ValueError(f"from_step must be at least 0, got {from_step}")
        self.from_step = from_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the encoder.

        Raises:
            TypeError: If no optimizer has a group of this name.
        """
        if not any(group.get("name") == "encoder" for optimizer in trainer.optimizers for group in _groups(optimizer)):
            raise TypeError(f"no optimizer of {type(pl_module).__name__} has a parameter group named encoder to freeze")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drop the encoder's gradients if it is time."""
        if trainer.global_step < self.from_step:
            return
        for group in _groups(optimizer):
            if group.get("name") == "encoder":
                for parameter in group["params"]:
                    parameter.grad = None


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = optimizer.param_groups
    return groups
