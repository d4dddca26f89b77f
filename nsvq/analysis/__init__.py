"""Analysis of run folders; needs neither torch nor lightning."""

from nsvq.analysis.compare import comparison_figure, comparison_table, format_table
from nsvq.analysis.runs import Run, find_runs

__all__ = ["Run", "comparison_figure", "comparison_table", "find_runs", "format_table"]
