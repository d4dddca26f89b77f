"""PSNR and SSIM of eight-bit images, as the literature computes them."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from nsvq.metrics import reconstruction_metrics, to_eight_bit


def test_all_256_levels_come_back_unchanged():
    levels = torch.arange(256)
    assert (to_eight_bit(levels / 127.5 - 1) * 255).equal(levels.float())


def test_rounds_to_the_nearest_level_and_clamps():
    images = torch.tensor([-5.0, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 1.0, 5.0])
    assert (to_eight_bit(images) * 255).tolist() == [0, 0, 0, 1, 255, 255]
    assert to_eight_bit(images.bfloat16()).dtype == torch.float32


@pytest.fixture
def pairs():
    """Three smooth images and copies with weak, middle and strong noise, in [0, 1]."""
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(3, 3, 6, 6), size=(32, 32), mode="bicubic").clamp(0, 1)
    noise = torch.randn(3, 3, 32, 32) * torch.tensor([0.01, 0.05, 0.3]).view(3, 1, 1, 1)
    return (images + noise).clamp(0, 1), images


def measured(noisy, images, sizes):
    metrics = reconstruction_metrics("val/")
    for noisy_part, part in zip(noisy.split(sizes), images.split(sizes), strict=True):
        metrics.update(noisy_part, part)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_psnr_is_the_mean_of_the_images_psnrs(pairs):
    errors = (pairs[0] - pairs[1]).double().square().mean(dim=(1, 2, 3))
    expected = sum(-10 * math.log10(error) for error in errors.tolist()) / 3
    pooled = -10 * math.log10(errors.mean())
    assert measured(*pairs, [1, 2])["val/psnr"] == pytest.approx(expected, abs=1e-4)
    assert abs(expected - pooled) > 5


def test_ssim_equals_scikit_image(pairs):
    # scikit-image leaves out a border of 5 pixels, ours mirrors the images there: a mirrored border makes them equal.
    expected = [
        structural_similarity(
            *(np.pad(side.double().numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect") for side in (image, noisy)),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=0,
        )
        for noisy, image in zip(*pairs, strict=True)
    ]
    assert measured(*pairs, [2, 1])["val/ssim"] == pytest.approx(sum(expected) / 3, abs=1e-4)
