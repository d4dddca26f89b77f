"""The curves of runs at Weights & Biases."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from nsvq.analysis.configuration import Configuration
from nsvq.analysis.curves import DRIFT, METRICS, USAGE, join_curves, logged_curves
from nsvq.analysis.settings import option

if TYPE_CHECKING:
    import wandb

STEP = "trainer/global_step"
LOGGED_USAGE = {f"val/{name}": column for name, column in USAGE.items()}
LOGGED_DRIFT = {f"drift/{name}": name for name in DRIFT}
LOGGED = (*LOGGED_USAGE, *LOGGED_DRIFT, *METRICS)


def wandb_curves(path: str, filters: Mapping[str, Any] | None = None, api: "wandb.Api | None" = None) -> pd.DataFrame:
    """Put the curves of W&B runs into the table that `curves_table` makes of run folders.

    Left out are runs of models without a quantizer, and runs that logged nothing of training, such as those of
    `nsvq validate`. Of a run that went on from a checkpoint the steps that it repeated count, not those before.

    Tested on the content of files that W&B keeps of offline runs, not against W&B's server.

    Args:
        path: `entity/project`.
        filters: W&B's own filters, `{"group": "methods"}`; None takes all runs of the project.
        api: Where to ask; None logs in as W&B is set up on this machine.

    Returns:
        The columns of `curves_table`, with runs in the order in which they were started. Logged values are rounded to
        float32. Drift is there where a step of `--encoder_drift.every_n_steps` is also one of
        `--trainer.log_every_n_steps`.

    Raises:
        ValueError: If the project is not there, or none of its runs is a training run of a quantizer.
    """
    if api is None:
        import wandb

        api = wandb.Api()
    try:
        found = list(api.runs(path=path, filters=dict(filters or {})))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    chosen = f"{path} with filters {dict(filters)}" if filters else path
    if not found:
        raise ValueError(f"{chosen} holds no W&B run")
    runs, curves = [], []
    for one in found:
        run = Configuration(_resolved(one.config))
        if run.has_quantizer:
            # `history` would be a sample of 500 rows.
            rows = list(one.scan_history())
            if any(name.startswith("train/") for row in rows for name in row):
                runs.append(run)
                curves.append(_curves(run, rows))
    if not runs:
        raise ValueError(f"{chosen}: none of {len(found)} W&B runs is a training run of a quantizer")
    return join_curves(runs, curves)


def _resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what `wandb agent` sets beside the resolved configuration: the sweep's own words."""
    return {key: value for key, value in config.items() if key != "config" and "." not in key}


def _curves(run: Configuration, rows: Sequence[Mapping[str, Any]]) -> list[pd.DataFrame]:
    logged = _logged(rows)
    # Loggers repeat the last drift until the epoch ends.
    every = option(run, "encoder_drift.every_n_steps")
    drift = logged_curves(logged[(logged["step"] + 1) % every == 0], LOGGED_DRIFT) if every else []
    return [*logged_curves(logged, LOGGED_USAGE), *drift, *logged_curves(logged, METRICS)]


def _logged(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    # W&B writes NaN and infinities as words.
    values = [
        {"step": int(row[STEP])} | {name: float(row[name]) for name in LOGGED if row.get(name) is not None}
        for row in rows
        if row.get(STEP) is not None
    ]
    logged = pd.DataFrame([row for row in values if len(row) > 1] or {"step": pd.Series(dtype=int)})
    last: pd.DataFrame = logged[logged["step"] <= logged["step"][::-1].cummin()[::-1]]
    return last
