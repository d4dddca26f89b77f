"""Everything that some runs show: one page, or its tables and figures as files."""

import base64
import html
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

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
from nsvq.analysis.seeds import MissingSeedsWarning, format_differences, format_means, paired_differences, seed_means
from nsvq.analysis.settings import option, run_variants
from nsvq.analysis.snapshots import codes_figure

VALUES = ("utilization", "quantization_error", "perplexity", "psnr", "ssim")
STRESS = "encoder_lr_factor"
REFERENCE = "VanillaVQ"
WARNING = 'p class="warning"'
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: 3px 9px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
.warning { background: #fff3cd; padding: .6rem 1rem; border-left: 4px solid #d39e00; }
"""


@dataclass(frozen=True)
class Text:
    """A piece of text; `tag` is its HTML element."""

    text: str
    tag: str = "p"


@dataclass(frozen=True)
class Table:
    """A table with its name."""

    name: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Picture:
    """A figure with its name."""

    name: str
    figure: Figure


Part: TypeAlias = Text | Table | Picture


def html_report(parts: Sequence[Part], title: str) -> str:
    """Write a page about runs: tables and figures in one file that needs no other.

    Args:
        parts: What `report_parts` returned.
        title: The page's title.

    Returns:
        HTML with its pictures inside; nothing in it points outside.
    """
    body = "\n".join(map(_html, parts))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def save_report_parts(parts: Sequence[Part], folder: Path) -> list[Path]:
    """Write what is on the page as files of its own: tables as Markdown and CSV, figures as PNG.

    Args:
        parts: What `report_parts` returned.
        folder: Where to; made if it is not there.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for part in parts:
        if isinstance(part, Table):
            files += [folder / f"{part.name}.md", folder / f"{part.name}.csv"]
            files[-2].write_text(_markdown(part.frame), encoding="utf-8")
            part.frame.to_csv(files[-1], index=False)
        elif isinstance(part, Picture):
            files.append(folder / f"{part.name}.png")
            part.figure.savefig(files[-1], dpi=110)
    return files


def report_parts(runs: Sequence[Run], reference: str | None = None) -> list[Part]:
    """Compute and draw all that some runs show.

    Args:
        runs: The runs.
        reference: The method that the others are compared with on equal seeds; None: VanillaVQ, else the first.

    Returns:
        Text, tables and figures in their order on the page.

    Raises:
        ValueError: If no run is of the reference.
    """
    methods = run_variants(runs)
    if reference is None:
        reference = REFERENCE if REFERENCE in methods else methods[0]
    if reference not in methods:
        raise ValueError(f"no run of {reference} to compare with; methods: {', '.join(dict.fromkeys(methods))}")
    return list(_parts(runs, reference))


def _parts(runs: Sequence[Run], reference: str) -> Iterator[Part]:
    table, curves = comparison_table(runs), curves_table(runs)
    by = ["method", "K", "setting"]
    yield Text("Every number is of the last validation of a run, whose step the last table gives.")
    yield Text("Over seeds", "h2")
    yield from _over_seeds(table, by, reference)
    yield Text("Curves", "h2")
    yield Text("Lines are means over seeds; bands reach from the smallest to the largest seed.")
    yield Picture("curves", curves_figure(curves))
    yield Text("Utilization and quality", "h2")
    yield Picture("quality", quality_figure(table))
    yield Text("Use of codes", "h2")
    first = table.drop_duplicates(by)
    names = [", ".join(filter(None, row)) for row in (first[by].assign(K="K = " + first["K"].astype(str))).to_numpy()]
    yield Text("Of each method, size and setting the first seed.")
    yield Picture("use_of_codes", rank_frequency_figure([runs[place] for place in first.index], names))
    watched = {name: runs[place] for name, place in zip(names, first.index, strict=True) if runs[place].snapshots}
    if watched:
        yield Text("Codes and latents", "h2")
        yield Picture("codes", codes_figure(list(watched.values()), list(watched)))
    if "bandwidth" in curves and curves["bandwidth"].notna().any():
        yield Text("Bandwidth", "h2")
        yield Picture("bandwidth", bandwidth_figure(curves))
    table[STRESS] = [option(run, f"model.{STRESS}") for run in runs]
    if table[STRESS].nunique() > 1:
        yield Text("Drift stress test", "h2")
        yield Picture("stress", stress_figure(table))
    yield Text("Drift and codes", "h2")
    yield Text(
        "Spearman's rank correlation. Within: over the steps of a run, mean over runs; partial: with the step "
        "controlled for; across: last values over runs."
    )
    yield Table("correlations", correlation_table(curves))
    yield Text("Runs", "h2")
    yield Table("runs", table.drop(columns=STRESS))


def _over_seeds(table: pd.DataFrame, by: list[str], reference: str) -> Iterator[Part]:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MissingSeedsWarning)
            means = seed_means(table, VALUES, by)
            differences = paired_differences(table, VALUES, reference, ["K", "setting"])
    except ValueError as error:
        yield Text(f"No statistics over seeds: {error}", WARNING)
        return
    for warning in caught:
        if issubclass(warning.category, MissingSeedsWarning):
            yield Text(f"Mind: {warning.message}", WARNING)
    yield Text("Mean ± half of its 95 % interval by Student's t over seeds.")
    yield Table("seeds", format_means(means, by))
    if len(differences):
        yield Text(f"Difference to {reference} on equal seeds, in brackets the seeds in which it is above 0.")
        yield Table("differences", format_differences(differences, by))


def _html(part: Part) -> str:
    if isinstance(part, Text):
        return f"<{part.tag}>{html.escape(part.text)}</{part.tag.split()[0]}>"
    if isinstance(part, Table):
        text: str = part.frame.to_html(index=False, border=0, na_rep="–", float_format=_number, escape=True)
        return text
    data = io.BytesIO()
    part.figure.savefig(data, format="png", dpi=110)
    return f'<img alt="{part.name}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'


def _markdown(frame: pd.DataFrame) -> str:
    rows = [[_number(value) if isinstance(value, float) else str(value) for value in row] for row in frame.to_numpy()]
    lines = [list(map(str, frame.columns)), ["---"] * len(frame.columns), *rows]
    cells = [[" ".join(cell.split()).replace("|", r"\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _number(value: float) -> str:
    if value != value:
        return "–"
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
