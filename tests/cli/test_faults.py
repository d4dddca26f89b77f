"""What a run does when its disk is full, its images vanish, its checkpoint is damaged or W&B is away."""

import multiprocessing
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch

from nsvq.cli import main
from nsvq.cli.checkpoints import check_checkpoint
from nsvq.cli.run_folder import release_run_folder, reopen_run_folder

from .test_bad_input import folder_words, photo

FULL = Path("/dev/full")
FAST = ["--trainer.log_every_n_steps=1", "--checkpoint.every_n_train_steps=2"]


# Where a run's folder cannot be.


def test_a_file_in_the_place_of_a_folder_is_named(refusal, experiments, tmp_path):
    words = ["fit", "--config", str(experiments / "quickstart.yaml")]
    (tmp_path / "file").touch()
    assert refusal(*words, "--runs_dir=file") == "cannot create a run folder below file: Not a directory"
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "a").touch()
    assert refusal(*words, "--version=a") == "cannot create a run folder below runs: Not a directory"


def reopen_as_nobody(folder, results):
    if os.getuid() == 0:
        os.setuid(65534)
    try:
        results.put(str(reopen_run_folder(folder)))
    except OSError as error:
        results.put(str(error))


def test_a_run_does_not_go_on_in_a_folder_that_cannot_be_written():
    fork = multiprocessing.get_context("fork")
    # pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        results = fork.Queue()
        process = fork.Process(target=reopen_as_nobody, args=(folder, results))
        process.start()
        message = results.get(timeout=30)
        process.join()
        folder.chmod(0o755)
    assert message == f"cannot go on in run folder {folder}: Permission denied; name another --version"


# A full disk.


def make_full(path):
    """Let a write to a file fail as on a full disk. Only for files that nobody reads: they never end."""
    path.unlink(missing_ok=True)
    path.symlink_to(FULL)


SHORT = ["--data.batch_size=2", "--data.samples_per_epoch=8", "--trainer.limit_val_batches=2"]
SHORT += ["--encoder_drift.num_images=2", "--trainer.enable_progress_bar=false"]


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "file",
    [
        "checkpoints/last.ckpt",
        pytest.param("config.yaml", marks=pytest.mark.slow),
        pytest.param("environment.json", marks=pytest.mark.slow),
        pytest.param("reconstructions/step_00000008.png", marks=pytest.mark.slow),
        pytest.param("curves/counts_val_00000008.npz", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_a_full_disk_takes_no_more_is_named_and_the_former_one_stays(
    quickstart, refusal, experiments, tmp_path, file
):
    quickstart("--trainer.max_steps=4", "--version=a", *FAST)
    folder = tmp_path / "runs" / "quickstart" / "a"
    former = (folder / file).read_bytes() if (folder / file).exists() else None
    make_full(folder / f"{file}.part")
    words = ["--config", str(experiments / "quickstart.yaml"), *SHORT, *FAST]
    line = refusal("fit", *words, "--version=a", "--ckpt_path=last", "--trainer.max_steps=8")
    assert f"runs/quickstart/a/{file}" in line
    assert "No space left on device" in line
    assert ((folder / file).read_bytes() if (folder / file).exists() else None) == former
    assert not list(folder.rglob("*.part"))

    # With room again the run goes on.
    quickstart("--version=a", "--ckpt_path=last", "--trainer.max_steps=8", *FAST)
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("file", ["curves/codebook.csv", pytest.param("metrics.csv", marks=pytest.mark.slow)])
def test_a_table_that_a_full_disk_takes_no_more_is_named(refusal, experiments, tmp_path, file):
    folder = tmp_path / "runs" / "quickstart" / "a"
    thread = when_training(lambda: make_full(folder / file))
    words = ["--config", str(experiments / "quickstart.yaml"), *SHORT, *FAST, "--codebook_health.train_window=2"]
    line = refusal("fit", *words, "--version=a", "--trainer.max_steps=100000", "--trainer.limit_val_batches=0")
    thread.join()
    assert line == f"cannot write runs/quickstart/a/{file}: No space left on device"
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] >= 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 5 MB: room for one checkpoint of the quickstart, not for a second beside it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_last_checkpoint_whole(small_disk, refusal, experiments):
    words = ["--config", str(experiments / "quickstart.yaml"), "--runs_dir", str(small_disk), "--version=a"]
    words += ["--data.batch_size=2", "--trainer.max_steps=9", "--trainer.enable_progress_bar=false", *FAST]
    line = refusal("fit", *words)
    folder = small_disk / "quickstart" / "a"
    assert line.startswith(f"checkpoint {folder}/checkpoints/last.ckpt could not be written: No space left on device")
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]


