"""`benches/gpu_check.py` without a GPU, and the README's table of what was measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastexplain.bench import machine as measure

ROOT = Path(__file__).resolve().parents[2]
BENCHES = ROOT / "benches"

sys.path.insert(0, str(BENCHES))

import device_timings  # noqa: E402
import device_torch  # noqa: E402
import gpu_check  # noqa: E402
import gpu_parts  # noqa: E402
import readme_table  # noqa: E402

from fastexplain.kernels.cuda import capture as cuda_capture  # noqa: E402

# Nothing of the server's side, nor what only some checkpoints need, is where GPUs are measured.
BLOCKED = ("openai", "gguf", "accelerate", "pydantic", "pyarrow")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which nothing is installed."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("fastexplain", "kernels", "benches"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code with the checkout's `benches` first on the path, the blocked modules missing."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED}))\n"
    # What pip left for an editable install would find the other checkout.
    unhook = "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
    start = f"sys.path.insert(0, {str(folder / 'benches')!r})\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + unhook + start + code],
        cwd=folder, capture_output=True, text=True, timeout=300, env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.scale
def test_it_runs_from_a_bare_checkout_and_imports_no_server_library(bare: Path) -> None:
    code = (
        "import checkout, device_checks, device_torch, device_timings, gpu_check\n"
        "import fastexplain.bench.turns, fastexplain.cli.bench_table, fastexplain.sweeping.loop\n"
        "import fastexplain.kernels.cpu.capture as cpu, transformers\n"
        "print(fastexplain.__file__, cpu.__file__)\n"
    )
    shown = python(code, bare)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split() == [
        str(bare / "fastexplain" / "__init__.py"),
        str(bare / "kernels" / "cpu" / "capture.py"),
    ]


def test_without_a_gpu_it_says_so() -> None:
    shown = subprocess.run(
        [sys.executable, BENCHES / "gpu_check.py"], capture_output=True, text=True, cwd=ROOT
    )
    assert shown.returncode == 2 and "there is no CUDA device here" in shown.stderr


@pytest.mark.scale
def test_the_checks_pass_in_the_simulator(bare: Path, tmp_path: Path) -> None:
    code = (
        "import gpu_check\n"
        "sys.argv = 'gpu_check --only kernels --seconds 0 --commit abc --seed 5'.split()\n"
        "sys.exit(gpu_check.main())\n"
    )
    shown = python(code, bare, NUMBA_ENABLE_CUDASIM="1", OUT=str(tmp_path))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    [path] = tmp_path.glob("gpu_check-simulator-*.json")
    record = json.loads(path.read_text())
    assert record["commit"] == "abc" and record["seed"] == 5 and record["machine"]["gpu"] is None
    names = [check["name"] for check in record["checks"]]
    for kernel in ("capture", "merge", "discretize", "correlate", "lookup"):
        assert any(name.startswith(kernel) for name in names), kernel
    assert not [check for check in record["checks"] if check["failure"]]


@pytest.mark.scale
def test_the_comparison_with_torch_holds_for_the_cpus_kernels(monkeypatch) -> None:
    """It is written for a GPU; that it compares the right things can be seen here."""
    monkeypatch.setattr(device_torch, "CUDA", torch.device("cpu"))
    monkeypatch.setattr(device_torch, "_LARGE", (64, 96))
    for nonlinearity, gated in ((None, False), ("gelu_tanh", False), ("silu", True)):
        device_torch.check_large(nonlinearity, gated, seed=3)
    monkeypatch.setattr(device_torch.Exemplars, "update", lambda *_: None)
    with pytest.raises(AssertionError):
        device_torch.check_large(None, False, seed=3)


def test_a_failed_check_does_not_stop_the_rest(bare: Path, tmp_path: Path) -> None:
    """A kernel that forgets to write must be found out."""
    code = (
        "import gpu_check, device_checks\n"
        "right = device_checks.cuda_kernels.capture\n"
        "def wrong(acts, batch, summary, pre=None):\n"
        "    if pre is None: right(acts, batch, summary)\n"
        "device_checks.cuda_kernels.capture = wrong\n"
        "record = gpu_check.Record(None, 0, None)\n"
        "for f in ('relu', None):\n"
        "    case = device_checks.CaptureCase('float32', 2, f, 'plain', 'normal', seed=1)\n"
        "    record.run(str(f), lambda: device_checks.check_capture(case))\n"
        "failed = [check['name'] for check in record.data['checks'] if check['failure']]\n"
        "print(gpu_check.report(record.data), failed)\n"
    )
    shown = python(code, bare, NUMBA_ENABLE_CUDASIM="1")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "False ['relu']"
    assert "activations are off" in shown.stdout


def measured(**changes: object) -> dict:
    """What `fastexplain.bench.turns.measure` returns, as far as the README's table reads it."""
    names = ("trunk", "trunk_compiled", "model", "peer", "sweep", "sweep_tables",
             "sweep_compiled", "sweep_compiled_tables")  # fmt: skip
    speeds = dict(zip(names, np.arange(1.0, 9.0) * 1000, strict=True))
    result = {
        "kind": "bench",
        "machine": {"gpu": None, "cpu": "Some CPU", "instructions": "avx512", "threads": 2},
        "geometry": "gpt2",
        "layers": 12,
        "layers_of_geometry": 12,
        "device": "cpu",
        "dtype": "float32",
        "ways": {name: {"tokens_per_second": speed} for name, speed in speeds.items()},
        "ratios": {
            name: {other: speed / speeds[other] for other in names[:4]}
            for name, speed in speeds.items()
        },
    }
    return result | changes


