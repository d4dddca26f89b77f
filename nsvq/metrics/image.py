"""Reconstruction quality as the literature measures it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.image import (
    MultiScaleStructuralSimilarityIndexMeasure,
    PeakSignalNoiseRatio,
    StructuralSimilarityIndexMeasure,
)

# Weights of the five scales (Wang et al., 2003).
MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = 11


def to_eight_bit(images: Tensor) -> Tensor:
    """Map images from [−1, 1] to [0, 1] and round them to the 256 grey levels that an image file holds.

    Args:
        images: Images, any shape; values outside [−1, 1] are clamped.

    Returns:
        Images of the same shape, float32.
    """
    return _grey_levels(images) / 255


def to_uint8(images: Tensor) -> Tensor:
    """Map images from [−1, 1] to the 256 grey levels, rounded like `to_eight_bit`.

    Args:
        images: Images, any shape; values outside [−1, 1] are clamped.

    Returns:
        Images of the same shape, uint8.
    """
    return _grey_levels(images).to(torch.uint8)


def reconstruction_metrics(prefix: str) -> MetricCollection:
    """Return PSNR and SSIM of images in [0, 1].

    PSNR is the mean of the images' PSNRs, in dB. SSIM has the Gaussian window of 11 pixels and σ = 1.5 and is averaged
    over all pixels, with images mirrored beyond their borders; scikit-image leaves out the 5 border pixels, which on
    images of 64 pixels comes to about 0.01.

    Args:
        prefix: What the logged names start with, such as `val/`.

    Returns:
        A collection with the names `psnr` and `ssim`.
    """
    return MetricCollection(
        {
            "psnr": PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean"),
            "ssim": StructuralSimilarityIndexMeasure(data_range=1.0),
        },
        prefix=prefix,
    )


def multiscale_ssim(betas: Sequence[float] = MS_SSIM_BETAS) -> MultiScaleStructuralSimilarityIndexMeasure:
    """Return MS-SSIM (Wang et al., Asilomar 2003) of images in [0, 1], averaged over images.

    It is the product over scales, each of half the sides of the one before, of the mean contrast-structure term to the
    power of the scale's beta; the coarsest scale has the whole SSIM instead. The window is Gaussian with 11 pixels and
    σ = 1.5 at every scale, negative terms count as 0. Numbers with other betas do not compare.

    Args:
        betas: The scales' exponents, finest first.

    Returns:
        The metric; images must have the sides that `multiscale_ssim_least_side` tells.

    Raises:
        ValueError: If there are no betas.
    """
    _check_scales(betas)
    return MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0, betas=tuple(float(beta) for beta in betas))


def multiscale_ssim_least_side(betas: Sequence[float] = MS_SSIM_BETAS) -> int:
    """Return the least image side, in pixels, that `multiscale_ssim` takes with these betas: 176 by default.

    Raises:
        ValueError: If there are no betas.
    """
    _check_scales(betas)
    scales = len(betas)
    # The coarsest scale must be larger than what is mirrored beyond its border.
    coarsest = (WINDOW // 2 + 1) * 2 ** (scales - 1)
    torchmetrics = max(2**scales, WINDOW * max(1, scales - 1) ** 2)
    least: int = max(coarsest, torchmetrics)
    return least


def _check_scales(betas: Sequence[float]) -> None:
    if not betas:
        raise ValueError("MS-SSIM needs at least one beta")


def _grey_levels(images: Tensor) -> Tensor:
    return torch.round((images.float().clamp(-1, 1) + 1) * 127.5)
