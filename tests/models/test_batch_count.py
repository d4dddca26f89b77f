"""The helper that makes `trainer.global_step` count batches, beside what Lightning does without it."""

from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from nsvq.callbacks import WeightEMA
from nsvq.models.batch_count import one_count_per_batch

pytestmark = pytest.mark.filterwarnings("ignore")


class TwoOptimizers(LightningModule):
    def __init__(self, counted, steps_per_batch=(1, 1)):
        super().__init__()
        self.automatic_optimization = False
        self.layer_a, self.layer_b = nn.Linear(2, 1), nn.Linear(2, 1)
        self.counted, self.steps_per_batch = counted, steps_per_batch
        self.batches = 0

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        self.log("steps", float(self.global_step))
        with one_count_per_batch(self.trainer, optimizers) if self.counted else nullcontext():
            for optimizer, layer, steps in zip(
                optimizers, (self.layer_a, self.layer_b), self.steps_per_batch, strict=True
            ):
                for _ in range(steps):
                    optimizer.zero_grad()
                    self.manual_backward(layer(batch).sum())
                    optimizer.step()
        self.batches += 1

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.layer_a, self.layer_b)]


def fit(model, folder, *callbacks, ckpt_path=None, max_steps=10):
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=1,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(torch.ones(12, 2), batch_size=4), ckpt_path=ckpt_path)
    return trainer


def test_lightning_alone_counts_every_optimizers_step(tmp_path):
    """If this fails, Lightning has mended its count and the helper can go."""
    model = TwoOptimizers(counted=False)
    assert fit(model, tmp_path).global_step == 10
    assert model.batches == 5


@pytest.mark.parametrize("steps_per_batch", [(1, 1), (1, 0), (0, 0), (3, 2)])
def test_a_batch_counts_once_however_many_steps_it_takes(tmp_path, steps_per_batch):
    model = TwoOptimizers(True, steps_per_batch)
    average = WeightEMA(0.9)
    saved = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer = fit(model, tmp_path, average, saved)
    assert trainer.global_step == model.batches == 10
    assert trainer.fit_loop.epoch_loop.total_batch_idx == 9
    assert average._updates == 9  # the first batch makes the copy
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["step=4.ckpt", "step=8.ckpt"]
    header, *rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    logged = [(int(row[header.index("step")]), float(row[header.index("steps")])) for row in rows]
    assert logged == [(step, step) for step in range(10)]


def test_the_count_goes_on_after_a_resume(tmp_path):
    saved = ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=4)
    fit(TwoOptimizers(True), tmp_path / "a", saved, max_steps=4)
    resumed = TwoOptimizers(True)
    trainer = fit(resumed, tmp_path / "b", ckpt_path=tmp_path / "at.ckpt")
    assert (trainer.global_step, resumed.batches) == (10, 6)


def test_a_batch_that_fails_does_not_count(tmp_path):
    class Failing(TwoOptimizers):
        def training_step(self, batch, batch_idx):
            with one_count_per_batch(self.trainer, self.optimizers()):
                raise ValueError("no")

    model = Failing(True)
    with pytest.raises(ValueError, match="no"):
        fit(model, tmp_path)
    assert model.trainer.global_step == 0
