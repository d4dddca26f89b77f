"""The picture of codes and latents over time."""

import itertools

import numpy as np
import pytest

from nsvq.analysis import Run, codes_figure
from nsvq.analysis.snapshots import DEAD, principal_directions

DIRECTIONS = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 2)))[0]


@pytest.fixture
def watched(synthetic_run):
    """A run whose latents lie in a plane and move by one unit along its first direction between snapshots."""
    random = np.random.default_rng(0)
    plane = random.normal(size=(50, 2)) * [3, 1]

    def write(name, steps=(0, 10, 20), codes=4):
        folder = synthetic_run(name)
        for number, step in enumerate(steps):
            latents = (plane + np.array([number, 0])) @ DIRECTIONS.T
            uses = np.array([0, 1, 30] + [2] * (codes - 3))
            content = {"latents": latents.astype(np.float32), "codes": latents[:codes].astype(np.float32), "uses": uses}
            np.savez(folder / "curves" / f"snapshot_{step:08d}.npz", **content)
        return Run(folder)

    return write


def points(panel):
    return [collection.get_offsets().data for collection in panel.collections]


def test_distances_in_a_plane_are_kept_and_movement_is_movement(watched):
    figure = codes_figure([watched("a")], ["a"])
    panels = figure.axes[:3]
    latents = [points(panel)[0] for panel in panels]
    original = np.load(watched("b").snapshots[0])["latents"]
    between = np.linalg.norm(original[:, None] - original[None], axis=2)
    assert np.linalg.norm(latents[0][:, None] - latents[0][None], axis=2) == pytest.approx(between, abs=1e-5)
    for before, after in itertools.pairwise(latents):
        assert np.linalg.norm(after - before, axis=1) == pytest.approx(np.ones(50), abs=1e-5)
    assert len({(panel.get_xlim(), panel.get_ylim()) for panel in panels}) == 1


def test_dead_codes_are_grey_and_the_others_coloured_by_use(watched):
    panel = codes_figure([watched("a")], ["a"]).axes[0]
    _, dead, used = panel.collections
    assert len(dead.get_offsets()) == 1
    assert dead.get_edgecolor()[0, :3] == pytest.approx([float(DEAD)] * 3)
    assert used.get_array().tolist() == [1, 2, 30]
    assert panel.get_title() == "step 0: 3 of 4 codes"


def test_a_row_a_run_and_columns_evenly_spaced(watched):
    figure = codes_figure([watched("a", range(0, 90, 10)), watched("b", [0])], ["first", "second"], columns=3)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [title.split(":")[0] for title in titles] == ["step 0", "step 40", "step 80", "step 0"]
    assert figure.axes[0].get_ylabel().startswith("first\n100% of the variance")


def test_a_run_without_snapshots_is_named_with_what_makes_them(synthetic_run):
    with pytest.raises(ValueError, match=r"runs/a holds no snapshots: train it with --trainer.callbacks\+="):
        codes_figure([Run(synthetic_run("a"))], ["a"])


@pytest.mark.parametrize("width", [1, 2, 3])
def test_directions_are_the_principal_ones(width):
    latents = np.random.default_rng(0).normal(size=(200, width)) * [4, 2, 1][:width] + 7
    mean, basis, shares = principal_directions(latents)
    assert mean == pytest.approx(latents.mean(axis=0))
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(latents.T, bias=True)))
    for place in range(min(2, width)):
        assert abs(basis[:, place] @ vectors[:, -1 - place]) == pytest.approx(1)
        assert shares[place] == pytest.approx(values[-1 - place] / values.sum())
    if width == 1:
        assert not basis[:, 1].any()
