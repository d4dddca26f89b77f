"""What is measured of a quantizer: forward in training mode and backward to latents and code vectors."""

import time

import torch
from torch import Tensor, nn

from nsvq.bench.grid import Cell


def make_latents(cell: Cell, device: torch.device) -> Tensor:
    """Draw the latents of a cell from N(0, 1), the same ones for all contenders.

    Args:
        cell: The size.
        device: Where they lie.

    Returns:
        Latents, shape (N, D), that require a gradient.
    """
    generator = torch.Generator().manual_seed(cell.latents)
    return torch.randn(cell.latents, cell.dim, generator=generator).to(device).requires_grad_()


def make_codes(codes: int, dim: int) -> Tensor:
    """Draw code vectors at the latents' scale, so that distances are as in training.

    Args:
        codes: Number of codes K.
        dim: Dimension D.

    Returns:
        Code vectors from N(0, 1), shape (K, D).
    """
    return torch.randn(codes, dim, generator=torch.Generator().manual_seed(0))


def step(module: nn.Module, latents: Tensor) -> None:
    """Run forward and backward of mean(quantized²) + loss.

    Args:
        module: Maps latents to a tuple that holds the quantized latents first and the loss third.
        latents: Latents, shape (N, D).
    """
    quantized, _, loss, *_ = module(latents)
    (quantized.square().mean() + loss).backward()


def clear_gradients(module: nn.Module, latents: Tensor) -> None:
    """Set all gradients to None.

    Args:
        module: The contender.
        latents: Its input.
    """
    module.zero_grad(set_to_none=True)
    latents.grad = None


def timed_step(module: nn.Module, latents: Tensor) -> float:
    """Run `step` and then, outside of the measured time, clear the gradients.

    Args:
        module: The contender.
        latents: Its input.

    Returns:
        Seconds.
    """
    synchronize(latents.device)
    start = time.perf_counter()
    step(module, latents)
    synchronize(latents.device)
    seconds = time.perf_counter() - start
    clear_gradients(module, latents)
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
