"""How code vectors learn from latents by gradient: the nearest code alone, or every code through a kernel."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsvq.distributed import all_reduce_min, all_reduce_sum
from nsvq.ops import (
    KERNELS,
    Kernel,
    code_distances,
    kernel_codebook_loss,
    local_kernel_codebook_loss,
    nearest_codes,
)
from nsvq.quantizers.schedule import BandwidthSchedule

PUBLISHED_WEIGHT: dict[Kernel, float] = {"gaussian": 0.5, "clamped_softmax": 0.01, "softmax": 0.1}
# No numbers are printed for the gaussian kernel, so it follows the released schedule of the clamped softmax (CelebA).
PUBLISHED_BANDWIDTH: dict[Kernel, BandwidthSchedule] = {
    "gaussian": BandwidthSchedule(1.0, kind="exponential", decay=0.5, per="epoch"),
    "clamped_softmax": BandwidthSchedule(1.0, kind="exponential", decay=0.5, per="epoch"),
    "softmax": BandwidthSchedule(0.35),
}


class CodebookLossOutput(NamedTuple):
    """Nearest codes and the loss that moves the code vectors."""

    indices: Tensor
    """Nearest code of each latent, int64, shape (N,)."""
    loss: Tensor
    """Unweighted codebook loss, scalar."""


class CodebookLoss(nn.Module):
    """Finds the nearest codes and pulls code vectors towards latents: the winner only.

    The loss is mean_i,d (sg z_i − e_q(i))² (van den Oord et al. 2017, arXiv 1711.00937, Eq. 3, second term).
    """

    def forward(self, latents: Tensor, codes: Tensor) -> CodebookLossOutput:
        """Search and compute the loss.

        Args:
            latents: Latents, shape (N, d), at least float32; no gradient flows to them.
            codes: Code vectors, shape (K, d).

        Returns:
            Indices and unweighted loss.
        """
        indices = nearest_codes(latents, codes)
        return CodebookLossOutput(indices, F.mse_loss(F.embedding(indices, codes), latents.detach()))

    def on_epoch_end(self) -> None:
        """Tell that a training epoch is over."""


class KernelCodebookLoss(CodebookLoss):
    """NSVQ's loss: every code is pulled towards every latent, by a kernel of their distance.

    Source: "Beyond Stationarity" (arXiv 2602.18896) and, for the softmax kernel, arXiv 2606.11363. With it any codebook
    learns like NSVQ's: `TransVQ(dim=64, codebook_size=1024, codebook_loss=KernelCodebookLoss())`.

    Args:
        kernel: `gaussian`, `clamped_softmax` or `softmax`, see `nsvq.ops.kernel_codebook_loss`.
        bandwidth: τ: a number (constant), a schedule, or None for the kernel's published schedule: 0.5^epoch for
            `gaussian` and `clamped_softmax`, constant 0.35 for `softmax`.
        neighbor_weight: The kernel's factor (½, λ or α); None for its published value: 0.5, 0.01, 0.1.
        winner_distance_decay: Decay per step of the running mean winner distance that schedules in `winner_distance`
            units are measured in.

    Raises:
        ValueError: If the kernel is unknown or a number is out of its range.
    """

    bandwidth_position: Tensor
    mean_winner_distance: Tensor

    def __init__(
        self,
        kernel: Kernel = "gaussian",
        bandwidth: float | BandwidthSchedule | None = None,
        neighbor_weight: float | None = None,
        winner_distance_decay: float = 0.9,
    ) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"unknown kernel {kernel!r}; known kernels: {', '.join(KERNELS)}")
        if bandwidth is None:
            bandwidth = PUBLISHED_BANDWIDTH[kernel]
        elif not isinstance(bandwidth, BandwidthSchedule):
            bandwidth = BandwidthSchedule(bandwidth)
        if neighbor_weight is None:
            neighbor_weight = PUBLISHED_WEIGHT[kernel]
        if not 0 <= neighbor_weight < math.inf:
            raise ValueError(f"neighbor_weight must be at least 0 and finite, got {neighbor_weight}")
        if not 0 <= winner_distance_decay < 1:
            raise ValueError(f"winner_distance_decay must be in [0, 1), got {winner_distance_decay}")
        if bandwidth.unit == "code_distance" and kernel != "gaussian":
            raise ValueError(f"bandwidths in code_distance units need the gaussian kernel, got {kernel}")
        self.kernel: Kernel = kernel
        self.schedule = bandwidth
        self.neighbor_weight = neighbor_weight
        self.winner_distance_decay = winner_distance_decay
        self.register_buffer("bandwidth_position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean_winner_distance", torch.zeros(()))
        # Looking at the buffer waits for the device and breaks a compiled graph, so a step looks once.
        self._distance_is_known = self.schedule.unit != "winner_distance"

    @property
    def bandwidth(self) -> Tensor:
        """The present τ, scalar, in squared-distance units; of a schedule in `code_distance` units the multiple."""
        value = self.schedule.value(self.bandwidth_position)
        if self.schedule.unit == "winner_distance":
            # Duplicated latents and codes can bring the mean to 0.
            value = (value * self.mean_winner_distance).clamp(min=1e-12)
        return value

    def forward(self, latents: Tensor, codes: Tensor) -> CodebookLossOutput:
        """Search and compute the loss; in training the bandwidth's position advances.

        Args:
            latents: Latents, shape (N, d), at least float32; no gradient flows to them.
            codes: Code vectors, shape (K, d).

        Returns:
            Indices and unweighted loss.
        """
        latents = latents.detach()
        relative = self.schedule.unit == "winner_distance"
        if self.training and not self._distance_is_known:
            self._measure_first_distance(latents, codes)
        if self.schedule.unit == "code_distance":
            distances = all_reduce_min(code_distances(latents, codes))
            sweep = local_kernel_codebook_loss(latents, codes, self.bandwidth * distances, self.neighbor_weight)
        else:
            sweep = kernel_codebook_loss(latents, codes, self.kernel, self.bandwidth, self.neighbor_weight)
        if self.training:
            if relative:
                distance = self._global_mean(sweep.winner_distance, len(latents))
                self.mean_winner_distance.lerp_(distance, 1 - self.winner_distance_decay)
            if self.schedule.per == "step":
                self.bandwidth_position += 1
        return CodebookLossOutput(sweep.indices, sweep.loss)

    def on_epoch_end(self) -> None:
        """Advance a schedule that counts epochs."""
        if self.schedule.per == "epoch":
            self.bandwidth_position += 1

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._distance_is_known = self.schedule.unit != "winner_distance"
        super()._load_from_state_dict(*args, **kwargs)

    @torch.no_grad()
    def _measure_first_distance(self, latents: Tensor, codes: Tensor) -> None:
        if self.mean_winner_distance == 0:
            nearest = F.embedding(nearest_codes(latents, codes), codes)
            distance = (latents - nearest).square().sum(dim=1).mean()
            self.mean_winner_distance.copy_(self._global_mean(distance, len(latents)))
        self._distance_is_known = True

    def _global_mean(self, mean: Tensor, count: int) -> Tensor:
        total, tokens = all_reduce_sum(torch.stack([mean * count, mean.new_tensor(count)]).double()).unbind()
        return (total / tokens).to(self.mean_winner_distance.dtype)
