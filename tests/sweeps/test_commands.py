"""Command lines are those of a W&B agent."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb.wandb_agent
import yaml
from wandb.sdk.launch.sweeps import utils

from nsvq.sweeps import load_sweep, sweep_runs, sweep_settings

SWEEPS = sorted((Path(__file__).parents[2] / "experiments" / "sweeps").glob("*.yaml"))
VALUES = {"a.b": [1, 2.5e-7, True, False], "path": ["x/y.yaml", "two words", "[1, 2]"], "list": [[1, 2], {"k": "v"}]}


def agents_command(sweep, setting, monkeypatch, folder):
    """Let W&B's own agent start a run and return the command line that it hands to the system."""
    started = []
    monkeypatch.setattr(
        wandb.wandb_agent, "AgentProcess", lambda command, **_: started.append(command) or SimpleNamespace()
    )
    monkeypatch.setenv("WANDB_DIR", str(folder))
    agent = wandb.wandb_agent.Agent.__new__(wandb.wandb_agent.Agent)
    vars(agent).update(
        _in_jupyter=False, _function=None, _forward_signals=False, _run_processes={}, _sweep_command=list(sweep.command)
    )
    # The agent leaves the run's id in the environment.
    monkeypatch.setenv("WANDB_RUN_ID", "x")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "x")
    args = {name: {"value": value} for name, value in setting.items()}
    agent._command_run({"run_id": "r", "program": sweep.program, "args": args})
    return started[0]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_each_command_of_the_project_is_that_of_an_agent(path, monkeypatch, tmp_path):
    sweep = load_sweep(path)
    runs = sweep_runs(sweep, sweep_settings(sweep))
    assert len({run.name for run in runs}) == len(runs)
    for run in (runs[0], runs[-1]):
        assert list(run.command) == agents_command(sweep, run.setting, monkeypatch, tmp_path)


@pytest.mark.parametrize("macro", ["args", "args_no_hyphens", "args_no_boolean_flags", "args_no_equals", "args_json"])
def test_every_macro_is_filled_as_by_an_agent(macro, monkeypatch, tmp_path):
    monkeypatch.setenv("NSVQ_WHERE", "there")
    parameters = {name: {"values": values} for name, values in VALUES.items()}
    command = ["${env}", "${interpreter}", "${program}", "--at=${envvar:NSVQ_WHERE}/${envvar:NSVQ_NOWHERE}"]
    content = {"method": "grid", "program": "p.py", "parameters": parameters, "command": [*command, f"${{{macro}}}"]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    sweep = load_sweep(tmp_path / "sweep.yaml")
    for run in sweep_runs(sweep, sweep_settings(sweep)):
        assert list(run.command) == agents_command(sweep, run.setting, monkeypatch, tmp_path)


def test_without_a_command_it_is_the_agents_default(tmp_path):
    (tmp_path / "s.yaml").write_text("{method: grid, program: p.py, parameters: {a: {values: [1]}}}")
    assert list(load_sweep(tmp_path / "s.yaml").command) == utils.DEFAULT_SWEEP_COMMAND


def test_an_unknown_macro_is_named(tmp_path):
    (tmp_path / "s.yaml").write_text("{method: grid, command: ['${argz}'], parameters: {a: {values: [1]}}}")
    sweep = load_sweep(tmp_path / "s.yaml")
    with pytest.raises(ValueError, match=r"unknown macro \$\{argz\} in command; known: env"):
        sweep_runs(sweep, sweep_settings(sweep))


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"model.quantizer": ["q/nsvq.yaml", "q/ema.yaml"], "k": [1]}, ["quantizer=nsvq", "quantizer=ema"]),
        ({"a.lr": [1e-3], "b.lr": [0.1, 0.2]}, ["lr=0.1", "lr=0.2"]),
        ({"a.lr": [1, 2], "b.lr": [3, 4]}, ["a.lr=1,b.lr=3", "a.lr=1,b.lr=4", "a.lr=2,b.lr=3", "a.lr=2,b.lr=4"]),
        ({"p": ["a/x.yaml", "b/x.yaml"]}, ["p=x", "p=x,2"]),
        ({"p": ["{k: v}", "[]"]}, ["p=_k_v_", "p=_"]),
        ({"p": [1]}, ["run"]),
    ],
)
def test_names_tell_runs_apart(tmp_path, parameters, names):
    content = {"method": "grid", "parameters": {name: {"values": values} for name, values in parameters.items()}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    sweep = load_sweep(tmp_path / "s.yaml")
    assert [run.name for run in sweep_runs(sweep, sweep_settings(sweep))] == names


def test_a_run_has_the_same_name_whatever_the_number_of_runs(tmp_path):
    (tmp_path / "s.yaml").write_text("{method: grid, parameters: {a.b: {values: [1, 2]}, c: {values: [3, 4]}}}")
    (tmp_path / "r.yaml").write_text("{method: random, parameters: {a: {values: [1, 2]}, b: {min: 0.0, max: 1.0}}}")
    for name, count in (("s", 4), ("r", 12)):
        sweep = load_sweep(tmp_path / f"{name}.yaml")
        names = [run.name for run in sweep_runs(sweep, sweep_settings(sweep, count))]
        for fewer in (1, 3):
            assert [run.name for run in sweep_runs(sweep, sweep_settings(sweep, fewer))] == names[:fewer]
