"""Checkpoints: the last state of a run, and the checks before a trainer is given one."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from nsvq.callbacks.folder import run_folder
from nsvq.callbacks.weight_ema import CHECKPOINT_KEY
from nsvq.cli.interruption import Interrupted, StopRequest
from nsvq.cli.run_state import (
    logged_values,
    random_states,
    restore_logging,
    restore_random_state,
    set_position,
)
from nsvq.data.base import ImageDataModule
from nsvq.data.position import training_position
from nsvq.quantizers import KernelCodebookLoss, Quantizer


class RunCheckpoint(Checkpoint):
    """Writes `<run folder>/checkpoints/last.ckpt`, from which a run goes on as if it had never stopped.

    It is written between two batches: behind a batch's logging and validation, in front of the next batch; with
    accumulated gradients in front of the next that begins with none. SIGTERM and SIGUSR1 also have it written there,
    and then end the program with exit code 75, on all ranks. The end of training writes it too. On CPU the resumed run
    equals the uninterrupted one to the last bit, where the data come from one of `nsvq.data`'s modules.

    To keep the best states as well, add Lightning's `ModelCheckpoint` to `trainer.callbacks`.

    Args:
        every_n_train_steps: Steps between two writings.

    Raises:
        ValueError: If every_n_train_steps is below 1.
    """

    def __init__(self, every_n_train_steps: int = 500) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps must be at least 1, got {every_n_train_steps}")
        self.every_n_train_steps = every_n_train_steps
        self.last_model_path = ""
        self._saved_step = 0
        self._saving = False
        self._stop = StopRequest()
        self._resumed: dict[str, Any] = {}
        self._logged_values: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen to signals in place of Lightning, whose handler talks to the other ranks in the middle of a step."""
        if stage == "fit":
            trainer._signal_connector.register_signal_handlers = self._stop.listen  # type: ignore[method-assign]
            self._stop.listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the step that training goes on from."""
        self._saved_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write the state in front of a batch if it is time, and end the run if it was asked to.

        Raises:
            Interrupted: If a signal asked any rank to stop.
        """
        if self._resumed:
            restore_logging(trainer, self._resumed["logging"])
            restore_random_state(self._resumed["random_states"])
            self._resumed = {}
        stop = self._stop.anywhere(pl_module.device)
        due = trainer.global_step // self.every_n_train_steps > self._saved_step // self.every_n_train_steps
        accumulated = getattr(pl_module, "accumulate_grad_batches", trainer.accumulate_grad_batches)
        if not (stop or due) or batch_idx % accumulated:
            return
        self._save(trainer)
        if stop:
            reason = "another rank" if self._stop.received is None else self._stop.received.name
            raise Interrupted(
                f"stopped by {reason} after step {trainer.global_step}"
                + (f"; go on with --ckpt_path {self.last_model_path}" if self.last_model_path else "")
            )

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Remember what the loggers' next rows repeat; Lightning forgets it when training ends inside an epoch."""
        self._logged_values = logged_values(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final state unless it is written already."""
        if trainer.global_step > self._saved_step:
            self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._stop.stop_listening()

    def on_exception(self, *_: Any) -> None:
        """Give the signals back."""
        self._stop.stop_listening()

    def state_dict(self) -> dict[str, Any]:
        """Return the random states of all ranks."""
        return {"random_states": random_states()} if self._saving else {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Describe the place between two batches."""
        if not self._saving:
            return
        epoch, batches = training_position(trainer)
        epochs: Any = trainer.fit_loop.epoch_progress.current
        set_position(checkpoint["loops"]["fit_loop"], epoch, batches, epochs.ready > epochs.processed)
        checkpoint["epoch"] = epoch
        checkpoint["callbacks"][self.state_key]["logging"] = {
            "steps": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "values": self._logged_values if batches else [],
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up the place; with other batches than before it is the next whole batch's."""
        self._resumed = checkpoint["callbacks"].get(self.state_key, {})
        data = getattr(trainer, "datamodule", None)
        if self._resumed and isinstance(data, ImageDataModule):
            loops = checkpoint["loops"]["fit_loop"]
            epoch, batches = data.resumed_position
            counts = loops["epoch_progress"]["current"]
            was_open = counts["ready"] > counts["processed"] == epoch
            set_position(loops, epoch, batches, was_open)

    def _save(self, trainer: Trainer) -> None:
        self._saved_step = trainer.global_step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            # Rows that a killed process had not written yet would be missing in the resumed run.
            if isinstance(logger, CSVLogger):
                logger.save()
        # Rank 0 alone writes.
        path = (run_folder(trainer) or Path()) / "checkpoints" / "last.ckpt"
        self._saving = True
        try:
            trainer.save_checkpoint(path, weights_only=False)
        finally:
            self._saving = False
        self.last_model_path = str(path)


def load_weights(path: Path, model: LightningModule) -> None:
    """Begin with the weights of a checkpoint, averaged ones where it has them, and with nothing else of it.

    Args:
        path: The checkpoint file.
        model: The model that takes the weights; a bandwidth schedule of its quantizer begins anew, and `initial_scale`
            does not rescale the codes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, is no Lightning checkpoint, or belongs to another model; if the model has
            other weights to begin with.
    """
    if getattr(model, "pretrained", None) is not None:
        raise ValueError("--init_from and --model.pretrained exclude each other: both give the weights to begin with")
    model.load_state_dict(check_checkpoint(path, model)["state_dict"])
    for module in model.modules():
        if isinstance(module, KernelCodebookLoss):
            module.bandwidth_position.zero_()
        elif isinstance(module, Quantizer):
            module.scale_is_set.fill_(True)


def check_checkpoint(path: Path, model: nn.Module) -> dict[str, Any]:
    """Refuse a checkpoint that cannot be loaded into a model.

    Args:
        path: The checkpoint file.
        model: The model that is to take its weights.

    Returns:
        Its content, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, is no Lightning checkpoint, or belongs to another model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        # torch.load compares no checksums.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (record := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(record)
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(f"checkpoint {path} cannot be read: it is truncated, damaged or not a checkpoint") from error
    weights: Any = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if (
        not isinstance(checkpoint, dict)
        or not isinstance(weights, dict)
        or not all(isinstance(value, Tensor) for value in weights.values())
    ):
        raise ValueError(f"checkpoint {path} holds no state_dict of tensors: it is not a Lightning checkpoint")
    theirs = {name: tuple(value.shape) for name, value in weights.items()}
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    differences = [f"{name} is missing" for name in ours if name not in theirs]
    differences += [f"{name} is not in the model" for name in theirs if name not in ours]
    differences += [
        f"{name} has shape {theirs[name]} where the model has {shape}"
        for name, shape in ours.items()
        if name in theirs and theirs[name] != shape
    ]
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(f"checkpoint {path} belongs to another model: {'; '.join(differences[:3])}{more}")
    return checkpoint


def require_training_state(path: Path, checkpoint: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint without the state of a training run.

    Args:
        path: The checkpoint file.
        checkpoint: Its content.

    Raises:
        ValueError: If it holds weights only.
    """
    needed = ("pytorch-lightning_version", "global_step", "epoch", "loops", "callbacks", "optimizer_states")
    if any(name not in checkpoint for name in needed):
        raise ValueError(f"checkpoint {path} holds weights only: give it to --init_from, which begins a new run")


def refuse_averaged_weights(path: Path) -> None:
    """Refuse to go on from a checkpoint of averaged weights where nothing would take the live ones.

    Args:
        path: A sound checkpoint.

    Raises:
        ValueError: If the checkpoint's weights are averages.
    """
    if CHECKPOINT_KEY in torch.load(path, map_location="cpu", weights_only=True, mmap=True):
        raise ValueError(
            f"checkpoint {path} holds averaged weights beside the live ones that training goes on from: give "
            "--weight_ema WeightEMA too"
        )
