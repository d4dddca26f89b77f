"""Tiles: how an N×K computation is cut so that only a small part of it exists at a time."""

from collections.abc import Iterator

import torch

# A tile of 4 MiB stays in the caches of a CPU through all that is done to it; a GPU wants larger ones.
CPU_TILE = 2**20
CPU_ROWS = 512
GPU_ROWS = 4096
CPU_MEMORY_CAP = 64 * 2**20
GPU_MEMORY_CAP = 256 * 2**20


def tile_shape(
    rows: int,
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
    memory_cap: int | None = None,
    keep_columns: bool = False,
) -> tuple[int, int]:
    """Choose the tiles that a rows×columns tensor is computed in.

    Args:
        rows: Number of rows N.
        columns: Number of columns K.
        dtype: Element type.
        device: Where it is computed.
        memory_cap: Most bytes of it that may exist at a time, one element at the least; None: 64 MiB on CPUs, 256 MiB
            elsewhere.
        keep_columns: Whether all columns of a block of rows exist at the same time, and not one tile alone.

    Returns:
        Rows of a block and columns of a tile, at least 1 each.

    Raises:
        ValueError: If memory_cap is below 1.
    """
    on_cpu = device.type == "cpu"
    check_memory_cap(memory_cap)
    if memory_cap is None:
        memory_cap = CPU_MEMORY_CAP if on_cpu else GPU_MEMORY_CAP
    elements = max(memory_cap // dtype.itemsize, 1)
    tile = min(elements, CPU_TILE) if on_cpu else elements
    block = min(max(rows, 1), CPU_ROWS if on_cpu else GPU_ROWS, max(elements // columns, 1) if keep_columns else tile)
    return block, min(columns, max(tile // block, 1))


def check_memory_cap(memory_cap: int | None) -> None:
    """Refuse a memory cap below 1 byte.

    Raises:
        ValueError: If it is.
    """
    if memory_cap is not None and memory_cap < 1:
        raise ValueError(f"memory_cap must be at least 1 byte, got {memory_cap}")


def slices(length: int, size: int) -> Iterator[slice]:
    """Cut range(length) into slices of a size; the last one may be shorter."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
