"""Running command lines on this machine, several at a time."""

import json
import os
import queue
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from threading import Event
from typing import Any

import yaml

POLL_SECONDS = 0.1


class Outcome(Enum):
    """How a job ended."""

    FINISHED = "finished"
    SKIPPED = "finished before"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True)
class Job:
    """A training run to be done.

    Attributes:
        name: What it is called in messages.
        command: The command line, which begins the run or goes on with it.
        folder: Its run folder.
        limits: The trainer's options that end it, by name: `max_steps`, `max_epochs`, ….
        log: Where its output goes, appended.
    """

    name: str
    command: Sequence[str]
    folder: Path
    limits: Mapping[str, Any]
    log: Path


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Attributes:
        job: The job.
        outcome: How it ended.
        message: Why it failed; else empty.
        seconds: How long it took here.
    """

    job: Job
    outcome: Outcome
    message: str = ""
    seconds: float = 0.0


def is_finished(folder: Path, limits: Mapping[str, Any]) -> bool:
    """Return whether a run folder holds a run that trained to its end.

    Args:
        folder: The run folder; it need not exist.
        limits: What is to end the run, see `Job`. A run that ended by other limits has to go on, unless it has reached
            `max_steps`.
    """
    try:
        steps = json.loads((folder / "environment.json").read_text())["train_steps"]
        trainer = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]
        wanted = limits.get("max_steps") or -1
        return 0 < wanted <= steps or all(trainer.get(name) == value for name, value in limits.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        # Not begun, not ended, or damaged, which the run itself will say.
        return False


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    environment: Mapping[str, str],
    gpus: Sequence[str] = (),
    stop: Event | None = None,
    kill: Event | None = None,
) -> Iterator[Result]:
    """Run jobs and yield what became of each as soon as it ends; a failure does not keep the others from running.

    Args:
        jobs: The jobs; those that are finished already are not run.
        workers: Number of jobs at a time.
        environment: The environment of the jobs.
        gpus: What `CUDA_VISIBLE_DEVICES` is to be for the workers, in turn; nothing leaves it alone.
        stop: When set, running jobs get SIGTERM, on which a training run saves its state and ends with code 75, and no
            other is begun.
        kill: When set, running jobs are killed with all processes that they started.

    Yields:
        Results, in the order in which jobs end.
    """
    stop, kill = stop or Event(), kill or Event()
    places: queue.Queue[str | None] = queue.Queue()
    for number in range(workers):
        places.put(gpus[number % len(gpus)] if gpus else None)

    def work(job: Job) -> Result:
        place = places.get()
        try:
            own = {} if place is None else {"CUDA_VISIBLE_DEVICES": place}
            return _run(job, {**environment, **own}, stop, kill)
        finally:
            places.put(place)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            # An abandoned generator leaves no process behind.
            stop.set()


def _run(job: Job, environment: Mapping[str, str], stop: Event, kill: Event) -> Result:
    if is_finished(job.folder, job.limits):
        return Result(job, Outcome.SKIPPED)
    if stop.is_set():
        return Result(job, Outcome.INTERRUPTED)
    begin = time.monotonic()
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            begun_at = log.tell()
            # A session of its own: the terminal's Ctrl-C is for this program, which passes on SIGTERM.
            process = subprocess.Popen(
                job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
            asked = False
            while process.poll() is None:
                if stop.is_set() and not asked:
                    process.terminate()
                    asked = True
                if kill.is_set():
                    # The job leads a group of its own.
                    os.killpg(process.pid, signal.SIGKILL)
                time.sleep(POLL_SECONDS)
    except OSError as error:
        return Result(job, Outcome.FAILED, f"{error.filename or job.command[0]}: {error.strerror}")
    seconds, code = time.monotonic() - begin, process.returncode
    if code == 0:
        return Result(job, Outcome.FINISHED, seconds=seconds)
    if code == os.EX_TEMPFAIL or (asked and code in (-signal.SIGTERM, -signal.SIGKILL)):
        return Result(job, Outcome.INTERRUPTED, seconds=seconds)
    return Result(job, Outcome.FAILED, f"{_reason(code, job.log, begun_at)} ({job.log})", seconds)


def _reason(code: int, log: Path, begun_at: int) -> str:
    """Say why a program failed: its own last error message, else the last line of its output, from a byte on."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in log.read_bytes()[begun_at:].decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("nsvq: error: ")]
    last = (errors or lines or [""])[-1].removeprefix("nsvq: error: ")
    return last or f"exit code {code}"
