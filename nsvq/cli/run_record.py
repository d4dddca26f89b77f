"""The record of how a run came about."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from nsvq.callbacks import truncate
from nsvq.callbacks.folder import replacing
from nsvq.cli.run_logger import RunLogger
from nsvq.distributed import world_size

# What changes the numbers of a run beside its configuration.
RECORDED_VARIABLES = ("NSVQ_BACKEND", "NSVQ_TRITON_PRECISION", "OMP_NUM_THREADS")
RECORDED_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "numpy")


class RunRecord(Callback):
    """Writes `environment.json`, gives every other logger the resolved config, and cuts the metrics of a resumed run.

    The record holds the command line, the commit of the git checkout that the package lies in, versions, the
    environment variables that change numbers, the seed, the sha256 of each data split and, where the run went on, the
    earlier command lines.

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
            try:
                earlier = json.loads(path.read_text())
                record["earlier_commands"] = [*earlier.get("earlier_commands", []), earlier["command"]]
            except (ValueError, KeyError, TypeError):
                rank_zero_warn(f"{path} is damaged: the commands that began this run are lost")
        with replacing(path) as part:
            part.write_text(json.dumps(record, indent=2) + "\n")
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
        with replacing(path) as part:
            part.write_text(json.dumps(record, indent=2) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds trained so far, and what a run that goes on is compared with."""
        elapsed = time.perf_counter() - self._started if self._started else 0.0
        return {"train_seconds": self._seconds + elapsed, "config": self.config, "processes": world_size()}

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
        "variables": {name: os.environ[name] for name in RECORDED_VARIABLES if name in os.environ},
        "versions": {"nsvq": version("nsvq-lab")} | {name: version(name) for name in RECORDED_PACKAGES},
    }


def _git(*arguments: str) -> str | None:
    here = Path(sys.modules["nsvq"].__file__ or ".").parent
    try:
        result = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
