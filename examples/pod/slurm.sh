#!/usr/bin/env bash
# Fine-tuning on several nodes with GPUs under Slurm, one process a GPU. The same `sbatch` again resumes.
#
#   sbatch --nodes 2 examples/pod/slurm.sh --out runs/mini --model mini --weights weights/mini ...
#
# What --out, --weights and --data.path name must be the same directories on all nodes.
#SBATCH --job-name=maps
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
set -euo pipefail

# --signal: five minutes before the time is up SIGTERM makes every process finish the step and save; they end with 143.
# No --gpus-per-task: JAX picks a process's GPU by its place on the node, so every process has to see them all.
# Processes find each other by Slurm's variables (auto), each reads its own files of the data set (streams; the global batch
# must be a multiple), and parameters are split within a node and copied between nodes (fsdp, data).
exec srun maps-vla finetune --compute-dtype bfloat16 \
  --mesh.distributed auto --mesh.data "$SLURM_NNODES" --mesh.fsdp -1 --data.streams "$SLURM_NTASKS" "$@"
