"""Bandwidth schedules."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class BandwidthSchedule:
    """The course of a kernel's bandwidth τ: initial · decay^max(0, position − warmup), never below the floor.

    The schedule itself holds no state; its position is counted by whoever follows it and lives in that module's
    state_dict.

    Attributes:
        initial: First value, above 0, in the given unit.
        kind: `constant`, or `exponential` with the factor `decay` for each unit of position.
        decay: Factor per step or per epoch, in (0, 1]; used by `exponential` only.
        per: What advances the position: each training forward (`step`) or each call of `on_epoch_end()` (`epoch`).
        warmup: Number of steps or epochs for which the initial value is held before the decay starts.
        floor: Lower bound in the given unit, above 0.
        unit: `absolute`: squared-distance units; `winner_distance`: multiples of the running mean squared distance
            between latents and their nearest codes, so that the bandwidth follows the latents' scale; `code_distance`:
            multiples of each code's own squared distance to its nearest latent of the batch, so that a code is pulled
            however far the latents have left it (for the gaussian kernel).
    """

    initial: float
    kind: Literal["constant", "exponential"] = "constant"
    decay: float = 1.0
    per: Literal["step", "epoch"] = "step"
    warmup: int = 0
    floor: float = 1e-8
    unit: Literal["absolute", "winner_distance", "code_distance"] = "absolute"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If a number is out of its range or a word is none of its choices.
        """
        for name, choices in (
            ("kind", ("constant", "exponential")),
            ("per", ("step", "epoch")),
            ("unit", ("absolute", "winner_distance", "code_distance")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"bandwidth schedule: {name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        for name in ("initial", "floor"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"bandwidth schedule: {name} must be a finite number above 0, got {value}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"bandwidth schedule: decay must be in (0, 1], got {self.decay}")
        if self.warmup < 0:
            raise ValueError(f"bandwidth schedule: warmup must be at least 0, got {self.warmup}")

    def value(self, position: Tensor) -> Tensor:
        """Return τ at a position.

        Args:
            position: Number of steps or epochs done, int64 scalar.

        Returns:
            τ in the schedule's unit, float32 scalar on the position's device.
        """
        if self.kind == "constant":
            return torch.full((), max(self.initial, self.floor), device=position.device)
        decayed = self.initial * torch.pow(self.decay, (position - self.warmup).clamp(min=0).float())
        return decayed.clamp(min=self.floor)
