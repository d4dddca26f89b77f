"""What to do about image files that cannot be decoded."""

import warnings
from collections.abc import Sequence
from typing import Literal

import torch

from nsvq.data.decoding import DamagedImageError

OnDamagedImage = Literal["raise", "skip"]


class DamageLog:
    """The damaged files met so far, shared by all loader workers of one process.

    Args:
        names: The dataset's file names.
        limit: How many distinct damaged files are put up with.
    """

    def __init__(self, names: Sequence[str], limit: int) -> None:
        self._names = names
        self._limit = limit
        self._damaged = torch.zeros(len(names), dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def names(self) -> list[str]:
        """The damaged files, in the dataset's order."""
        return [self._names[index] for index in self._damaged.nonzero().flatten().tolist()]

    def __contains__(self, index: int) -> bool:
        return bool(self._damaged[index])

    def record(self, index: int, error: DamagedImageError) -> None:
        """Note a damaged file with a warning, or raise if it is one too many.

        Args:
            index: The file's place in the dataset.
            error: What decoding it raised.
        """
        self._damaged[index] = True
        damaged = self.names
        if len(damaged) > self._limit:
            raise ValueError(
                f"{len(damaged)} damaged images, more than max_damaged={self._limit}: {', '.join(damaged)}"
            ) from error
        warnings.warn(f"skipped: {error} ({len(damaged)} of at most {self._limit})", stacklevel=2)
