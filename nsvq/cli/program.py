"""The training program: a thin `LightningCLI` with run folders and watchers."""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

# Lightning calls functions that jsonargparse deprecates; the bound below 5 in pyproject.toml keeps them alive.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

# Classes that are imported here can be named without their module.
import nsvq.data
import nsvq.losses
import nsvq.models
import nsvq.networks
import nsvq.quantizers
from nsvq.callbacks import (
    CodebookHealth,
    CurvesOnDisk,
    DeadCodeReplacement,
    EncoderDrift,
    ImageQuality,
    PredictionWriter,
    ReconstructionGrid,
    WeightEMA,
)
from nsvq.cli.checkpoints import RunCheckpoint, check_checkpoint, refuse_averaged_weights
from nsvq.cli.messages import parser_message
from nsvq.cli.run_folder import create_run_folder, remove_unused_folder, wandb_run_id
from nsvq.cli.run_logger import RunLogger
from nsvq.cli.run_record import RunRecord
from nsvq.data.base import ImageDataModule

# Not for users: what Lightning says of its own internals, and advice about worker processes that is wrong for data sets
# that are held in memory.
for noise in (
    "LightningCLI's args parameter",
    "`isinstance.treespec, LeafSpec",
    "The '.*_dataloader' does not have many",
    # What the watchers log is the same on all ranks already.
    "It is recommended to use `self.log.'(val|test)/(codebook|perplexity|dead|tokens|quantization|r?fid|lpips|ms_ssim)",
    # A checkpoint after the step is what is wanted.
    "Using ModelCheckpoint with manual optimization",
    "The dirpath has changed from",
):
    warnings.filterwarnings("ignore", noise)
# Interpolations keep their meaning below a subcommand: ${trainer.max_steps} works in every config file.
set_parsing_settings(omegaconf_absolute_to_relative_paths=True)

DESCRIPTION = (
    "Train and watch vector-quantized autoencoders. `nsvq compare RUNS…` tabulates and draws finished runs, "
    "`nsvq weights` lists and downloads the pretrained networks of LPIPS and FID."
)
WATCHERS: dict[str, type[Callback]] = {
    "codebook_health": CodebookHealth,
    "encoder_drift": EncoderDrift,
    "curves": CurvesOnDisk,
    "reconstructions": ReconstructionGrid,
    "image_quality": ImageQuality,
}


def _names(module: ModuleType, base: type) -> list[str]:
    members = [getattr(module, name) for name in module.__all__]
    return [member.__name__ for member in members if issubclass(member, base) and member is not base]


CHOICES = {
    "quantizer": _names(nsvq.quantizers, nsvq.quantizers.Quantizer),
    "model": _names(nsvq.models, LightningModule),
    "data": _names(nsvq.data, LightningDataModule),
    "encoder": [name for name in nsvq.networks.__all__ if name.endswith("Encoder")],
    "decoder": [name for name in nsvq.networks.__all__ if name.endswith("Decoder")],
    "discriminator": [name for name in nsvq.networks.__all__ if name.endswith("Discriminator")],
    "adversarial": [nsvq.losses.AdversarialLoss.__name__],
    "codebook_loss": _names(nsvq.quantizers, nsvq.quantizers.CodebookLoss),
    "optimizer": [name for name, member in vars(torch.optim).items() if isinstance(member, type)],
    "weight_ema": [WeightEMA.__name__],
    "callbacks": [*(watcher.__name__ for watcher in WATCHERS.values()), DeadCodeReplacement.__name__],
}


class Parser(LightningArgumentParser):
    """A parser that prints one line where argparse prints a page."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print what is wrong and leave with exit code 2."""
        sys.stderr.write(f"nsvq: error: {parser_message(message, ex, CHOICES, self._all_options())}\n")
        raise SystemExit(2)

    def _all_options(self) -> list[str]:
        parsers: list[Any] = [self]
        for action in self._actions:
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
        return list(dict.fromkeys(action.dest for parser in parsers for action in parser._actions))


