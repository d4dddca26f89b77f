"""Checkpoints: the last state of a run, and the check before a trainer is given one."""

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from nsvq.callbacks.weight_ema import CHECKPOINT_KEY


class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint` that also saves the last state when training ends."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state unless it is saved already."""
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


def check_checkpoint(path: Path, model: nn.Module) -> None:
    """Refuse a checkpoint that cannot be loaded into a model.

    Args:
        path: The checkpoint file.
        model: The model that is to take its weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, is no Lightning checkpoint, or belongs to another model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(f"checkpoint {path} cannot be read: it is truncated, damaged or not a checkpoint") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"checkpoint {path} holds no state_dict: it is not a Lightning checkpoint")
    theirs = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
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
