"""Encoder drift on a fixed probe set."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from nsvq.callbacks.curves import record
from nsvq.callbacks.probe import probe_images, probe_state
from nsvq.callbacks.protocols import tokenizer
from nsvq.metrics import ProbeState, drift_measures


class EncoderDrift(Callback):
    """Encodes the same images every few steps and measures how far latents, codes and assignments moved.

    The probe set is `num_images` validation images, evenly spread over the data set and equal on all ranks, encoded in
    evaluation mode. Measures (see `nsvq.metrics.drift_measures`) are logged under `drift/` and written to
    `curves/drift.csv`, whose column `delta_steps` tells how many steps lie between the two states.

    Works in any LightningModule with `.quantizer` and `.encode`.

    Args:
        every_n_steps: Steps between measurements.
        num_images: Size of the probe set.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(self, every_n_steps: int = 50, num_images: int = 64) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("num_images", num_images)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.every_n_steps = every_n_steps
        self.num_images = num_images
        self._probe: Tensor | None = None
        self._reference: ProbeState | None = None
        self._reference_step = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fetch the probe set."""
        tokenizer(pl_module, "quantizer", "encode")
        self._probe = probe_images(trainer, self.num_images)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the first reference, unless a checkpoint brought one."""
        assert self._probe is not None
        if self._reference is None:
            self._reference = probe_state(trainer, pl_module, self._probe)
            self._reference_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure if it is time, and make this state the reference."""
        step = trainer.global_step
        if step % self.every_n_steps or step == self._reference_step or self._reference is None:
            return
        assert self._probe is not None
        now = probe_state(trainer, pl_module, self._probe)
        before = ProbeState(*(tensor.to(now.latents.device) for tensor in self._reference))
        measures = drift_measures(now, before)
        pl_module.log_dict({f"drift/{name}": value for name, value in measures.items()})
        row = {"step": step, "epoch": trainer.current_epoch, "delta_steps": step - self._reference_step}
        record(trainer, "drift", row | measures)
        self._reference, self._reference_step = now, step

    def state_dict(self) -> dict[str, Any]:
        """Return the reference state for a checkpoint."""
        if self._reference is None:
            return {}
        return {"step": self._reference_step, "reference": [tensor.cpu() for tensor in self._reference]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the reference state from a checkpoint."""
        if state_dict:
            self._reference_step = state_dict["step"]
            self._reference = ProbeState(*state_dict["reference"])
