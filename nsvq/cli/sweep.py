"""`nsvq sweep`: the runs of a W&B sweep file, printed, run here, or written as a SLURM job array."""

import argparse
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

import yaml
from tqdm import tqdm

from nsvq.cli.changes import changed_options
from nsvq.cli.messages import OneLineParser
from nsvq.cli.parsed import ParsedRun, parse_run
from nsvq.sweeps import (
    Job,
    Outcome,
    Result,
    Sweep,
    SweepRun,
    command_line,
    is_finished,
    job_array,
    load_sweep,
    run_jobs,
    sweep_runs,
    sweep_settings,
)

PROGRAMS = ("nsvq", "lightning")
# The trainer's options that end a run.
LIMITS = ("max_steps", "max_epochs", "max_time", "min_steps", "min_epochs")


@dataclass(frozen=True)
class Planned:
    """A run of a sweep that the program would accept."""

    run: SweepRun
    parsed: ParsedRun

    @property
    def command(self) -> list[str]:
        """The command line with a place of its own, where it begins or goes on."""
        return [*self.run.command, "--version", self.run.name, "--ckpt_path", "last"]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.parsed.experiment_folder / self.run.name


def sweep(words: list[str]) -> None:
    """Print, run or write a sweep's runs.

    Args:
        words: The command line behind `nsvq sweep`.

    Raises:
        FileNotFoundError: If there is no such sweep file.
        ValueError: If the file is no sweep, or a command line of it would be refused; it names each bad parameter.
        SystemExit: With code 1 if runs failed, 75 if runs were interrupted.
    """
    parser = OneLineParser(prog="nsvq sweep", description="The runs of a W&B sweep file, without W&B's server.")
    actions = parser.add_subparsers(dest="action", required=True)
    plan = actions.add_parser("plan", help="check every command line and print it")
    run = actions.add_parser("run", help="run them here; finished runs are skipped, interrupted ones go on")
    slurm = actions.add_parser("slurm", help="write a SLURM job array that runs them")
    for action in (plan, run, slurm):
        action.add_argument("file", type=Path, help="a W&B sweep file, method grid or random")
        action.add_argument("--count", type=_positive, help="number of runs; default: the file's run_cap, or all")
        action.add_argument("--seed", type=int, default=0, help="seed of a random search")
    run.add_argument("-n", "--workers", type=_positive, default=1, help="runs at a time")
    run.add_argument("--gpus", type=lambda text: text.split(","), default=[], help="GPUs of the workers: 0,1,…")
    slurm.add_argument("-o", "--output", type=Path, help="default: <name of the sweep>.sh")
    options = parser.parse_args(words)
    loaded = load_sweep(options.file)
    planned = check(loaded, sweep_runs(loaded, sweep_settings(loaded, options.count, options.seed)))
    if options.action == "plan":
        for one in planned:
            print(shlex.join(one.run.command))
        sys.stderr.write(f"nsvq: {len(planned)} run{'s'[: len(planned) > 1]}, each accepted by the program\n")
    elif options.action == "slurm":
        path = options.output or Path(re.sub(r"[^\w.+-]+", "_", loaded.name) + ".sh")
        path.write_text(job_array(loaded.name, [one.command for one in planned]))
        print(f"wrote {path}: sbatch {path} runs {len(planned)} tasks")
    else:
        _run(planned, options.workers, options.gpus)


def check(loaded: Sweep, runs: Sequence[SweepRun]) -> list[Planned]:
    """Parse every command line of a sweep.

    Args:
        loaded: The sweep.
        runs: Its runs.

    Returns:
        The runs with what each would do.

    Raises:
        ValueError: If some would be refused; it names every bad parameter, once.
    """
    planned: list[Planned] = []
    faults: dict[str, str] = {}
    tried: set[tuple[str, ...]] = set()
    for run in tqdm(runs, desc="checking", unit="run", leave=False, disable=not sys.stderr.isatty()):
        sound = {name: value for name, value in run.setting.items() if _flag(name, value) not in faults}
        words = _words(command_line(loaded, sound))
        if len(sound) < len(run.setting) and tuple(words) in tried:
            continue
        tried.add(tuple(words))
        try:
            planned.append(Planned(run, parse_run(words)))
        except ValueError as error:
            faults |= _faults(loaded, sound, str(error))
    if faults:
        raise ValueError(f"the program would refuse {_in_one_line(faults)}")
    return planned


