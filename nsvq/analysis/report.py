"""One page of everything that some runs show."""

import base64
import html
import io
import warnings
from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.figure import Figure

from nsvq.analysis.compare import comparison_table
from nsvq.analysis.correlations import correlation_table
from nsvq.analysis.curves import curves_table
from nsvq.analysis.figures import (
    bandwidth_figure,
    curves_figure,
    quality_figure,
    rank_frequency_figure,
    stress_figure,
)
from nsvq.analysis.runs import Run
from nsvq.analysis.seeds import MissingSeedsWarning, paired_differences, seed_means
from nsvq.analysis.settings import option, run_settings, run_variants
from nsvq.analysis.snapshots import codes_figure

VALUES = ("utilization", "quantization_error", "perplexity", "psnr", "ssim")
STRESS = "encoder_lr_factor"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: 3px 9px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
.warning { background: #fff3cd; padding: .6rem 1rem; border-left: 4px solid #d39e00; }
"""


def html_report(runs: Sequence[Run], title: str) -> str:
    """Write a page about runs: tables and figures in one file that needs no other.

    Args:
        runs: The runs.
        title: The page's title.

    Returns:
        HTML with its pictures inside; nothing in it points outside.
    """
    body = "\n".join(_sections(runs))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _sections(runs: Sequence[Run]) -> Iterator[str]:
    table, curves = comparison_table(runs), curves_table(runs)
    table["method"] = run_variants(runs)
    table.insert(4, "setting", run_settings(runs))
    by = ["method", "K", "setting"]
    yield _paragraph(f"{len(runs)} runs. Every number is of the last validation of a run, at the step that is given.")
    yield "<h2>Over seeds</h2>"
    yield from _over_seeds(table, by)
    yield "<h2>Curves</h2>"
    yield _paragraph("Lines are means over seeds; bands reach from the smallest to the largest seed.")
    yield _picture(curves_figure(curves))
    yield "<h2>Utilization and quality</h2>"
    yield _picture(quality_figure(table))
    yield "<h2>Use of codes</h2>"
    first = table.drop_duplicates(by)
    names = (
        first["method"] + ", K = " + first["K"].astype(str) + first["setting"].map(lambda text: text and f", {text}")
    )
    yield _paragraph("Of each method, size and setting the first seed.")
    yield _picture(rank_frequency_figure([runs[place] for place in first.index], names))
    watched = {name: runs[place] for name, place in zip(names, first.index, strict=True) if runs[place].snapshots}
    if watched:
        yield "<h2>Codes and latents</h2>"
        yield _picture(codes_figure(list(watched.values()), list(watched)))
    if "bandwidth" in curves and curves["bandwidth"].notna().any():
        yield "<h2>Bandwidth</h2>"
        yield _picture(bandwidth_figure(curves))
    table[STRESS] = [option(run, f"model.{STRESS}") for run in runs]
    if table[STRESS].nunique() > 1:
        yield "<h2>Drift stress test</h2>"
        yield _picture(stress_figure(table))
    yield "<h2>Drift and codes</h2>"
    yield _paragraph(
        "Spearman's rank correlation. Within: over the steps of a run, mean over runs; partial: with the step "
        "controlled for; across: last values over runs."
    )
    yield _html_table(correlation_table(curves))
    yield "<h2>Runs</h2>"
    yield _html_table(table.drop(columns=STRESS))


def _over_seeds(table: pd.DataFrame, by: list[str]) -> Iterator[str]:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MissingSeedsWarning)
            means = seed_means(table, VALUES, by)
            differences = [
                paired_differences(table, VALUES, str(reference), ["K", "setting"])
                for reference in table["method"].unique()[:1]
                if table["method"].nunique() > 1
            ]
    except ValueError as error:
        yield _warning(f"No statistics over seeds: {error}")
        return
    for warning in caught:
        if issubclass(warning.category, MissingSeedsWarning):
            yield _warning(f"Missing seeds: {warning.message}")
    means["text"] = _intervals(means["mean"], means)
    wide = means.pivot_table(index=by, columns="value", values="text", aggfunc="first", sort=False)
    seeds = means.groupby(by, sort=False)["seeds"].max()
    yield _paragraph("Mean [95 % interval by Student's t over seeds].")
    yield _html_table(wide[list(VALUES)].assign(seeds=seeds).reset_index().rename_axis(columns=None))
    for difference in differences:
        if len(difference):
            reference = table["method"].iloc[0]
            yield _paragraph(f"Difference to {reference} on equal seeds, mean [95 % interval], seeds above 0.")
            shares = difference["positive"].astype(str) + "/" + difference["seeds"].astype(str)
            difference["text"] = _intervals(difference["difference"], difference) + ", " + shares
            keys = ["method", "K", "setting"]
            wide = difference.pivot_table(index=keys, columns="value", values="text", aggfunc="first", sort=False)
            yield _html_table(wide[list(VALUES)].reset_index().rename_axis(columns=None))


def _intervals(means: pd.Series, table: pd.DataFrame) -> pd.Series:
    """Lay means and the intervals in a table's `low` and `high` out as text."""
    rows = zip(means, table["low"], table["high"], strict=True)
    texts = [f"{mean:.4g}" + (f" [{low:.4g}, {high:.4g}]" if low == low else "") for mean, low, high in rows]
    return pd.Series(texts, index=means.index)


def _html_table(table: pd.DataFrame) -> str:
    text: str = table.to_html(index=False, border=0, na_rep="–", float_format="{:.4g}".format, escape=True)
    return text


def _picture(figure: Figure) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _warning(text: str) -> str:
    return f'<p class="warning">{html.escape(text)}</p>'
