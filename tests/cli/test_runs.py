"""What a run leaves behind, and how it goes on."""

import json
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from nsvq.cli import main
from nsvq.cli.loading import load_run
from nsvq.cli.run_folder import create_run_folder

FIT = ["--trainer.max_steps=8", "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=1"]
METERS = ["--codebook_health.train_window=2", "--encoder_drift.every_n_steps=2", "--checkpoint.every_n_train_steps=3"]


@pytest.fixture
def fit(quickstart):
    return lambda *words: quickstart(*FIT, *METERS, *words)


def test_a_run_folder_holds_what_it_promises(fit, tmp_path, monkeypatch):
    monkeypatch.setenv("NSVQ_BACKEND", "torch")
    fit()
    folder = tmp_path / "runs" / "quickstart" / "version_0"
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["quantizer"]["class_path"] == "nsvq.quantizers.VanillaVQ"
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["command"].startswith("nsvq fit --config")
    assert environment["seed"] == 0
    assert environment["variables"]["NSVQ_BACKEND"] == "torch"
    assert environment["versions"]["torch"] == version("torch")
    assert set(environment["data_splits_sha256"]) == {"train", "val", "test"}
    assert environment["train_steps"] == 8
    assert environment["train_seconds"] > 0

    metrics = pd.read_csv(folder / "metrics.csv")
    logged = {
        "train/loss",
        "train/codebook_utilization",
        "train/perplexity",
        "val/psnr",
        "val/ssim",
        "val/quantization_error",
        "val/codebook_utilization",
        "val/codebook_utilization_ceiling",
        "val/perplexity",
        "val/dead_code_fraction",
        "drift/churn",
    }
    assert logged <= set(metrics.columns)
    assert all(metrics[name].notna().any() for name in logged)

    codebook = pd.read_csv(folder / "curves" / "codebook.csv")
    assert codebook[codebook["split"] == "train"]["step"].tolist() == [2, 4, 6, 8]
    assert codebook[codebook["split"] == "val"]["step"].tolist() == [4, 8]
    drift = pd.read_csv(folder / "curves" / "drift.csv")
    assert drift["step"].tolist() == [2, 4, 6, 8]
    assert drift["delta_steps"].tolist() == [2, 2, 2, 2]
    counts = np.load(folder / "curves" / "counts_val_00000008.npz")["counts"]
    assert counts.sum() == codebook["tokens"].iloc[-1]

    assert len(list((folder / "reconstructions").glob("*.png"))) == 2
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]


def test_watchers_can_be_switched_off(fit, tmp_path):
    fit("--codebook_health=null", "--encoder_drift=null", "--curves=null", "--reconstructions=null", "--version=bare")
    folder = tmp_path / "runs" / "quickstart" / "bare"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "environment.json",
        "metrics.csv",
    ]
    assert "val/psnr" in pd.read_csv(folder / "metrics.csv")


def test_the_same_seed_gives_the_same_curves_and_being_watched_changes_nothing(fit, tmp_path):
    fit("--version=a")
    fit("--version=b")
    fit("--version=unwatched", "--encoder_drift=null", "--codebook_health=null")
    fit("--version=other", "--seed_everything=1")
    runs = tmp_path / "runs" / "quickstart"
    for file in ("metrics.csv", "curves/codebook.csv", "curves/drift.csv"):
        assert (runs / "a" / file).read_text() == (runs / "b" / file).read_text()

    def losses(name):
        return pd.read_csv(runs / name / "metrics.csv")["train/loss"].dropna().tolist()

    assert losses("a") == losses("unwatched")
    assert losses("a") != losses("other")


