"""The report of a run: Markdown tables, CSV files and the figure."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from nsvq.bench.figure import quantizers_figure

FORMATS = {
    "N": "{:,.0f}",
    "K": "{:,.0f}",
    "seconds": "{:.3g}",
    "seconds_q1": "{:.3g}",
    "seconds_q3": "{:.3g}",
    "ratio": "{:.2f}",
    "peak_MB": "{:,.1f}",
    "images_per_second": "{:.1f}",
    "quantizer_seconds": "{:.3g}",
    "quantizer_share": "{:.1%}",
    "exponent": "{:.2f}",
    "smallest": "{:,.0f}",
    "largest": "{:,.0f}",
    "measured": "{:.3g}",
}
NOTES = {
    "targets": "Goals of the project beside this run, at N=4,096 and D=64 unless a line says otherwise.",
    "quantizers": "Median seconds of forward and backward and their quartiles, the ratio to VanillaVQ, and the peak "
    "memory in 10⁶ bytes above parameters and inputs. Contenders of a size took turns in one process.",
    "growth": "Exponents of time ∝ size^exponent where one size grows and the others are held.",
    "training": "Median seconds of a training step through the Trainer, the ratio to VanillaVQ, and the quantizer's "
    "share: its forward and backward alone, over the step.",
}


def markdown_report(machine: Mapping[str, str], tables: Mapping[str, pd.DataFrame], notes: list[str]) -> str:
    """Lay a run out as Markdown.

    Args:
        machine: What it was measured on.
        tables: Tables by their names; empty ones are left out.
        notes: Lines to set in front.

    Returns:
        The report.
    """
    parts = ["# Benchmark", "\n".join(f"- {name}: {value}" for name, value in machine.items()), *notes]
    for name, table in tables.items():
        if len(table):
            parts += [f"## {name.capitalize()}", NOTES[name], markdown_table(table)]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    """Format a table of the run.

    Args:
        table: The table; numbers are rounded, missing ones become a dash.

    Returns:
        Its Markdown.
    """
    columns = [
        [FORMATS.get(str(name), "{}").format(value) if value == value else "–" for value in table[name]]
        for name in table
    ]
    lines = [[str(name).replace("_", " ") for name in table], ["---"] * len(columns), *zip(*columns, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def save_report(folder: Path, report: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write `report.md`, a CSV file for each table and, where quantizers were measured, `quantizers.png`.

    Args:
        folder: Where to; made if it is not there.
        report: The report.
        tables: Tables by their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(report)
    for name, table in tables.items():
        if len(table):
            table.to_csv(folder / f"{name}.csv", index=False)
    if len(tables["quantizers"]):
        quantizers_figure(tables["quantizers"]).savefig(folder / "quantizers.png", dpi=150)
