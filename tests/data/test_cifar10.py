import pickle

import numpy as np
import pytest
import torch
from torchvision import datasets

from nsvq.data import CIFAR10


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Ten images a batch file, in CIFAR-10's own format."""
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]:
        content = {"data": random.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": [0] * 10}
        (base / name).write_bytes(pickle.dumps(content))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane"]}))
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda path, md5=None: True)
    return tmp_path


def ready(root, **options) -> CIFAR10:
    data = CIFAR10(root, **{"batch_size": 8, **options})
    data.prepare_data()
    data.setup()
    return data


def test_batches_are_bare_float32_images_in_the_unit_range(root):
    data = ready(root)
    assert [len(part) for part in (data.splits.train, data.splits.val, data.splits.test)] == [50, 10, 10]
    batch = next(iter(data.train_dataloader()))
    assert type(batch) is torch.Tensor
    assert batch.dtype == torch.float32
    assert batch.shape == (8, 3, 32, 32)
    assert batch.min() == -1
    assert batch.max() == 1


def test_the_test_images_validate_in_order(root):
    content = pickle.loads((root / "cifar-10-batches-py" / "test_batch").read_bytes())
    expected = torch.from_numpy(content["data"]).view(10, 3, 32, 32).float() / 127.5 - 1
    data = ready(root)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        torch.testing.assert_close(torch.cat(list(loader)), expected)
    assert data.splits.val.names[3] == "test/00003"


def test_mirroring_is_for_training_alone(root):
    plain, mirrored = ready(root).splits, ready(root, horizontal_flip=True).splits
    torch.manual_seed(0)
    images = torch.stack(mirrored.train.__getitems__(list(range(50))))
    originals = torch.stack(plain.train.__getitems__(list(range(50))))
    same = (images == originals).flatten(1).all(1)
    turned = (images.flip(-1) == originals).flatten(1).all(1)
    assert (same | turned).all()
    assert 10 < same.sum() < 40
    assert torch.equal(mirrored.val[0], plain.val[0])


def test_split_sha256_names_part_and_length(root):
    data = ready(root)
    assert data.split_sha256["val"] == data.split_sha256["test"] != data.split_sha256["train"]


def test_missing_data_name_root_and_option(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"CIFAR-10 is not in {tmp_path}.*download"):
        ready(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_download_happens_only_when_asked_for(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", no_network)
    with pytest.raises(OSError, match=f"could not be downloaded to {tmp_path}: no network"):
        ready(tmp_path, download=True)
