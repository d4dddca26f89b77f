"""What a checkpoint must say of a run beside weights and optimizers, so that it goes on as if it had never stopped."""

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer

from nsvq.distributed import is_distributed, rank, world_size

COUNTS = ("ready", "started", "processed", "completed")


def set_position(loops: dict[str, Any], epoch: int, batches: int, epoch_is_open: bool) -> None:
    """Make the saved state of Lightning's loops that of a run between two batches.

    Lightning saves its counters in the middle of their increments, and guesses from them what was done already: it
    skips validations, repeats batches of a finished epoch and counts an epoch as done in which the last step lay.

    Args:
        loops: State of the fit loop in a checkpoint; changed here.
        epoch: The epoch that the next batch belongs to.
        batches: Batches of that epoch that are done.
        epoch_is_open: Whether that epoch has begun, with its hooks.
    """
    begun = epoch + (epoch_is_open or batches > 0)
    for counts in loops["epoch_progress"].values():
        counts.update(ready=begun, started=begun, processed=epoch, completed=epoch)
    progress = loops["epoch_loop.batch_progress"]
    progress["is_last_batch"] = False
    progress["total"].update(dict.fromkeys(COUNTS, progress["total"]["processed"]))
    progress["current"].update(dict.fromkeys(COUNTS, batches))


def logged_values(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the values that a training step logged last: in each row, loggers repeat those that have no newer one."""
    results = trainer.fit_loop.epoch_loop._results
    return [
        {
            "fx": result.meta.fx,
            "name": result.meta.name,
            "value": result._forward_cache,
            "prog_bar": result.meta.prog_bar,
            "logger": result.meta.logger,
        }
        for _, result in sorted(results.items())
        if result.is_tensor and result.meta.on_step and not result.meta.on_epoch and not result.has_reset
    ]


def restore_logging(trainer: Trainer, logging: dict[str, Any]) -> None:
    """Let the loggers' rows go on in front of a resumed run's first batch.

    Args:
        trainer: The trainer.
        logging: `steps`, the batches that stepped before, which Lightning has counted on by one or not; and `values`,
            from `logged_values`.
    """
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = logging["steps"]
    for value in logging["values"]:
        # In an epoch's first batch, which this one is for Lightning, older values are dropped.
        trainer._logger_connector._first_loop_iter = False
        options = {"on_step": True, "on_epoch": False, "sync_dist_fn": trainer.strategy.reduce, "batch_size": 1}
        loop._results.log(**value, **options)


def random_states() -> list[dict[str, Any]]:
    """Return the random states of all ranks, in plain types; every rank calls this at the same points."""
    kind, keys, *rest = np.random.get_state()
    version, numbers, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "python": [version, list(numbers), gauss],
    }
    if not is_distributed():
        return [state]
    states: list[Any] = [None] * world_size()
    dist.all_gather_object(states, state)
    return states


def restore_random_state(states: Iterable[dict[str, Any]]) -> None:
    """Set this rank's random states; a rank without saved ones keeps those that its seed gave it."""
    saved = dict(enumerate(states))
    if rank() not in saved:
        return
    state = saved[rank()]
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    np.random.set_state(tuple(state["numpy"]))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
