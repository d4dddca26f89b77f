"""`nsvq report`: one page about some runs."""

from pathlib import Path

from nsvq.analysis import find_runs, html_report, save_report_parts
from nsvq.callbacks.folder import replacing
from nsvq.cli.messages import OneLineParser


def report(words: list[str]) -> None:
    """Write a page with tables and figures of runs.

    Args:
        words: The command line behind `nsvq report`.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If a path holds no run.
    """
    parser = OneLineParser(prog="nsvq report", description="One HTML page about runs, with its figures inside.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold them")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page")
    parser.add_argument("--parts", type=Path, help="a folder for the page's tables and figures as files of their own")
    options = parser.parse_args(words)
    runs = find_runs(options.runs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.output) as part:
        part.write_text(html_report(runs, f"{options.output.stem}: {len(runs)} runs"), encoding="utf-8")
    print(f"wrote {options.output}")
    if options.parts is not None:
        for path in save_report_parts(runs, options.parts):
            print(f"wrote {path}")
