"""A picture of codes and latents over time."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from nsvq.analysis.labels import plain
from nsvq.analysis.runs import Run, read_arrays

Snapshot = Mapping[str, np.ndarray]
LATENTS, DEAD = "#c6d9ee", "0.55"


def codes_figure(runs: Sequence[Run], labels: Sequence[str], columns: int = 5) -> Figure:
    """Draw where codes and latents lie at a few steps, in two fixed directions a run.

    The directions are the first two principal components of the latents of the steps that are shown, taken together, so
    that movement is movement. A code is coloured by how many of the probe's tokens chose it, and is grey if none did.
    Two directions of many hide distances: codes that seem to lie among the latents may be far from them.

    Args:
        runs: Runs that `CodebookSnapshots` watched, a row each.
        labels: Their names.
        columns: Steps to show, evenly spaced from the first snapshot to the last; fewer if there are fewer.

    Returns:
        The figure.

    Raises:
        ValueError: If a run has no snapshots.
    """
    taken = [run.snapshots for run in runs]
    for run, snapshots in zip(runs, taken, strict=True):
        if not snapshots:
            raise ValueError(f"{run.folder} holds no snapshots: train it with --trainer.callbacks+=CodebookSnapshots")
    columns = min(columns, max(map(len, taken), default=1))
    figure = Figure(figsize=(2.9 * columns + 0.8, 2.9 * len(runs) + 0.4), layout="constrained")
    grid = figure.subplots(len(runs), columns, squeeze=False)
    for row, snapshots, label in zip(grid, taken, labels, strict=True):
        places = np.unique(np.linspace(0, len(snapshots) - 1, columns).round().astype(int))
        steps = [list(snapshots)[place] for place in places]
        shown = {step: read_arrays(snapshots[step], "latents", "codes", "uses") for step in steps}
        _draw_row(figure, row, shown, label)
    return figure


def principal_directions(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean of latents, their first two principal directions, and the shares of variance along these.

    Args:
        latents: Latents, shape (n, d).

    Returns:
        Mean (d,), directions (d, 2) of unit length, padded with zeros if d = 1, and shares (2,).
    """
    mean = latents.mean(axis=0)
    _, values, directions = np.linalg.svd(latents - mean, full_matrices=False)
    shares = values**2 / max((values**2).sum(), np.finfo(float).tiny)
    basis, variance = np.zeros((latents.shape[1], 2)), np.zeros(2)
    count = min(2, len(directions))
    basis[:, :count], variance[:count] = directions[:count].T, shares[:count]
    return mean, basis, variance


def _draw_row(figure: Figure, panels: Sequence[Axes], snapshots: Mapping[int, Snapshot], label: str) -> None:
    pooled = np.concatenate([snapshot["latents"] for snapshot in snapshots.values()]).astype(np.float64)
    mean, basis, shares = principal_directions(pooled)
    most = max(max(int(snapshot["uses"].max()) for snapshot in snapshots.values()), 2)
    norm = LogNorm(1, most)
    low, high = _limits([(snapshot["latents"] - mean) @ basis for snapshot in snapshots.values()])
    for panel in panels[len(snapshots) :]:
        panel.set_axis_off()
    for panel, (step, snapshot) in zip(panels, snapshots.items(), strict=False):
        _draw(panel, snapshot, mean, basis, norm)
        used = snapshot["uses"] > 0
        panel.set_title(f"step {step}: {used.sum()} of {len(used)} codes", fontsize=9)
        panel.set_xlim(low[0], high[0])
        panel.set_ylim(low[1], high[1])
        panel.set_xticks([])
        panel.set_yticks([])
    panels[0].set_ylabel(f"{plain(label)}\n{shares.sum():.0%} of the variance", fontsize=9)
    points = [collection for panel in panels[: len(snapshots)] for collection in panel.collections[-1:]]
    figure.colorbar(points[-1], ax=list(panels), label="tokens of the probe", shrink=0.8)


def _draw(panel: Axes, snapshot: Snapshot, mean: np.ndarray, basis: np.ndarray, norm: Normalize) -> None:
    latents, codes = ((snapshot[name] - mean) @ basis for name in ("latents", "codes"))
    uses = snapshot["uses"]
    dead, order = codes[uses == 0], np.argsort(uses)
    alive = order[uses[order] > 0]
    panel.scatter(latents[:, 0], latents[:, 1], s=4, color=LATENTS, linewidths=0)
    panel.scatter(dead[:, 0], dead[:, 1], s=9, color=DEAD, marker="x", linewidths=0.7)
    used = codes[alive]
    panel.scatter(used[:, 0], used[:, 1], s=11, c=uses[alive], cmap="viridis", norm=norm, linewidths=0)


def _limits(points: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of a frame around all points with a margin; codes far outside of it are not shown."""
    pooled = np.concatenate(points)
    low, high = pooled.min(axis=0), pooled.max(axis=0)
    margin = 0.15 * np.maximum(high - low, 1e-9)
    return low - margin, high + margin
