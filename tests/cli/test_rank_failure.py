"""A rank that is killed or hangs ends the others, with a line that says so, and nothing stays behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nsvq.cli import ranks

from . import forked
from .conftest import EXPERIMENTS, SMALL
from .test_bad_input import photo

WORDS = ["fit", "--config", EXPERIMENTS / "quickstart.yaml", f"--trainer={EXPERIMENTS / 'trainer' / 'ddp.yaml'}"]
WORDS += [*SMALL, "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.max_steps=1000000"]
WORDS += ["--checkpoint.every_n_train_steps=5", "--version=a"]
ENDED = "another rank ended; its own message or the system's log (out of memory?) says why"
HANGS = "another rank did not answer within --trainer.strategy.timeout: it hangs or is far behind"


def train(start, *words):
    """Start a run on two ranks and wait for its first checkpoint."""
    last = Path("runs/quickstart/a/checkpoints/last.ckpt")
    processes = start([*WORDS, *words])
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert last.exists()
    return processes, last


def survivors_line(output, rank, loss):
    """The one line of the surviving rank; no traceback stands beside it."""
    assert "Traceback" not in output, output
    lines = [line for line in output.splitlines() if line.startswith("nsvq: error: ")]
    assert len(lines) == 1, output
    start, rest = lines[0].removeprefix("nsvq: error: ").split(f": {loss}; ")
    assert start.startswith(f"rank {rank} stopped at step ")
    assert int(start.rsplit(" ", 1)[1]) >= 5
    path = "with --ckpt_path runs/quickstart/a/checkpoints/last.ckpt" if rank == 0 else None
    assert rest == (f"go on {path}" if path else "earlier checkpoints are untouched")


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_other(tmp_path, victim):
    processes, last = train(lambda words: forked.start(words, tmp_path, ranks=2))
    processes[victim].kill()
    codes = forked.wait(processes, tmp_path)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 2
    survivors_line((tmp_path / f"output{1 - victim}.txt").read_text(), 1 - victim, ENDED)
    assert torch.load(last, weights_only=True)["global_step"] >= 5


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_other_within_the_timeout(tmp_path):
    victim = 1
    timeout = "--trainer.strategy.timeout=0:00:30"
    processes, last = train(lambda words: forked.start(words, tmp_path, ranks=2), timeout)
    os.kill(processes[victim].pid, signal.SIGSTOP)
    try:
        processes[1 - victim].join(90)
        assert processes[1 - victim].exitcode == 2
        survivors_line((tmp_path / f"output{1 - victim}.txt").read_text(), 1 - victim, HANGS)
    finally:
        processes[victim].kill()
    assert torch.load(last, weights_only=True)["global_step"] >= 5


@pytest.mark.slow
def test_an_error_of_one_rank_is_told_by_that_rank(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(8):
        photo(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "3.png").write_bytes(b"no picture")
    data = ["--data=ImageFolder", "--data.root=pictures", "--data.split=sorted", "--data.val_fraction=4"]
    base = [*WORDS[:4], "--trainer.accelerator=cpu", "--trainer.devices=2", "--data.batch_size=2"]
    base += ["--trainer.enable_progress_bar=false"]
    assert forked.run([*base, *data], tmp_path, ranks=2) == [2, 2]
    outputs = [(tmp_path / f"output{rank}.txt").read_text() for rank in (0, 1)]
    lines = [line for output in outputs for line in output.splitlines() if line.startswith("nsvq: error: ")]
    assert sorted("3.png" in line for line in lines) == [False, True]
    assert sorted(ENDED in line for line in lines) == [False, True]
    assert not any("Traceback" in output for output in outputs)


class Launched:
    """A run that a launcher starts, with its ranks."""

    def __init__(self, command, folder):
        self.mark = f"{folder}:{time.monotonic_ns()}"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NSVQ_TEST_RUN": self.mark}
        self.output = folder / "output.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def ranks(self):
        """Process ids by rank, of those that are still there."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                variables = dict(pair.split(b"=", 1) for pair in (entry / "environ").read_bytes().split(b"\0")[:-1])
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except (OSError, ValueError):
                continue
            ours = variables.get(b"NSVQ_TEST_RUN") == self.mark.encode() and state != "Z"
            if ours and any(word.endswith(b"bin/nsvq") for word in words[:3]):
                found[int(variables.get(b"LOCAL_RANK", 0))] = int(entry.name)
        return found


