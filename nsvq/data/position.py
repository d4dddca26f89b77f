"""How far training is."""

from typing import Any

from lightning.pytorch import Trainer


def training_position(trainer: Trainer) -> tuple[int, int]:
    """Return the epoch that the next training batch belongs to, and how many batches of that epoch are done.

    Lightning counts an epoch as done also where the run's last step lies inside it; here it stays open, so that a run
    which is given more steps goes on with it.

    Args:
        trainer: A trainer that fits, asked between the end of a batch and the start of the next, or after fitting.
    """
    epochs: Any = trainer.fit_loop.epoch_progress.current
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    epoch, batches = int(epochs.processed), int(progress.processed)
    is_open = epochs.ready > epochs.processed
    if batches >= trainer.num_training_batches:
        return epoch + is_open, 0
    if batches and not is_open:
        return epoch - 1, batches
    return epoch, batches
