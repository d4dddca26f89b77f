"""The project's goals beside what this run measured."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd

DENSE = "NSVQ gaussian"


class Goal(NamedTuple):
    """A goal."""

    text: str
    limit: float
    """The value to be kept or reached."""
    at_most: bool
    """Whether smaller is better."""
    measure: Callable[[pd.DataFrame, pd.DataFrame], float]
    """Its value from the tables of quantizers and training steps of one device; nan if it was not measured."""


def goals() -> list[Goal]:
    """List the goals."""
    list_ = [
        Goal(f"time of NSVQ over VanillaVQ at K={k:,}", 2.2, True, _ratio("seconds", DENSE, "VanillaVQ", k))
        for k in (8_192, 65_536)
    ]
    for k in (1_024, 8_192, 65_536):
        list_ += [
            Goal(f"time of {peer} over {ours} at K={k:,}", 5.0, False, _ratio("seconds", peer, ours, k))
            for peer, ours in (("VectorQuantize (peer)", "VanillaVQ"), ("VectorQuantize EMA (peer)", "EMAVQ"))
        ]
    for k, limit in ((8_192, 5.0), (65_536, 2.5)):
        list_.append(
            Goal(
                f"time of autograd NSVQ over NSVQ at K={k:,}",
                limit,
                False,
                _ratio("seconds", "autograd NSVQ", DENSE, k),
            )
        )
    for k in (8_192, 65_536):
        list_.append(
            Goal(
                f"memory of NSVQ over autograd NSVQ at K={k:,}",
                0.05,
                True,
                _ratio("peak_MB", DENSE, "autograd NSVQ", k),
            )
        )
    return [
        *list_,
        Goal("memory of NSVQ at N=16,384 K=65,536 / GB", 1.0, True, _memory),
        Goal("time of a VQVAE step, NSVQ over VanillaVQ", 1.1, True, _step_ratio("NSVQ")),
        Goal("time of a VQVAE step, TransVQ over VanillaVQ", 1.2, True, _step_ratio("TransVQ")),
    ]


def targets_table(quantizers: pd.DataFrame, training: pd.DataFrame) -> pd.DataFrame:
    """Compare the goals with a run.

    Args:
        quantizers: What `measure_quantizers` returned; may be empty.
        training: What `measure_training` returned; may be empty.

    Returns:
        `device`, `target` (sizes are N=4,096 and D=64 unless it says otherwise), `goal`, `measured` and `reached`:
        yes, no, or "not measured".
    """
    rows: list[dict[str, Any]] = []
    for device in dict.fromkeys([*quantizers["device"], *training["device"]]):
        here = [table[table["device"] == device] for table in (quantizers, training)]
        for goal in goals():
            value = goal.measure(here[0], here[1])
            is_reached = value <= goal.limit if goal.at_most else value >= goal.limit
            rows.append(
                {
                    "device": device,
                    "target": goal.text,
                    "goal": f"{'≤' if goal.at_most else '≥'} {goal.limit:g}",
                    "measured": value,
                    "reached": "not measured" if value != value else "yes" if is_reached else "no",
                }
            )
    table: pd.DataFrame = pd.DataFrame(rows, columns=["device", "target", "goal", "measured", "reached"])
    return table


def _ratio(column: str, over: str, under: str, codes: int) -> Callable[[pd.DataFrame, pd.DataFrame], float]:
    def measure(quantizers: pd.DataFrame, _: pd.DataFrame) -> float:
        upper, lower = (_value(quantizers, column, name, 4_096, codes) for name in (over, under))
        return upper / lower

    return measure


def _memory(quantizers: pd.DataFrame, _: pd.DataFrame) -> float:
    return _value(quantizers, "peak_MB", DENSE, 16_384, 65_536) / 1e3


def _step_ratio(quantizer: str) -> Callable[[pd.DataFrame, pd.DataFrame], float]:
    def measure(_: pd.DataFrame, training: pd.DataFrame) -> float:
        rows = training[(training["model"] == "VQVAE") & (training["quantizer"] == quantizer)]
        return float(rows["ratio"].iloc[0]) if len(rows) else float("nan")

    return measure


def _value(quantizers: pd.DataFrame, column: str, contender: str, latents: int, codes: int) -> float:
    is_here = (quantizers["N"] == latents) & (quantizers["K"] == codes) & (quantizers["D"] == 64)
    values = quantizers.loc[is_here & (quantizers["contender"] == contender), column]
    return float(values.iloc[0]) if len(values) else float("nan")
