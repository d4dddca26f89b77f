"""Meters: codebook usage, quantization error, encoder drift, image quality."""

from nsvq.metrics.codebook import CodebookUsage, QuantizationError, usage_statistics
from nsvq.metrics.drift import ProbeState, drift_measures, scale
from nsvq.metrics.image import reconstruction_metrics, to_eight_bit

__all__ = [
    "CodebookUsage",
    "ProbeState",
    "QuantizationError",
    "drift_measures",
    "reconstruction_metrics",
    "scale",
    "to_eight_bit",
    "usage_statistics",
]
