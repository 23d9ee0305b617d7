#!/usr/bin/env bash
# What a GPU has to say of LaViT: are the kernels right on it, and what do they gain?
#
#     bash benchmarks/gpu.sh FOLDER
#
# FOLDER (else $OUT) gets a log of each step, and a JSON file of each benchmark. It ends after
# LIMIT seconds (450); a step whose log is there is skipped, so the same command goes on where the
# last one ended, on the same kind of machine. What fails leaves NAME.failed.log and is tried again.
#
# No network is needed: PYTHON (python3) has to find torch with Triton, pytest and this project's
# requirements, mmengine, mmcv, mmdet and mmpretrain among them. Where they cannot be installed, a
# copied folder of packages does: PYTHONPATH=PACKAGES bash benchmarks/gpu.sh FOLDER.
#
# To try the script without a GPU:
#     DEVICE=cpu DTYPE=fp32 ARCH=nano RUNS='1:32x32' COMPILE= bash benchmarks/gpu.sh FOLDER
set -u
out=${1:-${OUT:?name a folder for the results}}
mkdir -p "$out" && out=$(cd "$out" && pwd) && cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python3}
limit=${LIMIT:-450}
device=${DEVICE:-cuda}
compile=${COMPILE---compile}
# batch:size, those first that say most
runs=${RUNS:-64:224x224 16:512x512 4:800x1344}
options=(--arch "${ARCH:-small}" --device "$device" --dtype "${DTYPE:-bf16}" --rounds 5)
options+=(--min-seconds 0.1)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
failed=0 left=0

# step NAME SECONDS COMMAND...: run a command that may take so long, unless its log is there
step() {
    local name=$1 seconds=$2 start=$SECONDS
    shift 2
    if [ -e "$out/$name.log" ]; then
        echo "== $name: done before"
        return
    fi
    if ((limit - SECONDS < seconds / 2)); then
        echo "== $name: no time left"
        left=$((left + 1))
        return
    fi
    ((seconds = seconds < limit - SECONDS ? seconds : limit - SECONDS))
    if timeout -k 5 "$seconds" "$@" > "$out/$name.failed.log" 2>&1; then
        mv "$out/$name.failed.log" "$out/$name.log"
        echo "== $name: $((SECONDS - start)) s"
    else
        echo "== $name: failed with $? after $((SECONDS - start)) s"
        failed=$((failed + 1))
    fi
}

# bench NAME SECONDS SCRIPT OPTION...: a step that leaves a JSON file
bench() {
    local name=$1 seconds=$2 script=$3
    shift 3
    step "$name" "$seconds" "$python" "benchmarks/$script.py" "$@" --json "$out/$name.json"
}

# tests NAME SECONDS MARKS FILE...: the tests of these files with these marks, in parallel if it can
tests() {
    local name=$1 seconds=$2 marks=$3 parallel=()
    shift 3
    "$python" -c 'import xdist' 2> /dev/null && parallel=(-n 8)
    step "$name" "$seconds" "$python" -m pytest -q -m "$marks" -p no:cacheprovider \
        "${parallel[@]}" "$@"
}

step machine 60 bash -c "nvidia-smi; nproc; '$python' -m torch.utils.collect_env"
tests tests 120 "gpu and not slow" tests/test_triton_gpu.py tests/test_gpu.py tests/test_synchronization.py
for run in $runs; do
    at=(--batch "${run%%:*}" --sizes "${run##*:}")
    bench "layers-${run##*:}" 60 layers "${options[@]}" "${at[@]}"
done
for mode in forward training; do
    for run in $runs; do
        at=(--batch "${run%%:*}" --sizes "${run##*:}" --mode "$mode" --peers all-va)
        bench "$mode-${run##*:}" 150 speed "${options[@]}" "${at[@]}" ${compile:+"$compile"}
    done
done
first=${runs%% *}
tests detectors 120 gpu tests/test_mixed_precision.py
tests races 200 "gpu and slow" tests/test_triton_gpu.py
bench kernels 120 kernels --arch "${ARCH:-small}" --batch "${first%%:*}" --size "${first##*:}"
for run in $runs; do
    at=(--batch "${run%%:*}" --sizes "${run##*:}")
    for mode in forward training; do
        bench "peers-$mode-${run##*:}" 300 speed "${options[@]}" "${at[@]}" --mode "$mode" \
            ${compile:+"$compile"}
    done
    bench "layers-compiled-${run##*:}" 200 layers "${options[@]}" "${at[@]}" ${compile:+"$compile"}
done

# the tables last: a caller may keep the end of the output only
for log in "$out"/*.log; do
    echo "== ${log##*/}"
    grep -E '^\||passed|failed|skipped' "$log"
done
echo "== $failed failed, $left left for the next call"
((failed + left == 0))
