import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from nsvq.data import ImageFolder


def ready(root, stage="fit", **options) -> ImageFolder:
    data = ImageFolder(root, **{"size": 8, "batch_size": 4, **options})
    data.setup(stage)
    return data


def split_names(data: ImageFolder) -> list[list[str]]:
    return [list(part.names) for part in (data.splits.train, data.splits.val, data.splits.test)]


def gradient(path, width: int, height: int) -> np.ndarray:
    """Red holds the column, green the row."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def as_levels(image: torch.Tensor) -> np.ndarray:
    return ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def test_batches_are_bare_float32_images_in_the_unit_range(folder):
    data = ready(folder)
    for loader in (data.train_dataloader(), data.predict_dataloader()):
        batch = next(iter(loader))
        assert type(batch) is torch.Tensor
        assert batch.dtype == torch.float32
        assert batch.shape[1:] == (3, 8, 8)
        assert -1 <= batch.min() < -0.3 < 0.3 < batch.max() <= 1


def test_the_default_split_holds_every_image_once(folder):
    train, val, test = split_names(ready(folder, val_fraction=3))
    assert len(train) == 17
    assert test == val
    assert sorted(train + val) == sorted(f"{'' if i % 2 else 'even/'}{i:05d}.png" for i in range(20))


def test_splits_and_their_sha256_depend_on_names_and_seed_alone(folder, tmp_path):
    first = ready(folder, val_fraction=0.25, test_fraction=0.25)
    copy = tmp_path / "copy"
    for path in sorted(folder.rglob("*.png"), reverse=True):
        (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / path.relative_to(folder))
    second = ready(copy, val_fraction=0.25, test_fraction=0.25)
    assert split_names(first) == split_names(second)
    assert first.split_sha256 == second.split_sha256
    other_seed = ready(copy, val_fraction=0.25, test_fraction=0.25, seed=1)
    assert other_seed.split_sha256["val"] != first.split_sha256["val"]
    (copy / "00001.png").rename(copy / "renamed.png")
    assert ready(copy, val_fraction=0.25, test_fraction=0.25).split_sha256 != first.split_sha256


def test_sorted_split_takes_the_first_names(folder):
    train, val, _ = split_names(ready(folder, split="sorted", train_fraction=15, val_fraction=None))
    assert train == [f"{i:05d}.png" for i in range(1, 20, 2)] + [f"even/{i:05d}.png" for i in range(0, 10, 2)]
    assert val == [f"even/{i:05d}.png" for i in range(10, 20, 2)]


def test_lists_make_the_splits(folder, tmp_path):
    (tmp_path / "train.txt").write_bytes(b"00003.npy\r\n00001.npy\r\n\r\n00005.npy\r\neven/00002.png\r\n")
    (tmp_path / "val.txt").write_text("00004.jpg\n")
    data = ready(folder, train_list=tmp_path / "train.txt", val_list=str(tmp_path / "val.txt"))
    train, val, test = split_names(data)
    assert train == ["00003.png", "00001.png", "00005.png", "even/00002.png"]
    assert val == test == ["even/00004.png"]
    before = data.split_sha256
    (tmp_path / "train.txt").write_text("00003.png\n00001.png\n00007.png\n00002.png\n")
    after = ready(folder, train_list=tmp_path / "train.txt", val_list=tmp_path / "val.txt").split_sha256
    assert after["train"] != before["train"]
    assert after["val"] == before["val"]


def test_items_follow_the_names(folder):
    data = ready(folder, "predict", size=12, resize=None)
    (batch,) = data.predict_dataloader()
    for name, image in zip(data.splits.test.names, batch, strict=True):
        np.testing.assert_array_equal(as_levels(image), np.asarray(Image.open(folder / name)))


def test_without_resizing_the_centre_is_cut_out(tmp_path):
    pixels = gradient(tmp_path / "a.png", 89, 109)
    data = ready(tmp_path, "validate", size=64, resize=None, val_fraction=1.0)
    np.testing.assert_array_equal(as_levels(data.splits.val[0]), pixels[22:86, 12:76])


def test_resizing_sets_the_shorter_side(tmp_path):
    gradient(tmp_path / "a.png", 200, 100)
    square = as_levels(ready(tmp_path, "validate", size=50, val_fraction=1.0).splits.val[0]).astype(int)
    assert square.shape == (50, 50, 3)
    assert abs(square[0, 0] - (50, 0, 0)).max() <= 1
    assert abs(square[-1, -1] - (149, 99, 0)).max() <= 1
    inner = as_levels(ready(tmp_path, "validate", size=40, resize=50, val_fraction=1.0).splits.val[0])
    np.testing.assert_array_equal(inner, square[5:45, 5:45])


def test_resizing_is_antialiased(tmp_path, write_image):
    write_image(tmp_path / "noise.png", size=(64, 64))
    image = ready(tmp_path, "validate", size=16, val_fraction=1.0).splits.val[0]
    assert image.std() < 0.25


def test_random_crops_are_for_training_alone_and_belong_to_the_draw(tmp_path):
    pixels = gradient(tmp_path / "a.png", 40, 30)
    gradient(tmp_path / "b.png", 40, 30)
    data = ready(tmp_path, batch_size=1, resize=None, train_crop="random", val_fraction=0.5)
    torch.manual_seed(0)
    train = data.splits.train
    crops = [as_levels(train[epoch * len(train)]) for epoch in range(20)]
    corners = {(int(crop[0, 0, 1]), int(crop[0, 0, 0])) for crop in crops}
    assert len(corners) > 10
    for crop, (top, left) in zip(crops, [(int(c[0, 0, 1]), int(c[0, 0, 0])) for c in crops], strict=True):
        np.testing.assert_array_equal(crop, pixels[top : top + 8, left : left + 8])
    torch.rand(3)
    np.testing.assert_array_equal(as_levels(train[0]), crops[0])
    assert torch.equal(data.splits.val[0], data.splits.val[0])


def test_mirroring_is_for_training_alone_and_off_by_default(tmp_path):
    gradient(tmp_path / "a.png", 8, 8)
    gradient(tmp_path / "b.png", 8, 8)
    options = {"batch_size": 1, "val_fraction": 0.5}
    mirrored = ready(tmp_path, horizontal_flip=True, **options)
    assert {int(as_levels(mirrored.splits.train[epoch])[0, 0, 0]) for epoch in range(20)} == {0, 7}
    assert {int(as_levels(mirrored.splits.val[epoch])[0, 0, 0]) for epoch in range(20)} == {0}
    plain = ready(tmp_path, **options)
    assert {int(as_levels(plain.splits.train[epoch])[0, 0, 0]) for epoch in range(20)} == {0}


def test_an_image_smaller_than_the_crop_is_named(tmp_path):
    gradient(tmp_path / "small.png", 30, 7)
    data = ready(tmp_path, "validate", resize=None, val_fraction=1.0)
    with pytest.raises(ValueError, match=r"small.png: 30×7 pixels are too few for a 8×8 crop"):
        data.splits.val[0]
    assert ready(tmp_path, "validate", val_fraction=1.0).splits.val[0].shape == (3, 8, 8)


def test_a_folder_without_one_sound_image_is_refused(tmp_path, write_image):
    for index in range(5):
        (tmp_path / f"{index}.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"none of the 5 image files in .* can be decoded"):
        ready(tmp_path)
    write_image(tmp_path / "9.png")
    ready(tmp_path, "validate")


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere doesn't exist"):
        ready(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"resize": 7}, "resize 7 is smaller than the 8×8 crop"),
        ({"max_damaged": -1}, "max_damaged must be at least 0, got -1"),
        ({"train_list": "train.txt"}, "need a val_list"),
        ({"test_list": "test.txt"}, "need a val_list"),
        ({"split": "paper"}, "split must be one of random, sorted, got paper"),
        ({"train_crop": "left"}, "train_crop must be one of center, random, got left"),
        ({"on_damaged_image": "ignore"}, "on_damaged_image must be one of raise, skip, got ignore"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path, **{"size": 8, **options})


def test_too_small_a_folder_is_explained(folder):
    with pytest.raises(ValueError, match="training split holds 18 images, less than one full batch of 64"):
        ready(folder, batch_size=64)
