"""What the resolved configuration of a run says about it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# Callbacks that make another method of a quantizer.
MARKS = {
    "CodebookInitialization": "initialization",
    "DeadCodeReplacement": "replacement",
    "EncoderFreeze": "encoder frozen from step {from_step}",
}


class Configured(Protocol):
    """A run, wherever it was recorded."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration."""

    @property
    def method(self) -> str:
        """The quantizer's class, marked where codes are set from data or replaced, or the encoder is frozen."""

    @property
    def codebook_size(self) -> int:
        """Number of codes K."""

    @property
    def seed(self) -> Any:
        """The seed that the run was started with."""


@dataclass(frozen=True)
class Configuration:
    """A resolved configuration.

    Attributes:
        config: Its values, nested as in `config.yaml`.
    """

    config: Mapping[str, Any]

    @property
    def has_quantizer(self) -> bool:
        """Whether it is the configuration of a model with a quantizer."""
        try:
            quantizer = self._init_args["quantizer"]
            return "class_path" in quantizer and "codebook_size" in quantizer["init_args"]
        except (KeyError, TypeError):
            return False

    @property
    def method(self) -> str:
        """The quantizer's class, marked where codes are set from data or replaced, or the encoder is frozen."""
        quantizer: str = self._init_args["quantizer"]["class_path"].rsplit(".", 1)[-1]
        options = self.callbacks
        return " + ".join(
            [quantizer, *(mark.format(**options[name]) for name, mark in MARKS.items() if name in options)]
        )

    @property
    def callbacks(self) -> dict[str, Mapping[str, Any]]:
        """The options of the trainer's callbacks by their class's name."""
        callbacks = self.config.get("trainer", {}).get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        return {one["class_path"].rsplit(".", 1)[-1]: one.get("init_args") or {} for one in callbacks}

    @property
    def codebook_size(self) -> int:
        """Number of codes K."""
        size: int = self._init_args["quantizer"]["init_args"]["codebook_size"]
        return size

    @property
    def seed(self) -> Any:
        """The seed that the run was started with."""
        return self.config.get("seed_everything")

    @property
    def _init_args(self) -> Mapping[str, Any]:
        args: Mapping[str, Any] = self.config["model"]["init_args"]
        return args


def flat_options(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every option of a configuration with the name that the command line has for it.

    Args:
        config: The configuration, or a part of it.
        path: The part's own name.
    """
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from flat_options(value, path if key == "init_args" else (*path, str(key)))
    elif isinstance(config, list) and any(isinstance(value, Mapping) for value in config):
        for number, value in enumerate(config):
            yield from flat_options(value, (*path, str(number)))
    else:
        yield ".".join(path), config


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Shorten dotted names to as many of their last parts as tell them apart.

    Args:
        names: Different names.

    Returns:
        The short ones by name.
    """
    return {name: _short_name(name, names) for name in names}


def _short_name(name: str, names: Sequence[str]) -> str:
    parts = name.split(".")
    for length in range(1, len(parts)):
        short = parts[-length:]
        if sum(other.split(".")[-length:] == short for other in names) == 1:
            return ".".join(short)
    return name
