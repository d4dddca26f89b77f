"""Part B: the time of a training step with each quantizer, and the quantizer's share of it."""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nsvq.bench.contenders import BASELINE
from nsvq.bench.timing import Spread, spread, take_turns
from nsvq.bench.training_settings import TrainingSetting, training_quantizers
from nsvq.bench.workload import synchronize, timed_step
from nsvq.models.tokenizer import Tokenizer

COLUMNS = [
    "device", "model", "quantizer", "seconds", "seconds_q1", "seconds_q3", "rounds", "images_per_second", "ratio",
    "quantizer_seconds", "quantizer_share",
]  # fmt: skip


class RandomImages(Dataset[Tensor]):
    """Images of noise in [−1, 1], held in memory.

    Args:
        count: Number of images.
        size: Their side.
    """

    def __init__(self, count: int, size: int) -> None:
        self.images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class StepClock(Callback):
    """Times training batches from the loaded batch to the end of the optimizers' steps.

    Attributes:
        seconds: One number a step.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        synchronize(pl_module.device)
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock."""
        synchronize(pl_module.device)
        self.seconds.append(time.perf_counter() - self._start)


def measure_training(settings: Sequence[TrainingSetting], device: torch.device, seconds: float) -> pd.DataFrame:
    """Measure training steps through Lightning's Trainer: forward, backward, optimizers.

    The models of a setting take turns. A turn is a fit of a few steps, the first of which does not count, and then a
    step of the quantizer alone: forward and backward of a copy of it on the encoder's latents. The share is the median
    of the latter over the median of the former.

    Args:
        settings: The models.
        device: Where they train.
        seconds: Time for the rounds of each model.

    Returns:
        One row for each model and quantizer: `seconds` of a step (median) and their quartiles over the rounds,
        `images_per_second`, their `ratio` to VanillaVQ, `quantizer_seconds` and `quantizer_share`.
    """
    rows = []
    for setting in settings:
        print(f"training steps of {setting.model} on {device.type}", file=sys.stderr, flush=True)
        turns: dict[tuple[str, str], Callable[[], float]] = {}
        for name, build in training_quantizers().items():
            torch.manual_seed(0)
            model = setting.build(build(setting.dim, setting.codebook_size))
            fit_seconds(model, setting, 0, device)
            turns[name, "step"] = partial(fit_seconds, model, setting, setting.steps, device)
            turns[name, "quantizer"] = _quantizer_alone(model, setting, device)
        times = {name: spread(values) for name, values in take_turns(turns, seconds).items()}
        baseline = times[BASELINE, "step"].median
        for name in training_quantizers():
            step, alone = times[name, "step"], times[name, "quantizer"]
            rows.append(_row(setting, device, step, alone) | {"quantizer": name, "ratio": step.median / baseline})
    table: pd.DataFrame = pd.DataFrame(rows, columns=COLUMNS)
    return table


def fit_seconds(model: Tokenizer, setting: TrainingSetting, steps: int, device: torch.device) -> float:
    """Train for one step that does not count and some that do.

    Args:
        model: The model, which keeps what it learns.
        setting: Its setting.
        steps: Number of steps that count.
        device: Where it trains.

    Returns:
        Median seconds of those steps; nan if there are none.
    """
    clock = StepClock()
    images = RandomImages(setting.batch_size * (steps + 1), setting.image_size)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # Lightning's advice is about real runs.
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            max_steps=steps + 1,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(images, batch_size=setting.batch_size))
    return float(np.median(clock.seconds[1:])) if steps else float("nan")


def _quantizer_alone(model: Tokenizer, setting: TrainingSetting, device: torch.device) -> Callable[[], float]:
    images = RandomImages(setting.batch_size, setting.image_size).images
    with torch.no_grad():
        latents = model.eval().encode(images.to(model.device)).to(device)
    # A copy, so that the model's own running means and bandwidth are left alone.
    quantizer = deepcopy(model.quantizer).to(device).train()
    model.train()
    latents.requires_grad_()
    timed_step(quantizer, latents)
    return partial(timed_step, quantizer, latents)


def _row(setting: TrainingSetting, device: torch.device, step: Spread, alone: Spread) -> dict[str, Any]:
    return {
        "device": device.type,
        "model": setting.model,
        "seconds": step.median,
        "seconds_q1": step.low,
        "seconds_q3": step.high,
        "rounds": step.rounds,
        "images_per_second": setting.batch_size / step.median,
        "quantizer_seconds": alone.median,
        "quantizer_share": alone.median / step.median,
    }
