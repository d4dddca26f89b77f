"""SIGTERM and SIGUSR1: a checkpoint at the end of the batch, exit code 75, and nothing lost."""

import importlib
import os
import signal
import sys
import time
import types

import pytest
import torch
from lightning.pytorch import Callback

from . import forked
from .test_resume import assert_equal, content, words

PATIENCE_SECONDS = 60


def run_until_signalled(folder, ranks, number, to_rank):
    """Start an endless run, send a signal when it has trained a while, and return its step and exit codes."""
    run = folder / "runs" / "e" / "v"
    processes = forked.start(words("VQVAE", ranks, "--trainer.max_steps=100000", *NAMES), folder, ranks)
    deadline = time.monotonic() + PATIENCE_SECONDS
    curve = run / "curves" / "drift.csv"
    while not (curve.exists() and len(curve.read_text().splitlines()) > 4):
        assert time.monotonic() < deadline, (folder / "output0.txt").read_text()
        time.sleep(0.02)
    os.kill(processes[to_rank].pid, number)
    codes = forked.wait(processes, folder)
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"], codes


NAMES = ["--experiment=e", "--version=v"]


def check(folder, ranks, number, to_rank):
    step, codes = run_until_signalled(folder, ranks, number, to_rank)
    assert codes == [75] * ranks
    lines = [line for line in (folder / "output0.txt").read_text().splitlines() if line.startswith("nsvq")]
    reason = number.name if to_rank == 0 else "another rank"
    assert lines == [
        f"nsvq: stopped by {reason} after step {step}; go on with --ckpt_path runs/e/v/checkpoints/last.ckpt"
    ]
    more = f"--trainer.max_steps={step + 4}"
    forked.succeed(words("VQVAE", ranks, more, *NAMES, "--ckpt_path=last"), folder, ranks)
    whole = folder / "whole"
    whole.mkdir()
    forked.succeed(words("VQVAE", ranks, more, *NAMES), whole, ranks)
    for one, other in zip(content(whole / "runs/e/v"), content(folder / "runs/e/v"), strict=True):
        assert_equal(one, other)


def test_a_signal_ends_a_run_behind_its_batch_and_nothing_is_lost(tmp_path):
    check(tmp_path, 1, signal.SIGTERM, 0)


class StoppedEarly(Callback):
    """Signals this process before training begins."""

    def on_fit_start(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_before_the_first_batch_is_not_lost(quickstart):
    words = ["--allow_module=nsvq_test_stop", "--version=v", "--trainer.max_steps=100000"]
    module = types.ModuleType("nsvq_test_stop")
    module.__spec__ = importlib.machinery.ModuleSpec("nsvq_test_stop", None)
    module.StoppedEarly = StoppedEarly
    StoppedEarly.__module__ = "nsvq_test_stop"
    sys.modules["nsvq_test_stop"] = module
    with pytest.raises(SystemExit) as stop:
        quickstart(*words, "--trainer.callbacks+=nsvq_test_stop.StoppedEarly")
    assert stop.value.code == 75
    last = torch.load("runs/quickstart/v/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to_rank"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 0)])
def test_a_signal_to_one_rank_ends_both(tmp_path, number, to_rank):
    check(tmp_path, 2, number, to_rank)