@pytest.fixture
def launch(tmp_path):
    """Start `nsvq WORDS` in one of two ways; whatever is left of it is killed in the end."""
    started = []
    program = Path(sys.executable).parent / "nsvq"

    def start(launcher, words):
        torchrun = [program.with_name("torchrun"), "--standalone", "--nproc_per_node=2"]
        command = [*(torchrun if launcher == "torchrun" else []), program, *words]
        started.append(Launched(list(map(str, command)), tmp_path))
        return started[-1]

    yield start
    for run in started:
        run.process.kill()
        for process in run.ranks().values():
            os.kill(process, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize(
    ("launcher", "victim", "stop"),
    [
        ("nsvq", 0, signal.SIGKILL),
        ("nsvq", 1, signal.SIGKILL),
        ("nsvq", 0, signal.SIGSTOP),
        ("nsvq", 1, signal.SIGSTOP),
        ("torchrun", 1, signal.SIGKILL),
    ],
)
def test_nothing_is_left_of_a_run_that_lost_a_rank(launch, launcher, victim, stop):
    # Long enough for a second rank to start.
    run, last = train(lambda words: launch(launcher, words), "--trainer.strategy.timeout=0:00:45")
    assert set(run.ranks()) == {0, 1}
    os.kill(run.ranks()[victim], stop)
    # The timeout, then 30 seconds for a launcher or launched rank that does not react.
    code = run.process.wait(timeout=45 + 30 + 30)
    assert code == (1 if launcher == "torchrun" else -signal.SIGKILL if victim == 0 else 2)
    deadline = time.monotonic() + 60
    while run.ranks() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run.ranks() == {}
    loss = HANGS if stop == signal.SIGSTOP else ENDED
    if launcher == "nsvq" and victim == 1 and stop == signal.SIGKILL:
        loss = loss.replace("another rank ended", "rank 1 was killed by SIGKILL")
    output = run.output.read_text().split("torch/distributed/elastic")[0]
    survivors_line(output, 1 - victim, loss)
    assert torch.load(last, weights_only=True)["global_step"] >= 5


@pytest.fixture
def last_resort(monkeypatch, capsys):
    """Let a process that does not notice a loss wait no longer; return what it says and its exit code."""
    ended = threading.Event()
    codes = []

    def leave(code):
        codes.append(code)
        ended.set()

    monkeypatch.setattr(ranks.os, "_exit", leave)
    monkeypatch.setattr(ranks, "STUCK_SECONDS", 0.1)

    def result(seconds):
        ended.wait(seconds)
        return capsys.readouterr().err, codes

    return result


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("kill -9 $$", "nsvq: error: rank 1 was killed by SIGKILL; this process waited for it and was ended\n"),
        ("exit 3", "nsvq: error: rank 1 ended with exit code 3; this process waited for it and was ended\n"),
    ],
)
def test_a_rank_that_waits_for_a_dead_one_forever_is_ended(last_resort, script, line):
    ranks._watch_launched([subprocess.Popen(["bash", "-c", script])])
    assert last_resort(10) == (line, [2])


def test_ranks_that_end_in_good_order_end_no_other(last_resort):
    processes = [subprocess.Popen(["bash", "-c", f"exit {code}"]) for code in (0, 75)]
    for process in processes:
        process.wait()
    ranks._watch_launched(processes)
    assert last_resort(1.5) == ("", [])


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (RuntimeError(f"{GLOO}pair.cc:545] Read error [127.0.0.1]:1: Connection reset by peer"), "ended"),
        (RuntimeError(f"{GLOO}pair.cc:534] Connection closed by peer [127.0.0.1]:1"), "ended"),
        (RuntimeError("Application timeout caused pair closure"), "hangs"),
        (RuntimeError(f"{GLOO}unbound_buffer.cc:81] Timed out waiting 1000ms for recv operation to complete"), "hangs"),
        (dist.DistStoreError("Timed out after 31 seconds waiting for clients. 1/2 clients joined."), "hangs"),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), "ended"),
        (dist.DistBackendError("NCCL error: Duplicate GPU detected"), None),
        (RuntimeError("the request timed out"), None),
        (ValueError("timeout of the gloo pair must be positive"), None),
    ],
)
def test_the_loss_of_a_rank_is_told_from_other_errors(error, loss):
    assert ranks._loss(error) == loss
    wrapped = KeyError("x")
    wrapped.__cause__ = error
    assert ranks._loss(wrapped) == loss
