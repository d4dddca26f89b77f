"""Codebook collapse in vector quantization: quantizers, meters and Lightning experiments."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("nsvq-lab")
except PackageNotFoundError:
    __version__ = "0+unknown"
