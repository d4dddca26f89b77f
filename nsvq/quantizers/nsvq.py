"""NSVQ: codes that were not selected follow the encoder's drift too."""

from torch import Tensor

from nsvq.distributed import world_size
from nsvq.ops import Kernel
from nsvq.quantizers.codebook_loss import KernelCodebookLoss
from nsvq.quantizers.schedule import BandwidthSchedule
from nsvq.quantizers.vanilla import VanillaVQ


class NSVQ(VanillaVQ):
    """Non-stationary VQ: a free codebook whose loss pulls every code by a kernel.

    Source: "Beyond Stationarity" (arXiv 2602.18896). The forward pass is a hard nearest-code lookup. Not to be
    confused with Noise Substitution in Vector Quantization, which is abbreviated in the same way.

    Args:
        dim: Channels of the latents.
        codebook_size: Number of codes K.
        kernel: `gaussian`, `clamped_softmax` or `softmax`, see `nsvq.ops.kernel_codebook_loss`.
        bandwidth: τ, or 2σ², in squared-distance units: a number (constant), a schedule, or None for the kernel's
            published schedule.
        neighbor_weight: ½, λ or α of the kernel; None for its published value.
        commitment_weight: Factor of the commitment loss.
        codebook_weight: Factor of the kernel loss.
        codebook_straight_through: Whether the task's gradient also reaches the chosen code, by the factor
            2·codebook_weight/(N·dim) with N the latents of all processes (paper, Sec. 3.3.3).
        initial_scale: See `Quantizer`; None leaves U(−1/K, 1/K).
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        kernel: Kernel = "gaussian",
        bandwidth: float | BandwidthSchedule | None = None,
        neighbor_weight: float | None = None,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        codebook_straight_through: bool = False,
        initial_scale: float | None = None,
    ) -> None:
        loss = KernelCodebookLoss(kernel, bandwidth, neighbor_weight)
        super().__init__(dim, codebook_size, commitment_weight, codebook_weight, loss, initial_scale)
        self.codebook_straight_through = codebook_straight_through

    def codebook_gradient_share(self, latents: Tensor) -> float:
        """Return the factor of the codebook straight-through, 0 if it is off."""
        if not self.codebook_straight_through:
            return 0.0
        return 2 * self.codebook_weight / (latents.numel() * world_size())
