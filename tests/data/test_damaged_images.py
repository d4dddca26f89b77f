import warnings

import pytest
import torch

from nsvq.data import ImageFolder


@pytest.fixture
def damaged_folder(folder):
    for name in ("00003.png", "00005.png", "even/00008.png"):
        (folder / name).write_text("not a picture")
    return folder


def ready(root, stage="fit", **options) -> ImageFolder:
    data = ImageFolder(
        root, **{"size": 8, "batch_size": 4, "split": "sorted", "train_fraction": 15, "val_fraction": None, **options}
    )
    data.setup(stage)
    return data


def test_training_raises_at_once_by_default(damaged_folder):
    data = ready(damaged_folder)
    with pytest.raises(ValueError, match=r"cannot decode image .*00003.png"):
        data.splits.train[1]
    with pytest.raises(ValueError, match=r"cannot decode image .*0000[358].png"):
        list(data.train_dataloader())


def test_training_raises_through_workers_too(damaged_folder):
    with pytest.raises(ValueError, match=r"cannot decode image .*0000[358].png"):
        list(ready(damaged_folder, num_workers=1).train_dataloader())


def test_skipping_puts_the_next_sound_image_in_place(damaged_folder):
    train = ready(damaged_folder, on_damaged_image="skip").splits.train
    assert list(train.names[1:4]) == ["00003.png", "00005.png", "00007.png"]
    with pytest.warns(UserWarning, match="skipped") as caught:
        replaced = train[1]
    assert [str(warning.message).partition(":")[0] for warning in caught] == ["skipped", "skipped"]
    assert "00003.png" in str(caught[0].message)
    assert "(1 of at most 10)" in str(caught[0].message)
    assert torch.equal(replaced, train[3])
    assert train.damage.names == ["00003.png", "00005.png"]


def test_each_file_is_counted_and_warned_of_once(damaged_folder):
    train = ready(damaged_folder, on_damaged_image="skip", max_damaged=3).splits.train
    with pytest.warns(UserWarning, match="skipped") as caught:
        epochs = [[train[index] for index in range(15)] for _ in range(3)]
    assert torch.equal(torch.stack(epochs[0]), torch.stack(epochs[2]))
    assert len(caught) == 3
    assert train.damage.names == ["00003.png", "00005.png", "even/00008.png"]


def test_the_last_image_is_replaced_by_the_first(folder):
    train = ready(folder, on_damaged_image="skip").splits.train
    (folder / train.names[-1]).write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped"):
        assert torch.equal(train[14], train[0])


def test_one_file_too_many_raises_with_the_list(damaged_folder):
    train = ready(damaged_folder, on_damaged_image="skip", max_damaged=2).splits.train
    with pytest.warns(UserWarning, match="skipped"):
        train[1]
    with pytest.raises(
        ValueError, match=r"3 damaged images, more than max_damaged=2: 00003.png, 00005.png, even/00008.png"
    ):
        [train[index] for index in range(15)]


def test_workers_share_one_count(damaged_folder):
    data = ready(damaged_folder, on_damaged_image="skip", num_workers=2, batch_size=1)
    assert sum(len(batch) for batch in data.train_dataloader()) == 15
    assert data.splits.train.damage.names == ["00003.png", "00005.png", "even/00008.png"]
    limited = ready(damaged_folder, on_damaged_image="skip", num_workers=2, batch_size=1, max_damaged=2)
    with pytest.raises(ValueError, match="3 damaged images, more than max_damaged=2"):
        list(limited.train_dataloader())


def test_a_training_split_without_a_sound_image_raises(folder):
    data = ready(folder, on_damaged_image="skip", batch_size=2, train_fraction=2)
    for name in data.splits.train.names:
        (folder / name).write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"all 2 training images in .* are damaged"):
            data.splits.train[0]


@pytest.mark.parametrize("loader", ["val_dataloader", "test_dataloader", "predict_dataloader"])
def test_evaluation_never_skips(folder, loader):
    (folder / "even" / "00018.png").write_bytes(b"")
    data = ready(folder, "validate", on_damaged_image="skip", test_fraction=2)
    (folder / "even" / "00012.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot decode image .*even/0001[28].png"):
        list(getattr(data, loader)())


def test_an_image_smaller_than_the_crop_is_not_damage(folder, write_image):
    write_image(folder / "00003.png", size=(4, 4))
    train = ready(folder, on_damaged_image="skip", resize=None).splits.train
    with pytest.raises(ValueError, match=r"00003.png: 4×4 pixels are too few"):
        train[1]
