"""Data-dependent initialisation of the codebook."""

import copy
from itertools import islice
from math import ceil
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from nsvq.callbacks.protocols import evaluating, images_of, tokenizer
from nsvq.distributed import all_reduce_sum


class CodebookInitialization(Callback):
    """Sets the code vectors once, before the first step, from the latents of the first training batches.

    `kmeans` clusters the latents of all processes by Lloyd's algorithm, starting at random ones; `samples` takes these
    as they are. The codes depend on the data and the seed, not on how many processes share the data, and lie where the
    latents do: `initial_scale` does not rescale them. Codes of loaded weights (`--init_from`, `--model.pretrained`) are
    replaced too; a run that goes on from a checkpoint keeps its codes.

    The batches are those that training starts with, encoded in evaluation mode; training still sees all of them, in the
    same order and with the same random numbers as without this callback. Works for every quantizer with free code
    vectors.

    In the list of callbacks it stands before those that look at the codes when training starts.

    Args:
        method: `kmeans` or `samples`.
        num_batches: Training batches whose latents are used; they must give at least as many latents as there are
            codes.
        iterations: Most iterations of k-means.
        seed: Seed of the choice.

    Raises:
        ValueError: If the method is unknown or a number is below 1.
    """

    def __init__(
        self,
        method: Literal["kmeans", "samples"] = "kmeans",
        num_batches: int = 16,
        iterations: int = 20,
        seed: int = 0,
    ) -> None:
        if method not in ("kmeans", "samples"):
            raise ValueError(f"method must be kmeans or samples, got {method!r}")
        for name, value in (("num_batches", num_batches), ("iterations", iterations)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.method = method
        self.num_batches = num_batches
        self.iterations = iterations
        self.seed = seed
        self._done = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be initialised.

        Raises:
            TypeError: If the quantizer has no free code vectors.
        """
        if not self._is_due(trainer):
            return
        quantizer = tokenizer(pl_module, "quantizer", "encode").quantizer
        if quantizer.free_codes is None:
            raise TypeError(
                f"codebook initialisation needs free code vectors, and {type(quantizer).__name__} makes its codes by a "
                "transform"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the codes of a fresh run.

        Raises:
            TypeError: If the training batches cannot be read ahead.
            ValueError: If the batches give fewer latents than there are codes.
        """
        if not self._is_due(trainer):
            return
        quantizer = tokenizer(pl_module).quantizer
        latents = self._first_latents(trainer, pl_module)
        tokens = sum(batch.numel() // batch.shape[1] for batch in latents)
        tokens = int(all_reduce_sum(torch.tensor(tokens, device=pl_module.device)))
        codes, batches = quantizer.codebook_size, len(latents)
        if tokens < codes:
            raise ValueError(
                f"{codes} codes need as many latents to start from, and {batches} training batches give {tokens}: "
                f"num_batches must be at least {ceil(codes * batches / tokens)}, and an epoch has "
                f"{len(_training_loader(trainer))} batches"
            )
        quantizer.fit_codes(torch.cat(latents), self.iterations if self.method == "kmeans" else 0, self.seed)
        self._done = True

    def state_dict(self) -> dict[str, Any]:
        """Return whether the codes are set."""
        return {"done": self._done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self._done = state_dict["done"]

    def _is_due(self, trainer: Trainer) -> bool:
        return not self._done and trainer.global_step == 0 and trainer.ckpt_path is None

    def _first_latents(self, trainer: Trainer, pl_module: LightningModule) -> list[Tensor]:
        """Encode this process's share of the first batches."""
        loader, module = _training_loader(trainer), tokenizer(pl_module)
        # The trainer's own iterator would lose these batches, and its sampler may keep a position or a generator.
        sampler = copy.deepcopy(loader.batch_sampler, {id(loader.dataset): loader.dataset})
        ahead = DataLoader(loader.dataset, batch_sampler=sampler, collate_fn=loader.collate_fn)
        latents = []
        with isolate_rng():
            for batch in islice(ahead, self.num_batches):
                with evaluating(trainer, pl_module):
                    images = trainer.precision_plugin.convert_input(images_of(batch).to(pl_module.device))
                    latents.append(module.encode(images))
        return latents


def _training_loader(trainer: Trainer) -> DataLoader[Any]:
    """Return the loader of the training batches after a check that it can be read a second time."""
    loader = trainer.train_dataloader
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or loader.batch_sampler is None
    ):
        raise TypeError("codebook initialisation reads batches ahead: it needs one DataLoader with a batch sampler")
    return loader
