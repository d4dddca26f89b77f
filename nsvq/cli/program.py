"""The training program: a thin `LightningCLI` with run folders and watchers."""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

# Lightning calls functions that jsonargparse deprecates; the bound below 5 in pyproject.toml keeps them alive.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings
from lightning.fabric.plugins import CheckpointIO
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
    CodebookInitialization,
    CodebookSnapshots,
    CurvesOnDisk,
    DeadCodeReplacement,
    EncoderDrift,
    EncoderFreeze,
    ImageQuality,
    PredictionWriter,
    ReconstructionGrid,
    WeightEMA,
)
from nsvq.cli.changes import refuse_changes
from nsvq.cli.checkpoint_io import AtomicCheckpointIO
from nsvq.cli.checkpoints import (
    RunCheckpoint,
    check_checkpoint,
    load_weights,
    refuse_averaged_weights,
    require_training_state,
)
from nsvq.cli.interruption import Interrupted
from nsvq.cli.messages import parser_message
from nsvq.cli.ranks import ending_together, launch_plugins, require_all_ranks
from nsvq.cli.run_config import RunConfig
from nsvq.cli.run_folder import (
    create_run_folder,
    release_run_folder,
    remove_unused_folder,
    reopen_run_folder,
    wandb_run_id,
)
from nsvq.cli.run_logger import RunLogger
from nsvq.cli.run_record import RunRecord
from nsvq.cli.trust import check_class_paths, import_refusal, limit_imports, refuse_remote, take_allowed_modules
from nsvq.cli.wandb_runs import start_wandb
from nsvq.cli.yaml_limits import limited
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
    # The data modules go on where a checkpoint was saved without Lightning's help.
    "You're resuming from a checkpoint that ended before the epoch ended",
    "The dirpath has changed from",
):
    warnings.filterwarnings("ignore", noise)
# Interpolations keep their meaning below a subcommand: ${trainer.max_steps} works in every config file. Lightning lets
# configurations be read from the network, also where an option names a URL by mistake.
set_parsing_settings(
    omegaconf_absolute_to_relative_paths=True,
    config_read_mode_urls_enabled=False,
    config_read_mode_fsspec_enabled=False,
)
# jsonargparse makes this loader when it first needs it.
ArgumentParser(parser_mode="omegaconf+").parse_string("{}")
set_loader("omegaconf+", limited(get_loader("omegaconf+")), (yaml.YAMLError,))

