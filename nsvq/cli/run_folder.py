"""The place of a run."""

import os
import shutil
import uuid
from pathlib import Path
from tempfile import TemporaryFile

from lightning.fabric.utilities.rank_zero import rank_zero_only

from nsvq.cli.folder_lock import FolderLock

RUN_FOLDER_VARIABLE = "NSVQ_RUN_FOLDER"

_held: list[FolderLock] = []


def create_run_folder(root: Path, experiment: str, name: str | None, go_on: bool = False) -> Path:
    """Create a fresh folder `root/experiment/name` and hold it until `release_run_folder`.

    Of several runs that start at once each gets a folder of its own, or is refused.

    Args:
        root: Where runs live.
        experiment: Name of the experiment.
        name: The run's name; None takes the first free `version_<n>`.
        go_on: Take the named folder also if it holds a run, one that ended before its first checkpoint.

    Returns:
        The folder. Processes that this one starts for the same run find it in the environment; a process of another
        rank that was started by a launcher creates none and learns of rank 0's from the trainer.

    Raises:
        ValueError: If the named folder is not empty, or another process uses it.
        OSError: If the folder cannot be created.
    """
    if not is_rank_zero():
        return Path(os.environ.get(RUN_FOLDER_VARIABLE, root / experiment / (name or "version")))
    try:
        if name is None:
            (root / experiment).mkdir(parents=True, exist_ok=True)
            folder = _next_version(root / experiment)
            _hold(folder)
        else:
            folder = root / experiment / name
            _take(folder, go_on)
    except OSError as error:
        raise OSError(f"cannot create a run folder below {root}: {error.strerror}") from error
    return folder


def reopen_run_folder(folder: Path) -> Path:
    """Go on in the folder of an earlier run and hold it until `release_run_folder`.

    Args:
        folder: The run folder.

    Returns:
        The folder.

    Raises:
        ValueError: If another process uses the folder.
        OSError: If nothing can be written there.
    """
    if is_rank_zero():
        try:
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(f"cannot go on in run folder {folder}: {error.strerror}; name another --version") from error
        _hold(folder)
    return folder


def release_run_folder() -> None:
    """Let go of the folders that this process holds."""
    while _held:
        _held.pop().release()


def is_rank_zero() -> bool:
    """Return whether this is the run's first process, also before the trainer has set the ranks."""
    on_first_node = "RANK" in os.environ or int(os.environ.get("NODE_RANK", 0)) == 0
    return on_first_node and getattr(rank_zero_only, "rank", 0) == 0


def remove_unused_folder(folder: Path) -> None:
    """Remove the folder of a run that ended before it did anything: one that holds its configuration at the most."""
    if not is_rank_zero() or not folder.is_dir():
        return
    if {path.name for path in folder.iterdir()} <= {"config.yaml", "environment.json", "wandb_run_id"}:
        shutil.rmtree(folder)


def wandb_run_id(folder: Path) -> str:
    """Return the W&B run id of a run folder, the same each time the run goes on there."""
    path = folder / "wandb_run_id"
    if not path.exists():
        path.write_text(os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8])
    return path.read_text().strip()


def _next_version(parent: Path) -> Path:
    number = 0
    while True:
        try:
            (parent / f"version_{number}").mkdir()
        except FileExistsError:  # noqa: PERF203
            number += 1
        else:
            return parent / f"version_{number}"


def _take(folder: Path, go_on: bool) -> None:
    """Create a named folder or take one that is there, and hold it."""
    lock = None
    while lock is None:
        created = not folder.exists()
        if created:
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                created = False
        # Whoever holds it may be about to remove it, see `remove_unused_folder`.
        lock = _hold(folder)
    holds_run = go_on and (folder / "config.yaml").is_file()
    is_fresh = not any(folder.iterdir()) and (created or lock.held)
    if not (holds_run or is_fresh):
        release_run_folder()
        raise ValueError(
            f"run folder {folder} exists and is not empty: choose another --version, or go on with --ckpt_path last"
        )


def _hold(folder: Path) -> FolderLock | None:
    """Hold a folder for this process; return None if it was removed meanwhile."""
    try:
        lock = FolderLock(folder)
    except BlockingIOError as error:
        raise ValueError(f"run folder {folder} is in use by another process: choose another --version") from error
    except FileNotFoundError:
        return None
    if not lock.is_in_place():
        lock.release()
        return None
    _held.append(lock)
    os.environ[RUN_FOLDER_VARIABLE] = str(folder)
    return lock
