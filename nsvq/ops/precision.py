"""The precision rule of all quantizer arithmetic: at least float32, and float64 stays float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor, nn
from torch.func import functional_call


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the widest floating type among the tensors, float32 at the least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


class _Float32Products:
    """Keeps shorter types out of float32 products while anybody in the process is inside; reentrant, thread-safe.

    What was allowed before is saved by the first to enter and restored by the last to leave.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._allowed: list[str] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._allowed = _allowed_types()
                _allow_types(["ieee"] * len(self._allowed))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                _allow_types(self._allowed)


# torch refuses its older functions once the newer attributes are used, and before 2.9 there are only the older ones.
_BACKENDS = [
    backend.matmul
    for backend in (torch.backends.cuda, torch.backends.mkldnn)
    if hasattr(getattr(backend, "matmul", None), "fp32_precision")
]
_FLOAT32_PRODUCTS = _Float32Products()


def _allowed_types() -> list[str]:
    if _BACKENDS:
        return [backend.fp32_precision for backend in _BACKENDS]
    return [torch.get_float32_matmul_precision()]


def _allow_types(types: list[str]) -> None:
    if not _BACKENDS:
        torch.set_float32_matmul_precision("highest" if types == ["ieee"] else types[0])
    for backend, allowed in zip(_BACKENDS, types, strict=False):
        if backend.fp32_precision != allowed:
            backend.fp32_precision = allowed


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 products in float32: autocast is off and no shorter type stands in (TF32, bfloat16).

    What `torch.set_float32_matmul_precision` or torch's newer `fp32_precision` attributes allow is restored on leaving.

    Args:
        device: Where the products are computed.
    """
    with torch.autocast(device.type, enabled=False), _FLOAT32_PRODUCTS:
        yield


def call_raised(module: nn.Module, inputs: Tensor) -> Tensor:
    """Call a module, autocast off, with its parameters and input raised to their common type of at least float32.

    Args:
        module: A module of one tensor argument; its stored parameters keep their type and receive the gradients.
        inputs: The argument, of any floating type.

    Returns:
        The module's output in the common type.
    """
    dtype = common_dtype(inputs, *module.parameters())
    raised = {name: parameter.to(dtype) for name, parameter in module.named_parameters()}
    with torch.autocast(inputs.device.type, enabled=False):
        output: Tensor = functional_call(module, raised, (inputs.to(dtype),))
    return output