def test_bars_are_read_from_the_record() -> None:
    kernel = {"seconds": 1e-3, "bytes": 1e9, "bytes_per_second": 1e12, "of_copy": 0.9}
    record = {
        "kernels": {f"capture {name}": kernel for name in ("plain", "gelu_tanh", "silu gated")},
        "gpt2-xl": measured(),
        "llama-8b": measured(ratios={}),
    }
    found = {name: device_timings.look_up(record, path) for name, path, _ in device_timings.BARS}
    assert found["capture plain over copy"] == 0.9
    assert found["gpt2-xl: sweep over eager trunk"] == 7
    assert found["gpt2-xl: the same with tables"] == 4
    assert found["gpt2-xl: sweep, tokens/s"] == 7000
    assert found["llama-8b: sweep over compiled trunk"] is None
    assert found["llama-8b: sweep over the peer's way"] is None


def part(commit: str = "a" * 40, when: str = "2026-01-02T03", **found: object) -> dict:
    """A file of `gpu_check.py`."""
    machine = {"gpu": "NVIDIA H200", "cpu": "Some CPU", "torch": "2.11.0"}
    record = {"kind": "gpu_check", "when": when, "commit": commit, "machine": machine, "seed": 1,
              "checks": [], "seconds": 2.0}  # fmt: skip
    return record | found


