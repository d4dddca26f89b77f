"""Codebook health: which codes are used, and how well they fit."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from nsvq.callbacks.curves import record, record_arrays
from nsvq.callbacks.protocols import tokenizer
from nsvq.distributed import all_reduce_sum, rank
from nsvq.metrics import CodebookUsage, QuantizationError

LOGGED = ("codebook_utilization", "codebook_utilization_ceiling", "perplexity", "dead_code_fraction", "tokens")


class CodebookHealth(Callback):
    """Measures codebook usage over each validation or test pass and over windows of training steps.

    Logged after a validation pass, from the summed histogram of all processes: `val/codebook_utilization`,
    `val/codebook_utilization_ceiling`, `val/perplexity`, `val/dead_code_fraction`, `val/tokens` and
    `val/quantization_error`; the same under `test/`; and under `train/`, without the error, over each window of
    `train_window` training batches. Every row also goes to `curves/codebook.csv`, whichever step the loggers catch,
    and the per-code counts of validation passes to `curves/`.

    Works in any LightningModule with `.quantizer`: a hook on the quantizer counts what it returns.

    Args:
        train_window: Training batches that a `train/` measurement covers.

    Raises:
        ValueError: If train_window is below 1.
    """

    def __init__(self, train_window: int = 100) -> None:
        if train_window < 1:
            raise ValueError(f"train_window must be at least 1, got {train_window}")
        self.train_window = train_window
        self._split: str | None = None
        self._batches = 0
        self._usage: dict[str, CodebookUsage] = {}
        self._error: dict[str, QuantizationError] = {}
        self._hook: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start to listen to the quantizer."""
        self._unhook()
        quantizer = tokenizer(pl_module, "quantizer").quantizer
        assert isinstance(quantizer, nn.Module)
        for split in ("train", "val", "test"):
            self._usage[split] = CodebookUsage(quantizer.codebook_size).to(pl_module.device)
        self._error.clear()
        self._hook = quantizer.register_forward_hook(partial(self._observe, pl_module))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        self._unhook()

    def on_exception(self, *_: Any) -> None:
        """Stop listening."""
        self._unhook()

    def on_train_batch_start(self, *_: Any) -> None:
        """Count what follows as training, except what runs in evaluation mode."""
        self._split = "train"

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Report a full window."""
        self._split = None
        self._batches += 1
        if self._batches == self.train_window:
            self._report(trainer, pl_module, "train")
            self._batches = 0

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Count what follows as validation, except in the sanity check."""
        self._split = None if trainer.sanity_checking else "val"

    def on_validation_batch_end(self, *_: Any) -> None:
        """Stop counting."""
        self._split = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the validation pass."""
        if not trainer.sanity_checking:
            self._report(trainer, pl_module, "val")

    def on_test_batch_start(self, *_: Any) -> None:
        """Count what follows as test."""
        self._split = "test"

    def on_test_batch_end(self, *_: Any) -> None:
        """Stop counting."""
        self._split = None

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the test pass."""
        self._report(trainer, pl_module, "test")

    def state_dict(self) -> dict[str, Any]:
        """Return the window that is not full yet, with the counts of all processes.

        All processes call it together, as they save a checkpoint together.
        """
        if "train" not in self._usage:
            return {}
        return {"batches": self._batches, "counts": all_reduce_sum(self._usage["train"].counts).cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the window of a checkpoint, whatever the number of processes then and now."""
        if state_dict:
            self._batches = state_dict["batches"]
            # The counts are summed again at the window's end.
            if rank() == 0:
                counts = self._usage["train"].counts
                counts += state_dict["counts"].to(counts.device)

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @torch.no_grad()
    def _observe(self, module: LightningModule, quantizer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        # Other callbacks may encode a probe set or pictures between training batches.
        if self._split is None or (self._split == "train" and not module.training):
            return
        self._usage[self._split].to(output.indices.device).update(output.indices)
        if self._split != "train":
            latents, codes = quantizer.search_space(inputs[0])
            if self._split not in self._error:
                self._error[self._split] = QuantizationError(codes.shape[1])
            chosen = codes[output.indices.flatten()]
            self._error[self._split].to(latents.device).update(latents, chosen)

    def _report(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        usage = self._usage[split].to(pl_module.device)
        statistics = usage.compute()
        if not statistics["tokens"]:
            return
        error = float("nan")
        values = {f"{split}/{name}": float(statistics[name]) for name in LOGGED}
        if split != "train":
            error = float(self._error_on_all_ranks(split, pl_module.device).compute())
            values[f"{split}/quantization_error"] = error
            self._error[split].reset()
            record_arrays(trainer, f"counts_{split}", counts=all_reduce_sum(usage.counts))
        usage.reset()
        pl_module.log_dict(values)
        row = {"step": trainer.global_step, "epoch": trainer.current_epoch, "split": split}
        record(trainer, "codebook", row | statistics | {"quantization_error": error})

    def _error_on_all_ranks(self, split: str, device: torch.device) -> QuantizationError:
        """Return the error meter; a process that saw no batch learns its width from the others."""
        own = [len(self._error[split].latent_sum), 1] if split in self._error else [0, 0]
        width, ranks = all_reduce_sum(torch.tensor(own, device=device)).tolist()
        return self._error.setdefault(split, QuantizationError(width // ranks)).to(device)
