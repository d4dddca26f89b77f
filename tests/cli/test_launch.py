"""How a run's processes are launched, and that each run has a folder of its own."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only

from nsvq.cli import main
from nsvq.cli.ranks import TIMEOUT, launch_plugins
from nsvq.cli.run_folder import create_run_folder, release_run_folder, reopen_run_folder

from .conftest import EXPERIMENTS, SMALL

FIT_SCRIPT = EXPERIMENTS / "slurm" / "fit.sh"
PROGRAM = Path(sys.executable).parent / "nsvq"
TRAINER = EXPERIMENTS / "trainer"
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _no_folder_stays_held():
    yield
    release_run_folder()


def resolved(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(EXPERIMENTS / "quickstart.yaml"), *words, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)["trainer"]


def test_a_preset_changes_only_what_it_names_and_later_options_win(capsys):
    plain = resolved(capsys)
    preset = resolved(capsys, f"--trainer={TRAINER / 'ddp.yaml'}", "--trainer.strategy.timeout=0:00:20")
    strategy = preset.pop("strategy")
    assert {name for name in preset if preset[name] != plain[name]} == set()
    assert preset["max_steps"] == 800
    assert strategy["class_path"] == "lightning.pytorch.strategies.DDPStrategy"
    assert strategy["init_args"]["find_unused_parameters"] is True
    assert strategy["init_args"]["timeout"] == "0:00:20"


def test_presets_stack(capsys):
    stacked = resolved(capsys, f"--trainer={TRAINER / 'gpu.yaml'}", f"--trainer={TRAINER / 'ddp.yaml'}")
    assert (stacked["accelerator"], stacked["precision"], stacked["devices"]) == ("gpu", "bf16-mixed", "auto")
    several = resolved(capsys, f"--trainer={TRAINER / 'multi_node.yaml'}", "--trainer.num_nodes=4")
    assert several["num_nodes"] == 4


@pytest.mark.parametrize("preset", ["ddp", "multi_node"])
def test_the_timeout_of_presets_is_that_of_every_strategy_by_name(preset):
    from lightning.pytorch.strategies import StrategyRegistry

    arguments = yaml.safe_load((TRAINER / f"{preset}.yaml").read_text())["strategy"]["init_args"]
    assert arguments["timeout"] == str(TIMEOUT)
    for name in ("ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"):
        strategy = StrategyRegistry.get(name)
        assert strategy._timeout == TIMEOUT
        assert strategy._ddp_kwargs.get("find_unused_parameters", False) == name.endswith("true")


def claim(barrier, results, root, name, go_on):
    barrier.wait()
    try:
        results.put(create_run_folder(root, "e", name, go_on).name)
    except ValueError as error:
        results.put(str(error))
    # Until all have tried.
    barrier.wait()


def claims(root, name, go_on=False, processes=8):
    """What so many processes get that ask for a folder in the same moment."""
    barrier, results = FORK.Barrier(processes), FORK.Queue()
    started = [FORK.Process(target=claim, args=(barrier, results, root, name, go_on)) for _ in range(processes)]
    for process in started:
        process.start()
    answers = [results.get(timeout=30) for _ in started]
    for process in started:
        process.join()
    return Counter(answers)


def test_runs_that_start_in_the_same_moment_get_folders_of_their_own(tmp_path):
    assert claims(tmp_path, None) == Counter({f"version_{number}": 1 for number in range(8)})


@pytest.mark.parametrize(("go_on", "exists"), [(False, False), (False, True), (True, True)])
def test_of_runs_with_one_name_that_start_in_the_same_moment_one_gets_the_folder(tmp_path, go_on, exists):
    if exists:
        (tmp_path / "e" / "a").mkdir(parents=True)
        if go_on:
            (tmp_path / "e" / "a" / "config.yaml").touch()
    answers = claims(tmp_path, "a", go_on)
    assert answers.pop("a") == 1
    assert sum(answers.values()) == 7
    assert all("e/a is in use by another process: choose another --version" in answer for answer in answers)


def test_a_run_that_is_going_on_is_refused_to_a_second_process(tmp_path, refusal, experiments):
    folder = tmp_path / "runs" / "quickstart" / "a"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    ready = FORK.Barrier(2)

    def go_on():
        reopen_run_folder(folder)
        # A loader's worker outlives a killed run by seconds.
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        ready.wait()
        time.sleep(60)

    process = FORK.Process(target=go_on)
    process.start()
    ready.wait()
    words = ["fit", "--config", str(experiments / "quickstart.yaml"), "--version=a", "--ckpt_path=last"]
    assert "runs/quickstart/a is in use by another process" in refusal(*words)
    process.kill()
    process.join()
    assert reopen_run_folder(folder) == folder


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_in_its_folder(quickstart, tmp_path, refusal):
    quickstart("--trainer.max_steps=3", "--version=a", "--trainer.log_every_n_steps=1")
    folder = tmp_path / "runs" / "quickstart" / "a"
    shutil.rmtree(folder / "checkpoints")
    quickstart("--trainer.max_steps=2", "--version=a", "--trainer.log_every_n_steps=1", "--ckpt_path=last")
    assert pd.read_csv(folder / "metrics.csv").dropna(subset="train/loss")["step"].tolist() == [0, 1]
    assert [path.name for path in folder.parent.iterdir()] == ["a"]


def test_a_named_run_without_a_checkpoint_is_not_validated(refusal, experiments):
    words = ["validate", "--config", str(experiments / "quickstart.yaml"), "--version=none", "--ckpt_path=last"]
    assert "runs/quickstart/none/checkpoints/last.ckpt does not exist" in refusal(*words)


def test_other_ranks_and_nodes_create_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_RANK", "1")
    create_run_folder(tmp_path / "runs", "e", None)
    monkeypatch.delenv("NODE_RANK")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    create_run_folder(tmp_path / "runs", "e", None)
    assert not (tmp_path / "runs").exists()


def test_processes_that_the_trainer_does_not_know_of_are_refused(refusal, experiments, monkeypatch, tmp_path):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    line = refusal("fit", "--config", str(experiments / "quickstart.yaml"), "--trainer.accelerator=cpu")
    assert line == (
        "torchrun started 2 processes, but --trainer.devices and --trainer.num_nodes make 1: their product must be 2"
    )
    assert not any((tmp_path / "runs" / "quickstart").iterdir())


def test_lightning_requeues_no_slurm_job(monkeypatch):
    assert launch_plugins(None) is None
    for name, value in {"SLURM_NTASKS": 1, "SLURM_JOB_NAME": "x", "SLURM_PROCID": 0}.items():
        monkeypatch.setenv(name, str(value))
    (environment,) = launch_plugins(None)
    assert environment.auto_requeue is False


def command(path, text):
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path):
    """Run the batch script with commands of ours in place of SLURM's: `cluster(srun, *words)` returns its result."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shutil.copytree(EXPERIMENTS, tmp_path / "experiments", ignore=shutil.ignore_patterns("*.png", "*.csv"))
    job = {"SLURM_JOB_NUM_NODES": 1, "SLURM_NNODES": 1, "SLURM_NTASKS_PER_NODE": 2, "SLURM_NTASKS": 2}
    job |= {"SLURM_JOB_NAME": "faces", "SLURM_JOB_ID": 77, "SLURM_NODELIST": "localhost", "OMP_NUM_THREADS": 1}
    environment = os.environ | {name: str(value) for name, value in job.items()}
    environment["PATH"] = f"{folder}:{PROGRAM.parent}:{environment['PATH']}"
    command(folder / "scontrol", f'echo "$@" >> {tmp_path}/scontrol.txt')

    def run(srun, *words):
        command(folder / "srun", srun)
        return subprocess.Popen(["bash", FIT_SCRIPT, *words], env=environment, cwd=tmp_path, start_new_session=True)

    return run


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (2, False), (137, False)])
def test_the_slurm_script_starts_the_run_and_requeues_the_job_that_asks_for_it(cluster, tmp_path, code, requeued):
    process = cluster(f'printf "%s\\n" "$@" > srun.txt; exit {code}', "--config", "x.yaml", "--data.root", "my faces")
    assert process.wait(timeout=30) == code
    words = (tmp_path / "srun.txt").read_text().splitlines()
    start = words.index("nsvq")
    assert all(word.startswith("--") for word in words[:start])
    options = words[start + 2 :]
    assert words[start + 1] == "fit"
    assert options[:10] == [
        "--trainer",
        "experiments/trainer/multi_node.yaml",
        "--trainer.num_nodes",
        "1",
        "--trainer.devices",
        "2",
        "--version",
        "faces-77",
        "--ckpt_path",
        "last",
    ]
    assert options[10:] == ["--config", "x.yaml", "--data.root", "my faces"]
    asked = tmp_path / "scontrol.txt"
    assert (asked.read_text().split() if asked.exists() else []) == (["requeue", "77"] if requeued else [])


