import pytest

from nsvq.data import CelebAHQ


def ready(root, **options) -> CelebAHQ:
    data = CelebAHQ(root, **{"batch_size": 2, **options})
    data.setup()
    return data


def counts(data: CelebAHQ) -> list[int]:
    return [len(part) for part in (data.splits.train, data.splits.val, data.splits.test)]


def test_the_paper_split_is_75_10_15_of_the_sorted_names(folder):
    data = ready(folder)
    assert counts(data) == [15, 2, 3]
    names = [*data.splits.train.names, *data.splits.val.names, *data.splits.test.names]
    assert names == sorted(names)


def test_the_paper_split_rounds_training_and_validation_down(folder, write_image):
    for index in range(19):
        write_image(folder / f"more{index:02d}.png")
    assert counts(ready(folder)) == [29, 3, 7]


def test_images_are_resized_to_128_pixels_by_default(folder):
    assert ready(folder).splits.val[0].shape == (3, 128, 128)
    assert ready(folder, size=8, resize=10).splits.val[0].shape == (3, 8, 8)


def test_other_splits_take_the_shares(folder):
    assert counts(ready(folder, split="sorted", val_fraction=4)) == [16, 4, 4]
    data = ready(folder, split="random", val_fraction=0.25, seed=3)
    assert counts(data) == [15, 5, 5]
    assert list(data.splits.val.names) != sorted(data.splits.train.names)[-5:]
    with pytest.raises(ValueError, match="split must be one of paper, random, sorted, got odd"):
        CelebAHQ(folder, split="odd")


def test_public_lists_replace_the_split(tmp_path, write_image):
    for index in range(6):
        write_image(tmp_path / "faces" / f"imgHQ{index:05d}.png", seed=index)
    (tmp_path / "train.txt").write_text("".join(f"imgHQ{index:05d}.npy\n" for index in (5, 0, 3, 1)))
    (tmp_path / "val.txt").write_text("imgHQ00004.npy\nimgHQ00002.npy")
    data = ready(tmp_path / "faces", train_list=tmp_path / "train.txt", val_list=tmp_path / "val.txt")
    assert list(data.splits.train.names) == [f"imgHQ{index:05d}.png" for index in (5, 0, 3, 1)]
    assert list(data.splits.val.names) == ["imgHQ00004.png", "imgHQ00002.png"]
