#!/usr/bin/env bash
# Test with GPUS processes on each of NNODES machines, by torchrun.
set -euo pipefail

if [[ $# -lt 3 || ! $3 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500]" \
        "$0 CONFIG CHECKPOINT GPUS [option of test.py ...]" >&2
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
    --nproc_per_node="$3" \
    "$TOOLS/test.py" "$1" "$2" --launcher pytorch "${@:4}"
