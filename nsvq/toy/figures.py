"""Figures and animations of the drift laboratory."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from nsvq.toy.laboratory import EVALUATION_SEED, Course, Setup
from nsvq.toy.motions import END, MOTIONS, START, progress_at, sample_ring

SHOWN_POINTS = 600
FRAMES_PER_SECOND = 12


def courses_figure(courses: pd.DataFrame, steps: int) -> Figure:
    """Draw utilization and quantization error over steps, a column for each motion, a line for each method.

    Args:
        courses: Columns `motion`, `method`, `seed`, `step`, `utilization` and `error`.
        steps: Steps of a run.

    Returns:
        The figure; lines are means over seeds, and the distribution moves where the background is grey.
    """
    motions = list(courses["motion"].unique())
    figure = Figure(figsize=(3.4 * len(motions) + 1, 6.2), layout="constrained")
    grid = figure.subplots(2, len(motions), squeeze=False, sharex=True, sharey="row")
    for column, motion in enumerate(motions):
        part = courses[courses["motion"] == motion]
        for number, (method, group) in enumerate(part.groupby("method", sort=False)):
            mean = group.groupby("step")[["utilization", "error"]].mean()
            style = {"color": mpl.colormaps["tab20"](number % 20), "label": str(method), "linewidth": 1.5}
            grid[0, column].plot(mean.index, 100 * mean["utilization"], **style)
            grid[1, column].plot(mean.index, mean["error"], **style)
        grid[0, column].set_title(motion)
        grid[1, column].set_xlabel("step")
        for panel in grid[:, column]:
            panel.grid(alpha=0.3)
            if motion != "stationary":
                panel.axvspan(START * steps, END * steps, color="0.9", zorder=0)
    grid[0, 0].set_ylabel("codes used / %")
    grid[0, 0].set_ylim(-2, 102)
    grid[1, 0].set_ylabel("quantization error, mean ‖u − c‖² / s²")
    grid[1, 0].set_yscale("log")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 * len(motions)), fontsize=9)
    return figure


def animate(courses: Mapping[str, Course], motion: str, setup: Setup, path: Path) -> None:
    """Write an animation of codes that chase latents: codes in use coloured, dead ones grey, latents light.

    Of more than two dimensions the first two are shown.

    Args:
        courses: Courses with their codes, by method.
        motion: The motion of the latents.
        setup: The setup of the courses.
        path: A GIF file.
    """
    points = sample_ring(SHOWN_POINTS, setup.dim, torch.Generator().manual_seed(EVALUATION_SEED))
    first = next(iter(courses.values()))
    latents = [MOTIONS[motion](points, progress_at(step, setup.steps)).numpy() for step in first.steps]
    low, high = _limits(latents)
    columns = min(4, len(courses))
    rows = -(-len(courses) // columns)
    figure = Figure(figsize=(3 * columns, 3.1 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    pictures = []
    for panel, (method, course) in zip(panels, courses.items(), strict=False):
        panel.set_xlim(low[0], high[0])
        panel.set_ylim(low[1], high[1])
        panel.set_aspect("equal")
        panel.set_xticks([])
        panel.set_yticks([])
        cloud = panel.scatter([], [], s=4, color="#b9d3ee")
        dead = panel.scatter([], [], s=7, color="0.55")
        used = panel.scatter([], [], s=7, color="#c0392b")
        pictures.append((panel, method, course, cloud, dead, used))
    for panel in panels[len(courses) :]:
        panel.set_axis_off()

    def draw(frame: int) -> Sequence[Artist]:
        for panel, method, course, cloud, dead, used in pictures:
            codes, mask = course.codes[frame][:, :2], course.used[frame]
            cloud.set_offsets(latents[frame][:, :2])
            dead.set_offsets(codes[~mask])
            used.set_offsets(codes[mask])
            panel.set_title(f"{method}\n{mask.mean():.0%} used", fontsize=9)
        figure.suptitle(f"{motion}, step {first.steps[frame]}", fontsize=10)
        return []

    FuncAnimation(figure, draw, frames=len(first.steps)).save(path, writer=PillowWriter(fps=FRAMES_PER_SECOND), dpi=70)


def _limits(latents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    every = np.concatenate(latents)[:, :2]
    margin = 0.1 * np.ptp(every, axis=0)
    return every.min(axis=0) - margin, every.max(axis=0) + margin
