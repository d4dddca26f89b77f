"""What callbacks need of a LightningModule and its quantizer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn


class QuantizerLike(Protocol):
    """A quantizer as the callbacks see it; any `nn.Module` whose call returns an object with `.indices`."""

    codebook_size: int

    def __call__(self, z: Tensor) -> Any:
        """Quantize latents; the result has int64 `.indices` and `.quantized`."""

    def search_space(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents (N, d) and codes (K, d) as they are compared."""

    def replace_codes(self, indices: Tensor, vectors: Tensor) -> None:
        """Set single code vectors."""

    def fit_codes(self, z: Tensor, iterations: int, seed: int) -> None:
        """Set all code vectors from the latents of all processes."""

    @property
    def free_codes(self) -> Tensor | None:
        """The tensor of free code vectors, None if a transform makes them."""


class TokenizerLike(Protocol):
    """A LightningModule that can be watched: `.quantizer` and `.encode`; `.decode` for pictures.

    A module that also holds networks which are no part of the tokenizer, such as a discriminator, can have a method
    `tokenizer_parameters` without arguments that yields names and parameters like `named_parameters`, but only the
    tokenizer's; see the function of this name.
    """

    quantizer: QuantizerLike

    def encode(self, images: Tensor) -> Tensor:
        """Map images to the latents that the quantizer is given."""

    def decode(self, quantized: Tensor) -> Tensor:
        """Map quantized latents to images."""


def tokenizer(module: LightningModule, *needs: str) -> TokenizerLike:
    """Return the module as a tokenizer after a check.

    Args:
        module: The LightningModule that a callback is attached to.
        needs: Attributes that the callback uses.

    Raises:
        TypeError: If an attribute is missing.
    """
    missing = [name for name in needs if not hasattr(module, name)]
    if missing:
        raise TypeError(f"{type(module).__name__} has no {', '.join('.' + name for name in missing)}, needed here")
    return cast(TokenizerLike, module)


def tokenizer_parameters(module: LightningModule) -> Iterator[tuple[str, nn.Parameter]]:
    """Return the tokenizer's parameters under their names in the module's state.

    Args:
        module: The LightningModule that a callback is attached to.

    Returns:
        What the module's own `tokenizer_parameters` yields; without such a method all of its parameters, those with
        several names under each of them.
    """
    every = partial(module.named_parameters, remove_duplicate=False)
    named: Callable[[], Iterator[tuple[str, nn.Parameter]]] = getattr(module, "tokenizer_parameters", every)
    return named()


def images_of(batch: Any) -> Tensor:
    """Return the images of a batch: the batch itself or its first element."""
    images = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(images, Tensor):
        raise TypeError(f"expected a batch of images or a sequence that starts with them, got {type(batch).__name__}")
    return images


@contextmanager
def evaluating(trainer: Trainer, module: nn.Module) -> Iterator[None]:
    """Run a module in evaluation mode and the trainer's precision without gradients; restore each submodule's mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
