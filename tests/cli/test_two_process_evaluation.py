"""Evaluation by two processes counts every image once: their numbers are those of one process."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
# 261 validation patches: two processes cannot share them evenly.
ALL = ["--trainer.limit_val_batches=1.0", "--trainer.limit_test_batches=1.0", "--data.batch_size=32"]
MEASURED = ["loss", "psnr", "ssim", "tokens", "perplexity", "quantization_error"]


@pytest.fixture
def measure(quickstart, experiments, tmp_path):
    """Run a subcommand with one or two processes; return the numbers of its last evaluation."""

    def measure(command, processes, *words, split="val"):
        version = f"{command}{processes}"
        words = ["--trainer.accelerator=cpu", *words, *ALL, f"--version={version}"]
        if processes == 1:
            quickstart(*words, command=command)
        else:
            script = Path(sys.executable).parent / "nsvq"
            config = ["--config", str(experiments / "quickstart.yaml"), "--trainer.enable_progress_bar=false"]
            subprocess.run([script, command, *config, *words, *TWO], check=True, timeout=300)
        metrics = pd.read_csv(tmp_path / "runs" / "quickstart" / version / "metrics.csv")
        return metrics[[f"{split}/{name}" for name in MEASURED]].dropna().iloc[-1].to_dict()

    return measure


@pytest.mark.slow
@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_two_processes_measure_a_checkpoint_as_one(measure, quickstart, tmp_path, command, split):
    quickstart("--trainer.max_steps=8", "--version=trained")
    checkpoint = tmp_path / "runs" / "quickstart" / "trained" / "checkpoints" / "last.ckpt"
    one = measure(command, 1, f"--ckpt_path={checkpoint}", split=split)
    assert one[f"{split}/tokens"] == 261 * 64
    assert measure(command, 2, f"--ckpt_path={checkpoint}", split=split) == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_two_processes_validate_inside_a_fit_as_one(measure):
    # At a learning rate of zero both fits validate the same weights.
    words = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--model.optimizer.lr=0"]
    words += ["--weight_ema=WeightEMA", "--data.samples_per_epoch=128"]
    one = measure("fit", 1, *words)
    assert one["val/tokens"] == 261 * 64
    assert measure("fit", 2, *words) == pytest.approx(one, rel=1e-5)