DESCRIPTION = (
    "Train and watch vector-quantized autoencoders. `nsvq compare RUNS…` tabulates and draws finished runs, "
    "`nsvq weights` lists and downloads the pretrained networks of LPIPS and FID. `--allow_module my_pkg`, repeatable "
    "and on the command line only, lets configurations name the classes of another package or module."
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


def _with_own_randomness(quantizer: type, *args: Any, **options: Any) -> Any:
    """Build a quantizer so that one seed gives the networks, which are built later, the same weights with each of them.

    Its own numbers come from the next seed: with the run's they would be those of the first network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() + 1)
        return quantizer(*args, **options)


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
    "callbacks": [
        *(watcher.__name__ for watcher in WATCHERS.values()),
        CodebookInitialization.__name__,
        CodebookSnapshots.__name__,
        DeadCodeReplacement.__name__,
        EncoderFreeze.__name__,
    ],
}


class Parser(LightningArgumentParser):
    """A parser that prints one line where argparse prints a page."""

    _file = ""

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration file."""
        self._file = f"{cfg_path}: "
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        finally:
            self._file = ""

    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """Check a configuration, also for null where an option needs a value: jsonargparse takes that for unset."""
        super().validate(namespace, *args, **kwargs)
        for action in self._actions:
            kind = getattr(action, "_typehint", None)
            takes_null = kind in (None, Any, object) or type(None) in get_args(kind)
            if action.default is not None and not takes_null and namespace.get(action.dest, action.default) is None:
                raise TypeError(f'Parser key "{action.dest}":\n  Expected a {kind}. Got value: null')

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print what is wrong and leave with exit code 2."""
        sys.stderr.write(f"nsvq: error: {self.one_line(message, ex)}\n")
        raise SystemExit(2)

    def one_line(self, message: str, ex: Exception | None) -> str:
        """Say what is wrong in one line."""
        line = import_refusal(message) or parser_message(message, ex, CHOICES, self._all_options())
        return self._file + line

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
        self.allowed_modules, others = take_allowed_modules(words)
        limit_imports(self.allowed_modules)
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                save_config_callback=RunConfig,
                save_config_kwargs={"save_to_log_dir": False},
                parser_class=Parser,
                parser_kwargs={
                    "parser_mode": "omegaconf+",
                    "prog": "nsvq",
                    "allow_abbrev": False,
                    "description": DESCRIPTION,
                },
                args=others,
            )
        finally:
            release_run_folder()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder's options, the checkpoint and the watchers."""
        parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--experiment", type=str | None, default=None, help="Folder of this experiment's runs; default: the model."
        )
        parser.add_argument(
            "--version", type=str | None, default=None, help="Folder of this run; default: the next version_<n>."
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="A checkpoint whose weights a new run begins with; optimizers, schedules and steps begin anew. "
            "Without effect where --ckpt_path lets a run go on.",
        )
        parser.add_argument(
            "--allow_changes",
            action="store_true",
            help="Go on from --ckpt_path also where options differ from those that it was made with.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_instantiator(_with_own_randomness, nsvq.quantizers.Quantizer)
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

    def check_config(self) -> None:
        """Refuse a parsed configuration that would run what is not allowed.

        Raises:
            ValueError: If it names what is no class of the allowed packages, a checkpoint elsewhere, or no options.
        """
        config = self._config()
        for group in ("trainer", "checkpoint"):
            if not isinstance(config[group], Namespace):
                raise ValueError(f"{group} must hold options by their names, got {config[group]}")
        check_class_paths(config, self.allowed_modules)
        for checkpoint in (config.ckpt_path, config.init_from):
            if checkpoint is not None:
                refuse_remote(checkpoint)
        if config.weights_only is False:
            raise ValueError("weights_only cannot be false: a checkpoint's code is never run")

    def experiment_folder(self) -> Path:
        """Return the folder that run folders lie in."""
        config = self._config()
        name: str = config.experiment or config.model.class_path.rsplit(".", 1)[-1].lower()
        return Path(config.runs_dir, name)

    def plain_config(self) -> dict[str, Any]:
        """Return the resolved configuration as plain values."""
        plain: dict[str, Any] = json.loads(self._parser(self.subcommand).dump(self._config(), format="json"))
        return plain

    def before_instantiate_classes(self) -> None:
        """Find the run folder and tell the W&B logger about it."""
        config = self._config()
        self.check_config()
        if config.trainer.fast_dev_run:
            return
        folder = self.experiment_folder()
        named = folder / config.version if config.version is not None else None
        go_on = config.ckpt_path == "last"
        if go_on:
            if named is None:
                raise ValueError("--ckpt_path last means a named run's: give its --version too, or the file's path")
            last = named / "checkpoints" / "last.ckpt"
            if self.subcommand != "fit" and not last.is_file():
                raise FileNotFoundError(f"checkpoint {last} does not exist")
            config.ckpt_path = str(last) if last.is_file() else None
            config.version = config.version if self.subcommand == "fit" else None
        resumed = self._resumed_folder(named)
        if resumed is not None:
            self.run_folder = reopen_run_folder(resumed)
        else:
            # A run that is to go on may have ended before its first checkpoint.
            self.run_folder = create_run_folder(folder.parent, folder.name, config.version, go_on)
        # Where a run lies is no part of what it is: its config.yaml can be run again.
        config.version = None
        loggers = config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, Namespace) and logger.class_path.endswith("WandbLogger") and self.run_folder.is_dir():
                logger.init_args.id = wandb_run_id(self.run_folder)
                logger.init_args.save_dir = str(self.run_folder)
                kinds = [config.model.class_path, config.model.get("init_args.quantizer.class_path")]
                tags = [kind.rsplit(".", 1)[-1] for kind in kinds if kind is not None]
                for name, value in {"name": self.run_folder.name, "group": folder.name, "tags": tags}.items():
                    if logger.init_args.get(name) is None:
                        logger.init_args[name] = value

    def instantiate_classes(self) -> None:
        """Build data, model and trainer, and check the checkpoint."""
        with self._leaving_no_unused_folder():
            super().instantiate_classes()
            config = self._config()
            if config.init_from is not None and config.ckpt_path is None:
                load_weights(Path(config.init_from), self.model)
            if config.ckpt_path is not None:
                checkpoint = check_checkpoint(Path(config.ckpt_path), self.model)
                if self.subcommand == "fit":
                    require_training_state(Path(config.ckpt_path), checkpoint)
                    if config.weight_ema is None:
                        refuse_averaged_weights(Path(config.ckpt_path))
                    record = checkpoint.get("callbacks", {}).get(RunRecord.__qualname__, {})
                    if "config" in record:
                        processes = (record["processes"], self.trainer.world_size)
                        refuse_changes(record["config"], self.plain_config(), processes, config.allow_changes)
            # A later resumption is to be asked for its own changes.
            config.allow_changes = False

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
        callbacks.append(RunRecord(self.run_folder, self.plain_config(), ["nsvq", *self.words]))
        if isinstance(self.datamodule, ImageDataModule) and self.subcommand != "predict":
            kwargs["use_distributed_sampler"] = False
        plugins = launch_plugins(config.trainer.plugins) or []
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        kwargs["plugins"] = plugins
        trainer = super().instantiate_trainer(logger=loggers or False, callbacks=callbacks, **kwargs)
        require_all_ranks(trainer)
        return trainer

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise ValueError(f"seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        # Lightning's own method lets hyperparameters stored in a checkpoint override the command line.
        return

    def _run_subcommand(self, subcommand: str) -> None:
        with self._leaving_no_unused_folder(), ending_together(self.trainer):
            try:
                start_wandb(self.trainer)
                super()._run_subcommand(subcommand)
            except Interrupted as stop:
                if self.trainer.is_global_zero:
                    sys.stderr.write(f"nsvq: {stop.message}\n")
                raise

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
        kwargs["weights_only"] = True
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
