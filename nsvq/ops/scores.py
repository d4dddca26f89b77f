"""Scores of latents and codes, tile by tile, and the best code of each latent so far.

A score z·c − |c|²/2 grows as the squared distance |z|² − 2·score falls. |z|² stays out of it: added in, it would drown
the digits by which codes differ where the latents lie far from all of them.
"""

import torch
from torch import Tensor

# On CPUs a maximum's place costs ten times its value, so it is looked for only in the chunk of the tile that holds it.
CHUNK = 64


def center_codes(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Shift the codes by their mean: distances stay, and a codebook far from the origin loses no digits.

    A single code that is far from all others still costs the others digits, by its distance over K.

    Args:
        codes: Code vectors, shape (K, d).

    Returns:
        The mean, shape (d,), and the shifted codes, shape (K, d).
    """
    center = codes.mean(dim=0)
    return center, codes - center


def score_codes(codes: Tensor) -> Tensor:
    """Return the codes' side of the product that makes the scores, (c, −|c|²/2), shape (K, d + 1)."""
    return torch.cat([codes, codes.square().sum(dim=1, keepdim=True) / -2], dim=1)


def score_latents(latents: Tensor, scale: float = 1.0) -> Tensor:
    """Return the latents' side of the product that makes the scores, scale·(z, 1), shape (d + 1, N)."""
    return (torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1) * scale).T.contiguous()


def improvements(tile: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the latents for which a tile of codes holds a better code than those before.

    Args:
        tile: Scores of c codes and r latents, shape (c, r).
        scores: The best score of each latent so far, shape (r,).

    Returns:
        The tile's best score of each latent, shape (r,); the latents whose score rose, int64, shape (m,); and where in
        the tile it did, the lowest of equal ones, int64, shape (m,).
    """
    chunks, rest = divmod(len(tile), CHUNK)
    if rest or chunks < 2:
        peaks, places = tile.max(dim=0)
        improved = (peaks > scores).nonzero().squeeze(1)
        return peaks, improved, places[improved]
    chunked = tile.view(chunks, CHUNK, -1)
    peaks, chunk = chunked.amax(dim=1).max(dim=0)
    improved = (peaks > scores).nonzero().squeeze(1)
    chunk = chunk[improved]
    return peaks, improved, chunk * CHUNK + chunked[chunk, :, improved].max(dim=1).indices


def check_sides(latents: Tensor, codes: Tensor) -> None:
    """Refuse latents and codes that cannot be compared.

    Args:
        latents: Latents, shape (N, d).
        codes: Code vectors, shape (K, d).

    Raises:
        ValueError: If a shape or type is wrong or there is no code.
    """
    shapes = f"latents {tuple(latents.shape)} and codes {tuple(codes.shape)}"
    if latents.ndim != 2 or codes.ndim != 2 or latents.shape[1] != codes.shape[1] or codes.numel() == 0:
        raise ValueError(f"nearest codes: expected latents (N, d) and codes (K, d) with K and d above 0, got {shapes}")
    for name, side in (("latents", latents), ("codes", codes)):
        if not side.is_floating_point():
            raise ValueError(f"nearest codes: expected {name} of a floating type, got {side.dtype}")


def check_finite(results: Tensor, latents: Tensor, codes: Tensor) -> None:
    """Refuse latents that have no nearest code.

    Args:
        results: What was computed from all values of both sides, such as the latents' best scores; if it is finite,
            both are.
        latents: Latents, shape (N, d).
        codes: Code vectors, shape (K, d).

    Raises:
        ValueError: If a latent or code has values that are not finite, or their distances overflow.
    """
    if results.isfinite().all():
        return
    # Codes that are not finite spoil latents that were shifted by their mean.
    for name, side in (("codes", codes), ("latents", latents)):
        if not side.isfinite().all():
            raise ValueError(f"nearest codes: {name} with non-finite values")
    raise ValueError(f"nearest codes: distances overflow {latents.dtype}")
