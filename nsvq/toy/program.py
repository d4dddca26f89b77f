"""The experiments of the drift laboratory as tables."""

from collections.abc import Iterator, Sequence

import pandas as pd

from nsvq.toy.laboratory import Setup, chase, kmeans_error


def run_courses(
    motions: Sequence[str], methods: Sequence[str], seeds: Sequence[int], setup: Setup
) -> Iterator[pd.DataFrame]:
    """Run methods on motions, a table for each run.

    Args:
        motions: Motions.
        methods: Methods.
        seeds: Seeds.
        setup: What all runs share.

    Yields:
        `motion`, `method`, `seed`, `step`, `utilization` and `error` of a run, as soon as it is done.
    """
    for motion in motions:
        for method in methods:
            for seed in seeds:
                course = chase(method, motion, setup, seed)
                yield pd.DataFrame(
                    {
                        "motion": motion,
                        "method": method,
                        "seed": seed,
                        "step": course.steps,
                        "utilization": course.utilization,
                        "error": course.error,
                    }
                )


def summary(courses: pd.DataFrame, setup: Setup) -> pd.DataFrame:
    """Tabulate how runs ended.

    Args:
        courses: What `run_courses` yielded, put together.
        setup: The setup of the runs.

    Returns:
        One row for each motion and method, over seeds: `utilization` at the end (mean) and its `lowest` value of any
        seed; `worst`, the lowest utilization at any time from the start of the motion on; `error` at the end (mean);
        `over_kmeans`, the ratio of that error to that of k-means on the same points (scikit-learn, best of ten starts),
        and its `highest` value of any seed.
    """
    rows = []
    for motion, part in courses.groupby("motion", sort=False):
        reference = kmeans_error(str(motion), setup, setup.steps)
        for method, group in part.groupby("method", sort=False):
            end = group[group["step"] == setup.steps]
            moving = group[group["step"] >= setup.steps / 10]
            rows.append(
                {
                    "motion": motion,
                    "method": method,
                    "utilization": end["utilization"].mean(),
                    "lowest": end["utilization"].min(),
                    "worst": moving["utilization"].min(),
                    "error": end["error"].mean(),
                    "over_kmeans": end["error"].mean() / reference,
                    "highest": end["error"].max() / reference,
                    "seeds": len(end),
                }
            )
    table: pd.DataFrame = pd.DataFrame(rows)
    return table
