"""What the Triton kernels share: scores packed with their index, splitting a loop over programs."""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 528
"""Programs a launch should have at least: four for each of the 132 multiprocessors of an H100. It is a constant, not
asked of the device, so that the order of summation is the same everywhere."""


class Split(NamedTuple):
    """How a loop over tiles is shared out over programs."""

    programs: int
    tiles: int
    """Tiles per program; the last program may have fewer, never none."""


def split_loop(tiles: int, others: int) -> Split:
    """Share a loop out over so many programs that the launch has about `PROGRAMS` of them.

    Args:
        tiles: Length of the loop, above 0.
        others: Programs along the launch's other axis, above 0.

    Returns:
        The split; with one program if the other axis has enough.
    """
    wanted = min(tiles, triton.cdiv(PROGRAMS, others))
    tiles_each = triton.cdiv(tiles, wanted)
    return Split(triton.cdiv(tiles, tiles_each), tiles_each)


@triton.jit  # type: ignore[untyped-decorator]
def pack(score: tl.tensor, index: tl.tensor) -> tl.tensor:
    """Pack float32 scores above their int32 indices: int64 that order by score, then by falling index."""
    bits = score.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Take packed scores apart.

    Args:
        packed: What `pack` made, int64, shape (N,).

    Returns:
        Scores, float32, and indices, int64, each of shape (N,).
    """
    ordered = (packed >> 32).to(torch.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.view(torch.float32), 0x7FFFFFFF - (packed & 0x7FFFFFFF)


def shift_to_mean(latents: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Shift both sides by the codes' mean, which changes no distance and saves the digits of a common offset.

    Args:
        latents: Latents, float32, shape (N, d).
        codes: Code vectors, float32, shape (K, d).

    Returns:
        Latents and codes, shifted, contiguous.

    Raises:
        ValueError: If the shapes don't fit, there is no code, or a type isn't float32.
    """
    if latents.ndim != 2 or codes.ndim != 2 or latents.shape[1] != codes.shape[1] or codes.numel() == 0:
        raise ValueError(f"expected latents (N, d) and codes (K, d), got {(*latents.shape,)} and {(*codes.shape,)}")
    if latents.dtype != torch.float32 or codes.dtype != torch.float32:
        raise ValueError(f"expected float32, got {latents.dtype} and {codes.dtype}")
    center = codes.mean(dim=0)
    return (latents - center).contiguous(), (codes - center).contiguous()


@triton.jit  # type: ignore[untyped-decorator]
def half_norm_kernel(
    vectors: tl.tensor, norms: tl.tensor, n: tl.tensor, d: tl.tensor, block_n: tl.constexpr, chunk: tl.constexpr
) -> None:
    """Write |v|²/2 of one block of vectors."""
    rows = tl.program_id(0) * block_n + tl.arange(0, block_n)
    dims = tl.arange(0, chunk)
    pointers = vectors + rows.to(tl.int64)[:, None] * d + dims[None, :]
    squares = tl.zeros((block_n, chunk), tl.float32)
    for start in range(0, d, chunk):
        v = tl.load(pointers + start, mask=(rows < n)[:, None] & (dims < d - start)[None, :], other=0.0)
        squares += v * v
    tl.store(norms + rows, tl.sum(squares, axis=1) / 2, mask=rows < n)


def half_norms(vectors: Tensor) -> Tensor:
    """Compute |v|²/2 of each vector, in the same order of summation for all, so that equal vectors have equal norms.

    Args:
        vectors: Vectors, float32, contiguous, shape (N, d), N > 0.

    Returns:
        Half squared norms, shape (N,).
    """
    n, d = vectors.shape
    norms = vectors.new_empty(n)
    with on_device_of(vectors):
        half_norm_kernel[(triton.cdiv(n, 64),)](vectors, norms, n, d, block_n=64, chunk=32, num_warps=4, num_stages=3)
    return norms


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's CUDA device current, where a Triton kernel is launched; do nothing for other devices."""
    context: AbstractContextManager[Any] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return context
