"""Pure functions on tensors: nearest-code search, kernel-weighted codebook loss, gradient estimators."""

from nsvq.ops.estimators import straight_through
from nsvq.ops.kernel_loss import KERNELS, Kernel, KernelSweep, kernel_codebook_loss
from nsvq.ops.local_kernel import code_distances, local_kernel_codebook_loss
from nsvq.ops.precision import call_raised, common_dtype
from nsvq.ops.search import nearest_codes

__all__ = [
    "KERNELS",
    "Kernel",
    "KernelSweep",
    "call_raised",
    "code_distances",
    "common_dtype",
    "kernel_codebook_loss",
    "local_kernel_codebook_loss",
    "nearest_codes",
    "straight_through",
]
