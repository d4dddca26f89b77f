"""One count per batch in manual optimization."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer


@contextmanager
def one_count_per_batch(trainer: Trainer, optimizers: Sequence[LightningOptimizer]) -> Iterator[None]:
    """Let `trainer.global_step` count a training batch once, however many optimizers step in it.

    Lightning counts every optimizer's step (pytorch-lightning#17958), so that with two optimizers max_steps and
    checkpoints count twice as fast as loggers, and with accumulated gradients slower. Inside this context optimizers
    do not count; leaving it counts one batch.

    Args:
        trainer: The trainer.
        optimizers: All optimizers that may step.
    """
    # Lightning sets these two private hooks anew before every batch.
    profiler = trainer.profiler  # type: ignore[attr-defined]
    for optimizer in optimizers:
        optimizer._on_before_step = partial(profiler.start, "optimizer_step")
        optimizer._on_after_step = partial(profiler.stop, "optimizer_step")
    yield
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    progress.increment_ready()
    progress.increment_completed()
