"""Row blocks: how an N×K computation is cut so that only a block of rows exists at a time."""

from collections.abc import Iterator

import torch

BLOCK_BYTES = 32 * 2**20


def row_blocks(rows: int, columns: int, dtype: torch.dtype, block_size: int | None = None) -> Iterator[slice]:
    """Cut rows into blocks whose rows×columns tensor stays within a memory cap.

    Args:
        rows: Number of rows N.
        columns: Number of columns K.
        dtype: Element type of the block.
        block_size: Rows in a block; None fits a block into 32 MiB, with one row at the least.

    Yields:
        Slices that cover range(rows) in order.

    Raises:
        ValueError: If block_size is below 1.
    """
    if block_size is None:
        block_size = max(1, BLOCK_BYTES // (columns * dtype.itemsize))
    elif block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    for start in range(0, rows, block_size):
        yield slice(start, min(start + block_size, rows))
