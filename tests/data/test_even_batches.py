"""Evaluation batches of several processes."""

from itertools import product
from math import ceil

import pytest
import torch

from nsvq import distributed
from nsvq.data import EmbeddedPhotographs
from nsvq.data.base import ImageDataModule, Splits
from nsvq.data.even_batches import EvenBatches
from nsvq.data.tensor_images import TensorImages


class Blank(ImageDataModule):
    """Black images, as many as asked for."""

    def __init__(self, val, test):
        super().__init__(batch_size=4)
        self.counts = (8, val, test)

    def make_splits(self):
        return Splits(*(self._images(count) for count in self.counts))

    def _images(self, count):
        return TensorImages(torch.zeros(count, 3, 2, 2, dtype=torch.uint8), [str(index) for index in range(count)])


@pytest.mark.parametrize("processes", range(1, 8))
def test_every_index_comes_once_and_every_process_has_as_many_batches(processes):
    for images, batch_size in product(range(processes, 70), range(1, 10)):
        ranks = [list(EvenBatches(images, batch_size, processes, rank)) for rank in range(processes)]
        (count,) = {len(batches) for batches in ranks}
        assert count == len(EvenBatches(images, batch_size, processes, 0))
        # In the order of the data set: chunk by chunk, and inside a chunk rank by rank.
        chunks = list(zip(*ranks, strict=True))
        assert [index for chunk in chunks for batch in chunk for index in batch] == list(range(images))
        for chunk in chunks:
            lengths = [len(batch) for batch in chunk]
            assert min(lengths) >= 1
            assert max(lengths) - min(lengths) <= 1
        lengths = [sum(map(len, chunk)) for chunk in chunks]
        assert max(lengths) - min(lengths) <= 1
        assert lengths == sorted(lengths, reverse=True)
        longest = max(len(batch) for batches in ranks for batch in batches)
        if batch_size > 1 or images % processes == 0:
            assert longest <= batch_size
            assert count == ceil(images / (processes * batch_size))
        else:
            assert longest == 2


def test_fewer_images_than_processes_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="2 images cannot be divided among 3 processes"):
        EvenBatches(2, 4, 3, 0)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    data = Blank(val=3, test=2)
    data.setup("validate")
    assert len(data.val_dataloader()) == 1
    with pytest.raises(ValueError, match="the test split holds 2 images, fewer than the 3 processes"):
        data.test_dataloader()


def evaluation_batches(split):
    data = EmbeddedPhotographs(batch_size=32)
    data.setup("validate")
    return list(getattr(data, f"{split}_dataloader")())


@pytest.mark.parametrize("split", ["val", "test"])
def test_two_processes_share_a_data_modules_images(rank_pool, split):
    whole = evaluation_batches(split)
    assert [len(batch) for batch in whole] == [32] * 8 + [5]
    ranks = rank_pool.run(evaluation_batches, split)
    assert [len(batch) for batch in ranks[0]] == [27, 26, 26, 26, 26]
    assert [len(batch) for batch in ranks[1]] == [26] * 5
    assert torch.equal(torch.cat([batch for chunk in zip(*ranks, strict=True) for batch in chunk]), torch.cat(whole))


def test_prediction_is_left_to_lightning(rank_pool):
    for batches in rank_pool.run(evaluation_batches, "predict"):
        assert [len(batch) for batch in batches] == [32] * 8 + [5]