class CLI(LightningCLI):
    """`LightningCLI` with run folders and watchers.

    Args:
        words: The command line behind the program's name.
    """

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.run_folder: Path | None = None
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            parser_kwargs={
                "parser_mode": "omegaconf+",
                "prog": "nsvq",
                "allow_abbrev": False,
                "description": DESCRIPTION,
            },
            args=words,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder's options, the checkpoint and the watchers."""
        parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--experiment", type=str | None, default=None, help="Folder of this experiment's runs; default: the model."
        )
        parser.add_argument(
            "--version", type=str | None, default=None, help="Folder of this run; default: the next version_<n>."
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.save_top_k": 0,
                "checkpoint.save_last": True,
                "checkpoint.every_n_train_steps": 500,
                "checkpoint.enable_version_counter": False,
            }
        )
        for name, watcher in WATCHERS.items():
            parser.add_argument(
                f"--{name}",
                type=watcher | None,
                default={"class_path": f"nsvq.callbacks.{watcher.__name__}"},
                help=f"Settings of {watcher.__name__}; null switches it off.",
            )
        parser.add_argument(
            "--weight_ema",
            type=WeightEMA | None,
            default=None,
            help="An average of the weights, which validation and checkpoints use; null (the default) goes without.",
        )

    def before_instantiate_classes(self) -> None:
        """Find the run folder and tell the W&B logger about it."""
        config = self._config()
        if config.trainer.fast_dev_run:
            return
        experiment = config.experiment or config.model.class_path.rsplit(".", 1)[-1].lower()
        named = Path(config.runs_dir) / experiment / config.version if config.version is not None else None
        if config.ckpt_path == "last":
            if named is None:
                raise ValueError("--ckpt_path last means a named run's: give its --version too, or the file's path")
            last = named / "checkpoints" / "last.ckpt"
            config.ckpt_path = str(last) if last.is_file() else None
            config.version = config.version if self.subcommand == "fit" else None
        self.run_folder = self._resumed_folder(named) or create_run_folder(
            Path(config.runs_dir), experiment, config.version
        )
        # Where a run lies is no part of what it is: its config.yaml can be run again.
        config.version = None
        loggers = config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, Namespace) and logger.class_path.endswith("WandbLogger") and self.run_folder.is_dir():
                logger.init_args.id = wandb_run_id(self.run_folder)
                logger.init_args.save_dir = str(self.run_folder)

    def instantiate_classes(self) -> None:
        """Build data, model and trainer, and check the checkpoint."""
        with self._leaving_no_unused_folder():
            super().instantiate_classes()
            path = self._config().get("ckpt_path")
            if path is not None:
                check_checkpoint(Path(path), self.model)
                if self.subcommand == "fit" and self._config().weight_ema is None:
                    refuse_averaged_weights(Path(path))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the run's logger first and the watchers attached."""
        config = self.config_init[self.subcommand]
        loggers = config.trainer.logger
        loggers = loggers if isinstance(loggers, list) else [loggers]
        loggers = [logger for logger in loggers if logger is not None and not isinstance(logger, bool)]
        if self.run_folder is not None:
            loggers = [RunLogger(self.run_folder), *loggers]
        callbacks = config.trainer.callbacks or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        # The average comes last: the watchers are to see it before the live weights are put back.
        callbacks += [config[name] for name in (*WATCHERS, "weight_ema") if config[name] is not None]
        if self.subcommand == "predict" and self.run_folder is not None:
            callbacks.append(PredictionWriter())
        plain = json.loads(self._parser(self.subcommand).dump(self._config(), format="json"))
        callbacks.append(RunRecord(self.run_folder, plain, ["nsvq", *self.words]))
        if isinstance(self.datamodule, ImageDataModule) and self.subcommand != "predict":
            kwargs["use_distributed_sampler"] = False
        return super().instantiate_trainer(logger=loggers or False, callbacks=callbacks, **kwargs)

    def _parse_ckpt_path(self) -> None:
        # Lightning's own method lets hyperparameters stored in a checkpoint override the command line.
        return

    def _run_subcommand(self, subcommand: str) -> None:
        with self._leaving_no_unused_folder():
            super()._run_subcommand(subcommand)

    @contextmanager
    def _leaving_no_unused_folder(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            if self.run_folder is not None:
                remove_unused_folder(self.run_folder)
            raise

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict":
            # They are on disk; in memory a whole data set of pictures would pile up.
            kwargs["return_predictions"] = False
        return kwargs

    def _config(self) -> Namespace:
        return self.config[self.config["subcommand"]]

    def _resumed_folder(self, named: Path | None) -> Path | None:
        """Return the folder of the run that a checkpoint belongs to, unless the user names another."""
        path = self._config().ckpt_path
        if self.config["subcommand"] != "fit" or path is None:
            return None
        folder = Path(path).parent.parent
        is_run = (folder / "config.yaml").is_file()
        return folder if is_run and (named is None or named.resolve() == folder.resolve()) else None
