"""Bad input gets one line and exit code 2."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nsvq.cli import main

OPTIONS = [
    ("--model.quantizer NSVQQ", ["unknown quantizer 'NSVQQ'", "did you mean NSVQ?", "EMAVQ", "TransVQ", "VanillaVQ"]),
    ("--model.quantizer trans", ["unknown quantizer 'trans'", "did you mean TransVQ?"]),
    ("--model.quantizer NSVQ --model.quantizer.kernal softmax", ["unknown option 'kernal'", "did you mean kernel?"]),
    ("--model.quantizer NSVQ --model.quantizer.kernel gausian", ["'gausian'", "clamped_softmax", "mean gaussian?"]),
    ("--model.quantizer NSVQ --model.quantizer.bandwidth.initial=-1", ["initial must be a finite number above 0"]),
    ("--trainer.max_step 3", ["unknown option 'trainer.max_step'", "did you mean trainer.max_steps?"]),
    ("--trainer.max_steps many", ["trainer.max_steps: expected int, got many"]),
    ("--model.quantizer.dim abc", ["dim: expected int, got abc"]),
    ("--model.quantizer.dim 0", ["dim must be at least 1", "got 0"]),
    ("--model.quantizer.codebook_size 0", ["codebook_size must be at least 1", "got 0"]),
    ("--model.quantizer.dim=-3", ["dim must be at least 1", "got -3"]),
    ("--model VQVEA", ["unknown model 'VQVEA'", "did you mean VQVAE?"]),
    ("--data CIFAR", ["unknown data 'CIFAR'", "did you mean CIFAR10?", "EmbeddedPhotographs", "ImageFolder"]),
    ("--data ImageFolder", ["required", "root"]),
    ("--data.size 65", ["65", "tile", "64"]),
    ("--model.quantizer experiments/quantizers/none.yaml", ["file experiments/quantizers/none.yaml does not exist"]),
    ("--trainer.accelerator gpuu", ["gpuu"]),
    ("--codebook_health.train_window 0", ["train_window must be at least 1, got 0"]),
    ("--model.quantizer Quantizer", ["Quantizer is the base", "choose a subclass"]),
    ("--model.quantizer torch.nn.Linear", ["quantizer: Import path torch.nn.Linear", "not", "subclass of Quantizer"]),
    ("--model.encoder http://127.0.0.1:9/x.yaml", ["encoder", "http://127.0.0.1:9/x.yaml"]),
    ("--model.quantizer nopkg.Foo", ["quantizer: nopkg.Foo is not imported", "--allow_module"]),
    ("--model.optimizer Adm", ["unknown optimizer 'Adm'", "did you mean Adam?"]),
    ("--trainer.precision bf17", ["trainer.precision: expected one of", "bf16-mixed", "got bf17"]),
    ("--trainer.devices a", ["`devices`", "should be an int > 0"]),
    ("--trainer.devices [0,0]", ["`devices`", "should be an int > 0"]),
    ("--trainer.logger CometLogger", ["Requirement 'comet-ml"]),
    ("--model.optimizer.fused=true --model.optimizer.foreach=true", ["the optimizer refuses its options: `fused`"]),
    ("--model.lr_scheduler OneCycleLR --model.lr_scheduler.max_lr=1", ["scheduler refuses its options: You must"]),
    ("--runs_dir /proc/none", ["cannot create a run folder below /proc/none"]),
    ("--ckpt_path last", ["give its --version"]),
    ("--ckpt_path none.ckpt", ["checkpoint none.ckpt does not exist"]),
    ("--data ImageFolder --data.root none", ["none", "doesn't exist"]),
]


@pytest.mark.parametrize(("words", "parts"), OPTIONS, ids=[words for words, _ in OPTIONS])
def test_an_option_that_cannot_be_is_refused(refusal, experiments, words, parts):
    line = refusal("fit", "--config", str(experiments / "quickstart.yaml"), *words.split())
    for part in parts:
        assert part in line
    assert not any(Path("runs").rglob("version_*"))


def test_options_that_the_optimizer_refuses_are_named(refusal, experiments):
    line = refusal("fit", "--config", str(experiments / "quickstart.yaml"), "--model.optimizer.lr=-1")
    assert "the optimizer refuses its options: Invalid learning rate: -1" in line


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--model.optimizer=torch.optim.SparseAdam"], "SparseAdam does not support dense gradients"),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/no"], "metric `val/no` which is not"),
    ],
)
def test_what_shows_only_in_training_is_named(refusal, experiments, words, part):
    short = ["--data.batch_size=2", "--data.samples_per_epoch=4", "--trainer.limit_val_batches=1"]
    line = refusal("fit", "--config", str(experiments / "quickstart.yaml"), *short, "--image_quality=null", *words)
    assert part in line


def test_a_misspelt_key_in_a_file_is_refused(refusal, experiments, tmp_path):
    (tmp_path / "mine.yaml").write_text("trainer: {max_stepps: 3}\n")
    line = refusal("fit", "--config", str(experiments / "quickstart.yaml"), "--config", "mine.yaml")
    assert "max_stepps" in line
    (tmp_path / "mine.yaml").write_text("modell: VQVAE\n")
    line = refusal("fit", "--config", str(experiments / "quickstart.yaml"), "--config", "mine.yaml")
    assert "unknown option 'modell'; did you mean model?" in line


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["fitt"], "fitt"),
        ([], "fit,validate,test,predict"),
        (["fit"], "data"),
        (["fit", "--config", "no.yaml"], "no.yaml"),
    ],
)
def test_a_command_that_cannot_be_is_refused(refusal, words, part):
    assert part in refusal(*words)


def photo(path, width=80, height=80):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folder_words(experiments, *words):
    base = ["fit", "--config", str(experiments / "quickstart.yaml"), "--data", "ImageFolder", "--data.root", "pictures"]
    return [*base, "--data.batch_size=2", "--trainer.enable_progress_bar=false", "--trainer.max_steps=4", *words]


def test_an_empty_folder_is_refused(refusal, experiments, tmp_path):
    (tmp_path / "pictures").mkdir()
    assert "pictures" in refusal(*folder_words(experiments))


def test_a_folder_without_a_decodable_image_is_refused(refusal, experiments, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        (tmp_path / "pictures" / f"{number}.png").write_text("no picture")
    assert "pictures" in refusal(*folder_words(experiments))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_also_by_a_worker(refusal, experiments, tmp_path, workers):
    (tmp_path / "pictures").mkdir()
    for number in range(8):
        photo(tmp_path / "pictures" / f"{number}.png")
    whole = (tmp_path / "pictures" / "3.png").read_bytes()
    (tmp_path / "pictures" / "3.png").write_bytes(whole[: len(whole) // 2])
    line = refusal(
        *folder_words(experiments, f"--data.num_workers={workers}", "--data.split=sorted", "--data.val_fraction=2")
    )
    assert "3.png" in line


def test_an_image_smaller_than_the_crop_is_named(refusal, experiments, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        photo(tmp_path / "pictures" / f"{number}.png", 40, 30)
    line = refusal(*folder_words(experiments, "--data.resize=null", "--data.val_fraction=0.5"))
    assert "40" in line
    assert "30" in line


def test_a_list_that_names_absent_files_is_refused(refusal, experiments, tmp_path):
    (tmp_path / "pictures").mkdir()
    photo(tmp_path / "pictures" / "a.png")
    (tmp_path / "val.txt").write_text("a.png\nb.png\n")
    line = refusal(*folder_words(experiments, "--data.val_list=val.txt"))
    assert "b.png" in line


def test_image_sides_that_the_network_cannot_halve_are_refused(refusal, experiments):
    line = refusal("fit", "--config", str(experiments / "quickstart.yaml"), "--data.size=30")
    assert "multiples" in line


@pytest.fixture
def checkpoint(quickstart):
    quickstart("--trainer.max_steps=1", "--version=first")
    return "runs/quickstart/first/checkpoints/last.ckpt"


def test_a_checkpoint_that_does_not_fit_is_refused(refusal, experiments, checkpoint, tmp_path):
    base = ["validate", "--config", str(experiments / "quickstart.yaml")]
    other = refusal(*base, "--ckpt_path", checkpoint, "--model.quantizer.codebook_size=8")
    assert "another model" in other
    assert "quantizer.codebook has shape (512, 16) where the model has (8, 16)" in other
    assert "another model" in refusal(*base, "--ckpt_path", checkpoint, "--model.quantizer=SimVQ")

    content = (tmp_path / checkpoint).read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        (tmp_path / "short.ckpt").write_bytes(content[:length])
        assert "short.ckpt cannot be read" in refusal(*base, "--ckpt_path", "short.ckpt")
    torch.save({"weights": 1}, "other.ckpt")
    assert "not a Lightning checkpoint" in refusal(*base, "--ckpt_path", "other.ckpt")


def test_replacement_is_refused_where_codes_are_not_free(refusal, experiments):
    base = ["fit", "--config", str(experiments / "quickstart.yaml"), "--trainer.max_steps=1"]
    line = refusal(*base, "--model.quantizer=TransVQ", "--trainer.callbacks+=DeadCodeReplacement")
    assert "TransVQ" in line
    assert "free code vectors" in line


def test_non_finite_latents_stop_the_run(refusal, experiments):
    line = refusal(
        "fit",
        "--config",
        str(experiments / "quickstart.yaml"),
        "--trainer.max_steps=20",
        "--model.optimizer.lr=1e30",
        "--trainer.enable_progress_bar=false",
    )
    assert line.startswith("not finite at step 1: latents")


def test_an_occupied_run_folder_is_refused(refusal, experiments, checkpoint):
    line = refusal("fit", "--config", str(experiments / "quickstart.yaml"), "--version=first")
    assert "runs/quickstart/first exists" in line


def test_compare_refuses_what_holds_no_run(refusal, tmp_path):
    assert "none does not exist" in refusal("compare", "none")
    assert "holds no run" in refusal("compare", str(tmp_path))


def test_a_bug_is_not_dressed_up_as_bad_input(quickstart, monkeypatch):
    monkeypatch.setattr("nsvq.metrics.codebook.usage_statistics", lambda counts: len(None))
    with pytest.raises(TypeError, match="no len"):
        quickstart("--trainer.fast_dev_run=1")


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "fit" in text
    assert "compare" in text


def test_a_reader_who_has_had_enough_gets_no_traceback():
    command = [sys.executable, "-c", "from nsvq.cli import main; main(['weights'])"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
