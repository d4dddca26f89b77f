"""A SLURM job array of a sweep's runs."""

import shlex
from collections.abc import Sequence

TEMPLATE = """\
#!/bin/bash
# Runs of the sweep {name}, one a task of the array, on one GPU each; options of sbatch win:
#
#   sbatch --array=0-{last}%8 --time=04:00:00 THIS_FILE
#
# Submit from the folder that the commands' paths start from, with `nsvq` on the PATH. Five minutes before its time is
# up a run saves its state and ends with code 75; its task is queued again and goes on in the same run folder.
#
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.out

# As `nsvq sweep run` has it: rounding, and with it a curve, depends on the number of threads.
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-1}}" WANDB_MODE="${{WANDB_MODE:-offline}}"

commands=(
{commands}
)

# Signals are for the training process, which srun starts; this script waits for what it does.
trap : TERM USR1

eval "srun ${{commands[$SLURM_ARRAY_TASK_ID]}}"
code=$?

if [ "$code" -eq 75 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def job_array(name: str, commands: Sequence[Sequence[str]]) -> str:
    """Return a batch script that runs command lines as a job array.

    Args:
        name: Name of the job.
        commands: Command lines; each must go on where it stopped when it is run again.

    Returns:
        The script's text.
    """
    lines = "\n".join(f"  {shlex.quote(shlex.join(command))}" for command in commands)
    return TEMPLATE.format(name="".join(name.split()), last=len(commands) - 1, commands=lines)
