"""Analysis of runs, from their folders or from W&B; needs neither torch nor lightning."""

from nsvq.analysis.compare import comparison_figure, comparison_table, format_table, run_labels
from nsvq.analysis.correlations import correlation_table, partial_spearman
from nsvq.analysis.curves import curves_table
from nsvq.analysis.figures import (
    bandwidth_figure,
    curves_figure,
    quality_figure,
    rank_frequency_figure,
    stress_figure,
)
from nsvq.analysis.report import html_report, report_parts, save_report_parts
from nsvq.analysis.runs import Run, find_runs
from nsvq.analysis.seeds import (
    MissingSeedsWarning,
    format_differences,
    format_means,
    paired_differences,
    seed_means,
)
from nsvq.analysis.settings import option, run_settings, run_variants
from nsvq.analysis.snapshots import codes_figure
from nsvq.analysis.wandb_runs import wandb_curves

__all__ = [
    "MissingSeedsWarning",
    "Run",
    "bandwidth_figure",
    "codes_figure",
    "comparison_figure",
    "comparison_table",
    "correlation_table",
    "curves_figure",
    "curves_table",
    "find_runs",
    "format_differences",
    "format_means",
    "format_table",
    "html_report",
    "option",
    "paired_differences",
    "partial_spearman",
    "quality_figure",
    "rank_frequency_figure",
    "report_parts",
    "run_labels",
    "run_settings",
    "run_variants",
    "save_report_parts",
    "seed_means",
    "stress_figure",
    "wandb_curves",
]
