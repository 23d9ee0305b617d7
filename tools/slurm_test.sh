#!/usr/bin/env bash
# Test as a Slurm job with GPUS processes, GPUS_PER_NODE on a machine.
set -euo pipefail

if [[ $# -lt 4 ]]; then
    echo "usage: [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 PORT=29500 SRUN_ARGS=]" \
        "$0 PARTITION JOB_NAME CONFIG CHECKPOINT [option of test.py ...]" >&2
    exit 2
fi

TOOLS="$(dirname "$0")"
PARTITION="$1" JOB_NAME="$2" CONFIG="$3" CHECKPOINT="$4"
shift 4

read -ra SRUN_OPTIONS <<< "${SRUN_ARGS:-}"

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
export MASTER_PORT="${PORT:-${MASTER_PORT:-29500}}"
# A signal to this process reaches srun, which hands it on.
exec srun -p "$PARTITION" \
    --job-name="$JOB_NAME" \
    --gres="gpu:${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_OPTIONS[@]+"${SRUN_OPTIONS[@]}"} \
    python -u "$TOOLS/test.py" "$CONFIG" "$CHECKPOINT" --launcher slurm "$@"
