"""Times of several contenders who take turns, so that a machine whose speed drifts hits all alike."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

Name = TypeVar("Name")


class Spread(NamedTuple):
    """Results of several rounds."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    rounds: int


def take_turns(
    turns: Mapping[Name, Callable[[], float]], seconds: float, min_rounds: int = 3, max_rounds: int = 30
) -> dict[Name, list[float]]:
    """Let everyone measure itself once per round, until the time is used up.

    Args:
        turns: By name what measures itself once and returns its result.
        seconds: Time for all rounds together; a round that has begun is finished.
        min_rounds: Rounds at the least, however long they take.
        max_rounds: Rounds at the most.

    Returns:
        Results by name, one for each round.
    """
    results: dict[Name, list[float]] = {name: [] for name in turns}
    start = time.perf_counter()
    for done in range(max_rounds if turns else 0):
        if done >= min_rounds and time.perf_counter() - start > seconds:
            break
        for name, turn in turns.items():
            results[name].append(turn())
    return results


def repeat(measure: Callable[[], float], seconds: float) -> float:
    """Measure once, and again until the measured times add up to a turn's least length.

    Args:
        measure: Measures itself and returns seconds.
        seconds: The least length.

    Returns:
        The median.
    """
    values = [measure()]
    while sum(values) < seconds:
        values.append(measure())
    return float(np.median(values))


def spread(values: list[float]) -> Spread:
    """Summarise the results of all rounds.

    Args:
        values: At least one.

    Returns:
        Median and quartiles.
    """
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return Spread(median, low, high, len(values))
