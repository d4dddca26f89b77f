"""Figures of runs; each function returns a matplotlib figure and writes nothing."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from nsvq.analysis.labels import plain
from nsvq.analysis.runs import Run

PANELS = {
    "utilization": ("Codebook utilization", "codes used in validation / %", 100.0, False),
    "quantization_error": ("Quantization error", "mean ‖u − c‖² / s²", 1.0, True),
    "drift_relative": ("Encoder drift", "RMS movement of probe latents / s", 1.0, True),
    "churn": ("Churn", "probe tokens whose code changed / %", 100.0, False),
    "codebook_lag": ("Codebook lag", "codes' distance to the nearest latent / s", 1.0, True),
    "codebook_scale": ("Codebook scale", "spread of codes / spread of latents", 1.0, True),
}
MARKERS = "os^Dvp*XP<>h"


def curves_figure(curves: pd.DataFrame, measures: Sequence[str] = tuple(PANELS)) -> Figure:
    """Draw measures over training steps: a line for each method, the mean over its seeds, in a band of all of them.

    Args:
        curves: What `curves_table` returned; rows of one codebook size, or lines are told apart by it.
        measures: Columns, of those that `PANELS` knows.

    Returns:
        A figure with a panel a measure.
    """
    groups = _groups(curves)
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in grid[len(measures) :]:
        panel.set_axis_off()
    for panel, measure in zip(grid, measures, strict=False):
        title, label, factor, logarithmic = PANELS[measure]
        for number, (name, group) in enumerate(groups.items()):
            _band(panel, group, measure, factor, _style(number, name))
        _dress(panel, title, "training step", label)
        # Zeros, such as the drift of an encoder that never moved, have no place on a logarithmic axis.
        if logarithmic and measure in curves and (curves[measure] > 0).any():
            _logarithmic(panel.yaxis)
        elif factor == 100:
            panel.set_ylim(-2, 102)
    _legend(figure, grid[0])
    return figure


def rank_frequency_figure(runs: Sequence[Run], labels: Sequence[str]) -> Figure:
    """Draw how often codes are used in the last validation pass, sorted from the most used on.

    Args:
        runs: The runs, one line each.
        labels: Their names.

    Returns:
        A figure of one panel with two logarithmic axes; codes that are not used have no point.
    """
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    panel = figure.subplots()
    for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
        counts = run.last_counts
        if counts is None or not counts.sum():
            continue
        shares = np.sort(counts[counts > 0])[::-1] / counts.sum()
        panel.plot(np.arange(1, len(shares) + 1), shares, **_style(number, f"{label}: {len(shares)} of {len(counts)}"))
    _logarithmic(panel.xaxis)
    _logarithmic(panel.yaxis)
    _dress(panel, "Use of codes in the last validation", "rank of the code", "share of tokens")
    _legend(figure, panel)
    return figure


def quality_figure(table: pd.DataFrame) -> Figure:
    """Draw utilization against quantization error and against PSNR, a point a run.

    Args:
        table: What `comparison_table` returned.

    Returns:
        A figure of two panels.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    several = table["K"].nunique() > 1
    for number, ((method, size), group) in enumerate(table.groupby(["method", "K"], sort=False)):
        style = {"color": _color(number), "marker": MARKERS[number % len(MARKERS)], "s": 45, "alpha": 0.8}
        label = f"{method}, K = {size}" if several else str(method)
        panels[0].scatter(group["quantization_error"], 100 * group["utilization"], label=plain(label), **style)
        panels[1].scatter(group["psnr"], 100 * group["utilization"], **style)
    _dress(panels[0], "Utilization against error", "quantization error, mean ‖u − c‖² / s²", "codes used / %")
    _logarithmic(panels[0].xaxis)
    _dress(panels[1], "Utilization against quality", "PSNR / dB", "codes used / %")
    for panel in panels:
        panel.set_ylim(-2, 102)
    _legend(figure, panels[0])
    return figure


