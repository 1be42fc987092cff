#!/bin/bash
# All that is to be measured on a GPU that is lent for minutes, in three calls that fit into fifteen:
#   bash benches/gpu_parts.sh first|second|third COMMIT
# They should take 250, 270 and 80 seconds, and end after 400, 400 and 120 in any case. What tells
# most comes first: the machine may be gone after a call.
# Every part has its own process and limit, so that a fault of the device ends that part alone, and
# writes its own JSON file into $OUT as it goes. `python benches/gpu_parts.py FILES` merges them.
#
#   bash benches/gpu_parts.sh pack      beforehand, where there is a network, into .nvvm/
# takes along what such a machine may lack: the compiler library, and a NumPy that numba-cuda knows
# (its 0.30.4 fails with 2.5), for Python 3.12.
export PYTHONUNBUFFERED=1
cd "$(dirname "$0")/.." || exit
packed=.nvvm/nvvm.tar.xz commit=${2:-}

pack() {
    local wheel
    wheel=$(mktemp -d)
    python3 -m pip download --quiet --no-deps --dest "$wheel" nvidia-nvvm==13.0.88 &&
        python3 -m zipfile -e "$wheel"/*.whl "$wheel" && mkdir -p .nvvm &&
        tar cJf "$packed" -C "$wheel/nvidia/cu13" lib nvvm/libdevice &&
        python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
            --platform manylinux_2_27_x86_64 --dest .nvvm numpy==2.4.6 && ls -l .nvvm
    rm -rf "$wheel"
}

find_numpy() {
    python3 -c 'import numpy; numpy.row_stack' 2>/dev/null && return
    local folder
    folder=$(mktemp -d)
    python3 -m zipfile -e .nvvm/numpy-*.whl "$folder" || echo "== no NumPy: bash benches/gpu_parts.sh pack"
    export PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH}
}

# Numba finds the library by the loader, and what it links to code beside CUDA_HOME.
find_nvvm() {
    python3 -c 'from cuda.pathfinder import load_nvidia_dynamic_lib as load; load("nvvm")' 2>/dev/null &&
        return
    local folder
    folder=$(mktemp -d)
    tar xJf "$packed" -C "$folder" || echo "== no NVVM here: bash benches/gpu_parts.sh pack"
    export CUDA_HOME=$folder LD_LIBRARY_PATH=$folder/lib:$LD_LIBRARY_PATH
}

unpack() {
    find_numpy
    find_nvvm
}

check() { # seconds, then what gpu_check.py takes
    local limit=$1
    shift
    timeout -k 5 "$limit" python3 benches/gpu_check.py --commit "$commit" --only "$@" ||
        echo "== exit $? of $*"
}

case "$1 ${commit:+COMMIT}" in
"pack ") pack ;;
"first COMMIT")
    unpack
    nvidia-smi -L
    python3 -m pip list 2>/dev/null | grep -iE '^(numba|llvmlite|numpy|torch|triton|cuda|nvidia-(nv|cuda-nv))'
    check 150 kernels --seconds 20
    check 65 rates
    check 170 gpt2-xl
    ;;
"second COMMIT")
    unpack
    check 200 llama-8b
    check 95 profile
    check 100 torch
    ;;
"third COMMIT")
    unpack
    check 60 tune
    # Two launches of the first form that is tuned, past the first, which warms up. What it times is
    # not kept: the profiler runs along.
    timeout -k 5 50 env OUT="$(mktemp -d)" ncu --clock-control none --kernel-name regex:fold --launch-skip 2 \
        --launch-count 2 --kill on --section SpeedOfLight --section Occupancy \
        --section WarpStateStats --section LaunchStats --log-file "${OUT:-.}/ncu.txt" \
        python3 benches/gpu_check.py --commit "$commit" --only tune >/dev/null
    cat "${OUT:-.}/ncu.txt"
    ;;
*)
    echo "usage: gpu_parts.sh first|second|third COMMIT, or gpu_parts.sh pack" >&2
    exit 2
    ;;
esac
