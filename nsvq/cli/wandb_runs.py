"""Runs at Weights & Biases, also while it cannot be reached."""

import os

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from nsvq.cli.run_folder import is_rank_zero


def start_wandb(trainer: Trainer) -> None:
    """Start the runs of the trainer's W&B loggers; they stay on disk where W&B does not answer or no key is known.

    W&B waits 90 seconds for an answer unless `WANDB_INIT_TIMEOUT` says otherwise. What it cannot send later on it
    keeps on disk by itself.

    Args:
        trainer: The trainer, before it runs.
    """
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    if not loggers or not is_rank_zero():
        return
    for logger in loggers:
        _start(logger)


def _start(logger: WandbLogger) -> None:
    import wandb

    try:
        _ = logger.experiment
    except wandb.errors.Error as error:
        reason = next(iter(str(error).splitlines()), "no answer")
        rank_zero_warn(
            f"W&B cannot be reached ({reason}): this run is logged to disk only, as with WANDB_MODE=offline; "
            f"`wandb sync {logger.save_dir}/wandb/offline-run-*` uploads it later"
        )
        # Its settings are fixed once it has begun.
        wandb.teardown()
        os.environ["WANDB_MODE"] = "offline"
        _ = logger.experiment
