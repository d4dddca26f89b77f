"""The processes of one run: how they are launched, and what the others do when one of them ends or hangs.

A rank that ends breaks the collectives of the others, and one that hangs lets them wait until the process group's
timeout; each of them then says so in one line and ends. Where torchrun or SLURM launched the ranks, that launcher ends
what is left. Where rank 0 did (`--trainer.devices 2` alone), it does so itself, and a rank that timed out ends a
hanging rank 0.
"""

import atexit
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.trainer.states import TrainerFn

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others, unless `--trainer.strategy.timeout` says otherwise."""

STUCK_SECONDS = 30.0
"""How long a rank whose launcher or launched rank has ended may take to find out by itself."""

ENDING_SECONDS = 5.0
"""How long rank 0 waits, when it has lost a rank, for the others that it launched to end by themselves."""

LAUNCHER_VARIABLE = "NSVQ_LAUNCHER_PID"


def launch_plugins(plugins: Any) -> list[Any] | None:
    """Add what a launcher needs to the trainer's plugins.

    Args:
        plugins: The plugins that the user asked for: None, one or a list.

    Returns:
        The same, and under SLURM an environment that leaves it to the batch script to requeue the job. Lightning's own
        would save a checkpoint inside the signal handler, in the middle of a step.
    """
    given = plugins if isinstance(plugins, list) else [] if plugins is None else [plugins]
    if not TorchElasticEnvironment.detect() and SLURMEnvironment.detect():
        given = [*given, SLURMEnvironment(auto_requeue=False)]
    return given or None


def require_all_ranks(trainer: Trainer) -> None:
    """Refuse to train in some of the processes that torchrun or srun started: each would be a run of its own.

    Raises:
        ValueError: If the trainer's processes are fewer or more than the launcher's.
    """
    if TorchElasticEnvironment.detect():
        launcher, started = "torchrun", int(os.environ["WORLD_SIZE"])
    elif "SLURM_STEP_NUM_TASKS" in os.environ and SLURMEnvironment.detect():
        launcher, started = "srun", int(os.environ["SLURM_STEP_NUM_TASKS"])
    else:
        return
    if started != trainer.world_size:
        raise ValueError(
            f"{launcher} started {started} processes, but --trainer.devices and --trainer.num_nodes make "
            f"{trainer.world_size}: their product must be {started}"
        )


@contextmanager
def ending_together(trainer: Trainer) -> Iterator[None]:
    """Run the trainer's processes so that none goes on, or stays, without the others.

    Raises:
        ConnectionError: If another rank ended or did not answer in time; it names the step and the last checkpoint.
    """
    launcher = _launcher(trainer)
    if launcher is None:
        os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    else:
        _watch(lambda: None if os.getppid() == launcher else "rank 0, which launched this process, has ended")
    try:
        yield
    except Exception as error:
        loss = _loss(error) if trainer.world_size > 1 else None
        if loss is None:
            raise
        launched = _launched(trainer)
        atexit.register(_end_ranks, launched)
        if loss == "hangs" and launcher is not None:
            atexit.register(_end_launcher, launcher)
        raise ConnectionError(_message(trainer, loss, launched)) from error


def _launched(trainer: Trainer) -> list[subprocess.Popen[bytes]]:
    """Return the other ranks of this node, in the rank that launched them."""
    processes: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    return processes


def _launcher(trainer: Trainer) -> int | None:
    """Return the process id of rank 0, in a rank that it launched."""
    parent = os.getppid()
    return parent if trainer.local_rank > 0 and os.environ.get(LAUNCHER_VARIABLE) == str(parent) else None


def _loss(error: BaseException | None) -> str | None:
    """Tell from an error how another rank was lost: it "ended" or it "hangs"; None if it is no such error."""
    while error is not None:
        text = str(error).lower()
        # Gloo raises plain RuntimeErrors.
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and re.search("gloo|pair", text)):
            if re.search("timed out|timeout", text):
                return "hangs"
            if re.search("closed by peer|reset by peer|broken pipe|remote process exited", text):
                return "ended"
        error = error.__cause__ or error.__context__
    return None


def _message(trainer: Trainer, loss: str, launched: list[subprocess.Popen[bytes]]) -> str:
    fitting = trainer.state.fn == TrainerFn.FITTING
    where = f"at step {trainer.global_step}" if fitting else f"in {trainer.state.fn}"
    if loss == "hangs":
        what = "another rank did not answer within --trainer.strategy.timeout: it hangs or is far behind"
    else:
        deadline = time.monotonic() + 1
        while launched and (ended := _ended(launched)) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        what = (ended if launched else None) or "another rank ended"
        what += "; its own message or the system's log (out of memory?) says why"
    message = f"rank {trainer.global_rank} stopped {where}: {what}"
    if fitting:
        # Rank 0 alone writes and knows the run folder.
        paths = [getattr(callback, "last_model_path", "") for callback in trainer.checkpoint_callbacks]
        last = next(filter(None, paths), "") if trainer.is_global_zero else ""
        message += f"; go on with --ckpt_path {last}" if last else "; earlier checkpoints are untouched"
    return message


def _ended(processes: list[subprocess.Popen[bytes]]) -> str | None:
    """Say which launched rank has failed, if one has; a run that was asked to stop ends with EX_TEMPFAIL."""
    for rank, process in enumerate(processes, start=1):
        code = process.poll()
        if code is not None and code < 0:
            return f"rank {rank} was killed by {signal.Signals(-code).name}"
        if code not in (None, 0, os.EX_TEMPFAIL):
            return f"rank {rank} ended with exit code {code}"
    return None


def _watch(lost: Callable[[], str | None]) -> None:
    """End this process when it has lost a rank and does not find out by itself, as when it waits for a GPU."""

    def watch() -> None:
        while (what := lost()) is None:
            time.sleep(0.5)
        time.sleep(STUCK_SECONDS)
        sys.stderr.write(f"nsvq: error: {what}; this process waited for it and was ended\n")
        os._exit(2)

    threading.Thread(target=watch, name="rank-watch", daemon=True).start()


def _watch_launched(processes: list[subprocess.Popen[bytes]]) -> None:
    _watch(lambda: _ended(processes))


def _end_ranks(processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + ENDING_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:  # noqa: PERF203
            process.kill()


def _end_launcher(launcher: int) -> None:
    deadline = time.monotonic() + STUCK_SECONDS + ENDING_SECONDS
    while os.getppid() == launcher and time.monotonic() < deadline:
        time.sleep(0.1)
    if os.getppid() == launcher:
        os.kill(launcher, signal.SIGKILL)


# Lightning's observer kills this process before it can say why, and also when the others end with EX_TEMPFAIL in good
# order.
setattr(subprocess_script, "_launch_process_observer", _watch_launched)  # noqa: B010
for _name, _options in {
    "ddp": {},
    "ddp_find_unused_parameters_false": {"find_unused_parameters": False},
    "ddp_find_unused_parameters_true": {"find_unused_parameters": True},
}.items():
    StrategyRegistry.register(_name, DDPStrategy, f"DDP, timeout {TIMEOUT}", override=True, timeout=TIMEOUT, **_options)
