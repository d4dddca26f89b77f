"""Meters: codebook usage, quantization error, encoder drift, image quality."""

from nsvq.metrics.codebook import CodebookUsage, QuantizationError, usage_statistics
from nsvq.metrics.drift import ProbeState, drift_measures, scale
from nsvq.metrics.fid import fid_name, frechet_distance, frechet_inception_distance
from nsvq.metrics.image import (
    MS_SSIM_BETAS,
    multiscale_ssim,
    multiscale_ssim_least_side,
    reconstruction_metrics,
    to_eight_bit,
    to_uint8,
)
from nsvq.metrics.lpips import LPIPSMetric

__all__ = [
    "MS_SSIM_BETAS",
    "CodebookUsage",
    "LPIPSMetric",
    "ProbeState",
    "QuantizationError",
    "drift_measures",
    "fid_name",
    "frechet_distance",
    "frechet_inception_distance",
    "multiscale_ssim",
    "multiscale_ssim_least_side",
    "reconstruction_metrics",
    "scale",
    "to_eight_bit",
    "to_uint8",
    "usage_statistics",
]
