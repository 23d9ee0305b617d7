#!/usr/bin/env bash
# Train with GPUS processes on each of NNODES machines, by torchrun.
set -euo pipefail

if [[ $# -lt 2 || ! $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500]" \
        "$0 CONFIG GPUS [option of train.py ...]" >&2
    exit 2
fi

TOOLS="$(dirname "$0")"

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
# A signal to this process reaches torchrun, which hands it on.
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" \
    "$TOOLS/train.py" "$1" --launcher pytorch "${@:3}"