def test_a_resumed_run_goes_on_in_its_folder_without_repeating_a_step(fit, tmp_path):
    fit("--version=whole")
    fit("--version=parts", "--trainer.max_steps=5")
    parts = tmp_path / "runs" / "quickstart" / "parts"
    # What a run leaves that was killed after its last checkpoint.
    with (parts / "curves" / "drift.csv").open("a") as file:
        file.write("6,0,2,9,9,9,9,9,9,9\n7,0,")
    fit("--ckpt_path", str(parts / "checkpoints" / "last.ckpt"))
    assert sorted(path.name for path in (tmp_path / "runs" / "quickstart").iterdir()) == ["parts", "whole"]
    drift = pd.read_csv(parts / "curves" / "drift.csv")
    assert drift["step"].tolist() == [2, 4, 6, 8]
    assert (drift["drift_rms"] < 9).all()
    steps = pd.read_csv(parts / "metrics.csv").dropna(subset="train/loss")["step"].tolist()
    assert steps == list(range(8))
    assert torch.load(parts / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
    assert json.loads((parts / "environment.json").read_text())["train_steps"] == 8


def test_a_named_run_goes_on_and_its_config_can_be_run_again(fit, tmp_path):
    runs = tmp_path / "runs" / "quickstart"
    fit("--version=a", "--ckpt_path=last", "--trainer.max_steps=3")
    fit("--version=a", "--ckpt_path=last", "--trainer.max_steps=6")
    fit("--version=a", "--ckpt_path", str(runs / "a" / "checkpoints" / "last.ckpt"))
    assert [path.name for path in runs.iterdir()] == ["a"]
    assert torch.load(runs / "a" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
    environment = json.loads((runs / "a" / "environment.json").read_text())
    assert len(environment["earlier_commands"]) == 2
    main(["fit", "--config", str(runs / "a" / "config.yaml"), "--ckpt_path=null"])
    again = torch.load(runs / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    fit("--version=whole")
    whole = torch.load(runs / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_trained_model_can_be_loaded(fit, tmp_path):
    fit("--version=a", "--model.quantizer=TransVQ", "--model.quantizer.width=8")
    folder = tmp_path / "runs" / "quickstart" / "a"
    model = load_run(folder)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(FileNotFoundError, match="no run folder"):
        load_run(tmp_path)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("quantizer", ["NSVQ", "EMAVQ"])
def test_every_precision_trains_and_is_watched(fit, tmp_path, precision, quantizer):
    fit("--version=p", f"--trainer.precision={precision}", f"--model.quantizer={quantizer}", "--trainer.max_steps=4")
    drift = pd.read_csv(tmp_path / "runs" / "quickstart" / "p" / "curves" / "drift.csv")
    assert np.isfinite(drift).all(axis=None)


def test_validate_test_and_predict_use_a_checkpoint(fit, quickstart, tmp_path):
    fit("--version=trained")
    runs = tmp_path / "runs" / "quickstart"
    checkpoint = ["--ckpt_path", str(runs / "trained" / "checkpoints" / "last.ckpt")]
    quickstart("--version=v", *checkpoint, command="validate")
    quickstart("--version=t", *checkpoint, command="test")
    trained = pd.read_csv(runs / "trained" / "metrics.csv")
    validated = pd.read_csv(runs / "v" / "metrics.csv")
    for name in ("val/psnr", "val/quantization_error", "val/codebook_utilization"):
        assert validated[name].dropna().iloc[-1] == pytest.approx(trained[name].dropna().iloc[-1], rel=1e-6)
    assert {"test/psnr", "test/codebook_utilization"} <= set(pd.read_csv(runs / "t" / "metrics.csv").columns)

    quickstart("--version=p", "--trainer.limit_predict_batches=2", *checkpoint, command="predict")
    folder = runs / "p" / "predictions"
    saved = np.load(folder / "indices_rank0.npz")
    assert saved["indices"].shape == (4, 8, 8)
    assert saved["numbers"].tolist() == [0, 1, 2, 3]
    assert Image.open(folder / "000003.png").size == (32, 32)
    assert (folder / "names.txt").read_text().startswith("000000.png\t")


def test_wandb_logs_offline_and_keeps_its_id(fit, experiments, tmp_path):
    words = ["--config", str(experiments / "loggers" / "wandb.yaml"), "--version=w"]
    fit(*words, "--trainer.max_steps=4")
    folder = tmp_path / "runs" / "quickstart" / "w"
    run_id = (folder / "wandb_run_id").read_text()
    assert (folder / "metrics.csv").is_file()
    assert len(list(folder.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))) == 1
    fit(*words[:2], "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"))
    assert (folder / "wandb_run_id").read_text() == run_id
    assert {path.name.rsplit("-", 1)[-1] for path in folder.glob("wandb/offline-run-*")} == {run_id}


def test_compare_prints_the_table_and_draws_the_figure(fit, quickstart, tmp_path, capsys):
    fit("--version=one")
    both = ["--trainer.callbacks+=CodebookInitialization", "--trainer.callbacks+=DeadCodeReplacement"]
    fit("--version=two", "--model.quantizer=NSVQ", *both)
    quickstart("--ckpt_path=runs/quickstart/one/checkpoints/last.ckpt", command="validate")
    capsys.readouterr()
    assert main(["compare", "runs/quickstart", "--output", "out"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for column in ("utilization", "ceiling", "perplexity", "quant. error", "PSNR", "dead codes", "seconds"):
        assert column in lines[0]
    assert "VanillaVQ" in lines[1]
    assert "NSVQ + initialization + replacement" in lines[2]
    assert Image.open(tmp_path / "out" / "compare.png").size[0] > 1000
    assert pd.read_csv(tmp_path / "out" / "compare.csv")["step"].tolist() == [8, 8]


def test_run_folders_never_collide(tmp_path):
    folders = [create_run_folder(tmp_path, "e", None) for _ in range(3)]
    assert [folder.name for folder in folders] == ["version_0", "version_1", "version_2"]


def test_nsvq_and_lightning_are_the_same_program(experiments):
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    assert scripts["nsvq"] == scripts["lightning"] == "nsvq.cli:main"
    script = Path(sys.executable).parent / "lightning"
    words = ["fit", "--config", str(experiments / "quickstart.yaml"), "--print_config"]
    result = subprocess.run([script, *words], capture_output=True, text=True, check=True)
    assert yaml.safe_load(result.stdout)["experiment"] == "quickstart"


def test_the_module_runs_as_a_program(experiments):
    words = ["fit", "--config", str(experiments / "quickstart.yaml"), "--model.quantizer", "NSVQQ"]
    result = subprocess.run([sys.executable, "-m", "nsvq", *words], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "did you mean NSVQ?" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_two_processes_share_one_run_folder(experiments, tmp_path):
    words = [*FIT, *METERS, "--data.batch_size=2", "--data.samples_per_epoch=16", "--trainer.limit_val_batches=2"]
    words += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--model.quantizer=NSVQ"]
    script = Path(sys.executable).parent / "nsvq"
    subprocess.run([script, "fit", "--config", str(experiments / "quickstart.yaml"), *words], check=True, timeout=300)
    (folder,) = (tmp_path / "runs" / "quickstart").iterdir()
    codebook = pd.read_csv(folder / "curves" / "codebook.csv")
    counts = np.load(folder / "curves" / "counts_val_00000008.npz")["counts"]
    assert counts.sum() == codebook[codebook["split"] == "val"]["tokens"].iloc[-1] == 2 * 2 * 2 * 64
    assert codebook[codebook["split"] == "train"]["tokens"].tolist() == [2 * 2 * 2 * 64] * 4


@pytest.mark.parametrize(
    ("program", "words", "belongs"),
    [("lightning", "run job", True), ("lightning", "fit --config a.yaml", False), ("nsvq", "run job", False)],
)
def test_lightning_sdk_keeps_the_commands_it_would_have_answered(monkeypatch, tmp_path, program, words, belongs):
    entrypoint = tmp_path / "lightning_sdk" / "cli" / "entrypoint.py"
    entrypoint.parent.mkdir(parents=True)
    entrypoint.write_text("def main_cli():\n    raise SystemExit(7)\n")
    for folder in (tmp_path / "lightning_sdk", entrypoint.parent):
        (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", [f"/bin/{program}", *words.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    assert (stop.value.code == 7) == belongs


@pytest.mark.parametrize("model", ["quickstart.yaml", "vqgan_tiny.yaml"])
def test_one_seed_gives_all_methods_the_same_networks(quickstart, experiments, tmp_path, model):
    states = {}
    for name in ("VanillaVQ", "TransVQ", "SimVQ"):
        words = ["--trainer.max_steps=1", "--model.quantizer", name, "--model.optimizer.lr=0", f"--version={name}"]
        quickstart(*words, "--experiment=e", "--image_quality=null", config=experiments / model)
        last = tmp_path / "runs" / "e" / name / "checkpoints" / "last.ckpt"
        states[name] = torch.load(last, weights_only=True)["state_dict"]
    for name in ("TransVQ", "SimVQ"):
        for key, value in states["VanillaVQ"].items():
            if key.startswith(("encoder.", "decoder.", "to_latents.", "from_latents.", "discriminator.")):
                assert value.equal(states[name][key]), key
