import pytest

from nsvq.data.splitting import split_by_lists, split_by_share

NAMES = [f"{index:03d}.png" for index in range(100)]


def shares(train=None, val=0.1, test=0, order="random", seed=0, names=NAMES):
    parts = split_by_share(names, order, train, val, test, seed)
    return parts.train, parts.val, parts.test


@pytest.mark.parametrize("order", ["random", "sorted"])
@pytest.mark.parametrize(
    ("train", "val", "test", "counts"),
    [
        (None, 0.1, 0, (90, 10, 0)),
        (0.75, 0.1, None, (75, 10, 15)),
        (60, None, 0, (60, 40, 0)),
        (0.5, 20, 0.2, (50, 20, 20)),
        (None, 1.0, 0, (0, 100, 0)),
        (None, 0.001, 0, (99, 1, 0)),
        (None, 0.29, 0, (71, 29, 0)),
        (0, None, 0.0, (0, 100, 0)),
    ],
)
def test_shares_are_counts_fractions_or_the_rest(order, train, val, test, counts):
    parts = shares(train, val, test, order)
    assert tuple(len(part) for part in parts) == counts
    assert len({name for part in parts for name in part}) == sum(counts)


def test_sorted_takes_consecutive_runs():
    train, val, test = shares(80, 15, None, "sorted")
    assert train + val + test == NAMES
    assert val[0] == "080.png"


def test_random_is_the_seeds_and_served_sorted():
    parts = shares(seed=1)
    assert shares(seed=1) == parts
    assert shares(seed=2)[1] != parts[1]
    assert parts[1] != NAMES[90:]
    assert list(parts) == [sorted(part) for part in parts]


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_fraction_out_of_range_is_refused(share):
    with pytest.raises(
        ValueError, match=rf"val_fraction must be a fraction in \[0, 1\] or a whole number above 1, got {share}"
    ):
        shares(val=share)


def test_impossible_shares_are_explained():
    with pytest.raises(
        ValueError, match=r"test_fraction must be a fraction in \[0, 1\] or a whole number above 1, got -1"
    ):
        shares(test=-1)
    with pytest.raises(ValueError, match="more than the 100 images there are: train 80, val 30, test 0"):
        shares(train=80, val=30)
    with pytest.raises(ValueError, match="only one split can take the rest, but train and val"):
        shares(val=None)


@pytest.fixture
def lists(tmp_path):
    def write(name: str, *entries: str):
        (tmp_path / name).write_text("\n".join(entries))
        return tmp_path / name

    return write


def test_lists_keep_their_order(tmp_path, lists):
    train, val, test = lists("t", "003.png", "001.png"), lists("v", "009.npy", "004.npy"), lists("s", "005.png")
    parts = split_by_lists(NAMES, tmp_path, train, val, test)
    assert (parts.train, parts.val, parts.test) == (["003.png", "001.png"], ["009.png", "004.png"], ["005.png"])


def test_without_a_training_list_the_rest_trains(tmp_path, lists):
    parts = split_by_lists(NAMES, tmp_path, None, lists("v", "000.png"), lists("s", "002.png"))
    assert parts.train == ["001.png", *NAMES[3:]]


@pytest.mark.parametrize("repeated", ["train", "val", "test"])
def test_a_file_in_two_splits_is_refused(tmp_path, lists, repeated):
    entries = {"train": ["001.png"], "val": ["002.png"], "test": ["003.png"]}
    entries[repeated].append("003.jpg" if repeated != "test" else "001.jpg")
    files = [lists(name, *members) for name, members in entries.items()]
    with pytest.raises(ValueError, match=r"name 1 images more than once.*: 00[13].png"):
        split_by_lists(NAMES, tmp_path, *files)


def test_a_file_listed_twice_is_refused(tmp_path, lists):
    with pytest.raises(ValueError, match=r"name 1 images more than once, within a split or in two: 001.png"):
        split_by_lists(NAMES, tmp_path, None, lists("v", "001.png", "001.png"), None)
