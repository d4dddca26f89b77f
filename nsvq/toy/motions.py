"""Latents whose distribution moves: the toy's stand-in for an encoder that trains."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

NOISE = 0.05
"""Standard deviation of the noise around the ring, whose radius is 1."""
START, END = 0.1, 0.7
"""The part of a run, as shares of its steps, in which the distribution moves."""


def _stay(points: Tensor, progress: float) -> Tensor:
    return points


def _translate(points: Tensor, progress: float) -> Tensor:
    return points + 2 * progress * _direction(points)


def _shrink(points: Tensor, progress: float) -> Tensor:
    return points * float(0.1**progress)


def _expand(points: Tensor, progress: float) -> Tensor:
    return points * float(5**progress)


def _rotate(points: Tensor, progress: float) -> Tensor:
    """Turn by half a circle in the plane of the first two axes; the ring is an ellipse, or nothing would be seen."""
    points = torch.cat([points[:, :1], 0.3 * points[:, 1:]], dim=1)
    angle = math.pi * progress
    x, y = points[:, :1], points[:, 1:2]
    turned = [math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y]
    return torch.cat([*turned, points[:, 2:]], dim=1)


def _split(points: Tensor, progress: float) -> Tensor:
    """Move the right half to the right and the left half to the left."""
    return points + 3 * progress * points[:, :1].sign() * _direction(points)


def _direction(points: Tensor) -> Tensor:
    axis = points.new_zeros(points.shape[1])
    axis[0] = 1.0
    return axis


MOTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "stationary": _stay,
    "translate": _translate,
    "shrink": _shrink,
    "expand": _expand,
    "rotate": _rotate,
    "split": _split,
}
"""Where base points are at a progress between 0 and 1: 2 radii away, a tenth or five times as large, turned by half a
circle, or in two halves 6 radii apart."""


def progress_at(step: int, steps: int) -> float:
    """Return how much of the motion is done at a step: 0 before `START`, 1 from `END` on, linear in between."""
    return min(max((step / steps - START) / (END - START), 0.0), 1.0)


def sample_ring(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Draw base points: uniform on the unit sphere, in two dimensions a ring, with normal noise.

    Args:
        count: Number of points N.
        dim: Dimension d, at least 2.
        generator: Where the random numbers come from.

    Returns:
        Points, float32, shape (N, d).
    """
    directions = F.normalize(torch.randn(count, dim, generator=generator), dim=1)
    return directions + NOISE * torch.randn(count, dim, generator=generator)
