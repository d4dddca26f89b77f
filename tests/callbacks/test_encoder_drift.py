"""Encoder drift on a probe set that never changes."""

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from nsvq.callbacks import CodebookHealth, CurvesOnDisk, EncoderDrift, ReconstructionGrid

TRAIN = [1, 2, 3, 4, 5, 6, 7, 0, 1, 2]  # five batches of two tokens
VALIDATION = [0, 1, 3, 6, 2]


def test_rows_tell_how_many_steps_lie_between_the_states(foreign, fit, spell, rows):
    fit(foreign(lr=0.5), spell(TRAIN), spell(VALIDATION), [EncoderDrift(every_n_steps=2), CurvesOnDisk()])
    assert [(row["step"], row["delta_steps"]) for row in rows("drift")] == [(2, 2), (4, 2)]


def test_a_known_movement_is_measured(foreign, fit, spell, rows):
    # A step moves all latents by lr·(2, -1, 2), so two steps by 6·lr; the first channel by 1.2, so each code changes.
    trainer = fit(foreign(lr=0.3), spell(TRAIN), spell(VALIDATION), [EncoderDrift(every_n_steps=2), CurvesOnDisk()])
    for row in rows("drift"):
        assert row["drift_rms"] == pytest.approx(1.8, rel=1e-5)
        assert row["latent_scale"] == pytest.approx(torch.tensor(VALIDATION).double().std(correction=0).item())
        assert row["drift_relative"] == pytest.approx(row["drift_rms"] / row["latent_scale"])
        assert row["codebook_shift"] == 0
    assert rows("drift")[0]["churn"] == 1
    for name, value in rows("drift")[-1].items():
        if name not in ("step", "epoch", "delta_steps"):
            assert float(trainer.callback_metrics[f"drift/{name}"]) == pytest.approx(value)


def test_nothing_drifts_without_learning_and_the_probe_sees_no_dropout(foreign, fit, spell, rows):
    module = foreign(lr=0.0, dropout=0.5)
    fit(module, spell(TRAIN), spell(VALIDATION), [EncoderDrift(every_n_steps=1), CurvesOnDisk()])
    assert len(rows("drift")) == 5
    for row in rows("drift"):
        assert (row["drift_rms"], row["churn"], row["codebook_shift"]) == (0, 0, 0)


@pytest.mark.parametrize("num_images", [3, 64])
def test_the_probe_is_the_same_part_of_the_whole_validation_set_every_time(foreign, fit, spell, num_images):
    module = foreign(lr=0.5)
    validation = spell(VALIDATION)
    fit(module, spell(TRAIN), validation, [EncoderDrift(1, num_images)], limit_val_batches=0)
    assert len(module.encoded_in_eval) == 6
    expected = validation[[0, len(VALIDATION) // 2, len(VALIDATION) - 1]] if num_images == 3 else validation
    assert all(probe.equal(expected) for probe in module.encoded_in_eval)


def test_the_probe_can_come_from_a_data_module_the_module_itself_or_the_first_of_several_loaders(foreign, fit, spell):
    class Data(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(spell(TRAIN), batch_size=2)

        def val_dataloader(self):
            return DataLoader(list(zip(spell(VALIDATION), VALIDATION, strict=True)), batch_size=2)

    class WithLoaders(foreign):
        train_dataloader, val_dataloader = Data.train_dataloader, Data.val_dataloader

    several = [Data().val_dataloader(), DataLoader(spell(TRAIN))]
    for module, train, validation in (
        (foreign(), Data(), None),
        (WithLoaders(), None, None),
        (foreign(), Data().train_dataloader(), several),
    ):
        fit(module, train, validation, [EncoderDrift(num_images=3)], limit_val_batches=0)
        assert module.encoded_in_eval[0].equal(spell([VALIDATION[0], VALIDATION[len(VALIDATION) // 2], VALIDATION[-1]]))


def test_training_does_not_depend_on_being_watched(foreign, fit, spell):
    def trained(*callbacks):
        torch.manual_seed(3)
        module = foreign(lr=0.1, dropout=0.5)
        fit(module, spell(TRAIN), spell(VALIDATION), list(callbacks), shuffle=True, max_epochs=2)
        return torch.cat(module.trained), module.modes, torch.get_rng_state()

    images, modes, state = trained()
    watched_images, watched_modes, watched_state = trained(EncoderDrift(1), CodebookHealth(), ReconstructionGrid())
    assert watched_images.equal(images)
    assert watched_state.equal(state)
    assert watched_modes == modes
    assert modes[0] == {"": True, "quantizer": True, "dropout": True, "frozen": False}


def test_the_reference_survives_a_resume(foreign, fit, spell, rows, tmp_path):
    def callbacks():
        return [EncoderDrift(every_n_steps=2), CurvesOnDisk(), ModelCheckpoint(tmp_path, save_last=True)]

    data = spell(TRAIN[:2]), spell(VALIDATION)
    fit(foreign(lr=0.5), *data, callbacks(), max_steps=3, enable_checkpointing=True)
    fit(foreign(lr=0.5), *data, callbacks(), max_steps=6, enable_checkpointing=True, ckpt_path=tmp_path / "last.ckpt")
    assert [(row["step"], row["delta_steps"]) for row in rows("drift")] == [(2, 2), (4, 2), (6, 2)]
    assert [row["drift_rms"] for row in rows("drift")] == pytest.approx([3.0, 3.0, 3.0], rel=1e-5)


def test_what_cannot_work_is_refused(foreign, fit, spell):
    for name in ("every_n_steps", "num_images"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            EncoderDrift(**{name: 0})
    with pytest.raises(ValueError, match="no validation images"):
        fit(foreign(), spell(TRAIN), spell([0])[:0], [EncoderDrift()])
    module = foreign()
    del module.quantizer
    with pytest.raises(TypeError, match=r"Foreign has no \.quantizer"):
        fit(module, spell(TRAIN), spell(VALIDATION), [EncoderDrift()])
