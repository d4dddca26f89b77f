"""What tells runs apart beside method, codebook size and seed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nsvq.analysis.configuration import Configured, flat_options

# Where a run lies, how it is shown and how far it went.
IGNORED = ("seed_everything", "runs_dir", "experiment", "version", "ckpt_path", "trainer.logger", "trainer.enable")
QUANTIZER = "model.quantizer."
# Told by the method and its K.
TOLD = ("model.quantizer.class_path", "model.quantizer.codebook_size", "trainer.callbacks")


def run_variants(runs: Sequence[Configured]) -> list[str]:
    """Name each run's method, with those options of the quantizer in which runs of the method differ.

    Args:
        runs: The runs.

    Returns:
        `NSVQ`, or `TransVQ (width=64)` beside one of another width. Options that are None are not named: W&B's record
        of a run has none of them.
    """
    options = [{key: value for key, value in _options(run.config) if key.startswith(QUANTIZER)} for run in runs]
    names = []
    for run, own in zip(runs, options, strict=True):
        others = [other for one, other in zip(runs, options, strict=True) if one.method == run.method]
        differing = _differing(own, others)
        names.append(f"{run.method} ({differing})" if differing else run.method)
    return names


def run_settings(runs: Sequence[Configured]) -> list[str]:
    """Name the options outside the quantizer in which runs differ.

    Args:
        runs: The runs.

    Returns:
        For each run its values of these options, `encoder_lr_factor=5.0, size=64`, without those that are None; empty
        where all are equal.
    """
    options = [{key: value for key, value in _options(run.config) if not key.startswith(QUANTIZER)} for run in runs]
    return [_differing(own, options) for own in options]


def _differing(own: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    keys = [key for key in own if any(other.get(key) != own[key] for other in others)]
    return ", ".join(f"{key.rsplit('.', 1)[-1]}={own[key]}" for key in keys)


def option(run: Configured, name: str) -> Any:
    """Return an option of a run by its name on the command line, None if it has none of this name."""
    return dict(_options(run.config, told=())).get(name)


def _options(config: Mapping[str, Any], told: Sequence[str] = TOLD) -> Iterator[tuple[str, Any]]:
    return (
        (name, value)
        for name, value in flat_options(config)
        if value is not None and not name.startswith((*IGNORED, *told))
    )
