"""The Fréchet distance of images and reconstructions (FID, arXiv 1706.08500)."""

from pathlib import Path

import torch
from torch import nn
from torchmetrics.image import FrechetInceptionDistance

FEATURES = 2048


def frechet_inception_distance(weights: Path) -> FrechetInceptionDistance:
    """Return FID as the literature computes it.

    Features are the 2,048 of the Inception-v3 that was ported from TensorFlow. Images are resized as TensorFlow 1 does,
    bilinear without antialiasing (torchmetrics' own default antialiases and gives other numbers). The network, the
    statistics and the result are float64, whatever the autocast.

    Its `update(images, real=…)` takes uint8 images (B, 3, H, W), see `to_uint8`; rFID compares reconstructions
    (`real=False`) with the same images that were reconstructed (`real=True`). The network is a registered submodule, so
    a LightningModule that held the metric would save it in its checkpoints.

    Args:
        weights: The file of weights, as `nsvq.pretrained.obtain("inception")` returns it.

    Returns:
        The metric; its `compute` needs two images of each kind.

    Raises:
        ValueError: If the file cannot be read or holds more than weights.
    """
    # torch-fidelity unpickles the file without restrictions.
    try:
        torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{weights} cannot be read: it is truncated, damaged or no file of weights") from error
    # The network draws weights before it reads them; whether FID is measured must not change a run's random numbers.
    with torch.random.fork_rng(devices=[]):
        metric = FrechetInceptionDistance(
            feature=FEATURES, normalize=False, antialias=False, feature_extractor_weights_path=str(weights)
        )
    metric.set_dtype(torch.float64)
    return metric


def frechet_distance(extractor: nn.Module) -> FrechetInceptionDistance:
    """Return the Fréchet distance under any features, in float64; its numbers compare with no other extractor's.

    Args:
        extractor: Maps uint8 images (B, 3, H, W) to features (B, d); the integer attribute `num_features` is d. It is
            frozen and its weights become float64.

    Returns:
        The metric, which is used like that of `frechet_inception_distance`.
    """
    metric = FrechetInceptionDistance(feature=extractor.eval().requires_grad_(False), normalize=False)
    metric.set_dtype(torch.float64)
    return metric


def fid_name(images: int, literature: bool) -> str:
    """Name a Fréchet distance so that it is not taken for more than it is.

    Args:
        images: Number of images on each side.
        literature: Whether the features are those of `frechet_inception_distance`.

    Returns:
        Such as `rfid_n3000`, since FID falls with the number of images; `fid_smoke` for other features, and below 2,048
        images, where the covariance of 2,048 features is singular.
    """
    return f"rfid_n{images}" if literature and images >= FEATURES else "fid_smoke"
