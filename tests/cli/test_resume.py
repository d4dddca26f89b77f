"""A run that was killed and goes on is the run that was not."""

import itertools
import signal

import numpy as np
import pytest
import torch

from . import forked
from .conftest import EXPERIMENTS, SMALL

STEPS, EPOCH = 16, 6
COMMON = [
    *SMALL,
    "--data.samples_per_epoch=24",
    f"--trainer.max_steps={STEPS}",
    "--trainer.log_every_n_steps=1",
    "--trainer.val_check_interval=3",
    "--trainer.accelerator=cpu",
    "--codebook_health.train_window=4",
    "--encoder_drift.every_n_steps=2",
    "--image_quality=null",
    "--trainer.callbacks+=DeadCodeReplacement",
    "--trainer.callbacks.unused_steps=2",
    "--trainer.callbacks.every_n_steps=2",
    "--weight_ema=WeightEMA",
]
MODELS = {
    "VQVAE": [
        "--config",
        str(EXPERIMENTS / "quickstart.yaml"),
        "--model.quantizer",
        str(EXPERIMENTS / "quantizers" / "nsvq.yaml"),
        "--model.lr_scheduler=torch.optim.lr_scheduler.ExponentialLR",
        "--model.lr_scheduler.gamma=0.9",
    ],
    "VQGAN": [
        "--config",
        str(EXPERIMENTS / "vqgan_tiny.yaml"),
        "--model.quantizer=EMAVQ",
        "--model.accumulate_grad_batches=2",
        "--model.adversarial.discriminator_start=2",
        "--model.adversarial.start=4",
        "--model.adversarial.ramp=4",
        "--model.adversarial.lecam_weight=0.1",
    ],
}


def words(model, ranks, *more):
    strategy = ["--trainer.devices=2", "--trainer.strategy=ddp_find_unused_parameters_true"] if ranks > 1 else []
    return ["fit", *MODELS[model], *COMMON, f"--data.batch_size={4 // ranks}", *strategy, *more]


def content(folder):
    """Everything of a run that must not depend on an interruption."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    # The run's own story: seconds, and the command line's number of steps.
    del checkpoint["callbacks"]["RunRecord"]
    files = {name: (folder / name).read_bytes() for name in ("metrics.csv", "curves/codebook.csv", "curves/drift.csv")}
    counts = {path.name: np.load(path)["counts"].tolist() for path in sorted(folder.glob("curves/*.npz"))}
    return checkpoint, files, counts, sorted(path.name for path in (folder / "reconstructions").iterdir())


def assert_equal(one, other, path="checkpoint"):
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_equal(left, right, f"{path}/{number}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    else:
        assert one == other, path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of a model on some ranks, made once."""
    made = {}

    def whole(model, ranks):
        if (model, ranks) not in made:
            folder = tmp_path_factory.mktemp("whole")
            forked.succeed(words(model, ranks, "--version=v", "--experiment=e"), folder, ranks)
            made[model, ranks] = content(folder / "runs" / "e" / "v")
        return made[model, ranks]

    return whole


def interrupt(model, ranks, workers, folder, place, step, every):
    """Kill a run, and let it go on."""
    options = [f"--data.num_workers={workers}", f"--checkpoint.every_n_train_steps={every}", "--experiment=e"]
    codes = forked.run(words(model, ranks, *options, "--version=v"), folder, ranks, kill_at=(place, step))
    assert codes == [-signal.SIGKILL] * ranks or -signal.SIGKILL in codes
    last = folder / "runs" / "e" / "v" / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)["global_step"]
    forked.succeed(words(model, ranks, *options, "--version=v", "--ckpt_path=last"), folder, ranks)
    return content(last.parent.parent), saved


# Where the process dies, the steps between checkpoints, the step of the checkpoint that is left.
PLACES = {
    "mid-epoch": ("batch", 11, 5, 10),
    "mid-epoch, at a validation": ("batch", 11, 9, 9),
    "the epoch's last batch": ("batch", 13, 11, 11),
    "the validation at the epoch's end": ("validation", 12, 4, 8),
    "the next epoch's first batch": ("batch", 13, 12, 12),
    "a save": ("save", 10, 5, 5),
}


def test_a_killed_run_goes_on_as_if_it_had_not_been(whole, tmp_path):
    resumed, saved = interrupt("VQVAE", 1, 0, tmp_path, *PLACES["mid-epoch"][:3])
    assert saved == 10
    for one, other in zip(whole("VQVAE", 1), resumed, strict=True):
        assert_equal(one, other)


EXTENSIONS = {
    "inside an epoch": ([], ["--trainer.max_steps=8"]),
    "at an epoch's end": ([], ["--trainer.max_steps=6"]),
    "by epochs": (["--trainer.max_steps=-1", "--trainer.max_epochs=3"], ["--trainer.max_epochs=1"]),
}


@pytest.mark.parametrize("where", EXTENSIONS)
def test_a_run_that_ended_and_is_given_more_steps_is_the_longer_run(tmp_path, where):
    options, shorter = EXTENSIONS[where]
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    base = words("VQVAE", 1, *options, "--experiment=e", "--version=v")
    forked.succeed(base, tmp_path / "whole")
    forked.succeed([*base, *shorter], tmp_path / "parts")
    forked.succeed([*base, "--ckpt_path=last"], tmp_path / "parts")
    for one, other in zip(content(tmp_path / "whole/runs/e/v"), content(tmp_path / "parts/runs/e/v"), strict=True):
        assert_equal(one, other)


MATRIX = [
    (model, ranks, workers, place)
    for model, ranks, workers, place in itertools.product(MODELS, (1, 2), (0, 2), PLACES)
    if (model, ranks, workers, place) != ("VQVAE", 1, 0, "mid-epoch")
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "ranks", "workers", "place"), MATRIX)
def test_every_killed_run_goes_on_as_if_it_had_not_been(whole, tmp_path, model, ranks, workers, place):
    where, step, every, expected = PLACES[place]
    resumed, saved = interrupt(model, ranks, workers, tmp_path, where, step, every)
    # With accumulated gradients a checkpoint waits for a step that begins with none.
    assert saved in (expected, expected + 1) if model == "VQGAN" else saved == expected
    for one, other in zip(whole(model, ranks), resumed, strict=True):
        assert_equal(one, other)
