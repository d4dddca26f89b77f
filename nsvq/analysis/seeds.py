"""Statistics over seeds: means with confidence intervals, and methods compared on equal seeds."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
# What a value is called, what it is multiplied by and how it is rounded where people read it.
SHOWN = {
    "utilization": ("utilization / %", 100, "{:.1f}"),
    "quantization_error": ("quantization error", 1, "{:.4f}"),
    "perplexity": ("perplexity", 1, "{:.0f}"),
    "psnr": ("PSNR / dB", 1, "{:.2f}"),
    "ssim": ("SSIM", 1, "{:.3f}"),
}


class MissingSeedsWarning(UserWarning):
    """Groups were not run with the same seeds, or not to their end."""


def seed_means(table: pd.DataFrame, values: Sequence[str], by: Sequence[str] = ("method", "K")) -> pd.DataFrame:
    """Aggregate runs that differ in their seed alone.

    Args:
        table: One row a run, with a column `seed`.
        values: Columns to aggregate.
        by: Columns that name a group.

    Returns:
        One row a group and value: the columns of `by`, `value`, `mean`, `low` and `high` (95 % interval of the mean by
        Student's t over seeds; nan with one seed), `spread` (largest minus smallest), `seeds` (number of runs that
        measured it) and `missing` (seeds that other groups have, and those that measured nothing). These are also
        warned of, and runs that ended before others, if the table says at which `step`.

    Raises:
        ValueError: If a group has several runs of one seed.
    """
    table = table.assign(seed=[_plain_seed(seed) for seed in table["seed"]])
    every = {value: set(table["seed"] if table[value].notna().any() else ()) for value in values}
    rows, warned = [], []
    for key, group in table.groupby(list(by), sort=False, dropna=False):
        name = dict(zip(by, key, strict=True))
        _require_one_run_a_seed(group, name)
        lacking: dict[str, list[str]] = {}
        for value in values:
            measured = group.dropna(subset=[value])
            numbers = measured[value].to_numpy(dtype=float)
            missing = ", ".join(map(str, sorted(every[value] - set(measured["seed"]), key=str)))
            if missing:
                lacking.setdefault(missing, []).append(value)
            low, high = mean_interval(numbers)
            rows.append(
                {
                    **name,
                    "value": value,
                    "mean": numbers.mean() if len(numbers) else np.nan,
                    "low": low,
                    "high": high,
                    "spread": np.ptp(numbers) if len(numbers) else np.nan,
                    "seeds": len(numbers),
                    "missing": missing,
                }
            )
        for missing, some in lacking.items():
            where = "" if len(some) == sum(map(bool, every.values())) else f" of {', '.join(some)}"
            warned.append(f"{_named(name)} lacks seed {missing}{where}")
        steps = zip(group["seed"], group["step"], strict=True) if "step" in group else ()
        early = [f"seed {seed} at step {step:.0f}" for seed, step in steps if step < table["step"].max()]
        if early:
            warned.append(f"{_named(name)} ended early: {', '.join(early)} of {table['step'].max():.0f}")
    if warned:
        warnings.warn("; ".join(warned), MissingSeedsWarning, stacklevel=2)
    result: pd.DataFrame = pd.DataFrame(rows)
    return result


def paired_differences(
    table: pd.DataFrame, values: Sequence[str], reference: str, by: Sequence[str] = ("K",)
) -> pd.DataFrame:
    """Compare methods with a reference on equal seeds.

    One seed gives all methods the same initial networks, data and order of data, so that a difference of two runs of a
    seed has less noise than a difference of means.

    Args:
        table: One row a run, with columns `method` and `seed`.
        values: Columns to compare.
        reference: The method that the others are compared with.
        by: Columns in which compared runs are equal, beside the seed.

    Returns:
        One row for each other method, group and value: `method`, the columns of `by`, `value`, `difference` (mean of
        method minus reference over the seeds that both have), `low` and `high` (95 % interval by Student's t; nan with
        one seed), `positive` (seeds in which the difference is above 0) and `seeds`; none where no seed has both.

    Raises:
        ValueError: If no run is of the reference, or a method has several runs of one seed in a group.
    """
    if reference not in set(table["method"]):
        raise ValueError(f"no run of {reference} to compare with; methods: {', '.join(table['method'].unique())}")
    keys = [*by, "seed"]
    for key, group in table.groupby([*by, "method"], dropna=False):
        _require_one_run_a_seed(group, dict(zip([*by, "method"], key, strict=True)))
    own = table[table["method"] == reference].set_index(keys)
    rows = []
    for (method, *key), group in table[table["method"] != reference].groupby(["method", *by], sort=False, dropna=False):
        other = group.set_index(keys)
        for value in values:
            differences = (other[value] - own[value]).dropna().to_numpy(dtype=float)
            if not len(differences):
                continue
            low, high = mean_interval(differences)
            rows.append(
                {
                    "method": method,
                    **dict(zip(by, key, strict=True)),
                    "value": value,
                    "difference": differences.mean(),
                    "low": low,
                    "high": high,
                    "positive": int((differences > 0).sum()),
                    "seeds": len(differences),
                }
            )
    result: pd.DataFrame = pd.DataFrame(rows)
    return result


def format_means(means: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Lay means over seeds out for reading.

    Args:
        means: What `seed_means` returned.
        by: Its columns that name a group, method and K first; further ones that are equal throughout are left out.

    Returns:
        One row a group: the mean of each value ± half of its interval, and the number of seeds.
    """
    texts = [
        _with_half_width(value, mean, high - mean, "")
        for value, mean, high in zip(means["value"], means["mean"], means["high"], strict=True)
    ]
    table = _widen(means.assign(text=texts), by)
    seeds = means.groupby(list(by), sort=False, dropna=False)["seeds"].agg(["min", "max"])
    counts = [str(low) if low == high else f"{low}–{high}" for low, high in seeds.itertuples(index=False)]
    result: pd.DataFrame = table.assign(seeds=counts)
    return result


