"""What tells runs apart beside method, codebook size and seed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nsvq.analysis.configuration import MARKS, Configuration, Configured, flat_options, short_names

# Where a run lies, how it is shown and how far it went.
IGNORED = ("seed_everything", "runs_dir", "experiment", "version", "ckpt_path", "trainer.logger", "trainer.enable")
QUANTIZER = "model.quantizer."
# Told by the method and its K.
TOLD = ("model.quantizer.class_path", "model.quantizer.codebook_size", "trainer.callbacks")
TOLD_BY_METHOD = ("EncoderFreeze",)


def run_variants(runs: Sequence[Configured]) -> list[str]:
    """Name each run's method, with those options of quantizer and method's callbacks in which runs of it differ.

    Args:
        runs: The runs.

    Returns:
        `NSVQ`, or `TransVQ (width=64)` beside one of another width. Options that are None are not named: W&B's record
        of a run has none of them.
    """
    options = [dict(_own_options(run.config)) for run in runs]
    alike: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        alike.setdefault(run.method, []).append(place)
    names = [run.method for run in runs]
    for places in alike.values():
        for place, text in zip(places, _differences([options[place] for place in places]), strict=True):
            names[place] += f" ({text})" if text else ""
    return names


def run_settings(runs: Sequence[Configured]) -> list[str]:
    """Name the options outside the quantizer in which runs differ.

    Args:
        runs: The runs.

    Returns:
        For each run its values of these options, `encoder_lr_factor=5.0, size=64`, without those that are None; empty
        where all are equal. Callbacks do not count.
    """
    options = [{key: value for key, value in _options(run.config) if not key.startswith(QUANTIZER)} for run in runs]
    return _differences(options)


def option(run: Configured, name: str) -> Any:
    """Return an option of a run by its name on the command line, None if it has none of this name."""
    return dict(flat_options(run.config)).get(name)


def _differences(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say the options of each run in which not all are equal, by as much of their names as tells these apart."""
    names = list(dict.fromkeys(name for own in options for name in own))
    differing = [name for name in names if len({repr(own.get(name)) for own in options}) > 1]
    shorts = short_names(differing)
    return [", ".join(f"{shorts[name]}={own[name]}" for name in differing if name in own) for own in options]


def _own_options(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options of the quantizer and of the callbacks that belong to the method."""
    callbacks = Configuration(config).callbacks
    marks = {name: callbacks[name] for name in MARKS if name in callbacks and name not in TOLD_BY_METHOD}
    yield from (pair for pair in _options(config) if pair[0].startswith(QUANTIZER))
    yield from (pair for pair in flat_options(marks) if pair[1] is not None)


def _options(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in flat_options(config):
        if value is not None and not name.startswith((*IGNORED, *TOLD)):
            yield name, value
