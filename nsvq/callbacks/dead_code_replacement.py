"""Dead-code replacement: the baseline that no comparison may leave out."""

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from nsvq.callbacks.protocols import tokenizer
from nsvq.distributed import GlobalRows, all_reduce_sum, rank


class DeadCodeReplacement(Callback):
    """Replaces codes that nothing selected for a number of steps.

    A replaced code becomes a random latent of the batch (SoundStream, arXiv 2107.03312) or a copy of an active code
    plus noise (as in arXiv 2606.11363). The quantizer resets what it keeps for the code, and the optimizer's moments
    of its row are zeroed. Usage is that of all processes, and the choice among all their latents depends on the seed
    and the step alone: W processes set the codes that one process with the whole batch sets. Works for every quantizer
    with free code vectors.

    Args:
        unused_steps: Training steps without selection after which a code is dead; a multiple of every_n_steps.
        every_n_steps: Steps between two looks at the codes; processes communicate only then.
        source: `latent` or `active`.
        noise: Standard deviation of the noise on active codes, relative to the codes' standard deviation.
        seed: Seed of the choices.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        unused_steps: int = 100,
        every_n_steps: int = 10,
        source: Literal["latent", "active"] = "latent",
        noise: float = 0.01,
        seed: int = 0,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if unused_steps < 1 or unused_steps % every_n_steps:
            raise ValueError(
                f"unused_steps must be a multiple of every_n_steps={every_n_steps} and at least 1, got {unused_steps}"
            )
        if source not in ("latent", "active"):
            raise ValueError(f"source must be latent or active, got {source!r}")
        if noise < 0:
            raise ValueError(f"noise must be at least 0, got {noise}")
        self.unused_steps = unused_steps
        self.every_n_steps = every_n_steps
        self.source = source
        self.noise = noise
        self.seed = seed
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._unused = torch.zeros(0, dtype=torch.int64)
        self._batch: Tensor | None = None
        self._training = False
        self._last_step = 0
        self._hook: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to listen to the quantizer.

        Raises:
            TypeError: If the quantizer has no free code vectors.
        """
        quantizer = tokenizer(pl_module, "quantizer").quantizer
        if quantizer.free_codes is None:
            raise TypeError(
                f"dead-code replacement needs free code vectors, and {type(quantizer).__name__} makes its codes by a "
                "transform"
            )
        assert isinstance(quantizer, nn.Module)
        if not len(self._counts):
            self._counts = torch.zeros(quantizer.codebook_size, dtype=torch.int64)
            self._unused = torch.zeros(quantizer.codebook_size, dtype=torch.int64)
        self._counts = self._counts.to(pl_module.device)
        self._unused = self._unused.to(pl_module.device)
        self._last_step = trainer.global_step
        self._unhook()
        self._hook = quantizer.register_forward_hook(partial(self._observe, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening."""
        self._unhook()

    def on_exception(self, *_: Any) -> None:
        """Stop listening."""
        self._unhook()

    def on_train_batch_start(self, *_: Any) -> None:
        """Listen to the training batch."""
        self._training = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Replace dead codes if it is time."""
        self._training = False
        step = trainer.global_step
        if step == self._last_step or step % self.every_n_steps or self._batch is None:
            return
        self._last_step = step
        counts = all_reduce_sum(self._counts)
        self._unused = torch.where(counts > 0, 0, self._unused + self.every_n_steps)
        dead = (self._unused >= self.unused_steps).nonzero().flatten()
        vectors = self._candidates(tokenizer(pl_module).quantizer, counts, step)[dead]
        if len(dead):
            self._replace(trainer, tokenizer(pl_module).quantizer, dead, vectors)
        self._unused[dead] = 0
        self._counts.zero_()
        pl_module.log("train/replaced_codes", float(len(dead)))

    def state_dict(self) -> dict[str, Any]:
        """Return how long codes have been unused, and the counts of all processes since the last look.

        All processes call it together, as they save a checkpoint together.
        """
        if not len(self._counts):
            return {}
        return {"unused": self._unused.cpu(), "counts": all_reduce_sum(self._counts).cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the counting of a checkpoint, whatever the number of processes then and now."""
        self._unused, counts = state_dict["unused"], state_dict["counts"]
        # The counts are summed again at the next look.
        self._counts = counts if rank() == 0 else torch.zeros_like(counts)

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _observe(self, module: LightningModule, quantizer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        # Other callbacks may encode a probe set or pictures between training batches.
        if self._training and module.training:
            self._counts += torch.bincount(output.indices.flatten(), minlength=len(self._counts))
            self._batch = inputs[0].detach()

    @torch.no_grad()
    def _candidates(self, quantizer: Any, counts: Tensor, step: int) -> Tensor:
        """Draw a new place for every code, dead or not, so that what ranks exchange has a fixed size."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        size = len(counts)
        batch = self._batch
        assert batch is not None
        latents, codes = quantizer.search_space(batch)
        if self.source == "active":
            chosen = torch.multinomial(counts.double().cpu(), size, replacement=True, generator=generator)
            spread = codes.std(dim=0, correction=0)
            noise = torch.randn(codes.shape, generator=generator, dtype=torch.float64).to(codes)
            copies: Tensor = codes[chosen.to(codes.device)] + self.noise * spread * noise
            return copies
        rows = GlobalRows(latents.view(len(batch), -1, latents.shape[1]))
        return rows.take(torch.randint(len(rows), (size,), generator=generator))

    def _replace(self, trainer: Trainer, quantizer: Any, dead: Tensor, vectors: Tensor) -> None:
        quantizer.replace_codes(dead, vectors)
        codes = quantizer.free_codes
        for optimizer in trainer.optimizers:
            for value in optimizer.state.get(codes, {}).values():
                if isinstance(value, Tensor) and value.shape == codes.shape:
                    value[dead] = 0
