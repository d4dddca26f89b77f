"""Time and memory over the size of the codebook."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def quantizers_figure(quantizers: pd.DataFrame) -> Figure:
    """Draw time and memory over K, a row of panels for each device.

    Args:
        quantizers: What `measure_quantizers` returned; drawn are N=4,096 and D=64 if they are
            there, else the first size.

    Returns:
        The figure.
    """
    line = quantizers[(quantizers["N"] == 4_096) & (quantizers["D"] == 64)]
    if line.empty:
        first = quantizers.iloc[0]
        line = quantizers[(quantizers["N"] == first["N"]) & (quantizers["D"] == first["D"])]
    sizes = f"N={line['N'].iloc[0]:,}, D={line['D'].iloc[0]}"
    devices = line["device"].unique()
    figure = Figure(figsize=(12, 5.5 * len(devices)), layout="constrained")
    panels = figure.subplots(len(devices), 2, squeeze=False)
    names = line["contender"].unique()
    for (time, memory), device in zip(panels, devices, strict=True):
        here = line[line["device"] == device]
        for number, name in enumerate(names):
            rows = here[here["contender"] == name].sort_values("K")
            style = _style(name, number)
            time.plot(rows["K"], rows["seconds"], **style)
            memory.plot(rows["K"], rows["peak_MB"], **style)
        codes = sorted(here["K"].unique())
        _label(time, codes, "seconds", f"Forward and backward, {device}, {sizes}")
        _label(memory, codes, "peak memory / 10⁶ bytes", f"Peak memory, {device}, {sizes}")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _style(name: str, number: int) -> dict[str, Any]:
    """Tell families apart by their line: ours solid, the peer's dashed, plain autograd dotted."""
    line = "--" if name.endswith("(peer)") else ":" if name.startswith("autograd") else "-"
    return {
        "label": name,
        "color": f"C{number % 10}",
        "linestyle": line,
        "marker": "osD^v<>PX*hdp"[number % 13],
        "markersize": 5,
    }


def _label(axes: Axes, codes: list[int], ylabel: str, title: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(codes, [f"{size:,}" for size in codes])
    axes.minorticks_off()
    axes.set_xlabel("codes K")
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.grid(alpha=0.3)
