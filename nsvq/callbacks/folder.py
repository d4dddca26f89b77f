"""Where callbacks write."""

from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path | None:
    """Return the run folder in the process that writes to it.

    Unlike `trainer.log_dir` this is no collective call, so that rank 0 may ask alone.

    Args:
        trainer: The trainer.

    Returns:
        The first logger's folder, or the trainer's root folder without a logger; None on other ranks than 0 and in dry
        runs.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    return Path(logger.log_dir or logger.save_dir or trainer.default_root_dir)
