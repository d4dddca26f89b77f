"""Curves on disk: appended row by row, cut back on resume, untouched by dry runs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from nsvq.callbacks import CodebookHealth, CurvesOnDisk, DeadCodeReplacement, EncoderDrift, truncate
from nsvq.cli.run_logger import RunLogger
from nsvq.quantizers import EMAVQ, VanillaVQ


@pytest.fixture
def trainer(tmp_path):
    logger = SimpleNamespace(log_dir=str(tmp_path))
    return SimpleNamespace(is_global_zero=True, loggers=[logger], fast_dev_run=0, global_step=20, callbacks=[])


def test_each_row_is_on_disk_at_once_below_a_single_header(trainer, tmp_path):
    path = tmp_path / "curves" / "drift.csv"
    CurvesOnDisk().append(trainer, "drift", {"step": 1, "churn": 0.5})
    assert path.read_text().splitlines() == ["step,churn", "1,0.5"]
    CurvesOnDisk().append(trainer, "drift", {"step": 2, "churn": 1 / 3})
    assert path.read_text().splitlines() == ["step,churn", "1,0.5", f"2,{1 / 3!r}"]


@pytest.mark.parametrize("half", ["", "25", "25,0.", "25,0.5", "1"])
def test_truncation_keeps_whole_rows_up_to_the_step(tmp_path, half):
    path = tmp_path / "drift.csv"
    path.write_text("epoch,step,churn\n0,10,0.1\n0,20,0.2\n1,30,0.3\n" + half)
    truncate(path, 20)
    assert path.read_text() == "epoch,step,churn\n0,10,0.1\n0,20,0.2\n"
    truncate(path, 20)
    assert path.read_text() == "epoch,step,churn\n0,10,0.1\n0,20,0.2\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "step,chu", "step,churn\n", "step,churn\n5,0.1"])
def test_truncation_of_a_file_without_a_whole_row_makes_room_for_a_new_one(trainer, tmp_path, content):
    path = tmp_path / "curves" / "drift.csv"
    path.parent.mkdir()
    path.write_text(content)
    truncate(path, 20)
    CurvesOnDisk().append(trainer, "drift", {"step": 20, "churn": 0.5})
    assert path.read_text().splitlines() == ["step,churn", "20,0.5"]


def test_a_run_that_goes_on_drops_what_lies_beyond_its_step(trainer, tmp_path):
    curves = CurvesOnDisk()
    for step in (10, 20, 30):
        curves.append(trainer, "codebook", {"step": step, "tokens": 1})
        curves.save_arrays(
            SimpleNamespace(**{**vars(trainer), "global_step": step}), "counts_val", counts=torch.arange(step)
        )
    curves.on_train_start(trainer, None)
    curves.append(trainer, "codebook", {"step": 25, "tokens": 1})
    assert (tmp_path / "curves" / "codebook.csv").read_text().splitlines() == ["step,tokens", "10,1", "20,1", "25,1"]
    archives = sorted(path.name for path in (tmp_path / "curves").glob("*.npz"))
    assert archives == ["counts_val_00000010.npz", "counts_val_00000020.npz"]
    with np.load(tmp_path / "curves" / archives[0]) as file:
        assert file["counts"].tolist() == list(range(10))


@pytest.mark.parametrize("where", [{"is_global_zero": False}, {"fast_dev_run": 1}], ids=str)
def test_other_ranks_and_dry_runs_write_nothing(trainer, tmp_path, where):
    vars(trainer).update(where)
    curves = CurvesOnDisk()
    curves.on_train_start(trainer, None)
    curves.append(trainer, "drift", {"step": 1})
    curves.save_arrays(trainer, "counts_val", counts=torch.zeros(3))
    assert not any(tmp_path.iterdir())


def test_fast_dev_run_writes_nothing(foreign, fit, spell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callbacks = [CodebookHealth(train_window=1), EncoderDrift(every_n_steps=1), CurvesOnDisk()]
    fit(foreign(), spell([1, 2]), spell([3, 4]), callbacks, fast_dev_run=True)
    assert not any(tmp_path.iterdir())


def watchers(folder, every_n_train_steps):
    checkpoint = ModelCheckpoint(folder, save_top_k=0, save_last=True, every_n_train_steps=every_n_train_steps)
    return [CodebookHealth(train_window=2), EncoderDrift(every_n_steps=2), CurvesOnDisk(), checkpoint]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_resumed_run_leaves_no_gap_and_no_repeated_step(foreign, fit, spell, rows, tmp_path):
    # All batches are equal, since Lightning starts the loader anew when it resumes within an epoch.
    data = spell([1, 2] * 20), spell([0, 1, 3, 6, 2])
    arguments = {"val_check_interval": 2, "check_val_every_n_epoch": None, "enable_checkpointing": True}

    def run(version, stop, ckpt_path=None):
        folder = tmp_path / version
        trainer = fit(
            foreign(lr=0.1),
            *data,
            watchers(folder, every_n_train_steps=3),
            max_steps=stop,
            logger=RunLogger(folder),
            ckpt_path=ckpt_path,
            **arguments,
        )
        assert trainer.global_step == stop

    def curves(version):
        return {path.name: path.read_text().splitlines() for path in (tmp_path / version / "curves").glob("*.csv")}

    run("whole", 8)
    run("run", 5)
    with (tmp_path / "run" / "curves" / "drift.csv").open("a") as file:
        file.write("6,0,2,0.1")  # cut short by a kill
    run("run", 8, ckpt_path=tmp_path / "run" / "last.ckpt")
    assert [(row["step"], row["split"]) for row in rows("codebook")] == [
        (step, split) for step in (2, 4, 6, 8) for split in ("train", "val")
    ]
    assert [(row["step"], row["delta_steps"]) for row in rows("drift")] == [(2, 2), (4, 2), (6, 2), (8, 2)]
    assert curves("run") == curves("whole")
    names = [{path.name for path in (tmp_path / version / "curves").glob("*.npz")} for version in ("run", "whole")]
    assert names[0] == names[1] == {f"counts_val_{step:08d}.npz" for step in (2, 4, 6, 8)}


@pytest.mark.parametrize("quantizer", [None, VanillaVQ, EMAVQ])
def test_checkpoints_load_without_pickled_objects(foreign, fit, spell, tmp_path, quantizer):
    callbacks = watchers(tmp_path, every_n_train_steps=1)
    if quantizer is not None:
        callbacks.insert(0, DeadCodeReplacement(unused_steps=2, every_n_steps=1))
    module = foreign(quantizer and quantizer(3, 8), optimizer=lambda parameters: torch.optim.Adam(parameters))
    fit(module, spell([1, 2, 3, 4]), spell([0, 1]), callbacks, max_steps=2, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    names = {key.split("{")[0] for key in checkpoint["callbacks"]}
    assert {"CodebookHealth", "EncoderDrift"} <= names
    assert ("DeadCodeReplacement" in names) == (quantizer is not None)
