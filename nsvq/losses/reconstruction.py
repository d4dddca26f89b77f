"""Reconstruction losses."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from nsvq.losses.precision import at_least_float32

_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss}


class ReconstructionLoss:
    """The mean squared (`mse`) or mean absolute error (`l1`) of reconstructions, in at least float32.

    Args:
        kind: `mse` or `l1`.

    Raises:
        ValueError: If the kind is unknown.
    """

    def __init__(self, kind: str) -> None:
        if kind not in _DISTANCES:
            raise ValueError(f"reconstruction_loss must be mse or l1, got {kind!r}")
        self.distance = _DISTANCES[kind]

    def __call__(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """Return the scalar loss of reconstructions of images, both (B, C, H, W)."""
        return self.distance(at_least_float32(reconstructions), at_least_float32(images))
