#!/usr/bin/env bash
# Train as a Slurm job with GPUS processes, GPUS_PER_NODE on a machine.
set -euo pipefail

if [[ $# -lt 3 ]]; then
    echo "usage: [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 PORT=29500 SRUN_ARGS=]" \
        "$0 PARTITION JOB_NAME CONFIG [WORK_DIR] [option of train.py ...]" >&2
    exit 2
fi

TOOLS="$(dirname "$0")"
PARTITION="$1" JOB_NAME="$2" CONFIG="$3"
shift 3

if [[ $# -gt 0 && "$1" != -* ]]; then
    set -- --work-dir "$@"
fi
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
    python -u "$TOOLS/train.py" "$CONFIG" --launcher slurm "$@"
