"""The drift laboratory: its latents move as they say, and its measures are right."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.cluster import KMeans

from nsvq.cli import main
from nsvq.toy.figures import animate
from nsvq.toy.laboratory import EVALUATION_SEED, Setup, chase, kmeans_error
from nsvq.toy.methods import METHODS
from nsvq.toy.motions import MOTIONS, progress_at, sample_ring
from nsvq.toy.program import run_courses, summary

SMALL = Setup(codes=16, steps=60, batch=64, points=256, measure_every=20)


@pytest.mark.parametrize("dim", [2, 5])
def test_latents_move_as_they_are_said_to(dim):
    points = sample_ring(4000, dim, torch.Generator().manual_seed(0))
    assert points.norm(dim=1).mean() == pytest.approx(1, abs=0.01)
    start, end = ({name: move(points, progress) for name, move in MOTIONS.items()} for progress in (0.0, 1.0))
    assert all(start[name].equal(points) for name in MOTIONS if name != "rotate")
    assert end["stationary"].equal(points)
    assert (end["translate"] - points).norm(dim=1).unique().numel() < 50
    torch.testing.assert_close(end["shrink"], 0.1 * points)
    torch.testing.assert_close(end["expand"], 5 * points)
    turned = start["rotate"].clone()
    turned[:, :2] *= -1
    torch.testing.assert_close(end["rotate"], turned, atol=1e-5, rtol=0)
    right = points[:, 0] > 0
    assert (end["split"][right, 0] > points[right, 0]).all()
    assert (end["split"][~right, 0] < points[~right, 0]).all()


def test_the_motion_has_a_beginning_and_an_end():
    assert [progress_at(step, 100) for step in (0, 10, 40, 70, 100)] == pytest.approx([0, 0, 0.5, 1, 1])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_one_seed_gives_one_course(method):
    course, again = (chase(method, "translate", SMALL, seed=3) for _ in range(2))
    assert course.steps == [0, 20, 40, 60]
    assert (course.utilization, course.error) == (again.utilization, again.error)
    assert all(0 < value <= 1 for value in course.utilization)
    assert chase(method, "translate", SMALL, seed=4).error != course.error


def test_measures_are_those_of_the_codes_that_are_kept():
    course = chase("VanillaVQ", "shrink", SMALL, keep_codes=True)
    points = sample_ring(SMALL.points, 2, torch.Generator().manual_seed(EVALUATION_SEED)).double().numpy()
    for step, codes, used, utilization, error in zip(
        course.steps, course.codes, course.used, course.utilization, course.error, strict=True
    ):
        latents = points * 0.1 ** progress_at(step, SMALL.steps)
        distances = np.square(latents[:, None] - codes[None]).sum(axis=2)
        nearest = distances.argmin(axis=1)
        assert used.tolist() == [number in nearest for number in range(16)]
        assert utilization == used.mean()
        spread = np.square(latents - latents.mean(axis=0)).sum(axis=1).mean()
        assert error == pytest.approx(distances.min(axis=1).mean() / spread, rel=1e-4)


def test_the_reference_is_scikit_learns_and_no_codebook_beats_it_by_much():
    points = sample_ring(256, 2, torch.Generator().manual_seed(EVALUATION_SEED)).double().numpy()
    fitted = KMeans(16, n_init=10, random_state=0).fit(5 * points)
    expected = fitted.inertia_ / np.square(5 * points - 5 * points.mean(axis=0)).sum()
    assert kmeans_error("expand", SMALL, 60) == pytest.approx(expected)
    tables = list(run_courses(["stationary"], ["VanillaVQ", "EMAVQ"], [0, 1], SMALL))
    table = summary(pd.concat(tables), SMALL).set_index("method")
    assert (table["over_kmeans"] > 0.95).all()
    assert (table["seeds"] == 2).all()
    ends = [frame.iloc[-1]["error"] for frame in tables[:2]]
    assert table.loc["VanillaVQ", "over_kmeans"] == pytest.approx(np.mean(ends) / kmeans_error("stationary", SMALL, 60))


def test_replacement_revives_what_drift_has_killed():
    setup = Setup(codes=64, steps=600, batch=128, points=1024, measure_every=300)
    plain, revived = (chase(f"EMAVQ{more}", "translate", setup) for more in ("", " + replacement"))
    assert plain.utilization[-1] < 0.3
    assert revived.utilization[-1] > 0.9


def test_the_last_step_is_measured_whatever_the_interval():
    course = chase("VanillaVQ", "shrink", replace(SMALL, steps=50))
    assert course.steps == [0, 20, 40, 50]


def test_an_animation_has_a_frame_for_each_measurement(tmp_path):
    courses = {name: chase(name, "split", SMALL, keep_codes=True) for name in ("VanillaVQ", "TransVQ")}
    animate(courses, "split", SMALL, tmp_path / "split.gif")
    with Image.open(tmp_path / "split.gif") as picture:
        assert picture.n_frames == 4


def test_the_command_writes_tables_a_figure_and_animations(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--motions", "stationary", "shrink", "--methods", "VanillaVQ", "TransVQ", "--codes=16", "--steps=40"]
    assert main(["toy", *words, "--seeds=2", "--animate", "shrink", "-o", "out"]) == 0
    assert "over_kmeans" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "courses.csv",
        "courses.png",
        "shrink.gif",
        "summary.csv",
    ]
    assert len(pd.read_csv("out/summary.csv")) == 4
    assert sorted(pd.read_csv("out/courses.csv")["seed"].unique()) == [0, 1]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--motions", "fall"], "unknown motion 'fall'; known: stationary, translate"),
        (["--methods", "NSVQ"], "unknown method 'NSVQ'; known: VanillaVQ"),
        (["--animate", "fall"], "unknown motion 'fall'"),
        (["--dim=1"], "--dim must be at least 2, got 1"),
        (["--codes=5000"], "--codes must be at most 4096"),
    ],
)
def test_what_there_is_not_is_refused(capsys, words, part):
    with pytest.raises(SystemExit) as stop:
        main(["toy", *words])
    assert stop.value.code == 2
    assert part in capsys.readouterr().err
