"""The stop on values that are not finite."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nsvq.distributed import all_reduce_sum, world_size


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
    _stop_at(all_reduce_sum(flags.int()), values, step)


def finite_means(values: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
    """Return the means of scalars over all ranks, or stop training on all of them if one is not finite anywhere.

    Args:
        values: Scalars by name; every rank passes the same names.
        step: The training step.

    Returns:
        Means by name, float64, without gradient.

    Raises:
        FloatingPointError: If a value is not finite on any rank; it names the values and the step.
    """
    sums = all_reduce_sum(torch.stack([value.detach().double() for value in values.values()]))
    # A NaN or an infinity of one rank survives the sum.
    _stop_at(~sums.isfinite(), values, step)
    return dict(zip(values, (sums / world_size()).unbind(), strict=True))


def _stop_at(broken: Tensor, names: Iterable[str], step: int) -> None:
    found = [name for name, count in zip(names, broken.tolist(), strict=True) if count]
    if found:
        raise FloatingPointError(
            f"not finite at step {step}: {', '.join(found)}; training stopped, earlier checkpoints are untouched"
        )


def stop_unless_gradients_are_finite(
    optimizer: Optimizer, parameters: Iterable[tuple[str, nn.Parameter]], step: int
) -> None:
    """Stop training before an optimizer takes a gradient that is not finite.

    Processes have equal gradients, so that all of them stop without communication.

    Args:
        optimizer: The optimizer that is about to step.
        parameters: The model's parameters by name.
        step: The training step.

    Raises:
        FloatingPointError: If a gradient holds a NaN or an infinity; it names the parameters and the step.
    """
    names = {id(parameter): name for name, parameter in parameters}
    gradients = {
        names[id(parameter)]: parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    }
    if not gradients:
        return
    largest = torch.stack(torch._foreach_norm(list(gradients.values()), ord=float("inf")))
    broken = [name for name, value in zip(gradients, largest.isfinite().tolist(), strict=True) if not value]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise FloatingPointError(
            f"not finite at step {step}: gradient of {', '.join(broken[:3])}{more}; training stopped, earlier "
            "checkpoints are untouched"
        )
