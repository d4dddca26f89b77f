"""Encoder drift: how far latents, codes and assignments of a fixed probe set move."""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**23


class ProbeState(NamedTuple):
    """The probe set as the quantizer sees it at one step."""

    latents: Tensor
    """Latents in the search space, shape (N, d)."""
    codes: Tensor
    """Codes in the search space, shape (K, d)."""
    indices: Tensor
    """Chosen codes, int64, shape (N,)."""


def scale(vectors: Tensor) -> Tensor:
    """Return s = sqrt(mean ‖v − mean v‖²) of vectors (N, d): their spread, summed over dimensions."""
    return (vectors - vectors.mean(dim=0)).square().sum(dim=1).mean().sqrt()


def drift_measures(now: ProbeState, before: ProbeState) -> dict[str, float]:
    """Compare the probe set at two steps.

    Args:
        now: The later state.
        before: The earlier state of the same probe set and codebook size.

    Returns:
        `drift_rms`: sqrt(mean ‖u_now − u_before‖²), in latent units; `drift_relative`: drift_rms / s of the present
        latents; `churn`: share of probe tokens whose code changed; `codebook_shift`: RMS movement of the codes, in
        latent units; `codebook_lag`: mean distance of each code to its nearest probe latent, over s;
        `codebook_scale`: the codes' s over the latents' s; `latent_scale`: s.
    """
    latents, codes = now.latents.double(), now.codes.double()
    spread = scale(latents)
    drift = _rms_movement(latents, before.latents.double())
    blocks = torch.split(codes, max(1, BLOCK_ELEMENTS // len(latents)))
    lag = torch.cat([torch.cdist(rows, latents).amin(dim=1) for rows in blocks]).mean()
    measures = {
        "drift_rms": drift,
        "drift_relative": drift / spread,
        "churn": (now.indices != before.indices).double().mean(),
        "codebook_shift": _rms_movement(codes, before.codes.double()),
        "codebook_lag": lag / spread,
        "codebook_scale": scale(codes) / spread,
        "latent_scale": spread,
    }
    return {name: float(value) for name, value in measures.items()}


def _rms_movement(now: Tensor, before: Tensor) -> Tensor:
    return (now - before).square().sum(dim=1).mean().sqrt()
