#!/usr/bin/env bash
# The paper's LIBERO setting: MiniVLA-OFT with MAPS, λ_max 3.2, learning rate 5e-5, 50 000 steps, 224 pixels.
#
#   examples/libero/paper.sh finetune libero_90                      # then, on the suites it was not trained on, too:
#   examples/libero/paper.sh evaluate libero_90 libero_90 libero_spatial libero_goal libero_object libero_10
#   examples/libero/paper.sh finetune libero_spatial                 # or a suite alone
#   examples/libero/paper.sh evaluate libero_spatial libero_spatial
#
# What is not told anywhere is chosen here as OpenVLA-OFT has it: two cameras, 64 samples a batch, actions clipped between
# their 1st and 99th percentiles, all of a chunk of 8 carried out. --maps.method adam, with METHOD=adam, is the baseline.
#
# DATA     folder of the data sets in modified_libero_rlds' layout: $DATA/libero_90_no_noops/1.0.0, ...
# WEIGHTS  MiniVLA's pretrained weights, imported: maps-vla import --model mini --out weights/mini --prismatic minivla
# LAUNCH   what starts the command, such as "sbatch --nodes 2 examples/pod/slurm.sh" or examples/pod/tpu.sh
set -euo pipefail
what=${1:?finetune or evaluate} suite=${2:?libero_90, libero_spatial, libero_goal, libero_object or libero_10}
shift 2
method=${METHOD:-maps}
run=${RUNS:-runs}/$suite-$method
case $what in
finetune)
  # shellcheck disable=SC2086  # a command and its options
  exec ${LAUNCH:-maps-vla finetune --compute-dtype bfloat16 --mesh.data 1 --mesh.fsdp -1} --out "$run" \
    --model mini --weights "${WEIGHTS:-weights/mini}" --maps.method "$method" --maps.lambda-max 3.2 \
    --optimizer.lr 5e-5 --optimizer.steps 50000 \
    --data.path "${DATA:-modified_libero_rlds}/${suite}_no_noops/1.0.0" --data.standardize libero \
    --data.image-size 224 --data.cameras primary wrist --data.batch-size 64 --data.chunk 8 \
    --data.normalisation bounds_clipped --instruction-length 64 --save-every 5000 --eval-every 50000 "$@"
  ;;
evaluate)
  suites=()
  while [[ ${1:-} == libero_* ]]; do
    suites+=("$1")
    shift
  done
  exec maps-vla evaluate --run "$run" --simulator libero --suite "${suites[@]}" \
    --episodes 50 --execute 8 --render-size 256 "$@"
  ;;
*)
  echo "$0: $what is neither finetune nor evaluate" >&2
  exit 2
  ;;
esac
