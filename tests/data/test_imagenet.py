import numpy as np
import pytest
import torch
from PIL import Image

from nsvq.data import ImageNet


@pytest.fixture
def root(tmp_path, write_image):
    for index in range(8):
        write_image(tmp_path / "train" / f"n{index % 2}" / f"{index}.JPEG", seed=index, size=(40, 30))
    for index in range(4):
        write_image(tmp_path / "val" / f"n{index % 2}" / f"{index}.JPEG", seed=100 + index, size=(40, 30))
    return tmp_path


def ready(root, **options) -> ImageNet:
    data = ImageNet(root, **{"batch_size": 4, "size": 16, **options})
    data.setup()
    return data


def test_both_folders_are_read_and_val_also_tests(root):
    data = ready(root)
    assert next(iter(data.train_dataloader())).shape == (4, 3, 16, 16)
    assert list(data.splits.train.names) == [f"train/n{index % 2}/{index}.JPEG" for index in (0, 2, 4, 6, 1, 3, 5, 7)]
    assert list(data.splits.test.names) == [f"val/n{index % 2}/{index}.JPEG" for index in (0, 2, 1, 3)]
    assert data.split_sha256["val"] == data.split_sha256["test"]


def test_training_crops_at_random_and_evaluation_in_the_centre(root):
    splits = ready(root, resize=None).splits
    assert torch.equal(splits.train[0], splits.train[0])
    assert not torch.equal(splits.train[0], splits.train[len(splits.train)])
    pixels = np.asarray(Image.open(root / splits.val.names[1]))[7:23, 12:28]
    levels = ((splits.val[1] + 1) * 127.5).round().to(torch.uint8)
    np.testing.assert_array_equal(levels.permute(1, 2, 0).numpy(), pixels)


def test_images_are_256_pixels_by_default(root):
    assert ImageNet(root).reader.evaluation(["val/n0/0.JPEG"])[0].shape == (3, 256, 256)


def test_damaged_images_are_skipped_in_training_alone(root):
    (root / "train" / "n0" / "0.JPEG").write_bytes(b"")
    (root / "val" / "n0" / "0.JPEG").write_bytes(b"")
    data = ready(root, on_damaged_image="skip")
    with pytest.warns(UserWarning, match=r"skipped.*train/n0/0.JPEG"):
        data.splits.train[0]
    with pytest.raises(ValueError, match=r"val/n0/0.JPEG"):
        data.splits.val[0]


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_missing_part_is_named(root, part):
    (root / part).rename(root / "other")
    with pytest.raises(FileNotFoundError, match=f"{part} doesn't exist"):
        ready(root)


def test_images_without_a_class_folder_are_refused(root):
    for path in (root / "val").rglob("*.JPEG"):
        path.rename(root / "val" / f"{path.parent.name}-{path.name}")
    for folder in ("n0", "n1"):
        (root / "val" / folder).rmdir()
    with pytest.raises(FileNotFoundError, match=r"must hold val/<class>/<images>"):
        ready(root)
