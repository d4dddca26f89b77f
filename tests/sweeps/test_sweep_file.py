from pathlib import Path

import pytest
import yaml

from nsvq.sweeps import load_sweep, sweep_settings

SOUND = {"program": "nsvq", "method": "grid", "parameters": {"a.b": {"values": [1, 2]}, "seed": {"value": 3}}}
SWEEPS = sorted((Path(__file__).parents[2] / "experiments" / "sweeps").glob("*.yaml"))


@pytest.fixture
def load(tmp_path):
    def read(**changes):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({**SOUND, **changes}))
        return load_sweep(path)

    return read


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_of_the_project_has_runs_of_different_settings(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"nsvq sweep run experiments/sweeps/{path.name}" in line for line in header)
    runs = sweep_settings(load_sweep(path))
    assert len(runs) == len({tuple(run.items()) for run in runs}) > 1


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"methode": "grid"}, "unknown key methode (known: command, description"),
        ({"method": "bayes"}, "method bayes needs W&B's server"),
        ({"method": "gird"}, "method must be one of grid, random, got gird"),
        ({"command": "nsvq fit"}, "command must be a list of words"),
        ({"run_cap": 0}, "run_cap must be a number of at least 1, got 0"),
        ({"parameters": {}}, "parameters must hold at least one parameter"),
        ({"parameters": {"a": 3}}, "parameter a: must hold value, values, or min and max, got 3"),
        ({"parameters": {"a": {"values": []}}}, "parameter a: values must be a list, got []"),
        ({"parameters": {"a": {"value": 1, "x": 2}}}, "parameter a: distribution constant has no x"),
        ({"parameters": {"a": {"min": 0.0}}}, "parameter a: distribution uniform lacks max"),
        ({"parameters": {"a": {"min": 0.0, "max": 1.0}}}, "parameter a: a grid needs value or values"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}}}, "parameter a: nested parameters"),
        ({"parameters": {"a": {"distribution": "beta"}}}, "distribution must be one of constant, categorical"),
        ({"parameters": {"a": {"distribution": ["x"]}}}, "distribution must be one of constant, categorical"),
        ({"parameters": {1: {"value": 2}, "b": {"value": 2}}}, "parameter 1: its name must be a word"),
        ({"parameters": {None: {"value": 2}}}, "parameter None: its name must be a word"),
        (
            {"method": "random", "parameters": {"a": {"distribution": "int_uniform", "min": 0.5, "max": 2}}},
            "parameter a: min must be an integer, got 0.5",
        ),
        (
            {"method": "random", "parameters": {"a": {"min": 0.0, "max": float("inf")}}},
            "parameter a: max must be a finite number, got inf",
        ),
        (
            {"method": "random", "parameters": {"a": {"values": [1, 2], "probabilities": [float("inf"), 1]}}},
            "parameter a: probabilities must be one number for each",
        ),
        ({"method": "random", "parameters": {"a": {"min": 2, "max": 1}}}, "parameter a: min 2 is above max 1"),
        (
            {"parameters": {"a": {"values": [1, 2], "probabilities": [1]}}},
            "parameter a: probabilities must be one number for each",
        ),
        (
            {"method": "random", "parameters": {"a": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
            "parameter a: min must be above 0, got 0",
        ),
    ],
)
def test_a_fault_is_named(load, changes, part):
    with pytest.raises(ValueError, match="sweep file ") as refusal:
        load(**changes)
    assert part in str(refusal.value)


def test_several_faults_are_named_together(load):
    with pytest.raises(ValueError, match=r"parameter a: .*; parameter b: "):
        load(parameters={"a": 1, "b": 2, "c": {"value": 3}})


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_sweep(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="no YAML"):
        load_sweep(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("- a")
    with pytest.raises(ValueError, match="must hold keys"):
        load_sweep(tmp_path / "a.yaml")


def test_a_grid_is_every_combination_and_a_cap_takes_the_first(load):
    grid = {"b": {"values": [1, 2]}, "a": {"values": ["x", "y", "z"]}, "c": {"value": 0}}
    runs = sweep_settings(load(parameters=grid))
    assert len(runs) == 6
    assert runs[:2] == [{"a": "x", "b": 1, "c": 0}, {"a": "x", "b": 2, "c": 0}]
    assert [list(run) for run in runs] == [["a", "b", "c"]] * 6
    assert sweep_settings(load(parameters=grid, run_cap=2)) == runs[:2]
    assert sweep_settings(load(parameters=grid, run_cap=2), count=3) == runs[:3]


RANDOM = {
    "integer": {"min": 1, "max": 3},
    "log": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
    "step": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25},
    "bell": {"distribution": "normal", "mu": 5, "sigma": 2},
    "word": {"values": ["x", "y"], "probabilities": [0.9, 0.1]},
    "flat": {"min": 0.5, "max": 1.5},
}


def test_a_random_search_is_seeded_and_a_longer_one_begins_with_the_shorter(load):
    sweep = load(method="random", parameters=RANDOM)
    runs = sweep_settings(sweep, count=400, seed=1)
    assert sweep_settings(sweep, count=10, seed=1) == runs[:10]
    assert sweep_settings(sweep, count=10, seed=2) != runs[:10]
    assert {run["integer"] for run in runs} == {1, 2, 3}
    assert {run["step"] for run in runs} == {0, 0.25, 0.5, 0.75, 1}
    assert all(0.5 <= run["flat"] <= 1.5 for run in runs)
    # The logarithm is uniform: half of the values lie below its middle.
    assert 0.4 < sum(run["log"] < 1e-2 for run in runs) / 400 < 0.6
    assert 4.5 < sum(run["bell"] for run in runs) / 400 < 5.5
    assert 0.8 < sum(run["word"] == "x" for run in runs) / 400 < 1.0


def test_a_random_search_needs_a_number_of_runs(load):
    with pytest.raises(ValueError, match="give run_cap in the file, or --count"):
        sweep_settings(load(method="random", parameters=RANDOM))