def _faults(loaded: Sweep, setting: Mapping[str, Any], message: str) -> dict[str, str]:
    """Find the parameters that are refused: each is tried with those before it that are not."""
    try:
        parse_run(_words(command_line(loaded, {})))
    except ValueError as error:
        return {"the command without parameters": str(error)}
    kept: dict[str, Any] = {}
    faults = {}
    for name, value in setting.items():
        try:
            parse_run(_words(command_line(loaded, {**kept, name: value})))
            kept[name] = value
        except ValueError as error:  # noqa: PERF203
            faults[_flag(name, value)] = str(error)
    return faults or {shlex.join(command_line(loaded, setting)): message}


def _flag(name: str, value: Any) -> str:
    return f"--{name}={value}"


def _in_one_line(faults: Mapping[str, str]) -> str:
    """Name the flags that are refused, together where several have one reason."""
    flags: dict[str, list[str]] = {}
    for flag, message in faults.items():
        flags.setdefault(message, []).append(flag)
    return "; ".join(f"{', '.join(some)}: {message}" for message, some in flags.items())


def _words(command: Sequence[str]) -> list[str]:
    """Return what stands behind the program's name."""
    for place, word in enumerate(command):
        if Path(word).name in PROGRAMS:
            return list(command[place + 1 :])
    raise ValueError(f"the sweep's command must call nsvq fit or lightning fit, got: {shlex.join(command)}")


def _run(planned: Sequence[Planned], workers: int, gpus: Sequence[str]) -> None:
    environment = dict(os.environ)
    # The program's own neighbours, also where its environment is not activated.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    # One thread a run: rounding, and with it a curve, depends on the number of threads.
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("WANDB_MODE", "offline")
    results = [result for one in planned if (result := _refusal(one)) is not None]
    refused = {result.job.name for result in results}
    jobs = [_job(one) for one in planned if one.run.name not in refused]
    with (
        _stopping() as (stop, kill),
        tqdm(total=len(planned), initial=len(results), desc="runs", unit="run", disable=not sys.stderr.isatty()) as bar,
    ):
        for result in run_jobs(jobs, workers, environment, gpus, stop, kill):
            results.append(result)
            bar.update()
            if result.outcome in (Outcome.FINISHED, Outcome.FAILED):
                done = f"[{len(results)}/{len(planned)}] {result.job.name}: {result.outcome.value}"
                tqdm.write(f"{done} after {result.seconds:.0f} s{_because(result)}", file=sys.stdout)
                sys.stdout.flush()
    _report(results)


def _job(one: Planned) -> Job:
    limits = {name: one.parsed.config["trainer"].get(name) for name in LIMITS}
    log = one.parsed.experiment_folder / "logs" / f"{one.run.name}.log"
    return Job(one.run.name, one.command, one.folder, limits, log)


def _refusal(one: Planned) -> Result | None:
    """Refuse to take a run with other options for this one."""
    if not is_finished(one.folder, {}):
        return None
    config = yaml.safe_load((one.folder / "config.yaml").read_text())
    changed = changed_options(config, one.parsed.config, (1, 1))
    if not changed:
        return None
    what = f"{one.folder} holds a run with other options: {', '.join(changed)}; move it, or name another --experiment"
    return Result(_job(one), Outcome.FAILED, what)


def _report(results: Sequence[Result]) -> None:
    """Count outcomes, list what failed or was interrupted, and leave with an exit code that says so."""
    by_outcome = {outcome: [one for one in results if one.outcome is outcome] for outcome in Outcome}
    print(", ".join(f"{len(some)} {outcome.value}" for outcome, some in by_outcome.items() if some))
    for outcome in (Outcome.INTERRUPTED, Outcome.FAILED):
        for result in by_outcome[outcome]:
            sys.stderr.write(f"{outcome.value}: {result.job.name}{_because(result)}\n")
    if by_outcome[Outcome.FAILED]:
        raise SystemExit(1)
    if by_outcome[Outcome.INTERRUPTED]:
        raise SystemExit(os.EX_TEMPFAIL)


def _because(result: Result) -> str:
    return f": {result.message}" if result.message else ""


@contextmanager
def _stopping() -> Iterator[tuple[Event, Event]]:
    """Turn Ctrl-C, SIGTERM and a lost terminal into a request that runs save their state and end; a second kills."""
    stop, kill = Event(), Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            sys.stderr.write("nsvq: killing the runs; the same command goes on from what they have saved\n")
            kill.set()
        else:
            sys.stderr.write("nsvq: stopping: runs save their state and end; the same command goes on with them\n")
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop, kill
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)
