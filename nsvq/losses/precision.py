"""The precision rule of the losses."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Raise half types to float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
