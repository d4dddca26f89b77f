"""Trained models from their run folders."""

from pathlib import Path

import torch
import yaml
from lightning.pytorch import LightningModule

from nsvq.cli.checkpoints import check_checkpoint
from nsvq.cli.program import Parser


def load_run(folder: str | Path, checkpoint: str = "checkpoints/last.ckpt") -> LightningModule:
    """Rebuild a trained model from its run folder.

    Args:
        folder: The run folder.
        checkpoint: The checkpoint's path inside it.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: If the folder holds no config.yaml or no such checkpoint.
        ValueError: If the checkpoint is damaged or of another model.
    """
    folder = Path(folder)
    config = folder / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it holds no config.yaml")
    parser = Parser()
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parsed = parser.parse_object({"model": yaml.safe_load(config.read_text())["model"]})
    model: LightningModule = parser.instantiate_classes(parsed)["model"]
    check_checkpoint(folder / checkpoint, model)
    state = torch.load(folder / checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict(state)
    return model.eval()