def test_parts_are_merged_and_the_later_one_counts(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path)
    kernel = {"seconds": 1e-3, "bytes": 1e9, "bytes_per_second": 1e12, "of_copy": 0.9}
    failed, fine = ({"name": "capture", "failure": why, "seconds": 1} for why in ("bad", None))
    parts = [
        part(when="2026-01-02T05", **{"gpt2-xl": measured(layers=2)}, checks=[fine]),
        part(checks=[failed], kernels={"capture plain": kernel}, copy=1.1e12, matrix=7e14),
        part(tune={"gpt2-xl": {"seconds": 1}}, **{"gpt2-xl": measured(layers=1)}),
        part(when="2026-01-02T06", tune={"llama-8b": {"seconds": 2}}),
    ]
    files = []
    for number, each in enumerate(parts):
        files.append(tmp_path / f"{number}.part")
        files[-1].write_text(json.dumps(each))
    monkeypatch.setattr(sys, "argv", ["gpu_parts.py", *map(str, files)])
    monkeypatch.setattr(gpu_check, "report", lambda data: True)  # which is tested by itself
    assert gpu_parts.main() == 0
    [path] = tmp_path.glob("*.json")
    assert path.name == "gpu_check-nvidia-h200-2026-01-02.json"
    whole = json.loads(path.read_text())
    assert whole["seconds"] == 8 and whole["commit"] == "a" * 40 and whole["checks"] == [fine]
    assert whole["gpt2-xl"]["layers"] == 2 and whole["copy"] == 1.1e12
    assert list(whole["tune"]) == ["gpt2-xl", "llama-8b"]
    found = {bar["name"]: bar["found"] for bar in whole["bars"]}
    assert found["capture plain over copy"] == 0.9
    assert found["gpt2-xl: sweep over eager trunk"] == 7
    assert not any(name.startswith("llama") for name in found)
    assert readme_table.measurements(tmp_path)[0]["geometry"] == "gpt2"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([part(), part(commit="b" * 40)], "different commit"),
        ([part(), part(machine={"gpu": "NVIDIA H100"})], "different machine"),
        ([part(commit="abc")], "'abc' is not one"),
        ([{"kind": "bench"}], "'when'"),
    ],
    ids=["commits", "machines", "short", "other"],
)
def test_parts_that_do_not_belong_together_are_refused(
    parts: list[dict], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path / "results")
    files = [tmp_path / f"{number}.json" for number in range(len(parts))]
    for path, each in zip(files, parts, strict=True):
        path.write_text(json.dumps(each))
    monkeypatch.setattr(sys, "argv", ["gpu_parts.py", *map(str, files)])
    assert gpu_parts.main() == 2
    err = capsys.readouterr().err
    assert err.startswith("gpu_parts: ") and message in err and err.count("\n") == 1


def test_the_parts_script_runs_each_part_by_itself_whatever_becomes_of_the_others(
    tmp_path: Path,
) -> None:
    """With a Python that writes down what it is asked for, and fails."""
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\necho "$@" >>"$ASKED"\ncase "$1" in -c) exit 0 ;; esac\nexit 1\n')
    fake.chmod(0o755)
    paths = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    environment = os.environ | {"PATH": paths, "OUT": str(tmp_path)}
    asked: dict[str, list[str]] = {}
    for name in ("first", "second", "third"):
        log = tmp_path / name
        subprocess.run(
            ["bash", BENCHES / "gpu_parts.sh", name, "abc"], env=environment | {"ASKED": str(log)},
            capture_output=True, timeout=60,
        )  # fmt: skip
        lines = [line for line in log.read_text().splitlines() if "gpu_check.py" in line]
        assert all("--commit abc --only " in line for line in lines)
        asked[name] = [line.split("--only ")[1] for line in lines]
    assert asked["first"] == ["kernels --seconds 20", "rates", "gpt2-xl"]
    assert asked["second"] == ["llama-8b", "profile", "torch"] and asked["third"][0] == "tune"
    for wrong in ([], ["first"], ["fourth", "abc"]):
        shown = subprocess.run(
            ["bash", BENCHES / "gpu_parts.sh", *wrong], capture_output=True, text=True
        )
        assert shown.returncode == 2 and shown.stderr.startswith("usage: gpu_parts.sh first|second")


def test_what_came_of_a_step_is_in_the_file_before_the_next_begins(
    tmp_path: Path, monkeypatch
) -> None:
    path = tmp_path / "part.json"
    written: list[dict] = []

    def look() -> None:
        written.append(json.loads(path.read_text())["tune"])
        raise RuntimeError("this one fails")

    steps = [("a", lambda: 1), ("b", look), ("c", look)]
    monkeypatch.setattr(device_timings, "tune_steps", lambda: steps)
    record = gpu_check.Record(None, 0, path)
    gpu_check.measure_parts(record, ["tune"], False)
    assert written == [{"a": 1}] * 2 and record.data["tune"] == {"a": 1}
    assert [bool(check["failure"]) for check in record.data["checks"]] == [False, True, True]


