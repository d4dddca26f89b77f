"""The curves of runs as one tidy table."""

from collections.abc import Mapping, Sequence

import pandas as pd

from nsvq.analysis.configuration import Configured
from nsvq.analysis.runs import Run
from nsvq.analysis.settings import run_settings, run_variants

USAGE = {
    "codebook_utilization": "utilization",
    "codebook_utilization_ceiling": "ceiling",
    "perplexity": "perplexity",
    "dead_code_fraction": "dead_code_fraction",
    "quantization_error": "quantization_error",
}
DRIFT = ("drift_rms", "drift_relative", "churn", "codebook_shift", "codebook_lag", "codebook_scale", "latent_scale")
METRICS = {"val/psnr": "psnr", "val/ssim": "ssim", "train/bandwidth": "bandwidth", "train/loss": "training_loss"}


def curves_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Put the curves of runs into one table, a row for each run and step at which something was measured.

    Args:
        runs: The runs.

    Returns:
        `run` (the place in `runs`), `method` (see `run_variants`), `K`, `seed`, `setting` (see `run_settings`) and
        `step`; of validation passes `utilization` and its `ceiling`, `dead_code_fraction` (shares), `perplexity`
        (codes), `quantization_error` (relative to the latents' variance), `psnr` (dB), `ssim`; of the probe set the
        measures of `curves/drift.csv`; of training `bandwidth` (squared distance) and `training_loss`. nan where a step
        has no measurement.
    """
    return join_curves(runs, [_curves(run) for run in runs])


def join_curves(runs: Sequence[Configured], curves: Sequence[Sequence[pd.DataFrame]]) -> pd.DataFrame:
    """Join the curves of each run by step, and those of all runs to one table.

    Args:
        runs: The runs.
        curves: For each run frames with a column `step`, of which a step's last row counts, and columns of their own.

    Returns:
        `run`, `method`, `K`, `seed`, `setting` and `step` as in `curves_table`, then the curves' columns.
    """
    tables = []
    names = zip(run_variants(runs), run_settings(runs), strict=True)
    for number, (run, frames, (method, setting)) in enumerate(zip(runs, curves, names, strict=True)):
        table: pd.DataFrame = pd.DataFrame({"step": pd.Series(dtype=int)})
        for frame in frames:
            table = table.merge(frame.drop_duplicates("step", keep="last"), on="step", how="outer")
        table = table.sort_values("step", ignore_index=True)
        about = {"run": number, "method": method, "K": run.codebook_size, "seed": run.seed, "setting": setting}
        for place, (name, value) in enumerate(about.items()):
            table.insert(place, name, value)
        tables.append(table)
    joined: pd.DataFrame = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return joined


def logged_curves(logged: pd.DataFrame, names: Mapping[str, str]) -> list[pd.DataFrame]:
    """Take curves out of what a logger recorded.

    Args:
        logged: Logged values by the logger's `step`, one column a name.
        names: The curves' columns by logged name; a name that was never logged has no curve.
    """
    curves = []
    for name, column in names.items():
        if name in logged:
            values = logged.dropna(subset=[name]).rename(columns={name: column})[["step", column]]
            # Loggers count from 0, so that the first step's row has the number 0.
            curves.append(values.assign(step=values["step"] + 1))
    return curves


def _curves(run: Run) -> list[pd.DataFrame]:
    curves = []
    if "split" in run.codebook:
        validation = run.codebook[run.codebook["split"] == "val"].rename(columns=USAGE)
        curves.append(validation[["step", *(name for name in USAGE.values() if name in validation)]])
    if "step" in run.drift:
        curves.append(run.drift[["step", *(name for name in DRIFT if name in run.drift)]])
    return [*curves, *logged_curves(run.metrics, METRICS)]
