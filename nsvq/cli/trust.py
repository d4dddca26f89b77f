"""What a command line and its configuration files may bring into the process.

A configuration names classes by their import path, and importing or calling what it names runs code. So both are
limited to a few packages and to the modules that the user names on the command line, where no configuration file can.
"""

import inspect
import os
import pydoc
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.accelerators.accelerator import Accelerator
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins.precision import Precision
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.layer_sync import LayerSync
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nsvq.cli.messages import OneLineParser

PACKAGES = ("nsvq", "torch", "torchvision", "torchmetrics", "lightning")
# What a run is made of. Any class with a `__call__` fits an option that takes a function, and some run programs.
PARTS = (
    nn.Module,
    LightningDataModule,
    Callback,
    Logger,
    Profiler,
    Strategy,
    Accelerator,
    CheckpointIO,
    ClusterEnvironment,
    LayerSync,
    Precision,
    Optimizer,
    LRScheduler,
)
OPTION = "--allow_module"
ALLOWED = (
    f"a configuration can name classes of {', '.join(PACKAGES[:-1])} and {PACKAGES[-1]}; "
    f"{OPTION} my_pkg on the command line allows another package or module"
)
_named: set[str] = set()
FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def take_allowed_modules(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take `--allow_module MODULE`, wherever and however often it stands, out of a command line.

    Args:
        words: The command line.

    Returns:
        The modules, and the words that are left.
    """
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    parser.add_argument(OPTION, action="append", default=[])
    options, others = parser.parse_known_args(words)
    return options.allow_module, others


def limit_imports(modules: Sequence[str] = ()) -> None:
    """Limit what configurations can import: `PACKAGES` and the given modules, with all that lies below them.

    The path as it is written counts, before anything is imported, and so does the place of definition:
    `torch.os.system` is no part of torch. Where a module is given, those of the working directory can be imported
    too; installed ones of the same name go first. The limit holds until the next call.

    Args:
        modules: Dotted names of modules that the user trusts.

    Raises:
        ValueError: If there is no such module.
    """
    if modules and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")) or not _exists(module.split(".")[0]):
            raise ValueError(f"{OPTION} {module}: no such module, neither installed nor in {Path.cwd()}")
        if module.split(".")[0] == "jsonargparse":
            raise ValueError(f"{OPTION} {module}: it decides what can be imported, so a configuration cannot name it")
    _named.update(modules)
    allowed = [*PACKAGES, *modules]
    # jsonargparse forgets no entry, and the longest that fits a path decides.
    denied = [module for module in _named if not _lies_in(module, allowed)]
    set_parsing_settings(
        import_path_denylist=["*", *denied],
        import_path_allowlist=[*allowed, *_named.difference(denied)],
        instantiate_subclass_spec_in_any=False,
    )


def check_class_paths(config: Any, modules: Sequence[str] = ()) -> None:
    """Refuse a parsed configuration that would call anything but the classes that a run is made of.

    A function of an allowed package may do what no configuration should, such as `torch.hub.load`, and so may a class
    that launches processes; those of the given modules are trusted.

    Args:
        config: A parsed configuration or a part of one.
        modules: The modules that were given to `limit_imports`.

    Raises:
        ValueError: If it names something else than a class of nsvq, one of `PARTS` in `PACKAGES`, or anything of the
            modules.
    """
    for path, target in _targets(config):
        home = str(getattr(target, "__module__", None))
        is_class = inspect.isclass(target)
        is_part = is_class and issubclass(target, PARTS) and _lies_in(home, PACKAGES)
        if not (is_part or _lies_in(home, modules) or (is_class and _lies_in(home, ["nsvq"]))):
            raise ValueError(f"{path} is refused: {ALLOWED}")


def import_refusal(message: str) -> str | None:
    """Say in one line what a parser did not import, or that a file tried to allow it.

    Args:
        message: A message of jsonargparse.

    Returns:
        One line; None if the message is about something else.
    """
    if re.search(r"option '?allow_module\b", message):
        return f"allow_module stands in a configuration file: {OPTION} is for the command line alone"
    denied = re.search(r"Importing '([^']+)' is not allowed", message)
    if denied is None:
        return None
    key = re.search(r'Parser key "([^"]+)"', message)
    where = f"{key[1]}: " if key else ""
    given = re.search(r"(?:class_path '|(?:Got|Given) value: )([\w.]+)", message)
    path = given[1] if given else denied[1]
    if path.endswith((".yaml", ".yml")) and not Path(path).exists():
        return f"{where}file {path} does not exist"
    home = "" if path == denied[1] else f", which is {denied[1]},"
    return f"{where}{path}{home} is not imported: {ALLOWED}"


@contextmanager
def weights_only() -> Iterator[None]:
    """Let `torch.load` run no code of a file, whatever its caller asks for."""
    before = {name: os.environ.pop(name, None) for name in (FORCE_WEIGHTS_ONLY, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")}
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE_WEIGHTS_ONLY]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def refuse_remote(checkpoint: str) -> None:
    """Refuse a checkpoint that lies on another machine.

    Args:
        checkpoint: What the user gave as its path.

    Raises:
        ValueError: If it is a URL or an entry of a model registry.
    """
    # One letter before the colon is a drive.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", checkpoint):
        raise ValueError(f"checkpoint {checkpoint} is not a local file: download it and give its path")


def _targets(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a configuration would call: what its class paths lead to, and functions that it names by a string."""
    if isinstance(config, Namespace):
        config = vars(config)
    if isinstance(config, dict):
        if isinstance(config.get("class_path"), str):
            yield config["class_path"], pydoc.locate(config["class_path"])
        for value in config.values():
            yield from _targets(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _targets(value)
    elif callable(config) and not isinstance(config, os.PathLike):
        yield f"{getattr(config, '__module__', '')}.{getattr(config, '__qualname__', config)}", config


def _exists(package: str) -> bool:
    # The program itself may have no spec, for which `find_spec` raises.
    return package != "__main__" and find_spec(package) is not None


def _lies_in(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
