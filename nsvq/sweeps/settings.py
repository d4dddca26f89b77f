"""The settings of a sweep: which values its parameters take in each run."""

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

from nsvq.sweeps.sweep_file import Sweep


def sweep_settings(sweep: Sweep, count: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Return the values of a sweep's runs.

    Args:
        sweep: The sweep.
        count: Number of runs of a random search; of a grid the first so many. None: the sweep's `run_cap`; without one
            the whole grid.
        seed: Seed of a random search; the first runs of a longer search are those of a shorter one.

    Returns:
        For each run the values by parameter, in alphabetical order, as W&B's server hands them to its agents.

    Raises:
        ValueError: If a random search has no number of runs.
    """
    names = sorted(sweep.parameters)
    count = sweep.run_cap if count is None else count
    if sweep.method == "grid":
        axes = [_values(sweep.parameters[name]) for name in names]
        grid = (dict(zip(names, values, strict=True)) for values in itertools.product(*axes))
        return list(itertools.islice(grid, count))
    if count is None:
        raise ValueError(f"sweep {sweep.name} is a random search: give run_cap in the file, or --count")
    generator = random.Random(seed)
    return [{name: _draw(sweep.parameters[name], generator) for name in names} for _ in range(count)]


def _values(options: Mapping[str, Any]) -> list[Any]:
    return [options["value"]] if options["distribution"] == "constant" else list(options["values"])


def _draw(options: Mapping[str, Any], generator: random.Random) -> Any:
    kind = options["distribution"]
    if kind == "constant":
        return options["value"]
    if kind == "categorical":
        return generator.choices(options["values"], options.get("probabilities"))[0]
    if kind == "normal":
        return generator.gauss(options.get("mu", 0.0), options.get("sigma", 1.0))
    low, high = options["min"], options["max"]
    if kind == "int_uniform":
        return generator.randint(int(low), int(high))
    if kind == "log_uniform_values":
        return math.exp(generator.uniform(math.log(low), math.log(high)))
    value = generator.uniform(low, high)
    if kind == "q_uniform":
        step = options.get("q", 1)
        return round(value / step) * step
    return value
