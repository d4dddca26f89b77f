"""Callbacks: meters, encoder drift, curves on disk, codebook initialisation and replacement, weight averages."""

from nsvq.callbacks.codebook_health import CodebookHealth
from nsvq.callbacks.codebook_initialization import CodebookInitialization
from nsvq.callbacks.codebook_snapshots import CodebookSnapshots
from nsvq.callbacks.curves import CurvesOnDisk, truncate
from nsvq.callbacks.dead_code_replacement import DeadCodeReplacement
from nsvq.callbacks.encoder_drift import EncoderDrift
from nsvq.callbacks.encoder_freeze import EncoderFreeze
from nsvq.callbacks.image_quality import ImageQuality
from nsvq.callbacks.reconstructions import PredictionWriter, ReconstructionGrid
from nsvq.callbacks.weight_ema import WeightEMA

__all__ = [
    "CodebookHealth",
    "CodebookInitialization",
    "CodebookSnapshots",
    "CurvesOnDisk",
    "DeadCodeReplacement",
    "EncoderDrift",
    "EncoderFreeze",
    "ImageQuality",
    "PredictionWriter",
    "ReconstructionGrid",
    "WeightEMA",
    "truncate",
]
