"""Which code computes search and kernel loss: plain torch operations or Triton kernels."""

import os
from importlib.util import find_spec
from typing import Literal, TypeVar, get_args

from torch import Tensor

Backend = Literal["auto", "torch", "triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
BACKEND_VARIABLE = "NSVQ_BACKEND"
PRECISION_VARIABLE = "NSVQ_TRITON_PRECISION"
Precision = Literal["ieee", "tf32x3", "tf32"]
"""How the Triton kernels multiply float32 numbers, see `triton_precision`."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Word = TypeVar("Word", bound=str)


def takes_triton(latents: Tensor, codes: Tensor) -> bool:
    """Choose the backend by the environment variable NSVQ_BACKEND: `auto` (default), `torch` or `triton`.

    `auto` is torch: on an H200 the Triton kernels save memory, not reliably time (see `nsvq/ops/README.md`). float64
    is always computed by torch.

    Args:
        latents: Latents, shape (N, d).
        codes: Code vectors, shape (K, d).

    Returns:
        Whether the Triton kernels compute.

    Raises:
        ValueError: If the variable holds another word, or Triton is asked for and cannot run here.
    """
    if _choice(BACKEND_VARIABLE, BACKENDS) != "triton" or codes.itemsize > 4:
        return False
    if find_spec("triton") is None:
        raise ValueError(f"{BACKEND_VARIABLE}=triton needs the package triton, which is not installed")
    if not latents.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"{BACKEND_VARIABLE}=triton needs tensors on a CUDA device, got {latents.device.type}")
    return True


def triton_precision() -> Precision:
    """Return how the Triton kernels multiply, by the environment variable NSVQ_TRITON_PRECISION.

    Returns:
        `ieee`, the default: on the float32 units; `tf32x3`: on tensor cores, each factor split into two TF32 numbers,
        about as accurate as float32; `tf32`: on tensor cores with a relative error of 1e-3. Triton's interpreter
        ignores the choice.

    Raises:
        ValueError: If the variable holds another word.
    """
    return _choice(PRECISION_VARIABLE, PRECISIONS)


def _choice(variable: str, choices: tuple[Word, ...]) -> Word:
    word = os.environ.get(variable, choices[0])
    for choice in choices:
        if word == choice:
            return choice
    raise ValueError(f"{variable} must be one of {', '.join(choices)}, got {word!r}")
