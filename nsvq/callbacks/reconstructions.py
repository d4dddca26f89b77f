"""Pictures: reconstruction grids and predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torchvision.utils import make_grid, save_image

from nsvq.callbacks.folder import replacing, run_folder, writing
from nsvq.callbacks.probe import probe_images
from nsvq.callbacks.protocols import evaluating, tokenizer


class ReconstructionGrid(Callback):
    """Draws images, their reconstructions and the absolute error after each validation pass.

    The grid's three rows go to `<run folder>/reconstructions/step_<step>.png` and, when a W&B logger is on, to W&B as
    `val/reconstructions`. Works in any LightningModule with `.quantizer`, `.encode` and `.decode`; images in [−1, 1].

    Args:
        num_images: Images in a row, evenly spread over the validation set.

    Raises:
        ValueError: If num_images is below 1.
    """

    def __init__(self, num_images: int = 8) -> None:
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        self.num_images = num_images
        self._images: Tensor | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and save the grid."""
        folder = run_folder(trainer)
        if folder is None or trainer.sanity_checking:
            return
        if self._images is None:
            self._images = probe_images(trainer, self.num_images).to(pl_module.device)
        module = tokenizer(pl_module, "quantizer", "encode", "decode")
        with evaluating(trainer, pl_module):
            images = trainer.precision_plugin.convert_input(self._images)
            reconstructions = module.decode(module.quantizer(module.encode(images)).quantized)
        grid = draw_grid(self._images, reconstructions)
        path = folder / "reconstructions" / f"step_{trainer.global_step:08d}.png"
        with replacing(path) as part:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_image(grid, part, format="png")
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("val/reconstructions", [grid])


def draw_grid(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Lay out images, reconstructions and their absolute error in three rows.

    Args:
        images: Images in [−1, 1], shape (B, C, H, W).
        reconstructions: The same shape, clamped to [−1, 1] here.

    Returns:
        One picture in [0, 1], shape (3, height, width).
    """
    images, reconstructions = images.float().cpu(), reconstructions.float().cpu().clamp(-1, 1)
    error = (images - reconstructions).abs() - 1
    rows = torch.cat([images, reconstructions, error])
    grid: Tensor = make_grid((rows + 1) / 2, nrow=len(images), padding=2)
    return grid


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict` returns: `predictions/<number>.png`, `indices_rank<r>.npz` and the files' names.

    The archive holds `indices` (N, h, w), int64, and `numbers` (N,), the images' places in the data set, which name the
    PNG files. Where the data set has `names`, `predictions/names.txt` lists them by number.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._indices: list[np.ndarray[Any, Any]] = []
        self._numbers: list[int] = []
        self._folder = Path()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the folder; all ranks learn of rank 0's."""
        self._folder = Path(trainer.log_dir or ".") / "predictions"
        self._folder.mkdir(parents=True, exist_ok=True)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch of reconstructions."""
        numbers = list(batch_indices or [])
        for number, image in zip(numbers, prediction["reconstructions"], strict=True):
            path = self._folder / f"{number:06d}.png"
            with writing(path):
                save_image((image.float() + 1) / 2, path)
        self._numbers += numbers
        self._indices.append(prediction["indices"].cpu().numpy())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the indices."""
        if not self._indices:
            return
        path = self._folder / f"indices_rank{trainer.global_rank}.npz"
        with writing(path):
            np.savez_compressed(path, indices=np.concatenate(self._indices), numbers=np.array(self._numbers))
        names = getattr(getattr(trainer.predict_dataloaders, "dataset", None), "names", None)
        if names is not None and trainer.is_global_zero:
            lines = [f"{number:06d}.png\t{name}\n" for number, name in enumerate(names)]
            (self._folder / "names.txt").write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
        if trainer.is_global_zero:
            print(f"wrote reconstructions and their indices to {self._folder}")
