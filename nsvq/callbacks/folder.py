"""Where callbacks write."""

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name a file of the run in the error if writing it fails.

    Args:
        path: The file that is written in this context.

    Raises:
        OSError: If it cannot be written, for example because the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file of the run anew, so that there is always the former one or the new one, whole.

    Args:
        path: The file.

    Yields:
        The path to write to, beside the file, whose place it takes in the end.

    Raises:
        OSError: If it cannot be written; the former file is untouched.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with writing(path):
            yield part
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
