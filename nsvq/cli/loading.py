"""Trained models from their run folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule

from nsvq.cli.checkpoints import check_checkpoint
from nsvq.cli.program import Parser
from nsvq.cli.trust import check_class_paths, limit_imports, weights_only
from nsvq.cli.yaml_limits import limited


class Refused(SystemExit):
    """A parser's refusal, on its way through jsonargparse, which tries other types after any `Exception`."""


class LoadingParser(Parser):
    """A parser that leaves its refusal to the caller."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise what is wrong."""
        raise Refused(self.one_line(message, ex)) from ex


def load_run(
    folder: str | Path, checkpoint: str = "checkpoints/last.ckpt", allow_modules: Sequence[str] = ()
) -> LightningModule:
    """Rebuild a trained model from its run folder.

    Args:
        folder: The run folder.
        checkpoint: The checkpoint's path inside it.
        allow_modules: Modules whose classes the run may name beside those of nsvq, torch, torchvision, torchmetrics and
            lightning, as `--allow_module` on the command line.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: If the folder holds no config.yaml or no such checkpoint.
        ValueError: If the configuration is damaged or names a class of another module, or if the checkpoint is damaged
            or of another model.
    """
    folder = Path(folder)
    config = folder / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it holds no config.yaml")
    limit_imports(allow_modules)
    with weights_only():
        model = _build(config, allow_modules)
    check_checkpoint(folder / checkpoint, model)
    state = torch.load(folder / checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict(state)
    return model.eval()


def _build(config: Path, allow_modules: Sequence[str]) -> LightningModule:
    """Instantiate the model of a run's configuration."""
    parser = LoadingParser()
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    try:
        content = limited(yaml.safe_load)(config.read_text(encoding="utf-8"))
        parsed = parser.parse_object({"model": content["model"]})
    except Refused as refusal:
        raise ValueError(f"{config}: {refusal}") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{config} is damaged: it holds no configuration of a model") from error
    check_class_paths(parsed, allow_modules)
    model: LightningModule = parser.instantiate_classes(parsed)["model"]
    return model
