#!/bin/bash
# Trains on the GPUs of one or several machines under SLURM. Five minutes before the job's time is up, or when SLURM
# takes the machines back, the run saves its state and ends with code 75; the job is then queued again and goes on in
# the same run folder. Submit from the repository's root with `nsvq` on the PATH; what follows the script goes to
# `nsvq fit` and wins over what the script gives it:
#
#   sbatch --job-name f16 --nodes 4 experiments/slurm/fit.sh --config experiments/vqgan/imagenet_f16.yaml --data.root PATH
#
#SBATCH --job-name=nsvq
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# Signals are for the training processes, which srun starts; this script waits for what they do.
trap : TERM USR1

# Processes do not end in the same second: srun lets the others finish, for ten minutes.
srun --kill-on-bad-exit=0 --wait=600 nsvq fit \
  --trainer experiments/trainer/multi_node.yaml \
  --trainer.num_nodes "$SLURM_JOB_NUM_NODES" \
  --trainer.devices "$SLURM_NTASKS_PER_NODE" \
  --version "$SLURM_JOB_NAME-$SLURM_JOB_ID" --ckpt_path last \
  "$@"
code=$?

if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
