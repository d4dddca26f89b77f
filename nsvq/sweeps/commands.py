"""Command lines of a sweep's runs, word for word those of a W&B agent."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from nsvq.analysis.configuration import short_names
from nsvq.sweeps.sweep_file import Sweep

ENVIRONMENT = re.compile(r"\$\{envvar:([^}]+)\}")
MACRO = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: Says the values of the parameters that vary in the sweep: `codebook_size=512,quantizer=nsvq`.
        setting: Values by parameter.
        command: The command line.
    """

    name: str
    setting: Mapping[str, Any]
    command: tuple[str, ...]


def sweep_runs(sweep: Sweep, settings: Sequence[Mapping[str, Any]]) -> list[SweepRun]:
    """Return the runs of some settings.

    Args:
        sweep: The sweep.
        settings: Values by parameter, one mapping a run.

    Returns:
        The runs, each with a name of its own.

    Raises:
        ValueError: If the sweep's command has a macro that is not known here.
    """
    names = _names(sweep, settings)
    return [SweepRun(name, one, command_line(sweep, one)) for name, one in zip(names, settings, strict=True)]


def command_line(sweep: Sweep, setting: Mapping[str, Any]) -> tuple[str, ...]:
    """Fill a sweep's command with the values of one run as a W&B agent does.

    Args:
        sweep: The sweep.
        setting: Values by parameter.

    Returns:
        The words of the command line.

    Raises:
        ValueError: If the command has a macro that is not known here.
    """
    flags = [f"{name}={value}" for name, value in setting.items()]
    macros = {
        "env": ["/usr/bin/env"],
        "interpreter": ["python"],
        "program": [sweep.program],
        "args": [f"--{flag}" for flag in flags],
        "args_no_hyphens": flags,
        "args_no_equals": [word for name, value in setting.items() for word in (f"--{name}", str(value))],
        "args_no_boolean_flags": [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in setting.items()
            if value is not False
        ],
        "args_json": [json.dumps(dict(setting))],
    }
    words: list[str] = []
    for word in sweep.command:
        # As W&B does, a variable that is not set leaves its name.
        word = ENVIRONMENT.sub(lambda match: os.environ.get(match[1], match[1]), word)
        macro = MACRO.fullmatch(word)
        if macro is None:
            words.append(word)
        elif macro[1] in macros:
            words += macros[macro[1]]
        else:
            raise ValueError(f"sweep {sweep.name}: unknown macro {word} in command; known: {', '.join(macros)}")
    return tuple(words)


def _names(sweep: Sweep, settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name runs by the parameters that vary, each by as much of its name as tells the parameters apart.

    A run has the same name whatever the number of runs; of several with one name all but the first are numbered.
    """
    keys = [name for name in sorted(sweep.parameters) if _varies(sweep.parameters[name])]
    shorts = short_names(keys)
    counts: Counter[str] = Counter()
    names = []
    for one in settings:
        name = ",".join(f"{shorts[key]}={_short_value(one[key])}" for key in keys) or "run"
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name},{counts[name]}")
    return names


def _varies(options: Mapping[str, Any]) -> bool:
    return options["distribution"] != "constant" and len(options.get("values", "ab")) > 1


def _short_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    text = PurePath(text).stem if text.endswith((".yaml", ".yml")) else text
    return re.sub(r"[^\w.+-]+", "_", text)
