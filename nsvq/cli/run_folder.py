"""The place of a run."""

import os
import shutil
import uuid
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only

RUN_FOLDER_VARIABLE = "NSVQ_RUN_FOLDER"


def create_run_folder(root: Path, experiment: str, name: str | None) -> Path:
    """Create a fresh folder `root/experiment/name`.

    Args:
        root: Where runs live.
        experiment: Name of the experiment.
        name: The run's name; None takes the first free `version_<n>`, safely when several runs start at once.

    Returns:
        The folder. Processes that this one starts for the same run find it in the environment; a process of another
        rank that was started by a launcher creates none and learns of rank 0's from the trainer.

    Raises:
        ValueError: If the named folder exists and is not empty.
        OSError: If the folder cannot be created.
    """
    if getattr(rank_zero_only, "rank", 0) > 0:
        return Path(os.environ.get(RUN_FOLDER_VARIABLE, root / experiment / (name or "version")))
    folder = root / experiment / (name or "")
    try:
        if name is None:
            folder = _next_version(folder)
        elif folder.is_dir() and any(folder.iterdir()):
            raise ValueError(
                f"run folder {folder} exists and is not empty: choose another --version, or go on with --ckpt_path last"
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot create a run folder below {root}: {error.strerror}") from error
    os.environ[RUN_FOLDER_VARIABLE] = str(folder)
    return folder


def remove_unused_folder(folder: Path) -> None:
    """Remove the folder of a run that ended before it did anything: one that holds its configuration at the most."""
    if getattr(rank_zero_only, "rank", 0) > 0 or not folder.is_dir():
        return
    if {path.name for path in folder.iterdir()} <= {"config.yaml", "environment.json"}:
        shutil.rmtree(folder)


def wandb_run_id(folder: Path) -> str:
    """Return the W&B run id of a run folder, the same each time the run goes on there."""
    path = folder / "wandb_run_id"
    if not path.exists():
        path.write_text(os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8])
    return path.read_text().strip()


def _next_version(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        try:
            (parent / f"version_{number}").mkdir()
        except FileExistsError:  # noqa: PERF203
            number += 1
        else:
            return parent / f"version_{number}"
