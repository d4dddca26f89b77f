"""The precision rule of all quantizer arithmetic: at least float32, and float64 stays float64."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the widest floating type among the tensors, float32 at the least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 products in float32: autocast is off and no shorter type stands in (TF32, bfloat16).

    `torch.set_float32_matmul_precision` is restored on leaving.

    Args:
        device: Where the products are computed.
    """
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(allowed)


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
