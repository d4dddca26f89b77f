"""The contenders of the drift laboratory."""

from collections.abc import Callable
from dataclasses import dataclass

from nsvq.quantizers import (
    EMAVQ,
    NSVQ,
    BandwidthSchedule,
    FactorizedVQ,
    Quantizer,
    SimVQ,
    TransVQ,
    VanillaVQ,
)

EPOCH_STEPS = 100
"""Steps that count as an epoch for schedules that count epochs."""


@dataclass(frozen=True)
class Method:
    """A way to learn codes.

    Attributes:
        build: Makes the quantizer from dimension and number of codes.
        lr: Adam's learning rate, in units in which the ring's radius is 1.
        replacement: Whether unused codes are put onto random latents.
    """

    build: Callable[[int, int], Quantizer]
    lr: float = 1e-2
    replacement: bool = False


METHODS: dict[str, Method] = {
    "VanillaVQ": Method(lambda dim, codes: VanillaVQ(dim, codes, initial_scale=1.0)),
    "VanillaVQ + replacement": Method(lambda dim, codes: VanillaVQ(dim, codes, initial_scale=1.0), replacement=True),
    "EMAVQ": Method(lambda dim, codes: EMAVQ(dim, codes, initial_scale=1.0)),
    "EMAVQ + replacement": Method(lambda dim, codes: EMAVQ(dim, codes, initial_scale=1.0), replacement=True),
    "FactorizedVQ": Method(lambda dim, codes: FactorizedVQ(dim, codes, code_dim=min(8, dim))),
    "SimVQ": Method(lambda dim, codes: SimVQ(dim, codes, initial_scale=1.0), lr=3e-3),
    "NSVQ, published rule": Method(lambda dim, codes: NSVQ(dim, codes, initial_scale=1.0)),
    "NSVQ, τ = 0.03": Method(lambda dim, codes: NSVQ(dim, codes, bandwidth=0.03, initial_scale=1.0)),
    "NSVQ, τ in winner distances": Method(
        lambda dim, codes: NSVQ(dim, codes, bandwidth=BandwidthSchedule(3.0, unit="winner_distance"), initial_scale=1.0)
    ),
    "NSVQ, τ in code distances": Method(
        lambda dim, codes: NSVQ(
            dim,
            codes,
            bandwidth=BandwidthSchedule(0.25, unit="code_distance"),
            neighbor_weight=1.0,
            initial_scale=1.0,
        )
    ),
    "TransVQ": Method(
        lambda dim, codes: TransVQ(dim, codes, width=128, initial_scale=1.0, position_embedding=False), lr=3e-3
    ),
}
