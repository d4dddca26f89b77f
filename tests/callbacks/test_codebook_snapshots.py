"""Snapshots of codes and latents on disk."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from nsvq.callbacks import CodebookSnapshots, CurvesOnDisk

TRAIN = [1, 2, 3, 4, 5, 6, 7, 0, 1, 2]  # five batches of two tokens
VALIDATION = [0, 1, 3, 6, 1]


@pytest.fixture
def snapshots(tmp_path):
    def read():
        files = sorted((tmp_path / "run" / "curves").glob("snapshot_*.npz"))
        return {int(path.stem.split("_")[1]): dict(np.load(path)) for path in files}

    return read


def test_codes_latents_and_uses_are_those_of_the_probe_at_each_step(foreign, fit, spell, snapshots):
    fit(foreign(lr=0.1), spell(TRAIN), spell(VALIDATION), [CodebookSnapshots(2), CurvesOnDisk()])
    taken = snapshots()
    assert list(taken) == [0, 2, 4]
    for step, arrays in taken.items():
        # A step moves all latents by lr·(2, -1, 2).
        moved = np.array([[code, 0, 0] for code in VALIDATION]) + 0.1 * step * np.array([2, -1, 2])
        assert arrays["latents"] == pytest.approx(moved, abs=1e-6)
        assert arrays["codes"][:, 0].tolist() == list(range(8))
        chosen = moved[:, 0].round().astype(int).clip(0, 7)
        assert arrays["uses"].tolist() == np.bincount(chosen, minlength=8).tolist()


def test_of_many_codes_and_latents_evenly_spaced_ones_are_kept_and_all_tokens_counted(foreign, fit, spell, snapshots):
    callback = CodebookSnapshots(100, num_latents=3, num_codes=4)
    fit(foreign(), spell(TRAIN), spell([1, 0, 0, 0, 7]), [callback, CurvesOnDisk()])
    arrays = snapshots()[0]
    assert arrays["latents"][:, 0].tolist() == [1, 0, 7]
    assert arrays["codes"][:, 0].tolist() == [0, 2, 5, 7]
    assert arrays["uses"].tolist() == [3, 0, 0, 1]


def test_watching_changes_no_training(foreign, fit, spell):
    plain, watched = foreign(lr=0.1, dropout=0.5), foreign(lr=0.1, dropout=0.5)
    for module, callbacks in ((plain, []), (watched, [CodebookSnapshots(1), CurvesOnDisk()])):
        torch.manual_seed(0)
        fit(module, spell(TRAIN), spell(VALIDATION), callbacks)
    assert plain.offset.equal(watched.offset)


def test_a_resumed_run_takes_no_first_snapshot_again(foreign, fit, spell, snapshots, tmp_path):
    callbacks = [CodebookSnapshots(4), CurvesOnDisk(), ModelCheckpoint(tmp_path, save_last=True)]
    fit(foreign(), spell(TRAIN), spell(VALIDATION), callbacks, max_steps=3, enable_checkpointing=True)
    before = snapshots()[0]
    fit(
        foreign(),
        spell(TRAIN),
        spell([5]),
        callbacks,
        max_steps=5,
        enable_checkpointing=True,
        ckpt_path=tmp_path / "last.ckpt",
    )
    assert list(snapshots()) == [0, 4]
    assert snapshots()[0]["uses"].tolist() == before["uses"].tolist()


@pytest.mark.parametrize("name", ["every_n_steps", "num_images", "num_latents", "num_codes"])
def test_numbers_below_1_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        CodebookSnapshots(**{name: 0})
