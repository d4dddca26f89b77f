"""Parameter groups with learning-rate factors."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nsvq.quantizers import Quantizer


def parameter_groups(
    parameters: Iterable[nn.Parameter],
    encoder: Sequence[nn.Module],
    quantizer: Quantizer,
    encoder_lr_factor: float,
    codebook_lr_factor: float,
) -> list[dict[str, Any]]:
    """Split parameters into networks, encoder and free code vectors.

    Code vectors are exempt from weight decay, which would move codes that nothing selects.

    Args:
        parameters: All parameters that are to be trained.
        encoder: The modules that make latents.
        quantizer: The quantizer.
        encoder_lr_factor: Learning-rate factor of the encoder.
        codebook_lr_factor: Learning-rate factor of free code vectors; transforms that make a codebook count as
            networks.

    Returns:
        Groups for an optimizer, each with its `lr_factor` for `scale_learning_rates` and its `name`.
    """
    codes = [quantizer.free_codes] if isinstance(quantizer.free_codes, nn.Parameter) else []
    latents = [parameter for module in encoder for parameter in module.parameters()]
    special = {id(parameter) for parameter in (*codes, *latents)}
    networks = [parameter for parameter in parameters if id(parameter) not in special]
    groups: list[dict[str, Any]] = [
        {"name": "networks", "params": networks, "lr_factor": 1.0},
        {"name": "encoder", "params": latents, "lr_factor": encoder_lr_factor},
        {"name": "codebook", "params": codes, "lr_factor": codebook_lr_factor, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def scale_learning_rates(optimizer: Optimizer) -> Optimizer:
    """Multiply each group's learning rate by its `lr_factor`, before any scheduler sees it.

    Args:
        optimizer: An optimizer built from `parameter_groups`.

    Returns:
        The same optimizer.
    """
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_factor"]
    return optimizer
