"""`results.json`: the numbers of an evaluation and the protocol that they were measured by."""

import json
import math
import platform
from collections.abc import Sized
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from nsvq.callbacks.folder import replacing, run_folder
from nsvq.callbacks.weight_ema import CHECKPOINT_KEY, WeightEMA

PACKAGES = ("nsvq-lab", "torch", "torchvision", "lightning", "torchmetrics", "torch-fidelity", "lpips")
MEASURES = {
    "reference": "the same images in the same crop, so that rFID compares with no FID against a training set",
    "grey_levels": "reconstructions clamped to [-1, 1]; both sides rounded to 8 bits, except for LPIPS",
    "rfid": "torchmetrics with torch-fidelity's Inception, TensorFlow 1 bilinear resize to 299 pixels without "
    "antialiasing, 2048 features, float64",
    "lpips": "version 0.1, range [-1, 1], float32, mean over images",
    "psnr": "mean over images of each image's PSNR, data range 1",
    "ssim": "Gaussian window of 11 pixels, sigma 1.5, data range 1, borders mirrored",
    "codebook": "usage and quantization error over all tokens of the pass",
}


def write_results(
    trainer: Trainer,
    module: LightningModule,
    split: str,
    images: int,
    missing: dict[str, str],
    protocol: dict[str, Any],
) -> None:
    """Write the numbers of an evaluation pass to `<run folder>/results.json`.

    Call it when the pass has ended and all of its numbers are logged. Only the process that owns the run folder writes.

    Args:
        trainer: The trainer, whose logged numbers of the split are written.
        module: The model.
        split: `val` or `test`.
        images: Images that were measured, on all processes.
        missing: Why a measure is missing, by its name.
        protocol: What to add to the protocol.
    """
    folder = run_folder(trainer)
    if folder is None:
        return
    data = getattr(trainer, "datamodule", None)
    dataset = getattr(trainer.val_dataloaders if split == "val" else trainer.test_dataloaders, "dataset", None)
    measured = {
        name.removeprefix(f"{split}/"): float(value)
        for name, value in sorted(trainer.callback_metrics.items())
        if name.startswith(f"{split}/")
    }
    results = {
        "split": split,
        "images": images,
        "step": _step(trainer),
        "metrics": {name: value if math.isfinite(value) else None for name, value in measured.items()},
        "not_measured": missing,
        "protocol": {
            "model": type(module).__name__,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path and trainer.state.fn != "fit" else None,
            "weights": "averaged" if _averaged(trainer) else "live",
            "precision": str(trainer.precision),
            "data": type(data).__name__,
            "split_sha256": getattr(data, "split_sha256", {}).get(split),
            "split_images": len(dataset) if isinstance(dataset, Sized) else None,
            "preparation": getattr(dataset, "preparation", None),
            **MEASURES,
            **protocol,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        },
    }
    with replacing(folder / "results.json") as part:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def _step(trainer: Trainer) -> int:
    """Return how many steps the weights were trained."""
    if trainer.state.fn == "fit" or not trainer.ckpt_path:
        return int(trainer.global_step)
    return int(_checkpoint(trainer)["global_step"])


def _averaged(trainer: Trainer) -> bool:
    """Return whether the weights are averages, see `WeightEMA`."""
    if trainer.state.fn == "fit":
        return any(isinstance(callback, WeightEMA) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    return bool(trainer.ckpt_path) and CHECKPOINT_KEY in _checkpoint(trainer)


def _checkpoint(trainer: Trainer) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(str(trainer.ckpt_path), map_location="cpu", weights_only=True, mmap=True)
    return checkpoint
