"""VQ-GANs through the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from nsvq.cli.loading import load_run
from nsvq.models import VQGAN

FIT = ["--trainer.max_steps=6", "--trainer.log_every_n_steps=1", "--model.adversarial.discriminator_start=1"]
FIT += ["--model.adversarial.start=2", "--model.adversarial.ramp=1", "--model.quantizer.codebook_size=32"]


@pytest.fixture
def tiny(quickstart, experiments):
    """Run a subcommand on the small VQ-GAN."""

    def run(*words, command="fit"):
        return quickstart(*words, command=command, config=experiments / "vqgan_tiny.yaml")

    return run


def test_a_run_with_every_meter_replacement_and_average(tiny, tmp_path):
    extra = ["--trainer.callbacks+=DeadCodeReplacement", "--trainer.callbacks.unused_steps=2"]
    extra += ["--trainer.callbacks.every_n_steps=2", "--weight_ema=WeightEMA", "--encoder_drift.every_n_steps=2"]
    extra += ["--codebook_health.train_window=2", "--image_quality.every_n_epochs=1", "--image_quality.lpips=[]"]
    extra += ["--image_quality.fid=false", "--checkpoint.every_n_train_steps=3", "--data.samples_per_epoch=6"]
    assert tiny(*FIT, *extra, "--version=a") == 0
    folder = tmp_path / "runs" / "vqgan_tiny" / "a"
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["step"].max() == 5
    assert {"train/adversarial_weight", "train/discriminator_loss", "train/real_logits"} <= set(metrics.columns)
    codebook = pd.read_csv(folder / "curves" / "codebook.csv")
    assert codebook[codebook["split"] == "train"]["step"].tolist() == [2, 4, 6]
    assert pd.read_csv(folder / "curves" / "drift.csv")["step"].tolist() == [2, 4, 6]
    results = json.loads((folder / "results.json").read_text())
    assert (results["step"], results["protocol"]["weights"]) == (6, "averaged")
    assert json.loads((folder / "environment.json").read_text())["train_steps"] == 6
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert not any(name.startswith("discriminator") for name in checkpoint["weight_ema"]["average"])
    assert isinstance(load_run(folder), VQGAN)


def test_a_resumed_run_goes_on_counting_in_its_folder(tiny, tmp_path):
    words = [*FIT, "--data.samples_per_epoch=6"]
    assert tiny(*words, "--version=whole") == 0
    assert tiny(*words, "--version=part", "--trainer.max_steps=3") == 0
    assert tiny(*words, "--version=part", "--ckpt_path=last") == 0
    whole, part = (tmp_path / "runs" / "vqgan_tiny" / name for name in ("whole", "part"))
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, part)]
    assert states[0]["global_step"] == states[1]["global_step"] == 6
    curves = [pd.read_csv(run / "metrics.csv") for run in (whole, part)]
    assert curves[0]["train/loss"].dropna().shape == curves[1]["train/loss"].dropna().shape == (6,)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_checkpoint_needs_no_perceptual_weights_to_be_measured(tiny, tmp_path, fake_hub, command):
    fake_hub("alex")
    assert tiny(*FIT, "--version=a", "--trainer.max_steps=2") == 0
    path = tmp_path / "runs" / "vqgan_tiny" / "a" / "checkpoints" / "last.ckpt"
    quality = ["--image_quality.lpips=[alex]"] if command != "predict" else []
    words = ["--model.perceptual_weight=1", f"--ckpt_path={path}", "--version=b", "--trainer.limit_predict_batches=2"]
    assert tiny(*FIT, *words, *quality, command=command) == 0
    folder = tmp_path / "runs" / "vqgan_tiny" / "b"
    if command == "predict":
        assert len(list((folder / "predictions").glob("*.png"))) == 4
        return
    results = json.loads((folder / "results.json").read_text())
    assert results["step"] == 2
    # Patches of 32 pixels are just large enough for AlexNet.
    assert results["metrics"]["lpips_alex"] > 0
    assert "rfid" in results["not_measured"]
    assert results["protocol"]["split_sha256"]
    assert results["protocol"]["preparation"] == "32×32 px windows, not resized"


def test_absent_perceptual_weights_stop_a_run_before_it_starts(refusal, experiments, tmp_path, fake_hub, monkeypatch):
    folder = fake_hub()
    monkeypatch.setenv("NSVQ_WEIGHTS_DIR", str(tmp_path / "mine"))
    message = refusal("fit", "--config", str(experiments / "vqgan_tiny.yaml"), "--model.perceptual_weight=1")
    assert "vgg16-397923af.pth" in message
    assert str(tmp_path / "mine") in message
    assert str(folder) in message
    for remedy in ("nsvq weights fetch vgg", "--model.vgg_path", "perceptual_weight to 0", "allow_download"):
        assert remedy in message
    assert not list((tmp_path / "runs" / "vqgan_tiny").iterdir())


def test_the_perceptual_loss_trains_and_is_saved_nowhere(tiny, tmp_path, fake_hub):
    fake_hub("vgg")
    assert tiny(*FIT, "--version=a", "--trainer.max_steps=2", "--model.perceptual_weight=1") == 0
    folder = tmp_path / "runs" / "vqgan_tiny" / "a"
    assert pd.read_csv(folder / "metrics.csv")["train/perceptual_loss"].dropna().gt(0).all()
    names = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("perceptual" in name or "lpips" in name for name in names)


def test_a_run_starts_from_a_published_checkpoint(tiny, tmp_path, capsys):
    assert tiny(*FIT, "--version=a", "--trainer.max_steps=2") == 0
    state = torch.load(tmp_path / "runs" / "vqgan_tiny" / "a" / "checkpoints" / "last.ckpt", weights_only=True)[
        "state_dict"
    ]
    published = {"to_latents": "quant_conv", "from_latents": "post_quant_conv"}
    renamed = {
        ".".join([published.get(name.split(".")[0], name.split(".")[0]), *name.split(".")[1:]]): value
        for name, value in state.items()
        if not name.startswith(("quantizer", "discriminator", "adversarial"))
    }
    torch.save({"state_dict": renamed | {"quantize.embedding.weight": state["quantizer.codebook"]}}, "published.ckpt")
    stopped = ["--trainer.max_steps=0", "--version=b", "--model.pretrained=published.ckpt"]
    assert tiny(*FIT, *stopped, command="validate") == 0
    metrics = pd.read_csv(tmp_path / "runs" / "vqgan_tiny" / "b" / "metrics.csv")
    checkpoint = tmp_path / "runs" / "vqgan_tiny" / "a" / "checkpoints" / "last.ckpt"
    assert tiny(*FIT, "--version=c", f"--ckpt_path={checkpoint}", command="validate") == 0
    expected = pd.read_csv(tmp_path / "runs" / "vqgan_tiny" / "c" / "metrics.csv")
    # A run that started from it needs the file no more.
    assert tiny(*FIT, "--model.pretrained=published.ckpt", "--trainer.max_steps=1", "--version=d") == 0
    Path("published.ckpt").unlink()
    assert isinstance(load_run(tmp_path / "runs" / "vqgan_tiny" / "d"), VQGAN)
    assert metrics["val/psnr"].tolist() == expected["val/psnr"].tolist()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model.pretrained=nothing.ckpt"], ["nothing.ckpt does not exist"]),
        (["--trainer.gradient_clip_val=1"], ["gradient clipping"]),
        (["--model.adversarial.kind=wgan"], ["hinge", "non_saturating"]),
        (["--model.discriminator=PatchDiscriminatorr"], ["did you mean PatchDiscriminator?"]),
        (["--model.decoder.num_layers=2"], ["num_layers"]),
        (["--model.adversarial.start=-5"], ["start must be at least"]),
        (["--data.size=30"], ["multiples of 4"]),
    ],
)
def test_bad_input_is_named(refusal, experiments, words, parts):
    message = refusal("fit", "--config", str(experiments / "vqgan_tiny.yaml"), *words)
    for part in parts:
        assert part in message


def test_a_nan_stops_the_program_with_one_line(tiny, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        tiny(
            *FIT,
            "--version=a",
            "--model.optimizer.lr=1e12",
            "--checkpoint.every_n_train_steps=1",
            "--trainer.max_steps=20",
        )
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nsvq: error: not finite")
    path = tmp_path / "runs" / "vqgan_tiny" / "a" / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


@pytest.fixture
def two_processes(experiments):
    """Run `nsvq fit` on the small VQ-GAN with two processes, as a program."""

    def run(*words):
        script = Path(sys.executable).parent / "nsvq"
        ranks = ["--trainer.devices=2", "--trainer.accelerator=cpu"]
        ranks += ["--trainer.strategy=ddp_find_unused_parameters_true", "--trainer.limit_val_batches=2"]
        command = [script, "fit", "--config", str(experiments / "vqgan_tiny.yaml"), *FIT, *ranks, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.mark.slow
def test_two_processes_train_one_vqgan(two_processes, tmp_path):
    words = ["--data.batch_size=2", "--data.samples_per_epoch=12", "--weight_ema=WeightEMA", "--trainer.max_steps=6"]
    words += ["--image_quality.every_n_epochs=2", "--checkpoint.every_n_train_steps=2", "--model.gradient_clip_val=1"]
    result = two_processes(*words, "--version=a")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "vqgan_tiny" / "a"
    results = json.loads((folder / "results.json").read_text())
    assert (results["step"], results["metrics"]["tokens"], results["images"]) == (6, 2 * 2 * 2 * 64, 2 * 2 * 2)
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert (checkpoint["global_step"], checkpoint["weight_ema"]["updates"]) == (6, 5)


@pytest.mark.slow
def test_a_nan_ends_both_processes(two_processes, tmp_path):
    words = ["--data.batch_size=2", "--model.optimizer.lr=1e12", "--checkpoint.every_n_train_steps=1"]
    result = two_processes(*words, "--version=a", "--trainer.max_steps=50")
    assert result.returncode == 2
    lines = {line for line in result.stderr.splitlines() if line.startswith("nsvq: error")}
    assert len(lines) == 1
    assert "not finite" in lines.pop()
    state = torch.load(tmp_path / "runs" / "vqgan_tiny" / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in state["state_dict"].values())


@pytest.mark.slow
def test_plain_ddp_is_refused_with_the_strategy_to_use(experiments):
    script = Path(sys.executable).parent / "nsvq"
    words = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp"]
    command = [script, "fit", "--config", str(experiments / "vqgan_tiny.yaml"), *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert "--trainer.strategy ddp_find_unused_parameters_true" in result.stderr
    assert "Traceback" not in result.stderr
