"""An exponential moving average of the tokenizer's weights."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from nsvq.callbacks.protocols import tokenizer_parameters

CHECKPOINT_KEY = "weight_ema"


class WeightEMA(Callback):
    """Keeps a moving average of the tokenizer's weights, which validation and checkpoints use.

    The average starts as a copy at the end of the first training batch, so that codes which are rescaled there start
    right. Update t = 1, 2, …, one per step, makes it a · average + (1 − a) · weights with
    a = min(decay, (1 + t) / (10 + t)), the warm-up of TensorFlow's `ExponentialMovingAverage` and of latent-diffusion.
    It is kept in at least float32.

    Averaged are the parameters that `nsvq.callbacks.protocols.tokenizer_parameters` names, so no discriminator and no
    metric's network. Frozen parameters and buffers are not averaged: evaluation uses the live ones, also where they are
    code vectors. A code that is replaced in training moves into the average as slowly as any weight.

    Inside `fit`, validation measures the averaged weights, except in the sanity check, and training goes on from the
    live ones, which are also what the module holds when `fit` ends. A checkpoint's `state_dict` holds the average, so
    that whatever loads it needs to know nothing of this callback; the live weights lie beside it, and a fit with this
    callback goes on from them to the last bit. From a checkpoint without an average the average starts anew.

    In the list of callbacks it stands behind those that look at the model when validation has ended.

    Args:
        decay: Largest share of the average that an update keeps, in [0, 1).

    Raises:
        ValueError: If decay is out of its range.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._live: dict[str, Tensor] = {}
        self._updates = 0
        self._last_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin without an average.

        Raises:
            ValueError: If checkpoints are to hold weights only, where callbacks have no say.
        """
        if stage != "fit":
            return
        if any(getattr(checkpoint, "save_weights_only", False) for checkpoint in trainer.checkpoint_callbacks):
            raise ValueError("save_weights_only keeps the live weights only: weight averaging needs whole checkpoints")
        self._average, self._live, self._updates = {}, {}, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move an average that a checkpoint brought to the weights' device."""
        self._average = {name: value.to(pl_module.device) for name, value in self._average.items()}
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Start the average, or update it after a step."""
        if not self._average:
            self._follow(pl_module)
        elif trainer.global_step > self._last_step:
            self._updates += 1
            self._follow(pl_module)
        self._last_step = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averaged weights in, inside `fit`."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the live weights back."""
        self._swap_out(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the live weights back."""
        self._swap_out(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint's weights the averaged ones and keep the live ones beside them."""
        if not self._average:
            return
        state = checkpoint["state_dict"]
        live = self._live or {name: state[name] for name in self._average}
        checkpoint[CHECKPOINT_KEY] = {"updates": self._updates, "average": self._average, "live_weights": live}
        # Where the types agree these are the average's own tensors, which a file holds once.
        state.update({name: value.to(live[name].dtype) for name, value in self._average.items()})

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the average and the live weights from a checkpoint that training goes on from."""
        if trainer.state.fn != "fit" or CHECKPOINT_KEY not in checkpoint:
            return
        saved = checkpoint[CHECKPOINT_KEY]
        self._updates, self._average = saved["updates"], saved["average"]
        _set(pl_module, saved["live_weights"])

    @torch.no_grad()
    def _follow(self, module: LightningModule) -> None:
        weights = {name: value.detach() for name, value in tokenizer_parameters(module) if value.requires_grad}
        present = {name: value.to(torch.promote_types(value.dtype, torch.float32)) for name, value in weights.items()}
        known = [name for name in present if name in self._average]
        if known:
            share = 1 - min(self.decay, (1 + self._updates) / (10 + self._updates))
            torch._foreach_lerp_([self._average[name] for name in known], [present[name] for name in known], share)
        # A parameter that was frozen until now starts as a copy, one that is frozen now has no average.
        self._average = {
            name: self._average[name] if name in known else value.clone() for name, value in present.items()
        }

    def _swap_in(self, module: LightningModule) -> None:
        self._live = {
            name: value.detach().clone() for name, value in tokenizer_parameters(module) if name in self._average
        }
        _set(module, self._average)

    def _swap_out(self, module: LightningModule) -> None:
        _set(module, self._live)
        self._live = {}


@torch.no_grad()
def _set(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values into a module's parameters."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, value in values.items():
        parameters[name].copy_(value)
