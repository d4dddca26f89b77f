"""The run folder: its place, its logger, its checkpoint and the record of how it came about."""

import csv
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from nsvq.callbacks import truncate

RUN_FOLDER_VARIABLE = "NSVQ_RUN_FOLDER"
RECORDED_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "numpy")


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


class _AppendingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class RunLogger(CSVLogger):
    """Logs to `<run folder>/metrics.csv`, and appends where Lightning's logger would delete an earlier file.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(save_dir=folder.parent.parent, name=folder.parent.name, version=folder.name)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of `metrics.csv`."""
        if not isinstance(self._experiment, _AppendingWriter):
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment


class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint` that also saves the last state when training ends."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state unless it is saved already."""
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


class RunRecord(Callback):
    """Writes `environment.json`, gives every other logger the resolved config, and cuts the metrics of a resumed run.

    The record holds the command line, the commit of the git checkout that the package lies in, versions, the seed, the
    sha256 of each data split and, where the run went on, the earlier command lines.

    Args:
        folder: The run folder; None in a dry run, which leaves no record.
        config: The resolved configuration as plain values.
        command: The command line.
    """

    def __init__(self, folder: Path | None, config: dict[str, Any], command: list[str]) -> None:
        self.folder = folder
        self.config = config
        self.command = command
        self._seconds = 0.0
        self._started = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the record."""
        if self.folder is None or not trainer.is_global_zero:
            return
        record = environment(self.command, self.config.get("seed_everything"))
        record["data_splits_sha256"] = getattr(getattr(trainer, "datamodule", None), "split_sha256", {})
        path = self.folder / "environment.json"
        if path.is_file():
            earlier = json.loads(path.read_text())
            record["earlier_commands"] = [*earlier.get("earlier_commands", []), earlier["command"]]
        path.write_text(json.dumps(record, indent=2) + "\n")
        for logger in trainer.loggers:
            if not isinstance(logger, RunLogger):
                logger.log_hyperparams(self.config)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop logged rows beyond the step that training goes on from."""
        if self.folder is not None and trainer.is_global_zero and (self.folder / "metrics.csv").is_file():
            truncate(self.folder / "metrics.csv", trainer.global_step - 1)
        self._started = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the training's duration to the record."""
        if self.folder is None or not trainer.is_global_zero:
            return
        path = self.folder / "environment.json"
        seconds = self._seconds + time.perf_counter() - self._started
        record = json.loads(path.read_text())
        record |= {"train_seconds": round(seconds, 3), "train_steps": trainer.global_step}
        path.write_text(json.dumps(record, indent=2) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds trained so far."""
        elapsed = time.perf_counter() - self._started if self._started else 0.0
        return {"train_seconds": self._seconds + elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the seconds of an earlier part of the run."""
        self._seconds = state_dict["train_seconds"]


def environment(command: list[str], seed: Any) -> dict[str, Any]:
    """Describe how a run was started.

    Args:
        command: The command line.
        seed: The seed.

    Returns:
        Plain values, ready for JSON.
    """
    return {
        "command": shlex.join(command),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "versions": {"nsvq": version("nsvq-lab")} | {name: version(name) for name in RECORDED_PACKAGES},
    }


def _git(*arguments: str) -> str | None:
    here = Path(sys.modules["nsvq"].__file__ or ".").parent
    try:
        result = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
