"""The curves of runs as one tidy table."""

from collections.abc import Sequence

import pandas as pd

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
    frames = []
    names = zip(run_variants(runs), run_settings(runs), strict=True)
    for number, (run, (method, setting)) in enumerate(zip(runs, names, strict=True)):
        frame = _curves(run)
        about = {"run": number, "method": method, "K": run.codebook_size, "seed": run.seed, "setting": setting}
        for place, (name, value) in enumerate(about.items()):
            frame.insert(place, name, value)
        frames.append(frame)
    table: pd.DataFrame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return table


def _curves(run: Run) -> pd.DataFrame:
    parts = []
    if "split" in run.codebook:
        validation = run.codebook[run.codebook["split"] == "val"].rename(columns=USAGE)
        parts.append(validation[["step", *(name for name in USAGE.values() if name in validation)]])
    if "step" in run.drift:
        parts.append(run.drift[["step", *(name for name in DRIFT if name in run.drift)]])
    for logged, name in METRICS.items():
        if logged in run.metrics:
            # Loggers count from 0, so that the first step's row has the number 0.
            values = run.metrics.dropna(subset=[logged]).rename(columns={logged: name})[["step", name]]
            parts.append(values.assign(step=values["step"] + 1))
    table: pd.DataFrame = pd.DataFrame({"step": pd.Series(dtype=int)})
    for part in parts:
        table = table.merge(part.drop_duplicates("step", keep="last"), on="step", how="outer")
    ordered: pd.DataFrame = table.sort_values("step", ignore_index=True)
    return ordered
