"""The stop on values that are not finite."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nsvq.distributed import all_reduce_sum


def stop_unless_finite(values: Mapping[str, Tensor], step: int) -> None:
    """Stop training on all ranks together if a value is not finite on any of them.

    Every rank calls this at the same points with the same names: it communicates, whatever the values are.

    Args:
        values: Tensors by name.
        step: The training step.

    Raises:
        FloatingPointError: If a tensor holds a NaN or an infinity on any rank; it names the tensors and the step.
    """
    flags = torch.stack([~value.detach().isfinite().all() for value in values.values()])
    broken = all_reduce_sum(flags.int()).tolist()
    names = [name for name, count in zip(values, broken, strict=True) if count]
    if names:
        raise FloatingPointError(
            f"not finite at step {step}: {', '.join(names)}; training stopped, earlier checkpoints are untouched"
        )
