"""`nsvq report`: one page about some runs."""

from pathlib import Path

from nsvq.analysis import find_runs, html_report, report_parts, save_report_parts
from nsvq.callbacks.folder import replacing, writing
from nsvq.cli.messages import OneLineParser


def report(words: list[str]) -> None:
    """Write a page with tables and figures of runs.

    Args:
        words: The command line behind `nsvq report`.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If a path holds no run, or no run is of the reference.
    """
    parser = OneLineParser(prog="nsvq report", description="One HTML page about runs, with its figures inside.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold them")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page")
    parser.add_argument("--parts", type=Path, help="a folder for the page's tables and figures as files of their own")
    parser.add_argument(
        "--reference", help="the method that others are compared with; default: VanillaVQ, or the first"
    )
    options = parser.parse_args(words)
    runs = find_runs(options.runs)
    parts = report_parts(runs, options.reference)
    title = f"{options.output.stem}: {len(runs)} run{'s'[: len(runs) > 1]}"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.output) as part:
        part.write_text(html_report(parts, title), encoding="utf-8")
    print(f"wrote {options.output}")
    if options.parts is not None:
        with writing(options.parts):
            files = save_report_parts(parts, options.parts)
        print("\n".join(f"wrote {path}" for path in files))
