import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from nsvq import distributed
from nsvq.data import EmbeddedPhotographs
from nsvq.data.patches import RandomPatches, deal_tiles, regular_crops
from nsvq.data.tensor_images import flip

SHAPE = (2, 427, 640)


def fit_ready(**options) -> EmbeddedPhotographs:
    data = EmbeddedPhotographs(**options)
    data.setup("fit")
    return data


def train_epoch(torch_seed: int = 0, **options) -> torch.Tensor:
    torch.manual_seed(torch_seed)
    data = fit_ready(**{"samples_per_epoch": 256, **options})
    return torch.cat(list(data.train_dataloader()))


def test_batches_are_bare_float32_images_in_the_unit_range():
    data = fit_ready()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        assert type(batch) is torch.Tensor
        assert batch.dtype == torch.float32
        assert batch.shape == (64, 3, 32, 32)
        assert batch.min() >= -1
        assert batch.max() <= 1
        assert batch.max() - batch.min() > 1.5
    assert len(data.train_dataloader()) == 200


@pytest.mark.parametrize(("tile", "size"), [(64, 32), (61, 32), (64, 64), (100, 24)])
def test_no_pixel_is_on_both_sides(tile, size):
    train_tiles, val_tiles = deal_tiles(SHAPE, tile)
    owner = torch.zeros(SHAPE, dtype=torch.uint8)
    for corner in train_tiles:
        owner[corner.photograph, corner.top : corner.top + tile, corner.left : corner.left + tile] += 1
    for corner in val_tiles:
        owner[corner.photograph, corner.top : corner.top + tile, corner.left : corner.left + tile] += 100
    assert set(owner.unique().tolist()) <= {0, 1, 100}
    marked = owner[:, None].expand(-1, 3, -1, -1).contiguous()
    names = [""] * len(train_tiles)
    patches = RandomPatches(marked, train_tiles, names, tile, size, length=1000)
    assert torch.equal(torch.stack(patches.__getitems__(list(range(1000)))).unique(), torch.tensor([1 / 127.5 - 1]))
    for crop in regular_crops(val_tiles, tile, size):
        window = owner[crop.photograph, crop.top : crop.top + size, crop.left : crop.left + size]
        assert window.shape == (size, size)
        assert window.unique().tolist() == [100]


def test_one_tile_in_four_is_for_validation_in_every_row_and_column():
    train_tiles, val_tiles = deal_tiles(SHAPE, 64)
    assert len(train_tiles) + len(val_tiles) == 2 * 6 * 10
    assert 0.2 < len(val_tiles) / 120 < 0.3
    for photograph in (0, 1):
        held_out = [corner for corner in val_tiles if corner.photograph == photograph]
        assert {corner.top for corner in held_out} == {64 * row for row in range(6)}
        assert {corner.left for corner in held_out} == {64 * column for column in range(10)}


def test_validation_crops_cover_their_tiles():
    _, val_tiles = deal_tiles(SHAPE, 61)
    seen = torch.zeros(SHAPE, dtype=torch.bool)
    for crop in regular_crops(val_tiles, 61, 20):
        seen[crop.photograph, crop.top : crop.top + 20, crop.left : crop.left + 20] = True
    assert seen.sum() == len(val_tiles) * 61 * 61


def test_validation_patches_are_the_named_pixels_in_order():
    data = fit_ready(batch_size=100)
    photographs = dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    patches = torch.cat(list(data.val_dataloader()))
    names = data.splits.val.names
    assert len(patches) == len(names) == 261
    for name, patch in zip(names, patches, strict=True):
        photograph, _, corner = name.partition("/")
        top, left = map(int, corner.split("-"))
        pixels = photographs[photograph][top : top + 32, left : left + 32].astype(np.float32) / 127.5 - 1
        np.testing.assert_allclose(patch.permute(1, 2, 0).numpy(), pixels, atol=1e-6)


def test_testing_and_prediction_use_the_validation_patches():
    data = fit_ready()
    expected = torch.cat(list(data.val_dataloader()))
    assert torch.equal(torch.cat(list(data.test_dataloader())), expected)
    assert torch.equal(torch.cat(list(data.predict_dataloader())), expected)


def test_training_patches_are_windows_of_which_half_are_mirrored():
    rows, columns = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    photographs = torch.stack([rows, columns, rows]).to(torch.uint8)[None]
    tiles, _ = deal_tiles((1, 256, 256), 64)
    patches = RandomPatches(photographs, tiles, [], 64, 8, length=64)
    batch = ((torch.stack(patches.__getitems__(list(range(64)))) + 1) * 127.5).round().long()
    mirrored = batch[:, 1, 0, 0] > batch[:, 1, 0, 1]
    batch[mirrored] = batch[mirrored].flip(-1)
    top, left = batch[:, 0, 0, 0], batch[:, 1, 0, 0]
    for patch, row, column in zip(batch, top, left, strict=True):
        assert torch.equal(patch, photographs[0, :, row : row + 8, column : column + 8].long())
    assert 16 <= mirrored.sum() <= 48
    assert len(set(zip(top.tolist(), left.tolist(), strict=True))) > 60
    assert len({(int(row) // 64, int(column) // 64) for row, column in zip(top, left, strict=True)}) > 8


def test_the_seeds_decide_the_training_patches_and_the_random_state_does_not():
    first = train_epoch()
    torch.rand(5)
    assert torch.equal(first, train_epoch())
    assert not torch.equal(first, train_epoch(torch_seed=1))
    assert not torch.equal(first, train_epoch(seed=1))
    assert len(first.unique(dim=0)) > 250


def test_a_draw_is_the_same_patch_in_any_batch_and_another_in_each_epoch():
    train = fit_ready(samples_per_epoch=8, batch_size=8).splits.train
    epoch = torch.stack(train.__getitems__(list(range(8))))
    assert torch.equal(torch.stack([train[draw] for draw in (5, 2)]), epoch[[5, 2]])
    assert len(torch.cat([epoch, torch.stack(train.__getitems__(list(range(8, 16))))]).unique(dim=0)) == 16


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_patches_of_one(monkeypatch, processes):
    whole = train_epoch(batch_size=16).unflatten(0, (-1, 16))
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    monkeypatch.setattr(distributed, "from_rank_0", lambda value: value)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(train_epoch(batch_size=16 // processes).unflatten(0, (-1, 16 // processes)))
    assert torch.equal(torch.stack(shares, dim=2).flatten(1, 2), whole)


def test_mirroring_is_left_to_right():
    images = torch.arange(4).view(1, 1, 2, 2).expand(2, 1, 2, 2)
    assert flip(images, torch.tensor([False, True])).flatten(1).tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]]


def test_a_size_above_the_tile_is_refused():
    with pytest.raises(ValueError, match=r"size 65 .* tiles of 64"):
        EmbeddedPhotographs(size=65)
    with pytest.raises(ValueError, match=r"tile 500 .* 427"):
        fit_ready(tile=500)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        EmbeddedPhotographs(size=0)