def test_the_slurm_script_waits_for_its_processes_when_it_is_signalled(cluster, tmp_path):
    process = cluster("touch running; sleep 0.5; exit 75")
    while not (tmp_path / "running").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 77\n"


def test_the_slurm_script_is_sound():
    subprocess.run(["bash", "-n", FIT_SCRIPT], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", FIT_SCRIPT], check=True)


# Starts as many tasks as the job has, as srun does, and returns the highest exit code.
SRUN = """
while [[ $1 == --* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 SLURM_STEP_NUM_TASKS=$SLURM_NTASKS "$@" &
  echo $! >> tasks.txt
done
highest=0
for task in $(jobs -p); do
  wait "$task"; code=$?
  ((code > highest)) && highest=$code
done
exit $highest
"""
ON_CPU = ["--trainer.accelerator=cpu", "--trainer.precision=32-true"]


@pytest.mark.slow
def test_a_slurm_job_that_runs_out_of_time_goes_on_in_its_folder_when_it_is_queued_again(cluster, tmp_path):
    words = ["--config", "experiments/quickstart.yaml", *SMALL, *ON_CPU, "--trainer.log_every_n_steps=1"]
    folder = tmp_path / "runs" / "quickstart" / "faces-77"
    job = cluster(SRUN, *words, "--trainer.max_steps=100000", "--checkpoint.every_n_train_steps=4")
    while not (folder / "checkpoints" / "last.ckpt").exists() and job.poll() is None:
        time.sleep(0.1)
    for task in (tmp_path / "tasks.txt").read_text().split():
        os.kill(int(task), signal.SIGUSR1)
    assert job.wait(timeout=60) == 75
    # Lightning's own handler would have asked too.
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 77\n"
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    reached = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert cluster(SRUN, *words, f"--trainer.max_steps={reached + 3}").wait(timeout=120) == 0
    assert [path.name for path in folder.parent.iterdir()] == ["faces-77"]
    steps = pd.read_csv(folder / "metrics.csv").dropna(subset="train/loss")["step"].tolist()
    assert steps == list(range(reached + 3))
    assert len(json.loads((folder / "environment.json").read_text())["earlier_commands"]) == 1


@pytest.mark.slow
def test_torchrun_trains_and_predicts_in_one_folder_each(experiments, tmp_path):
    torchrun = [PROGRAM.with_name("torchrun"), "--standalone", "--nproc_per_node=2", PROGRAM]
    base = ["--config", experiments / "quickstart.yaml", f"--trainer={TRAINER / 'ddp.yaml'}", *SMALL]
    base += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.log_every_n_steps=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def launch(subcommand, *words):
        subprocess.run([*torchrun, subcommand, *base, *words], check=True, timeout=300, env=environment)

    wandb = ["--config", experiments / "loggers" / "wandb.yaml"]
    launch("fit", *wandb, "--trainer.max_steps=2")
    runs = tmp_path / "runs" / "quickstart"
    folder = runs / "version_0"
    launch("predict", "--ckpt_path", folder / "checkpoints" / "last.ckpt", "--trainer.limit_predict_batches=2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    assert sorted(path.name for path in runs.iterdir()) == ["version_0", "version_1"]
    metrics = pd.read_csv(folder / "metrics.csv").dropna(subset="train/loss")
    assert metrics["step"].tolist() == [0, 1]
    run_id = (folder / "wandb_run_id").read_text()
    assert {path.name.rsplit("-", 1)[-1] for path in folder.glob("wandb/offline-run-*")} == {run_id}
    predictions = runs / "version_1" / "predictions"
    numbers = [np.load(predictions / f"indices_rank{rank}.npz")["numbers"].tolist() for rank in (0, 1)]
    assert sorted(numbers[0] + numbers[1]) == list(range(8))
    assert len(list(predictions.glob("*.png"))) == 8
