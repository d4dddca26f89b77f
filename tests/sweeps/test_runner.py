"""Jobs are real processes here: a small program in the place of a training run."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nsvq.sweeps import Job, Outcome, is_finished, job_array, run_jobs

PROGRAM = """
import json, os, pathlib, signal, sys, time
folder, what = pathlib.Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True, exist_ok=True)
(folder / "begun").touch()
if what == "wait":
    def stop(*_):
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    time.sleep(60)
if what == "fail":
    print("nsvq: error: no such thing", file=sys.stderr)
    print("later", file=sys.stderr)
    sys.exit(2)
if what == "crash":
    raise RuntimeError("new")
if what == "deaf":
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (folder / "child").write_text(str(child.pid))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / "listens").touch()
    time.sleep(60)
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "pair":
    # Until both run at a time.
    while len(list(folder.parent.glob("*/begun"))) < 2:
        time.sleep(0.01)
(folder / "gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
(folder / "environment.json").write_text(json.dumps({"train_steps": 10}))
(folder / "config.yaml").write_text(json.dumps({"trainer": {"max_steps": int(sys.argv[3]), "max_epochs": 1}}))
"""


@pytest.fixture
def job(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)

    def make(name, what="finish", steps=10):
        command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / name), what, str(steps)]
        limits = {"max_steps": steps, "max_epochs": 1}
        return Job(name, command, tmp_path / name, limits, tmp_path / "logs" / f"{name}.log")

    return make


def outcomes(results):
    return {result.job.name: result.outcome for result in results}


def test_a_failure_keeps_no_other_job_from_running_and_is_explained(job):
    jobs = [job("a"), job("b", "fail"), job("c", "die"), job("d")]
    results = list(run_jobs(jobs, 2, os.environ))
    done, failed = Outcome.FINISHED, Outcome.FAILED
    assert outcomes(results) == {"a": done, "b": failed, "c": failed, "d": done}
    messages = {result.job.name: result.message for result in results}
    assert messages["b"] == f"no such thing ({jobs[1].log})"
    assert messages["c"] == f"killed by SIGKILL ({jobs[2].log})"
    assert "later" in jobs[1].log.read_text()


def test_a_finished_job_is_skipped_unless_it_is_to_go_further(job):
    list(run_jobs([job("a")], 1, os.environ))
    (job("a").folder / "begun").unlink()
    (result,) = run_jobs([job("a")], 1, os.environ)
    assert result.outcome is Outcome.SKIPPED
    assert not (job("a").folder / "begun").exists()
    (result,) = run_jobs([job("a", steps=11)], 1, os.environ)
    assert result.outcome is Outcome.FINISHED
    assert (job("a").folder / "begun").exists()
    assert is_finished(job("a").folder, {})
    assert not is_finished(job("b").folder, {})


def test_a_job_that_its_epochs_ended_before_its_steps_is_finished_until_its_limits_change(job):
    list(run_jobs([job("a", steps=1000)], 1, os.environ))
    (result,) = run_jobs([job("a", steps=1000)], 1, os.environ)
    assert result.outcome is Outcome.SKIPPED
    assert not is_finished(job("a").folder, {"max_steps": 1000, "max_epochs": 2})


@pytest.mark.parametrize("content", ["", "[]", "{", '{"train_steps": null}'])
def test_a_damaged_record_is_no_finished_run_and_stops_no_other_job(job, content):
    list(run_jobs([job("a")], 1, os.environ))
    (job("a").folder / "environment.json").write_text(content)
    assert set(outcomes(run_jobs([job("a"), job("b")], 1, os.environ)).values()) == {Outcome.FINISHED}


def test_a_failure_is_explained_by_its_own_output_and_not_by_that_of_an_earlier_attempt(job):
    list(run_jobs([job("a", "fail")], 1, os.environ))
    (result,) = run_jobs([job("a", "crash")], 1, os.environ)
    assert result.message == f"RuntimeError: new ({job('a').log})"
    assert "no such thing" in job("a").log.read_text()


def test_a_program_that_is_not_there_is_named(job, tmp_path):
    missing = Job("a", ["no-such-program"], tmp_path / "a", {}, tmp_path / "a.log")
    (result,) = run_jobs([missing], 1, os.environ)
    assert (result.outcome, result.message) == (Outcome.FAILED, "no-such-program: No such file or directory")


def test_a_stop_ends_running_jobs_in_order_and_begins_no_other(job):
    stop, jobs = threading.Event(), [job("a", "wait"), job("b", "wait"), job("c")]

    def ask():
        while not all((one.folder / "begun").exists() for one in jobs[:2]):
            time.sleep(0.01)
        stop.set()

    thread = threading.Thread(target=ask)
    thread.start()
    results = list(run_jobs(jobs, 2, os.environ, stop=stop))
    thread.join()
    assert set(outcomes(results).values()) == {Outcome.INTERRUPTED}
    assert not (jobs[2].folder / "begun").exists()


def test_a_job_that_does_not_listen_can_be_killed_with_its_children(job):
    stop, kill, deaf = threading.Event(), threading.Event(), job("a", "deaf")

    def ask():
        while not (deaf.folder / "listens").exists():
            time.sleep(0.01)
        stop.set()
        time.sleep(0.5)
        kill.set()

    thread = threading.Thread(target=ask)
    thread.start()
    (result,) = run_jobs([deaf], 1, os.environ, stop=stop, kill=kill)
    thread.join()
    assert result.outcome is Outcome.INTERRUPTED
    child = Path("/proc") / (deaf.folder / "child").read_text() / "stat"
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_whoever_abandons_the_results_leaves_no_job_behind(job):
    results = run_jobs([job("a"), job("b", "wait")], 2, os.environ)
    assert next(results).job.name == "a"
    while not (job("b").folder / "begun").exists():
        time.sleep(0.01)
    begin = time.monotonic()
    results.close()
    assert time.monotonic() - begin < 30


def test_workers_take_gpus_in_turn(job):
    jobs = [job(name, "pair") for name in "ab"]
    list(run_jobs(jobs, 2, os.environ, ["5", "7"]))
    assert {(one.folder / "gpu").read_text() for one in jobs} == {"5", "7"}


@pytest.mark.parametrize(("code", "requeued"), [(0, ""), (75, "requeue 77_1\n"), (2, "")])
def test_a_job_array_runs_its_tasks_command_and_queues_it_again_when_it_asks_for_it(tmp_path, code, requeued):
    (tmp_path / "array.sh").write_text(job_array("my sweep", [["nsvq", "a"], ["nsvq", "b c", "--d={e: 'f'}"]]))
    text = (tmp_path / "array.sh").read_text()
    assert "#SBATCH --array=0-1\n" in text
    assert "#SBATCH --job-name=mysweep\n" in text
    for name, program in (("srun", f'printf "%s\\n" "$@" > srun.txt; exit {code}'), ("scontrol", 'echo "$@" > s.txt')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{program}\n")
        (tmp_path / name).chmod(0o755)
    task = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "array.sh"], cwd=tmp_path, env={**os.environ, **task}, check=False)
    assert result.returncode == code
    assert (tmp_path / "srun.txt").read_text().splitlines() == ["nsvq", "b c", "--d={e: 'f'}"]
    asked = tmp_path / "s.txt"
    assert (asked.read_text() if asked.exists() else "") == requeued