@pytest.mark.scale
def test_tuning_and_profiling_go_through_here_too(monkeypatch) -> None:
    """They are written for a GPU; that they run can be seen on a CPU."""
    monkeypatch.setattr(device_timings, "CUDA", torch.device("cpu"))
    monkeypatch.setattr(device_timings, "BATCH", {"cuda": 2})
    monkeypatch.setattr(device_timings, "_PROFILE_STEPS", 4)
    monkeypatch.setattr("fastexplain.bench.machine._ROTATED_BYTES", {"cpu": 1})
    monkeypatch.setitem(device_timings._TUNED_FORMS, "gpt2-xl", (8, {"nonlinearity": "gelu_tanh"}))
    tuned = dict(device_timings.tune_steps())
    found = tuned["gpt2-xl, 96 registers, 76000 threads"]()
    assert found["bytes"] == 2 * 2 * 64 * 8 * 2 and found["seconds"] > 0
    monkeypatch.setattr(device_timings, "capture_bandwidth", lambda form: cuda_capture._REGISTERS)
    assert tuned["gpt2-xl, 80 registers, 91000 threads"]() == 80

    profiled = dict(device_timings.profile_steps())
    assert "llama-8b, 6 layers, sweep_compiled" in profiled
    one = device_timings._profile("gpt2", 1, "sweep_compiled_tables")
    assert 0 < one["host"] <= one["whole"] and one["kernels"]
    device_timings._ways_of.cache_clear()


def test_results_of_the_kernels_for_all_neurons_are_allocated_once(monkeypatch) -> None:
    made = []
    queue = device_timings.Queue
    monkeypatch.setattr(queue, "empty", lambda self, shape, dtype: made.append(shape) or shape)
    asked = device_timings._without_allocation(
        lambda: [queue.empty(None, shape, "f4") for shape in (1, 2, 2)]
    )
    assert [asked(), asked()] == [[1, 2, 2]] * 2 and made == [1, 2, 2]


def test_the_table_shows_every_sweep_and_what_was_cut() -> None:
    shown = readme_table.block([measured(layers=4)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()]
    assert [row[2] for row in rows[2:6]] == [
        "sweep", "with tables", "layers compiled", "compiled, with tables"
    ]  # fmt: skip
    assert rows[4][:2] == ["2 CPU cores (Some CPU, AVX-512)", "gpt2, 4 of 12 layers, float32"]
    assert rows[4][3:] == ["7,000", "7.00", "3.50", "2.33", "1.75"]
    assert "No GPU has been measured with a whole sweep yet" in shown


@pytest.mark.parametrize(
    ("capability", "processor", "instructions"),
    [
        ("AVX512", "x86_64", "avx512"),
        ("DEFAULT", "arm64", "neon"),
        ("DEFAULT", "x86_64", "default"),
    ],
)
def test_a_machine_names_its_vector_instructions(
    capability: str, processor: str, instructions: str, monkeypatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("platform.machine", lambda: processor)
    assert measure.machine()["instructions"] == instructions


def test_the_table_reads_both_kinds_of_files(tmp_path: Path) -> None:
    on_gpu = measured(device="cuda", machine={"gpu": "H200", "cpu": "Some CPU", "threads": 8})
    (tmp_path / "a.json").write_text(json.dumps(measured()))
    (tmp_path / "b.json").write_text(json.dumps({"kind": "gpu_check", "seed": 1, "gpt2": on_gpu}))
    found = readme_table.measurements(tmp_path)
    assert [one["device"] for one in found] == ["cuda", "cpu"]
    assert "No GPU" not in readme_table.block(found) and "| H200 |" in readme_table.block(found)
    assert "No GPU" in readme_table.block([])


def test_the_readme_shows_what_was_recorded() -> None:
    text = readme_table.README.read_text(encoding="utf-8")
    assert text == readme_table.rewritten(text, readme_table.measurements()), "make readme-table"
    with pytest.raises(ValueError, match="no block"):
        readme_table.rewritten("# nothing", [])
