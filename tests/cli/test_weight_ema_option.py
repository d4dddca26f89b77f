"""`--weight_ema` on the command line."""

import pandas as pd
import pytest
import torch
import yaml

from nsvq.cli.loading import load_run

FIT = ["--trainer.max_steps=8", "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=1"]
SETTINGS = {"class_path": "nsvq.callbacks.WeightEMA", "init_args": {"decay": 0.9}}


@pytest.fixture
def averaged(quickstart):
    return lambda *words: quickstart(*FIT, "--weight_ema=WeightEMA", "--weight_ema.decay=0.9", *words)


def last_validation(folder):
    metrics = pd.read_csv(folder / "metrics.csv").filter(like="val/")
    return metrics.dropna(how="all").iloc[-1]


def test_validate_measures_what_the_last_validation_of_the_fit_measured(averaged, quickstart, tmp_path):
    averaged("--version=a")
    quickstart(*FIT, "--version=live")
    runs = tmp_path / "runs" / "quickstart"
    path = runs / "a" / "checkpoints" / "last.ckpt"
    quickstart("--version=v", f"--ckpt_path={path}", command="validate")
    expected, validated = last_validation(runs / "a"), last_validation(runs / "v")
    names = ["val/psnr", "val/ssim", "val/loss", "val/quantization_error", "val/perplexity", "val/tokens"]
    assert validated[names].tolist() == pytest.approx(expected[names].tolist(), rel=1e-6)
    assert last_validation(runs / "live")["val/psnr"] != pytest.approx(expected["val/psnr"], rel=1e-6)

    checkpoint = torch.load(path, weights_only=True)
    live = torch.load(runs / "live" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    kept = checkpoint["weight_ema"]["live_weights"]
    assert all(torch.equal(value, live[name]) for name, value in kept.items())
    model = load_run(runs / "a")
    assert all(torch.equal(value, checkpoint["state_dict"][name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, live[name]) for name, value in model.named_parameters())


def test_a_file_can_ask_for_it_and_a_resumed_run_keeps_it(averaged, quickstart, tmp_path):
    (tmp_path / "ema.yaml").write_text(yaml.safe_dump({"weight_ema": SETTINGS}))
    averaged("--version=a", "--trainer.max_steps=4")
    folder = tmp_path / "runs" / "quickstart" / "a"
    assert yaml.safe_load((folder / "config.yaml").read_text())["weight_ema"] == SETTINGS
    quickstart(*FIT, "--config=ema.yaml", f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}")
    assert yaml.safe_load((folder / "config.yaml").read_text())["weight_ema"] == SETTINGS
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["weight_ema"]["updates"] == 7


def test_bad_settings_are_named(refusal, experiments):
    base = ["fit", "--config", str(experiments / "quickstart.yaml")]
    assert "did you mean WeightEMA?" in refusal(*base, "--weight_ema=WeightEMAA")
    assert "decay must be at least 0 and below 1, got 1.5" in refusal(
        *base, "--weight_ema=WeightEMA", "--weight_ema.decay=1.5"
    )
    words = ["--weight_ema=WeightEMA", "--trainer.callbacks+=ModelCheckpoint"]
    words += ["--trainer.callbacks.save_weights_only=true"]
    assert "weight averaging needs whole checkpoints" in refusal(*base, *words)


def test_going_on_without_the_average_is_refused(averaged, refusal, experiments, tmp_path):
    averaged("--version=a", "--trainer.max_steps=4")
    path = tmp_path / "runs" / "quickstart" / "a" / "checkpoints" / "last.ckpt"
    message = refusal("fit", "--config", str(experiments / "quickstart.yaml"), f"--ckpt_path={path}")
    assert "holds averaged weights" in message
    assert "--weight_ema WeightEMA" in message
