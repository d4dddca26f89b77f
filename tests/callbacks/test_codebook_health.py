"""Codebook health: what is counted, when, and under which names."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from nsvq.callbacks import CodebookHealth, CurvesOnDisk, EncoderDrift
from nsvq.distributed import rank, world_size
from nsvq.quantizers import VanillaVQ

TRAIN = [1, 1, 2, 3, 4, 4, 4, 4, 5, 5]  # five batches of two tokens
VALIDATION = [0, 0, 0, 5]
PERPLEXITY = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def test_a_validation_pass_equals_a_count_by_hand(foreign, fit, spell):
    # Each latent lies 0.5 beside its code; the numbers 0, 0, 0, 5 have the variance 25·3/16.
    trainer = fit(foreign(), spell(TRAIN), spell(VALIDATION, second_channel=0.5), [CodebookHealth()])
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    assert logged == pytest.approx(
        {
            "val/codebook_utilization": 2 / 8,
            "val/codebook_utilization_ceiling": 1 - (7 / 8) ** 4,
            "val/perplexity": PERPLEXITY,
            "val/dead_code_fraction": 6 / 8,
            "val/tokens": 4,
            "val/quantization_error": 0.25 / (25 * 3 / 16),
        }
    )


def test_training_is_counted_in_windows_that_do_not_overlap(foreign, fit, spell, rows):
    trainer = fit(foreign(), spell(TRAIN), spell(VALIDATION), [CodebookHealth(train_window=2), CurvesOnDisk()])
    windows = [row for row in rows("codebook") if row["split"] == "train"]
    assert [row["step"] for row in windows] == [2, 4]
    assert [row["tokens"] for row in windows] == [4, 4]
    assert [row["dead_codes"] for row in windows] == [5, 7]
    assert [row["perplexity"] for row in windows] == pytest.approx([2**1.5, 1.0])
    assert all(math.isnan(row["quantization_error"]) for row in windows)
    logged = {name for name in trainer.callback_metrics if name.startswith("train/")}
    usage = ("codebook_utilization", "codebook_utilization_ceiling", "perplexity", "dead_code_fraction", "tokens")
    assert logged == {f"train/{name}" for name in usage}


def test_the_sanity_check_is_not_counted_and_passes_do_not_add_up(foreign, fit, spell, rows):
    callbacks = [CodebookHealth(), CurvesOnDisk()]
    fit(foreign(), spell(TRAIN), spell(VALIDATION), callbacks, max_epochs=2, num_sanity_val_steps=2)
    assert [(row["step"], row["split"], row["tokens"]) for row in rows("codebook")] == [(5, "val", 4), (10, "val", 4)]


def test_the_counts_on_disk_sum_to_the_tokens(foreign, fit, spell, tmp_path):
    fit(foreign(), spell(TRAIN), spell(VALIDATION), [CodebookHealth(), CurvesOnDisk()])
    with np.load(tmp_path / "run" / "curves" / "counts_val_00000005.npz") as file:
        assert file["counts"].tolist() == [3, 0, 0, 0, 0, 1, 0, 0]
        assert file["counts"].dtype == np.int64


def test_a_test_pass_has_its_own_names(foreign, fit, spell, rows):
    callbacks = [CodebookHealth(), CurvesOnDisk()]
    module = foreign()
    trainer = fit(module, spell(TRAIN), spell(VALIDATION), callbacks)
    logged = trainer.test(module, DataLoader(spell([1, 2, 3]), batch_size=2), verbose=False)[0]
    assert logged["test/codebook_utilization"] == pytest.approx(3 / 8)
    assert logged["test/tokens"] == 3
    assert [row["split"] for row in rows("codebook")] == ["val", "test"]


@pytest.mark.parametrize("drift_first", [True, False])
def test_the_probe_of_another_callback_is_not_counted(foreign, fit, spell, rows, drift_first):
    callbacks = [CodebookHealth(train_window=1), EncoderDrift(every_n_steps=1), CurvesOnDisk()]
    fit(foreign(), spell(TRAIN), spell(VALIDATION), callbacks[::-1] if drift_first else callbacks)
    assert [row["tokens"] for row in rows("codebook")] == [2, 2, 2, 2, 2, 4]


def test_it_stops_listening_after_the_fit(foreign, fit, spell):
    module = foreign()
    fit(module, spell(TRAIN), spell(VALIDATION), [CodebookHealth()])
    assert not module.quantizer._forward_hooks


def test_what_cannot_work_is_refused(foreign, fit, spell):
    with pytest.raises(ValueError, match="train_window must be at least 1, got 0"):
        CodebookHealth(train_window=0)
    module = foreign()
    del module.quantizer
    with pytest.raises(TypeError, match=r"Foreign has no \.quantizer"):
        fit(module, spell(TRAIN), spell(VALIDATION), [CodebookHealth()])


def validate_share(folder, codes, shares):
    """Count one validation batch on this rank, or none if it has no share; return what is logged."""
    quantizer = VanillaVQ(dim=3, codebook_size=len(codes)).eval()
    quantizer.codebook = nn.Parameter(codes)
    logged = {}
    module = SimpleNamespace(quantizer=quantizer, log_dict=logged.update, device=torch.device("cpu"))
    trainer = SimpleNamespace(
        is_global_zero=rank() == 0,
        loggers=[SimpleNamespace(log_dir=folder)],
        fast_dev_run=0,
        callbacks=[CurvesOnDisk()],
        sanity_checking=False,
        global_step=7,
        current_epoch=0,
    )
    health = CodebookHealth()
    health.setup(trainer, module, "validate")
    if shares[rank()] is not None:
        health.on_validation_batch_start(trainer, module)
        quantizer(shares[rank()])
        health.on_validation_batch_end(trainer, module)
    health.on_validation_epoch_end(trainer, module)
    return logged


def test_two_ranks_log_and_write_the_counts_of_all_tokens(rank_pool, tmp_path):
    codes = torch.eye(3)
    shares = [codes[[0, 0, 0]], codes[[2]]]
    for logged in rank_pool.run(validate_share, tmp_path, codes, shares):
        assert logged["val/tokens"] == 4
        assert logged["val/codebook_utilization"] == pytest.approx(2 / 3)
        assert logged["val/perplexity"] == pytest.approx(PERPLEXITY)
    with np.load(tmp_path / "curves" / "counts_val_00000007.npz") as file:
        assert file["counts"].tolist() == [3, 0, 1]


def test_a_rank_without_a_batch_takes_part(rank_pool, tmp_path):
    codes = torch.eye(3)
    with_batch, without = rank_pool.run(validate_share, tmp_path, codes, [codes[[0, 0, 2]] + 0.1, None])
    assert with_batch == without
    assert with_batch["val/tokens"] == 3
    # Each token lies 0.1 beside its code in three channels; two channels of 0, 0, 1 have the variance 2/9.
    assert with_batch["val/quantization_error"] == pytest.approx(0.03 / (4 / 9))


def train_share(batches, state, window):
    """Go on from a state with this rank's share of training batches; return the next state and what is logged."""
    quantizer = VanillaVQ(dim=3, codebook_size=3)
    quantizer.codebook = nn.Parameter(torch.eye(3))
    logged = {}
    device = torch.device("cpu")
    module = SimpleNamespace(quantizer=quantizer, log_dict=logged.update, device=device, training=True)
    trainer = SimpleNamespace(callbacks=[], global_step=0, current_epoch=0)
    health = CodebookHealth(train_window=window)
    health.setup(trainer, module, "fit")
    if state is not None:
        health.load_state_dict(state)
    for batch in batches:
        health.on_train_batch_start(trainer, module)
        quantizer(torch.eye(3)[batch[rank() :: world_size()]])
        health.on_train_batch_end(trainer, module)
    return health.state_dict(), logged


def test_an_unfinished_window_is_saved_for_all_ranks_and_goes_on_with_any_number_of_them(rank_pool, rank_pool_of_three):
    first, then = [[0, 0, 0, 1, 0, 1]], [[2, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
    saved, _ = train_share(first, None, 2)
    assert (saved["batches"], saved["counts"].tolist()) == (1, [4, 2, 0])
    uninterrupted, logged = train_share(then, saved, 2)
    assert (uninterrupted["batches"], uninterrupted["counts"].tolist()) == (1, [0, 6, 0])
    assert logged["train/tokens"] == 12
    for pool in (rank_pool, rank_pool_of_three):
        for state, _ in pool.run(train_share, first, None, 2):
            assert (state["batches"], state["counts"].tolist()) == (1, [4, 2, 0])
        for state, theirs in pool.run(train_share, then, saved, 2):
            assert (state["batches"], state["counts"].tolist()) == (1, [0, 6, 0])
            assert theirs == logged
