"""`nsvq compare`: the table and the figure of some runs."""

from pathlib import Path

from nsvq.analysis import comparison_figure, comparison_table, find_runs, format_table
from nsvq.cli.messages import OneLineParser


def compare(words: list[str]) -> None:
    """Print the table of runs, and save it and the figure.

    Args:
        words: The command line behind `nsvq compare`.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If a path holds no run.
    """
    parser = OneLineParser(prog="nsvq compare", description="Compare run folders: a table and a figure.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold them")
    parser.add_argument("-o", "--output", type=Path, default=Path(), help="where compare.csv and compare.png go")
    options = parser.parse_args(words)
    runs = find_runs(options.runs)
    table = comparison_table(runs)
    print(format_table(table))
    options.output.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.output / "compare.csv", index=False)
    comparison_figure(runs).savefig(options.output / "compare.png", dpi=120)
    print(f"wrote {options.output / 'compare.csv'} and {options.output / 'compare.png'}")
