"""A module that is no VQVAE and whose codes are known beforehand, and short fits of it."""

import csv
from typing import NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

K, FACTOR = 8, 4
DIRECTION = torch.tensor([2.0, -1.0, 2.0])


class Output(NamedTuple):
    quantized: Tensor
    indices: Tensor
    loss: Tensor


class SpelledQuantizer(nn.Module):
    """Chooses the code whose number a latent carries in its first channel; code k lies at (k, 0, 0)."""

    free_codes = None

    def __init__(self):
        super().__init__()
        self.codebook_size = K
        self.register_buffer("codes", torch.stack([torch.arange(K), *2 * [torch.zeros(K)]], dim=1))

    def forward(self, z):
        indices = z[:, 0].round().long().clamp(0, K - 1)
        return Output(self.codes[indices].movedim(-1, 1), indices, z.new_zeros(()))

    def search_space(self, z):
        return z.movedim(1, -1).reshape(-1, 3), self.codes


class Foreign(LightningModule):
    """Has only `.quantizer`, `.encode` and `.decode`; each step of SGD moves its latents by lr·DIRECTION."""

    def __init__(self, quantizer=None, lr=0.0, dropout=0.0, optimizer=None):
        super().__init__()
        self.quantizer = quantizer or SpelledQuantizer()
        self.offset = nn.Parameter(torch.zeros(3))
        self.dropout = nn.Dropout(dropout)
        self.frozen = nn.Dropout().eval()
        self.make_optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=lr))
        self.trained, self.encoded_in_eval, self.modes, self.offsets = [], [], [], []

    def encode(self, images):
        if not self.training:
            self.encoded_in_eval.append(images)
        return self.dropout(images[:, :, ::FACTOR, ::FACTOR] + self.offset[:, None, None])

    def decode(self, quantized):
        return quantized.repeat_interleave(FACTOR, -1).repeat_interleave(FACTOR, -2)

    def training_step(self, batch, batch_idx):
        self.trained.append(batch)
        self.offsets.append(self.offset.detach().clone())
        self.modes.append({name: part.training for name, part in self.named_modules()})
        return self.quantizer(self.encode(batch)).loss - self.offset @ DIRECTION

    def validation_step(self, batch, batch_idx):
        self.quantizer(self.encode(batch))

    test_step = validation_step

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


@pytest.fixture
def foreign():
    """The class of the module."""
    return Foreign


@pytest.fixture
def spell():
    """Make one image per code number; each is a single token."""

    def images(numbers, second_channel=0.0):
        latents = torch.tensor([[number, second_channel, 0.0] for number in numbers])
        return latents[:, :, None, None].expand(-1, -1, FACTOR, FACTOR).clone()

    return images


@pytest.fixture
def fit(tmp_path):
    """Fit a module for a few steps with the run folder `tmp_path/run`; return the trainer.

    `train` is a tensor of images or whatever `Trainer.fit` takes; the training images are shuffled if asked.
    """

    def fit(module, train, validation, callbacks, batch_size=2, ckpt_path=None, shuffle=False, **arguments):
        defaults = {
            "accelerator": "cpu",
            "max_steps": -1,
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "logger": CSVLogger(tmp_path, name="", version="run"),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        }
        if "max_steps" in arguments:
            defaults["max_epochs"] = -1
        trainer = Trainer(callbacks=callbacks, **(defaults | arguments))
        if isinstance(train, Tensor):
            train = DataLoader(train, batch_size=batch_size, shuffle=shuffle)
            validation = DataLoader(validation, batch_size=batch_size)
        trainer.fit(module, train, validation, ckpt_path=ckpt_path)
        return trainer

    return fit


@pytest.fixture
def rows(tmp_path):
    """Read a curve of `tmp_path/run` as dictionaries of numbers and words."""

    def number(text):
        try:
            return float(text)
        except ValueError:
            return text

    def rows(curve):
        with (tmp_path / "run" / "curves" / f"{curve}.csv").open(newline="") as file:
            return [{name: number(value) for name, value in row.items()} for row in csv.DictReader(file)]

    return rows


def pytest_collection_modifyitems(items):
    for item in items:
        for noise in (
            "ignore:.*does not have many workers",
            "ignore:.*LeafSpec",
            "ignore:The number of training batches",
            "ignore:Experiment logs directory",
            "ignore:.*logging directory",
            "ignore:Checkpoint directory",
            "ignore:Found 1 module",
        ):
            item.add_marker(pytest.mark.filterwarnings(noise))