# Images that vanish while training.


def when_training(act):
    """Call a function as soon as a run has its first checkpoint."""

    def watch():
        deadline = time.monotonic() + 60
        while not list(Path("runs").rglob("last.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        photo(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_vanishes_while_training_is_named(refusal, experiments, pictures, workers):
    words = folder_words(experiments, f"--data.num_workers={workers}", "--data.split=sorted", "--data.val_fraction=2")
    thread = when_training((pictures / "3.png").unlink)
    line = refusal(*words, "--trainer.max_steps=100000", "--trainer.limit_val_batches=0", *FAST)
    thread.join()
    assert line.startswith("cannot decode image pictures/3.png: ")
    assert "No such file" in line
    (last,) = Path("runs").rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] >= 2


def test_an_image_that_vanishes_is_replaced_and_counted_where_that_is_asked_for(experiments, pictures):
    words = folder_words(experiments, "--data.split=sorted", "--data.val_fraction=2", "--data.on_damaged_image=skip")
    thread = when_training((pictures / "3.png").unlink)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Each checkpoint waits for the disk: the first comes early enough, more would only cost time.
        steps = ["--trainer.max_steps=120", "--checkpoint.every_n_train_steps=20"]
        assert main([*words, *steps, "--trainer.limit_val_batches=0"]) == 0
    thread.join()
    skipped = [str(warning.message) for warning in caught if str(warning.message).startswith("skipped: ")]
    assert len(skipped) == 1
    assert "pictures/3.png" in skipped[0]
    assert skipped[0].endswith("(1 of at most 10)")


@pytest.mark.slow
def test_a_loader_worker_that_is_killed_is_named(refusal, experiments, pictures):
    others = {child.pid for child in multiprocessing.active_children()}

    def kill_a_worker():
        (worker,) = {child.pid for child in multiprocessing.active_children()} - others
        os.kill(worker, signal.SIGKILL)

    words = folder_words(experiments, "--data.num_workers=1", "--data.split=sorted", "--data.val_fraction=2")
    thread = when_training(kill_a_worker)
    line = refusal(*words, "--trainer.max_steps=100000", "--trainer.limit_val_batches=0", *FAST)
    thread.join()
    assert line.startswith("DataLoader worker (pid")
    assert line.endswith("see the system's log (out of memory?), or lower --data.num_workers")


# Weights & Biases.


def offline_run(folder):
    (run_id,) = {path.name.rsplit("-", 1)[-1] for path in folder.glob("wandb/offline-run-*")}
    assert run_id == (folder / "wandb_run_id").read_text()
    return run_id


@pytest.fixture
def online(monkeypatch, tmp_path):
    """W&B as on a machine where nobody has logged in."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home"))
    return monkeypatch


def test_without_a_login_w_and_b_stays_on_disk_and_the_run_goes_on(online, quickstart, experiments, tmp_path):
    words = ["--config", str(experiments / "loggers" / "wandb.yaml"), "--version=w", "--trainer.max_steps=3", *FAST]
    with pytest.warns(UserWarning, match=r"W&B cannot be reached \(.*\): this run is logged to disk only"):
        quickstart(*words)
    folder = tmp_path / "runs" / "quickstart" / "w"
    offline_run(folder)
    assert pd.read_csv(folder / "metrics.csv")["train/loss"].notna().sum() == 3


@pytest.mark.slow
def test_an_unreachable_w_and_b_stays_on_disk_and_the_run_goes_on(online, quickstart, experiments, tmp_path):
    # Nothing listens on port 9 of this machine.
    for name, value in {"API_KEY": "a" * 40, "BASE_URL": "http://127.0.0.1:9", "INIT_TIMEOUT": "3"}.items():
        online.setenv(f"WANDB_{name}", value)
    words = ["--config", str(experiments / "loggers" / "wandb.yaml"), "--version=w", "--trainer.max_steps=3", *FAST]
    with pytest.warns(UserWarning, match="W&B cannot be reached"):
        quickstart(*words)
    offline_run(tmp_path / "runs" / "quickstart" / "w")


# Damaged checkpoints.


@pytest.fixture
def small_checkpoint(tmp_path):
    """A checkpoint file of some kilobytes and the model that it belongs to."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    path = tmp_path / "small.ckpt"
    torch.save({"state_dict": model.state_dict(), "global_step": 3, "loops": {"a": [1, 2, 3]}}, path)
    return path, model


def outcome(path, model):
    try:
        content = check_checkpoint(path, model)
    except ValueError as error:
        return "refused" if str(error).startswith(f"checkpoint {path} cannot be read") else str(error)
    sound = all(torch.equal(value, model.state_dict()[name]) for name, value in content["state_dict"].items())
    return "sound" if sound and content["global_step"] == 3 and content["loops"] == {"a": [1, 2, 3]} else "wrong"


@pytest.mark.parametrize("cuts", [40, pytest.param(None, marks=pytest.mark.slow)])
def test_a_checkpoint_cut_anywhere_is_refused(small_checkpoint, cuts):
    path, model = small_checkpoint
    whole = path.read_bytes()
    assert outcome(path, model) == "sound"
    for length in range(0, len(whole), 1 if cuts is None else len(whole) // cuts):
        path.write_bytes(whole[:length])
        assert outcome(path, model) == "refused", length


@pytest.mark.parametrize("flips", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_checkpoint_with_a_wrong_bit_is_refused_or_holds_what_it_held(small_checkpoint, flips):
    path, model = small_checkpoint
    whole = path.read_bytes()
    chance = random.Random(0)
    outcomes = set()
    for _ in range(flips):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        outcomes.add(outcome(path, model))
    assert outcomes == {"refused", "sound"}


def test_a_wrong_bit_among_the_weights_is_refused_at_the_command_line(quickstart, refusal, experiments, tmp_path):
    quickstart("--trainer.max_steps=1", "--version=a")
    last = tmp_path / "runs" / "quickstart" / "a" / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    for command in ("fit", "validate"):
        words = [command, "--config", str(experiments / "quickstart.yaml"), "--ckpt_path", str(last)]
        assert "last.ckpt cannot be read: it is truncated, damaged or not a checkpoint" in refusal(*words)


def test_a_checkpoint_that_may_only_be_read_is_enough_to_validate(quickstart, tmp_path):
    quickstart("--trainer.max_steps=1", "--version=a")
    checkpoints = tmp_path / "runs" / "quickstart" / "a" / "checkpoints"
    # The superuser may write anywhere, so that permissions alone would show nothing.
    before = [(path, path.stat().st_mtime_ns) for path in (checkpoints, *checkpoints.iterdir())]
    quickstart("--version=v", "--ckpt_path", str(checkpoints / "last.ckpt"), command="validate")
    assert [(path, path.stat().st_mtime_ns) for path in (checkpoints, *checkpoints.iterdir())] == before
    assert (tmp_path / "runs" / "quickstart" / "v" / "results.json").is_file()


@pytest.fixture(autouse=True)
def _no_folder_stays_held():
    yield
    release_run_folder()
