"""Who is measured: the project's quantizers, vector-quantize-pytorch's, and NSVQ on plain autograd."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from nsvq.bench.peer import peer_ema_vq, peer_module, peer_simvq, peer_vq
from nsvq.bench.plain_nsvq import PlainNSVQ
from nsvq.bench.workload import make_codes
from nsvq.ops import Kernel
from nsvq.ops.backend import BACKEND_VARIABLE
from nsvq.quantizers import (
    EMAVQ,
    NSVQ,
    BandwidthSchedule,
    FactorizedVQ,
    Quantizer,
    QuantizerOutput,
    SimVQ,
    TransVQ,
    VanillaVQ,
)

BASELINE = "VanillaVQ"
COMMITMENT_WEIGHT = 0.25
GAUSSIAN_WEIGHT = 0.5
# Whose operations exist as Triton kernels too.
TRITON = (BASELINE, "NSVQ gaussian", "NSVQ clamped_softmax", "NSVQ softmax", "NSVQ gaussian narrow")


@dataclass(frozen=True)
class Contender:
    """A quantizer with its settings.

    Attributes:
        name: Its name in tables.
        build: Makes it from dim and codebook size.
        pair_bytes: Bytes that it holds at its peak for each pair of latent and code; 0 if it keeps no N×K tensor.
            N·K times this is the memory it is predicted to need.
        goes_everywhere: Whether it is measured in cells that are not for everyone.
    """

    name: str
    build: Callable[[int, int], nn.Module]
    pair_bytes: int = 0
    goes_everywhere: bool = False


class OnTriton(nn.Module):
    """A quantizer whose search and kernel loss are computed by the Triton kernels.

    Args:
        quantizer: A `Quantizer`.
    """

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Quantize latents of shape (N, D)."""
        before = os.environ.get(BACKEND_VARIABLE)
        os.environ[BACKEND_VARIABLE] = "triton"
        try:
            output: QuantizerOutput = self.quantizer(latents)
        finally:
            del os.environ[BACKEND_VARIABLE]
            if before is not None:
                os.environ[BACKEND_VARIABLE] = before
        return output


def contenders(device: torch.device) -> list[Contender]:
    """List all contenders.

    On a GPU the project's quantizers whose operations exist as Triton kernels too are there twice.

    Free code vectors are at the latents' scale, N(0, 1); codebooks that a transform makes stay as they start. "Dense"
    bandwidths are τ = D, about half the mean squared distance of a latent and a code, where no weight underflows;
    "narrow" is 1/200 of the mean winner distance, where nearly all do; "local" is a bandwidth of its own for each code.

    Args:
        device: Where they run.

    Returns:
        The project's six quantizers, NSVQ five times, then plain autograd, then the peer's if it is installed.
    """
    ours = [
        Contender(BASELINE, partial(_free, VanillaVQ), goes_everywhere=True),
        Contender("EMAVQ", partial(_free, EMAVQ), goes_everywhere=True),
        Contender("SimVQ", partial(_build, SimVQ)),
        Contender("FactorizedVQ", partial(_free, FactorizedVQ)),
        Contender("TransVQ", partial(_build, TransVQ)),
        Contender("NSVQ gaussian", partial(_dense, "gaussian"), goes_everywhere=True),
        Contender("NSVQ clamped_softmax", partial(_dense, "clamped_softmax")),
        Contender("NSVQ softmax", partial(_dense, "softmax")),
        Contender("NSVQ gaussian narrow", _narrow, goes_everywhere=True),
        Contender("NSVQ gaussian local", _local),
        # Four float32 tensors of N×K.
        Contender("autograd NSVQ", _plain, pair_bytes=16),
    ]
    if device.type == "cuda":
        ours += [
            replace(contender, name=f"{contender.name} (triton)", build=partial(_on_triton, contender.build))
            for contender in ours
            if contender.name in TRITON
        ]
    if peer_module() is None:
        return ours
    return [
        *ours,
        # An int64 one-hot and four float32 tensors; SimVQ compares without autograd and keeps the distances alone.
        Contender("VectorQuantize (peer)", partial(peer_vq, COMMITMENT_WEIGHT), pair_bytes=24),
        Contender("VectorQuantize EMA (peer)", partial(peer_ema_vq, COMMITMENT_WEIGHT), pair_bytes=24),
        Contender("SimVQ (peer)", partial(peer_simvq, COMMITMENT_WEIGHT), pair_bytes=4),
    ]


def _build(cls: Callable[..., Quantizer], dim: int, codes: int) -> Quantizer:
    torch.manual_seed(0)
    return cls(dim, codes, commitment_weight=COMMITMENT_WEIGHT)


def _on_triton(build: Callable[[int, int], nn.Module], dim: int, codes: int) -> nn.Module:
    return OnTriton(build(dim, codes))


def _free(cls: Callable[..., Quantizer], dim: int, codes: int) -> Quantizer:
    quantizer = _build(cls, dim, codes)
    width = quantizer.codes().shape[1]
    quantizer.replace_codes(torch.arange(codes), make_codes(codes, width))
    return quantizer


def _dense(kernel: Kernel, dim: int, codes: int) -> Quantizer:
    return _free(partial(NSVQ, kernel=kernel, bandwidth=float(dim)), dim, codes)


def _narrow(dim: int, codes: int) -> Quantizer:
    return _free(partial(NSVQ, bandwidth=BandwidthSchedule(1 / 200, unit="winner_distance")), dim, codes)


def _local(dim: int, codes: int) -> Quantizer:
    bandwidth = BandwidthSchedule(0.25, unit="code_distance")
    return _free(partial(NSVQ, bandwidth=bandwidth, neighbor_weight=1.0), dim, codes)


def _plain(dim: int, codes: int) -> nn.Module:
    return PlainNSVQ(make_codes(codes, dim), "gaussian", float(dim), GAUSSIAN_WEIGHT, COMMITMENT_WEIGHT)
