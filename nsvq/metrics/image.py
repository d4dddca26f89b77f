"""Reconstruction quality as the literature measures it."""

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure


def to_eight_bit(images: Tensor) -> Tensor:
    """Map images from [−1, 1] to [0, 1] and round them to the 256 grey levels that an image file holds.

    Args:
        images: Images, any shape; values outside [−1, 1] are clamped.

    Returns:
        Images of the same shape, float32.
    """
    return torch.round((images.float().clamp(-1, 1) + 1) * 127.5) / 255


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
