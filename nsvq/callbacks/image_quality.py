"""Image quality as the literature's tables give it, with the protocol beside the numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image import FrechetInceptionDistance

from nsvq.callbacks.protocols import images_of
from nsvq.callbacks.results import write_results
from nsvq.distributed import all_reduce_sum, everywhere
from nsvq.metrics import (
    MS_SSIM_BETAS,
    LPIPSMetric,
    fid_name,
    frechet_distance,
    frechet_inception_distance,
    multiscale_ssim,
    multiscale_ssim_least_side,
    to_eight_bit,
    to_uint8,
)
from nsvq.pretrained import PRETRAINED, lpips_network, obtain

Pretrained = Literal["inception", "alex", "vgg"]


class ImageQuality(Callback):
    """Measures rFID, LPIPS and, if asked for, MS-SSIM of reconstructions, and writes `results.json`.

    Measured in every `nsvq validate` and `nsvq test` pass and, inside training, in every n-th epoch's validation.
    Images and reconstructions are compared as they enter and leave the model: the same crop on both sides.

    - `rfid_n<images>`: torchmetrics' FID with torch-fidelity's Inception: images rounded to uint8, bilinear resize of
      TensorFlow 1 to 299 pixels, 2,048 features, float64. Below 2,048 images, or with another extractor, the name is
      `fid_smoke`, and the number compares with nothing.
    - `lpips_alex`, `lpips_vgg`: mean LPIPS v0.1 (arXiv 1801.03924) over images in [−1, 1], float32.
    - `ms_ssim`: multi-scale SSIM (Wang et al. 2003) with the scales below, on 8-bit levels.

    Networks whose weights can't be found are left out: the rest is measured, and `results.json` names the gap. They are
    held here, outside the model, so that no checkpoint and no average contains them. `results.json` in the run folder
    holds every number of the pass, the number of images, the protocol, versions and the split's sha256.

    Works in any LightningModule whose validation and test steps return a mapping with `reconstructions`.

    Args:
        every_n_epochs: Epochs between measured validation passes inside training; None: none of them.
        fid: Whether to measure rFID.
        fid_extractor: Maps uint8 images to features in place of Inception, see `nsvq.metrics.frechet_distance`.
        lpips: Trunks of LPIPS, of `alex` and `vgg`.
        ms_ssim: Whether to measure MS-SSIM.
        ms_ssim_betas: Its weight per scale, each scale half as large as the one before.
        weights: Weight files by network (`inception`, `alex`, `vgg`); others are found by `nsvq.pretrained.find`.
        allow_download: Whether rank 0 may fetch weights that are missing.

    Raises:
        ValueError: If a number or a network's name is wrong.
    """

    def __init__(
        self,
        every_n_epochs: int | None = None,
        fid: bool = True,
        fid_extractor: nn.Module | None = None,
        lpips: Sequence[Literal["alex", "vgg"]] = ("alex", "vgg"),
        ms_ssim: bool = False,
        ms_ssim_betas: Sequence[float] = MS_SSIM_BETAS,
        weights: dict[str, str] | None = None,
        allow_download: bool = False,
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be null or at least 1, got {every_n_epochs}")
        for trunk in lpips:
            if trunk not in ("alex", "vgg"):
                raise ValueError(f"lpips must be a list of alex and vgg, got {trunk!r}")
        for name in weights or {}:
            if name not in ("inception", "alex", "vgg"):
                raise ValueError(f"weights are given by inception, alex and vgg, got {name!r}")
        self.every_n_epochs = every_n_epochs
        self.fid = fid
        self.fid_extractor = fid_extractor
        self.lpips = tuple(lpips)
        self.ms_ssim = ms_ssim
        self.ms_ssim_betas = tuple(ms_ssim_betas)
        self.weights = weights or {}
        self.allow_download = allow_download
        self._metrics: dict[str, Metric] | None = None
        self._absent: dict[str, str] = {}
        self._skipped: dict[str, str] = {}
        self._measuring = False
        self._images = 0
        self._shape: tuple[int, ...] = ()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the networks' weights before anything runs."""
        if stage in ("validate", "test") or (stage == "fit" and self.every_n_epochs is not None):
            self._build()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether this pass is measured."""
        if trainer.sanity_checking:
            self._measuring = False
        elif trainer.state.fn == "fit":
            due = self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0
            self._start(due, pl_module)
        else:
            self._start(True, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the pass."""
        self._start(True, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Compare a batch of validation images with their reconstructions."""
        self._observe(pl_module, outputs, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Compare a batch of test images with their reconstructions."""
        self._observe(pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the pass."""
        self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the pass."""
        self._log(pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the pass, now that all of its numbers are known."""
        self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the pass, now that all of its numbers are known."""
        self._write(trainer, pl_module, "test")

    def _build(self) -> None:
        if self._metrics is not None:
            return
        self._metrics = {}
        if self.fid and self.fid_extractor is not None:
            self._metrics["rfid"] = frechet_distance(self.fid_extractor)
        elif self.fid and (weights := self._obtain("inception", "rfid")) is not None:
            self._metrics["rfid"] = frechet_inception_distance(weights)
        for name in self.lpips:
            if (weights := self._obtain(name, f"lpips_{name}")) is not None:
                self._metrics[f"lpips_{name}"] = LPIPSMetric(lpips_network(name, weights))
        if self.ms_ssim:
            self._metrics["ms_ssim"] = multiscale_ssim(self.ms_ssim_betas)
        if self._absent:
            rank_zero_info("\n".join(f"not measured: {name}: {reason}" for name, reason in self._absent.items()))

    def _obtain(self, network: Pretrained, measure: str) -> Path | None:
        """Find weights on all processes; None, and a gap, if one lacks them."""
        path = self.weights.get(network)
        try:
            return obtain(network, path, self.allow_download, option=f"--image_quality.weights.{network}")
        except FileNotFoundError:
            # A path that the user wrote is no gap but a mistake.
            if path is not None:
                raise
            name = PRETRAINED[network].name
            self._absent[measure] = f"{name} was not found; `nsvq weights fetch {network}` fetches it"
            return None

    def _start(self, measuring: bool, pl_module: LightningModule) -> None:
        self._measuring = measuring
        self._images = 0
        self._skipped = {}
        for metric in (self._metrics or {}).values():
            metric.to(pl_module.device).reset()

    @torch.no_grad()
    def _observe(self, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        if not self._measuring or self._metrics is None:
            return
        if not isinstance(outputs, Mapping) or "reconstructions" not in outputs:
            raise TypeError(
                f"{type(pl_module).__name__}'s validation and test steps return no `reconstructions`, which image "
                "quality is measured on; --image_quality null goes without"
            )
        images, reconstructions = images_of(batch), outputs["reconstructions"]
        self._images += len(images)
        self._shape = tuple(images.shape[1:])
        for name, metric in self._metrics.items():
            if (reason := self._unsuited(metric, images)) is not None:
                self._skipped[name] = reason
            elif isinstance(metric, FrechetInceptionDistance):
                metric.update(to_uint8(images), real=True)
                metric.update(to_uint8(reconstructions), real=False)
            elif isinstance(metric, LPIPSMetric):
                metric.update(reconstructions.float().clamp(-1, 1), images.float())
            else:
                metric.update(to_eight_bit(reconstructions), to_eight_bit(images))

    def _unsuited(self, metric: Metric, images: Tensor) -> str | None:
        """Return why images are not such as a metric takes; None if they are."""
        channels, side = images.shape[1], min(images.shape[-2:])
        least = 1
        if isinstance(metric, LPIPSMetric):
            least = metric.distance.smallest_side
        elif not isinstance(metric, FrechetInceptionDistance):
            least = multiscale_ssim_least_side(self.ms_ssim_betas)
        elif self.fid_extractor is not None:
            return None
        if side < least:
            return f"needs images of at least {least} pixels a side, got {side}"
        return f"needs images of 3 channels, got {channels}" if channels != 3 else None

    def _log(self, pl_module: LightningModule, split: str) -> None:
        if not self._measuring or self._metrics is None:
            return
        self._images = int(all_reduce_sum(torch.tensor(self._images, device=pl_module.device)))
        for name, metric in self._metrics.items():
            # All processes compute, or none does.
            if not everywhere(name not in self._skipped):
                self._skipped.setdefault(name, "unsuited to the images of another process")
            elif name != "rfid":
                pl_module.log(f"{split}/{name}", float(metric.compute()))
            elif self._images < 2:
                self._skipped[name] = "needs at least 2 images"
            else:
                name = fid_name(self._images, literature=self.fid_extractor is None)
                pl_module.log(f"{split}/{name}", float(metric.compute()))

    def _write(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        if self._measuring and self._metrics is not None:
            protocol: dict[str, Any] = {"image_shape": list(self._shape)}
            if self.ms_ssim:
                protocol["ms_ssim"] = f"betas {list(self.ms_ssim_betas)}, Gaussian window of 11 pixels, sigma 1.5"
            if self.fid_extractor is not None:
                protocol["rfid"] = f"features of {type(self.fid_extractor).__name__}, which compare with nothing"
            write_results(trainer, pl_module, split, self._images, self._absent | self._skipped, protocol)
