"""Do drift, lag and scale tell which runs lose codes?"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

MEASURES = ("drift_relative", "drift_rms", "churn", "codebook_shift", "codebook_lag", "codebook_scale")
TARGETS = ("dead_code_fraction", "quantization_error", "psnr")
FEWEST = 4
"""Points below which no correlation is computed."""


def correlation_table(
    curves: pd.DataFrame, measures: Sequence[str] = MEASURES, targets: Sequence[str] = TARGETS
) -> pd.DataFrame:
    """Correlate measures of drift with what becomes of the codebook, within runs and across them.

    Nearly everything changes with the step, so two curves of a run go together without a reason. `partial` controls for
    it: the rank correlation of what is left of both when the ranks of the steps are taken out of their ranks linearly.

    Args:
        curves: What `curves_table` returned.
        measures: Columns of measures.
        targets: Columns that they may explain.

    Returns:
        One row for each measure and target: `within` (Spearman's correlation over the steps of a run, mean over runs),
        `partial` (the same with the step controlled for), `partial_low` and `partial_high` (smallest and largest of a
        run), `runs` (number of runs with a `partial`), `across` (Spearman's correlation over runs of the last values)
        and `across_p` (its two-sided p-value by permutations, which takes the runs for independent).
    """
    pairs = [(measure, target) for measure in measures for target in targets if {measure, target} <= set(curves)]
    rows = [{"measure": one, "target": other} | _row(curves, one, other) for one, other in pairs]
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def partial_spearman(x: np.ndarray, y: np.ndarray, control: np.ndarray) -> float:
    """Return the rank correlation of x and y with a third variable controlled for.

    Args:
        x: Numbers, shape (n,).
        y: Numbers, shape (n,).
        control: What both may depend on, shape (n,).

    Returns:
        The correlation in [−1, 1]; nan where x or y is a monotone function of the control.
    """
    ranks = [stats.rankdata(numbers) for numbers in (x, y, control)]
    xy, xc, yc = (_pearson(ranks[a], ranks[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    left = (1 - xc**2) * (1 - yc**2)
    return float((xy - xc * yc) / left**0.5) if left > 1e-12 else float("nan")


def _row(curves: pd.DataFrame, measure: str, target: str) -> dict[str, float]:
    within, partial, last = [], [], []
    for _, run in curves.groupby("run"):
        # Image quality is measured at other steps than drift: what counts is the last drift before it.
        points = run[["step", measure, target]].sort_values("step")
        points[measure] = points[measure].ffill()
        points = points.dropna()
        if len(points):
            last.append(points[[measure, target]].iloc[-1].to_numpy())
        if len(points) < FEWEST or points[measure].nunique() < 2 or points[target].nunique() < 2:
            continue
        x, y, steps = (points[name].to_numpy(dtype=float) for name in (measure, target, "step"))
        within.append(float(stats.spearmanr(x, y).statistic))
        partial.append(partial_spearman(x, y, steps))
    sound = [value for value in partial if not np.isnan(value)]
    across, p = np.nan, np.nan
    ends = np.array(last)
    if len(ends) >= FEWEST and all(len(set(column)) > 1 for column in ends.T):
        across, p = _spearman_test(ends[:, 0], ends[:, 1])
    return {
        "within": float(np.mean(within)) if within else np.nan,
        "partial": float(np.mean(sound)) if sound else np.nan,
        "partial_low": min(sound, default=np.nan),
        "partial_high": max(sound, default=np.nan),
        "runs": len(sound),
        "across": across,
        "across_p": p,
    }


def _spearman_test(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return Spearman's correlation and its two-sided p-value by permutations: exact up to 7 pairs, of 9,999 beyond."""
    ranks, others = (stats.rankdata(numbers) - (len(x) + 1) / 2 for numbers in (x, y))
    scale = np.sqrt((ranks**2).sum() * (others**2).sum())
    result = stats.permutation_test(
        (ranks,),
        lambda permuted, axis: (permuted * others).sum(axis=axis) / scale,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    return float(result.statistic), float(result.pvalue)


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])
