"""Quantizers: one file per method behind one interface."""

from nsvq.quantizers.base import Quantizer, QuantizerOutput
from nsvq.quantizers.codebook_loss import CodebookLoss, KernelCodebookLoss
from nsvq.quantizers.ema import EMAVQ
from nsvq.quantizers.factorized import FactorizedVQ
from nsvq.quantizers.nsvq import NSVQ
from nsvq.quantizers.schedule import BandwidthSchedule
from nsvq.quantizers.simvq import SimVQ
from nsvq.quantizers.transvq import TransVQ
from nsvq.quantizers.vanilla import VanillaVQ

__all__ = [
    "EMAVQ",
    "NSVQ",
    "BandwidthSchedule",
    "CodebookLoss",
    "FactorizedVQ",
    "KernelCodebookLoss",
    "Quantizer",
    "QuantizerOutput",
    "SimVQ",
    "TransVQ",
    "VanillaVQ",
]
