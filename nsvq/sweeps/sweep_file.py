"""Reading a W&B sweep file."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

METHODS = ("grid", "random")
# The keys of https://docs.wandb.ai/models/sweeps/sweep-config-keys, of which those for W&B's server say nothing here.
KEYS = {
    "program",
    "method",
    "parameters",
    "command",
    "metric",
    "name",
    "description",
    "project",
    "entity",
    "early_terminate",
    "run_cap",
    "job",
}
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
DISTRIBUTIONS = {
    "constant": {"value"},
    "categorical": {"values"},
    "int_uniform": {"min", "max"},
    "uniform": {"min", "max"},
    "q_uniform": {"min", "max"},
    "log_uniform_values": {"min", "max"},
    "normal": set(),
}
OPTIONAL = {"categorical": {"probabilities"}, "q_uniform": {"q"}, "normal": {"mu", "sigma"}}


@dataclass(frozen=True)
class Sweep:
    """What a W&B sweep file asks for.

    Attributes:
        name: The file's `name`, or the file's own name without its ending.
        method: `grid` or `random`.
        parameters: For each parameter its `distribution` and what that needs: `value`, `values`, `min` and `max`, ….
        command: The command with W&B's macros, such as `${args}`.
        program: What `${program}` stands for.
        run_cap: The most runs; None for no limit.
    """

    name: str
    method: str
    parameters: Mapping[str, Mapping[str, Any]]
    command: tuple[str, ...]
    program: str
    run_cap: int | None


def load_sweep(path: Path) -> Sweep:
    """Read and check a W&B sweep file.

    Args:
        path: A YAML file as `wandb sweep` takes it.

    Returns:
        The sweep.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no sweep file, or asks for what needs W&B's server; it names every fault.
    """
    if not path.is_file():
        raise FileNotFoundError(f"sweep file {path} does not exist")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"sweep file {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"sweep file {path} must hold keys such as method and parameters")
    faults = list(_faults(content))
    if faults:
        raise ValueError(f"sweep file {path}: {'; '.join(faults)}")
    return Sweep(
        name=str(content.get("name") or path.stem),
        method=content["method"],
        parameters={name: _with_distribution(options) for name, options in content["parameters"].items()},
        command=tuple(map(str, content.get("command") or DEFAULT_COMMAND)),
        program=str(content.get("program", "")),
        run_cap=content.get("run_cap"),
    )


def _with_distribution(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name the distribution that W&B infers from the keys."""
    if "distribution" in options:
        return options
    if "value" in options:
        kind = "constant"
    elif "values" in options:
        kind = "categorical"
    elif isinstance(options.get("min"), int) and isinstance(options.get("max"), int):
        kind = "int_uniform"
    else:
        kind = "uniform"
    return {"distribution": kind, **options}


def _faults(content: dict[Any, Any]) -> Iterator[str]:
    unknown = [str(key) for key in content if key not in KEYS]
    if unknown:
        yield f"unknown key {', '.join(unknown)} (known: {', '.join(sorted(KEYS))})"
    method = content.get("method")
    if method == "bayes":
        yield "method bayes needs W&B's server (wandb sweep, wandb agent); here are grid and random"
    elif method not in METHODS:
        yield f"method must be one of {', '.join(METHODS)}, got {method}"
    command = content.get("command")
    if command is not None and not (isinstance(command, list) and command):
        yield "command must be a list of words"
    cap = content.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
        yield f"run_cap must be a number of at least 1, got {cap}"
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        yield "parameters must hold at least one parameter"
        return
    for name, options in parameters.items():
        fault = _fault(options, method) if isinstance(name, str) else "its name must be a word"
        if fault:
            yield f"parameter {name}: {fault}"


def _fault(options: Any, method: Any) -> str | None:
    """Say what is wrong with a parameter."""
    if not isinstance(options, dict):
        return f"must hold value, values, or min and max, got {options}"
    if "parameters" in options:
        return "nested parameters make no option of a command line: write dotted names, model.quantizer: {values: […]}"
    options = dict(_with_distribution(options))
    kind = options.pop("distribution")
    if not isinstance(kind, str) or kind not in DISTRIBUTIONS:
        return f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {kind}"
    needed = DISTRIBUTIONS[kind]
    missing, unknown = needed - set(options), set(options) - needed - OPTIONAL.get(kind, set())
    if missing or unknown:
        lacks = [f"lacks {name}" for name in sorted(missing)] + [f"has no {name}" for name in sorted(map(str, unknown))]
        return f"distribution {kind} {', '.join(lacks)}"
    if method == "grid" and kind not in ("constant", "categorical"):
        return f"a grid needs value or values, got the distribution {kind}"
    return _fault_of_values(kind, options)


def _fault_of_values(kind: str, options: dict[str, Any]) -> str | None:
    if kind == "categorical":
        values, probabilities = options["values"], options.get("probabilities")
        if not isinstance(values, list) or not values:
            return f"values must be a list, got {values}"
        if probabilities is not None and not (
            isinstance(probabilities, list)
            and len(probabilities) == len(values)
            and all(_is_number(value) and value >= 0 for value in probabilities)
            and sum(probabilities) > 0
        ):
            return "probabilities must be one number for each of the values, not all 0"
        return None
    if kind == "constant":
        return None
    wrong = [f"{name} must be a finite number, got {value}" for name, value in options.items() if not _is_number(value)]
    if kind == "int_uniform" and not wrong:
        wrong = [f"{name} must be an integer, got {value}" for name, value in options.items() if value != int(value)]
    if wrong:
        return ", ".join(wrong)
    if "min" in options and options["min"] > options["max"]:
        return f"min {options['min']} is above max {options['max']}"
    if kind == "log_uniform_values" and options["min"] <= 0:
        return f"min must be above 0, got {options['min']}"
    if options.get("q", 1) <= 0 or options.get("sigma", 1) <= 0:
        return "q and sigma must be above 0"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