def bandwidth_figure(curves: pd.DataFrame) -> Figure:
    """Draw the bandwidth τ of runs with a kernel over training steps.

    Args:
        curves: What `curves_table` returned.

    Returns:
        A figure of one panel; empty where no run has a bandwidth.
    """
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    panel = figure.subplots()
    measured = curves.dropna(subset=["bandwidth"]) if "bandwidth" in curves else curves.iloc[:0]
    for number, (name, group) in enumerate(_groups(measured).items()):
        _band(panel, group, "bandwidth", 1.0, _style(number, name))
    _dress(panel, "Kernel bandwidth", "training step", "τ in squared distance (of code_distance: the multiple)")
    _logarithmic(panel.yaxis)
    _legend(figure, panel)
    return figure


def stress_figure(table: pd.DataFrame, factor: str = "encoder_lr_factor") -> Figure:
    """Draw the drift stress test: what becomes of codes and images as the encoder learns faster.

    Args:
        table: One row a run, with the column `factor` beside those of `comparison_table`.
        factor: Column of the encoder's learning-rate factor.

    Returns:
        A figure of three panels: utilization, quantization error and PSNR by the factor; lines are means over seeds,
        bars reach from the smallest to the largest.
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    # What else differs makes lines of their own.
    others = table["setting"].str.replace(rf"(, )?{factor}=[^,]*", "", regex=True).str.removeprefix(", ")
    groups = _groups(table.assign(setting=others))
    for number, (name, group) in enumerate(groups.items()):
        for panel, (column, scale) in zip(
            panels, {"utilization": 100.0, "quantization_error": 1.0, "psnr": 1.0}.items(), strict=True
        ):
            seeds = scale * group.groupby(factor)[column].agg(["mean", "min", "max"])
            reach = [seeds["mean"] - seeds["min"], seeds["max"] - seeds["mean"]]
            style = {"color": _color(number), "marker": MARKERS[number % len(MARKERS)], "capsize": 3}
            panel.errorbar(seeds.index, seeds["mean"], yerr=reach, label=plain(name), **style)
    where = "factor of the encoder's learning rate"
    _dress(panels[0], "Utilization", where, "codes used in validation / %")
    panels[0].set_ylim(-2, 102)
    _dress(panels[1], "Quantization error", where, "mean ‖u − c‖² / s²")
    _logarithmic(panels[1].yaxis)
    _dress(panels[2], "Image quality", where, "PSNR / dB")
    positive = (table[factor] > 0).all()
    for panel in panels:
        panel.set_xscale("log" if positive else "symlog", **({} if positive else {"linthresh": 0.1}))
    _legend(figure, panels[0])
    return figure


def _groups(curves: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tell lines apart by method and, where there are several, by codebook size and setting."""
    several = curves["K"].nunique() > 1 if len(curves) else False
    groups = {}
    for (method, size, setting), group in curves.groupby(["method", "K", "setting"], sort=False):
        parts = [str(method), *([f"K = {size}"] if several else []), *([str(setting)] if setting else [])]
        groups[", ".join(parts)] = group
    return groups


def _band(panel: Axes, group: pd.DataFrame, measure: str, factor: float, style: dict[str, Any]) -> None:
    if measure not in group:
        return
    seeds = factor * group.dropna(subset=[measure]).groupby("step")[measure].agg(["mean", "min", "max"])
    panel.plot(seeds.index, seeds["mean"], **style)
    if group["seed"].nunique() > 1:
        panel.fill_between(seeds.index, seeds["min"], seeds["max"], color=style["color"], alpha=0.2, linewidth=0)


def _style(number: int, label: str) -> dict[str, Any]:
    return {
        "color": _color(number),
        "label": plain(label),
        "linestyle": ("-", "--", ":")[number // 10 % 3],
        "linewidth": 1.6,
    }


def _color(number: int) -> Any:
    return mpl.colormaps["tab10"](number % 10)


def _dress(panel: Axes, title: str, xlabel: str, ylabel: str) -> None:
    panel.set_title(title)
    panel.set_xlabel(xlabel)
    panel.set_ylabel(ylabel)
    panel.grid(alpha=0.3)


def _logarithmic(axis: Axis) -> None:
    """Scale an axis logarithmically, with numbers that stay apart where it spans less than a decade."""
    set_scale = axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale
    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    if not handles:
        return
    # As many columns as letters of this size leave room for, and a figure that grows with the rows.
    columns = min(max(int(figure.get_figwidth() * 12 / (max(map(len, labels)) + 8)), 1), 4)
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * max(rows - 2, 0))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)
