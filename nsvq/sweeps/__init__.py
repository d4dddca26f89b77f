"""W&B sweep files without a server: their runs as command lines, run here or by SLURM; no torch, no lightning."""

from nsvq.sweeps.commands import SweepRun, command_line, sweep_runs
from nsvq.sweeps.job_array import job_array
from nsvq.sweeps.runner import Job, Outcome, Result, is_finished, run_jobs
from nsvq.sweeps.settings import sweep_settings
from nsvq.sweeps.sweep_file import Sweep, load_sweep

__all__ = [
    "Job",
    "Outcome",
    "Result",
    "Sweep",
    "SweepRun",
    "command_line",
    "is_finished",
    "job_array",
    "load_sweep",
    "run_jobs",
    "sweep_runs",
    "sweep_settings",
]
