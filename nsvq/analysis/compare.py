"""The comparison of runs: one table, one figure."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nsvq.analysis.labels import plain
from nsvq.analysis.runs import Run
from nsvq.analysis.settings import run_settings, run_variants


def comparison_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Tabulate the last validation of each run.

    Args:
        runs: The runs, one row each.

    Returns:
        `run`, `method` (see `run_variants`), `K`, `seed`, `setting` (see `run_settings`), `step` of the validation,
        `utilization` and its `ceiling` (shares), `training_utilization` (share of codes used in the last full window of
        training steps), `perplexity` (codes), `quantization_error` (relative to the latents' variance), `psnr` (dB),
        `ssim`, `dead_codes`, `seconds` of training with all meters on and `seconds_per_step`; nan where a run did not
        measure it. What `ImageQuality` measured in that validation stands behind `ssim`: `ms_ssim`, `lpips_alex`,
        `lpips_vgg`, `rfid_n<images>` or `fid_smoke`.
    """
    table: pd.DataFrame = pd.DataFrame([_row(run, label) for run, label in zip(runs, run_labels(runs), strict=True)])
    table["method"] = run_variants(runs)
    table.insert(4, "setting", run_settings(runs))
    return table


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Name runs by their folders, with the experiment's folder where that alone is ambiguous.

    Args:
        runs: The runs.
    """
    names = [run.name for run in runs]
    longer = [f"{run.folder.resolve().parent.name}/{run.name}" for run in runs]
    return names if len(set(names)) == len(names) else longer


def _row(run: Run, label: str) -> dict[str, Any]:
    row: dict[str, Any] = {"run": label, "method": run.method, "K": run.codebook_size, "seed": run.seed}
    last, training = _last(run, "val"), _last(run, "train")
    nan = float("nan")
    seconds, steps = run.environment.get("train_seconds", nan), run.environment.get("train_steps", nan)
    return row | {
        "step": last.get("step", nan),
        "utilization": last.get("codebook_utilization", nan),
        "ceiling": last.get("codebook_utilization_ceiling", nan),
        "training_utilization": training.get("codebook_utilization", nan),
        "perplexity": last.get("perplexity", nan),
        "quantization_error": last.get("quantization_error", nan),
        "psnr": run.last("val/psnr"),
        "ssim": run.last("val/ssim"),
        **_image_quality(run),
        "dead_codes": last.get("dead_codes", nan),
        "seconds": seconds,
        "seconds_per_step": seconds / steps if steps else nan,
    }


def _image_quality(run: Run) -> dict[str, float]:
    """Return what `ImageQuality` measured in the last validation pass, by name; most passes are without."""
    rows = run.metrics.dropna(subset=["val/psnr"]) if "val/psnr" in run.metrics else pd.DataFrame()
    if rows.empty:
        return {}
    last = rows.iloc[-1].filter(regex=r"^val/(ms_ssim|lpips_|rfid_|fid_)").dropna()
    return {str(name).removeprefix("val/"): float(value) for name, value in last.items()}


def _last(run: Run, split: str) -> dict[Any, Any]:
    rows = run.codebook[run.codebook["split"] == split] if "split" in run.codebook else pd.DataFrame()
    last: dict[Any, Any] = rows.iloc[-1].to_dict() if len(rows) else {}
    return last


def format_table(table: pd.DataFrame) -> str:
    """Lay a comparison table out for a terminal.

    Args:
        table: What `comparison_table` returned.

    Returns:
        Lines of aligned columns.
    """
    formats = {
        "step": "{:.0f}",
        "utilization": "{:.1%}",
        "ceiling": "{:.1%}",
        "training_utilization": "{:.1%}",
        "perplexity": "{:.1f}",
        "quantization_error": "{:.4f}",
        "psnr": "{:.2f}",
        "ssim": "{:.3f}",
        "dead_codes": "{:.0f}",
        "seconds": "{:.0f}",
        "seconds_per_step": "{:.3f}",
    }
    for column in map(str, table.columns):
        if column.startswith(("ms_ssim", "lpips")):
            formats[column] = "{:.3f}"
        elif "fid_" in column:
            formats[column] = "{:.2f}"
    text = (table if table["setting"].any() else table.drop(columns="setting")).astype(object)
    for column, pattern in formats.items():
        text[column] = [pattern.format(value) if value == value else "–" for value in table[column]]
    text = text.rename(
        columns={
            "training_utilization": "in training",
            "quantization_error": "quant. error",
            "psnr": "PSNR/dB",
            "ssim": "SSIM",
        }
    )
    text.columns = [str(column).replace("_", " ") for column in text.columns]
    lines: str = text.to_string(index=False)
    return lines


def comparison_figure(runs: Sequence[Run]) -> Figure:
    """Draw utilization, quantization error and encoder drift over training steps.

    Args:
        runs: The runs, one line each.

    Returns:
        A figure of three panels.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    utilization, error, drift = figure.subplots(1, 3)
    for number, (run, label) in enumerate(zip(runs, run_labels(runs), strict=True)):
        style = {"color": f"C{number % 10}", "label": plain(label), "linestyle": "-" if number < 10 else "--"}
        if "split" in run.codebook:
            validation = run.codebook[run.codebook["split"] == "val"]
            utilization.plot(validation["step"], 100 * validation["codebook_utilization"], marker=".", **style)
            error.plot(validation["step"], validation["quantization_error"], marker=".", **style)
        if len(run.drift):
            drift.plot(run.drift["step"], run.drift["drift_relative"], **style)
    interval = _drift_interval(runs)
    _label(utilization, "codes used in validation / %", "Codebook utilization")
    utilization.set_ylim(0, 102)
    _label(error, "mean ‖u − c‖² / s²", "Quantization error")
    error.set_yscale("log")
    _label(drift, f"RMS movement in {interval} steps / s", "Encoder drift")
    drift.set_yscale("log")
    handles, labels = utilization.get_legend_handles_labels()
    if not handles:
        handles, labels = drift.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5) or 1)
    return figure


def _drift_interval(runs: Sequence[Run]) -> str:
    intervals = {int(value) for run in runs if len(run.drift) for value in run.drift["delta_steps"].mode()}
    return " or ".join(map(str, sorted(intervals))) or "n"


def _label(axes: Axes, ylabel: str, title: str) -> None:
    axes.set_xlabel("training step")
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.grid(alpha=0.3)
