"""PSNR, SSIM and MS-SSIM of eight-bit images, as the literature computes them."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from nsvq.metrics import (
    multiscale_ssim,
    multiscale_ssim_least_side,
    reconstruction_metrics,
    to_eight_bit,
    to_uint8,
)


def test_all_256_levels_come_back_unchanged():
    levels = torch.arange(256)
    assert (to_eight_bit(levels / 127.5 - 1) * 255).equal(levels.float())


def test_rounds_to_the_nearest_level_and_clamps():
    images = torch.tensor([-5.0, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 1.0, 5.0])
    assert (to_eight_bit(images) * 255).tolist() == [0, 0, 0, 1, 255, 255]
    assert to_eight_bit(images.bfloat16()).dtype == torch.float32


def test_uint8_levels_are_the_eight_bit_ones():
    images = torch.cat([torch.linspace(-1.2, 1.2, 9999), (torch.arange(256) / 127.5 - 1)])
    levels = to_uint8(images)
    assert levels.dtype == torch.uint8
    assert (levels.float() / 255).equal(to_eight_bit(images))
    assert to_uint8(images.bfloat16()).dtype == torch.uint8


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


def ms_ssim_by_the_formula(noisy, image, betas):
    """MS-SSIM of one image (C, H, W), Wang et al. (2003), in float64 with scipy's Gaussian window of 11 pixels."""

    def blur(channels):
        return np.stack([gaussian_filter(channel, 1.5, mode="mirror", truncate=3.5) for channel in channels])

    product, last = 1.0, len(betas) - 1
    for scale, beta in enumerate(betas):
        mean, noisy_mean = blur(image), blur(noisy)
        variances = blur(image * image) - mean**2 + blur(noisy * noisy) - noisy_mean**2
        covariance = blur(image * noisy) - mean * noisy_mean
        contrast_structure = (2 * covariance + 0.03**2) / (variances + 0.03**2)
        luminance = (2 * mean * noisy_mean + 0.01**2) / (mean**2 + noisy_mean**2 + 0.01**2)
        term = contrast_structure[:, 5:-5, 5:-5] if scale < last else luminance * contrast_structure
        product *= max(term.mean(), 0.0) ** beta
        channels, height, width = image.shape
        halves = (channels, height // 2, 2, width // 2, 2)
        image, noisy = (
            side[:, : height // 2 * 2, : width // 2 * 2].reshape(halves).mean(axis=(2, 4)) for side in (image, noisy)
        )
    return product


@pytest.mark.parametrize(
    ("options", "betas", "side"),
    [
        ({}, (0.0448, 0.2856, 0.3001, 0.2363, 0.1333), 176),
        ({"betas": [0.4, 0.4, 0.2]}, (0.4, 0.4, 0.2), 64),
        ({"betas": [1]}, (1.0,), 32),
    ],
)
def test_multiscale_ssim_equals_the_formula(options, betas, side):
    images = torch.nn.functional.interpolate(torch.rand(3, 3, 9, 9), size=(side, side + 7), mode="bicubic").clamp(0, 1)
    noisy = (images + torch.randn(images.shape) * torch.tensor([0.02, 0.1, 0.5]).view(3, 1, 1, 1)).clamp(0, 1)
    metric = multiscale_ssim(**options)
    for noisy_part, part in zip(noisy.split([1, 2]), images.split([1, 2]), strict=True):
        metric.update(noisy_part, part)
    pairs = zip(noisy.double().numpy(), images.double().numpy(), strict=True)
    expected = [ms_ssim_by_the_formula(*sides, betas) for sides in pairs]
    assert expected[0] > expected[1] > expected[2] > 0.05
    assert float(metric.compute()) == pytest.approx(sum(expected) / 3, abs=1e-4)


@pytest.mark.parametrize(("scales", "least"), [(5, 176), (4, 99), (3, 44), (2, 12), (1, 11)])
def test_the_least_side_is_the_least(scales, least):
    betas = [1 / scales] * scales
    assert multiscale_ssim_least_side(betas) == least
    metric = multiscale_ssim(betas)
    images = torch.rand(1, 3, least, least + 20)
    metric.update(images, 0.9 * images)
    assert 0 < float(metric.compute()) < 1
    with pytest.raises((ValueError, RuntimeError)):
        metric.update(images[:, :, 1:], images[:, :, 1:])


def test_the_least_side_of_the_published_scales():
    assert multiscale_ssim_least_side() == 176


def test_no_scales_are_refused():
    for function in (multiscale_ssim, multiscale_ssim_least_side):
        with pytest.raises(ValueError, match="at least one beta"):
            function([])
