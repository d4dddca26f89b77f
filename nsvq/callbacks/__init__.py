"""Callbacks: codebook health, encoder drift, curves on disk, pictures, dead-code replacement."""

from nsvq.callbacks.codebook_health import CodebookHealth
from nsvq.callbacks.curves import CurvesOnDisk, truncate
from nsvq.callbacks.dead_code_replacement import DeadCodeReplacement
from nsvq.callbacks.encoder_drift import EncoderDrift
from nsvq.callbacks.reconstructions import PredictionWriter, ReconstructionGrid

__all__ = [
    "CodebookHealth",
    "CurvesOnDisk",
    "DeadCodeReplacement",
    "EncoderDrift",
    "PredictionWriter",
    "ReconstructionGrid",
    "truncate",
]
