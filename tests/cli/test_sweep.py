"""`nsvq sweep` on real runs."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from nsvq.cli import main
from nsvq.cli.parsed import parse_run

from . import wandb_file
from .conftest import EXPERIMENTS, SMALL

PROGRAM = Path(sys.executable).parent / "nsvq"
SWEEPS = sorted((EXPERIMENTS / "sweeps").glob("*.yaml"))
PARAMETERS = {
    "model.quantizer": {"values": [str(EXPERIMENTS / "quantizers" / f"{name}.yaml") for name in ("vanilla", "nsvq")]},
    "model.quantizer.codebook_size": {"value": 16},
}


@pytest.fixture
def sweep_file(tmp_path):
    """Write a sweep of small runs; returns its path."""

    def write(parameters=PARAMETERS, *words):
        configs = [EXPERIMENTS / "quickstart.yaml", EXPERIMENTS / "loggers" / "wandb.yaml"]
        command = ["${env}", "lightning", "fit", *(f"--config={path}" for path in configs), *SMALL]
        command += ["--experiment=s", "--trainer.max_steps=4", "--trainer.log_every_n_steps=1", *words, "${args}"]
        content = {"program": "nsvq", "method": "grid", "parameters": parameters, "command": command}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "sweep.yaml"

    return write


def run(*words):
    """Run `nsvq sweep run WORDS` as users do."""
    return subprocess.run(
        [PROGRAM, "sweep", "run", *map(str, words)], capture_output=True, text=True, check=False, timeout=300
    )


def test_a_plan_is_the_commands(sweep_file, capsys):
    assert main(["sweep", "plan", str(sweep_file())]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines] == [["/usr/bin/env", "lightning", "fit"]] * 2
    assert [line[-2] for line in lines] == [f"--model.quantizer={v}" for v in PARAMETERS["model.quantizer"]["values"]]


def test_every_bad_parameter_is_named_once(sweep_file, refusal):
    parameters = {**PARAMETERS, "model.quantizer.codebooksize": {"values": [1, 2]}, "trainer.max_step": {"value": 1}}
    parameters["model.quantizer"] = {"values": ["VanillaVQ", "none.yaml", "EMAVQ"]}
    line = refusal("sweep", "plan", str(sweep_file(parameters)))
    assert "--model.quantizer.codebooksize=1, --model.quantizer.codebooksize=2: unknown option 'codebooksize'" in line
    assert "--trainer.max_step=1: unknown option 'trainer.max_step'; did you mean trainer.max_steps?" in line
    assert "--model.quantizer=none.yaml: quantizer: file none.yaml does not exist" in line
    assert line.count("unknown option") == 2


@pytest.mark.parametrize("macro", ["${args}", "${args_no_equals}", "${args_no_boolean_flags}"])
def test_every_bad_parameter_is_named_wherever_the_parameters_stand(tmp_path, refusal, macro):
    parameters = {
        "model.quantizer.sizes": {"values": [1, 2]},
        "trainer.max_step": {"value": 1},
        "data.seed": {"value": 1},
    }
    command = ["nsvq", "fit", f"--config={EXPERIMENTS / 'quickstart.yaml'}", macro, "--experiment=s"]
    content = {"method": "grid", "command": command, "parameters": parameters}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    line = refusal("sweep", "plan", "s.yaml")
    for flag in ("--model.quantizer.sizes=1", "--model.quantizer.sizes=2", "--trainer.max_step=1"):
        assert flag in line
    assert "data.seed" not in line


def test_a_command_that_is_refused_for_its_order_is_not_lost(tmp_path, refusal):
    parameters = {"model.quantizer.codebook_size": {"values": [16, 32]}}
    command = ["nsvq", "fit", "${args}", f"--config={EXPERIMENTS / 'quickstart.yaml'}"]
    content = {"method": "grid", "command": command, "parameters": parameters}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    assert "the program would refuse --model.quantizer.codebook_size=16" in refusal("sweep", "plan", "s.yaml")


def test_options_of_the_command_are_checked(tmp_path, sweep_file, refusal, capsys):
    assert "must be at least 1, got 0" in refusal("sweep", "run", str(sweep_file()), "-n", "0")
    content = yaml.safe_load(sweep_file().read_text()) | {"name": "a/b c"}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    assert main(["sweep", "slurm", "s.yaml"]) == 0
    assert (tmp_path / "a_b_c.sh").is_file()


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (["python", "train.py"], "must call nsvq fit or lightning fit, got: python train.py"),
        (["nsvq", "validate", "--config", str(EXPERIMENTS / "quickstart.yaml")], "expected the subcommand fit, got"),
        (["nsvq", "fit", "--config", "none.yaml"], "the command without parameters: "),
    ],
)
def test_a_command_that_is_no_training_is_refused(tmp_path, refusal, command, part):
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump({"method": "grid", "command": command, "parameters": {"seed_everything": {"values": [1, 2]}}})
    )
    assert part in refusal("sweep", "plan", "s.yaml")
    assert "sweep file none.yaml does not exist" in refusal("sweep", "run", "none.yaml")


@pytest.mark.parametrize("path", [*SWEEPS], ids=lambda path: path.stem)
def test_the_first_and_the_last_run_of_every_sweep_of_the_project_are_accepted(path, monkeypatch, capsys, tmp_path):
    # Paths in a sweep start from the repository.
    monkeypatch.chdir(EXPERIMENTS.parent)
    content = yaml.safe_load(path.read_text())
    for options in content["parameters"].values():
        if "values" in options:
            options["values"] = [options["values"][0], options["values"][-1]]
    first_and_last = [
        {
            name: {"value": (options.get("values") or [options["value"]])[place]}
            for name, options in content["parameters"].items()
        }
        for place in (0, -1)
    ]
    for parameters in first_and_last:
        (tmp_path / "one.yaml").write_text(yaml.safe_dump({**content, "parameters": parameters}))
        assert main(["sweep", "plan", str(tmp_path / "one.yaml")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_parsing_builds_nothing(tmp_path):
    words = ["fit", "--config", str(EXPERIMENTS / "quickstart.yaml"), "--experiment=e", "--trainer.max_steps=7"]
    parsed = parse_run(words)
    assert parsed.config["trainer"]["max_steps"] == 7
    assert parsed.experiment_folder == Path("runs/e")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_runs_skips_and_goes_on(sweep_file, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    result = run(sweep_file(), "-n", 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "2 finished"
    runs = tmp_path / "runs" / "s"
    assert sorted(path.name for path in runs.iterdir()) == ["logs", "quantizer=nsvq", "quantizer=vanilla"]
    times = {path: path.stat().st_mtime_ns for path in runs.rglob("last.ckpt")}
    assert len(times) == 2
    # What W&B has.
    (path,) = (runs / "quantizer=nsvq").rglob("*.wandb")
    wandb = wandb_file.read(path)
    assert (wandb.name, wandb.group, wandb.project) == ("quantizer=nsvq", "s", "nsvq")
    assert wandb.tags == ["NSVQ", "VQVAE"]
    assert wandb.config["model"]["init_args"]["quantizer"]["init_args"]["codebook_size"] == 16
    losses = [row["train/loss"] for row in wandb.history if "train/loss" in row]
    assert len(losses) == 4
    logged = {name for row in wandb.history for name in row}
    assert {"val/psnr", "val/codebook_utilization", "val/quantization_error", "trainer/global_step"} <= logged

    longer = yaml.safe_load(sweep_file().read_text())
    longer["command"][longer["command"].index("--trainer.max_steps=4")] = "--trainer.max_steps=6"
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(longer))
    (runs / "quantizer=vanilla" / "environment.json").unlink()
    result = run(sweep_file())
    assert result.stdout.splitlines()[-1] == "1 finished, 1 finished before", result.stderr
    assert runs.joinpath("quantizer=nsvq/checkpoints/last.ckpt").stat().st_mtime_ns in times.values()
    result = run(tmp_path / "longer.yaml", "-n", 2)
    assert result.stdout.splitlines()[-1] == "2 finished", result.stderr
    steps = [torch.load(path, weights_only=True)["global_step"] for path in runs.rglob("last.ckpt")]
    assert steps == [6, 6]

    # Other options are no reason to overwrite what is there, nor to stop the others.
    changed = {**PARAMETERS, "model.quantizer.commitment_weight": {"value": 0.5}}
    changed["seed_everything"] = {"value": 0}
    (runs / "quantizer=nsvq").rename(runs / "kept")
    result = run(sweep_file(changed))
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "1 finished, 1 failed"
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: quantizer=vanilla: runs/s/quantizer=vanilla holds a run with other options: ")
    assert "model.quantizer.commitment_weight 0.25 → 0.5" in line


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_goes_on(sweep_file, tmp_path, number):
    path = sweep_file(PARAMETERS, "--trainer.max_steps=100000", "--checkpoint.every_n_train_steps=2")
    process = subprocess.Popen(
        [PROGRAM, "sweep", "run", path, "-n", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    runs, deadline = tmp_path / "runs" / "s", time.monotonic() + 120
    while len(list(runs.rglob("last.ckpt"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == os.EX_TEMPFAIL
    assert output.splitlines()[-1] == "2 interrupted"
    assert sorted(line for line in errors.splitlines() if line.startswith("interrupted")) == [
        "interrupted: quantizer=nsvq",
        "interrupted: quantizer=vanilla",
    ]
    reached = [torch.load(last, weights_only=True)["global_step"] for last in runs.rglob("last.ckpt")]
    result = run(sweep_file(PARAMETERS, f"--trainer.max_steps={max(reached) + 2}"), "-n", 2)
    assert result.stdout.splitlines()[-1] == "2 finished", result.stderr
    steps = [torch.load(last, weights_only=True)["global_step"] for last in runs.rglob("last.ckpt")]
    assert steps == [max(reached) + 2] * 2


def test_a_sweep_becomes_a_job_array(sweep_file, tmp_path, capsys):
    assert main(["sweep", "slurm", str(sweep_file()), "-o", "array.sh"]) == 0
    assert "wrote array.sh: sbatch array.sh runs 2 tasks" in capsys.readouterr().out
    subprocess.run(["bash", "-n", "array.sh"], check=True)
    text = (tmp_path / "array.sh").read_text()
    assert "--version quantizer=nsvq --ckpt_path last" in text.replace("'\"'\"'", "")
