"""How time grows with the size: exponents of power laws."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

SIZES = ("N", "K", "D")


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Fit seconds ∝ size^a by least squares of the logarithms.

    Args:
        sizes: At least two different sizes.
        seconds: The time at each.

    Returns:
        The exponent a.
    """
    exponent, _ = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(exponent)


def growth_table(quantizers: pd.DataFrame) -> pd.DataFrame:
    """Fit each contender's time along every line of the grid on which one of N, K and D changes alone.

    Args:
        quantizers: What `measure_quantizers` returned.

    Returns:
        `device`, `contender`, `grows_with`, the sizes that are held (`held`), `exponent`, the number of `points` and
        the range they span (`smallest`, `largest`). Two points make a line without a residue.
    """
    measured = quantizers.dropna(subset=["seconds"])
    rows = []
    for size in SIZES:
        held = [name for name in SIZES if name != size]
        for key, line in measured.groupby(["device", "contender", *held], sort=False):
            if len(line) < 2:
                continue
            rows.append(
                {
                    "device": key[0],
                    "contender": key[1],
                    "grows_with": size,
                    "held": " ".join(f"{name}={value}" for name, value in zip(held, key[2:], strict=True)),
                    "exponent": fit_exponent(line[size].tolist(), line["seconds"].tolist()),
                    "points": len(line),
                    "smallest": line[size].min(),
                    "largest": line[size].max(),
                }
            )
    columns = ["device", "contender", "grows_with", "held", "exponent", "points", "smallest", "largest"]
    table: pd.DataFrame = pd.DataFrame(rows, columns=columns)
    return table