def format_differences(differences: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Lay differences to a reference out for reading.

    Args:
        differences: What `paired_differences` returned.
        by: Its columns that name a group, see `format_means`.

    Returns:
        One row a group: the mean difference of each value ± half of its interval, and in how many seeds of how many it
        is above 0.
    """
    if not len(differences):
        return differences
    columns = (differences[name] for name in ("value", "difference", "high", "positive", "seeds"))
    texts = [
        f"{_with_half_width(value, mean, high - mean, '+')} ({positive}/{seeds})"
        for value, mean, high, positive, seeds in zip(*columns, strict=True)
    ]
    return _widen(differences.assign(text=texts), by)


def _with_half_width(value: str, mean: float, half: float, sign: str) -> str:
    _, factor, pattern = SHOWN.get(value, (value, 1, "{:.4g}"))
    if mean != mean:
        return "–"
    text = pattern.replace(":", f":{sign}").format(factor * mean)
    return text if half != half else f"{text} ± {pattern.format(factor * half)}"


def _widen(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    rows = []
    for key, group in table.groupby(list(by), sort=False, dropna=False):
        titles = [SHOWN.get(value, (value,))[0] for value in group["value"]]
        rows.append(dict(zip(by, key, strict=True)) | dict(zip(titles, group["text"], strict=True)))
    wide = pd.DataFrame(rows)
    result: pd.DataFrame = wide.drop(columns=[name for name in by[2:] if wide[name].nunique() < 2])
    return result


def mean_interval(numbers: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a mean by Student's t; nan where there are fewer than two numbers."""
    if len(numbers) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(numbers) - 1) * numbers.std(ddof=1) / len(numbers) ** 0.5
    return float(numbers.mean() - half), float(numbers.mean() + half)


def _plain_seed(seed: Any) -> Any:
    """Undo what a column that lacks a seed does to the others."""
    if seed is None or seed != seed:
        return "none"
    return int(seed) if isinstance(seed, float) and seed.is_integer() else seed


def _require_one_run_a_seed(group: pd.DataFrame, name: dict[str, object]) -> None:
    twice = group["seed"][group["seed"].duplicated()].unique()
    if len(twice):
        raise ValueError(
            f"{_named(name)} has several runs of seed {', '.join(map(str, twice))}: choose one, or name the column in "
            "which they differ"
        )


def _named(name: dict[str, object]) -> str:
    return ", ".join(f"{value}" if key == "method" else f"{key} {value}" for key, value in name.items() if value != "")
