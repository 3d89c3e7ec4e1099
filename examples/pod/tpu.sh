#!/usr/bin/env bash
# Fine-tuning on a TPU pod: the same command on every host of it. The same line again resumes.
#
#   TPU=my-pod ZONE=us-central1-a examples/pod/tpu.sh --out /mnt/runs/mini --model mini --weights /mnt/weights/mini ...
#
# Once, to install, from a clone that every host sees (/mnt/maps_optax here):
#   gcloud compute tpus tpu-vm ssh my-pod --zone us-central1-a --worker all --command "pip install '/mnt/maps_optax[vla,tpu]'"
#
# What --out, --weights and --data.path name must be on storage that all hosts share.
set -euo pipefail
: "${TPU:?the name of the pod}" "${ZONE:?its zone}"

# Hosts find each other by the pod's metadata (auto). Parameters are split over all chips (fsdp -1); for N copies of them
# give --mesh.data N. Give --data.streams S, of which the number of hosts is a divisor, and each reads its own files only.
command=$(printf '%q ' maps-vla finetune --compute-dtype bfloat16 \
  --mesh.distributed auto --mesh.data 1 --mesh.fsdp -1 "$@")
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker all --command "$command"
