import hashlib
import os
import signal

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data.distributed import DistributedSampler

from nsvq import distributed
from nsvq.data.base import ImageDataModule, Splits
from nsvq.data.tensor_images import TensorImages
from nsvq.data.training_order import TrainingOrder


class Numbered(ImageDataModule):
    """Image i holds the grey level i everywhere."""

    def __init__(self, train: int = 20, val: int = 5, test: int = 3, **options):
        super().__init__(**{"batch_size": 4, **options})
        self.counts = (train, val, test)
        self.built = 0

    def make_splits(self) -> Splits:
        self.built += 1
        return Splits(*(self._images(count) for count in self.counts))

    def _images(self, count: int) -> TensorImages:
        levels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        return TensorImages(levels, [f"{index}.png" for index in range(count)])


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: dict[int, list[int]] = {}

    def training_step(self, batch):
        self.epochs.setdefault(self.current_epoch, []).extend(levels(batch))
        return self.weight * batch.mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def levels(batch: torch.Tensor) -> list[int]:
    return ((batch[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def ready(**options) -> Numbered:
    data = Numbered(**options)
    data.setup()
    return data


def test_training_is_shuffled_in_full_batches():
    loader = ready(train=18).train_dataloader()
    batches = [levels(batch) for batch in loader]
    assert [len(batch) for batch in batches] == [4, 4, 4, 4]
    seen = [level for batch in batches for level in batch]
    assert len(set(seen)) == 16
    assert seen != sorted(seen)


def test_evaluation_keeps_order_and_every_image():
    data = ready()
    assert [levels(batch) for batch in data.val_dataloader()] == [[0, 1, 2, 3], [4]]
    assert [levels(batch) for batch in data.test_dataloader()] == [[0, 1, 2]]
    assert [levels(batch) for batch in data.predict_dataloader()] == [[0, 1, 2]]


def order(seed: int = 0, torch_seed: int = 0, epoch: int = 0, **options) -> list[int]:
    torch.manual_seed(torch_seed)
    loader = ready(seed=seed, **options).train_dataloader()
    loader.sampler.set_epoch(epoch)
    torch.rand(7)
    return [level for batch in loader for level in levels(batch)]


def test_the_order_is_that_of_the_seeds_and_the_epoch():
    assert order() == order()
    assert order() != order(seed=1)
    assert order() != order(torch_seed=1)
    assert order() != order(epoch=1)
    assert sorted(order()) == sorted(order(epoch=1)) == list(range(20))


def test_the_order_is_that_of_torchs_sampler():
    sampler = DistributedSampler(range(20), 2, 1, seed=3, drop_last=True)
    sampler.set_epoch(2)
    draws = TrainingOrder(20, 4, seed=3, processes=2, rank=1, epoch=2)
    assert [draw % 20 for draw in draws] == list(sampler)[: len(draws)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("processes", "batch_size", "start"), [(1, 4, 8), (2, 2, 8), (1, 5, 10), (2, 4, 8)])
def test_a_loader_goes_on_where_a_checkpoint_was_saved(monkeypatch, num_workers, processes, batch_size, start):
    """Two batches of four of epoch 3 are done; other sizes begin at the next whole batch."""
    whole, rest = order(epoch=3), []
    torch.manual_seed(0)
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    monkeypatch.setattr(distributed, "from_rank_0", lambda value: value)
    data = ready(batch_size=batch_size, num_workers=num_workers)
    data.load_state_dict({"epoch": 3, "images": 8})
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        loader = data.train_dataloader()
        rest.append([level for batch in loader for level in levels(batch)])
        assert len(loader) == 20 // (batch_size * processes)
        loader.sampler.set_epoch(4)
        assert len([level for batch in loader for level in levels(batch)]) == len(loader) * batch_size
    dealt = [image for turn in zip(*rest, strict=True) for image in turn]
    assert dealt == whole[start:][: len(dealt)]
    assert 20 - start - len(dealt) < batch_size * processes


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loaders_take_nothing_from_the_global_random_state(num_workers):
    data = ready(num_workers=num_workers)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(loader)
    assert torch.equal(torch.rand(3), expected)


def test_workers_persist_only_where_there_are_some():
    assert ready(num_workers=1).train_dataloader().persistent_workers
    assert not ready().train_dataloader().persistent_workers


def test_ranks_divide_the_training_images_without_repeats(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "from_rank_0", lambda value: value)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        loader = ready(train=21).train_dataloader()
        shares.append([level for batch in loader for level in levels(batch)])
    assert [len(share) for share in shares] == [8, 8]
    assert len({*shares[0], *shares[1]}) == 16


def test_lightning_gives_each_epoch_its_own_order_and_repeats_it_in_the_next_run():
    def run(seed: int) -> dict[int, list[int]]:
        seed_everything(seed)
        module = Recorder()
        trainer = Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=Numbered())
        return module.epochs

    epochs = run(0)
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert run(0) == epochs
    assert run(1) != epochs


def test_setup_builds_once():
    data = Numbered()
    for stage in ("fit", "validate", "test", "predict", None):
        data.setup(stage)
    assert data.built == 1


def test_split_sha256_is_that_of_the_newline_joined_names():
    data = Numbered()
    assert data.split_sha256 == {}
    data.setup("validate")
    assert set(data.split_sha256) == {"train", "val", "test"}
    assert data.split_sha256["test"] == hashlib.sha256(b"0.png\n1.png\n2.png").hexdigest()
    assert data.split_sha256["train"] != data.split_sha256["val"]


def test_less_than_one_full_batch_is_refused_for_training_only():
    data = Numbered(train=3)
    data.setup("validate")
    with pytest.raises(ValueError, match="training split holds 3 images, less than one full batch of 4"):
        data.setup("fit")


def test_the_full_batch_is_each_processs_own(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 6)
    monkeypatch.setattr(distributed, "from_rank_0", lambda value: value)
    with pytest.raises(ValueError, match="20 images for 6 processes"):
        Numbered().setup("fit")


@pytest.mark.parametrize(("split", "options"), [("val", {"val": 0}), ("test", {"test": 0})])
def test_an_empty_evaluation_split_is_refused(split, options):
    with pytest.raises(ValueError, match=f"the {split} split of Numbered is empty"):
        Numbered(**options).setup("fit")


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Numbered(batch_size=0)
    with pytest.raises(ValueError, match="num_workers must be at least 0, got -1"):
        Numbered(num_workers=-1)


def test_data_before_setup_is_refused():
    with pytest.raises(RuntimeError, match=r"call Numbered.setup\(\)"):
        Numbered().val_dataloader()


def test_a_loader_worker_outlives_a_signal_to_all_processes_of_the_run():
    data = Numbered(64, batch_size=2, num_workers=1)
    data.setup("fit")
    batches = iter(data.train_dataloader())
    next(batches)
    (worker,) = batches._workers
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(worker.pid, number)
    assert len(list(batches)) == 31


def test_a_second_fit_does_not_begin_where_a_checkpoint_let_the_first_begin():
    data = Numbered(64, batch_size=2)
    data.setup("fit")
    data.load_state_dict({"epoch": 0, "images": 8})
    assert len(list(data.train_dataloader())) == 28
    data.teardown("fit")
    assert len(list(data.train_dataloader())) == 32
