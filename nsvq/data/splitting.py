"""Dividing a sorted list of names into training, validation and test names."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from nsvq.data.files import read_list

Share: TypeAlias = float | None


@dataclass(frozen=True)
class SplitNames:
    """The names of each split, in the order in which they are served."""

    train: list[str]
    val: list[str]
    test: list[str]


def split_by_share(
    names: Sequence[str], order: Literal["random", "sorted"], train: Share, val: Share, test: Share, seed: int
) -> SplitNames:
    """Divide names by counts or fractions.

    A share is a fraction of all names in [0, 1] (at least one name unless 0), a count above 1, or None for what the
    others leave. The three splits are consecutive runs, training first, of the names or of a permutation of them.

    Args:
        names: Sorted names.
        order: "sorted" cuts the names as they are, "random" permutes them first; each split is served sorted.
        train: Share of training.
        val: Share of validation.
        test: Share of testing.
        seed: Seed of the permutation.

    Returns:
        The names of each split.
    """
    train_count, val_count, test_count = _counts(len(names), {"train": train, "val": val, "test": test})
    indices = list(range(len(names)))
    if order == "random":
        indices = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()

    def run(start: int, count: int) -> list[str]:
        return [names[index] for index in sorted(indices[start : start + count])]

    val_start = train_count
    test_start = val_start + val_count
    return SplitNames(run(0, train_count), run(val_start, val_count), run(test_start, test_count))


def split_by_lists(
    names: Sequence[str], root: Path, train_list: Path | None, val_list: Path, test_list: Path | None
) -> SplitNames:
    """Divide names by list files.

    Args:
        names: Sorted names.
        root: The folder the names are relative to, for messages.
        train_list: List of the training names; None takes every name that the other lists leave.
        val_list: List of the validation names.
        test_list: List of the test names; None leaves that split empty.

    Returns:
        The names of each split, in the order of its list.
    """
    val = read_list(val_list, names, root)
    test = read_list(test_list, names, root) if test_list else []
    held_out = {*val, *test}
    train = read_list(train_list, names, root) if train_list else [name for name in names if name not in held_out]
    repeated = [name for name, count in Counter([*train, *val, *test]).items() if count > 1]
    if repeated:
        raise ValueError(
            f"the list files name {len(repeated)} images more than once, within a split or in two: "
            + ", ".join(repeated[:3])
            + (", …" if len(repeated) > 3 else "")
        )
    return SplitNames(train, val, test)


def _counts(total: int, shares: dict[str, Share]) -> list[int]:
    counts = {name: _count(total, name, share) for name, share in shares.items() if share is not None}
    rest = total - sum(counts.values())
    if rest < 0:
        asked = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"the splits ask for more than the {total} images there are: {asked}")
    open_shares = [name for name in shares if name not in counts]
    if len(open_shares) > 1:
        raise ValueError(f"only one split can take the rest, but {' and '.join(open_shares)} have no share")
    return [counts.get(name, rest) for name in shares]


def _count(total: int, name: str, share: float) -> int:
    if share > 1 and float(share).is_integer():
        return int(share)
    if not 0 <= share <= 1:
        raise ValueError(f"{name}_fraction must be a fraction in [0, 1] or a whole number above 1, got {share}")
    return max(1, int(share * total + 1e-9)) if share else 0
