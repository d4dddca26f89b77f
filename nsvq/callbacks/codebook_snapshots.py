"""Codes and latents over time, for pictures of them."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from nsvq.callbacks.curves import record_arrays
from nsvq.callbacks.probe import probe_images, probe_state
from nsvq.callbacks.protocols import tokenizer


class CodebookSnapshots(Callback):
    """Keeps codes and latents of a probe set every few steps, as `curves/snapshot_<step>.npz`.

    A file holds `latents` (n, d) and `codes` (k, d) in the search space, float32, and `uses` (k,), how many of the
    probe's tokens chose each of these codes. Of more latents or codes than are to be kept, evenly spaced ones are: a
    file of 64 dimensions takes about 0.7 MB with the defaults. `nsvq.analysis.codes_figure` draws them.

    Works in any LightningModule with `.quantizer` and `.encode`; needs `CurvesOnDisk`, which each run has.

    Args:
        every_n_steps: Steps between snapshots; the first is taken before training.
        num_images: Validation images of the probe set.
        num_latents: Most latents to keep.
        num_codes: Most codes to keep.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(
        self, every_n_steps: int = 100, num_images: int = 64, num_latents: int = 1024, num_codes: int = 2048
    ) -> None:
        numbers = {
            "every_n_steps": every_n_steps,
            "num_images": num_images,
            "num_latents": num_latents,
            "num_codes": num_codes,
        }
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.every_n_steps = every_n_steps
        self.num_images = num_images
        self.num_latents = num_latents
        self.num_codes = num_codes
        self._probe: Tensor | None = None
        self._last_step = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fetch the probe set."""
        tokenizer(pl_module, "quantizer", "encode")
        self._probe = probe_images(trainer, self.num_images)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the first snapshot of a run that begins."""
        if trainer.global_step == 0:
            self._take(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Take a snapshot if it is time."""
        # Several batches may make one step.
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._last_step:
            self._take(trainer, pl_module)

    def _take(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._probe is not None
        self._last_step = trainer.global_step
        state = probe_state(trainer, pl_module, self._probe)
        uses = state.indices.bincount(minlength=len(state.codes))
        latents = state.latents[_spread(len(state.latents), self.num_latents)].float()
        kept = _spread(len(state.codes), self.num_codes)
        record_arrays(trainer, "snapshot", latents=latents, codes=state.codes[kept].float(), uses=uses[kept])


def _spread(length: int, count: int) -> Tensor:
    """Return places in range(length), evenly spaced, at most `count`."""
    return torch.linspace(0, length - 1, min(count, length)).round().long()
